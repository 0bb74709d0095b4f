//! Another agent takes the place of the one that runs: builds go on, nobody is refused, and a broken one changes nothing.
//!
//! Builds are real, under bubblewrap. See `docs/design/restart.md`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::BuildStatus;
use nix_derivation::StorePath;

mod common;

use common::client::{self, Drv, Told};
use common::scripted::{path, shell_derivation as derivation};
use common::served::Session;
use common::{Agent, ssh, until};

/// Prints a line each tenth of a second, then makes its output of all of them.
fn counting(name: &str, tenths: u32) -> Drv {
    let script = format!(
        ": {name} {}; i=0; while [ $i -lt {tenths} ]; do i=$((i+1)); echo line $i; all=\"$all $i\"; sleep 0.1; done; echo $all > $out",
        mark()
    );
    derivation(name, &script)
}

/// What only processes of this test's builders have among their arguments.
fn mark() -> String {
    format!("of test {}", std::process::id())
}

/// The lines of a counting builder; the box says something before.
fn lines(told: &Told) -> Vec<String> {
    told.log().into_iter().filter(|line| line.starts_with("line ")).collect()
}

fn counted(tenths: u32) -> Vec<String> {
    (1..=tenths).map(|i| format!("line {i}")).collect()
}

/// Another executable of the same agent.
fn copy_of_the_agent(agent: &Agent) -> PathBuf {
    let copy = agent.path().join("new-agent");
    // The one that runs cannot be overwritten.
    let _ = fs::remove_file(&copy);
    fs::copy(env!("CARGO_BIN_EXE_builder-agent"), &copy).expect("copied");
    copy
}

fn reload(agent: &Agent, executable: &Path, patience: &str) -> Output {
    let config = agent.path().join("agent.toml");
    let mut command = Command::new(executable);
    command.args(["reload", "--patience", patience, "--config"]).arg(config);
    // A process that another thread has just forked holds the copy open for writing until it executes its program.
    let mut output = command.output();
    let is_busy = |output: &std::io::Result<Output>| {
        output.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ExecutableFileBusy)
    };
    common::until("the copy to be closed", || {
        if is_busy(&output) {
            output = command.output();
        }
        !is_busy(&output)
    });
    output.expect("the new agent")
}

/// Replaces the agent; its builds go on.
fn replace(agent: &Agent, builds: usize) {
    let output = reload(agent, &copy_of_the_agent(agent), "30");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}\n{}", agent.log_text());
    assert_eq!(said, format!("this agent serves now; builds that go on: {builds}\n"), "{}", agent.log_text());
    let runs = fs::read_link(format!("/proc/{}/exe", agent.pid())).expect("it runs");
    assert_eq!(runs, agent.path().join("new-agent"));
}

async fn session(agent: &Agent, member: &str) -> Session {
    let mut ssh = ssh(agent.path(), member, agent.port);
    ssh.args(["nix-daemon", "--stdio"]);
    Session::over(ssh).await
}

async fn is_valid(session: &mut Session, path: &StorePath) -> bool {
    client::is_valid(&mut session.client, path).await
}

/// Starts a build and waits until its first line is there.
async fn start(agent: &Agent, member: &str, drv: Drv) -> Session {
    let mut session = session(agent, member).await;
    session.send(drv).await;
    client::wait_for_line(&mut session.client, "line 1").await;
    session
}

/// Asks again for a build that counts. It ends well, and its log is there from the first line.
async fn ends_well(agent: &Agent, member: &str, name: &str, tenths: u32) {
    let mut again = session(agent, member).await;
    let told = again.build(counting(name, tenths), BuildStatus::Built).await;
    assert_eq!(lines(&told), counted(tenths));
}

/// The processes of this test's counting builders whose names begin with this.
fn builders(name: &str) -> Vec<String> {
    let (name, mark) = (format!(": {name}"), mark());
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let arguments = entries.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    arguments.filter(|line| line.contains(&name) && line.contains(&mark)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_goes_on_and_a_client_that_asks_again_gets_its_whole_log_and_its_outputs() {
    let agent = Agent::start_to_build(&["alice"], "");
    let (tenths, out) = (30, path("survivor"));
    let left = start(&agent, "alice", counting("survivor", tenths)).await;
    replace(&agent, 1);
    left.ends().await;
    let mut again = session(&agent, "alice").await;
    assert!(!is_valid(&mut again, &out).await);
    let listed = agent.ssh("alice").args(["builds", "list", "--json"]).output().expect("ssh");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("survivor") && listed.contains("\"id\":1"), "{listed}");
    let told = again.build(counting("survivor", tenths), BuildStatus::Built).await;
    assert_eq!(lines(&told), counted(tenths));
    assert!(is_valid(&mut again, &out).await);
    // It was one build, which the second request joined.
    assert_eq!(agent.events("build started").len(), 1, "{}", agent.log_text());
    let finished = agent.wait_for("build finished");
    assert!(finished["ok"] == true && finished["build"] == 1 && finished["member"] == "alice", "{finished}");
    // Of the whole build, and not only of its part under the new agent.
    assert!(finished["phase_builder_ms"].as_f64().is_some_and(|ms| ms >= 3000.0), "{finished}");
    assert!(finished["cpu_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{finished}");
    let used = agent.ssh("alice").args(["usage", "--json"]).output().expect("ssh");
    let used: serde_json::Value = serde_json::from_slice(&used.stdout).expect("JSON");
    let wall = used["usage"][0]["wall_seconds"].as_f64();
    assert!(wall.is_some_and(|seconds| seconds >= 3.0), "{used}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_in_a_row_take_over_and_a_build_that_nobody_waits_for_is_registered() {
    let agent = Agent::start_to_build(&["alice"], "");
    let left = start(&agent, "alice", counting("heirloom", 40)).await;
    replace(&agent, 1);
    left.ends().await;
    replace(&agent, 1);
    agent.wait_for_nth("build taken over", 1);
    let finished = agent.wait_for("build finished");
    assert!(finished["ok"] == true, "{finished}");
    let mut later = session(&agent, "alice").await;
    assert!(is_valid(&mut later, &path("heirloom")).await);
    // What the sandboxes left is gone with the last of them.
    until("the process of the sandbox to end", || builders("heirloom").is_empty());
    let log = agent.ssh("alice").args(["log", &path("heirloom").to_absolute_path()]).output().expect("ssh");
    let log = String::from_utf8_lossy(&log.stdout).into_owned();
    let log: Vec<&str> = log.lines().filter(|line| line.starts_with("line ")).collect();
    assert_eq!(log, counted(40));
    // The next agent finds nothing to take over.
    replace(&agent, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_read_why_their_connection_ends_and_none_is_refused() {
    let agent = Agent::start_to_build(&["alice"], "");
    let mut ssh = agent.ssh("alice");
    ssh.args(["nix-daemon", "--stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut told = ssh.spawn().expect("ssh");
    let hello = [0x6e69_7863u64.to_le_bytes(), 0x112u64.to_le_bytes()].concat();
    told.stdin.as_mut().expect("piped").write_all(&hello).expect("sent");
    told.stdout.as_mut().expect("piped").read_exact(&mut [0; 8]).expect("an answer");
    let (end, port) = (Arc::new(AtomicBool::new(false)), agent.port);
    let knocking = std::thread::spawn({
        let end = end.clone();
        move || {
            let (mut knocks, mut waiting) = (0, Vec::new());
            while !end.load(Ordering::SeqCst) {
                // Refused: the test fails here.
                waiting.push(TcpStream::connect(("127.0.0.1", port)).expect("nobody is refused"));
                knocks += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
                waiting.drain(..waiting.len().saturating_sub(5));
            }
            (knocks, waiting)
        }
    });
    replace(&agent, 0);
    end.store(true, Ordering::SeqCst);
    let (knocks, waiting) = knocking.join().expect("no connection was refused");
    assert!(knocks > 5, "{knocks}");
    let mut greeting = String::new();
    BufReader::new(waiting.last().expect("the last")).read_line(&mut greeting).expect("greeted");
    assert!(greeting.starts_with("SSH-2.0-"), "{greeting}");
    let words = told.wait_with_output().expect("ssh").stderr;
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(words.contains("your builds that run go on; ask again to follow them"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_may_listen_on_other_addresses_of_the_same_port() {
    let agent = Agent::start_to_build(&["alice"], "");
    let left = start(&agent, "alice", counting("moved", 30)).await;
    let file = agent.path().join("agent.toml");
    let text = fs::read_to_string(&file).expect("a configuration");
    // From one address to all of them, and back.
    for (nth, address) in [(1, "0.0.0.0"), (2, "127.0.0.1")] {
        let listen = format!("listen = [\"{address}:{}\"]", agent.port);
        let changed = text.replace("listen = [\"127.0.0.1:0\"]", &listen);
        assert_ne!(changed, text);
        fs::write(&file, changed).expect("written");
        replace(&agent, 1);
        let listening = agent.wait_for_nth("listening", nth);
        assert_eq!(listening["address"], format!("{address}:{}", agent.port));
    }
    left.ends().await;
    ends_well(&agent, "alice", "moved", 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_new_agent_changes_nothing() {
    let agent = Agent::start_to_build(&["alice"], "");
    let left = start(&agent, "alice", counting("steady", 40)).await;
    let runs = fs::read_link(format!("/proc/{}/exe", agent.pid())).expect("it runs");

    // One that does not even start.
    let broken = agent.path().join("broken");
    fs::write(&broken, "#!/bin/sh\necho 'error: a library is missing' >&2\nexit 127\n").expect("written");
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).expect("executable");
    assert_eq!(reload(&agent, &broken, "1").status.code(), Some(127));
    // One that cannot read the configuration.
    let (new, config) = (copy_of_the_agent(&agent), agent.path().join("agent.toml"));
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, format!("colour = \"red\"\n{text}")).expect("written");
    let output = reload(&agent, &new, "1");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    fs::write(&config, text).expect("written");

    // Requests as such a program could send them: another format; no program; no patience for a build that starts.
    let ask = |format: [u32; 2], executable: &str| {
        let mut agent = UnixStream::connect(agent.path().join("state/agent.sock")).expect("the socket");
        let patience = serde_json::json!({ "secs": 5, "nanos": 0 });
        let request = serde_json::json!({ "format": format, "executable": executable, "config": config, "patience": patience });
        agent.write_all(format!("{request}\n").as_bytes()).expect("sent");
        let mut answer = String::new();
        agent.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let (format, protocol) = sandbox::takeover::format();
    let answer = ask([format + 1, protocol], "/bin/true");
    assert!(answer.contains("refused") && answer.contains("drain the box, then restart it"), "{answer}");
    let answer = ask([format, protocol], "/nowhere/agent");
    assert!(answer.contains("cannot be executed"), "{answer}");

    // The last one had gone so far that clients were disconnected; their build went on.
    assert_eq!(fs::read_link(format!("/proc/{}/exe", agent.pid())).expect("it runs"), runs);
    agent.wait_for_nth("no other agent has taken over; this one goes on", 1);
    left.ends().await;
    ends_well(&agent, "alice", "steady", 40).await;
    assert_eq!(agent.events("build started").len(), 1, "{}", agent.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_after_a_takeover_leaves_no_sandbox_and_a_store_that_opens() {
    let mut agent = Agent::start_to_build(&["alice"], "");
    let left = start(&agent, "alice", counting("doomed", 600)).await;
    replace(&agent, 1);
    left.ends().await;
    assert!(!builders("doomed").is_empty());
    agent.signal("-KILL");
    until("the processes of the sandbox to end", || builders("doomed").is_empty());
    agent.start_again();
    let mut later = session(&agent, "alice").await;
    assert!(!is_valid(&mut later, &path("doomed")).await);
    later.build(counting("modest", 1), BuildStatus::Built).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_moment_of_a_takeover_leaves_no_sandbox() {
    let mut agent = Agent::start_to_build(&["alice"], "");
    let new = copy_of_the_agent(&agent);
    // The old agent waits for a tenth of a second before it executes the new one.
    for moment in [0, 60, 95, 105, 115, 130, 200] {
        let left = start(&agent, "alice", counting("condemned", 600)).await;
        let mut reload = Command::new(&new);
        reload.args(["reload", "--config"]).arg(agent.path().join("agent.toml")).stderr(Stdio::null());
        let mut reloading = reload.stdout(Stdio::null()).spawn().expect("the new agent");
        agent.wait_for("the new agent is executed");
        tokio::time::sleep(std::time::Duration::from_millis(moment)).await;
        agent.signal("-KILL");
        reloading.wait().expect("waited");
        left.ends().await;
        until("the processes of the sandbox to end", || builders("condemned").is_empty());
        agent.start_again();
    }
    let mut later = session(&agent, "alice").await;
    assert!(!is_valid(&mut later, &path("condemned")).await);
    later.build(counting("modest", 1), BuildStatus::Built).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_of_who_was_removed_meanwhile_end_and_others_go_on() {
    let agent = Agent::start_to_build(&["alice", "bob"], "");
    let (one, two) = (
        start(&agent, "alice", counting("alices", 600)).await,
        start(&agent, "bob", counting("bobs", 30)).await,
    );
    // The agent that takes over is the first to see this roster.
    agent.signal("-STOP");
    common::write_roster(agent.path(), &["bob"]);
    let reloading = {
        let (config, new) = (agent.path().join("agent.toml"), copy_of_the_agent(&agent));
        let mut command = Command::new(new);
        command.args(["reload", "--config"]).arg(config);
        command.spawn().expect("the new agent")
    };
    agent.signal("-CONT");
    assert!(reloading.wait_with_output().expect("waited").status.success(), "{}", agent.log_text());
    one.ends().await;
    two.ends().await;
    let ended = agent.wait_for("build finished");
    assert!(ended["member"] == "alice" && ended["ok"] == false, "{ended}");
    until("the sandbox of the removed member to end", || builders("alices").is_empty());
    ends_well(&agent, "bob", "bobs", 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_goes_on_keeps_its_slot_and_can_be_cancelled() {
    let agent = Agent::start_to_build(&["alice"], "[limits]\nmax-jobs = 1\n");
    let left = start(&agent, "alice", counting("long", 600)).await;
    replace(&agent, 1);
    left.ends().await;
    let mut second = session(&agent, "alice").await;
    second.send(counting("second", 1)).await;
    let why = client::wait_for_reason(&mut second.client).await;
    assert!(why.contains('1'), "{why}");
    assert_eq!(agent.events("build started").len(), 1);
    let id = agent.wait_for("build taken over")["build"].to_string();
    let cancelled = agent.ssh("alice").args(["builds", "cancel", &id]).output().expect("ssh");
    assert!(cancelled.status.success(), "{cancelled:?}");
    second.is(BuildStatus::Built).await;
    until("the sandbox of the cancelled build to end", || builders("long").is_empty());
    until("both lines in the log", || agent.events("build finished").len() == 2);
    let finished = agent.events("build finished");
    assert!(finished[0]["ok"] == false && finished[1]["ok"] == true, "{finished:?}");
    // Numbers of builds go on.
    assert_eq!(finished[1]["build"], 2);
}

/// Control bytes take six times their size as text of JSON.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_huge_derivations_does_not_keep_the_agent_from_being_replaced() {
    let agent = Agent::start_to_build(&["alice"], "[limits]\nmax-jobs = 3\n");
    let mut left = Vec::new();
    for name in ["huge-1", "huge-2", "huge-3"] {
        let (drv, mut derivation) = counting(name, 600);
        for half in [b"left".to_vec(), b"right".to_vec()] {
            derivation.env.insert(half, vec![1; 30 << 20]);
        }
        derivation.env.insert(b"passAsFile".to_vec(), b"left right".to_vec());
        left.push(start(&agent, "alice", (drv, derivation)).await);
    }
    replace(&agent, 3);
    for session in left {
        session.ends().await;
    }
    assert_eq!(agent.events("build taken over").len(), 3, "{}", agent.log_text());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_over_a_takeover() {
    let agent =
        Agent::start_to_build(&["alice"], "[limits]\nmax-build-seconds = 4\nmax-silent-seconds = 3\n");
    let left = start(&agent, "alice", counting("slow", 600)).await;
    let silent = derivation("silent", "echo line 1; sleep 600");
    let other = start(&agent, "alice", silent.clone()).await;
    replace(&agent, 2);
    left.ends().await;
    other.ends().await;
    let errors = || {
        let finished = agent.events("build finished");
        finished.iter().map(|event| event["error"].to_string()).collect::<Vec<_>>()
    };
    until("both builds to end", || errors().len() == 2);
    assert!(errors().iter().any(|error| error.contains("timed out after 4 seconds")), "{:?}", errors());
    assert!(
        errors().iter().any(|error| error.contains("timed out after 3 seconds of silence")),
        "{:?}",
        errors()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_of_a_ticket_keeps_the_use_that_the_build_took_and_a_revocation_ends_it() {
    let agent = Agent::start_to_build(&["alice"], "");
    let command = |words: &[&str]| {
        let output = agent.ssh("alice").args(words).output().expect("ssh");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let made = command(&["ticket", "create", "--json", "--name", "friend", "--uses", "1", "--expires", "2h"]);
    let hold = || hold(&agent, &made);
    let mut holder = hold().await;
    holder.send(counting("friends", 600)).await;
    client::wait_for_line(&mut holder.client, "line 1").await;
    replace(&agent, 1);
    holder.ends().await;
    let mut again = hold().await;
    let refused = again.refused(counting("another", 1)).await;
    assert!(refused.contains("was for 1 builds"), "{refused}");
    command(&["ticket", "revoke", "friend"]);
    let ended = agent.wait_for("build finished");
    assert!(ended["member"] == "friend (ticket of alice)" && ended["ok"] == false, "{ended}");
    until("the sandbox to end", || builders("friends").is_empty());
}

/// A session of who holds this ticket, as `ticket create --json` shows it.
async fn hold(agent: &Agent, made: &str) -> Session {
    let made: serde_json::Value = serde_json::from_str(made).expect("JSON");
    let token = format!("SetEnv=BARNRAISER_TICKET={}", made["token"].as_str().expect("a token"));
    let known = format!("UserKnownHostsFile={}", agent.path().join("known_hosts").display());
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "-o", &known])
        .args(["-o", "PreferredAuthentications=publickey,keyboard-interactive", "-o", "IdentitiesOnly=yes"])
        .args(["-o", "KbdInteractiveDevices=env", "-o", &token])
        .args(["-p", &agent.port.to_string(), "-l", "ticket", "127.0.0.1", "nix-daemon", "--stdio"])
        .env_remove("SSH_AUTH_SOCK")
        .env("HOME", agent.path())
        .stdin(Stdio::null());
    Session::over(ssh).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ticket_that_paid_for_a_build_pays_also_after_another_member_got_the_build() {
    let agent = Agent::start_to_build(&["alice", "bob"], "");
    let command = |words: &[&str]| {
        let output = agent.ssh("alice").args(words).output().expect("ssh");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let made = command(&["ticket", "create", "--json", "--name", "friend", "--expires", "2h"]);
    let mut holder = hold(&agent, &made).await;
    holder.send(counting("given", 40)).await;
    client::wait_for_line(&mut holder.client, "line 1").await;
    let joined = start(&agent, "bob", counting("given", 40)).await;
    drop(holder);
    agent.wait_for("build handed over");
    replace(&agent, 1);
    joined.ends().await;
    ends_well(&agent, "bob", "given", 40).await;
    let listed: serde_json::Value =
        serde_json::from_str(&command(&["ticket", "list", "--json"])).expect("JSON");
    let took = listed[0]["build_seconds"].as_u64();
    assert!(took.is_some_and(|seconds| seconds >= 4), "{listed}");
}

/// Asks for this build until there is an answer: connections end whenever an agent takes over.
async fn insist(agent: &Arc<Agent>, drv: Drv) {
    loop {
        let (agent, drv) = (agent.clone(), drv.clone());
        let asking = tokio::spawn(async move {
            let mut session = session(&agent, "alice").await;
            session.send(drv).await;
            session.told().await
        });
        match asking.await {
            Ok(told) => {
                // Already valid: it went on under another agent, and has ended meanwhile.
                let good = [BuildStatus::Built, BuildStatus::AlreadyValid].map(|status| status as u64);
                assert!(good.contains(&told.status), "{told:?}");
                return;
            }
            // The session ended in the middle, which the reader of its answer does not expect.
            Err(broken) => assert!(broken.is_panic(), "{broken}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_take_over_amid_many_short_builds_lose_none_and_leave_nothing() {
    let agent = Arc::new(Agent::start_to_build(&["alice"], ""));
    let asking: Vec<_> = (0..4)
        .map(|line| {
            let agent = agent.clone();
            tokio::spawn(async move {
                for number in 0..8 {
                    insist(&agent, counting(&format!("short-{line}-{number}"), 3)).await;
                }
            })
        })
        .collect();
    let new = copy_of_the_agent(&agent);
    let mut taken = 0;
    while !asking.iter().all(tokio::task::JoinHandle::is_finished) {
        let output = reload(&agent, &new, "30");
        assert!(output.status.success(), "{output:?}\n{}", agent.log_text());
        taken += 1;
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    }
    for line in asking {
        line.await.expect("all builds");
    }
    assert!(taken > 1 && !agent.events("build taken over").is_empty(), "{taken}\n{}", agent.log_text());
    until("the sandboxes to end", || builders("short-").is_empty());
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    until("nothing is left of ended builds", || {
        fs::read_to_string(&children).expect("children").trim().is_empty()
    });
    let text = agent.log_text();
    for trouble in ["a build cannot be taken over; it has ended", "a build was lost"] {
        assert!(agent.events(trouble).is_empty(), "{text}");
    }
    // Each was built once: a build that went on was joined, and a result that was recorded was reused.
    let finished = agent.events("build finished");
    assert!(finished.iter().all(|event| event["ok"] == true), "{finished:?}");
}
