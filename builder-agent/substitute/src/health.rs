//! Pauses after failures of a source: each is longer than the one before, up to some minutes. Otherwise every question
//! of every member would wait for a source that fails.
//!
//! Many questions are asked at once, and one outage makes all of them fail. So a failure during a pause does not make
//! the pause longer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first pause. Each failure that follows without a success doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    until: Option<Instant>,
    why: String,
}

impl Health {
    /// The reason why the source is not asked now.
    #[must_use]
    pub fn pause(&self, name: &str) -> Option<String> {
        self.pause_at(name, Instant::now())
    }

    fn pause_at(&self, name: &str, now: Instant) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.until?.checked_duration_since(now)?;
        Some(format!("{name} is not asked for another {} seconds, after: {}", left.as_secs() + 1, state.why))
    }

    pub fn good(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State::default();
    }

    pub fn bad(&self, why: &str) {
        self.bad_at(why, Instant::now());
    }

    fn bad_at(&self, why: &str, now: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.until.is_some_and(|until| now < until) {
            return;
        }
        let pause = FIRST.saturating_mul(1 << state.failures.min(16)).min(LONGEST);
        state.failures += 1;
        state.until = Some(now + pause);
        state.why = why.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_success() {
        let health = Health::default();
        let mut now = Instant::now();
        assert_eq!(health.pause_at("cache", now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            health.bad_at("refused", now);
            let pause = health.pause_at("cache", now).expect("a pause");
            assert!(pause.contains(&format!("another {} seconds, after: refused", seconds + 1)), "{pause}");
            now += Duration::from_secs(seconds) + Duration::from_millis(1);
            assert_eq!(health.pause_at("cache", now), None);
        }
        health.bad_at("refused", now);
        health.good();
        assert_eq!(health.pause_at("cache", now), None);
    }

    #[test]
    fn questions_that_fail_together_are_one_failure() {
        let (health, now) = (Health::default(), Instant::now());
        for _ in 0..40 {
            health.bad_at("refused", now);
        }
        assert_eq!(health.pause_at("cache", now + FIRST + Duration::from_millis(1)), None);
    }
}
