//! Hundreds of clients who begin a message and do not continue hold up nobody, and are disconnected after a
//! while.
//!
//! The tests measure another member's work meanwhile, and check afterwards that nothing of these clients
//! remains.

use std::time::{Duration, Instant};

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::shared_box::{Line, SERVE, SharedBox, WORKER, recipe};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinSet;
use wire::client::encode_frames;
use wire::serve;
use wire::worker::Request;

/// The most sessions of one connection, half of them for each protocol.
const SESSIONS: usize = 512;
/// The sent part of each upload: more than the box buffers, and less than the whole.
const SENT: usize = 300 << 10;
/// Seconds. Long enough that all clients are stalled at the same time.
const STALL: u64 = 10;

type ServeClient = wire::serve_client::Client<ChildStdout, ChildStdin>;

fn shared_box(more: &[&str]) -> SharedBox {
    let setup = Setup::default().setting(&format!("limits.client-stall-seconds = {STALL}"));
    SharedBox::with(&["alice", "mallory"], more.iter().fold(setup, |setup, line| setup.setting(line)))
}

/// A complete upload of 1 MiB.
fn upload() -> Vec<u8> {
    nar(&file(&vec![7; 1 << 20]))
}

/// Alice uploads, builds and reads.
async fn work(shared_box: &SharedBox, round: usize) -> Duration {
    let start = Instant::now();
    let mut alice = shared_box.session("alice").await;
    let (contents, name) = (upload(), format!("hers-{round}"));
    alice.upload(&info(&name, &contents), &contents).await;
    let (out, drv) = (path(&format!("built-{round}")), path(&format!("built-{round}.drv")));
    let told = alice.build(recipe(&drv, &[("out", &out)], &[&path(&name)], "echo made > $out")).await;
    assert_eq!(told.status, 0, "{told:?}");
    assert_eq!(alice.nar(&path(&name)).await.len(), contents.len());
    alice.leave().await;
    start.elapsed()
}

/// Opens this many sessions on this line at once.
async fn open<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    line: &Line,
    words: &[&str],
    count: usize,
    begin: impl Fn(std::process::Command) -> F,
) -> Vec<T> {
    let mut opening = JoinSet::new();
    for _ in 0..count {
        opening.spawn(begin(line.ssh(words)));
    }
    opening.join_all().await
}

async fn serve_session(mut ssh: std::process::Command) -> (Child, ServeClient) {
    // All of them print the same message at the end.
    ssh.stderr(std::process::Stdio::null());
    let (ssh, reader, writer) = piped(ssh);
    let client = within("a handshake", ServeClient::connect(reader, writer, 7)).await;
    (ssh, client.expect("a handshake"))
}

/// Checks that the session was ended with an error.
async fn ended(ssh: &mut Child) {
    let status = within("a stalled session to end", ssh.wait()).await.expect("wait");
    assert_eq!(status.code(), Some(1));
}

#[tokio::test]
async fn uploads_that_stop_in_the_middle_hold_up_nobody_and_end() {
    let shared_box = shared_box(&[]);
    let quiet = work(&shared_box, 0).await;
    let line = shared_box.line("mallory");
    let mut workers = open(&line, WORKER, SESSIONS / 2, |ssh| Session::over(ssh, MINOR)).await;
    let mut servers = open(&line, SERVE, SESSIONS / 2, serve_session).await;
    let contents = upload();
    let frames = encode_frames(&contents[..SENT], 32 << 10);
    for (n, session) in workers.iter_mut().enumerate() {
        session.announce(&info(&format!("half-{n}"), &contents)).await;
        // Everything except the empty frame, which would be the end.
        session.send(&frames[..frames.len() - 8]).await;
    }
    for (n, (_, client)) in servers.iter_mut().enumerate() {
        if n % 2 == 0 {
            let info = info(&format!("half-of-{n}"), &contents);
            client.request(&serve::Request::AddToStoreNar { info }).await.expect("sent");
        } else {
            client.request(&serve::Request::ImportPaths).await.expect("sent");
            client.send(&1u64.to_le_bytes()).await.expect("sent");
        }
        client.send(&contents[..SENT]).await.expect("sent");
    }
    let stalled = Instant::now();
    let busy = work(&shared_box, 1).await;
    println!("alice took {quiet:?} alone, and {busy:?} beside {SESSIONS} stalled uploads");
    assert!(stalled.elapsed() < Duration::from_secs(STALL), "she had to wait for their end");
    // A few send a byte now and then, which does not extend their time.
    for session in workers.iter_mut().take(4) {
        session.send(&[0]).await;
    }
    for mut session in workers {
        session.refused(&["limits.client-stall-seconds"]).await;
        session.ended().await;
    }
    for (ssh, _client) in &mut servers {
        ended(ssh).await;
    }
    let temporary = shared_box.agent.state_dir().join("store/tmp");
    until("temporary files to go away", || {
        std::fs::read_dir(&temporary).expect("the store's tmp").count() == 0
    })
    .await;
    work(&shared_box, 2).await;
}

#[tokio::test]
async fn clients_who_read_nothing_keep_no_slot_and_end() {
    // One slot for all builds.
    let shared_box = shared_box(&["limits.max-jobs = 1"]);
    work(&shared_box, 0).await;
    let mut mallory = shared_box.session("mallory").await;
    let large = mallory.add("large", &nar(&file(&vec![7; 16 << 20]))).await;
    mallory.leave().await;
    let line = shared_box.line("mallory");
    let mut readers = open(&line, WORKER, 20, |ssh| Session::over(ssh, MINOR)).await;
    for session in &mut readers {
        session.request(&Request::NarFromPath { path: large.clone() }).await;
    }
    // A build whose log is larger than all buffers between the builder and the client.
    let (out, drv) = (path("loud"), path("loud.drv"));
    let line_of_log = "x".repeat(1000);
    let script =
        format!("i=0; while [ $i -lt 12000 ]; do echo {line_of_log}; i=$((i+1)); done; echo made > $out");
    let mut loud = Session::over(line.ssh(WORKER), MINOR).await;
    loud.start_build(recipe(&drv, &[("out", &out)], &[], &script)).await;
    until("the build to begin", || shared_box.agent.count("build started") > 1).await;
    let busy = work(&shared_box, 1).await;
    println!("alice took {busy:?} beside clients who do not read");
    let ended = "session ended by an error";
    until("those sessions to end", || shared_box.agent.count(ended) >= 21).await;
    work(&shared_box, 2).await;
}
