//! Reads an object: its tree from memory, its file data directly from the file.
//!
//! The reader checks everything on disk before it follows it: offsets, lengths, block numbers, names. It does
//! not check that the tree is a tree; a caller that walks it must limit the depth and the work (with a
//! [`WalkGuard`]; `emit` by the size of the NAR).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use thiserror::Error;

use super::emit::NarReader;
use super::erofs::{
    BLOCK, DIRENT, Header, RawInode, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, SLOT, u16_at, u64_at,
};
use crate::format::nar::{MAX_DEPTH, MAX_NAME, MAX_TARGET};

/// Largest metadata of an object: a million entries of the longest kind need much less.
const MAX_META_BYTES: u64 = 1 << 30;

/// Size of one read of file data.
const PIECE: u64 = 256 << 10;

/// An object cannot be read.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The kernel reported an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are not those of an object.
    #[error("{0}")]
    Damaged(String),
}

fn damaged(why: impl Into<String>) -> ObjectError {
    ObjectError::Damaged(why.into())
}

/// An open object with its metadata in memory.
#[derive(Debug)]
pub struct Object {
    file: Arc<File>,
    header: Header,
    /// Inode area and directory blocks.
    meta: Vec<u8>,
}

/// The kind of an inode.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A directory; read it with [`Object::next_entry`].
    Directory(Dir),
    /// A regular file: `size` bytes from byte `at` of the object's file.
    File {
        /// Mode 555 rather than 444.
        executable: bool,
        /// Offset of the data.
        at: u64,
        /// Bytes.
        size: u64,
    },
    /// A symlink.
    Symlink {
        /// Its target.
        target: Vec<u8>,
    },
}

/// A position in a directory.
#[derive(Debug, Clone)]
pub struct Dir {
    inode: RawInode,
    tail_at: usize,
    block: u64,
    /// Bounds of the current block in the metadata.
    bounds: Range<usize>,
    entry: usize,
    entries: usize,
}

/// One entry of a directory; its name is found with [`Object::name`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// Number of the inode.
    pub nid: u64,
    name: Range<usize>,
}

impl Object {
    /// Reads the metadata of the object in `file`.
    pub fn open(file: Arc<File>) -> Result<Self, ObjectError> {
        let (header, meta_len) = measured(&file)?;
        let (want, have) = (header.blocks() * BLOCK, file.metadata()?.len());
        if want != have {
            return Err(damaged(format!("it has {have} bytes, should have {want}")));
        }
        let mut meta = vec![0; meta_len as usize];
        file.read_exact_at(&mut meta, header.meta_block() * BLOCK).map_err(short)?;
        Ok(Self { file, header, meta })
    }

    /// Size of the metadata of the object in `file`, which is the memory that the open object takes.
    pub fn measure(file: &File) -> Result<u64, ObjectError> {
        measured(file).map(|(_, meta_len)| meta_len)
    }

    /// The NAR from which this object was made.
    #[must_use]
    pub fn into_nar(self) -> NarReader {
        NarReader::new(Arc::new(self))
    }

    /// The file underneath.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// SHA-256 of the NAR.
    #[must_use]
    pub fn nar_hash(&self) -> &[u8; 32] {
        &self.header.nar_hash
    }

    /// Bytes of the NAR.
    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.header.nar_size
    }

    /// Bytes of metadata, which are in memory.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.meta.len() as u64
    }

    /// The inode of the NAR's root.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.header.root
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Blocks of file data, from block 1 on.
    pub(crate) fn data_blocks(&self) -> u64 {
        u64::from(self.header.data_blocks)
    }

    pub(super) fn meta(&self) -> &[u8] {
        &self.meta
    }

    /// The kind of inode `nid`.
    pub fn inode(&self, nid: u64) -> Result<Kind, ObjectError> {
        let area = self.header.inode_blocks as usize * BLOCK as usize;
        let bad = |why: &str| damaged(format!("inode {nid} {why}"));
        let at = nid.checked_mul(SLOT).and_then(|at| usize::try_from(at).ok()).filter(|&at| at < area);
        let at = at.ok_or_else(|| bad("is outside of the inode area"))?;
        let inode = RawInode::read(&self.meta[at..area]).ok_or_else(|| bad("is of no known kind"))?;
        let tail_at = at + inode.len() as usize;
        if tail_at + inode.tail() as usize > area {
            return Err(bad("has a tail outside of the inode area"));
        }
        match inode.mode & S_IFMT {
            S_IFDIR => {
                let dir_area = self.header.meta_block() + u64::from(self.header.inode_blocks);
                let end = u64::from(inode.block) + inode.full_blocks();
                if inode.size == 0
                    || (inode.full_blocks() > 0 && u64::from(inode.block) < dir_area)
                    || end > self.header.blocks()
                {
                    return Err(bad("is a directory outside of the directory blocks"));
                }
                Ok(Kind::Directory(Dir { inode, tail_at, block: 0, bounds: 0..0, entry: 0, entries: 0 }))
            }
            S_IFREG if !inode.inline => {
                let at = self.data(&inode).ok_or_else(|| bad("has data outside of the data blocks"))?;
                Ok(Kind::File { executable: inode.mode & 0o111 != 0, at, size: inode.size })
            }
            S_IFLNK if (1..=MAX_TARGET).contains(&inode.size) => {
                let mut target = vec![0; inode.size as usize];
                if inode.inline {
                    target.copy_from_slice(&self.meta[tail_at..tail_at + inode.size as usize]);
                } else {
                    let at = self.data(&inode).ok_or_else(|| bad("has data outside of the data blocks"))?;
                    self.file.read_exact_at(&mut target, at).map_err(short)?;
                }
                Ok(Kind::Symlink { target })
            }
            _ => Err(bad("is no file, directory or symlink")),
        }
    }

    /// Byte offset of the contents, if they lie in the data blocks.
    fn data(&self, inode: &RawInode) -> Option<u64> {
        let first = u64::from(inode.block);
        let fits = inode.full_blocks() == 0
            || (first >= 1 && first.checked_add(inode.full_blocks())? <= self.header.meta_block());
        fits.then_some(first * BLOCK)
    }

    /// The next entry of `dir`, without `.` and `..`.
    pub fn next_entry(&self, dir: &mut Dir) -> Result<Option<Entry>, ObjectError> {
        loop {
            if dir.entry == dir.entries && !self.next_block(dir)? {
                return Ok(None);
            }
            let block = &self.meta[dir.bounds.clone()];
            let at = dir.entry * DIRENT;
            let (nid, begin) = (u64_at(block, at), usize::from(u16_at(block, at + 8)));
            dir.entry += 1;
            let end = if dir.entry < dir.entries {
                usize::from(u16_at(block, at + DIRENT + 8))
            } else {
                // The last name ends at the end of the block, or where the padding begins.
                let rest = block.get(begin..).unwrap_or_default();
                begin + rest.iter().position(|&b| b == 0).unwrap_or(rest.len())
            };
            let name = block
                .get(begin..end)
                .filter(|n| begin >= dir.entries * DIRENT && !n.is_empty() && n.len() as u64 <= MAX_NAME)
                .filter(|n| !n.contains(&0) && !n.contains(&b'/'))
                .ok_or_else(|| damaged("a directory entry has no proper name"))?;
            if name != b"." && name != b".." {
                let start = dir.bounds.start;
                return Ok(Some(Entry { nid, name: start + begin..start + end }));
            }
        }
    }

    /// Moves to the next block of `dir`; false at its end.
    fn next_block(&self, dir: &mut Dir) -> Result<bool, ObjectError> {
        let done = dir.block * BLOCK;
        if done >= dir.inode.size {
            return Ok(false);
        }
        let len = (dir.inode.size - done).min(BLOCK) as usize;
        let start = if dir.block < dir.inode.full_blocks() {
            // `inode` checked that these blocks are inside the metadata.
            ((u64::from(dir.inode.block) - self.header.meta_block() + dir.block) * BLOCK) as usize
        } else {
            dir.tail_at
        };
        let block = &self.meta[start..start + len];
        let names = if len < DIRENT { 0 } else { usize::from(u16_at(block, 8)) };
        if names < DIRENT || names % DIRENT != 0 || names > len {
            return Err(damaged("a directory block has no entries"));
        }
        dir.bounds = start..start + len;
        dir.block += 1;
        dir.entry = 0;
        dir.entries = names / DIRENT;
        Ok(true)
    }

    /// The name of an entry that came from this object.
    #[must_use]
    pub fn name(&self, entry: &Entry) -> &[u8] {
        &self.meta[entry.name.clone()]
    }

    /// Passes the data of a [`Kind::File`] to `to`, in pieces.
    pub(crate) fn pieces(
        &self,
        mut at: u64,
        size: u64,
        mut to: impl FnMut(&[u8]) -> Result<(), ObjectError>,
    ) -> Result<(), ObjectError> {
        let mut piece = vec![0; size.min(PIECE) as usize];
        let mut left = size;
        while left > 0 {
            let n = left.min(PIECE) as usize;
            self.read_data(&mut piece[..n], at)?;
            to(&piece[..n])?;
            at += n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    /// A guard for a walk through the directories of this object.
    pub(crate) fn walk_guard(&self) -> WalkGuard {
        WalkGuard { left: self.header.inodes }
    }

    /// Fills `buf` from byte `at` of the object's file.
    pub fn read_data(&self, buf: &mut [u8], at: u64) -> Result<(), ObjectError> {
        self.file.read_exact_at(buf, at).map_err(short)
    }
}

/// Stops a walk through a damaged object whose directories contain each other.
pub(crate) struct WalkGuard {
    /// Number of inodes that may still come.
    left: u32,
}

impl WalkGuard {
    /// Counts one more inode, at this depth.
    pub(crate) fn enter(&mut self, depth: usize) -> Result<(), ObjectError> {
        let left = self.left.checked_sub(1).filter(|_| depth < MAX_DEPTH);
        self.left = left.ok_or_else(|| damaged("its directories are not a tree"))?;
        Ok(())
    }
}

/// The header, and the size of the metadata in bytes.
fn measured(file: &File) -> Result<(Header, u64), ObjectError> {
    let mut first = [0; 72];
    file.read_exact_at(&mut first, 0).map_err(short)?;
    let header = Header::read(&first).ok_or_else(|| damaged("it does not begin like an object"))?;
    let meta_len = header.meta_blocks() * BLOCK;
    if meta_len > MAX_META_BYTES || header.inode_blocks == 0 {
        return Err(damaged(format!("it has {meta_len} bytes of metadata")));
    }
    Ok((header, meta_len))
}

/// A file that ends too early is damaged; every other error is the kernel's.
fn short(e: io::Error) -> ObjectError {
    if e.kind() == io::ErrorKind::UnexpectedEof { damaged("it is cut off") } else { ObjectError::Io(e) }
}
