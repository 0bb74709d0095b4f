//! Builds and the network: outputs that are fetched instead of built, and `builtin:fetchurl`. All in one
//! process; a script plays the builders.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use builds::modulo::Hasher;
use builds::study::Study;
use common::cache::{Cache, as_it_is, fetching_agent, key};
use common::client::{Drv, build, send, set_option, told};
use common::http::{ok, silent};
use common::scripted::{Scripted, derivation, member, path, until};
use daemon::{Caller, HostCommand, Realise, SessionOptions, run_host_command};
use nix::derivation::{BasicDerivation, aterm};
use nix::{BuildMode, BuildStatus};
use nix_derivation::{
    CAHash, ContentAddressMethod, DerivedPath, HashAlgorithm, Output, SingleDerivedPath, StorePath, nixbase32,
};
use sha2::{Digest, Sha256};
use store::{Member, Provenance, RealisationId, View};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::client::{Frame, encode_file_nar};
use wire::worker::Request;

fn messages(frames: &[Frame]) -> Vec<String> {
    let text = |frame: &Frame| match frame {
        Frame::Message(text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    };
    frames.iter().filter_map(text).collect()
}

fn alices(scripted: &Scripted) -> View {
    scripted.agent.store.view(&Member::new("alice"))
}

/// Uploads a `.drv` to the view; returns its path.
fn stored(view: &View, name: &str, drv: &BasicDerivation, inputs: &[&StorePath]) -> StorePath {
    let named: BTreeMap<String, BTreeSet<String>> =
        inputs.iter().map(|input| (input.to_absolute_path(), ["out".to_owned()].into())).collect();
    let text = aterm(name, drv, &named, false);
    let references = inputs.iter().map(|input| (*input).clone()).collect();
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    let added = view.add_ca(&format!("{name}.drv"), method, algorithm, &references, &mut text.as_slice());
    added.expect("added").path.clone()
}

fn outputs_of(drv: &StorePath) -> DerivedPath {
    DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv.clone()), outputs: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cache_has_is_not_built_whichever_way_it_is_asked_for() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let scripted = fetching_agent(address, &key, "");
    let view = alices(&scripted);
    let mut drvs = ["command", "paths", "results", "derivation"].into_iter().map(|name| {
        cache.publish(name, name, &[], Some(&key), as_it_is);
        let (_, derivation) = derivation(name, "exit:9", &[]);
        (stored(&view, name, &derivation, &[]), derivation, path(name))
    });

    let (drv, _, out) = drvs.next().expect("a derivation");
    let mut realise = Realise { targets: vec![outputs_of(&drv)], print: true, ..Realise::default() };
    realise.settings.use_substitutes = true;
    let (stdout, mut printed) = tokio::io::duplex(4096);
    let (stderr, mut said) = tokio::io::duplex(4096);
    let caller = Caller::outside(member("alice"), 0, SessionOptions::default());
    let (command, hung_up) = (HostCommand::Realise(realise), Box::pin(std::future::pending()));
    let status = run_host_command(
        command,
        Box::new(stdout),
        Box::new(stderr),
        hung_up,
        scripted.agent.clone(),
        caller,
    )
    .await;
    let (mut text, mut errors) = (String::new(), String::new());
    printed.read_to_string(&mut text).await.expect("stdout");
    said.read_to_string(&mut errors).await.expect("stderr");
    assert_eq!((status, text), (0, format!("{}\n", out.to_absolute_path())), "{errors}");

    let mut alice = scripted.session("alice").await;
    let mode = BuildMode::Normal;
    let (drv, _, out) = drvs.next().expect("a derivation");
    let frames =
        alice.call(&Request::BuildPaths { paths: vec![outputs_of(&drv)], mode }).await.expect("built");
    // The activities of a stock daemon: 108 is a substitution, 100 the copy.
    for kind in [108, 100] {
        assert!(frames.iter().any(|f| matches!(f, Frame::Start(_, k, _) if *k == kind)), "{frames:?}");
    }
    alice.u64().await.expect("1");
    assert!(view.is_valid(&out));
    let (drv, _, out) = drvs.next().expect("a derivation");
    let paths = vec![outputs_of(&drv)];
    alice.call(&Request::BuildPathsWithResults { paths, mode }).await.expect("built");
    assert!(view.is_valid(&out));
    let mut alice = scripted.session("alice").await;
    let (drv, derivation, _) = drvs.next().expect("a derivation");
    build(&mut alice, (drv, derivation)).await.is(BuildStatus::AlreadyValid);
    assert_eq!(scripted.runs(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_what_is_realised_nothing_is_fetched() {
    let (cache, address) = Cache::open().await;
    let key = key();
    let scripted = fetching_agent(address, &key, "");
    let view = alices(&scripted);
    let input = cache.publish("input", "input", &[], Some(&key), as_it_is);
    let (_, below) = derivation("input", "write:input", &[]);
    let below = stored(&view, "input", &below, &[]);
    let (_, mut above) = derivation("above", "write:x", &[]);
    let floating =
        Output::Floating { method: ContentAddressMethod::Nar, hash_algorithm: HashAlgorithm::Sha256 };
    above.outputs.insert("out".into(), floating);
    let above = stored(&view, "above", &above, &[&below]);
    let nar = encode_file_nar(b"x", false);
    let (method, algorithm) = (ContentAddressMethod::Nar, HashAlgorithm::Sha256);
    let out = view.add_ca("above", method, algorithm, &BTreeSet::new(), &mut nar.as_slice()).expect("added");
    let drv_hash = Hasher::new(&view, &scripted.agent.realiser.drv_hashes, &Study::default())
        .of(&above)
        .expect("hashes")
        .masked;
    let id = RealisationId { drv_hash, output: "out".into() };
    let mine = Provenance::Claimed(Member::new("alice"));
    view.add_realisation(id, out.path.clone(), mine).expect("realised");

    let mut alice = scripted.session("alice").await;
    let (paths, mode) = (vec![outputs_of(&above)], BuildMode::Normal);
    alice.call(&Request::BuildPaths { paths, mode }).await.expect("built");
    assert_eq!((cache.all_asked(), scripted.runs()), (0, 0));
    assert!(!view.is_valid(&input));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_while_caches_are_asked_is_noticed() {
    let (address, connections) = silent().await;
    let scripted = Scripted::open(&format!(
        "substituters = [\"http://{address}\"]\nfetch.allow-private = true\nfetch.stall-seconds = 3600\n"
    ));
    let (drv, derivation) = derivation("app", "exit:9", &[]);
    let mode = BuildMode::Normal;
    let app = path("app");
    for request in [
        Request::QueryMissing { targets: vec![DerivedPath::Opaque(app.clone())] },
        Request::QuerySubstitutablePathInfo { path: app.clone() },
        Request::QuerySubstitutablePaths { paths: vec![app.clone()] },
        Request::BuildPaths { paths: vec![DerivedPath::Opaque(app.clone())], mode },
        Request::BuildDerivation { drv_path: drv.clone(), derivation: derivation.clone(), mode },
    ] {
        let before = connections.load(Ordering::Relaxed);
        let mut alice = scripted.session("alice").await;
        alice.request(&request).await.expect("sent");
        until("the cache to be asked", || connections.load(Ordering::Relaxed) > before).await;
        drop(alice);
        // Only this test still holds the agent: the session is gone.
        until("the session to end", || Arc::strong_count(&scripted.agent) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_cache_is_not_used_is_said_where_its_paths_are_wanted() {
    let (cache, address) = Cache::open().await;
    cache.publish("app", "x", &[], None, as_it_is);
    let scripted = fetching_agent(address, &key(), "");
    let mut alice = scripted.session("alice").await;
    let (drv_path, derivation) = derivation("app", "write:x", &[]);
    let targets = vec![DerivedPath::Opaque(path("app"))];
    let frames = alice.call(&Request::QueryMissing { targets }).await.expect("an answer");
    let asked = messages(&frames);
    for _ in 0..3 {
        alice.paths().await.expect("paths");
    }
    for _ in 0..2 {
        alice.u64().await.expect("a size");
    }
    let built = build(&mut alice, (drv_path, derivation)).await;
    built.is(BuildStatus::Built);
    for said in [asked, messages(&built.frames)] {
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("warning: ") && said[0].contains("has no signature; sign it"), "{said:?}");
    }
}

/// A derivation that downloads the file with this content address.
fn fetchurl(url: &str, ca: &str, more: &[(&str, &str)]) -> Drv {
    let ca = CAHash::parse(ca).expect("a content address");
    let out = Output::Fixed { ca };
    let place = out.path("file", "out").expect("a name").expect("a fixed path").to_absolute_path();
    let mut env = BTreeMap::from([(b"url".to_vec(), url.into()), (b"out".to_vec(), place.into_bytes())]);
    env.extend(more.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())));
    let derivation = BasicDerivation {
        outputs: BTreeMap::from([("out".to_owned(), out)]),
        input_sources: BTreeSet::new(),
        system: "builtin".into(),
        builder: "builtin:fetchurl".into(),
        args: Vec::new(),
        env,
    };
    (path("file.drv"), derivation)
}

fn flat(contents: &[u8]) -> String {
    format!("fixed:sha256:{}", nixbase32::encode(&Sha256::digest(contents)))
}

/// A server that passes each connection, after its request, to `serve`, with the number of earlier
/// connections.
async fn scripted_server<F>(
    serve: impl Fn(usize, TcpStream) -> F + Send + 'static,
) -> (String, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.expect("a request"));
            }
            tokio::spawn(serve(counter.fetch_add(1, Ordering::SeqCst), stream));
        }
    });
    (format!("http://{address}/file"), count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_somebody_elses_limit_ended_starts_again() {
    let (url, connections) = scripted_server(|number, mut stream| async move {
        match number {
            0 => std::future::pending().await,
            _ => stream.write_all(&ok("contents")).await.expect("sent"),
        }
    })
    .await;
    let scripted = Scripted::open("fetch.allow-private = true\n");
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    set_option(&mut alice, "timeout", "3").await;
    let what = || fetchurl(&url, &flat(b"contents"), &[]);
    send(&mut alice, what()).await;
    until("the download to start", || connections.load(Ordering::SeqCst) == 1).await;
    send(&mut bob, what()).await;
    let alices = told(&mut alice).await;
    alices.is(BuildStatus::TimedOut);
    assert!(
        alices.message.contains("timed out after 3 seconds, which is the limit (the client's `timeout`"),
        "{}",
        alices.message
    );
    told(&mut bob).await.is(BuildStatus::Built);
    // Who builds with it is charged for what arrived.
    let charged = |member: &str| {
        let used = scripted.agent.ledger.used_this_month(&ledger::Principal::member(member));
        used.get(ledger::Resource::DownloadBytes)
    };
    assert_eq!((charged("alice"), charged("bob")), (0, b"contents".len() as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_attempts_of_a_download_share_one_limit() {
    let (url, _) = scripted_server(|_, stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let scripted = Scripted::open("fetch.allow-private = true\nfetch.stall-seconds = 1\n");
    let mut alice = scripted.session("alice").await;
    set_option(&mut alice, "timeout", "2").await;
    build(&mut alice, fetchurl(&url, &flat(b"contents"), &[])).await.is(BuildStatus::TimedOut);
}

/// The path of an open file with exactly these contents.
fn holding(contents: &[u8]) -> Option<PathBuf> {
    let open = std::fs::read_dir("/proc/self/fd").expect("open files");
    let links = open.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = links.filter(|link| std::fs::metadata(link).is_ok_and(|meta| meta.is_file()));
    let found = files.find(|link| std::fs::read(link).is_ok_and(|held| held == contents))?;
    std::fs::read_link(found).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_of_unknown_length_waits_in_the_state_folder() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let (opened, text) = (gate.clone(), "half".repeat(10_000));
    let (half, whole) = (text.clone(), text.repeat(2));
    let (url, _) = scripted_server(move |_, mut stream| {
        let (gate, half) = (opened.clone(), half.clone());
        async move {
            let chunk = format!("{:x}\r\n{half}\r\n", half.len());
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(format!("{head}{chunk}").as_bytes()).await.expect("sent");
            gate.notified().await;
            stream.write_all(format!("{chunk}0\r\n\r\n").as_bytes()).await.expect("sent");
        }
    })
    .await;
    let scripted = Scripted::open("fetch.allow-private = true\n");
    let mut alice = scripted.session("alice").await;
    send(&mut alice, fetchurl(&url, &flat(whole.as_bytes()), &[])).await;
    let mut place = None;
    until("the first half to be in a file", || {
        place = holding(text.as_bytes());
        place.is_some()
    })
    .await;
    gate.notify_one();
    told(&mut alice).await.is(BuildStatus::Built);
    let place = place.expect("found");
    assert!(place.starts_with(scripted.dir.path()), "{}", place.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpacked_download_is_tried_again_when_it_was_cut_short() {
    let nar = encode_file_nar(&b"unpacked".repeat(10_000), true);
    let ca = format!("fixed:r:sha256:{}", nixbase32::encode(&Sha256::digest(&nar)));
    let (url, connections) = scripted_server(move |number, mut stream| {
        let answer = ok(&nar);
        async move {
            let end = if number == 0 { 5000 } else { answer.len() };
            stream.write_all(&answer[..end]).await.expect("sent");
        }
    })
    .await;
    let scripted = Scripted::open("fetch.allow-private = true\n");
    let mut alice = scripted.session("alice").await;
    let (drv, derivation) = fetchurl(&url, &ca, &[("unpack", "1"), ("executable", "1")]);
    build(&mut alice, (drv, derivation)).await.is(BuildStatus::Built);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    // A download that is no NAR is the server's fault, so it is not repeated.
    let (url, connections) = scripted_server(|_, mut stream| async move {
        stream.write_all(&ok("this is no NAR")).await.expect("sent");
    })
    .await;
    let told = build(&mut alice, fetchurl(&url, &flat(b"x"), &[("unpack", "1")])).await;
    told.is(BuildStatus::OutputRejected);
    assert!(told.message.contains("cannot unpack"), "{}", told.message);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_over_its_members_limit_on_outputs_says_so_and_others_get_theirs() {
    let contents = "f".repeat(2 << 20);
    let answer = ok(&contents);
    let (url, _) = scripted_server(move |_, mut stream| {
        let answer = answer.clone();
        async move {
            // The box may hang up before it has all.
            let _ = stream.write_all(&answer).await;
        }
    })
    .await;
    let scripted = Scripted::open("fetch.allow-private = true\n");
    scripted.limit("alice", serde_json::json!({ "max-output-mib": 1 }));
    let (mut alice, mut bob) = (scripted.session("alice").await, scripted.session("bob").await);
    let what = || fetchurl(&url, &flat(contents.as_bytes()), &[]);
    send(&mut alice, what()).await;
    let alices = told(&mut alice).await;
    alices.is(BuildStatus::TransientFailure);
    let limit = "(your `max-output-mib` in the roster); ask a maintainer of the roster for more";
    assert!(alices.message.contains("larger than 1048576 bytes"), "{}", alices.message);
    assert!(alices.message.contains(limit), "{}", alices.message);
    send(&mut bob, what()).await;
    told(&mut bob).await.is(BuildStatus::Built);
}
