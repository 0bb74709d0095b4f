//! Sessions of the serve protocol, and the commands beside it: real wire, real store, real scheduler; a
//! script plays the builders.

mod common;

use std::collections::BTreeSet;

use common::PATIENCE;
use common::client::Drv;
use common::scripted::{Scripted, ServeClient, derivation, info_of, member, path};
use daemon::{Caller, HostCommand, Realise, SessionOptions, run_host_command};
use nix::BuildStatus;
use nix_derivation::{
    ContentAddressMethod, Derivation, DerivedPath, HashAlgorithm, SingleDerivedPath, StorePath,
};
use tokio::io::{AsyncReadExt, DuplexStream};
use wire::client::encode_file_nar;
use wire::serve::{BuildOptions, ImportedInfo, Request};
use wire::serve_client::encode_export;

/// Uploads a file and returns the server's answer: 1 or 0.
async fn add(client: &mut ServeClient, name: &str, contents: &[u8], references: &[StorePath]) -> u64 {
    let nar = encode_file_nar(contents, false);
    let info = info_of(path(name), &nar, references);
    client.request(&Request::AddToStoreNar { info }).await.expect("sent");
    client.send(&nar).await.expect("sent");
    client.u64().await.expect("an answer")
}

async fn valid(client: &mut ServeClient, paths: &[StorePath]) -> Vec<StorePath> {
    let paths = paths.to_vec();
    client.request(&Request::QueryValidPaths { lock: false, substitute: false, paths }).await.expect("sent");
    client.paths().await.expect("an answer")
}

/// Everything written to a stream whose writer has been dropped.
async fn all(mut stream: DuplexStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("UTF-8");
    text
}

/// The next bytes on a stream.
async fn some(stream: &mut DuplexStream) -> String {
    let mut bytes = [0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut bytes)).await.expect("in time");
    String::from_utf8_lossy(&bytes[..read.expect("read")]).into_owned()
}

fn build((drv_path, derivation): Drv) -> Request {
    Request::BuildDerivation { drv_path, derivation, options: BuildOptions::default() }
}

/// Status and message of a build result.
async fn result(client: &mut ServeClient) -> (u64, String) {
    let told = (client.u64().await.expect("status"), client.string().await.expect("message"));
    for _ in 0..4 {
        client.u64().await.expect("times and counts");
    }
    for _ in 0..client.u64().await.expect("outputs") {
        client.string().await.expect("id");
        client.string().await.expect("realisation");
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_uploaded_is_valid_has_an_info_and_comes_back() {
    let scripted = Scripted::open("");
    let (mut alice, _stderr) = scripted.serve_session("alice", true).await;
    assert_eq!(add(&mut alice, "a", b"first", &[]).await, 1);
    assert_eq!(add(&mut alice, "b", b"second", &[path("a"), path("b")]).await, 1);
    assert_eq!(valid(&mut alice, &[path("b"), path("c"), path("a")]).await, [path("b"), path("a")]);

    alice.request(&Request::QueryPathInfos { paths: vec![path("b"), path("c")] }).await.expect("sent");
    let nar = encode_file_nar(b"second", false);
    assert_eq!(alice.infos().await.expect("infos"), [info_of(path("b"), &nar, &[path("a"), path("b")])]);
    alice.request(&Request::DumpStorePath { path: path("b") }).await.expect("sent");
    assert_eq!(alice.nar().await.expect("a NAR"), nar);
    alice
        .request(&Request::QueryClosure { include_outputs: false, paths: vec![path("b")] })
        .await
        .expect("sent");
    let closure: BTreeSet<_> = alice.paths().await.expect("paths").into_iter().collect();
    assert_eq!(closure, BTreeSet::from([path("a"), path("b")]));

    let (mut bob, _stderr) = scripted.serve_session("bob", true).await;
    assert_eq!(valid(&mut bob, &[path("a"), path("b")]).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upload_says_why_and_the_session_goes_on() {
    let scripted = Scripted::open("");
    let (mut alice, mut stderr) = scripted.serve_session("alice", true).await;
    assert_eq!(add(&mut alice, "a", b"first", &[path("missing")]).await, 0);
    let told = some(&mut stderr).await;
    assert!(told.starts_with("error: ") && told.contains("-missing"), "{told}");
    assert_eq!(add(&mut alice, "a", b"first", &[]).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_stream_goes_in_and_comes_out() {
    let scripted = Scripted::open("");
    let (mut alice, _stderr) = scripted.serve_session("alice", true).await;
    let item = |name: &str, references: &[&str], contents: &[u8]| {
        let references = references.iter().map(|name| path(name)).collect();
        (ImportedInfo { path: path(name), references, deriver: None }, encode_file_nar(contents, true))
    };
    let items =
        vec![item("a", &[], b"first"), item("z", &["a"], b"second"), item("b", &["z", "b"], b"third")];
    alice.request(&Request::ImportPaths).await.expect("sent");
    alice.send(&encode_export(&items)).await.expect("sent");
    assert_eq!(alice.u64().await.expect("an answer"), 1);

    // The paths are requested in the wrong order, and sent in an order that can be imported.
    let paths = vec![path("b"), path("a"), path("z")];
    alice.request(&Request::ExportPaths { paths }).await.expect("sent");
    assert_eq!(alice.export().await.expect("a stream"), items);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_cannot_change_what_is_verified() {
    let scripted = Scripted::open("");
    let bob = scripted.agent.store.view(&store::Member::new("bob"));
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    let text = bob.add_ca("t", method, algorithm, &BTreeSet::new(), &mut &b"true"[..]).expect("added");

    let (mut alice, _stderr) = scripted.serve_session("alice", true).await;
    let forged = ImportedInfo { path: text.path.clone(), references: BTreeSet::new(), deriver: None };
    alice.request(&Request::ImportPaths).await.expect("sent");
    alice.send(&encode_export(&[(forged, encode_file_nar(b"forged", false))])).await.expect("sent");
    alice.u64().await.expect("an answer");
    alice.request(&Request::DumpStorePath { path: text.path.clone() }).await.expect("sent");
    assert_eq!(alice.nar().await.expect("a NAR"), encode_file_nar(b"true", false));
    assert_eq!(bob.read_file(&text.path, 10).expect("the file"), b"true");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_write_nothing_is_added_or_built() {
    let scripted = Scripted::open("");
    let (mut alice, mut stderr) = scripted.serve_session("alice", false).await;
    assert_eq!(add(&mut alice, "a", b"first", &[]).await, 0);
    assert!(some(&mut stderr).await.contains("--write"));
    alice.request(&Request::ImportPaths).await.expect("sent");
    alice.send(&encode_export(&[])).await.expect("sent");
    assert_eq!(alice.u64().await.expect("an answer"), 0);
    alice.request(&build(derivation("t", "write:x", &[]))).await.expect("sent");
    let (status, message) = result(&mut alice).await;
    assert_eq!(status, BuildStatus::MiscFailure as u64);
    assert!(message.contains("--write"), "{message}");
    assert_eq!(valid(&mut alice, &[path("a"), path("t")]).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_cannot_be_answered_ends_the_session_with_a_reason() {
    let scripted = Scripted::open("");
    let (mut alice, stderr) = scripted.serve_session("alice", true).await;
    alice.request(&Request::DumpStorePath { path: path("nowhere") }).await.expect("sent");
    alice.nar().await.expect_err("nothing");
    let told = all(stderr).await;
    assert!(told.starts_with("error: ") && told.contains("-nowhere"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_shows_its_log_on_stderr_while_it_runs() {
    let scripted = Scripted::open("");
    let (mut alice, mut stderr) = scripted.serve_session("alice", true).await;
    alice.request(&build(derivation("t", "log:one gate log:two write:x", &[]))).await.expect("sent");
    assert_eq!(some(&mut stderr).await, "one\n");
    scripted.script.gate.cancel();
    assert_eq!(result(&mut alice).await, (BuildStatus::Built as u64, String::new()));
    assert_eq!(some(&mut stderr).await, "two\n");
    assert_eq!(valid(&mut alice, &[path("t")]).await, [path("t")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_cancels_its_build() {
    let scripted = Scripted::open("");
    let (mut alice, mut stderr) = scripted.serve_session("alice", true).await;
    alice.request(&build(derivation("t", "log:started wait", &[]))).await.expect("sent");
    assert_eq!(some(&mut stderr).await, "started\n");
    drop(alice);
    scripted.until_cancelled(1).await;
}

/// A derivation in the store of `alice`, and its output.
fn stored(scripted: &Scripted, name: &str, script: &str) -> (StorePath, StorePath) {
    let view = scripted.agent.store.view(&store::Member::new("alice"));
    let out = path(name).to_absolute_path();
    let text = format!(
        "Derive([(\"out\",\"{out}\",\"\",\"\")],[],[],\"x86_64-linux\",\"/bin/sh\",[\"{script}\"],[(\"out\",\"{out}\")])"
    );
    Derivation::from_aterm_bytes(text.as_bytes(), name).expect("a derivation");
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    let drv = view
        .add_ca(&format!("{name}.drv"), method, algorithm, &BTreeSet::new(), &mut text.as_bytes())
        .expect("added");
    (drv.path.clone(), path(name))
}

fn all_outputs(drv: StorePath) -> DerivedPath {
    DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv), outputs: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_built_and_failures_have_their_status() {
    let scripted = Scripted::open("");
    let (good, out) = stored(&scripted, "good", "write:x");
    let (bad, _) = stored(&scripted, "bad", "log:why exit:3");
    let (mut alice, mut stderr) = scripted.serve_session("alice", true).await;
    let options = BuildOptions::default();
    let paths = vec![all_outputs(good.clone())];
    alice.request(&Request::BuildPaths { paths, options }).await.expect("sent");
    assert_eq!(alice.u64().await.expect("a status"), BuildStatus::Built as u64);
    assert_eq!(valid(&mut alice, std::slice::from_ref(&out)).await, std::slice::from_ref(&out));

    alice
        .request(&Request::QueryClosure { include_outputs: true, paths: vec![good.clone()] })
        .await
        .expect("sent");
    let closure: BTreeSet<_> = alice.paths().await.expect("paths").into_iter().collect();
    assert_eq!(closure, BTreeSet::from([good, out]));

    alice.request(&Request::BuildPaths { paths: vec![all_outputs(bad)], options }).await.expect("sent");
    assert_eq!(alice.u64().await.expect("a status"), BuildStatus::PermanentFailure as u64);
    assert!(alice.string().await.expect("a message").contains("exit code 3"));
    assert_eq!(some(&mut stderr).await, "why\n");

    let options = BuildOptions { nr_repeats: 1, ..options };
    alice.request(&Request::BuildPaths { paths: Vec::new(), options }).await.expect("sent");
    assert_eq!(alice.u64().await.expect("a status"), BuildStatus::MiscFailure as u64);
    assert!(alice.string().await.expect("a message").contains("repeat"));
}

/// Runs a command as alice: stdout, stderr, exit status.
async fn run(scripted: &Scripted, command: HostCommand) -> (String, String, u32) {
    let (stdout, out) = tokio::io::duplex(64 * 1024);
    let (stderr, err) = tokio::io::duplex(64 * 1024);
    let hung_up = Box::pin(std::future::pending());
    let caller = Caller::outside(member("alice"), 0, SessionOptions::default());
    let status = run_host_command(
        command,
        Box::new(stdout),
        Box::new(stderr),
        hung_up,
        scripted.agent.clone(),
        caller,
    )
    .await;
    (all(out).await, all(err).await, status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_derivation_is_realised_under_a_root_until_its_folder_is_removed() {
    let scripted = Scripted::open("");
    let (drv, out) = stored(&scripted, "system", "log:working write:x");
    let view = scripted.agent.store.view(&store::Member::new("alice"));
    let (folder, _, status) = run(&scripted, HostCommand::MakeFolder { prefix: "/tmp/n.".into() }).await;
    assert_eq!(status, 0);
    let link = format!("{}/abc", folder.trim_end());
    assert!(link.starts_with("/tmp/n."), "{link}");

    let realise = Realise {
        targets: vec![all_outputs(drv)],
        root: Some(link.clone()),
        print: true,
        ..Realise::default()
    };
    let (stdout, stderr, status) = run(&scripted, HostCommand::Realise(realise)).await;
    assert_eq!((stdout, status), (format!("{link}\n"), 0));
    assert!(stderr.contains("building '") && stderr.contains("\nworking\n"), "{stderr}");
    assert_eq!(view.roots().get(&link), Some(&out));

    let read = HostCommand::ReadLink { link: link.clone() };
    let (stdout, _, status) = run(&scripted, read.clone()).await;
    assert_eq!((stdout, status), (format!("{}\n", out.to_absolute_path()), 0));

    let folder = folder.trim_end().to_owned();
    assert_eq!(run(&scripted, HostCommand::RemoveFolder { folder }).await.2, 0);
    assert!(view.roots().is_empty());
    assert_eq!(run(&scripted, read).await.2, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_realisation_has_nix_exit_status_and_prints_no_path() {
    let scripted = Scripted::open("");
    let (drv, _) = stored(&scripted, "bad", "exit:1");
    let realise = Realise { targets: vec![all_outputs(drv)], print: true, ..Realise::default() };
    let (stdout, stderr, status) = run(&scripted, HostCommand::Realise(realise)).await;
    assert_eq!((stdout.as_str(), status), ("", 100));
    assert!(stderr.contains("exit code 1"), "{stderr}");
}
