//! Build logs that clients bring. Reading one is no operation of the protocol: that is `ssh <box> log` (`ssh::log`).

use std::io::{BufRead, ErrorKind};

use nix_derivation::StorePath;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::worker::Connection;

use super::Session;
use super::transfer::{Trouble, feed};

impl Session {
    /// Keeps the log that follows for this member; what others read comes from builds of the box alone.
    pub(super) async fn add_log<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        drv: StorePath,
    ) -> Result<(), Trouble>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let (kept, member) = (self.house.kept.clone(), self.member.id.clone());
        let (max, full) = (self.house.config.limits.max_log_bytes, drv.to_absolute_path());
        let work = move |mut log: &mut dyn BufRead| kept.add(&member, &drv, &mut log, max);
        feed(conn.body(), work).await?.map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge => Trouble::Refused(format!(
                "cannot keep the log of '{full}': it is longer than {max} bytes (the box's `limits.max-log-mib`)"
            )),
            _ => {
                tracing::error!(%error, "cannot keep a log");
                Trouble::Refused(format!("cannot keep the log of '{full}': {error}"))
            }
        })
    }
}
