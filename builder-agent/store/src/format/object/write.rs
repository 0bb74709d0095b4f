//! Writing an object in one pass: file data as it arrives, the tree in memory until the end, then the metadata.
//!
//! Memory is one small node per entry and the names, both bounded by the NAR parser. Nothing is fsynced here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::erofs::{BLOCK, Header, SLOT, Superblock};
use super::tree::{Plan, Top, Tree};
use crate::format::nar::{Events, flat_frame};

/// Small pieces of file data are collected up to this size.
const BUFFER: usize = 256 << 10;
/// Pieces from this size on are written as they come, without a copy.
const LARGE: usize = 64 << 10;

/// Receives the events of one NAR and writes the object.
pub(crate) struct ObjectWriter {
    file: File,
    buffer: Vec<u8>,
    /// File offset of the first byte of `buffer`.
    flushed: u64,
    tree: Tree,
}

/// A complete object.
pub(crate) struct Written {
    pub(crate) file: File,
    /// Bytes of the file.
    pub(crate) size: u64,
    /// SHA-256 of the file's contents, if the object is one small plain file.
    pub(crate) flat_hash: Option<[u8; 32]>,
}

impl ObjectWriter {
    /// `file` is empty and open for reading and writing.
    pub(crate) fn new(file: File) -> Self {
        Self { file, buffer: Vec::new(), flushed: BLOCK, tree: Tree::default() }
    }

    /// Memory in use, in bytes. At the end the metadata is generated from it, which takes about as much
    /// again.
    pub(crate) fn memory(&self) -> u64 {
        (2 * self.tree.memory() + self.buffer.capacity()) as u64
    }

    fn position(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.flushed)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let large = bytes.len() >= LARGE;
        if !self.buffer.is_empty() && (large || self.buffer.len() + bytes.len() >= BUFFER) {
            self.flush()?;
        }
        if large {
            self.file.write_all_at(bytes, self.flushed)?;
            self.flushed += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Fills up the last block and returns the number of the next one.
    fn align(&mut self) -> io::Result<u32> {
        let at = self.position().next_multiple_of(BLOCK);
        self.buffer.resize(self.buffer.len() + (at - self.position()) as usize, 0);
        u32::try_from(at / BLOCK).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
    }

    /// Starts a file whose length is known only at its end; for flat uploads, which have no NAR around them.
    /// Its data comes only through [`ObjectWriter::flat_data`].
    pub(crate) fn flat(file: File) -> Self {
        let mut writer = Self::new(file);
        writer.tree.file(b"", false, 0, 0);
        writer
    }

    /// Data of a [`ObjectWriter::flat`] file.
    pub(crate) fn flat_data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !bytes.is_empty() {
            self.tree.last_file_grows(bytes.len() as u64);
        }
        self.write(bytes)
    }

    /// Ends a [`ObjectWriter::flat`] file. Its NAR begins with its length, so it is hashed only now.
    pub(crate) fn finish_flat(mut self) -> io::Result<(Written, [u8; 32], u64)> {
        let size = self.position() - BLOCK;
        let (before, after) = flat_frame(size);
        let mut hash = Sha256::new();
        hash.update(&before);
        if self.flushed > BLOCK {
            self.flush()?;
            let mut piece = vec![0; BUFFER];
            let mut at = BLOCK;
            while at < self.flushed {
                let n = (self.flushed - at).min(BUFFER as u64) as usize;
                self.file.read_exact_at(&mut piece[..n], at)?;
                hash.update(&piece[..n]);
                at += n as u64;
            }
        } else {
            hash.update(&self.buffer);
        }
        hash.update(&after);
        let nar_size = size + (before.len() + after.len()) as u64;
        let nar_hash = hash.finalize().into();
        Ok((self.finish(nar_hash, nar_size)?, nar_hash, nar_size))
    }

    /// Writes the metadata. `nar_hash` names the object.
    pub(crate) fn finish(mut self, nar_hash: [u8; 32], nar_size: u64) -> io::Result<Written> {
        let meta_block = self.align()?;
        // A small object is still in the buffer as a whole, and is written at once.
        let whole = self.flushed == BLOCK;
        let flat_hash = match self.tree.single_plain_file() {
            Some(size) if whole => Some(Sha256::digest(&self.buffer[..size as usize]).into()),
            _ => None,
        };
        let mut image = vec![0; BLOCK as usize];
        if whole {
            image.append(&mut self.buffer);
        } else {
            self.flush()?;
        }
        let plan = Plan::new(&self.tree, Top::Above);
        let meta = plan.write(&self.tree, meta_block);
        if whole {
            image.extend_from_slice(&meta);
        } else {
            self.file.write_all_at(&meta, u64::from(meta_block) * BLOCK)?;
        }

        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let blocks = u64::from(meta_block) + meta.len() as u64 / BLOCK;
        let blocks = u32::try_from(blocks).map_err(|_| too_large())?;
        let inodes = self.tree.len() as u32 + 1;
        let header = Header {
            nar_hash,
            nar_size,
            data_blocks: meta_block - 1,
            inode_blocks: u32::try_from(plan.inode_blocks).map_err(|_| too_large())?,
            dir_blocks: u32::try_from(plan.dir_blocks).map_err(|_| too_large())?,
            inodes,
            root: plan.nid(0),
        };
        let block0 = &mut image[..BLOCK as usize];
        header.write(block0);
        let uuid = *nar_hash.first_chunk().expect("32 >= 16");
        Superblock { meta_block, inodes: u64::from(inodes), blocks, uuid }.write(block0);
        self.file.write_all_at(&image, 0)?;
        Ok(Written { file: self.file, size: u64::from(blocks) * BLOCK, flat_hash })
    }
}

impl Events for ObjectWriter {
    type Error = io::Error;

    fn directory(&mut self, name: &[u8]) -> io::Result<()> {
        self.tree.directory(name);
        Ok(())
    }

    fn directory_end(&mut self) -> io::Result<()> {
        self.tree.directory_end();
        Ok(())
    }

    fn file(&mut self, name: &[u8], executable: bool, size: u64) -> io::Result<()> {
        let block = if size == 0 { 0 } else { self.align()? };
        self.tree.file(name, executable, size, block);
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes)
    }

    fn symlink(&mut self, name: &[u8], target: &[u8]) -> io::Result<()> {
        let mut block = 0;
        if target.len() as u64 + SLOT > BLOCK {
            block = self.align()?;
            self.write(target)?;
        }
        self.tree.symlink(name, target, block);
        Ok(())
    }
}
