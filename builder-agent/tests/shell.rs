//! `ssh box` without a command, with the real OpenSSH client: on a terminal and from a pipe.

mod common;

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use common::{Agent, PATIENCE};

/// A shell on a terminal, as far as the agent can tell.
struct Shell {
    child: Child,
    shown: Arc<(Mutex<String>, Condvar)>,
}

impl Shell {
    fn open(agent: &Agent, who: &str) -> Self {
        let mut ssh = agent.ssh(who);
        ssh.arg("-tt")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env("TERM", "xterm");
        let mut child = ssh.spawn().expect("ssh");
        let mut stdout = child.stdout.take().expect("piped");
        let shown = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let theirs = shown.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                theirs.0.lock().expect("shown").push_str(&String::from_utf8_lossy(&buffer[..count]));
                theirs.1.notify_all();
            }
        });
        let mut shell = Self { child, shown };
        shell.until("testbox> ");
        shell
    }

    fn send(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("piped").write_all(bytes).expect("sent");
    }

    /// Waits for this text, and forgets what was shown up to its end.
    fn until(&mut self, text: &str) -> String {
        let shown = self.shown.0.lock().expect("shown");
        let (mut shown, late) =
            self.shown.1.wait_timeout_while(shown, PATIENCE, |shown| !shown.contains(text)).expect("shown");
        assert!(!late.timed_out(), "no {text:?} in {shown:?}");
        let end = shown.find(text).expect("there") + text.len();
        shown.drain(..end).collect()
    }

    fn status(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.child.wait().expect("ended").code()
    }
}

/// Runs these lines from a pipe.
fn piped(agent: &Agent, lines: &str) -> (Option<i32>, String, String) {
    let mut ssh = agent.ssh("alice");
    let mut child =
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ssh");
    // The other end may close before everything is written.
    let _ = child.stdin.take().expect("piped").write_all(lines.as_bytes());
    let output = child.wait_with_output().expect("ended");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn commands_run_line_by_line_from_a_pipe_and_the_last_failure_is_the_status() {
    let agent = Agent::start(&["alice"], "");
    let (status, stdout, stderr) = piped(&agent, "signing-key\n# a comment\n\nwhoami --json");
    assert_eq!(status, Some(0), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("testbox-1:") && lines[1].starts_with("{\"member\":\"alice\""), "{stdout}");
    assert!(!stdout.contains('\u{1b}') && !stdout.contains('\r'), "{stdout:?}");

    let (status, stdout, stderr) = piped(&agent, "rm -rf /\nbuilds show 7\nsigning-key\nexit\nwhoami\n");
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stdout.starts_with("testbox-1:") && stdout.lines().count() == 1, "{stdout}");
    assert!(
        stderr.contains("cannot run `rm -rf /`") && stderr.contains("no build 7 runs or waits"),
        "{stderr}"
    );
    let (status, _, stderr) = piped(&agent, "nix-daemon --stdio\n");
    assert!(status == Some(127) && stderr.contains("not for the shell"), "{stderr}");
    let (status, _, stderr) = piped(&agent, &"x".repeat(100_000));
    assert!(status == Some(127) && stderr.contains("a line longer than 4096 bytes"), "{stderr}");
}

#[test]
fn who_sends_without_end_behind_a_command_is_cut_off() {
    let agent = Agent::start(&["alice"], "");
    let mut ssh = agent.ssh("alice");
    let mut child =
        ssh.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("ssh");
    let mut stdin = child.stdin.take().expect("piped");
    let lines = format!("status --watch\n{}", "whoami\n".repeat(100_000));
    // The other end may close before everything is written.
    let writing = std::thread::spawn(move || drop(stdin.write_all(lines.as_bytes())));
    let output = child.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("wait behind a command"), "{text}");
    writing.join().expect("written");
}

#[test]
fn on_a_terminal_lines_are_edited_completed_remembered_and_run() {
    let agent = Agent::start(&["alice"], "");
    let mut shell = Shell::open(&agent, "alice");
    shell.send(b"signin\t\r");
    let shown = shell.until("testbox-1:");
    assert!(shown.contains("testbox> signing-key "), "{shown:?}");
    shell.until("\r\n");
    shell.until("testbox> ");
    // The line before, with something else in front of it.
    shell.send(b"\x1b[A\x15whoamx\x7fi\r");
    let shown = shell.until("shares paths with   nobody\r\n");
    assert!(!shown.replace("\r\n", "").contains('\n'), "a newline alone goes straight down: {shown:?}");
    shell.send(b"builds \t");
    shell.until("cancel  list  log  show  watch");
    shell.send(b"\x03settings --explain max-si\t\r");
    shell.until("max-silent-time is 3600 seconds");
    shell.send(b"ticket create --name friend --json\r");
    shell.until("friend");
    shell.until("testbox> ");
    shell.send(b"ticket revoke fr\t\r");
    shell.until("ticket revoke friend");
    shell.until("revoked");
    shell.send(b"no-such\r");
    shell.until("cannot run `no-such`");
    shell.until("testbox> ");
    shell.send(b"\x04");
    assert_eq!(shell.status(), Some(127), "the status of the last command");
}

#[test]
fn control_c_ends_a_command_and_not_the_shell_and_what_was_typed_ahead_is_run() {
    let agent = Agent::start(&["alice"], "");
    let mut shell = Shell::open(&agent, "alice");
    shell.send(b"status --watch\r");
    shell.until("0 of ");
    agent.edit_roster(|roster| roster["source"] = "elsewhere".into());
    shell.until("elsewhere");
    shell.send(b"\x03");
    shell.until("testbox> ");
    shell.send(b"signing-key\rsigning-key\rexit\r");
    shell.until("testbox-1:");
    shell.until("testbox-1:");
    assert_eq!(shell.status(), Some(0));
}

#[test]
fn a_command_on_a_terminal_has_line_ends_and_colors_for_it() {
    let agent = Agent::start(&["alice"], "");
    let on_terminal = |more: &[&str]| {
        let mut ssh = agent.ssh("alice");
        ssh.arg("-tt").env("TERM", "xterm");
        let output = ssh.args(more).arg("who").output().expect("ssh");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = on_terminal(&[]);
    assert!(text.starts_with("\u{1b}[1mconnection") && text.ends_with("\r\n"), "{text:?}");
    let status = agent.ssh("alice").args(["-tt", "status"]).env("TERM", "xterm").output().expect("ssh");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("\u{1b}[33mwarning      \u{1b}[0m"), "the weaker sandbox: {status:?}");
    let text = on_terminal(&["-o", "SetEnv=NO_COLOR=1"]);
    assert!(text.starts_with("connection"), "{text:?}");
}

#[test]
fn a_maintainer_completes_names_and_is_refused_nothing() {
    let agent = Agent::start(&["alice", "carol"], "");
    agent.edit_roster(|roster| roster["members"][1]["role"] = "maintainer".into());
    let alice = Shell::open(&agent, "alice");
    let mut carol = Shell::open(&agent, "carol");
    carol.send(b"audit --member al\t\r");
    carol.until("audit --member alice");
    carol.until("testbox> ");
    carol.send(b"kick a\t--reason\x20'go home'\r");
    carol.until("kick alice --reason 'go home'");
    carol.until("ended 1 connection.");
    let mut child = alice.child;
    // Kept open, so that only the agent can end this.
    let _stdin = child.stdin.take();
    assert_eq!(child.wait().expect("ended").code(), Some(255));
    carol.send(b"exit\r");
    assert_eq!(carol.status(), Some(0));
}

#[test]
fn a_removed_member_is_put_out_of_a_shell() {
    let agent = Agent::start(&["alice", "bob"], "");
    let shell = Shell::open(&agent, "alice");
    common::write_roster(agent.path(), &["bob"]);
    let mut child = shell.child;
    // Kept open, so that only the agent can end this.
    let _stdin = child.stdin.take();
    assert_eq!(child.wait().expect("ended").code(), Some(255));
}
