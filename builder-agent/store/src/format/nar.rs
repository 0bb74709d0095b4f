//! NAR, the archive format of Nix: a strict parser that works while the bytes arrive. The opposite direction,
//! reading an object as a NAR, is [`NarReader`](super::object::NarReader).

mod parse;
pub(crate) mod tokens;

pub use parse::{Events, MAX_DEPTH, MAX_METADATA_BYTES, MAX_NAME, MAX_TARGET, ParseError, Parser, PushError};
pub(crate) use tokens::flat_frame;
