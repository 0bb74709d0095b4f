//! The time limit of one attempt for work on the host: writing files for the sandbox, and checking outputs.
//!
//! A derivation decides how much of that work there is. So it counts as building: it uses the build's slot and the
//! build's time, and ends when the build is cancelled.

use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use sandbox::{Cancel, SandboxError};

use super::Failure;
use super::failure::sandbox_failed;
use super::limits::Origins;

/// Says whether the work may go on.
pub(super) struct Watch<'a> {
    drv: &'a StorePath,
    cancel: &'a Cancel,
    /// The deadline, and the whole time limit.
    until: Option<(Instant, Duration)>,
    set_by: &'a Origins,
}

impl<'a> Watch<'a> {
    /// Starts the time limit `wall`.
    pub fn start(
        drv: &'a StorePath,
        cancel: &'a Cancel,
        wall: Option<Duration>,
        set_by: &'a Origins,
    ) -> Self {
        let until = wall.and_then(|wall| Some((Instant::now().checked_add(wall)?, wall)));
        Self { drv, cancel, until, set_by }
    }

    /// The time limit that another program has started: its end, and the whole of it.
    pub fn started_before(
        drv: &'a StorePath,
        cancel: &'a Cancel,
        until: Option<(Instant, Duration)>,
        set_by: &'a Origins,
    ) -> Self {
        Self { drv, cancel, until, set_by }
    }

    /// For [`Watch::started_before`].
    pub fn until(&self) -> Option<(Instant, Duration)> {
        self.until
    }

    /// The caller must call this every few milliseconds.
    pub fn go_on(&self) -> Result<(), Failure> {
        if self.cancel.is_cancelled() {
            return Err(Failure::cancelled(self.drv));
        }
        match self.until {
            Some((until, wall)) if Instant::now() >= until => Err(self.late(wall)),
            _ => Ok(()),
        }
    }

    /// The remaining time.
    pub fn left(&self) -> Option<Duration> {
        self.until.map(|(until, _)| until.saturating_duration_since(Instant::now()))
    }

    /// Rewrites a timeout of the sandbox, whose limit was the remaining time, to name the whole time limit.
    pub fn whole(&self, error: SandboxError) -> SandboxError {
        match (error, self.until) {
            (SandboxError::Timeout { .. }, Some((_, after))) => SandboxError::Timeout { after },
            (error, _) => error,
        }
    }

    fn late(&self, after: Duration) -> Failure {
        sandbox_failed(self.drv, &[], &SandboxError::Timeout { after }, self.set_by)
    }
}

/// Work that is counted in steps of about the same length.
pub(super) struct Steps<'a> {
    watch: &'a Watch<'a>,
    taken: u64,
}

impl<'a> Steps<'a> {
    /// Steps between two checks of the watch: well under a millisecond of the work that is counted here.
    const GLANCE: u64 = 4096;

    pub fn new(watch: &'a Watch<'a>) -> Self {
        Self { watch, taken: 0 }
    }

    pub fn take(&mut self, steps: usize) -> Result<(), Failure> {
        let before = self.taken;
        self.taken = before.saturating_add(steps as u64);
        match before / Self::GLANCE == self.taken / Self::GLANCE {
            true => Ok(()),
            false => self.watch.go_on(),
        }
    }

    pub fn taken(&self) -> u64 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Cause, Limit};

    #[test]
    fn work_on_the_host_ends_with_the_builds_time_and_when_nobody_wants_it() {
        let drv = StorePath::from_parts([1; 20], "x.drv").expect("a path");
        let (cancel, set_by) = (Cancel::new(), Origins::default());
        let over = Watch::start(&drv, &cancel, Some(Duration::ZERO), &set_by);
        assert_eq!(over.go_on().expect_err("late").cause, Cause::Limit(Limit::Wall));
        let watch = Watch::start(&drv, &cancel, None, &set_by);
        let mut steps = Steps::new(&watch);
        steps.take(1).expect("in time");
        cancel.cancel();
        assert!(steps.take(10_000).expect_err("cancelled").is_cancelled());
    }
}
