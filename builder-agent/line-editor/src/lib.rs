//! A line editor: the bytes of a terminal in, edited lines and the bytes to show out. It does no I/O and has no clock.
//!
//! The client's own terminal is in raw mode and far away, so libraries that edit lines on the process's terminal do not
//! fit. The line is shown on one row, whatever its length: the part around the cursor that fits. So nothing here depends on
//! how a terminal breaks lines.
//! All bytes are a client's: a line and the history are bounded, and no byte is echoed that could move
//! the cursor. A character counts as one column. Not here: what a line means, and which words complete it (`ssh::shell`).

use std::collections::VecDeque;

/// Longest line, in characters; the rest is not taken, with a bell.
const MAX_LINE: usize = 1000;
/// Lines that are remembered.
const MAX_HISTORY: usize = 100;
/// Narrowest part of a line that is shown, on a terminal that is narrower than the prompt.
const NARROWEST: usize = 8;

const BELL: &str = "\u{7}";

/// What a byte led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// The line is complete.
    Line(String),
    /// The client wants to leave: Ctrl-D on an empty line.
    End,
    /// The client wants the word before the cursor completed.
    Complete,
}

/// Where the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, after ESC `[` or ESC `O`.
    Sequence,
}

pub struct Editor {
    prompt: String,
    columns: usize,
    line: Vec<char>,
    /// The cursor is before this character.
    cursor: usize,
    /// The oldest line first.
    history: VecDeque<String>,
    /// The line of the history that is shown, and the line that was typed before.
    recalled: Option<(usize, Vec<char>)>,
    state: State,
    /// The digits of a control sequence.
    number: u32,
    /// The start of a character in UTF-8.
    partial: Vec<u8>,
    /// The terminal does not show the line as it is now.
    stale: bool,
}

impl Editor {
    pub fn new(prompt: &str, columns: usize) -> Self {
        Self {
            prompt: printable::start(prompt, 64),
            columns,
            line: Vec::new(),
            cursor: 0,
            history: VecDeque::new(),
            recalled: None,
            state: State::Text,
            number: 0,
            partial: Vec::new(),
            stale: true,
        }
    }

    /// The terminal has another width.
    pub fn resize(&mut self, columns: usize) {
        self.stale |= self.columns != columns;
        self.columns = columns;
    }

    /// Something else was shown, so the line has to be shown again.
    pub fn show_again(&mut self) {
        self.stale = true;
    }

    /// Adds to `out` what shows the line as it is now, unless the terminal does. Call it when no more bytes wait: a line that
    /// is pasted is shown once.
    pub fn refresh(&mut self, out: &mut String) {
        if std::mem::take(&mut self.stale) {
            out.push_str(&self.shown());
        }
    }

    /// The line before the cursor.
    pub fn before_cursor(&self) -> String {
        self.line[..self.cursor].iter().collect()
    }

    /// Inserts text before the cursor, as if it was typed.
    pub fn insert(&mut self, text: &str) {
        for c in text.chars() {
            self.insert_char(c);
        }
        self.stale = true;
    }

    /// What shows prompt, line and cursor on the current row of the terminal.
    fn shown(&self) -> String {
        let prompt = self.prompt.chars().count();
        let room = self.columns.saturating_sub(prompt + 1).max(NARROWEST);
        let start = (self.cursor + 1).saturating_sub(room);
        let part: String = self.line.iter().skip(start).take(room).collect();
        let column = prompt + self.cursor - start;
        format!("\r{}{part}\u{1b}[K\r\u{1b}[{column}C", self.prompt)
    }

    /// Takes one byte. What has to be sent to the terminal is added to `out`.
    pub fn feed(&mut self, byte: u8, out: &mut String) -> Option<Input> {
        match self.state {
            State::Text => self.text(byte, out),
            State::Escape => {
                self.number = 0;
                self.state = match byte {
                    b'[' | b'O' => State::Sequence,
                    _ => State::Text,
                };
                None
            }
            // ECMA-48, 5.4: parameters and intermediate bytes, and one final byte.
            State::Sequence => {
                match byte {
                    b'0'..=b'9' => {
                        self.number = self.number.saturating_mul(10).saturating_add(u32::from(byte - b'0'));
                    }
                    0x20..=0x3f => {}
                    0x40..=0x7e => {
                        self.state = State::Text;
                        self.key(byte);
                    }
                    _ => self.state = State::Text,
                }
                None
            }
        }
    }

    /// A key that sends a control sequence.
    fn key(&mut self, last: u8) {
        match (last, self.number) {
            (b'A', _) => self.recall(-1),
            (b'B', _) => self.recall(1),
            (b'C', _) => self.go(self.cursor + 1),
            (b'D', _) => self.go(self.cursor.saturating_sub(1)),
            (b'H', _) | (b'~', 1 | 7) => self.go(0),
            (b'F', _) | (b'~', 4 | 8) => self.go(self.line.len()),
            (b'~', 3) => self.remove(self.cursor, self.cursor + 1),
            _ => {}
        }
    }

    fn text(&mut self, byte: u8, out: &mut String) -> Option<Input> {
        const fn ctrl(key: u8) -> u8 {
            key & 0x1f
        }
        const BACKSPACE: u8 = 0x7f;
        const ESCAPE: u8 = 0x1b;
        if byte < 0x80 {
            self.partial.clear();
        }
        match byte {
            b'\r' | b'\n' => {
                self.refresh(out);
                out.push_str("\r\n");
                self.stale = true;
                return Some(Input::Line(self.take()));
            }
            b'\t' => return Some(Input::Complete),
            ESCAPE => self.state = State::Escape,
            BACKSPACE | 0x08 => self.remove(self.cursor.saturating_sub(1), self.cursor),
            _ if byte == ctrl(b'c') => {
                self.line.clear();
                self.take();
                out.push_str("^C\r\n");
                self.stale = true;
            }
            _ if byte == ctrl(b'd') && self.line.is_empty() => {
                self.refresh(out);
                out.push_str("\r\n");
                return Some(Input::End);
            }
            _ if byte == ctrl(b'd') => self.remove(self.cursor, self.cursor + 1),
            _ if byte == ctrl(b'a') => self.go(0),
            _ if byte == ctrl(b'e') => self.go(self.line.len()),
            _ if byte == ctrl(b'b') => self.go(self.cursor.saturating_sub(1)),
            _ if byte == ctrl(b'f') => self.go(self.cursor + 1),
            _ if byte == ctrl(b'p') => self.recall(-1),
            _ if byte == ctrl(b'n') => self.recall(1),
            _ if byte == ctrl(b'k') => self.remove(self.cursor, self.line.len()),
            _ if byte == ctrl(b'u') => self.remove(0, self.cursor),
            _ if byte == ctrl(b'w') => self.remove(self.word_start(), self.cursor),
            _ if byte == ctrl(b'l') => {
                out.push_str("\u{1b}[H\u{1b}[2J");
                self.stale = true;
            }
            _ if byte < 0x20 => {}
            _ => self.type_byte(byte, out),
        }
        None
    }

    /// A byte of a character in UTF-8. Bytes that are no character are left out.
    fn type_byte(&mut self, byte: u8, out: &mut String) {
        self.partial.push(byte);
        match std::str::from_utf8(&self.partial) {
            Ok(text) => {
                let inserted = text.chars().next().is_some_and(|c| self.insert_char(c));
                self.partial.clear();
                self.stale |= inserted;
                if !inserted {
                    out.push_str(BELL);
                }
            }
            // More bytes are needed.
            Err(error) if error.error_len().is_none() => {}
            Err(_) => self.partial.clear(),
        }
    }

    fn insert_char(&mut self, c: char) -> bool {
        let fits = self.line.len() < MAX_LINE && printable::character(c) == c;
        if fits {
            self.line.insert(self.cursor, c);
            self.cursor += 1;
        }
        fits
    }

    fn go(&mut self, to: usize) {
        self.cursor = to.min(self.line.len());
        self.stale = true;
    }

    /// Removes a range, and puts the cursor where it was.
    fn remove(&mut self, from: usize, to: usize) {
        let to = to.min(self.line.len());
        if from < to {
            self.line.drain(from..to);
        }
        self.go(from);
    }

    /// The start of the word before the cursor.
    fn word_start(&self) -> usize {
        let before = &self.line[..self.cursor];
        let end = before.iter().rposition(|c| *c != ' ').map_or(0, |last| last + 1);
        before[..end].iter().rposition(|c| *c == ' ').map_or(0, |space| space + 1)
    }

    /// Shows an older or a newer line of the history.
    fn recall(&mut self, step: isize) {
        let at = self.recalled.as_ref().map_or(self.history.len(), |(at, _)| *at);
        let Some(to) = at.checked_add_signed(step).filter(|to| *to <= self.history.len()) else { return };
        let typed = match self.recalled.take() {
            Some((_, typed)) => typed,
            None => self.line.clone(),
        };
        match self.history.get(to) {
            Some(line) => {
                self.line = line.chars().collect();
                self.recalled = Some((to, typed));
            }
            None => self.line = typed,
        }
        self.go(self.line.len());
    }

    /// The line, which is remembered; the next one is empty.
    fn take(&mut self) -> String {
        let line: String = std::mem::take(&mut self.line).into_iter().collect();
        (self.cursor, self.recalled) = (0, None);
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == MAX_HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types these bytes; returns the complete lines, and all that was shown.
    fn typed(editor: &mut Editor, bytes: &[u8]) -> (Vec<String>, String) {
        let (mut lines, mut out) = (Vec::new(), String::new());
        for byte in bytes {
            if let Some(Input::Line(line)) = editor.feed(*byte, &mut out) {
                lines.push(line);
            }
        }
        editor.refresh(&mut out);
        (lines, out)
    }

    fn line(bytes: &str) -> String {
        let mut editor = Editor::new("> ", 80);
        typed(&mut editor, format!("{bytes}\r").as_bytes()).0.concat()
    }

    #[test]
    fn keys_edit_the_line() {
        for (bytes, expected) in [
            ("status", "status"),
            ("stats\u{1b}[Du", "status"),
            ("tatus\u{1}s", "status"),
            ("tatus\u{1b}[Hs\u{1b}[F x", "status x"),
            ("xstatus\u{1b}OH\u{1b}[3~", "status"),
            ("stattus\u{7f}\u{7f}\u{7f}us", "status"),
            ("builds list x\u{17}\u{17}show 1", "builds show 1"),
            ("one two\u{15}three", "three"),
            ("one two\u{2}\u{2}\u{2}\u{b}", "one "),
            ("abc\u{3}status", "status"),
            ("é\u{7f}ü", "ü"),
            ("a\u{1b}[31mb\u{1b}[99999999999999999999999Cc", "abc"),
        ] {
            assert_eq!(line(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn the_history_gives_lines_back_and_keeps_what_was_typed_before() {
        let mut editor = Editor::new("> ", 80);
        typed(&mut editor, b"first\rsecond\rsecond\r");
        assert_eq!(typed(&mut editor, b"\x1b[A\x1b[A\r").0, ["first"]);
        assert_eq!(
            typed(&mut editor, b"typed\x1b[A\x1b[A\x1b[A\x1b[A\x1b[B\x1b[B\x1b[B\x1b[B\r").0,
            ["typed"]
        );
        for n in 0..10 * MAX_HISTORY {
            typed(&mut editor, format!("line {n}\r").as_bytes());
        }
        assert_eq!(editor.history.len(), MAX_HISTORY);
    }

    #[test]
    fn a_line_is_bounded_and_the_rest_of_it_is_not_taken() {
        let mut editor = Editor::new("> ", 80);
        let (lines, out) = typed(&mut editor, &[b"a".repeat(10 * MAX_LINE), b"\r".to_vec()].concat());
        assert_eq!(lines, ["a".repeat(MAX_LINE)]);
        assert!(out.contains(BELL));
    }

    #[test]
    fn control_d_ends_an_empty_line_only() {
        let mut editor = Editor::new("> ", 80);
        let mut out = String::new();
        assert_eq!(editor.feed(b'x', &mut out), None);
        assert_eq!(editor.feed(4, &mut out), None);
        assert_eq!(editor.feed(0x7f, &mut out), None);
        assert_eq!(editor.feed(4, &mut out), Some(Input::End));
    }

    #[test]
    fn the_part_around_the_cursor_is_shown_on_one_row() {
        let mut editor = Editor::new("box> ", 20);
        typed(&mut editor, b"abcdefghijklmnopqrstuvwxyz");
        assert_eq!(editor.shown(), "\rbox> nopqrstuvwxyz\u{1b}[K\r\u{1b}[18C");
        typed(&mut editor, b"\x1b[H");
        assert_eq!(editor.shown(), "\rbox> abcdefghijklmn\u{1b}[K\r\u{1b}[5C");
        editor.resize(1);
        assert_eq!(editor.shown(), "\rbox> abcdefgh\u{1b}[K\r\u{1b}[5C");
    }

    #[test]
    fn bytes_of_a_client_come_back_as_printable_text_and_our_own_sequences_alone() {
        let mut editor = Editor::new("> ", 80);
        let bytes: Vec<u8> = (0..=u8::MAX).chain("\u{202e}\u{9b}31mx".bytes()).cycle().take(20_000).collect();
        let (lines, out) = typed(&mut editor, &bytes);
        assert!(lines.iter().all(|line| printable::line(line) == *line), "{lines:?}");
        let ours = ["\u{1b}[K", "\u{1b}[H", "\u{1b}[2J", "\r", "\n", BELL];
        let mut rest = ours.iter().fold(out, |out, ours| out.replace(ours, ""));
        while let Some(at) = rest.find("\u{1b}[") {
            let end = rest[at + 2..].find(|c: char| !c.is_ascii_digit()).expect("a final byte") + at + 2;
            assert_eq!(&rest[end..=end], "C");
            rest.replace_range(at..=end, "");
        }
        assert_eq!(printable::line(&rest), rest);
    }
}
