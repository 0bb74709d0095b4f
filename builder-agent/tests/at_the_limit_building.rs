//! The builds of one member drive each limit of a build to its end, again and again; another one is measured, alone and
//! beside that. Where only a real sandbox enforces the limit, builds are real, under bubblewrap; else a script plays the
//! builders. What each of these messages says without others beside it is in `tests/tests/bad_input_builders.rs`.

mod common;

use std::time::Duration;

use common::beside::{Trying, bobs_work, is_close, work};
use common::client::wait_for_reason;
use common::scripted::{derivation, shell_derivation};
use common::served::{Served, Session};
use common::{Agent, said};
use nix::BuildStatus;
use serde_json::json;

/// An attempt of alice: settings of her ssh environment, the script of a builder, and how it must end.
type Attempt = (&'static str, &'static str, BuildStatus, &'static [&'static str]);

#[tokio::test(flavor = "multi_thread")]
async fn a_member_who_asks_for_all_memory_and_processors_again_and_again_does_not_delay_others() {
    let served = Served::open(
        "limits.max-cpus = 8\nlimits.max-memory-mib = 4096\nlimits.max-jobs = 8\nlimits.max-jobs-per-member = 6",
    )
    .await;
    served.scripted.limit("alice", json!({ "max-cpus": 4 }));
    let alone = bobs_work(&served, "alone").await;
    // Of the 6144 MiB of six slots that her builds may have together, one keeps 2048. The others start again with up to 4096,
    // and so wait for each other.
    let mut large = served.session_with("alice", "BARN_MIN_MEM=2048 BARN_MIN_CPU=2").await;
    let before = served.scripted.runs();
    large.send(derivation("large", "gate size", &[])).await;
    served.scripted.until_runs(before + 1).await;
    const ATTEMPTS: &[Attempt] = &[
        (
            "BARN_MIN_MEM=9000",
            "write:x",
            BuildStatus::InputRejected,
            &["`min-mem` is 9000 by the ssh environment, and `max-mem` is 4096 by the configuration"],
        ),
        (
            "BARN_MIN_CPU=200",
            "write:x",
            BuildStatus::InputRejected,
            &["`min-cpu` is 200 by the ssh environment, and `max-cpu` is 8 by the configuration"],
        ),
        (
            "BARN_MIN_CPU=5",
            "write:x",
            BuildStatus::InputRejected,
            &["`min-cpu` is 5, and a build may have 4 at most (your `max-cpus` in the roster)"],
        ),
        (
            "BARN_MAX_BUILD_RESTARTS=5",
            "memory",
            BuildStatus::PermanentFailure,
            &["the limit is 4096 MiB (the box's `limits.max-memory-mib`)", "ask the operator of the box"],
        ),
        ("BARN_MIN_MEM=4096", "memory", BuildStatus::PermanentFailure, &["the limit is 4096 MiB"]),
    ];
    let mut tasks = Vec::new();
    for attempt in ATTEMPTS {
        tasks.push((served.session_with("alice", attempt.0).await, attempt));
    }
    let mut trying = Trying::start(tasks, |(mut alice, attempt), number| async move {
        let (_, script, status, parts) = attempt;
        let told = alice.build(derivation(&format!("more-{number}"), script, &[]), *status).await;
        said(&told.message, parts);
        (alice, attempt)
    });
    trying.until(20).await;
    let beside = bobs_work(&served, "beside").await;
    trying.end().await;
    assert!(is_close(beside, alone), "{beside:?}, alone {alone:?}");

    // The last 4096 MiB are hers again, and no more.
    let runs = served.scripted.runs();
    let mut last = served.session_with("alice", "BARN_MIN_MEM=4096").await;
    last.send(derivation("last", "gate size", &[])).await;
    served.scripted.until_runs(runs + 1).await;
    let mut waits = served.session("alice").await;
    waits.send(derivation("waits", "write:x", &[])).await;
    said(&wait_for_reason(&mut waits.client).await, &["`limits.max-jobs-per-member`, which is 6"]);
    served.scripted.script.gate.cancel();
    for mut session in [large, last, waits] {
        session.is(BuildStatus::Built).await;
    }
}

async fn session(agent: &Agent, member: &str) -> Session {
    let mut ssh = agent.ssh(member);
    ssh.args(["nix-daemon", "--stdio"]);
    Session::over(ssh).await
}

async fn bobs_real_work(agent: &Agent, name: &str) -> Duration {
    work(|| session(agent, "bob"), |name| shell_derivation(name, "echo made > $out"), name).await
}

/// The longest time that a build of bob waited for a slot.
fn bobs_longest_wait(agent: &Agent) -> Duration {
    let started = agent.events("build started");
    let bobs = started.iter().filter(|event| event["member"] == "bob");
    let waited = bobs.map(|event| event["phase_slot_ms"].as_f64().expect("milliseconds"));
    Duration::from_secs_f64(waited.fold(0.0, f64::max) / 1000.0)
}

/// Has each of these attempts made three times at least, by so many tasks at once, while bob is measured.
async fn beside_bob(agent: &Agent, attempts: &'static [Attempt], tasks: usize) {
    let alone = bobs_real_work(agent, "alone").await;
    let mut sessions = Vec::new();
    for _ in 0..tasks {
        sessions.push(session(agent, "alice").await);
    }
    let mut trying = Trying::start(sessions, move |mut alice, number| async move {
        let (_, script, status, parts) = attempts[number % attempts.len()];
        let told = alice.build(shell_derivation(&format!("more-{number}"), script), status).await;
        said(&told.message, parts);
        alice
    });
    trying.until(1).await;
    let beside = bobs_real_work(agent, "beside").await;
    trying.until(3 * attempts.len()).await;
    trying.end().await;
    assert!(is_close(beside, alone), "{beside:?}, alone {alone:?}");
    // Bob's builds have a slot that alice cannot have.
    let waited = bobs_longest_wait(agent);
    assert!(waited < Duration::from_millis(500), "a build of bob waited for {waited:?}");
    let mut alice = session(agent, "alice").await;
    alice.build(shell_derivation("after", "echo made > $out"), BuildStatus::Built).await;
}

/// Alice may have two of the three slots. Three times of each attempt are more than that: slots come back at the limit.
#[tokio::test(flavor = "multi_thread")]
async fn builds_that_go_on_to_their_time_limit_give_their_slots_back_and_do_not_delay_others() {
    let agent =
        Agent::start_to_build(&["alice", "bob"], "limits.max-jobs = 3\nlimits.max-jobs-per-member = 2");
    agent.edit_roster(|roster| {
        roster["members"][0]["limits"] = json!({ "max-build-seconds": 3, "max-silent-seconds": 2 });
    });
    const ATTEMPTS: &[Attempt] = &[
        (
            "",
            "while :; do echo on and on; sleep 0.2; done",
            BuildStatus::TimedOut,
            &[
                "timed out after 3 seconds, which is the limit (your `max-build-seconds` in the roster)",
                "ask a maintainer of the roster for more",
            ],
        ),
        (
            "",
            "echo first; sleep 1000",
            BuildStatus::TimedOut,
            &[
                "timed out after 2 seconds of silence (your `max-silent-seconds` in the roster)",
                "ask a maintainer of the roster for more",
            ],
        ),
    ];
    beside_bob(&agent, ATTEMPTS, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_fill_logs_outputs_memory_and_the_process_table_do_not_delay_others() {
    let agent = Agent::start_to_build(
        &["alice", "bob"],
        "limits.max-jobs = 3\nlimits.max-jobs-per-member = 2\nlimits.max-log-mib = 1\nlimits.max-output-mib = 1\n\
         limits.max-memory-mib = 64\nlimits.max-processes = 100",
    );
    const ATTEMPTS: &[Attempt] = &[
        (
            "",
            "exec yes and on and on and on and on and on and on and on and on and on and on and on",
            BuildStatus::LogLimitExceeded,
            &[
                "more than 1048576 bytes of log output (the box's `limits.max-log-mib`)",
                "ask the operator of the box for more",
            ],
        ),
        (
            "",
            "head -c 3000000 /dev/zero > $out",
            BuildStatus::OutputRejected,
            &["larger than 1048576 bytes (the box's `limits.max-output-mib`)", "ask the operator of the box"],
        ),
        (
            "",
            "tail -c 400m /dev/zero",
            BuildStatus::PermanentFailure,
            &["the limit is 64 MiB (the box's `limits.max-memory-mib`)", "ask the operator of the box"],
        ),
        (
            "",
            "sleep 1000 & (while :; do sleep 1000 & done) || wait",
            BuildStatus::PermanentFailure,
            &["more than 100 processes (the box's `limits.max-processes`)", "ask the operator of the box"],
        ),
    ];
    beside_bob(&agent, ATTEMPTS, 4).await;
}
