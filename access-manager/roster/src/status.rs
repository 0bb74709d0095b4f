//! `roster-status.json`: what the synchroniser knows about the roster, for the agent, which shows it to members and decides
//! by it whether the roster is too old. It is beside `roster.json`.
//!
//! The file comes from another user's process and is read with bounds. Fields that the reader does not know are ignored:
//! none of them can let anybody in. Not here: what follows from the age of a roster (the agent's `members`).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The only schema there is.
const SCHEMA: u64 = 1;
/// Largest file that is read. A reason has at most [`MAX_REASON`] characters, so a written file has a tenth of this.
pub const MAX_STATUS: u64 = 64 << 10;
/// Longest reason that is kept: a message with its cause, hint and a quoted line of `users.nix`.
const MAX_REASON: usize = 2000;

/// All times are seconds since 1970, by the clock of the box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    schema: u64,
    /// The last accepted commit; `None` if none was ever accepted, as with the roster of the image.
    #[serde(default)]
    pub accepted: Option<Accepted>,
    /// The end of the last synchronisation that found the accepted commit to be the newest one.
    #[serde(default)]
    pub checked: Option<u64>,
    /// The reason why the last synchronisation failed; `None` if it did not.
    #[serde(default)]
    pub problem: Option<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub commit: String,
    /// By the commit itself: when it was made or merged.
    pub committed: u64,
    /// When this box accepted it.
    pub accepted: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The commit that was refused; `None` if none was found.
    pub commit: Option<String>,
    pub reason: String,
    /// The first failure of this kind since the last success.
    pub since: u64,
    pub at: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("it is larger than {MAX_STATUS} bytes")]
    TooLarge,
    #[error("it is not what `access-manager sync` writes: {0}")]
    Shape(serde_json::Error),
    #[error("it has schema {0}, and only {SCHEMA} is known here")]
    Schema(u64),
    #[error("a commit is not a hash in hexadecimal digits")]
    Commit,
}

impl Default for Status {
    fn default() -> Self {
        Self { schema: SCHEMA, accepted: None, checked: None, problem: None }
    }
}

impl Status {
    /// The file beside this `roster.json`.
    pub fn path_beside(roster: &Path) -> PathBuf {
        roster.with_file_name("roster-status.json")
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("text and numbers") + "\n"
    }

    /// Reads the file. The text in it is fit for terminals and logs afterwards.
    pub fn read(bytes: &[u8]) -> Result<Status, StatusError> {
        if bytes.len() as u64 > MAX_STATUS {
            return Err(StatusError::TooLarge);
        }
        let mut status: Status = serde_json::from_slice(bytes).map_err(StatusError::Shape)?;
        if status.schema != SCHEMA {
            return Err(StatusError::Schema(status.schema));
        }
        let accepted = status.accepted.iter().map(|accepted| &accepted.commit);
        let refused = status.problem.iter().filter_map(|problem| problem.commit.as_ref());
        if !accepted.chain(refused).all(|commit| is_hash(commit)) {
            return Err(StatusError::Commit);
        }
        status.problem = status.problem.map(|problem| Problem { reason: reason(&problem.reason), ..problem });
        Ok(status)
    }

    /// Notes a success: `accepted` was the newest commit at `now`.
    pub fn succeeded(&mut self, accepted: Accepted, now: u64) {
        *self = Status { accepted: Some(accepted), checked: Some(now), problem: None, ..Status::default() };
    }

    /// Notes a failure. What was accepted and checked before stays.
    pub fn failed(&mut self, commit: Option<String>, why: &str, now: u64) {
        let same = self.problem.as_ref().filter(|problem| problem.commit == commit);
        let since = same.map_or(now, |problem| problem.since);
        self.problem = Some(Problem { commit, reason: reason(why), since, at: now });
    }
}

/// SHA-1 or SHA-256.
fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn reason(text: &str) -> String {
    let cut: String = text.chars().take(MAX_REASON).collect();
    printable::lines(&cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted() -> Accepted {
        Accepted { commit: "a".repeat(40), committed: 5, accepted: 7 }
    }

    #[test]
    fn a_status_is_read_as_it_was_written() {
        let mut status = Status::default();
        status.succeeded(accepted(), 9);
        status.failed(Some("b".repeat(40)), "no members\n hint: add one", 10);
        assert_eq!(Status::read(status.to_json().as_bytes()).expect("good"), status);
    }

    #[test]
    fn a_failure_keeps_what_was_accepted_and_a_success_ends_it() {
        let mut status = Status::default();
        status.succeeded(accepted(), 9);
        status.failed(None, "no network", 20);
        status.failed(None, "still no network", 30);
        assert_eq!((status.checked, &status.accepted), (Some(9), &Some(accepted())));
        let problem = status.problem.clone().expect("a problem");
        assert_eq!((problem.since, problem.at, &*problem.reason), (20, 30, "still no network"));
        status.failed(Some("c".repeat(40)), "refused", 40);
        assert_eq!(status.problem.as_ref().map(|problem| problem.since), Some(40));
        status.succeeded(accepted(), 50);
        assert_eq!((status.checked, status.problem), (Some(50), None));
    }

    #[test]
    fn text_of_the_file_cannot_steer_a_terminal() {
        let mut status = Status::default();
        status.failed(None, "\u{1b}[2J\u{202e}x\nsecond line", 1);
        let shown = Status::read(status.to_json().as_bytes()).expect("good").problem.expect("one").reason;
        assert!(!shown.contains(['\u{1b}', '\u{202e}']) && shown.ends_with("x\nsecond line"), "{shown:?}");
        let commit = r#"{"schema":1,"accepted":{"commit":"\u001b[2J","committed":1,"accepted":1}}"#;
        assert!(matches!(Status::read(commit.as_bytes()), Err(StatusError::Commit)));
        assert!(matches!(Status::read(br#"{"schema":2}"#), Err(StatusError::Schema(2))));
    }
}
