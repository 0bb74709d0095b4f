//! Build logs that clients upload. No protocol has an operation to read one: the command `ssh <box> log` does that
//! (`ssh::commands::log`).

use std::io;
use std::sync::Arc;

use nix_derivation::StorePath;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::worker::Connection;

use super::Session;
use super::request_error::RequestError;
use super::transfer::{Sink, feed};
use builds::kept::{ArrivalError, Arriving, KeptLogs};

impl Session {
    /// Keeps the log that follows, for this member alone; other members read only logs of this box's own builds.
    pub(super) async fn add_log<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        drv: StorePath,
    ) -> Result<(), RequestError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let (kept, member) = (self.agent.realiser.kept.clone(), self.member.id.clone());
        let (max, full) = (self.agent.config.limits.max_log_bytes, drv.to_absolute_path());
        let payer = self.member.payer().id.clone();
        let open = move || {
            let arriving = kept.arriving(&payer, max)?;
            Ok(Log { arriving, kept, member, drv })
        };
        feed(&self.desk, conn.body(), open).await?.map_err(|error| {
            if let ArrivalError::Box(error) = &error {
                tracing::error!(%error, "cannot keep a log");
            }
            RequestError::Refused(format!("cannot keep the log of '{full}': {error}"))
        })
    }
}

/// A log that is being received.
struct Log {
    arriving: Arriving,
    kept: Arc<KeptLogs>,
    member: Arc<str>,
    drv: StorePath,
}

impl Sink for Log {
    type Done = ();
    type Error = ArrivalError;
    const TAKES_ROOM: bool = false;

    fn no_room(error: store::ImportError) -> ArrivalError {
        io::Error::other(error).into()
    }

    fn push(&mut self, bytes: &[u8]) -> Result<bool, ArrivalError> {
        self.arriving.push(bytes).map(|()| true)
    }

    fn memory(&self) -> u64 {
        0
    }

    fn finish(self) -> Result<(), ArrivalError> {
        Ok(self.kept.add(&self.member, &self.drv, self.arriving)?)
    }
}
