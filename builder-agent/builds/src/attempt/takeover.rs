//! An attempt in the middle, which another program has paused.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use sandbox::{Moment, Paused, Received, takeover};
use serde::{Deserialize, Serialize};

use crate::log::{LogSource, LogWriter, WrittenLog, begun_before};

/// What an attempt needs to go on, besides its sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    /// The end of the attempt's time, and the whole of it.
    pub until: Option<(Moment, Duration)>,
    pub inputs_prepared: Option<Duration>,
    pub log: WrittenLog,
}

/// An attempt that goes on here. Dropping it ends its sandbox.
pub struct TakenOver {
    pub(super) sandbox: takeover::TakenOver,
    pub(super) until: Option<(Moment, Duration)>,
    pub(super) inputs_prepared: Option<Duration>,
}

impl TakenOver {
    /// Takes the sandbox, and the log in this file. On an error the sandbox has ended.
    pub fn claim(
        paused: Paused,
        log: RawFd,
        received: &mut Received,
    ) -> io::Result<(Self, LogWriter, LogSource)> {
        let sandbox = takeover::TakenOver::claim(paused, received)?;
        let log = received.take(log)?;
        let Written { until, inputs_prepared, log: written } = serde_json::from_str(sandbox.host())?;
        let (writer, source) = begun_before(File::from(log), written)?;
        Ok((Self { sandbox, until, inputs_prepared }, writer, source))
    }
}
