//! Objects: the contents of one store path as one EROFS image.
//!
//! ```text
//! block 0            bytes 0..1024: our header; 1024..1152: EROFS superblock
//! 1 .. 1+D           file data, each file from a block of its own, in NAR order
//! 1+D .. +I          inodes, with short symlink targets and short directories behind them
//! 1+D+I .. +B        blocks of directories that are longer
//! ```
//!
//! The root of the image is a directory with one entry, [`ROOT_ENTRY`], which is the root of the NAR (it may be
//! a file or a symlink; the root of an EROFS may not). An object is a pure function of its NAR.
//!
//! Assumption: the store wrote the file, but the disk may have damaged it. The reader checks every offset
//! that it follows, and no count read from the file decides how much memory or time it spends.

mod compose;
mod composed;
mod emit;
mod erofs;
mod files;
mod read;
mod tree;
mod write;

pub use composed::Composed;
pub use emit::NarReader;
pub use erofs::{BLOCK, ROOT_ENTRY};
pub use files::{FileTree, FilesError};
pub use read::{Dir, Entry, Kind, Object, ObjectError};

pub(crate) use compose::{ComposeFailure, Composer};
pub(crate) use composed::memory_file;
pub(crate) use read::WalkGuard;
pub(crate) use write::{ObjectWriter, Written};
