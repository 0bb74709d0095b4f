//! The client's end of a channel that runs a command: its output, its input, and whether it is still connected.

use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use daemon::{Reader, Running, Writer};

/// The only type of extended data (RFC 4254, 5.2).
pub(crate) const STDERR: u32 = 1;

/// The terminal of a command. A command either reads the client's input or waits until the client has closed the
/// connection, because both come from one stream of messages.
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

    /// For a command that only prints `text`. Fails if the client reads nothing for as long as `stall`.
    pub async fn print(self, text: &str, stall: Duration) -> ExitStatus {
        let mut stdout = PatientWriter::new(self.stdout, stall);
        let written = stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
        if written { ExitStatus::DONE } else { ExitStatus::FAILED }
    }

    /// One line on stderr, which says why the command failed.
    pub async fn fail(self, why: &str, stall: Duration) -> ExitStatus {
        fail(self.stderr, why, stall).await
    }

    /// Lines on stderr, before the command. A client that is gone, or does not read, is the command's to notice.
    pub async fn warn(&mut self, lines: &[String], stall: Duration) {
        let mut stderr = PatientWriter::new(&mut self.stderr, stall);
        for line in lines {
            let _ = stderr.write_all(format!("warning: {line}\n").as_bytes()).await;
        }
    }

    /// For a command that reads: stdin, stdout, stderr.
    pub fn with_stdin(self) -> (Reader<'a>, Writer<'a>, Writer<'a>) {
        (Box::new(self.channel.make_reader()), self.stdout, self.stderr)
    }

    /// For a command that does not read: stdout, stderr, and a future that is ready when the client has closed the
    /// connection. The end of a client's input does not count: `ssh -n` sends none.
    pub fn with_hung_up(self) -> (Writer<'a>, Writer<'a>, Running<'a, ()>) {
        let channel = self.channel;
        let hung_up = async move { while !matches!(channel.wait().await, None | Some(ChannelMsg::Close)) {} };
        (self.stdout, self.stderr, Box::pin(hung_up))
    }
}

/// Writes one line that says why a command failed.
pub(crate) async fn fail(stderr: Writer<'_>, why: &str, stall: Duration) -> ExitStatus {
    let mut stderr = PatientWriter::new(stderr, stall);
    // The client may be gone; the exit status is the same.
    let _ = stderr.write_all(format!("error: {why}\n").as_bytes()).await;
    ExitStatus::FAILED
}

/// The exit status that a client's shell shows in `$?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub u32);

impl ExitStatus {
    pub const DONE: Self = Self(0);
    pub const FAILED: Self = Self(1);
    /// The status of a shell that does not know the command.
    pub const NOT_FOUND: Self = Self(127);
}
