//! Runs `git` as a child, for one task, with an environment of its own and limits.
//!
//! The child talks to strangers. What it may do is limited here: how long, how quietly, how large its folder grows, how much it
//! says, which protocols it speaks. It never asks anybody for a password. Its user and what that can reach are the unit's to say.
//!
//! A child and all its children are one process group, which is ended as a whole. Until its end the child has the lock of the
//! mirror as its standard input: if this process is killed, nobody else begins before its git has ended, too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// Interval between looks at the child and at the size of its folder.
const GLANCE: Duration = Duration::from_millis(200);
/// The first looks come sooner: most children end at once.
const FIRST_GLANCE: Duration = Duration::from_millis(2);
/// Most bytes of an answer. The longest is a list of branches.
const MAX_ANSWER: usize = 16 << 20;
/// The last bytes of what a child says are kept for the message.
const MAX_SAID: usize = 4096;
/// Most characters of it in a message.
const MAX_SHOWN: usize = 600;
/// How long the pipes of a child that has ended are read. Only a process that left the group still holds them open.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("cannot start `git`; it must be in PATH")]
    Start(#[source] io::Error),
    #[error("cannot wait for `git {what}`")]
    Wait { what: String, source: io::Error },
    #[error("`git {what}` failed: {said}")]
    Failed { what: String, said: String },
    #[error("`git {what}` took longer than {seconds} s and was ended")]
    Slow { what: String, seconds: u64 },
    #[error("`git {what}` made no progress for {seconds} s and was ended")]
    Silent { what: String, seconds: u64 },
    #[error(
        "the mirror would be larger than {mib} MiB, and `git {what}` was ended; raise `mirrors.max-mib` if it may be"
    )]
    TooLarge { what: String, mib: u64 },
    #[error("`git {what}` answered with more than {} MiB and was ended", MAX_ANSWER >> 20)]
    TooTalkative { what: String },
    #[error("cannot measure {}", path.display())]
    Measure { path: PathBuf, source: io::Error },
}

/// What every child of a mirror has in common.
pub(crate) struct Git<'a> {
    /// The bare repository; it needs not exist.
    pub(crate) repository: &'a Path,
    /// Everything that counts as the size of the mirror is below it.
    pub(crate) folder: &'a Path,
    pub(crate) lock: &'a File,
    pub(crate) certificates: Option<&'a Path>,
}

/// When a child is ended.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) time: Duration,
    /// Longest time without a word of progress.
    pub(crate) quiet: Duration,
    /// Largest size of the mirror's folder.
    pub(crate) bytes: u64,
}

impl Limits {
    /// For a child that only looks at the repository.
    pub(crate) fn of_a_look() -> Self {
        let time = Duration::from_secs(600);
        Self { time, quiet: time, bytes: u64::MAX }
    }
}

impl Git<'_> {
    /// Runs `git ARGUMENTS`, which speaks no protocol but `protocol` (`""` for none); returns what it answers.
    pub(crate) fn run(
        &self,
        arguments: &[&str],
        protocol: &str,
        limits: Limits,
    ) -> Result<Vec<u8>, GitError> {
        let lock = self.lock.try_clone().map_err(GitError::Start)?;
        self.run_with(arguments, protocol, limits, lock.into())
    }

    /// The same, with another standard input.
    pub(crate) fn run_with(
        &self,
        arguments: &[&str],
        protocol: &str,
        limits: Limits,
        input: Stdio,
    ) -> Result<Vec<u8>, GitError> {
        let what = printable::start(arguments.first().copied().unwrap_or_default(), 40);
        let mut child = self.command(arguments, protocol).stdin(input).spawn().map_err(GitError::Start)?;
        let watched = Watched::new(&mut child);
        let end = self.watch(&mut child, &watched, &what, limits);
        let (answer, said) = watched.end();
        let ended_well = end?;
        if ended_well {
            return Ok(answer);
        }
        Err(GitError::Failed { what, said: last_words(&said) })
    }

    /// `GIT_DIR` says where the repository is, so that git does not look for one in the folders above.
    fn command(&self, arguments: &[&str], protocol: &str) -> Command {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(self.folder).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).env_clear();
        for inherited in ["PATH", "LD_LIBRARY_PATH"] {
            command.envs(std::env::var_os(inherited).map(|value| (inherited, value)));
        }
        command
            .env("GIT_DIR", self.repository)
            .env("HOME", self.folder)
            .env("LC_ALL", "C")
            // No configuration but that of the repository, which `work` writes.
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_ADVICE", "0")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", if protocol.is_empty() { "none" } else { protocol })
            .env("GIT_SSH_COMMAND", ssh());
        if let Some(file) = self.certificates {
            command.env("GIT_SSL_CAINFO", file);
        }
        command
    }

    /// Waits for the end of the child, or brings it about; then of all that it has left behind.
    fn watch(
        &self,
        child: &mut Child,
        watched: &Watched,
        what: &str,
        limits: Limits,
    ) -> Result<bool, GitError> {
        let what = || what.to_owned();
        let started = Instant::now();
        let mut glance = FIRST_GLANCE;
        let verdict = loop {
            match has_ended(child) {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(source) => break Err(GitError::Wait { what: what(), source }),
            }
            if started.elapsed() > limits.time {
                break Err(GitError::Slow { what: what(), seconds: limits.time.as_secs() });
            }
            if watched.quiet() > limits.quiet {
                break Err(GitError::Silent { what: what(), seconds: limits.quiet.as_secs() });
            }
            if watched.answered() > MAX_ANSWER as u64 {
                break Err(GitError::TooTalkative { what: what() });
            }
            if limits.bytes != u64::MAX {
                match size_of(self.folder) {
                    Ok(bytes) if bytes > limits.bytes => {
                        break Err(GitError::TooLarge { what: what(), mib: limits.bytes >> 20 });
                    }
                    Ok(_) => {}
                    Err(source) => break Err(GitError::Measure { path: self.folder.to_owned(), source }),
                }
            }
            std::thread::sleep(glance);
            glance = (glance * 2).min(GLANCE);
        };
        // The group exists until its first process is waited for, so this cannot hit anybody else.
        if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = child.wait().map_err(|source| GitError::Wait { what: what(), source })?;
        if watched.answered() > MAX_ANSWER as u64 {
            return Err(GitError::TooTalkative { what: what() });
        }
        verdict.map(|()| status.success())
    }
}

/// A key and known hosts come as credentials of the unit; without them only hosts that the system knows are spoken to.
fn ssh() -> String {
    let mut command = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=30 \
                       -o ServerAliveInterval=30"
        .to_owned();
    let Some(folder) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return command };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '@');
    for (name, option) in [
        ("barnraiser.mirrors-ssh-key", "IdentitiesOnly=yes -o IdentityFile"),
        ("barnraiser.mirrors-known-hosts", "UserKnownHostsFile"),
    ] {
        // git gives this text to a shell.
        let file = Path::new(&folder).join(name);
        if let Some(text) = file.to_str().filter(|text| file.exists() && text.chars().all(plain)) {
            command.push_str(&format!(" -o {option}={text}"));
        }
    }
    command
}

/// Whether the child has ended. It stays a zombie, and its group's number stays its own.
fn has_ended(child: &Child) -> io::Result<bool> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::Error::other("no process"))?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    match waitid(WaitId::Pid(pid), options) {
        Ok(status) => Ok(status.is_some()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Bytes of all files below a folder. A file with several names counts once, and as one block at least. What vanishes meanwhile
/// does not count.
pub(crate) fn size_of(folder: &Path) -> io::Result<u64> {
    let mut seen = BTreeSet::new();
    add_sizes(folder, &mut seen)
}

fn add_sizes(folder: &Path, seen: &mut BTreeSet<u64>) -> io::Result<u64> {
    let gone = |error: io::Error| (error.kind() == io::ErrorKind::NotFound).then_some(0).ok_or(error);
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return gone(error),
    };
    let mut sum = 0_u64;
    for entry in entries {
        let entry = entry?;
        let size = entry.metadata().and_then(|meta| match meta.is_dir() {
            true => add_sizes(&entry.path(), seen),
            false if meta.nlink() > 1 && !seen.insert(meta.ino()) => Ok(0),
            false => Ok(meta.len().max(4096)),
        });
        sum = sum.saturating_add(size.or_else(gone)?);
    }
    Ok(sum)
}

/// The two pipes of a child, each read by a thread.
struct Watched {
    started: Instant,
    /// Milliseconds after the start at which the child said something.
    heard: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    answer: Arc<Mutex<Vec<u8>>>,
    said: Arc<Mutex<Vec<u8>>>,
    ends: Receiver<()>,
}

impl Watched {
    fn new(child: &mut Child) -> Self {
        let (sender, ends) = channel();
        let watched = Self {
            started: Instant::now(),
            heard: Arc::default(),
            answered: Arc::default(),
            answer: Arc::default(),
            said: Arc::default(),
            ends,
        };
        if let Some(pipe) = child.stdout.take() {
            let (answer, answered, sender) =
                (Arc::clone(&watched.answer), Arc::clone(&watched.answered), sender.clone());
            watched.read(pipe, move |bytes| {
                let so_far = answered.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if so_far <= MAX_ANSWER as u64 {
                    lock(&answer).extend_from_slice(bytes);
                }
                let _ = &sender;
            });
        }
        if let Some(pipe) = child.stderr.take() {
            let said = Arc::clone(&watched.said);
            watched.read(pipe, move |bytes| {
                let mut said = lock(&said);
                said.extend_from_slice(bytes);
                let surplus = said.len().saturating_sub(MAX_SAID);
                said.drain(..surplus);
                let _ = &sender;
            });
        }
        watched
    }

    /// `take` is dropped at the end of the pipe, and with it its sender.
    fn read(&self, mut pipe: impl Read + Send + 'static, mut take: impl FnMut(&[u8]) + Send + 'static) {
        let (started, heard) = (self.started, Arc::clone(&self.heard));
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => {
                        heard.store(started.elapsed().as_millis() as u64, Ordering::Relaxed);
                        take(&buffer[..n]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        });
    }

    fn quiet(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// What the child answered, and the end of what it said.
    fn end(self) -> (Vec<u8>, Vec<u8>) {
        // Nobody sends anything: both senders are dropped when both pipes have ended.
        let ended = self.ends.recv_timeout(LAST_WORDS);
        debug_assert!(ended != Err(RecvTimeoutError::Timeout), "a child left its group");
        (std::mem::take(&mut lock(&self.answer)), std::mem::take(&mut lock(&self.said)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The lines of a failure that say why: errors, and what upstream said. Progress is left out.
fn last_words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let why =
        |line: &&str| ["fatal:", "error:", "remote:", "ssh:"].iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut chosen: Vec<&str> = lines.iter().copied().filter(why).collect();
    if chosen.is_empty() {
        chosen = lines.last().copied().into_iter().collect();
    }
    // The last lines are the reasons nearest to the end.
    let chosen = chosen.split_off(chosen.len().saturating_sub(4));
    match chosen[..] {
        [] => "it gave no reason".to_owned(),
        _ => printable::start(&chosen.join("; "), MAX_SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_reasons_and_neither_progress_nor_control_characters() {
        let said = b"remote: Counting objects: 1% (1/100)\rReceiving objects: 5%\rfatal: early EOF \x1b]0;x\x07\nerror: index-pack died\n";
        assert_eq!(
            last_words(said),
            "remote: Counting objects: 1% (1/100); fatal: early EOF \u{fffd}]0;x\u{fffd}; error: index-pack died"
        );
        assert_eq!(last_words(b"\n"), "it gave no reason");
        assert!(last_words(&[b'x'; 5000]).chars().count() <= MAX_SHOWN + 1);
    }
}
