//! Results of earlier builds with the same key, by any member.
//!
//! A success gives its outputs to every request with the same key. A failure of the build itself is repeated for a
//! while, unless the client asks to try again. Limits, cancelled builds and failures of the box are never reused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::BuildStatus;
use nix_derivation::StorePath;
use store::{BuildRecord, RecordEnd, RecordedOutput, Store};

use super::{BuildKey, Failure};

/// The variable with which people who read a reused failure can try again without waiting.
pub const RETRY_VARIABLE: &str = "BARNRAISER_REUSE_FAILURES";

/// The result of an earlier build.
#[derive(Debug)]
pub enum Earlier {
    /// The build succeeded; the outputs can be adopted.
    Built { outputs: BTreeMap<String, RecordedOutput>, log: Option<String> },
    /// The build would fail again. The message says so, and how to try again.
    Failed { failure: Failure, log: Option<String> },
}

/// The records of one key at one moment.
#[derive(Debug, Clone, Default)]
pub struct Known {
    success: Option<Arc<BuildRecord>>,
    failure: Option<Arc<BuildRecord>>,
}

impl Known {
    /// The current records. Answered from memory.
    #[must_use]
    pub fn look(store: &Store, key: &BuildKey) -> Self {
        Self { success: store.result(key.bytes()), failure: store.result(&key.of_failure()) }
    }

    /// Whether nothing has been recorded between `self` and `other`.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<BuildRecord>>, b: &Option<Arc<BuildRecord>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        same(&self.success, &other.success) && same(&self.failure, &other.failure)
    }

    /// Whether a failure is recorded, which [`find`] may return.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }
}

/// The result of an earlier build with this key. `failures` is for how long failures are reused; zero means never.
/// `mine` is the derivation of the request.
#[must_use]
pub fn find(known: &Known, mine: &StorePath, failures: Duration) -> Option<Earlier> {
    if let Some(success) = &known.success {
        return success_of(success);
    }
    let record = known.failure.as_ref()?;
    let RecordEnd::Failed { message, log, .. } = &record.end else { return None };
    // After the clock was set back, a failure can lie in the future; it is not reused then.
    let age = u64::try_from(now() - record.time).ok().map(Duration::from_secs)?;
    if age >= failures {
        return None;
    }
    let failure = Failure::new(BuildStatus::CachedFailure, message.clone()).about(&record.drv, mine);
    let message = format!(
        "{}\nnote: this failure is from an earlier build: the box built the same derivation with the same inputs {}\n\
         hint: to build it again use `--rebuild` (`--check`), or set {RETRY_VARIABLE}=0 for the connection \
         (NIX_SSHOPTS='-o SetEnv={RETRY_VARIABLE}=0'), or wait {}",
        failure.message,
        ago(age),
        words(failures - age)
    );
    Some(Earlier::Failed { failure: Failure { message, ..failure }, log: log.clone() })
}

/// As [`find`], for successes only.
#[must_use]
pub fn built(store: &Store, key: &BuildKey) -> Option<Earlier> {
    success_of(&*store.result(key.bytes())?)
}

fn success_of(record: &BuildRecord) -> Option<Earlier> {
    let RecordEnd::Built { outputs, log } = &record.end else { return None };
    Some(Earlier::Built { outputs: outputs.clone(), log: log.clone() })
}

fn ago(age: Duration) -> String {
    if age.as_secs() < 2 { "a moment ago".into() } else { format!("{} ago", words(age)) }
}

/// A duration as people say it.
fn words(time: Duration) -> String {
    let seconds = time.as_secs();
    let (n, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0, 1, 59, 119, 120, 7199, 7200, 200_000].map(|s| words(Duration::from_secs(s)));
        assert_eq!(
            said,
            [
                "0 seconds",
                "1 second",
                "59 seconds",
                "119 seconds",
                "2 minutes",
                "119 minutes",
                "2 hours",
                "2 days"
            ]
        );
    }
}
