//! Draining: a maintainer has the box start no more builds, for example before a reboot or a repair.
//!
//! Builds that wait for a slot end at once, with the reason; builds that run go on until they end, or until the
//! deadline. Neither is a failure of the build, so nothing is remembered as failed. Results that exist, joined builds,
//! copies and downloads need no new build, so they still work.
//! The state is in a small file beside the store, so an agent that is started again stays drained. A reboot ends it, as it
//! ends everything but the identity of the box: the file names the boot of the machine.
//! Not here: ending builds (`schedule::draining`), the command (`ssh`), and sessions that clients open meanwhile (`daemon`).

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix_derivation::StorePath;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::Failure;
use members::date;

/// The name of the file in the state directory.
const FILE: &str = "drained.json";
/// Largest file that is read. Ours has a few hundred bytes.
const MAX_FILE: u64 = 16 << 10;
/// Longest reason, in characters. Every client that is turned away reads it.
pub const MAX_REASON: usize = 200;

/// Why the box starts no builds. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// The maintainer who asked for it.
    pub by: String,
    pub since: u64,
    /// Builds that still run then are ended; without one they run to their end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the box is drained since {} (by {}",
            date::shown(self.since),
            printable::start(&self.by, 64)
        )?;
        if let Some(reason) = &self.reason {
            write!(f, ": {}", printable::start(reason, MAX_REASON))?;
        }
        write!(f, "), so it starts no builds")
    }
}

impl Drained {
    /// The answer to a request for a build that would have to be started.
    pub(crate) fn refusal(&self, drv: &StorePath) -> Failure {
        let drv = drv.to_absolute_path();
        Failure::transient(format!("'{drv}' is not built: {self}; build elsewhere, or try again later"))
    }

    /// The end of a build that ran at the deadline.
    pub(crate) fn ended(&self, drv: &StorePath) -> Failure {
        let drv = drv.to_absolute_path();
        Failure::transient(format!(
            "the build of '{drv}' was ended at the deadline, which says nothing about the build: {self}; build elsewhere, \
             or try again later"
        ))
    }
}

/// The contents of the file.
#[derive(Serialize, Deserialize)]
struct Saved {
    /// The boot of the machine in which this was written.
    boot: String,
    drained: Drained,
}

/// Whether the box is drained, and the file that says so to the next start of the agent.
#[derive(Debug, Clone)]
pub struct Drain {
    path: Arc<PathBuf>,
    now: watch::Sender<Option<Arc<Drained>>>,
}

impl Drain {
    /// Reads what an earlier start of the agent has left in this folder. A file that cannot be read counts as none: at
    /// worst the box builds, which a maintainer sees at once and can stop again.
    #[must_use]
    pub fn open(state_dir: &std::path::Path) -> Self {
        let path = state_dir.join(FILE);
        let found = match load(&path) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "cannot read whether the box is drained; it is not");
                None
            }
        };
        if let Some(drained) = &found {
            tracing::warn!(by = drained.by, reason = drained.reason, "the box is still drained");
        }
        Self { path: Arc::new(path), now: watch::Sender::new(found.map(Arc::new)) }
    }

    /// Why the box is drained, if it is.
    #[must_use]
    pub fn now(&self) -> Option<Arc<Drained>> {
        self.now.borrow().clone()
    }

    /// Each change from now on.
    pub(crate) fn follow(&self) -> watch::Receiver<Option<Arc<Drained>>> {
        self.now.subscribe()
    }

    /// Drains the box, or changes reason and deadline. On error nothing has changed. Waits for the disk.
    pub(crate) fn begin(&self, drained: Drained) -> io::Result<Arc<Drained>> {
        let saved = Saved { boot: boot(), drained };
        atomic_file::write(&self.path, &serde_json::to_vec(&saved)?, 0o600)?;
        let drained = Arc::new(saved.drained);
        self.now.send_replace(Some(drained.clone()));
        Ok(drained)
    }

    /// The box builds again. Returns why it was drained; `None` if it was not. On error nothing has changed.
    pub(crate) fn end(&self) -> io::Result<Option<Arc<Drained>>> {
        match std::fs::remove_file(&*self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(self.now.send_replace(None)),
        }
    }
}

fn load(path: &std::path::Path) -> io::Result<Option<Drained>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    let Saved { boot: written, drained } = serde_json::from_slice(&bytes)?;
    Ok((written == boot()).then_some(drained))
}

/// Names the current boot of the machine (Linux: random(4)); the same text for ever where there is no such file.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained() -> Drained {
        Drained {
            by: "alice".into(),
            since: 1_795_000_000,
            deadline: None,
            reason: Some("a new disk".into()),
        }
    }

    #[test]
    fn an_agent_that_is_started_again_stays_drained_and_a_reboot_ends_it() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Drain::open(dir.path()).now(), None);
        Drain::open(dir.path()).begin(drained()).expect("written");
        assert_eq!(Drain::open(dir.path()).now().as_deref(), Some(&drained()));

        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, text.replace(&boot(), "another-boot")).expect("written");
        assert_eq!(Drain::open(dir.path()).now(), None);

        let drain = Drain::open(dir.path());
        drain.begin(drained()).expect("written");
        assert_eq!(drain.end().expect("removed").as_deref(), Some(&drained()));
        assert_eq!((drain.now(), drain.end().expect("nothing to remove")), (None, None));
        assert_eq!(Drain::open(dir.path()).now(), None);
    }

    #[test]
    fn a_damaged_file_counts_as_none_and_a_state_that_cannot_be_kept_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(FILE), "{").expect("written");
        assert_eq!(Drain::open(dir.path()).now(), None);
        let nowhere = Drain::open(&dir.path().join("missing"));
        nowhere.begin(drained()).expect_err("there is no such folder");
        assert_eq!(nowhere.now(), None);
    }

    #[test]
    fn clients_read_who_why_and_since_when_on_one_line() {
        let drained = Drained { reason: Some("disk\u{1b}[2J\nfull".into()), ..drained() };
        let text = drained.to_string();
        assert!(text.starts_with("the box is drained since 2026-11-18 "), "{text}");
        assert!(text.ends_with("(by alice: disk\u{fffd}[2J full), so it starts no builds"), "{text}");
    }
}
