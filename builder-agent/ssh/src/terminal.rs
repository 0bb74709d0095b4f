//! The client's end of a channel that runs a command: its output, its input, and whether it is still connected.

use std::borrow::Cow;
use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use daemon::{Reader, Running, Writer};

/// The only type of extended data (RFC 4254, 5.2).
pub(crate) const STDERR: u32 = 1;

/// Ctrl-C and Ctrl-D, as a terminal in raw mode sends them.
pub(crate) const INTERRUPT: u8 = 3;
pub(crate) const END: u8 = 4;

/// Widest terminal that tables are made for; wider lines are hard to read, and the client chooses the number.
const MAX_COLUMNS: usize = 500;

/// A colour for the state of something, by the number that terminals have for it (ECMA-48, SGR).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// It is broken, or keeps people from their work.
    Red = 31,
    /// It works.
    Green = 32,
    /// It waits, or somebody should look at it.
    Yellow = 33,
}

/// What the client said about its screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Screen {
    /// Characters in a line of the client's terminal; `None` if it asked for no terminal.
    pub columns: Option<usize>,
    /// The terminal has no colours, by its kind or by the wish of its user.
    plain: bool,
}

impl Screen {
    /// The client has a terminal of this kind.
    pub fn open(&mut self, term: &str, columns: u32) {
        self.plain |= matches!(term, "" | "dumb");
        self.resize(columns);
    }

    /// The terminal has another width. Zero means that the client does not know it.
    pub fn resize(&mut self, columns: u32) {
        let columns = if columns == 0 { 80 } else { columns as usize };
        self.columns = Some(columns.min(MAX_COLUMNS));
    }

    /// Sets what one environment variable says about the screen; false if it says nothing (<https://no-color.org>).
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        let known = name == "NO_COLOR";
        self.plain |= known && !value.is_empty();
        known
    }

    pub fn is_terminal(self) -> bool {
        self.columns.is_some()
    }

    pub fn has_colors(self) -> bool {
        self.is_terminal() && !self.plain
    }

    /// The text in this colour, if the terminal has colours.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        match self.has_colors() {
            true => format!("\u{1b}[{}m{text}\u{1b}[0m", colour as u8),
            false => text.to_owned(),
        }
    }

    /// The two ways to the client. A terminal has one: there messages stand between the lines of the output, as written.
    pub fn writers(self, channel: &Channel<Msg>) -> (Writer<'static>, Writer<'static>) {
        let stderr: Writer<'static> = match self.is_terminal() {
            true => Box::new(channel.make_writer()),
            false => Box::new(channel.make_writer_ext(Some(STDERR))),
        };
        (Box::new(channel.make_writer()), stderr)
    }

    /// A piece of a log, which a builder has written. On a terminal it has no control characters: a builder must not move
    /// the cursor of whoever reads its log. Elsewhere it is unchanged.
    pub fn log(self, piece: &[u8]) -> Cow<'_, [u8]> {
        match self.is_terminal() {
            true => self.lines(&printable::lines(&String::from_utf8_lossy(piece))).into_bytes().into(),
            false => piece.into(),
        }
    }

    /// Text with the line ends that the client needs: its own terminal is in raw mode, where a newline does not return to
    /// the first column.
    pub fn lines(self, text: &str) -> String {
        if self.is_terminal() { text.replace('\n', "\r\n") } else { text.to_owned() }
    }
}

/// Where the client's input goes.
enum Input<'a> {
    /// To the command, which has the channel to itself.
    Channel(&'a mut Channel<Msg>),
    /// To the shell, which drops the command when the client hangs up or presses Ctrl-C.
    Shell,
}

/// The terminal of a command. A command either reads the client's input or waits until the client has closed the
/// connection, because both come from one stream of messages.
pub(crate) struct Terminal<'a> {
    input: Input<'a>,
    pub screen: Screen,
    pub stdout: Writer<'a>,
    pub stderr: Writer<'a>,
}

impl<'a> Terminal<'a> {
    pub fn of(channel: &'a mut Channel<Msg>, screen: Screen) -> Self {
        let (stdout, stderr) = screen.writers(channel);
        Self { input: Input::Channel(channel), screen, stdout, stderr }
    }

    /// For a command that the shell runs.
    pub fn in_shell(channel: &Channel<Msg>, screen: Screen) -> Self {
        let (stdout, stderr) = screen.writers(channel);
        Self { input: Input::Shell, screen, stdout, stderr }
    }

    /// For a command that only prints `text`. Fails if the client reads nothing for as long as `stall`.
    pub async fn print(self, text: &str, stall: Duration) -> ExitStatus {
        print(self.stdout, self.screen, text, stall).await
    }

    /// One line on stderr, which says why the command failed.
    pub async fn fail(self, why: &str, stall: Duration) -> ExitStatus {
        fail(self.stderr, self.screen, why, stall).await
    }

    /// Lines on stderr, before the command. A client that is gone, or does not read, is the command's to notice.
    pub async fn warn(&mut self, lines: &[String], stall: Duration) {
        let mut stderr = PatientWriter::new(&mut self.stderr, stall);
        for line in lines {
            let line = self.screen.lines(&format!("warning: {line}\n"));
            let _ = stderr.write_all(line.as_bytes()).await;
        }
    }

    /// For a command that reads: stdin, stdout, stderr.
    pub fn with_stdin(self) -> (Reader<'a>, Writer<'a>, Writer<'a>) {
        let stdin: Reader<'a> = match self.input {
            Input::Channel(channel) => Box::new(channel.make_reader()),
            Input::Shell => Box::new(tokio::io::empty()),
        };
        (stdin, self.stdout, self.stderr)
    }

    /// For a command that does not read: stdout, stderr, and a future that is ready when the client has closed the
    /// connection or, on a terminal, has pressed Ctrl-C or Ctrl-D. The end of a client's input does not count: `ssh -n`
    /// sends none.
    pub fn with_hung_up(self) -> (Writer<'a>, Writer<'a>, Running<'a, ()>) {
        let (input, on_terminal) = (self.input, self.screen.is_terminal());
        let hung_up = async move {
            let Input::Channel(channel) = input else { return std::future::pending().await };
            loop {
                match channel.wait().await {
                    None | Some(ChannelMsg::Close) => return,
                    Some(ChannelMsg::Data { data })
                        if on_terminal && data.iter().any(|byte| matches!(*byte, INTERRUPT | END)) =>
                    {
                        return;
                    }
                    Some(_) => {}
                }
            }
        };
        (self.stdout, self.stderr, Box::pin(hung_up))
    }
}

/// Writes the output of a command that only prints.
pub(crate) async fn print(stdout: Writer<'_>, screen: Screen, text: &str, stall: Duration) -> ExitStatus {
    let mut stdout = PatientWriter::new(stdout, stall);
    let text = screen.lines(text);
    let written = stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
    if written { ExitStatus::DONE } else { ExitStatus::FAILED }
}

/// Writes one line that says why a command failed.
pub(crate) async fn fail(stderr: Writer<'_>, screen: Screen, why: &str, stall: Duration) -> ExitStatus {
    let mut stderr = PatientWriter::new(stderr, stall);
    // The client may be gone; the exit status is the same.
    let _ = stderr.write_all(screen.lines(&format!("error: {why}\n")).as_bytes()).await;
    ExitStatus::FAILED
}

/// The exit status that a client's shell shows in `$?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub u32);

impl ExitStatus {
    pub const DONE: Self = Self(0);
    pub const FAILED: Self = Self(1);
    /// That of `ssh` when it has lost the session.
    pub const LOST: Self = Self(255);
    /// The status of a shell that does not know the command.
    pub const NOT_FOUND: Self = Self(127);
}
