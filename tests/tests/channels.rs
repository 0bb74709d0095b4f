//! Many sessions on one connection, as `ssh -o ControlMaster` makes them.

use e2e::hostile::*;
use e2e::process::status_kib;
use e2e::shared_box::{Line, SharedBox, WORKER};
use wire::client::encode_request;
use wire::worker::{Protocol, Request};

/// Number of open sessions. A client that evaluates in parallel may have as many.
const SESSIONS: usize = 300;
/// Most memory of the agent for an idle session, in KiB.
const IDLE_KIB: u64 = 128;
/// Most memory of the agent for all sessions that send and never read, in KiB. Each may have 512 KiB that wait to be read
/// (`CHANNEL_BUFFER` in `ssh`), and three pieces of 256 KiB of an answer that wait to be sent (`READ_BYTES` in `daemon`).
const WAITING_KIB: u64 = SESSIONS as u64 * (512 + 3 * 256);

fn rss_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS")
}

/// A session for each of this many clients, which start at once.
async fn sessions(line: &Line, count: usize) -> Vec<Session> {
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..count {
        let ssh = line.ssh(WORKER);
        opening.spawn(async move { Session::over(ssh, MINOR).await });
    }
    let mut open = Vec::new();
    while let Some(session) = opening.join_next().await {
        open.push(session.expect("a session"));
    }
    open
}

#[tokio::test]
async fn hundreds_of_sessions_on_one_connection_are_all_answered() {
    let shared_box = SharedBox::of(&["alice"]);
    let mut alice = shared_box.session("alice").await;
    let there = alice.add("there", &nar(&file(b"there"))).await;
    alice.leave().await;
    let line = shared_box.line("alice");
    let before = rss_kib(shared_box.agent.pid());
    // All sessions are open before the first of them sends a request.
    let mut open = sessions(&line, SESSIONS).await;
    let grown = rss_kib(shared_box.agent.pid()).saturating_sub(before);
    println!("{SESSIONS} sessions cost the agent {grown} KiB");
    assert!(grown < SESSIONS as u64 * IDLE_KIB, "{SESSIONS} sessions cost {grown} KiB");
    let mut asking = tokio::task::JoinSet::new();
    for mut session in open.drain(..) {
        let there = there.clone();
        asking.spawn(async move {
            for _ in 0..5 {
                assert!(session.is_valid(&there).await);
                assert!(!session.is_valid(&path("not-there")).await);
            }
            session.leave().await;
        });
    }
    while let Some(session) = asking.join_next().await {
        session.expect("a session");
    }
    assert_eq!(shared_box.agent.count("logged in"), 2, "one connection was enough");
}

#[tokio::test]
async fn a_session_that_ends_makes_room_for_another_on_the_same_connection() {
    let setup = e2e::agent::Setup::default().setting("limits.max-sessions-per-connection = 4");
    let shared_box = SharedBox::with(&["alice"], setup);
    let line = shared_box.line("alice");
    for _ in 0..5 {
        let open = sessions(&line, 4).await;
        let (mut fifth, ..) = piped(line.ssh(WORKER));
        let status = within("ssh to end", fifth.wait()).await.expect("wait");
        assert!(!status.success(), "a fifth session at once");
        for session in open {
            session.leave().await;
        }
    }
    assert_eq!(shared_box.agent.count("channel refused: limits.max-sessions-per-connection reached"), 5);
    // A session whose command is refused does not keep its place either.
    for _ in 0..10 {
        let (mut refused, ..) = piped(line.ssh(&["ls"]));
        let status = within("ssh to end", refused.wait()).await.expect("wait");
        assert_eq!(status.code(), Some(127));
    }
    sessions(&line, 4).await;
}

/// Each session requests a large answer that nobody reads, and continues to send.
#[tokio::test]
async fn sessions_that_send_and_never_listen_cost_bounded_memory_and_nobody_else_waits() {
    const EACH: usize = 4 << 20;
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let mut alice = shared_box.session("alice").await;
    let large = alice.add("large", &nar(&file(&vec![7; 4 << 20]))).await;
    alice.leave().await;
    let line = shared_box.line("alice");
    let before = rss_kib(shared_box.agent.pid());
    let mut flood = tokio::task::JoinSet::new();
    for mut session in sessions(&line, SESSIONS).await {
        let request = encode_request(&Request::NarFromPath { path: large.clone() }, Protocol::plain(MINOR));
        flood.spawn(async move {
            session.send(&request).await;
            session.send(&vec![0; EACH]).await;
            // Kept open until the end of the test.
            std::future::pending::<()>().await;
        });
    }
    // Wait until memory does not change any more: the agent has buffered as much as it will.
    let (mut last, mut still, mut peak) = (0, 0, 0);
    while still < 10 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let now = rss_kib(shared_box.agent.pid());
        still = if now.abs_diff(last) < 256 { still + 1 } else { 0 };
        last = now;
        peak = peak.max(now);
    }
    let grown = peak.saturating_sub(before);
    println!(
        "{SESSIONS} sessions that sent {} MiB in all cost the agent {grown} KiB",
        (SESSIONS * EACH) >> 20
    );
    assert!(grown < WAITING_KIB, "{grown} KiB wait to be read");
    // Another member is not affected.
    let mut bob = shared_box.session("bob").await;
    assert!(bob.is_valid(&large).await);
    bob.leave().await;
    drop(line);
    flood.abort_all();
    // The flooding connection is closed. (The allocator decides how much of its memory it gives back, and
    // when. `interrupted` tests for leaks, and the bound above holds in any case.)
    until("the sessions to end", || shared_box.agent.count("worker session ended") > SESSIONS).await;
}
