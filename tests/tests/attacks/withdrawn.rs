//! A share that is withdrawn while Mallory's request waits has ended for that request, too. She keeps an
//! upload, a build or a download open, and tries to learn by it what Alice claims later, and to build upon
//! it.

use std::time::Duration;

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::shared_box::{SERVE, SharedBox, recipe};
use nix::{BuildMode, PathInfo};
use nix_derivation::{ContentAddressMethod, DerivedPath, HashAlgorithm, SingleDerivedPath, StorePath};
use tokio::io::AsyncReadExt;
use wire::client::{End, encode_frames};
use wire::serve;
use wire::serve::ImportedInfo;
use wire::serve_client::{Client, encode_export};
use wire::worker::Request;

use crate::existence::set;
use crate::twins::{at, aterm};

/// More than the box buffers, so that it waits in the middle of an upload.
const LARGE: usize = 300 << 10;

const TOGETHER: &[(&str, &[&str])] = &[("alice", &["mallory"]), ("mallory", &["alice"])];
/// Sharing must be mutual, so one of them can end it.
const APART: &[(&str, &[&str])] = &[("alice", &[]), ("mallory", &["alice"])];

fn contents() -> Vec<u8> {
    nar(&file(&vec![7; LARGE]))
}

/// Alice's paths before and after the end of the share; and a path that nobody has.
struct Targets {
    old: StorePath,
    new: StorePath,
    nobodys: StorePath,
}

impl Targets {
    fn new() -> Self {
        Self { old: path("the-old-one"), new: path("the-new-one"), nobodys: path("nobodys-one") }
    }

    /// Removes the parts of a message that depend on the target.
    fn without_names(&self, message: &str) -> String {
        let all = [&self.old, &self.new, &self.nobodys].into_iter();
        all.fold(message.to_owned(), |text, path| text.replace(&path.to_absolute_path(), "TARGET"))
    }
}

/// Alice and Mallory while they share, in a session each. Alice has claimed the old target.
async fn sharing() -> (SharedBox, Session, Session, Targets) {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    shared_box.share(TOGETHER).await;
    let (mut alice, mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let targets = Targets::new();
    claim(&mut alice, &targets.old).await;
    (shared_box, alice, mallory, targets)
}

async fn claim(alice: &mut Session, target: &StorePath) {
    let secret = nar(&file(b"alice's"));
    alice.upload(&at(target, &secret), &secret).await;
}

/// Alice withdraws the share, and continues to work.
async fn withdraw(shared_box: &SharedBox, alice: &mut Session, targets: &Targets) {
    shared_box.share(APART).await;
    claim(alice, &targets.new).await;
}

/// Mallory's uploads, which refer to `target`, each with the path that must not become valid.
fn uploads(n: usize, target: &StorePath) -> Vec<(Request, Vec<u8>, Option<StorePath>)> {
    let contents = contents();
    let user = |way: &str| {
        let name = format!("user-{way}-{n}");
        PathInfo { references: set([target.clone()]), ..info(&name, &contents) }
    };
    let (one, many) = (user("one"), user("many"));
    let harmless = info(&format!("harmless-{n}"), &contents);
    let mut batch = items(2, &[(harmless, contents.clone())]);
    batch.extend(&items(0, &[(many.clone(), contents.clone())])[8..]);
    let addressed = Request::AddToStore {
        name: format!("user-addressed-{n}"),
        method: ContentAddressMethod::Nar,
        algorithm: HashAlgorithm::Sha256,
        references: set([target.clone()]),
        repair: false,
    };
    let announced = Request::AddToStoreNar { info: one.clone(), repair: false, dont_check_sigs: true };
    let several = Request::AddMultipleToStore { repair: false, dont_check_sigs: true };
    vec![
        (announced, contents.clone(), Some(one.path)),
        (several, batch, Some(many.path)),
        (addressed, contents, None),
    ]
}

#[tokio::test]
async fn an_upload_that_began_while_sharing_ends_by_the_shares_of_its_end() {
    let (shared_box, mut alice, mut mallory, targets) = sharing().await;
    assert!(mallory.is_valid(&targets.old).await, "they share");
    let line = shared_box.line("mallory");
    let mut begun = Vec::new();
    for (n, target) in [&targets.old, &targets.new, &targets.nobodys].into_iter().enumerate() {
        for (request, body, user) in uploads(n, target) {
            let mut session = Session::over(line.ssh(e2e::shared_box::WORKER), MINOR).await;
            session.request(&request).await;
            let frames = encode_frames(&body, 32 << 10);
            let (first, rest) = frames.split_at(frames.len() - 1000);
            session.send(first).await;
            begun.push((session, rest.to_vec(), user));
        }
    }
    withdraw(&shared_box, &mut alice, &targets).await;
    let mut said = Vec::new();
    for (mut session, rest, user) in begun {
        session.send(&rest).await;
        said.push(hidden(&targets.without_names(&session.refused(&[]).await)));
        if let Some(user) = user {
            assert!(!mallory.is_valid(&user).await, "{user} refers to what she does not see");
        }
    }
    for (n, way) in ["one", "many", "addressed"].iter().enumerate() {
        assert_eq!(said[n], said[6 + n], "{way}: what was shared before is told from what nobody has");
        assert_eq!(said[3 + n], said[6 + n], "{way}: what alice claims now is told from what nobody has");
    }
    for target in [&targets.old, &targets.new] {
        assert!(!mallory.is_valid(target).await);
    }
}

/// Removes the store paths of the requests themselves, which differ.
fn hidden(message: &str) -> String {
    let words = message.split_inclusive(' ');
    words.map(|word| if word.contains("/nix/store/") { "PATH " } else { word }).collect()
}

#[tokio::test]
async fn an_import_that_began_while_sharing_ends_by_the_shares_of_its_end() {
    let (shared_box, mut alice, mut mallory, targets) = sharing().await;
    let line = shared_box.line("mallory");
    let contents = contents();
    let mut begun = Vec::new();
    for (n, target) in [&targets.old, &targets.new, &targets.nobodys].into_iter().enumerate() {
        let references = set([target.clone()]);
        let announced = PathInfo { references: references.clone(), ..info(&format!("one-{n}"), &contents) };
        let imported = ImportedInfo { path: path(&format!("two-{n}")), references, deriver: None };
        let users = [announced.path.clone(), imported.path.clone()];
        let stream = encode_export(&[(imported, contents.clone())]);
        let requests = [
            (serve::Request::AddToStoreNar { info: announced }, contents.clone()),
            (serve::Request::ImportPaths, stream),
        ];
        for ((request, body), user) in requests.into_iter().zip(users) {
            let (ssh, reader, writer, stderr) = piped_with_stderr(line.ssh(SERVE));
            let mut client =
                within("a handshake", Client::connect(reader, writer, 7)).await.expect("a handshake");
            client.request(&request).await.expect("sent");
            let (first, rest) = body.split_at(LARGE - 1000);
            client.send(first).await.expect("sent");
            begun.push((client, ssh, stderr, rest.to_vec(), user));
        }
    }
    withdraw(&shared_box, &mut alice, &targets).await;
    let mut said = Vec::new();
    for (mut client, mut ssh, stderr, rest, user) in begun {
        let _ = client.send(&rest).await;
        let answer = within("an answer", client.u64()).await.unwrap_or(0);
        assert_ne!(answer, 1, "{user} was taken in");
        drop(client);
        let _ = within("ssh to end", ssh.wait()).await;
        let message = String::from_utf8_lossy(&stderr.await.expect("read")).into_owned();
        println!("refused: {message}");
        said.push(hidden(&targets.without_names(&message)));
        assert!(!mallory.is_valid(&user).await, "{user} refers to what she does not see");
    }
    for way in 0..2 {
        assert!(said[way].contains("error"), "{}", said[way]);
        assert_eq!(said[way], said[4 + way], "what was shared before is told from what nobody has");
        assert_eq!(said[2 + way], said[4 + way], "what alice claims now is told from what nobody has");
    }
}

/// A request that builds several targets, one after the other, checks each one when its turn comes.
#[tokio::test]
async fn a_request_that_waits_for_its_builds_does_not_see_what_a_former_partner_claims() {
    let setup = Setup::default().setting("limits.max-jobs = 4").setting("limits.max-jobs-per-member = 1");
    let shared_box = SharedBox::with(&["alice", "mallory"], setup);
    shared_box.share(TOGETHER).await;
    let mut alice = shared_box.session("alice").await;
    let [mut mallory, mut waits] = [shared_box.session("mallory").await, shared_box.session("mallory").await];
    let (first, second) = (path("first"), path("second"));
    let (first_drv, second_drv) = (path("first.drv"), path("second.drv"));
    let script = format!("read line < {}; echo $line and second > $out", first.to_absolute_path());
    for (drv, text) in [
        (&first_drv, aterm(&first, &[], &[], "echo first > $out")),
        (&second_drv, aterm(&second, &[&first_drv], &[], &script)),
    ] {
        let contents = nar(&file(&text));
        let references = if *drv == second_drv { set([first_drv.clone()]) } else { set([]) };
        mallory.upload(&PathInfo { references, ..at(drv, &contents) }, &contents).await;
    }
    // Her only slot.
    mallory.start_build(recipe(&path("busy.drv"), &[("out", &path("busy"))], &[], "sleep 900")).await;
    until("the slot to be taken", || shared_box.agent.count("build started") == 1).await;
    let paths = vec![DerivedPath::Built {
        drv_path: SingleDerivedPath::Opaque(second_drv),
        outputs: vec!["out".into()],
    }];
    waits.request(&Request::BuildPaths { paths, mode: BuildMode::Normal }).await;
    until("the first build to wait", || shared_box.agent.count("build accepted") == 2).await;
    shared_box.share(APART).await;
    let alices = nar(&file(b"alice's\n"));
    alice.upload(&at(&second, &alices), &alices).await;
    mallory.vanish().await;
    let (_, end) = within("both builds", waits.client.log()).await.expect("an answer");
    assert!(matches!(end, End::Last), "{end:?}");
    assert_eq!(waits.client.u64().await.expect("an answer"), 1);
    assert_eq!(shared_box.agent.count("build started"), 3, "alice's claim was taken for what she asked for");
    assert_eq!(waits.nar(&second).await, nar(&file(b"first and second\n")));
}

/// A path that Mallory is reading when the share ends may be read to its end; the next one does not begin.
#[tokio::test]
async fn an_export_does_not_go_on_to_what_is_no_longer_shared() {
    const SIZE: usize = 16 << 20;
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    shared_box.share(TOGETHER).await;
    let mut alice = shared_box.session("alice").await;
    let large = nar(&file(&vec![7; SIZE]));
    let paths = vec![path("a"), path("b")];
    for path in &paths {
        alice.upload(&at(path, &large), &large).await;
    }
    let (ssh, reader, writer) = piped(shared_box.ssh("mallory", SERVE));
    let mut client = within("a handshake", Client::connect(reader, writer, 7)).await.expect("a handshake");
    client.request(&serve::Request::ExportPaths { paths }).await.expect("sent");
    assert_eq!(within("the first", client.u64()).await.expect("a path"), 1);
    // By now all buffers between the two are full.
    tokio::time::sleep(Duration::from_millis(500)).await;
    shared_box.share(APART).await;
    let mut rest = Vec::new();
    within("the end", client.reader.read_to_end(&mut rest)).await.expect("read");
    drop(ssh);
    assert!(rest.len() >= large.len(), "the first is whole");
    assert!(rest.len() < large.len() + SIZE, "the second was sent: {} bytes", rest.len());
}
