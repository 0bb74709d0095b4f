//! Requests that make the agent hold much more memory than they are long, in many sessions at once: all
//! sessions of one member stay within that member's budget, and a session that exceeds it gets an error.

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::process::status_kib;
use e2e::shared_box::{SharedBox, WORKER};
use tokio::task::JoinSet;
use wire::client::{End, encode_frames, encode_request};
use wire::worker::{Protocol, Request};

/// The memory budget of one member, in MiB.
pub const BUDGET: u64 = 64;
/// Memory that the agent may use in addition: data in transfer, allocators, another member's work.
pub const BESIDE: u64 = 64;
/// Number of Mallory's sessions, each of which tries to make the agent hold a third of her budget.
const SESSIONS: usize = 40;
/// Number of paths that Alice uploads meanwhile, at least.
const HERS: usize = 20;

fn shared_box() -> SharedBox {
    house_with(Setup::default())
}

/// A box with these additional settings.
pub fn house_with(setup: Setup) -> SharedBox {
    let setup = setup
        .setting("limits.max-session-memory-mib = 1024")
        .setting(&format!("limits.max-session-memory-per-member-mib = {BUDGET}"));
    SharedBox::with(&["alice", "mallory"], setup)
}

/// Anonymous memory of the agent, in MiB.
pub fn anonymous(shared_box: &SharedBox) -> u64 {
    status_kib(shared_box.agent.pid(), "RssAnon") / 1024
}

/// Uploads Alice's next path, which must be accepted.
async fn upload_next(alice: &mut Session, round: &mut usize, attack: usize) {
    let contents = nar(&file(round.to_string().as_bytes()));
    alice.upload(&info(&format!("hers-{attack}-{round}"), &contents), &contents).await;
    *round += 1;
}

/// Sends these bytes in many sessions at once and keeps sessions open that are not refused; returns the
/// refusals, and the largest growth of the agent.
pub async fn in_many_sessions(shared_box: &SharedBox, bytes: Vec<u8>) -> (Vec<String>, u64) {
    let before = anonymous(shared_box);
    let line = shared_box.line("mallory");
    let bytes: &'static [u8] = bytes.leak();
    // All sessions are open before the first attack begins: a session itself counts, too.
    let mut open = JoinSet::new();
    for _ in 0..SESSIONS {
        open.spawn(Session::over(line.ssh(WORKER), MINOR));
    }
    let mut attack = JoinSet::new();
    for mut session in open.join_all().await {
        attack.spawn(async move {
            session.send(bytes).await;
            match tokio::time::timeout(std::time::Duration::from_secs(5), session.client.log()).await {
                Ok(Ok((_, End::Error(message)))) => (session, Some(message)),
                // The agent waits for the rest of the message.
                _ => (session, None),
            }
        });
    }
    let (mut peak, mut kept, mut refused) = (0, Vec::new(), Vec::new());
    let mut alice = shared_box.session("alice").await;
    let mut round = 0;
    loop {
        tokio::select! {
            ended = attack.join_next() => match ended {
                Some(Ok((session, said))) => {
                    kept.push(session);
                    refused.extend(said);
                }
                Some(Err(panic)) => panic!("{panic}"),
                None => break,
            },
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {
                // Alice uploads all the time.
                upload_next(&mut alice, &mut round, bytes.len()).await;
            }
        }
        peak = peak.max(anonymous(shared_box));
    }
    // However early the last refusal came: the sessions that were not refused are still open.
    while round < HERS {
        upload_next(&mut alice, &mut round, bytes.len()).await;
    }
    alice.leave().await;
    let grown = peak.saturating_sub(before);
    println!("{SESSIONS} sessions: {} refused, {grown} MiB held, alice did {round} things", refused.len());
    (refused, grown)
}

pub fn bounded((refused, grown): (Vec<String>, u64)) {
    assert!(grown < BUDGET + BESIDE, "{grown} MiB");
    assert!(!refused.is_empty(), "they cannot all have been within the budget");
    for message in refused {
        assert!(message.contains("limits.max-session-memory-per-member-mib"), "{message}");
        assert!(message.contains(&format!("{BUDGET} MiB")), "{message}");
    }
}

#[tokio::test]
async fn arguments_of_many_sessions_stay_within_one_budget() {
    let shared_box = shared_box();
    let paths = (0..200_000).map(|n| path(&format!("a-path-with-a-rather-long-name-{n}"))).collect();
    let request = Request::QueryValidPaths { paths, substitute: false };
    let bytes = encode_request(&request, Protocol::plain(MINOR));
    // Everything except the end, for which the agent waits with the rest in memory.
    bounded(in_many_sessions(&shared_box, bytes[..bytes.len() - 16].to_vec()).await);
}

#[tokio::test]
async fn trees_of_many_uploads_stay_within_one_budget() {
    let shared_box = shared_box();
    // Small files with long names.
    let names: Vec<String> = (0..20_000).map(|n| format!("{n:0240}")).collect();
    let entries: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), file(b""))).collect();
    let contents = nar(&directory(&entries));
    let announced = info("tree", &contents);
    let request = Request::AddToStoreNar { info: announced, repair: false, dont_check_sigs: true };
    let mut bytes = encode_request(&request, Protocol::plain(MINOR));
    let frames = encode_frames(&contents[..contents.len() - 64], 32 << 10);
    bytes.extend_from_slice(&frames[..frames.len() - 8]);
    bounded(in_many_sessions(&shared_box, bytes).await);
}
