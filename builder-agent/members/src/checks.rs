//! When the roster was last compared with its repository: follows `roster-status.json`, which the synchroniser writes
//! beside `roster.json`, and decides whether the roster is too old.
//!
//! A box whose synchroniser fails, or is kept from the repository by somebody on the line, does not hear of removals.
//! With `roster-max-age-seconds`, such a box lets in maintainers only after that time, since maintainers can repair it.
//! Not here: what a login is (`ssh::login`), and sessions and builds that run already, which go on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::roster::status::MAX_STATUS;
use ::roster::{Role, Status, date};
use tokio::sync::watch;

use super::Member;
use super::followed::{self, Version};

/// A check that is this much ahead of the clock counts as one of now. With more, the clock was set back, and the age of
/// the roster is unknown. A clock that only drifts stays within it between two checks.
const AHEAD: Duration = Duration::from_secs(300);

/// The last report of the synchroniser.
#[derive(Debug, Clone)]
pub struct Checks {
    report: watch::Receiver<Option<Arc<Status>>>,
    max_age: Option<Duration>,
}

impl Checks {
    /// Reports that never come: for an agent without a synchroniser.
    #[must_use]
    pub fn none() -> Self {
        Self { report: watch::channel(None).1, max_age: None }
    }

    /// Follows the file beside this `roster.json`.
    #[must_use]
    pub fn follow(roster: &Path, max_age: Option<Duration>) -> Self {
        let path = Status::path_beside(roster);
        let seen = Version::of(&path);
        let (sender, report) = watch::channel(load(&path));
        tokio::spawn(async move {
            let load = || drop(sender.send_replace(load(&path)));
            followed::each_change(&path, seen, sender.closed(), || false, load).await;
        });
        Self { report, max_age }
    }

    /// The last report; `None` if there is none that can be read.
    #[must_use]
    pub fn report(&self) -> Option<Arc<Status>> {
        self.report.borrow().clone()
    }

    /// The reason why only maintainers are let in, if that is so.
    #[must_use]
    pub fn too_old(&self) -> Option<String> {
        let checked = self.report.borrow().as_ref().and_then(|report| report.checked);
        too_old(checked, self.max_age?, date::now())
    }

    /// The reason why this member is not let in.
    #[must_use]
    pub fn closed_to(&self, member: &Member) -> Option<String> {
        if member.role == Role::Maintainer { None } else { self.too_old() }
    }
}

fn too_old(checked: Option<u64>, max_age: Duration, now: u64) -> Option<String> {
    let seconds = max_age.as_secs();
    let why = match checked {
        None => "was never compared with its repository".to_owned(),
        Some(at) if at > now.saturating_add(AHEAD.as_secs()) => {
            format!("was compared with its repository at {}, which is in the future", date::shown(at))
        }
        Some(at) if now.saturating_sub(at) > seconds => {
            format!("was last compared with its repository at {}", date::shown(at))
        }
        Some(_) => return None,
    };
    Some(format!(
        "the roster {why}, and roster-max-age-seconds is {seconds}: until that works again, this box lets in maintainers only"
    ))
}

fn load(path: &Path) -> Option<Arc<Status>> {
    let status = match followed::read(path, MAX_STATUS) {
        Ok(bytes) => Status::read(&bytes).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => Err(error.to_string()),
    };
    match status {
        Ok(status) => Some(Arc::new(status)),
        Err(error) => {
            tracing::error!(path = %path.display(), error, "the status of the roster cannot be read");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roster_is_too_old_after_its_time_and_when_nobody_knows_its_age() {
        let is = |checked, now| too_old(checked, Duration::from_secs(600), now).is_some();
        assert!(!is(Some(1000), 1000) && !is(Some(1000), 1600) && is(Some(1000), 1601));
        assert!(is(None, 1000));
        // A clock that drifts, and one that was set back.
        assert!(!is(Some(1300), 1000) && is(Some(1301), 1000));
    }
}
