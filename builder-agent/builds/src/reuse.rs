//! Results of earlier builds with the same key, by any member.
//!
//! A success gives its outputs to every request with the same key. A failure of the build itself is repeated for a
//! while, unless the client asks to try again. The end at a time limit is repeated for as long, to those who want that
//! (`reuse-build-timeouts`) and would have given the build no more time. Other limits, cancelled builds and failures of the
//! box are never reused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::BuildStatus;
use nix_derivation::StorePath;
use store::{BuildRecord, RecordEnd, RecordedOutput, Store, TimeLimit};

use super::failure::{Cause, Limit};
use super::limits::RunLimits;
use super::{BuildKey, Failure};
use members::settings::{Effective, Level};

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
    /// The ends at a time limit: on the whole build, and on silence.
    timeouts: [Option<Arc<BuildRecord>>; 2],
}

impl Known {
    /// The current records. Answered from memory.
    #[must_use]
    pub fn look(store: &Store, key: &BuildKey) -> Self {
        let at = |limit| store.result(&key.of_timeout(limit));
        Self {
            success: store.result(key.bytes()),
            failure: store.result(&key.of_failure()),
            timeouts: [at(TimeLimit::Wall), at(TimeLimit::Silence)],
        }
    }

    /// Whether nothing has been recorded between `self` and `other`.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let same = |a: &Option<Arc<BuildRecord>>, b: &Option<Arc<BuildRecord>>| match (a, b) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let both = self.timeouts.iter().zip(&other.timeouts);
        same(&self.success, &other.success)
            && same(&self.failure, &other.failure)
            && both.into_iter().all(|(a, b)| same(a, b))
    }

    /// Whether a failure is recorded, which [`find`] may return.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Whether an end at a time limit is recorded, which [`timed_out`] may return.
    #[must_use]
    pub fn has_timed_out(&self) -> bool {
        self.timeouts.iter().any(Option::is_some)
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
    let age = age_within(record, failures)?;
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

/// The end of an earlier build with this key at a time limit, if these settings make it the answer: then a request with
/// these `limits` would have given it no more time. `kept` is for how long an end is reused. `mine` is the derivation of
/// the request.
#[must_use]
pub fn timed_out(
    known: &Known,
    mine: &StorePath,
    limits: &RunLimits,
    settings: &Effective,
    kept: Duration,
) -> Option<Earlier> {
    let level = settings.reuse_build_timeouts?;
    known.timeouts.iter().flatten().find_map(|record| {
        let RecordEnd::TimedOut { limit, seconds, log } = &record.end else { return None };
        let (own, set_by, cause, silence) = match limit {
            TimeLimit::Wall => (limits.of_sandbox.wall?, &limits.set_by.wall, Limit::Wall, ""),
            TimeLimit::Silence => {
                (limits.of_sandbox.silent?, &limits.set_by.silent, Limit::Silence, " of silence")
            }
        };
        let age = age_within(record, kept).filter(|_| own <= Duration::from_secs(*seconds))?;
        let variable = match level <= Level::Ssh && settings.allow_override && settings.settings_from_ssh_env {
            true => {
                ", or BARN_REUSE_BUILD_TIMEOUTS=false for the connection \
                     (NIX_SSHOPTS='-o SetEnv=BARN_REUSE_BUILD_TIMEOUTS=false')"
            }
            false => "",
        };
        let message = format!(
            "building of '{}' timed out after {seconds} seconds{silence}: an earlier build, which the box did of the same \
             derivation with the same inputs {}\n\
             note: it is not built again, because `reuse-build-timeouts` is `true` in {}, and the limit of this request is \
             {} seconds{silence} ({set_by})\n\
             hint: to build it again give it more than {seconds} seconds ({}), or set `reuse-build-timeouts = false` in \
             {}{variable}, or wait {}",
            mine.to_absolute_path(),
            ago(age),
            level.words(),
            own.as_secs(),
            set_by.ask(),
            level.words(),
            words(kept - age)
        );
        let failure = Failure::new(BuildStatus::TimedOut, message).because(Cause::Limit(cause));
        Some(Earlier::Failed { failure, log: log.clone() })
    })
}

/// The record of a build with this key that `failure` has ended at a time limit, and where it is kept. `None`: it was no
/// such end, or a longer limit is remembered already, which answers more requests.
#[must_use]
pub fn end_at_time_limit(
    store: &Store,
    key: &BuildKey,
    failure: &Failure,
    limits: &RunLimits,
    (log, kept): (Option<&String>, Duration),
) -> Option<([u8; 32], RecordEnd)> {
    let (limit, after) = match failure.cause {
        Cause::Limit(Limit::Wall) => (TimeLimit::Wall, limits.of_sandbox.wall?),
        Cause::Limit(Limit::Silence) => (TimeLimit::Silence, limits.of_sandbox.silent?),
        _ => return None,
    };
    let (key, seconds) = (key.of_timeout(limit), after.as_secs());
    let is_longer = |record: &Arc<BuildRecord>| {
        matches!(record.end, RecordEnd::TimedOut { seconds: before, .. } if before > seconds)
            && age_within(record, kept).is_some()
    };
    match store.result(&key).is_some_and(|record| is_longer(&record)) {
        true => None,
        false => Some((key, RecordEnd::TimedOut { limit, seconds, log: log.cloned() })),
    }
}

/// The age of a record that is not as old as `kept`.
fn age_within(record: &BuildRecord, kept: Duration) -> Option<Duration> {
    // After the clock was set back, a record can lie in the future; it is not reused then.
    let age = u64::try_from(now() - record.time).ok().map(Duration::from_secs)?;
    (age < kept).then_some(age)
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
    use crate::key::key_test::{ENVELOPE, recipe};
    use crate::key::{BuildKey, SandboxIdentity};
    use crate::limits::Origins;
    use sandbox::Limits;
    use store::{ClosureInfo, StoreConfig};

    #[test]
    fn only_the_end_at_a_time_limit_is_remembered_as_one() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let store = Store::open(dir.path(), StoreConfig::default()).expect("a store");
        let key = BuildKey::of(
            &recipe(),
            &ClosureInfo { paths: BTreeMap::new() },
            SandboxIdentity::default(),
            &ENVELOPE,
        );
        let (wall, silent) = (Some(Duration::from_secs(60)), Some(Duration::from_secs(5)));
        let of_sandbox =
            Limits { vcpus: 1, memory_mib: 1, wall, silent, log_bytes: 1, output_bytes: 1, processes: 1 };
        let limits = RunLimits { of_sandbox, set_by: Origins::default() };
        let end = |cause| {
            let failure = Failure::new(BuildStatus::TimedOut, "").because(cause);
            end_at_time_limit(&store, &key, &failure, &limits, (None, Duration::from_secs(9)))
        };
        for (of, limit, seconds) in
            [(Limit::Wall, TimeLimit::Wall, 60), (Limit::Silence, TimeLimit::Silence, 5)]
        {
            let end = end(Cause::Limit(of));
            assert_eq!(end, Some((key.of_timeout(limit), RecordEnd::TimedOut { limit, seconds, log: None })));
        }
        let limits = [
            Limit::Log,
            Limit::Output,
            Limit::Memory,
            Limit::Month,
            Limit::Ticket,
            Limit::Store,
            Limit::OfRun,
        ];
        let others = [Cause::Build, Cause::Cancelled, Cause::Sandbox, Cause::Box, Cause::Other];
        for cause in limits.map(Cause::Limit).into_iter().chain(others) {
            assert_eq!(end(cause), None, "{cause:?}");
        }
    }

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
