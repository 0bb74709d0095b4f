//! Runs programs, watches them, and returns their transcripts.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Interval between checks whether a process has ended.
const GLANCE: Duration = Duration::from_millis(10);

/// The output that a user at a terminal would have seen.
#[derive(Debug, Clone)]
pub struct Transcript {
    pub command: String,
    /// `None`: ended by a signal.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Transcript {
    /// Requires success; shows everything otherwise.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status == Some(0), "this had to succeed:\n{self}");
        self
    }

    /// Whether the program succeeded.
    pub fn ok_or_not(&self) -> bool {
        self.status == Some(0)
    }

    /// Requires an error exit; shows everything otherwise.
    #[track_caller]
    pub fn failed(self) -> Self {
        assert!(self.status.is_some_and(|code| code != 0), "this had to fail:\n{self}");
        self
    }

    /// Requires each of these texts on stderr.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} had to be said:\n{self}");
        }
        self
    }

    /// The last line on stdout, without its line end.
    pub fn answer(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }
}

impl std::fmt::Display for Transcript {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "$ {}\n{}{}", self.command, self.stdout, self.stderr)?;
        match self.status {
            Some(code) => write!(f, "[exit {code}]"),
            None => write!(f, "[ended by a signal]"),
        }
    }
}

/// Runs a program to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Transcript {
    Running::start(command).finish()
}

/// A size from the kernel's status of a process, such as `VmRSS` or `VmHWM`, in KiB (proc(5): status).
#[track_caller]
pub fn status_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A running program. Dropping it kills it.
pub struct Running {
    command: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
}

impl Running {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let text = shown(command);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start `{text}`: {e}"));
        let stdout = Stream::read(child.stdout.take().expect("piped"));
        let stderr = Stream::read(child.stderr.take().expect("piped"));
        Self { command: text, child, stdout, stderr }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits until `part` was printed on stderr. Panics if the program ends without printing it.
    #[track_caller]
    pub fn wait_for(&self, part: &str) {
        if !self.stderr.wait_for(part) {
            panic!("{part:?} was not printed by `{}`; it said:\n{}", self.command, self.stderr.text());
        }
    }

    /// As [`Running::wait_for`], for stdout.
    #[track_caller]
    pub fn wait_for_stdout(&self, part: &str) {
        if !self.stdout.wait_for(part) {
            panic!("{part:?} was not printed by `{}`; it said:\n{}", self.command, self.stdout.text());
        }
    }

    /// Kills the program, as a closed laptop would.
    pub fn kill(mut self) -> Transcript {
        let _ = self.child.kill();
        self.finish()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Transcript {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!(
                    "`{}` did not end within {PATIENCE:?}; so far it said:\n{}{}",
                    self.command,
                    self.stdout.text(),
                    self.stderr.text()
                );
            }
            std::thread::sleep(GLANCE);
        };
        Transcript {
            command: self.command.clone(),
            status: status.code(),
            stdout: self.stdout.all(),
            stderr: self.stderr.all(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One output of a program, read while it runs.
struct Stream {
    shared: Arc<(Mutex<Collected>, Condvar)>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn read(mut from: impl Read + Send + 'static) -> Self {
        let shared: Arc<(Mutex<Collected>, Condvar)> = Arc::default();
        let theirs = shared.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                let n = from.read(&mut buffer).unwrap_or(0);
                let mut collected = theirs.0.lock().expect("collected");
                collected.bytes.extend_from_slice(&buffer[..n]);
                collected.ended = n == 0;
                theirs.1.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self { shared, reader: Some(reader) }
    }

    fn wait_for(&self, part: &str) -> bool {
        let (collected, changed) = &*self.shared;
        let has = |c: &Collected| c.bytes.windows(part.len()).any(|window| window == part.as_bytes());
        let (collected, _) = changed
            .wait_timeout_while(collected.lock().expect("collected"), PATIENCE, |c| !has(c) && !c.ended)
            .expect("collected");
        has(&collected)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.0.lock().expect("collected").bytes).into_owned()
    }

    fn all(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader");
        }
        self.text()
    }
}

/// The words of a command, for messages: without the sandbox of a client machine, and with long words cut.
fn shown(command: &Command) -> String {
    const LONGEST: usize = 400;
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().chars().take(LONGEST).collect())
        .collect();
    let sandbox = match words[0].as_str() {
        "bwrap" => words.iter().position(|word| word == "--").map_or(0, |at| at + 1),
        _ => 0,
    };
    words[sandbox..].join(" ")
}
