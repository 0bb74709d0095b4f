//! The parts of EROFS that the store uses (Linux: `fs/erofs/erofs_fs.h`), and the store's own header before
//! them.
//!
//! Used: the superblock without optional features, compact and extended inodes, the layouts FLAT_PLAIN and
//! FLAT_INLINE, sorted directory blocks. All of it is read by Linux 5.4 and newer.

/// Size of a block, and of a page of every kernel we run: DAX maps file data only if the two are equal.
pub const BLOCK: u64 = 4096;
/// The name of the NAR's root in the root directory of an object.
pub const ROOT_ENTRY: &str = "root";

/// Offset of the superblock; EROFS leaves the 1024 bytes before it to the program that makes the image.
pub(super) const SUPERBLOCK_AT: usize = 1024;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
/// Inodes are counted in units of this many bytes.
pub(super) const SLOT: u64 = 32;
pub(super) const COMPACT: u64 = 32;
pub(super) const EXTENDED: u64 = 64;
/// Bytes of one directory entry without its name.
pub(super) const DIRENT: usize = 12;
/// The root directory of every image that the store makes. Slot 0 stays empty: inode number 0 means "no
/// entry" to readdir(3).
pub(super) const ROOT_NID: u64 = 1;

pub(super) const S_IFMT: u16 = 0o170_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFLNK: u16 = 0o120_000;

/// `file_type` of directory entries.
pub(super) const FT_REG: u8 = 1;
pub(super) const FT_DIR: u8 = 2;
pub(super) const FT_SYMLINK: u8 = 7;

const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;

/// Modification time of everything, as in every Nix store.
const MTIME: u64 = 1;

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*b[at..].first_chunk().expect("caller checked the length"))
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*b[at..].first_chunk().expect("caller checked the length"))
}

fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    b[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The fields of the superblock that differ between images.
pub(super) struct Superblock {
    /// Block from which inode numbers count.
    pub(super) meta_block: u32,
    /// Number of inodes, for statfs.
    pub(super) inodes: u64,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// Shown by `blkid`; distinguishes images.
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Writes the superblock into block 0.
    pub(super) fn write(&self, block0: &mut [u8]) {
        let b = &mut block0[SUPERBLOCK_AT..SUPERBLOCK_AT + 128];
        put(b, 0, &EROFS_MAGIC.to_le_bytes());
        b[12] = 12; // log2 of the block size
        put(b, 14, &(ROOT_NID as u16).to_le_bytes());
        put(b, 16, &self.inodes.to_le_bytes());
        put(b, 24, &MTIME.to_le_bytes()); // the mtime of all compact inodes
        put(b, 36, &self.blocks.to_le_bytes());
        put(b, 40, &self.meta_block.to_le_bytes());
        put(b, 48, &self.uuid);
    }
}

/// The store's header, at the very beginning of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) nar_hash: [u8; 32],
    pub(super) nar_size: u64,
    pub(super) data_blocks: u32,
    pub(super) inode_blocks: u32,
    pub(super) dir_blocks: u32,
    pub(super) inodes: u32,
    /// Inode of the NAR's root.
    pub(super) root: u64,
}

/// The last byte is the version of the format.
const HEADER_MAGIC: &[u8; 8] = b"BARNOBJ\x01";

impl Header {
    pub(super) fn write(&self, block0: &mut [u8]) {
        put(block0, 0, HEADER_MAGIC);
        put(block0, 8, &self.data_blocks.to_le_bytes());
        put(block0, 12, &self.inode_blocks.to_le_bytes());
        put(block0, 16, &self.dir_blocks.to_le_bytes());
        put(block0, 20, &self.inodes.to_le_bytes());
        put(block0, 24, &self.nar_size.to_le_bytes());
        put(block0, 32, &self.nar_hash);
        put(block0, 64, &self.root.to_le_bytes());
    }

    /// `None` if these are not the first bytes of an object.
    pub(super) fn read(b: &[u8; 72]) -> Option<Self> {
        (b[..8] == *HEADER_MAGIC).then(|| Self {
            data_blocks: u32_at(b, 8),
            inode_blocks: u32_at(b, 12),
            dir_blocks: u32_at(b, 16),
            inodes: u32_at(b, 20),
            nar_size: u64_at(b, 24),
            nar_hash: *b[32..].first_chunk().expect("72 - 32 >= 32"),
            root: u64_at(b, 64),
        })
    }

    pub(super) fn meta_block(&self) -> u64 {
        1 + u64::from(self.data_blocks)
    }

    pub(super) fn meta_blocks(&self) -> u64 {
        u64::from(self.inode_blocks) + u64::from(self.dir_blocks)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.meta_block() + self.meta_blocks()
    }
}

/// An inode in its form on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawInode {
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// The last, partial block of the contents stands behind the inode instead of in a block of its own.
    pub(super) inline: bool,
    /// First block of the contents; 0 when there is none.
    pub(super) block: u32,
    pub(super) number: u32,
}

impl RawInode {
    /// Bytes of the inode itself.
    pub(super) fn len(&self) -> u64 {
        if self.is_compact() { COMPACT } else { EXTENDED }
    }

    fn is_compact(&self) -> bool {
        self.size <= u64::from(u32::MAX) && self.links <= u32::from(u16::MAX)
    }

    pub(super) fn write(&self, b: &mut [u8]) {
        let layout = if self.inline { LAYOUT_INLINE } else { LAYOUT_PLAIN } << 1;
        if self.is_compact() {
            put(b, 0, &layout.to_le_bytes());
            put(b, 4, &self.mode.to_le_bytes());
            put(b, 6, &(self.links as u16).to_le_bytes());
            put(b, 8, &(self.size as u32).to_le_bytes());
            put(b, 16, &self.block.to_le_bytes());
            put(b, 20, &self.number.to_le_bytes());
        } else {
            put(b, 0, &(layout | 1).to_le_bytes());
            put(b, 4, &self.mode.to_le_bytes());
            put(b, 8, &self.size.to_le_bytes());
            put(b, 16, &self.block.to_le_bytes());
            put(b, 20, &self.number.to_le_bytes());
            put(b, 32, &MTIME.to_le_bytes());
            put(b, 44, &self.links.to_le_bytes());
        }
    }

    /// Reads the inode at the beginning of `b`; `None` if it is cut off or of a kind that the store never
    /// writes.
    pub(super) fn read(b: &[u8]) -> Option<Self> {
        if b.len() < COMPACT as usize {
            return None;
        }
        let (format, xattrs) = (u16_at(b, 0), u16_at(b, 2));
        let inline = match format >> 1 {
            LAYOUT_PLAIN => false,
            LAYOUT_INLINE => true,
            _ => return None,
        };
        if xattrs != 0 {
            return None;
        }
        let (mode, block, number) = (u16_at(b, 4), u32_at(b, 16), u32_at(b, 20));
        if format & 1 == 0 {
            let (links, size) = (u32::from(u16_at(b, 6)), u64::from(u32_at(b, 8)));
            Some(Self { mode, links, size, inline, block, number })
        } else if b.len() >= EXTENDED as usize {
            let inode = Self { mode, links: u32_at(b, 44), size: u64_at(b, 8), inline, block, number };
            // Extended although compact would do: the store never writes this, and `len` would be wrong.
            (!inode.is_compact()).then_some(inode)
        } else {
            None
        }
    }

    /// Offset of the block number in the inode.
    pub(super) const BLOCK_AT: usize = 16;

    /// Blocks of the contents outside of the inode.
    pub(super) fn full_blocks(&self) -> u64 {
        if self.inline { self.size / BLOCK } else { self.size.div_ceil(BLOCK) }
    }

    /// Bytes of the contents behind the inode.
    pub(super) fn tail(&self) -> u64 {
        if self.inline { self.size % BLOCK } else { 0 }
    }
}

/// Number of blocks of a directory with names of these lengths, and number of bytes in its last block.
///
/// Entries never cross a block: each block is a directory of its own, with its names behind its entries.
pub(super) fn dir_size(name_lens: impl Iterator<Item = usize>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for len in name_lens {
        let need = (DIRENT + len) as u64;
        if used + need > BLOCK {
            full += 1;
            used = 0;
        }
        used += need;
    }
    full * BLOCK + used
}

/// Collects directory entries and writes them block by block, in step with [`dir_size`].
#[derive(Default)]
pub(super) struct DirBlocks<'a> {
    block: Vec<(u64, u8, &'a [u8])>,
    used: u64,
    out: Vec<u8>,
}

impl<'a> DirBlocks<'a> {
    /// Names must come in ascending order, including `.` and `..`.
    pub(super) fn entry(&mut self, nid: u64, file_type: u8, name: &'a [u8]) {
        let need = (DIRENT + name.len()) as u64;
        if self.used + need > BLOCK {
            self.flush();
            self.out.resize(self.out.len().next_multiple_of(BLOCK as usize), 0);
        }
        self.used += need;
        self.block.push((nid, file_type, name));
    }

    fn flush(&mut self) {
        let mut name_at = (self.block.len() * DIRENT) as u16;
        for (nid, file_type, name) in &self.block {
            self.out.extend_from_slice(&nid.to_le_bytes());
            self.out.extend_from_slice(&name_at.to_le_bytes());
            self.out.extend_from_slice(&[*file_type, 0]);
            name_at += name.len() as u16;
        }
        for (_, _, name) in self.block.drain(..) {
            self.out.extend_from_slice(name);
        }
        self.used = 0;
    }

    /// The whole directory; the last block is not padded.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.flush();
        self.out
    }
}

/// Assigns places to inodes so that no inode and no tail crosses a block (the kernel refuses such tails).
pub(super) struct Slots {
    at: u64,
}

impl Slots {
    /// The first place is [`ROOT_NID`].
    pub(super) fn new() -> Self {
        Self { at: ROOT_NID * SLOT }
    }

    /// Byte offset for an inode of `len` bytes with `tail` bytes behind it.
    pub(super) fn place(&mut self, len: u64, tail: u64) -> u64 {
        if self.at % BLOCK + len + tail > BLOCK {
            self.at = self.at.next_multiple_of(BLOCK);
        }
        let at = self.at;
        self.at = (at + len + tail).next_multiple_of(SLOT);
        at
    }

    /// Number of blocks used so far. One slot stays free at the end: erofs-utils 1.5 reads an attribute
    /// header behind each inode, even one without attributes, and calls an image damaged that ends there.
    pub(super) fn blocks(&self) -> u64 {
        (self.at + SLOT).div_ceil(BLOCK)
    }
}
