//! Formats of contents: NAR, the EROFS image that an object is, and git's hash. Bytes in, bytes out.
//!
//! Not here: which objects exist, and where their files are (`objects`).

pub(crate) mod git;
pub mod nar;
pub mod object;
