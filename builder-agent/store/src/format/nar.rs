//! NAR, the archive format of Nix, parsed strictly as it arrives. The other way, an object is read as a NAR by
//! [`NarReader`](super::object::NarReader).

mod parse;
pub(crate) mod tokens;

pub use parse::{Events, MAX_DEPTH, MAX_METADATA_BYTES, MAX_NAME, MAX_TARGET, ParseError, Parser, PushError};
pub(crate) use tokens::flat_frame;
