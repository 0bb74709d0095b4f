//! Logins and the commands that they may run, with the real OpenSSH client.

mod common;

use std::io::{Read, Write};
use std::process::Stdio;

use common::{Agent, make_key, write_roster};

const BANNER: &str = "testbox: a Barnraiser community builder\n\
                      warning: builds run in the namespace sandbox, which is weaker than this project's micro-VMs\n";

const WORKS: &str = "this box answers `nix-daemon --stdio` (for stores and builders named ssh-ng://), \
                     `nix-store --serve --write` (for those named ssh://), \
                     `status`, `log`, `builds`, `who`, `whoami`, `usage`, `settings`, `ticket`, `home`, `keys`, `client-config`, `signing-key`, `shell`, `help`";

#[test]
fn a_command_that_is_not_possible_is_refused_in_one_line_that_names_what_is() {
    let agent = Agent::start(&["alice"], "");
    assert_eq!(
        agent.transcript("alice", &["uname -a; id"]),
        format!(
            "$ ssh box uname -a; id\n{BANNER}\
             cannot parse `uname -a; id`; {WORKS}\n\
             [exit 127]\n"
        )
    );
    assert_eq!(
        agent.transcript("alice", &["nix-store --gc"]),
        format!("$ ssh box nix-store --gc\n{BANNER}cannot run `nix-store --gc`; {WORKS}\n[exit 127]\n")
    );
}

#[test]
fn a_login_that_sends_no_command_is_told_what_is_possible_and_there_is_no_subsystem() {
    let agent = Agent::start(&["alice"], "");
    let line = format!("no command was sent; {WORKS}\n");
    assert_eq!(agent.transcript("alice", &[]), format!("$ ssh box \n{BANNER}{line}[exit 127]\n"));
    let subsystem = agent.ssh("alice").args(["-s", "sftp"]).output().expect("ssh");
    assert!(!subsystem.status.success());
    let text = String::from_utf8_lossy(&subsystem.stderr);
    assert!(text.contains("subsystem request failed"), "{text}");
}

#[test]
fn an_unknown_key_is_denied_and_only_its_fingerprint_logged() {
    let agent = Agent::start(&["alice"], "");
    make_key(&agent.path().join("mallory"));
    let transcript = agent.transcript("mallory", &["nix-daemon --stdio"]);
    assert_eq!(
        transcript,
        format!(
            "$ ssh box nix-daemon --stdio\n{BANNER}anyone@127.0.0.1: Permission denied (publickey).\n[exit 255]\n"
        )
    );
    let event = agent.wait_for("login denied: key not in the roster");
    assert!(event["fingerprint"].as_str().is_some_and(|f| f.starts_with("SHA256:")), "{event}");
    let key = std::fs::read_to_string(agent.path().join("mallory.pub")).expect("key");
    let blob = key.split_whitespace().nth(1).expect("blob");
    assert!(!agent.log_text().contains(blob));
}

#[test]
fn the_worker_protocol_answers_on_several_channels_of_one_connection() {
    let agent = Agent::start(&["alice"], "");
    let control = agent.path().join("control");
    let control = format!("ControlPath={}", control.display());
    let mut master = agent.ssh("alice");
    let mut master = master.args(["-o", &control, "-M", "-N"]).spawn().expect("ssh");
    agent.wait_for("logged in");
    // "nixc" and version 1.18: the answer starts with "dxio".
    let mut hello = 0x6e69_7863u64.to_le_bytes().to_vec();
    hello.extend(0x112u64.to_le_bytes());
    let mut sessions: Vec<_> = (0..4)
        .map(|_| {
            let mut session = agent.ssh("alice");
            session
                .args(["-o", &control, "nix-daemon", "--stdio"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut session = session.spawn().expect("ssh");
            session.stdin.as_mut().expect("piped").write_all(&hello).expect("sent");
            session
        })
        .collect();
    for session in &mut sessions {
        let mut answer = [0; 8];
        session.stdout.as_mut().expect("piped").read_exact(&mut answer).expect("an answer");
        assert_eq!(u64::from_le_bytes(answer), 0x6478_696f);
    }
    for mut session in sessions {
        drop(session.stdin.take());
        session.wait().expect("ended");
    }
    master.kill().expect("killed");
    master.wait().expect("ended");
    let connections = agent.log_text().matches("\"connected\"").count();
    assert_eq!(connections, 1, "{}", agent.log_text());
}

#[test]
fn more_channels_than_allowed_are_refused() {
    let agent = Agent::start(&["alice"], "[limits]\nmax-sessions-per-connection = 1");
    let control = format!("ControlPath={}", agent.path().join("control").display());
    let mut first = agent.ssh("alice");
    first.args(["-o", &control, "-M", "nix-daemon", "--stdio"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut first = first.spawn().expect("ssh");
    agent.wait_for("logged in");
    common::until("the control socket", || agent.path().join("control").exists());
    let mut second = agent.ssh("alice");
    second.args(["-o", &control, "-o", "ControlMaster=no", "nix-daemon", "--stdio"]);
    let second = second.output().expect("ssh");
    assert!(!second.status.success());
    agent.wait_for("channel refused: limits.max-sessions-per-connection reached");
    first.kill().expect("killed");
    first.wait().expect("ended");
}

#[test]
fn forwarding_is_refused() {
    let agent = Agent::start(&["alice"], "");
    let output = agent
        .ssh("alice")
        .args(["-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:0:127.0.0.1:1", "-N"])
        .output()
        .expect("ssh");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("remote port forwarding failed"), "{text}");
    let output = agent.ssh("alice").args(["-W", "127.0.0.1:1"]).output().expect("ssh");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("administratively prohibited"), "{text}");
}

#[test]
fn a_removed_member_is_put_out_at_once_and_the_others_stay() {
    let agent = Agent::start(&["alice", "bob"], "");
    let (mut alice, mut bob) = (agent.open_session("alice"), agent.open_session("bob"));
    // Kept open, so that only the agent can end this.
    let _stdin = alice.stdin.take();
    write_roster(agent.path(), &["bob"]);
    let output = alice.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("alice or this key is no longer in the roster"), "{text}");
    assert_eq!(bob.try_wait().expect("wait"), None, "bob must stay");
    let again = agent.transcript("alice", &["nix-daemon --stdio"]);
    assert!(again.contains("Permission denied (publickey)"), "{again}");
    // The log says how long that took, and so does the status for maintainers.
    let said = agent.wait_for("sessions and builds of a removed member have ended");
    assert_eq!(said["member"], "alice", "{said}");
    assert!(said["seconds"].as_f64().is_some_and(|seconds| seconds < 60.0), "{said}");
    let status = agent.ssh("bob").args(["status"]).output().expect("ssh");
    assert!(!String::from_utf8_lossy(&status.stdout).contains("removed"), "for maintainers");
    bob.kill().expect("killed");
    bob.wait().expect("ended");
}

#[test]
fn who_does_not_log_in_is_put_out() {
    let agent = Agent::start(&["alice"], "[limits]\nlogin-seconds = 1");
    let mut silent = std::net::TcpStream::connect(("127.0.0.1", agent.port)).expect("connect");
    silent.set_read_timeout(Some(common::PATIENCE)).expect("timeout");
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).expect("closed by the agent");
    assert!(greeting.starts_with(b"SSH-2.0-barnraiser"));
    agent.wait_for("no ssh greeting in time");
}

/// An ssh-agent with keys in it, ended when dropped.
struct KeyAgent {
    process: std::process::Child,
    socket: std::path::PathBuf,
}

impl KeyAgent {
    /// Starts an ssh-agent with these keys, in this order.
    fn with(agent: &Agent, keys: &[String]) -> Self {
        let socket = agent.path().join("agent.socket");
        let mut process = std::process::Command::new("ssh-agent");
        let process =
            process.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().expect("ssh-agent");
        common::until("the socket of the ssh-agent", || socket.exists());
        let mut add = std::process::Command::new("ssh-add");
        add.arg("-q").args(keys.iter().map(|key| agent.path().join(key))).env("SSH_AUTH_SOCK", &socket);
        assert!(add.status().expect("ssh-add").success());
        Self { process, socket }
    }

    /// A login with only the keys of the ssh-agent.
    fn ssh(&self, agent: &Agent, words: &[&str]) -> std::process::Output {
        let mut ssh = std::process::Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "IdentityFile=none",
        ])
        .args(["-o", &format!("UserKnownHostsFile={}", agent.path().join("known_hosts").display())])
        .args(["-o", &format!("IdentityAgent={}", self.socket.display())])
        .args(["-p", &agent.port.to_string(), "anyone@127.0.0.1"])
        .args(words)
        .stdin(Stdio::null());
        ssh.output().expect("ssh")
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_member_with_many_keys_in_the_agent_gets_in_by_the_last_again_and_again() {
    let agent = Agent::start(&["alice"], "");
    let mut keys: Vec<String> = (0..24).map(|n| format!("other-{n}")).collect();
    for key in &keys {
        make_key(&agent.path().join(key));
    }
    keys.push("alice".into());
    let key_agent = KeyAgent::with(&agent, &keys);
    // Repeated: rejected keys before the right one do not count as failures of the source address.
    for _ in 0..5 {
        let output = key_agent.ssh(&agent, &["signing-key"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(agent.log_text().contains("login denied: key not in the roster"));
}

#[test]
fn who_offers_more_keys_than_allowed_is_told_so_and_cut_off() {
    let agent = Agent::start(&["alice"], "[limits]\nmax-auth-tries = 6");
    let mut keys: Vec<String> = (0..8).map(|n| format!("other-{n}")).collect();
    for key in &keys {
        make_key(&agent.path().join(key));
    }
    keys.push("alice".into());
    let output = KeyAgent::with(&agent, &keys).ssh(&agent, &["signing-key"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("Too many authentication"), "{text}");
}

/// A journal that hangs must not stop the box: all tasks log.
#[test]
fn the_agent_does_not_wait_for_the_reader_of_its_log() {
    let agent = Agent::start(&["alice"], "");
    let unread = agent.unread_log();
    // Far more than fits into the pipe and the reader's buffer: some 800 bytes each.
    for login in 0..200 {
        let told = agent.ssh("alice").arg("signing-key").output().expect("ssh");
        assert!(told.status.success(), "login {login}: {}", String::from_utf8_lossy(&told.stderr));
    }
    drop(unread);
    agent.wait_for("logged in");
}

#[test]
fn a_member_with_as_many_connections_as_allowed_is_told_which_limit_that_is() {
    let agent =
        Agent::start(&["alice", "bob"], "[limits]\nmax-connections-per-member = 2\nmax-connections = 3");
    let mut all = vec![agent.open_session("alice"), agent.open_session("alice")];
    let third = agent.transcript("alice", &["signing-key"]);
    assert!(
        third.contains("2 connections open already") && third.contains("limits.max-connections-per-member"),
        "{third}"
    );
    all.push(agent.open_session("bob"));
    let fourth = agent.transcript("bob", &["signing-key"]);
    assert!(
        fourth.contains("3 connections of members") && fourth.contains("`limits.max-connections`)"),
        "{fourth}"
    );
    // A place that becomes free can be used again.
    let mut first = all.remove(0);
    first.kill().expect("killed");
    first.wait().expect("ended");
    agent.wait_for("disconnected");
    assert!(agent.transcript("alice", &["signing-key"]).contains("testbox-1:"));
    for mut ssh in all {
        ssh.kill().expect("killed");
        ssh.wait().expect("ended");
    }
}

#[test]
fn garbage_instead_of_a_worker_client_gets_an_error_and_the_box_goes_on() {
    let agent = Agent::start(&["alice"], "");
    let mut session = agent.ssh("alice");
    session.args(["nix-daemon", "--stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = session.spawn().expect("ssh");
    session.stdin.take().expect("piped").write_all(&[0xff; 4096]).expect("sent");
    assert_eq!(session.wait().expect("ended").code(), Some(1));
    let refused = agent.transcript("alice", &["true"]);
    assert!(refused.ends_with("[exit 127]\n"), "{refused}");
}

#[test]
fn the_host_key_is_made_once_and_survives_a_restart_and_a_kill() {
    let mut agent = Agent::start(&["alice"], "");
    let key = agent.path().join("state/ssh_host_ed25519_key");
    let before = std::fs::read(&key).expect("made");
    agent.signal("-TERM");
    assert_eq!(agent.wait().code(), Some(0), "{}", agent.log_text());
    agent.wait_for("stopped");
    assert_eq!(std::fs::read(&key).expect("kept"), before);
}

#[test]
fn the_signing_key_is_printed_as_trusted_public_keys_want_it() {
    let agent = Agent::start(&["alice"], "");
    let output = agent.ssh("alice").arg("signing-key").output().expect("ssh");
    let kept =
        std::fs::read_to_string(agent.path().join("state/signing-key")).expect("a key beside the host key");
    let secret: store::signing::SecretKey = kept.parse().expect("a secret key in Nix's form");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", secret.public()));
    assert!(secret.name() == "testbox-1" && output.status.success());
}

#[test]
fn a_command_for_people_says_what_the_box_is_and_what_it_answers() {
    let agent = Agent::start(&["alice"], "");
    let help = agent.ssh("alice").arg("help").output().expect("ssh");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.lines().any(|line| line.starts_with("status [--watch] [--json]")), "{help}");
    assert!(!help.contains("mktemp"), "only deployment tools run that:\n{help}");

    let status = agent.ssh("alice").arg("status").output().expect("ssh");
    assert!(status.status.success());
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for says in [
        "box          testbox, barnraiser ",
        "in sandboxes of kind namespace",
        ", 1 member\n",
        "warning      ",
    ] {
        assert!(status.contains(says), "{says}\n{status}");
    }
    let key = agent.ssh("alice").arg("signing-key").output().expect("ssh");
    let key = String::from_utf8_lossy(&key.stdout).trim().to_owned();
    assert!(key.starts_with("testbox-1:") && status.contains(&key), "{key}\n{status}");
}

#[test]
fn the_status_names_who_is_left_out_of_the_roster_and_why() {
    let agent = Agent::start(&["alice"], "");
    agent.edit_roster(|roster| {
        let members = roster["members"].as_array_mut().expect("members");
        let mut bob = members[0].clone();
        (bob["name"], bob["keys"]) = ("bob".into(), serde_json::json!(["ssh-ed25519 nonsense"]));
        members.push(bob);
    });
    agent.wait_for("left out of the roster; the other members can log in");
    let status = agent.ssh("alice").args(["status", "--json"]).output().expect("ssh");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["roster"]["members"], 1);
    assert_eq!(status["roster"]["left_out"][0]["name"], "bob", "{status}");
    assert!(!status["roster"]["left_out"][0]["error"].as_str().expect("why").is_empty());
}

/// Puts a status beside the roster, as `access-manager sync` does.
fn write_status(agent: &Agent, status: &roster::Status) {
    let new = agent.path().join("status.new");
    std::fs::write(&new, status.to_json()).expect("written");
    std::fs::rename(&new, roster::Status::path_beside(&agent.path().join("roster.json"))).expect("replaced");
}

fn accepted() -> roster::status::Accepted {
    roster::status::Accepted { commit: "a".repeat(40), committed: 1_700_000_000, accepted: 1_700_000_060 }
}

/// Waits until `ssh` of this member ends in this way, and returns its output.
fn until(agent: &Agent, member: &str, lets_in: bool) -> String {
    let deadline = std::time::Instant::now() + common::PATIENCE;
    loop {
        let output = agent.ssh(member).arg("status").output().expect("ssh");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() == lets_in {
            return text;
        }
        assert!(std::time::Instant::now() < deadline, "{member} {lets_in}\n{text}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_roster_that_was_not_checked_for_too_long_lets_in_maintainers_only_and_says_why() {
    let agent = Agent::start(&["alice", "bob"], "roster-max-age-seconds = 3600");
    let why = "was never compared with its repository, and roster-max-age-seconds is 3600: until that works again, \
               this box lets in maintainers only";
    let text = until(&agent, "alice", false);
    assert!(text.contains(&format!("warning: the roster {why}")), "the banner: {text}");
    assert!(
        text.contains(&format!(
            "Received disconnect from 127.0.0.1 port {}:14: the roster {why}",
            agent.port
        )),
        "{text}"
    );

    let now = roster::date::now();
    let mut status = roster::Status::default();
    status.succeeded(accepted(), now);
    write_status(&agent, &status);
    // The banner of the first login that succeeds can be from the moment before.
    until(&agent, "alice", true);
    assert!(!until(&agent, "alice", true).contains("maintainers only"));

    // A session that runs goes on, and its member cannot open another one.
    let mut session = agent.ssh("alice");
    session
        .args(["nix-daemon", "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut session = session.spawn().expect("ssh");
    agent.wait_for("logged in");
    let hello = [0x6e69_7863u64.to_le_bytes(), 0x112u64.to_le_bytes()].concat();
    session.stdin.as_mut().expect("piped").write_all(&hello[..8]).expect("sent");
    status.succeeded(accepted(), now - 3700);
    status.failed(None, "cannot fetch branch main\n   cause: no network", now);
    write_status(&agent, &status);
    let text = until(&agent, "alice", false);
    assert!(text.contains("was last compared with its repository at "), "{text}");
    session.stdin.as_mut().expect("piped").write_all(&hello[8..]).expect("sent");
    let mut answer = [0; 8];
    session.stdout.as_mut().expect("piped").read_exact(&mut answer).expect("an answer");
    assert_eq!(session.try_wait().expect("wait"), None);

    // A maintainer gets in and reads what is wrong.
    let path = agent.path().join("roster.json");
    let maintained =
        std::fs::read_to_string(&path).expect("a roster").replace("\"member\"", "\"maintainer\"");
    std::fs::write(agent.path().join("roster.new"), maintained).expect("written");
    std::fs::rename(agent.path().join("roster.new"), &path).expect("replaced");
    let text = until(&agent, "bob", true);
    for part in ["closed       the roster was last", "not checked  since ", "cause: no network"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    drop(session.stdin.take());
    session.wait().expect("ended");
}

#[test]
fn the_status_says_which_commit_counts_since_when_and_why_a_newer_one_does_not() {
    let agent = Agent::start(&["alice"], "");
    let text = until(&agent, "alice", true);
    assert!(text.contains("in force     since 2") && !text.contains("checked"), "{text}");
    let path = agent.path().join("roster.json");
    let roster = std::fs::read_to_string(&path).expect("a roster");
    let commit = accepted().commit;
    std::fs::write(
        agent.path().join("roster.new"),
        roster.replace("\"commit\":null", &format!("\"commit\":\"{commit}\"")),
    )
    .expect("written");
    std::fs::rename(agent.path().join("roster.new"), &path).expect("replaced");
    let mut status = roster::Status::default();
    status.succeeded(accepted(), 1_700_000_120);
    status.failed(Some("b".repeat(40)), "error: there is a second key\n hint: remove it", 1_700_000_180);
    write_status(&agent, &status);
    let deadline = std::time::Instant::now() + common::PATIENCE;
    let refused = format!(
        "refused      commit {} since 2023-11-14 22:16:20Z:\n             error: there is a second key\n              hint: remove it\n",
        "b".repeat(40)
    );
    let mut text = String::new();
    while !(text.contains(&commit) && text.contains(&refused)) {
        assert!(std::time::Instant::now() < deadline, "{refused}\n{text}");
        text = until(&agent, "alice", true);
    }
    assert!(text.contains("; committed 2023-11-14 22:13:20Z, accepted 2023-11-14 22:14:20Z\n"), "{text}");
    assert!(text.contains("checked      2023-11-14 22:15:20Z\n"), "{text}");
    let json = agent.ssh("alice").args(["status", "--json"]).output().expect("ssh");
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let synchronisation = &json["roster"]["synchronisation"];
    assert_eq!(synchronisation["accepted"]["accepted"], 1_700_000_060u64);
    assert_eq!(synchronisation["problem"]["commit"], "b".repeat(40));
    assert!(json["roster"]["loaded"].as_u64().expect("a time") > 1_700_000_000);
}
