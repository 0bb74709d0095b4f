//! Writing an object in one pass: file data as it arrives, the tree in memory until the end, then the metadata.
//!
//! Memory is one small node per entry and the names, both bounded by the NAR parser. Nothing is fsynced here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::erofs::{
    BLOCK, DirBlocks, FT_DIR, FT_REG, FT_SYMLINK, Header, ROOT_ENTRY, ROOT_NID, RawInode, S_IFDIR, S_IFLNK,
    S_IFREG, SLOT, Slots, Superblock, dir_size,
};
use crate::format::nar::{Events, flat_frame};

/// Small pieces of file data are collected up to this size.
const BUFFER: usize = 256 << 10;
/// Pieces from this size on are written as they come, without a copy.
const LARGE: usize = 64 << 10;

struct Node {
    name_at: u32,
    name_len: u8,
    /// Index of the parent directory; unused for the root.
    parent: u32,
    kind: Kind,
}

enum Kind {
    /// `end` is the index after the last node below this directory.
    Dir {
        end: u32,
    },
    File {
        executable: bool,
        size: u64,
        block: u32,
    },
    /// A target that is too long to follow its inode has a `block`; 0 means none.
    Link {
        target_at: u32,
        target_len: u16,
        block: u32,
    },
}

/// Receives the events of one NAR and writes the object.
pub(crate) struct ObjectWriter {
    file: File,
    buffer: Vec<u8>,
    /// File offset of the first byte of `buffer`.
    flushed: u64,
    /// In the order of the NAR: parents before children, siblings sorted.
    nodes: Vec<Node>,
    open: Vec<u32>,
    names: Vec<u8>,
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
        Self {
            file,
            buffer: Vec::new(),
            flushed: BLOCK,
            nodes: Vec::new(),
            open: Vec::new(),
            names: Vec::new(),
        }
    }

    /// Memory in use, in bytes. At the end the metadata is generated from it, which takes about as much
    /// again.
    pub(crate) fn memory(&self) -> u64 {
        let tree = self.nodes.capacity() * size_of::<Node>() + self.names.capacity();
        (2 * tree + self.buffer.capacity()) as u64
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

    fn node(&mut self, name: &[u8], kind: Kind) {
        // The parser limits each name to 255 bytes and all of them to MAX_METADATA_BYTES.
        let name_at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        let parent = self.open.last().copied().unwrap_or(0);
        self.nodes.push(Node { name_at, name_len: name.len() as u8, parent, kind });
    }

    /// Starts a file whose length is known only at its end; for flat uploads, which have no NAR around them.
    /// Its data comes only through [`ObjectWriter::flat_data`].
    pub(crate) fn flat(file: File) -> Self {
        let mut writer = Self::new(file);
        writer.node(b"", Kind::File { executable: false, size: 0, block: 0 });
        writer
    }

    /// Data of a [`ObjectWriter::flat`] file.
    pub(crate) fn flat_data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(Node { kind: Kind::File { size, block, .. }, .. }) = self.nodes.last_mut()
            && !bytes.is_empty()
        {
            *block = 1;
            *size += bytes.len() as u64;
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
        let flat_hash = match self.nodes[..] {
            [Node { kind: Kind::File { executable: false, size, .. }, .. }] if whole => {
                Some(Sha256::digest(&self.buffer[..size as usize]).into())
            }
            _ => None,
        };
        let mut image = vec![0; BLOCK as usize];
        if whole {
            image.append(&mut self.buffer);
        } else {
            self.flush()?;
        }
        let plan = Plan::new(&self);
        let meta = plan.write(&self, meta_block);
        if whole {
            image.extend_from_slice(&meta);
        } else {
            self.file.write_all_at(&meta, u64::from(meta_block) * BLOCK)?;
        }

        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let blocks = u64::from(meta_block) + meta.len() as u64 / BLOCK;
        let blocks = u32::try_from(blocks).map_err(|_| too_large())?;
        let inodes = self.nodes.len() as u32 + 1;
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

    fn name(&self, node: &Node) -> &[u8] {
        let at = node.name_at as usize;
        &self.names[at..at + usize::from(node.name_len)]
    }

    fn is_dir(&self, node: usize) -> bool {
        self.nodes.get(node).is_some_and(|n| matches!(n.kind, Kind::Dir { .. }))
    }

    /// All entries of the directory `dir` in order, with `.` and `..` at their places: `!` and `+` sort
    /// before them.
    fn list<'a>(&'a self, dir: usize, out: &mut Vec<(&'a [u8], usize)>) {
        out.clear();
        let Kind::Dir { end } = self.nodes[dir].kind else { return };
        let mut at = dir + 1;
        while at < end as usize {
            out.push((self.name(&self.nodes[at]), at));
            at = match self.nodes[at].kind {
                Kind::Dir { end } => end as usize,
                _ => at + 1,
            };
        }
        for (name, which) in [(&b"."[..], SELF), (b"..", PARENT)] {
            let place = out.partition_point(|(n, _)| *n < name);
            out.insert(place, (name, which));
        }
    }
}

impl Events for ObjectWriter {
    type Error = io::Error;

    fn directory(&mut self, name: &[u8]) -> io::Result<()> {
        let this = self.nodes.len() as u32;
        self.node(name, Kind::Dir { end: 0 });
        self.open.push(this);
        Ok(())
    }

    fn directory_end(&mut self) -> io::Result<()> {
        let after = self.nodes.len() as u32;
        if let Some(dir) = self.open.pop() {
            self.nodes[dir as usize].kind = Kind::Dir { end: after };
        }
        Ok(())
    }

    fn file(&mut self, name: &[u8], executable: bool, size: u64) -> io::Result<()> {
        let block = if size == 0 { 0 } else { self.align()? };
        self.node(name, Kind::File { executable, size, block });
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
        let target_at = self.names.len() as u32;
        self.names.extend_from_slice(target);
        self.node(name, Kind::Link { target_at, target_len: target.len() as u16, block });
        Ok(())
    }
}

/// Stands for `.` and `..` among the children of a directory.
const SELF: usize = usize::MAX;
const PARENT: usize = usize::MAX - 1;

/// The place of every inode and block. Made before any metadata is written, since a directory names its
/// children's inodes.
struct Plan {
    root: RawInode,
    root_at: u64,
    inodes: Vec<RawInode>,
    /// Byte offset of each inode in the inode area.
    places: Vec<u64>,
    inode_blocks: u64,
    dir_blocks: u64,
}

impl Plan {
    fn new(writer: &ObjectWriter) -> Self {
        let nodes = &writer.nodes;
        let mut slots = Slots::new();
        let root = RawInode {
            mode: S_IFDIR | 0o555,
            links: 2 + u32::from(matches!(nodes[0].kind, Kind::Dir { .. })),
            size: dir_size([1, 2, ROOT_ENTRY.len()].into_iter()),
            inline: true,
            block: 0,
            number: 1,
        };
        let root_at = slots.place(root.len(), root.tail());

        let mut inodes = Vec::with_capacity(nodes.len());
        let mut places = Vec::with_capacity(nodes.len());
        let mut dir_blocks = 0;
        let mut list = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let number = i as u32 + 2;
            let plain = |mode, size, block| RawInode { mode, links: 1, size, inline: false, block, number };
            let inode = match node.kind {
                Kind::File { executable: false, size, block } => plain(S_IFREG | 0o444, size, block),
                Kind::File { executable: true, size, block } => plain(S_IFREG | 0o555, size, block),
                Kind::Link { target_len, block, .. } => {
                    RawInode { inline: block == 0, ..plain(S_IFLNK | 0o777, u64::from(target_len), block) }
                }
                Kind::Dir { .. } => {
                    writer.list(i, &mut list);
                    let below = list.iter().filter(|(_, c)| writer.is_dir(*c)).count() as u32;
                    let size = dir_size(list.iter().map(|(name, _)| name.len()));
                    let mut inode = RawInode { links: 2 + below, ..plain(S_IFDIR | 0o555, size, 0) };
                    // A tail that (nearly) fills its block leaves no room for the inode before it.
                    inode.inline = size % BLOCK != 0 && inode.len() + size % BLOCK <= BLOCK;
                    // Relative for now: the inode area before it grows until the last inode has its place.
                    inode.block = dir_blocks as u32;
                    dir_blocks += inode.full_blocks();
                    inode
                }
            };
            places.push(slots.place(inode.len(), inode.tail()));
            inodes.push(inode);
        }
        Self { root, root_at, inodes, places, inode_blocks: slots.blocks(), dir_blocks }
    }

    fn nid(&self, node: usize) -> u64 {
        self.places[node] / SLOT
    }

    /// The inode area and the directory blocks.
    fn write(&self, writer: &ObjectWriter, meta_block: u32) -> Vec<u8> {
        let dir_area = self.inode_blocks * BLOCK;
        let mut out = vec![0; (dir_area + self.dir_blocks * BLOCK) as usize];

        let mut root = DirBlocks::default();
        root.entry(ROOT_NID, FT_DIR, b".");
        root.entry(ROOT_NID, FT_DIR, b"..");
        root.entry(self.nid(0), file_type(&writer.nodes[0]), ROOT_ENTRY.as_bytes());
        put_inode(&mut out, self.root_at, self.root, &root.finish());

        let mut list = Vec::new();
        for (i, node) in writer.nodes.iter().enumerate() {
            let (mut inode, at) = (self.inodes[i], self.places[i]);
            match node.kind {
                Kind::File { .. } => put_inode(&mut out, at, inode, b""),
                Kind::Link { block: 0, target_at, target_len } => {
                    let target = &writer.names[target_at as usize..][..usize::from(target_len)];
                    put_inode(&mut out, at, inode, target);
                }
                Kind::Link { .. } => put_inode(&mut out, at, inode, b""),
                Kind::Dir { .. } => {
                    writer.list(i, &mut list);
                    let parent = if i == 0 { ROOT_NID } else { self.nid(node.parent as usize) };
                    let mut blocks = DirBlocks::default();
                    for (name, child) in &list {
                        match *child {
                            SELF => blocks.entry(self.nid(i), FT_DIR, name),
                            PARENT => blocks.entry(parent, FT_DIR, name),
                            c => blocks.entry(self.nid(c), file_type(&writer.nodes[c]), name),
                        }
                    }
                    let contents = blocks.finish();
                    let behind = contents.len() - inode.tail() as usize;
                    let relative = u64::from(inode.block);
                    let outside = (dir_area + relative * BLOCK) as usize;
                    out[outside..outside + behind].copy_from_slice(&contents[..behind]);
                    inode.block = match behind {
                        0 => 0,
                        _ => meta_block + (self.inode_blocks + relative) as u32,
                    };
                    put_inode(&mut out, at, inode, &contents[behind..]);
                }
            }
        }
        out
    }
}

fn put_inode(out: &mut [u8], at: u64, inode: RawInode, tail: &[u8]) {
    let at = at as usize;
    let tail_at = at + inode.len() as usize;
    inode.write(&mut out[at..tail_at]);
    out[tail_at..tail_at + tail.len()].copy_from_slice(tail);
}

fn file_type(node: &Node) -> u8 {
    match node.kind {
        Kind::Dir { .. } => FT_DIR,
        Kind::File { .. } => FT_REG,
        Kind::Link { .. } => FT_SYMLINK,
    }
}
