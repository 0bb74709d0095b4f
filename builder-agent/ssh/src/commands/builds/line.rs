//! One build, as it is listed.

use builds::Listed;
use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub id: u64,
    pub drv: String,
    pub member: String,
    /// `running` or `waiting`.
    pub state: &'static str,
    /// Seconds since the builder was started, or since the build began to wait.
    pub seconds: u64,
    pub requests: usize,
}

impl Line {
    pub fn of(listed: &Listed) -> Self {
        let (state, time) = match listed.running {
            Some(time) => ("running", time),
            None => ("waiting", listed.age),
        };
        Self {
            id: listed.id,
            drv: listed.drv.to_absolute_path(),
            member: listed.member.to_string(),
            state,
            seconds: time.as_secs(),
            requests: listed.requests,
        }
    }
}
