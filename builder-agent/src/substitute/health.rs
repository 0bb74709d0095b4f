//! A source in trouble is left alone for a while: longer each time, up to some minutes. Otherwise every question of every
//! member would wait for it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The first pause. Twice as long after each failure that follows without success.
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
    /// Why it is not asked now.
    #[must_use]
    pub fn pause(&self, name: &str) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = state.until?.checked_duration_since(Instant::now())?;
        Some(format!("{name} is not asked for another {} seconds, after: {}", left.as_secs() + 1, state.why))
    }

    pub fn good(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State::default();
    }

    pub fn bad(&self, why: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = FIRST.saturating_mul(1 << state.failures.min(16)).min(LONGEST);
        state.failures += 1;
        state.until = Some(Instant::now() + pause);
        state.why = why.to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_success() {
        let health = Health::default();
        assert_eq!(health.pause("cache"), None);
        for _ in 0..40 {
            health.bad("refused");
        }
        let pause = health.pause("cache").expect("a pause");
        assert!(pause.contains("another 300 seconds, after: refused"), "{pause}");
        health.good();
        assert_eq!(health.pause("cache"), None);
    }
}
