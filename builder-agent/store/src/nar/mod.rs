//! NAR, the archive format of Nix, both ways.
mod parse;
mod emit;
pub use parse::ParseError;
pub use emit::NarReader;
