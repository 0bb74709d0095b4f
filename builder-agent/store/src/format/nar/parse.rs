//! A strict push parser for NARs: the caller pushes bytes in pieces of any size, the parser emits events.
//!
//! The sender is hostile. Only the canonical form passes (names strictly ascending, zero padding, nothing after
//! the end), so that a NAR and the tree in it determine each other. A length meets its limit before a byte behind
//! it is kept; file contents are never kept here at all. Memory: one name per open directory.
//!
//! Not here: hashing, and the limit on the size of the whole NAR (`ingest`).

use thiserror::Error;

use super::tokens::{
    CLOSE, CONTENTS, DIRECTORY, ENTRY, EXECUTABLE, NODE, REGULAR, START, SYMLINK, TARGET, padding,
};

/// Deepest node; the root has depth 0. Nix refuses a node at depth 64 (Nix: `src/libutil/archive.cc`).
pub const MAX_DEPTH: usize = 64;
/// Longest name of a directory entry: NAME_MAX of Linux, and EROFS_NAME_LEN.
pub const MAX_NAME: u64 = 255;
/// Longest symlink target: PATH_MAX of Linux without its NUL.
pub const MAX_TARGET: u64 = 4095;
/// Names and symlink targets of one NAR together. They stay in memory until the NAR ends; the largest
/// trees we know have a sixteenth of this.
pub const MAX_METADATA_BYTES: u64 = 128 << 20;

/// Longest piece of a client's bytes that an error quotes.
const MAX_QUOTE: usize = 64;

/// The events of a [`Parser`]. The root has the empty name.
pub trait Events {
    /// The error of a receiver that cannot accept an event.
    type Error;
    /// A directory begins.
    fn directory(&mut self, name: &[u8]) -> Result<(), Self::Error>;
    /// The innermost open directory ends.
    fn directory_end(&mut self) -> Result<(), Self::Error>;
    /// A regular file begins; exactly `size` bytes come through [`Events::data`].
    fn file(&mut self, name: &[u8], executable: bool, size: u64) -> Result<(), Self::Error>;
    /// The next bytes of the file that began last.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// A symlink.
    fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), Self::Error>;
}

/// A NAR that is not canonical, or that exceeds a limit. Offsets count from the first byte of the NAR.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The NAR has another token than the grammar requires here.
    #[error("invalid NAR at byte {at}: expected {expected}, got {got}")]
    Unexpected {
        /// Offset of the run of tokens.
        at: u64,
        /// The required token.
        expected: &'static str,
        /// The received token, quoted.
        got: String,
    },
    /// The NAR ended early.
    #[error("NAR is truncated: it ends at byte {at}, inside {inside}")]
    Truncated {
        /// Bytes received.
        at: u64,
        /// The part that was being read.
        inside: &'static str,
    },
    /// Not a name for a directory entry.
    #[error("invalid NAR at byte {at}: entry name {name} {why}")]
    Name {
        /// Offset of the name.
        at: u64,
        /// The name, quoted.
        name: String,
        /// The rule that the name breaks.
        why: &'static str,
    },
    /// A name that does not come after the one before it. Accepting it would give one tree two NARs.
    #[error(
        "invalid NAR at byte {at}: entry {name} {relation} {previous}; entries must be sorted and unique"
    )]
    Order {
        /// Offset of the name.
        at: u64,
        /// The name, quoted.
        name: String,
        /// `repeats` or `comes after`.
        relation: &'static str,
        /// The entry before, quoted.
        previous: String,
    },
    /// A token is longer, or shorter, than it may be.
    #[error("invalid NAR at byte {at}: {what} of {len} bytes, allowed are {min} to {max}")]
    Length {
        /// Offset of the length.
        at: u64,
        /// Name or symlink target.
        what: &'static str,
        /// As sent.
        len: u64,
        /// Smallest accepted length.
        min: u64,
        /// Largest accepted length.
        max: u64,
    },
    /// Symlink targets are C strings everywhere else.
    #[error("invalid NAR at byte {at}: symlink target {target} contains a NUL byte")]
    Target {
        /// Offset of the target.
        at: u64,
        /// The target, quoted.
        target: String,
    },
    /// Hidden bytes in the padding would change the hash and not the tree.
    #[error("invalid NAR at byte {at}: padding is not zero")]
    Padding {
        /// Offset of the padding byte.
        at: u64,
    },
    /// Bytes follow the end of the archive.
    #[error("invalid NAR: {len} bytes or more follow its end at byte {at}")]
    Trailing {
        /// Offset of the NAR's end.
        at: u64,
        /// Bytes seen after it.
        len: u64,
    },
    /// More nested than Nix accepts.
    #[error("NAR is nested too deep at byte {at}: at most {limit} levels are accepted")]
    TooDeep {
        /// Offset of the entry.
        at: u64,
        /// [`MAX_DEPTH`].
        limit: usize,
    },
    /// More files than the box keeps in memory for one NAR.
    #[error("NAR has more than {limit} entries (at byte {at}); split it into several store paths")]
    TooManyEntries {
        /// Offset of the entry.
        at: u64,
        /// [`crate::StoreConfig::max_entries`].
        limit: u32,
    },
    /// More names than the box keeps in memory for one NAR.
    #[error("NAR has more than {limit} bytes of names and symlink targets (at byte {at})")]
    TooMuchMetadata {
        /// Offset of the name or target.
        at: u64,
        /// [`MAX_METADATA_BYTES`].
        limit: u64,
    },
    /// The NAR is larger than the box accepts, or announces a file that would make it so.
    #[error("NAR is too large: it needs at least {size} bytes, this box accepts {limit} (max-nar-mib)")]
    TooLarge {
        /// Bytes so far and announced.
        size: u64,
        /// [`crate::StoreConfig::max_nar_bytes`].
        limit: u64,
    },
}

/// The errors of [`Parser::push`].
#[derive(Debug)]
pub enum PushError<E> {
    /// The NAR is to blame.
    Parse(ParseError),
    /// The receiver of the events is to blame.
    Events(E),
}

/// The state that follows a completed piece.
#[derive(Debug, Clone, Copy)]
enum Then {
    Type,
    Regular,
    Next,
    Contents,
    Name,
    Target,
    Done,
}

#[derive(Debug)]
enum State {
    /// A run of fixed bytes.
    Fixed {
        run: &'static [u8],
        seen: usize,
        then: Then,
    },
    /// Alternatives, distinguished by their first 16 bytes.
    Choice {
        of: Then,
        buf: [u8; 16],
        seen: usize,
    },
    Length {
        of: Then,
        buf: [u8; 8],
        seen: usize,
    },
    Name {
        left: usize,
        pad: u8,
    },
    Target {
        left: usize,
        pad: u8,
    },
    Contents {
        left: u64,
        pad: u8,
    },
    Padding {
        left: u8,
        then: Then,
    },
    End,
}

/// The parser; see the module.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// Offset of the next byte.
    at: u64,
    /// Last name of each open directory; the vectors are kept for reuse when a directory ends.
    names: Vec<Vec<u8>>,
    depth: usize,
    /// The name or symlink target that is arriving.
    token: Vec<u8>,
    executable: bool,
    entries: u32,
    metadata: u64,
    max_entries: u32,
    max_bytes: u64,
}

impl Parser {
    /// A parser for one NAR of at most `max_entries` nodes and `max_bytes` bytes.
    #[must_use]
    pub fn new(max_entries: u32, max_bytes: u64) -> Self {
        Self {
            state: State::Fixed { run: START, seen: 0, then: Then::Type },
            at: 0,
            names: Vec::new(),
            depth: 0,
            token: Vec::new(),
            executable: false,
            entries: 0,
            metadata: 0,
            max_entries,
            max_bytes,
        }
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// A lower bound for the number of bytes that a valid NAR still has: a caller that reads so many bytes
    /// from a stream cannot read past the end of the NAR. 0 only at the end.
    #[must_use]
    pub fn surely_left(&self) -> u64 {
        match &self.state {
            State::Fixed { run, seen, then } => (run.len() - seen) as u64 + self.least_after(*then),
            State::Choice { of, seen, .. } => self.least_after(*of) - *seen as u64,
            State::Length { of, seen, .. } => self.least_after(*of) - *seen as u64,
            State::Name { left, pad } => *left as u64 + u64::from(*pad) + 48 + self.least_after(Then::Type),
            State::Target { left, pad } => *left as u64 + u64::from(*pad) + 16 + self.least_after(Then::Done),
            State::Contents { left, pad } => *left + u64::from(*pad) + 16 + self.least_after(Then::Done),
            State::Padding { left, then } => u64::from(*left) + self.least_after(*then),
            State::End => 0,
        }
    }

    /// The smallest number of bytes that a valid NAR has from the beginning of `then` on.
    fn least_after(&self, then: Then) -> u64 {
        // Each open directory ends with its own `)`; each except the root also with the `)` of its entry.
        let closers = 32 * self.depth as u64;
        match then {
            Then::Type => 16 + 16 + closers,
            Then::Regular => 16 + 8 + 16 + closers,
            Then::Next => 16 + closers - 32,
            Then::Contents => 8 + 16 + closers,
            Then::Name => 8 + 8 + 48 + 16 + 16 + closers,
            Then::Target => 8 + 8 + 16 + closers,
            Then::Done => closers,
        }
    }

    /// Takes the next bytes. After an error the parser must not be used again.
    pub fn push<E: Events>(&mut self, mut input: &[u8], to: &mut E) -> Result<(), PushError<E::Error>> {
        while !input.is_empty() {
            let used = self.step(input, to)?;
            input = &input[used..];
        }
        Ok(())
    }

    /// Parses the beginning of `input`, which is not empty, up to the next change of state; returns the
    /// number of bytes used.
    fn step<E: Events>(&mut self, input: &[u8], to: &mut E) -> Result<usize, PushError<E::Error>> {
        let used = match &mut self.state {
            State::Fixed { run, seen, then } => {
                let n = input.len().min(run.len() - *seen);
                if input[..n] != run[*seen..*seen + n] {
                    return Err(self.unexpected(input));
                }
                *seen += n;
                if *seen == run.len() {
                    let then = *then;
                    self.at += n as u64;
                    self.begin(then);
                    return Ok(n);
                }
                n
            }
            State::Choice { of, buf, seen } => {
                let n = input.len().min(16 - *seen);
                buf[*seen..*seen + n].copy_from_slice(&input[..n]);
                *seen += n;
                if *seen == 16 {
                    let (of, buf) = (*of, *buf);
                    self.at += n as u64;
                    self.choose(of, &buf, to)?;
                    return Ok(n);
                }
                n
            }
            State::Length { of, buf, seen } => {
                let n = input.len().min(8 - *seen);
                buf[*seen..*seen + n].copy_from_slice(&input[..n]);
                *seen += n;
                if *seen == 8 {
                    let (of, len) = (*of, u64::from_le_bytes(*buf));
                    self.at += n as u64;
                    self.length(of, len, to)?;
                    return Ok(n);
                }
                n
            }
            State::Name { left, .. } | State::Target { left, .. } => {
                let n = input.len().min(*left);
                self.token.extend_from_slice(&input[..n]);
                *left -= n;
                if *left == 0 {
                    self.at += n as u64;
                    self.token_done(to)?;
                    return Ok(n);
                }
                n
            }
            State::Contents { left, pad } => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                to.data(&input[..n]).map_err(PushError::Events)?;
                *left -= n as u64;
                if *left == 0 {
                    self.state = Self::padded(*pad, Then::Done);
                }
                n
            }
            State::Padding { left, then } => {
                let n = input.len().min(usize::from(*left));
                if let Some(bad) = input[..n].iter().position(|&b| b != 0) {
                    return Err(PushError::Parse(ParseError::Padding { at: self.at + bad as u64 }));
                }
                *left -= n as u8;
                if *left == 0 {
                    self.state = Self::after_token(*then);
                }
                n
            }
            State::End => {
                let (at, len) = (self.at, input.len() as u64);
                return Err(PushError::Parse(ParseError::Trailing { at, len }));
            }
        };
        self.at += used as u64;
        Ok(used)
    }

    /// Whether the NAR is complete.
    pub fn finish(&self) -> Result<(), ParseError> {
        let inside = match &self.state {
            State::End => return Ok(()),
            State::Fixed { .. } | State::Choice { .. } | State::Length { .. } => "its structure",
            State::Name { .. } => "an entry name",
            State::Target { .. } => "a symlink target",
            State::Contents { .. } => "the contents of a file",
            State::Padding { .. } => "padding",
        };
        Err(ParseError::Truncated { at: self.at, inside })
    }

    fn padded(pad: u8, then: Then) -> State {
        if pad == 0 { Self::after_token(then) } else { State::Padding { left: pad, then } }
    }

    /// The run of fixed bytes that follows a variable part.
    fn after_token(then: Then) -> State {
        match then {
            Then::Type => State::Fixed { run: NODE, seen: 0, then },
            _ => State::Fixed { run: CLOSE, seen: 0, then: Then::Done },
        }
    }

    /// A run of fixed bytes is complete: continues with `then`.
    fn begin(&mut self, then: Then) {
        self.state = match then {
            Then::Type | Then::Regular | Then::Next => State::Choice { of: then, buf: [0; 16], seen: 0 },
            Then::Contents | Then::Name | Then::Target => State::Length { of: then, buf: [0; 8], seen: 0 },
            Then::Done if self.depth == 0 => State::End,
            // The node is complete; now its entry closes, and the directory goes on.
            Then::Done => State::Fixed { run: CLOSE, seen: 0, then: Then::Next },
        };
    }

    fn choose<E: Events>(
        &mut self,
        of: Then,
        word: &[u8; 16],
        to: &mut E,
    ) -> Result<(), PushError<E::Error>> {
        let word = &word[..];
        let fixed = |run: &'static [u8], seen, then| State::Fixed { run, seen, then };
        self.state = match of {
            Then::Type if word == REGULAR => State::Choice { of: Then::Regular, buf: [0; 16], seen: 0 },
            Then::Type if word == SYMLINK => fixed(TARGET, 0, Then::Target),
            Then::Type if word == &DIRECTORY[..16] => {
                self.count_entry()?;
                to.directory(current(&self.names, self.depth)).map_err(PushError::Events)?;
                if self.names.len() == self.depth {
                    self.names.push(Vec::new());
                }
                self.names[self.depth].clear();
                self.depth += 1;
                fixed(DIRECTORY, 16, Then::Next)
            }
            Then::Regular if word == CONTENTS => {
                self.executable = false;
                State::Length { of: Then::Contents, buf: [0; 8], seen: 0 }
            }
            Then::Regular if word == &EXECUTABLE[..16] => {
                self.executable = true;
                fixed(EXECUTABLE, 16, Then::Contents)
            }
            Then::Next if word == &ENTRY[..16] => {
                if self.depth >= MAX_DEPTH {
                    let at = self.at - 16;
                    return Err(PushError::Parse(ParseError::TooDeep { at, limit: MAX_DEPTH }));
                }
                fixed(ENTRY, 16, Then::Name)
            }
            Then::Next if word == CLOSE => {
                self.depth -= 1;
                to.directory_end().map_err(PushError::Events)?;
                self.begin(Then::Done);
                return Ok(());
            }
            _ => {
                let expected = match of {
                    Then::Type => "\"regular\", \"symlink\" or \"directory\"",
                    Then::Regular => "\"contents\" or \"executable\"",
                    _ => "\"entry\" or \")\"",
                };
                return Err(PushError::Parse(ParseError::Unexpected {
                    at: self.at - 16,
                    expected,
                    got: quote_token(word),
                }));
            }
        };
        Ok(())
    }

    fn length<E: Events>(&mut self, of: Then, len: u64, to: &mut E) -> Result<(), PushError<E::Error>> {
        let at = self.at - 8;
        let pad = padding(len);
        if let Then::Contents = of {
            self.count_entry()?;
            // A file that exceeds the limit is refused before its first byte.
            let size = self.at.saturating_add(len);
            if size > self.max_bytes {
                return Err(PushError::Parse(ParseError::TooLarge { size, limit: self.max_bytes }));
            }
            to.file(current(&self.names, self.depth), self.executable, len).map_err(PushError::Events)?;
            self.state =
                if len == 0 { Self::after_token(Then::Done) } else { State::Contents { left: len, pad } };
            return Ok(());
        }
        let (what, max) = match of {
            Then::Name => ("an entry name", MAX_NAME),
            _ => ("a symlink target", MAX_TARGET),
        };
        if len == 0 || len > max {
            return Err(PushError::Parse(ParseError::Length { at, what, len, min: 1, max }));
        }
        self.metadata += len;
        if self.metadata > MAX_METADATA_BYTES {
            return Err(PushError::Parse(ParseError::TooMuchMetadata { at, limit: MAX_METADATA_BYTES }));
        }
        self.token.clear();
        let left = len as usize;
        self.state = match of {
            Then::Name => State::Name { left, pad },
            _ => State::Target { left, pad },
        };
        Ok(())
    }

    /// A name or a target is complete.
    fn token_done<E: Events>(&mut self, to: &mut E) -> Result<(), PushError<E::Error>> {
        let at = self.at - self.token.len() as u64;
        match self.state {
            State::Name { pad, .. } => {
                let previous = &mut self.names[self.depth - 1];
                check_name(at, &self.token, previous).map_err(PushError::Parse)?;
                std::mem::swap(previous, &mut self.token);
                self.state = Self::padded(pad, Then::Type);
            }
            State::Target { pad, .. } => {
                if self.token.contains(&0) {
                    let target = quote(&self.token);
                    return Err(PushError::Parse(ParseError::Target { at, target }));
                }
                self.count_entry()?;
                to.symlink(current(&self.names, self.depth), &self.token).map_err(PushError::Events)?;
                self.state = Self::padded(pad, Then::Done);
            }
            _ => unreachable!("only names and targets are collected in `token`"),
        }
        Ok(())
    }

    fn count_entry<E>(&mut self) -> Result<(), PushError<E>> {
        if self.entries >= self.max_entries {
            let (at, limit) = (self.at, self.max_entries);
            return Err(PushError::Parse(ParseError::TooManyEntries { at, limit }));
        }
        self.entries += 1;
        Ok(())
    }

    /// The error when the bytes of `input` differ from the current run.
    fn unexpected<E>(&self, input: &[u8]) -> PushError<E> {
        let State::Fixed { run, seen, .. } = self.state else {
            unreachable!("called for a run of known bytes only")
        };
        // The run began `seen` bytes ago, and those bytes matched.
        let mut got = run[..seen].to_vec();
        got.extend_from_slice(&input[..input.len().min(run.len() - seen)]);
        let differs = got.iter().zip(run).take_while(|(a, b)| a == b).count();
        // Quote from the beginning of the token that differs; all tokens of a run are 8-aligned.
        let mut token = 0;
        while let Some(len) = run.get(token) {
            let end = token + 8 + usize::from(*len).div_ceil(8) * 8;
            if end > differs {
                break;
            }
            token = end;
        }
        PushError::Parse(ParseError::Unexpected {
            at: self.at - seen as u64 + token as u64,
            expected: expected_word(&run[token..]),
            got: quote_token(&got[token.min(got.len())..]),
        })
    }
}

/// The name of the node at `depth`.
fn current(names: &[Vec<u8>], depth: usize) -> &[u8] {
    if depth == 0 { b"" } else { &names[depth - 1] }
}

fn check_name(at: u64, name: &[u8], previous: &[u8]) -> Result<(), ParseError> {
    let why = match name {
        b"." | b".." => "would name the directory itself or its parent",
        _ if name.contains(&b'/') => "contains a slash",
        _ if name.contains(&0) => "contains a NUL byte",
        _ if previous.is_empty() || name > previous => return Ok(()),
        _ => {
            let relation = if name == previous { "repeats" } else { "comes after" };
            return Err(ParseError::Order { at, name: quote(name), relation, previous: quote(previous) });
        }
    };
    Err(ParseError::Name { at, name: quote(name), why })
}

/// The word that `run` begins with, for error messages.
fn expected_word(run: &[u8]) -> &'static str {
    const WORDS: [&str; 11] = [
        "nix-archive-1",
        "(",
        "type",
        "directory",
        "executable",
        "contents",
        "target",
        "entry",
        "name",
        "node",
        ")",
    ];
    const QUOTED: [&str; 11] = [
        "\"nix-archive-1\"",
        "\"(\"",
        "\"type\"",
        "\"directory\"",
        "\"executable\"",
        "\"contents\"",
        "\"target\"",
        "\"entry\"",
        "\"name\"",
        "\"node\"",
        "\")\"",
    ];
    WORDS
        .iter()
        .position(|w| run.first() == Some(&(w.len() as u8)) && run[8..].starts_with(w.as_bytes()))
        .map_or("an empty token", |i| QUOTED[i])
}

/// The token that begins at `bytes`, as far as it has arrived.
fn quote_token(bytes: &[u8]) -> String {
    let Some(len) = bytes.first_chunk::<8>() else { return format!("the bytes {bytes:02x?}") };
    let len = u64::from_le_bytes(*len);
    let have = &bytes[8..];
    match usize::try_from(len) {
        Ok(len) if len <= have.len() => quote(&have[..len]),
        _ if len < 1 << 20 => format!("a token of {len} bytes beginning {}", quote(have)),
        _ => format!("a token of {len} bytes"),
    }
}

/// `bytes` in quotes, escaped and not longer than [`MAX_QUOTE`].
fn quote(bytes: &[u8]) -> String {
    let short = &bytes[..bytes.len().min(MAX_QUOTE)];
    let dots = if short.len() < bytes.len() { "…" } else { "" };
    format!("\"{}{dots}\"", short.escape_ascii())
}
