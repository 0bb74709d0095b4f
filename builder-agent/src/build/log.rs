//! The log of one running build: written by its sandbox, read by every client that waits for it, from the start.
//!
//! Kept in an unnamed file, so that a log of any allowed size costs no memory and vanishes with its last reader.
//! Builders write what they like: text is cut into lines of bounded length, and control codes are left to the
//! client's terminal, as Nix does.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use super::failure::TAIL_LINES;

/// Longer lines are broken. Progress bars without newlines would otherwise never be shown, or fill memory.
pub const MAX_LINE: usize = 8 * 1024;
/// Read from the file at once.
const CHUNK: usize = 32 * 1024;

/// How far the log is written, and whether more may come.
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

/// Makes readers. Held by whoever lists the running build.
#[derive(Debug, Clone)]
pub struct LogSource {
    file: Arc<File>,
    progress: watch::Receiver<Progress>,
}

/// One reader's place in a log.
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

impl LogWriter {
    /// Appends. A full disk loses log, not the build.
    pub fn write(&mut self, bytes: &[u8]) {
        let at = self.progress.borrow().len;
        if let Err(error) = self.file.write_all_at(bytes, at) {
            tracing::warn!(%error, "cannot write a build log");
            return;
        }
        let tail = &mut self.tail;
        self.lines.push(bytes, |line| {
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(String::from_utf8_lossy(line).into_owned());
        });
        self.progress.send_modify(|progress| progress.len = at + bytes.len() as u64);
    }

    /// The last lines so far, without what [`Notice`] takes out of the log.
    pub fn tail(&mut self) -> Vec<String> {
        let tail = &mut self.tail;
        self.lines.finish(|line| tail.push_back(String::from_utf8_lossy(line).into_owned()));
        self.tail.iter().filter(|line| matches!(Notice::of(line.as_bytes()), Notice::Line)).cloned().collect()
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.progress.send_modify(|progress| progress.complete = true);
    }
}

impl LogSource {
    /// The file, complete once the writer is gone.
    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn reader(&self) -> LogReader {
        LogReader { source: self.clone(), at: 0 }
    }
}

impl LogReader {
    /// The next bytes, as soon as there are some; `None` at the end of a complete log.
    pub async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let at = self.at;
        // An error means that the writer is gone; what it wrote last is what there is.
        let _ = self.source.progress.wait_for(|p| p.len > at || p.complete).await;
        let progress = *self.source.progress.borrow();
        let len = usize::try_from(progress.len.saturating_sub(at)).unwrap_or(CHUNK).min(CHUNK);
        if len == 0 {
            return Ok(None);
        }
        // Written a moment ago, so this is a copy out of the page cache and does not need a thread of its own.
        let mut chunk = vec![0; len];
        self.source.file.read_exact_at(&mut chunk, at)?;
        self.at += len as u64;
        Ok(Some(chunk))
    }
}

/// Cuts bytes into lines. As in Nix, text after a carriage return overwrites the line from its start.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
    /// Where the next byte goes, at most the length of `partial`.
    at: usize,
}

impl Lines {
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for &byte in bytes {
            match byte {
                b'\n' => self.flush(&mut line),
                b'\r' => self.at = 0,
                byte => {
                    match self.partial.get_mut(self.at) {
                        Some(old) => *old = byte,
                        None => self.partial.push(byte),
                    }
                    self.at += 1;
                    if self.partial.len() >= MAX_LINE {
                        self.flush(&mut line);
                    }
                }
            }
        }
    }

    /// The last line, if it has no newline.
    pub fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            self.flush(&mut line);
        }
    }

    fn flush(&mut self, line: &mut impl FnMut(&[u8])) {
        line(&self.partial);
        self.partial.clear();
        self.at = 0;
    }
}

/// What a line of log is: text, or a notice that a builder sends to Nix (`@nix {...}`).
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    Line,
    /// stdenv announces its phases this way.
    Phase(String),
    /// Well-formed, but nothing a builder may cause.
    Ignored,
}

impl Notice {
    pub fn of(line: &[u8]) -> Self {
        let Some(json) = line.strip_prefix(b"@nix ") else { return Self::Line };
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(json) else { return Self::Line };
        match value.get("action").and_then(|action| action.as_str()) {
            Some("setPhase") => match value.get("phase").and_then(|phase| phase.as_str()) {
                Some(phase) => Self::Phase(phase.chars().filter(|c| !c.is_control()).take(100).collect()),
                None => Self::Line,
            },
            Some(_) => Self::Ignored,
            None => Self::Line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let mut out = Vec::new();
        let mut lines = Lines::default();
        let mut keep = |line: &[u8]| out.push(String::from_utf8_lossy(line).into_owned());
        chunks.iter().for_each(|chunk| lines.push(chunk, &mut keep));
        lines.finish(&mut keep);
        out
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
    fn phases_are_recognised_and_broken_notices_are_plain_lines() {
        assert_eq!(
            Notice::of(br#"@nix {"action":"setPhase","phase":"buildPhase"}"#),
            Notice::Phase("buildPhase".into())
        );
        assert_eq!(Notice::of(br#"@nix {"action":"start","type":105}"#), Notice::Ignored);
        assert_eq!(Notice::of(b"@nix {oops"), Notice::Line);
        assert_eq!(Notice::of(b"hello"), Notice::Line);
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
