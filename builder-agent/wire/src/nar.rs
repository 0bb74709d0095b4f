//! Finds the end of a NAR in a stream of bytes, and checks its structure on the way.
//!
//! A NAR does not contain its own length: a reader has to parse it to find the bytes that follow it in a
//! stream. [`NarScanner`] takes bytes as they arrive, keeps only its position (and one short string), and never takes
//! a byte beyond the end. Format: a sequence of strings, each a length as 64 bits little endian, its bytes, and zeros
//! up to a multiple of 8. (Nix: src/libutil/archive.cc.)
//!
//! Not here: the order of entries, and the use of their contents (`store`).

use crate::error::quote;
use crate::limits::{MAX_NAR_DEPTH, MAX_NAR_NAME_BYTES, MAX_NAR_TARGET_BYTES};

/// Longest keyword: `nix-archive-1`.
const MAX_KEYWORD_BYTES: u64 = 16;

/// The reason why bytes are not a NAR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarError {
    #[error("expected {expected} and got {got} at byte {at}")]
    Unexpected { expected: &'static str, got: String, at: u64 },
    #[error("{what} of {len} bytes at byte {at}, at most {limit} are accepted")]
    TooLong { what: &'static str, len: u64, limit: u64, at: u64 },
    #[error("directories nested deeper than {limit} at byte {at}")]
    TooDeep { limit: usize, at: u64 },
    #[error("{name} cannot be a file name, at byte {at}")]
    BadName { name: String, at: u64 },
    #[error("the padding before byte {at} is not zero")]
    Padding { at: u64 },
    #[error("a plain file was announced and this is another kind of node")]
    NotFlat,
}

/// The strings that may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    NodeOpen,
    Type,
    TypeName,
    /// `executable`, `contents`, or the end of an empty file.
    Regular,
    ExecutableValue,
    /// After `executable`.
    Contents,
    ContentsValue,
    NodeClose,
    Target,
    TargetValue,
    /// `entry`, or the end of the directory.
    Entry,
    EntryOpen,
    Name,
    NameValue,
    Node,
    EntryClose,
}

impl Expect {
    fn describe(self) -> &'static str {
        match self {
            Self::Magic => "\"nix-archive-1\"",
            Self::NodeOpen | Self::EntryOpen => "\"(\"",
            Self::Type => "\"type\"",
            Self::TypeName => "\"regular\", \"symlink\" or \"directory\"",
            Self::Regular => "\"executable\", \"contents\" or \")\"",
            Self::ExecutableValue => "an empty string",
            Self::Contents => "\"contents\" or \")\"",
            Self::ContentsValue => "contents",
            Self::NodeClose | Self::EntryClose => "\")\"",
            Self::Target => "\"target\"",
            Self::TargetValue => "a link target",
            Self::Entry => "\"entry\" or \")\"",
            Self::Name => "\"name\"",
            Self::NameValue => "a file name",
            Self::Node => "\"node\"",
        }
    }

    fn limit(self) -> u64 {
        match self {
            Self::NameValue => MAX_NAR_NAME_BYTES,
            Self::TargetValue => MAX_NAR_TARGET_BYTES,
            Self::ContentsValue => u64::MAX - 7,
            _ => MAX_KEYWORD_BYTES,
        }
    }
}

/// The part of a string at the current position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Bytes of the length seen so far.
    Length {
        seen: u8,
        value: u64,
    },
    /// Bytes of the string that are still missing.
    Body {
        left: u64,
        pad: u8,
    },
    /// Zeros that are still missing.
    Padding {
        left: u8,
    },
    Finished,
}

/// The state of one scan. A few hundred bytes, for a NAR of any size.
#[derive(Debug, Clone)]
pub struct NarScanner {
    part: Part,
    expect: Expect,
    /// The string being read, unless it is the contents of a file.
    text: Vec<u8>,
    /// Number of directories around the current position.
    depth: usize,
    at: u64,
    /// Refuse everything but a plain file without `executable`.
    flat: bool,
}

impl Default for NarScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl NarScanner {
    /// A scanner at the start of a NAR.
    pub fn new() -> Self {
        Self {
            part: Part::Length { seen: 0, value: 0 },
            expect: Expect::Magic,
            text: Vec::new(),
            depth: 0,
            at: 0,
            flat: false,
        }
    }

    /// A scanner at the start of a NAR that must be one plain file.
    pub fn flat() -> Self {
        Self { flat: true, ..Self::new() }
    }

    /// Whether the last byte has been seen.
    pub fn is_finished(&self) -> bool {
        self.part == Part::Finished
    }

    /// Bytes seen so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Number of bytes that may be taken from the stream without passing the end of the NAR; 0 when it has
    /// ended.
    pub fn need(&self) -> u64 {
        match self.part {
            Part::Length { seen, .. } => 8 - u64::from(seen),
            Part::Body { left, .. } => left,
            Part::Padding { left } => left.into(),
            Part::Finished => 0,
        }
    }

    /// Whether the next [`need`](Self::need) bytes are the contents of a file.
    pub fn in_contents(&self) -> bool {
        self.expect == Expect::ContentsValue && matches!(self.part, Part::Body { .. })
    }

    /// Takes the next bytes and returns how many belong to the NAR: fewer than given only if the NAR ends
    /// among them.
    pub fn push(&mut self, bytes: &[u8]) -> Result<usize, NarError> {
        let mut used = 0;
        while used < bytes.len() && !self.is_finished() {
            used += self.step(&bytes[used..])?;
        }
        Ok(used)
    }

    /// Takes some of `bytes`, at least one: up to the end of the current part of a string.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, NarError> {
        let len = self.need().min(bytes.len() as u64) as usize;
        let taken = &bytes[..len];
        self.at += len as u64;
        match self.part {
            Part::Length { mut seen, mut value } => {
                for byte in taken {
                    value |= u64::from(*byte) << (8 * seen);
                    seen += 1;
                }
                self.part = Part::Length { seen, value };
                if seen == 8 {
                    self.length(value)?;
                }
            }
            Part::Body { left, pad } => {
                if self.expect != Expect::ContentsValue {
                    self.text.extend_from_slice(taken);
                }
                self.part = Part::Body { left: left - len as u64, pad };
                if left == len as u64 {
                    self.body_done(pad)?;
                }
            }
            Part::Padding { left } => {
                if taken.iter().any(|byte| *byte != 0) {
                    return Err(NarError::Padding { at: self.at });
                }
                self.part = Part::Padding { left: left - len as u8 };
                if usize::from(left) == len {
                    self.string_done()?;
                }
            }
            Part::Finished => {}
        }
        Ok(len)
    }

    fn length(&mut self, len: u64) -> Result<(), NarError> {
        let limit = self.expect.limit();
        if len > limit {
            let what = self.expect.describe();
            return Err(NarError::TooLong { what, len, limit, at: self.at });
        }
        let pad = (8 - len % 8) as u8 % 8;
        if len == 0 {
            return self.string_done();
        }
        self.part = Part::Body { left: len, pad };
        Ok(())
    }

    fn body_done(&mut self, pad: u8) -> Result<(), NarError> {
        if pad == 0 {
            return self.string_done();
        }
        self.part = Part::Padding { left: pad };
        Ok(())
    }

    fn string_done(&mut self) -> Result<(), NarError> {
        let text = std::mem::take(&mut self.text);
        let next = self.after(&text)?;
        self.text = text;
        self.text.clear();
        match next {
            Some(expect) => {
                self.expect = expect;
                self.part = Part::Length { seen: 0, value: 0 };
            }
            None => self.part = Part::Finished,
        }
        Ok(())
    }

    /// The strings that may follow the one just read; `None` after the last.
    fn after(&mut self, text: &[u8]) -> Result<Option<Expect>, NarError> {
        use Expect::*;
        let next = match (self.expect, text) {
            (Magic, b"nix-archive-1") => NodeOpen,
            (NodeOpen, b"(") => Type,
            (Type, b"type") => TypeName,
            (TypeName, b"regular") => Regular,
            (TypeName, b"symlink" | b"directory") if self.flat => return Err(NarError::NotFlat),
            (TypeName, b"symlink") => Target,
            (TypeName, b"directory") => {
                self.depth += 1;
                if self.depth > MAX_NAR_DEPTH {
                    return Err(NarError::TooDeep { limit: MAX_NAR_DEPTH, at: self.at });
                }
                Entry
            }
            (Regular, b"executable") if self.flat => return Err(NarError::NotFlat),
            (Regular, b"executable") => ExecutableValue,
            (ExecutableValue, b"") => Contents,
            (Regular | Contents, b"contents") => ContentsValue,
            (ContentsValue, _) => NodeClose,
            (Target, b"target") => TargetValue,
            (TargetValue, _) => NodeClose,
            (Regular | Contents | NodeClose, b")") => return Ok(self.node_closed()),
            (Entry, b"entry") => EntryOpen,
            (Entry, b")") => {
                self.depth -= 1;
                return Ok(self.node_closed());
            }
            (EntryOpen, b"(") => Name,
            (Name, b"name") => NameValue,
            (NameValue, name) => {
                if name.is_empty()
                    || name == b"."
                    || name == b".."
                    || name.iter().any(|b| matches!(b, 0 | b'/'))
                {
                    return Err(NarError::BadName { name: quote(name), at: self.at });
                }
                Node
            }
            (Node, b"node") => NodeOpen,
            (EntryClose, b")") => Entry,
            (expect, got) => {
                let expected = expect.describe();
                return Err(NarError::Unexpected { expected, got: quote(got), at: self.at });
            }
        };
        Ok(Some(next))
    }

    fn node_closed(&self) -> Option<Expect> {
        (self.depth > 0).then_some(Expect::EntryClose)
    }
}

#[cfg(test)]
#[path = "nar_test.rs"]
mod tests;
