//! NAR, the archive format of Nix, both ways: parsed strictly as it arrives, and made again from an object.

mod emit;
mod parse;
mod tokens;

pub use emit::NarReader;
pub(crate) use emit::flat_frame;
pub use parse::{Events, MAX_DEPTH, MAX_METADATA_BYTES, MAX_NAME, MAX_TARGET, ParseError, Parser, PushError};
