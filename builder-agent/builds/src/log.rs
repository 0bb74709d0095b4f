//! The log of one running build: written by its sandbox, read by every client that waits for it, from the start.
//!
//! The log is in an unnamed file, so that a log of any allowed size costs no memory and vanishes with its last reader.
//! Builders may write anything: bytes stay as they are, text is cut into lines of bounded length, and control codes are
//! left to the client's terminal, as in Nix.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sandbox::{Bytes, text};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::failure::TAIL_LINES;

/// Longer lines are shown in pieces. A progress bar without newlines would otherwise never be shown, or fill memory.
pub const MAX_LINE: usize = 8 * 1024;
/// Longest message to Nix (`@nix {...}`). A piece of a message is useless, so every reader of the log holds a message
/// until it is whole; stdenv's messages have about a hundred bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// The beginning of a message. A line that begins so is never cut.
const MESSAGE: &[u8] = b"@nix {";
/// Bytes read from the file at once.
const CHUNK: usize = 32 * 1024;

/// The length of the log so far, and whether it is complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    len: u64,
    complete: bool,
}

/// The writing end. Dropping it completes the log.
#[derive(Debug)]
pub struct LogWriter {
    file: Arc<File>,
    progress: watch::Sender<Progress>,
    lines: Lines,
    tail: VecDeque<String>,
}

/// Makes readers. The entry of the running build holds it.
#[derive(Debug, Clone)]
pub struct LogSource {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

/// One reader's position in a log.
#[derive(Debug)]
pub struct LogReader {
    source: LogSource,
    at: u64,
}

/// A new, empty log in `folder`.
pub fn create(folder: &Path) -> io::Result<(LogWriter, LogSource)> {
    let file = Arc::new(tempfile::tempfile_in(folder)?);
    let (progress, receiver) = watch::channel(Progress::default());
    let source = LogSource { file: file.clone(), progress: receiver };
    Ok((LogWriter { file, progress, lines: Lines::default(), tail: VecDeque::new() }, source))
}

/// A log of a build that another program goes on with, besides its file.
#[derive(Debug, Serialize, Deserialize)]
pub struct WrittenLog {
    len: u64,
    tail: Vec<String>,
    partial: Bytes,
    at: usize,
    continued: bool,
    oversized: Option<u64>,
}

/// The log that another program has begun in `file`.
pub fn begun_before(file: File, written: WrittenLog) -> io::Result<(LogWriter, LogSource)> {
    let WrittenLog { len, tail, partial: Bytes(partial), at, continued, oversized } = written;
    if file.metadata()?.len() < len || at > partial.len() {
        return Err(io::Error::other("the log is not the one that was written down"));
    }
    let file = Arc::new(file);
    let (progress, receiver) = watch::channel(Progress { len, complete: false });
    let source = LogSource { file: file.clone(), progress: receiver };
    let lines = Lines { partial, at, continued, oversized };
    Ok((LogWriter { file, progress, lines, tail: tail.into() }, source))
}

impl LogWriter {
    /// For [`begun_before`].
    pub fn written_down(&self) -> WrittenLog {
        let Lines { partial, at, continued, oversized } = &self.lines;
        WrittenLog {
            len: self.progress.borrow().len,
            tail: self.tail.iter().cloned().collect(),
            partial: Bytes(partial.clone()),
            at: *at,
            continued: *continued,
            oversized: *oversized,
        }
    }

    /// Appends. If the disk is full, the log loses bytes and the build goes on.
    pub fn write(&mut self, bytes: &[u8]) {
        let at = self.progress.borrow().len;
        if let Err(error) = self.file.write_all_at(bytes, at) {
            tracing::warn!(%error, "cannot write a build log");
            return;
        }
        let tail = &mut self.tail;
        self.lines.push(bytes, |notice| keep_text(tail, &notice));
        self.progress.send_modify(|progress| progress.len = at + bytes.len() as u64);
    }

    /// The last lines of text so far.
    pub fn tail(&mut self) -> Vec<String> {
        let tail = &mut self.tail;
        self.lines.finish(|notice| keep_text(tail, &notice));
        self.tail.iter().cloned().collect()
    }
}

fn keep_text(tail: &mut VecDeque<String>, notice: &Notice<'_>) {
    if let Notice::Line(line) = notice {
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(line).into_owned());
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.progress.send_modify(|progress| progress.complete = true);
    }
}

impl LogSource {
    /// The file; complete once the writer is dropped.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.progress.borrow().len
    }

    pub fn reader(&self) -> LogReader {
        LogReader { source: self.clone(), at: 0 }
    }
}

impl LogReader {
    /// The next bytes, as soon as there are some; `None` at the end of a complete log.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let at = self.at;
        // An error means that the writer was dropped; its last bytes are still read.
        let _ = self.source.progress.wait_for(|p| p.len > at || p.complete).await;
        let progress = *self.source.progress.borrow();
        let len = usize::try_from(progress.len.saturating_sub(at)).unwrap_or(CHUNK).min(CHUNK);
        if len == 0 {
            return Ok(None);
        }
        // The bytes were just written, so this copies from the page cache and needs no thread of its own.
        let mut chunk = vec![0; len];
        self.source.file.read_exact_at(&mut chunk, at)?;
        self.at += len as u64;
        Ok(Some(chunk))
    }
}

/// Cuts bytes into lines and recognises messages among them. As in Nix, text after a carriage return overwrites the
/// line from its start.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// Position of the next byte, at most the length of `partial`.
    at: usize,
    /// The line began in an earlier piece, so this piece is text, even if it looks like a message.
    continued: bool,
    /// Length so far of a message longer than [`MAX_MESSAGE`]; its bytes are not kept.
    oversized: Option<u64>,
}

impl Lines {
    pub fn push(&mut self, bytes: &[u8], mut show: impl FnMut(Notice<'_>)) {
        for &byte in bytes {
            match (byte, &mut self.oversized) {
                (b'\n', _) => self.end_line(&mut show),
                (_, Some(length)) => *length += 1,
                (b'\r', None) => self.at = 0,
                (byte, None) => match self.partial.get_mut(self.at) {
                    Some(old) => {
                        *old = byte;
                        self.at += 1;
                    }
                    None => {
                        self.partial.push(byte);
                        self.at += 1;
                        self.bound(&mut show);
                    }
                },
            }
        }
    }

    /// Shows the last line, if it has no newline.
    pub fn finish(&mut self, mut show: impl FnMut(Notice<'_>)) {
        if !self.partial.is_empty() || self.oversized.is_some() {
            self.end_line(&mut show);
        }
    }

    /// Shows a piece of a line that has reached its longest length.
    fn bound(&mut self, show: &mut impl FnMut(Notice<'_>)) {
        if self.partial.len() < MAX_LINE {
            return;
        }
        if !self.continued && self.partial.starts_with(MESSAGE) {
            if self.partial.len() > MAX_MESSAGE {
                self.oversized = Some(self.partial.len() as u64);
                self.partial.clear();
            }
            return;
        }
        let end = text::cut(&self.partial, self.partial.len());
        show(Notice::Line(&self.partial[..end]));
        self.partial.drain(..end);
        self.at = self.partial.len();
        self.continued = true;
    }

    fn end_line(&mut self, show: &mut impl FnMut(Notice<'_>)) {
        if let Some(length) = self.oversized.take() {
            let instead = format!(
                "(a message of {length} bytes to Nix is left out: the longest that is passed on has {MAX_MESSAGE})"
            );
            show(Notice::Line(instead.as_bytes()));
        } else if self.continued {
            // If the line ends exactly where it was cut, all of it has been shown.
            if !self.partial.is_empty() {
                show(Notice::Line(&self.partial));
            }
        } else {
            show(Notice::of(&self.partial));
        }
        self.partial.clear();
        self.at = 0;
        self.continued = false;
    }
}

/// A line of log: text, or a message that a builder sends to Nix (`@nix {...}`).
#[derive(Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// A line, or a piece of one, as the builder wrote it; whole characters if it is UTF-8.
    Line(&'a [u8]),
    /// The name of a phase; stdenv announces its phases this way.
    Phase(String),
    /// A well-formed message of a kind that a builder may not send.
    Ignored,
}

impl<'a> Notice<'a> {
    fn of(line: &'a [u8]) -> Self {
        let Some(json) = line.strip_prefix(b"@nix ") else { return Self::Line(line) };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(json) else { return Self::Line(line) };
        match value.get("action").and_then(|action| action.as_str()) {
            Some("setPhase") => match value.get("phase").and_then(|phase| phase.as_str()) {
                // No separate limit: the name is at most as long as the message.
                Some(phase) => Self::Phase(printable::line(phase)),
                None => Self::Line(line),
            },
            Some(_) => Self::Ignored,
            None => Self::Line(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is shown for these chunks: text, and phases in brackets.
    fn shown(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let mut lines = Lines::default();
        let mut keep = |notice: Notice<'_>| match notice {
            Notice::Line(line) => out.push(line.to_vec()),
            Notice::Phase(phase) => out.push(format!("[{phase}]").into_bytes()),
            Notice::Ignored => {}
        };
        chunks.iter().for_each(|chunk| lines.push(chunk, &mut keep));
        lines.finish(&mut keep);
        out
    }

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        shown(chunks).into_iter().map(|line| String::from_utf8(line).expect("UTF-8")).collect()
    }

    #[test]
    fn lines_are_cut_at_newlines_wherever_the_chunks_end() {
        assert_eq!(lines(&[b"a\nb", b"c\n\nd"]), ["a", "bc", "", "d"]);
    }

    #[test]
    fn a_progress_bar_ends_as_its_last_state() {
        assert_eq!(lines(&[b"10%\r50%\r100%\ndone\r\n"]), ["100%", "done"]);
    }

    #[test]
    fn an_endless_line_is_broken_and_never_held() {
        let lines = lines(&[&vec![b'x'; MAX_LINE * 2 + 5]]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE, 5]);
    }

    #[test]
    fn a_line_that_ends_where_it_is_cut_is_followed_by_no_empty_one() {
        let text = [vec![b'x'; MAX_LINE], b"\nnext\n\n".to_vec()].concat();
        assert_eq!(lines(&[&text]), ["x".repeat(MAX_LINE).as_str(), "next", ""]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters_wherever_it_begins_and_its_chunks_end() {
        for letter in ["\u{e9}", "\u{20ac}", "\u{1f33e}"] {
            for odd in 0..4 {
                let text = format!("{}{}\n", "x".repeat(odd), letter.repeat(30_000));
                for chunk in [1, 7, 8191, 32 * 1024] {
                    let chunks: Vec<&[u8]> = text.as_bytes().chunks(chunk).collect();
                    // `lines` takes whole characters only.
                    let lines = lines(&chunks);
                    assert_eq!(lines.concat(), text.trim_end());
                    assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_pass_as_they_are() {
        let mut bytes: Vec<u8> =
            (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        bytes.retain(|byte| !b"\n\r@".contains(byte));
        let lines = shown(&bytes.chunks(777).collect::<Vec<_>>());
        assert_eq!(lines.concat(), bytes);
        assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
        let continuations = [0x80; 3 * MAX_LINE];
        assert_eq!(shown(&[&continuations]).concat(), continuations);
    }

    fn phase(length: usize) -> (String, String) {
        let phase = "p".repeat(length);
        (format!("@nix {{\"action\":\"setPhase\",\"phase\":\"{phase}\"}}"), format!("[{phase}]"))
    }

    #[test]
    fn a_message_is_passed_whole_or_left_out_whole_and_what_follows_is_there() {
        let around = phase(0).0.len();
        for length in [1, 9_000, 20_000, MAX_MESSAGE - around] {
            let (message, shown) = phase(length);
            assert_eq!(lines(&[message.as_bytes(), b"\nand on\n"]), [shown.as_str(), "and on"]);
            assert_eq!(lines(&[message.as_bytes()]), [shown]);
        }
        for length in [MAX_MESSAGE - around + 1, 1 << 20] {
            let (message, _) = phase(length);
            for end in ["\n", "\r\n"] {
                let lines = lines(&[message.as_bytes(), end.as_bytes(), b"and on\n"]);
                assert_eq!(lines.len(), 2, "{lines:?}");
                assert!(lines[0].starts_with("(a message of ") && lines[1] == "and on", "{lines:?}");
            }
        }
    }

    #[test]
    fn the_rest_of_a_long_line_is_no_message_whatever_it_looks_like() {
        let text = [vec![b'x'; MAX_LINE], phase(3).0.into_bytes(), b"\n".to_vec()].concat();
        assert_eq!(lines(&[&text]), ["x".repeat(MAX_LINE), phase(3).0]);
    }

    #[test]
    fn phases_are_recognised_and_broken_notices_are_plain_lines() {
        assert_eq!(
            Notice::of(br#"@nix {"action":"setPhase","phase":"buildPhase"}"#),
            Notice::Phase("buildPhase".into())
        );
        assert_eq!(Notice::of(br#"@nix {"action":"start","type":105}"#), Notice::Ignored);
        assert_eq!(Notice::of(b"@nix {oops"), Notice::Line(b"@nix {oops"));
        assert_eq!(Notice::of(b"hello"), Notice::Line(b"hello"));
    }

    #[test]
    fn the_tail_is_the_last_lines_of_text() {
        let (mut writer, _source) = create(Path::new("/dev/shm")).expect("log");
        for line in 0..30 {
            writer.write(format!("{line}\n{}\n", phase(9_000).0).as_bytes());
        }
        writer.write(b"the end");
        let tail = writer.tail();
        assert_eq!((tail.len(), tail[0].as_str(), tail[9].as_str()), (TAIL_LINES, "21", "the end"));
    }

    #[tokio::test]
    async fn a_log_goes_on_in_the_middle_of_a_line_where_another_program_left_it() {
        let (mut writer, source) = create(Path::new("/dev/shm")).expect("log");
        writer.write(b"one\nold\rtw");
        let json = serde_json::to_string(&writer.written_down()).expect("JSON");
        let file = source.file().try_clone().expect("a file");
        let written = serde_json::from_str(&json).expect("the same");
        let (mut writer, source) = begun_before(file, written).expect("the same file");
        writer.write(b"o\nthree");
        assert_eq!(writer.tail(), ["one", "two", "three"]);
        let all = b"one\nold\rtwo\nthree".to_vec();
        assert_eq!(source.reader().next().await.expect("read"), Some(all));
        let longer = serde_json::from_str(&json.replace("\"len\":10", "\"len\":99")).expect("JSON");
        begun_before(source.file().try_clone().expect("a file"), longer).expect_err("it is shorter");
    }

    #[tokio::test]
    async fn a_late_reader_gets_the_log_from_the_start() {
        let (mut writer, source) = create(Path::new("/dev/shm")).expect("log");
        writer.write(b"one\n");
        let mut early = source.reader();
        assert_eq!(early.next().await.expect("read"), Some(b"one\n".to_vec()));
        writer.write(b"two\n");
        assert_eq!(early.next().await.expect("read"), Some(b"two\n".to_vec()));
        assert_eq!(source.reader().next().await.expect("read"), Some(b"one\ntwo\n".to_vec()));
        assert_eq!(writer.tail(), ["one", "two"]);
        drop(writer);
        assert_eq!(early.next().await.expect("read"), None);
    }
}
