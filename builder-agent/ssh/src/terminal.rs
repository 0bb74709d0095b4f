//! The far end of a channel that runs a command: what the client reads, what it sends, and whether it is still there.

use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use daemon::{Reader, Running, Writer};

/// The one kind of extended data there is (RFC 4254, 5.2).
pub(crate) const STDERR: u32 = 1;

/// What a command is run on. A command either reads what the client sends or waits for its end; there is one stream of
/// messages to take both from.
pub(crate) struct Terminal<'a> {
    channel: &'a mut Channel<Msg>,
    pub stdout: Writer<'a>,
    pub stderr: Writer<'a>,
}

impl<'a> Terminal<'a> {
    pub fn of(channel: &'a mut Channel<Msg>) -> Self {
        let stdout = Box::new(channel.make_writer());
        let stderr = Box::new(channel.make_writer_ext(Some(STDERR)));
        Self { channel, stdout, stderr }
    }

    /// For a command that only prints `text`. A client that takes nothing for as long as `stall` has failed.
    pub async fn print(self, text: &str, stall: Duration) -> ExitStatus {
        let mut stdout = PatientWriter::new(self.stdout, stall);
        let written = stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
        if written { ExitStatus::DONE } else { ExitStatus::FAILED }
    }

    /// For a command that reads: stdin, stdout, stderr.
    pub fn with_stdin(self) -> (Reader<'a>, Writer<'a>, Writer<'a>) {
        (Box::new(self.channel.make_reader()), self.stdout, self.stderr)
    }

    /// For a command that does not: stdout, stderr, and what is ready when the client is gone. The end of what a client
    /// sends is not the end of the client: `ssh -n` sends nothing.
    pub fn with_hung_up(self) -> (Writer<'a>, Writer<'a>, Running<'a, ()>) {
        let channel = self.channel;
        let hung_up = async move { while !matches!(channel.wait().await, None | Some(ChannelMsg::Close)) {} };
        (self.stdout, self.stderr, Box::pin(hung_up))
    }
}

/// What a client's shell sees in `$?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub u32);

impl ExitStatus {
    pub const DONE: Self = Self(0);
    pub const FAILED: Self = Self(1);
    /// As of a shell that does not know the command.
    pub const NOT_FOUND: Self = Self(127);
}
