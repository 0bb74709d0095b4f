//! Produces the NAR of an object again, while the caller reads it.
//!
//! Memory: the object's metadata, two buffers and one position per open directory. The object comes from the
//! box's disk, which may be faulty: the depth is limited as for an uploaded NAR, and the work by the size of
//! the original NAR.

use std::io::{self, Read};
use std::sync::Arc;

use super::BLOCK;
use super::read::{Dir, Kind, Object, ObjectError};
use crate::format::nar::MAX_DEPTH;
use crate::format::nar::tokens::{
    CLOSE, CONTENTS, DIRECTORY, ENTRY, EXECUTABLE, NODE, REGULAR, START, SYMLINK, TARGET, padding,
};

/// The structure and small files are collected up to this size before the caller gets them.
const CHUNK: usize = 64 << 10;
/// Files up to this size go through the buffers; larger ones are read directly into the caller's buffer.
const SMALL: u64 = 16 << 10;
/// Small files are adjacent on disk, so many of them are read at once.
const WINDOW: usize = 128 << 10;

/// The NAR of one object, byte for byte as it was uploaded.
///
/// A damaged object ends in an error of kind `InvalidData`. Reading does not detect every damage: a flipped
/// bit in a file is returned as it is, and only the hash over the NAR shows it ([`crate::View::verify`]).
#[derive(Debug)]
pub struct NarReader {
    object: Arc<Object>,
    out: Vec<u8>,
    out_at: usize,
    /// Bytes of a large file that follow `out`: offset in the object, and number.
    data: Option<(u64, u64)>,
    /// The step after the end of `data`.
    after_data: u8,
    open: Vec<Dir>,
    started: bool,
    /// All bytes put into `out` or `data` so far.
    made: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl NarReader {
    pub(crate) fn new(object: Arc<Object>) -> Self {
        Self {
            object,
            out: Vec::new(),
            out_at: 0,
            data: None,
            after_data: 0,
            open: Vec::new(),
            started: false,
            made: 0,
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// Bytes of the whole NAR.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.object.nar_size()
    }

    /// SHA-256 of the whole NAR.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        self.object.nar_hash()
    }

    /// The same NAR from its beginning. Both readers share the object's metadata.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::new(Arc::clone(&self.object))
    }

    fn put(&mut self, bytes: &[u8]) {
        self.made += bytes.len() as u64;
        self.out.extend_from_slice(bytes);
    }

    fn token(&mut self, bytes: &[u8]) {
        self.put(&(bytes.len() as u64).to_le_bytes());
        self.put(bytes);
        self.put(&[0; 8][..usize::from(padding(bytes.len() as u64))]);
    }

    /// Produces the next piece; false at the end of the NAR.
    fn more(&mut self) -> Result<bool, ObjectError> {
        self.out.clear();
        self.out_at = 0;
        if !self.started {
            self.started = true;
            self.put(START);
            self.node(self.object.root())?;
        } else if self.after_data > 0 {
            let pad = usize::from(self.after_data - 1);
            self.after_data = 0;
            self.put(&[0; 8][..pad]);
            self.node_end();
        } else if self.open.is_empty() {
            return Ok(false);
        }
        while self.data.is_none() && self.out.len() < CHUNK {
            let Some(dir) = self.open.last_mut() else { break };
            match self.object.next_entry(dir)? {
                None => {
                    self.open.pop();
                    self.node_end();
                }
                Some(entry) => {
                    let object = Arc::clone(&self.object);
                    self.put(ENTRY);
                    self.token(object.name(&entry));
                    self.put(NODE);
                    self.node(entry.nid)?;
                }
            }
        }
        if self.made > self.size()
            || (self.open.is_empty() && self.data.is_none() && self.made != self.size())
        {
            let why =
                format!("its tree gives {} bytes of NAR or more, should give {}", self.made, self.size());
            return Err(ObjectError::Damaged(why));
        }
        Ok(true)
    }

    /// Produces a node from its type on, as far as one step can.
    fn node(&mut self, nid: u64) -> Result<(), ObjectError> {
        match self.object.inode(nid)? {
            Kind::Directory(dir) => {
                if self.open.len() >= MAX_DEPTH {
                    return Err(ObjectError::Damaged(format!("its tree is deeper than {MAX_DEPTH}")));
                }
                self.put(DIRECTORY);
                self.open.push(dir);
            }
            Kind::Symlink { target } => {
                self.put(SYMLINK);
                self.put(TARGET);
                self.token(&target);
                self.node_end();
            }
            Kind::File { executable, at, size } => {
                self.put(REGULAR);
                self.put(if executable { EXECUTABLE } else { CONTENTS });
                self.put(&size.to_le_bytes());
                let pad = padding(size);
                if size > SMALL {
                    self.data = Some((at, size));
                    self.made = self.made.saturating_add(size);
                    self.after_data = 1 + pad;
                } else {
                    self.small_file(at, size as usize)?;
                    self.put(&[0; 8][..usize::from(pad)]);
                    self.node_end();
                }
            }
        }
        Ok(())
    }

    /// Ends the innermost node and its entry.
    fn node_end(&mut self) {
        self.put(CLOSE);
        if !self.open.is_empty() {
            self.put(CLOSE);
        }
    }

    fn small_file(&mut self, at: u64, size: usize) -> Result<(), ObjectError> {
        if size == 0 {
            return Ok(());
        }
        let end = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + size as u64 > end {
            // File data ends before the metadata does, so the window may not reach beyond it.
            let data_end = (1 + self.object.data_blocks()) * BLOCK;
            let len = (data_end - at).min(WINDOW as u64) as usize;
            self.window.resize(len, 0);
            // After an error the window must not claim bytes that were not read.
            let mut window = std::mem::take(&mut self.window);
            self.object.read_data(&mut window, at)?;
            self.window = window;
            self.window_at = at;
        }
        let start = (at - self.window_at) as usize;
        self.made += size as u64;
        self.out.extend_from_slice(&self.window[start..start + size]);
        Ok(())
    }
}

impl Read for NarReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let ready = &self.out[self.out_at..];
            if !ready.is_empty() {
                let n = ready.len().min(buf.len());
                buf[..n].copy_from_slice(&ready[..n]);
                self.out_at += n;
                return Ok(n);
            }
            if let Some((at, left)) = self.data {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                self.object.read_data(&mut buf[..n], at).map_err(into_io)?;
                let left = left - n as u64;
                self.data = (left > 0).then_some((at + n as u64, left));
                return Ok(n);
            }
            if !self.more().map_err(into_io)? {
                return Ok(0);
            }
        }
    }
}

fn into_io(e: ObjectError) -> io::Error {
    match e {
        ObjectError::Io(e) => e,
        ObjectError::Damaged(_) => io::Error::new(io::ErrorKind::InvalidData, e),
    }
}
