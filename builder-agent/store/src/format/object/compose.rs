//! Composes one image of many objects, without copying their data.
//!
//! ```text
//! block 0           superblock
//! block 1           inode of the root directory
//! 2 .. 2+R          blocks of the root directory: one entry per path
//! then per object   its inode area and directory blocks, moved as a whole and rebased
//! then per object   its data blocks, as they are
//! ```
//!
//! Everything but the data is generated into one memory file. The metadata of an object is moved by whole
//! blocks, so every tail stays behind its inode; it becomes correct again when one number is added to its
//! inode numbers and another to its block numbers. The object's own root directory is wiped: `..` of the
//! NAR's root leads to the new root instead.

use std::fs::File;
use std::sync::Arc;

use super::erofs::{
    BLOCK, DIRENT, DirBlocks, FT_DIR, FT_REG, FT_SYMLINK, ROOT_NID, RawInode, S_IFDIR, S_IFLNK, S_IFMT,
    S_IFREG, SLOT, SUPERBLOCK_AT, Superblock, u16_at, u32_at, u64_at,
};
use super::read::Object;

/// Block from which inode numbers of a composed image count.
const META_BLOCK: u64 = 1;

/// Collects objects in the order of their names, then writes the metadata.
pub(crate) struct Composer {
    parts: Vec<Part>,
}

struct Part {
    name: String,
    object: Object,
    data_blocks: u64,
    meta_blocks: u64,
    /// `meta_block` of the object itself.
    old_meta: u64,
    inode_blocks: u64,
    inodes: u64,
    root: u64,
}

/// The finished image: its metadata, and the objects whose data follows.
pub(crate) struct Image {
    /// A multiple of the block size.
    pub(crate) meta: Vec<u8>,
    /// Objects that have data, with its length; the data begins at block 1 of the object's file.
    pub(crate) data: Vec<(Arc<File>, u64)>,
}

/// The errors of [`Composer::finish`].
pub(crate) enum ComposeFailure {
    /// The object with this index is damaged.
    Damaged(usize, String),
    /// More blocks than an image can have.
    TooLarge(u64),
}

impl Composer {
    pub(crate) fn new() -> Self {
        Self { parts: Vec::new() }
    }

    /// Adds `object` under `name`. Names must come in ascending order.
    pub(crate) fn add(&mut self, name: String, object: Object) {
        let header = *object.header();
        self.parts.push(Part {
            name,
            data_blocks: u64::from(header.data_blocks),
            meta_blocks: header.meta_blocks(),
            old_meta: header.meta_block(),
            inode_blocks: u64::from(header.inode_blocks),
            inodes: u64::from(header.inodes).saturating_sub(1),
            root: header.root,
            object,
        });
    }

    pub(crate) fn finish(self) -> Result<Image, ComposeFailure> {
        let names = || self.parts.iter().map(|p| p.name.as_bytes());
        let root_size = {
            let mut size = DirBlocks::default();
            size.entry(0, FT_DIR, b".");
            size.entry(0, FT_DIR, b"..");
            names().for_each(|n| size.entry(0, 0, n));
            size.finish().len() as u64
        };
        let root_blocks = root_size.div_ceil(BLOCK);
        let first_meta = META_BLOCK + 1 + root_blocks;
        let data_start = first_meta + self.parts.iter().map(|p| p.meta_blocks).sum::<u64>();
        let blocks = data_start + self.parts.iter().map(|p| p.data_blocks).sum::<u64>();
        let block_count = u32::try_from(blocks).map_err(|_| ComposeFailure::TooLarge(blocks))?;

        let mut out = vec![0; (first_meta * BLOCK) as usize];
        out.reserve_exact(((data_start - first_meta) * BLOCK) as usize);
        let mut root = DirBlocks::default();
        root.entry(ROOT_NID, FT_DIR, b".");
        root.entry(ROOT_NID, FT_DIR, b"..");
        let (mut next_meta, mut next_data) = (first_meta, data_start);
        let (mut inodes, mut subdirs) = (1, 0);
        for (i, part) in self.parts.iter().enumerate() {
            let moved = Move {
                nids: (next_meta - META_BLOCK) * (BLOCK / SLOT),
                dir_blocks: next_meta as i64 - part.old_meta as i64,
                // Data begins at block 1 of an object.
                data_blocks: next_data as i64 - 1,
            };
            let kind = moved.append(part, &mut out).map_err(|why| ComposeFailure::Damaged(i, why))?;
            subdirs += u32::from(kind == FT_DIR);
            root.entry(part.root + moved.nids, kind, part.name.as_bytes());
            inodes += part.inodes;
            next_meta += part.meta_blocks;
            next_data += part.data_blocks;
        }
        let root = root.finish();
        let inode = RawInode {
            mode: S_IFDIR | 0o555,
            links: 2 + subdirs,
            size: root.len() as u64,
            inline: false,
            block: (META_BLOCK + 1) as u32,
            number: 1,
        };
        inode.write(&mut out[((META_BLOCK * BLOCK) + ROOT_NID * SLOT) as usize..]);
        let root_at = ((META_BLOCK + 1) * BLOCK) as usize;
        out[root_at..root_at + root.len()].copy_from_slice(&root);
        Superblock { meta_block: META_BLOCK as u32, inodes, blocks: block_count, uuid: *b"barnraiser-image" }
            .write(&mut out[..BLOCK as usize]);
        debug_assert!(out.len() as u64 == data_start * BLOCK && out[SUPERBLOCK_AT] != 0);

        let data = self
            .parts
            .into_iter()
            .filter(|p| p.data_blocks > 0)
            .map(|p| (Arc::clone(p.object.file()), p.data_blocks * BLOCK))
            .collect();
        Ok(Image { meta: out, data })
    }
}

/// The numbers to add to those in an object's metadata.
struct Move {
    nids: u64,
    dir_blocks: i64,
    data_blocks: i64,
}

impl Move {
    /// Copies the metadata of `part` to the end of `out` and rebases it; returns the kind of the NAR's root.
    fn append(&self, part: &Part, out: &mut Vec<u8>) -> Result<u8, String> {
        let base = out.len();
        out.extend_from_slice(part.object.meta());
        let meta = &mut out[base..];
        let area = (part.inode_blocks * BLOCK) as usize;
        let mut root_kind = None;
        // Inodes follow each other: each is followed by its tail, and by empty slots up to the next block.
        let mut at = (ROOT_NID * SLOT) as usize;
        while at + SLOT as usize <= area {
            if u16_at(meta, at + 4) == 0 {
                at += SLOT as usize;
                continue;
            }
            let nid = at as u64 / SLOT;
            let bad = |why: &str| format!("inode {nid} {why}");
            let inode = RawInode::read(&meta[at..area]).ok_or_else(|| bad("is of no known kind"))?;
            let tail_at = at + inode.len() as usize;
            let next = (tail_at + inode.tail() as usize).next_multiple_of(SLOT as usize);
            if next > area {
                return Err(bad("has a tail outside of the inode area"));
            }
            if nid == ROOT_NID {
                meta[at..next].fill(0);
                at = next;
                continue;
            }
            let full = inode.full_blocks();
            let (low, high) = match inode.mode & S_IFMT {
                S_IFDIR => (part.old_meta + part.inode_blocks, part.old_meta + part.meta_blocks),
                _ => (1, part.old_meta),
            };
            let first = u64::from(inode.block);
            if full > 0 && (first < low || first.checked_add(full).is_none_or(|end| end > high)) {
                return Err(bad("has contents outside of its object"));
            }
            let kind = match inode.mode & S_IFMT {
                S_IFDIR => {
                    self.rebase_directory(meta, &inode, tail_at, part).map_err(bad)?;
                    FT_DIR
                }
                S_IFREG => FT_REG,
                S_IFLNK => FT_SYMLINK,
                _ => return Err(bad("is no file, directory or symlink")),
            };
            if nid == part.root {
                root_kind = Some(kind);
            }
            if full > 0 {
                let by = if kind == FT_DIR { self.dir_blocks } else { self.data_blocks };
                let block = (i64::from(inode.block) + by) as u32;
                let field = at + RawInode::BLOCK_AT;
                debug_assert_eq!(u32_at(meta, field), inode.block);
                meta[field..field + 4].copy_from_slice(&block.to_le_bytes());
            }
            at = next;
        }
        root_kind.ok_or_else(|| "it has no root".to_owned())
    }

    /// Rebases the inode numbers in all blocks of a directory.
    fn rebase_directory(
        &self,
        meta: &mut [u8],
        inode: &RawInode,
        tail_at: usize,
        part: &Part,
    ) -> Result<(), &'static str> {
        let mut done = 0;
        while done < inode.size {
            let len = (inode.size - done).min(BLOCK) as usize;
            let start = if done / BLOCK < inode.full_blocks() {
                ((u64::from(inode.block) - part.old_meta) * BLOCK + done) as usize
            } else {
                tail_at
            };
            let block = &mut meta[start..start + len];
            let names = if len < DIRENT { 0 } else { usize::from(u16_at(block, 8)) };
            if names < DIRENT || names > len {
                return Err("has a directory block without entries");
            }
            for at in (0..names / DIRENT).map(|i| i * DIRENT) {
                let nid = u64_at(block, at);
                // The object's own root directory is gone; the new root has the same number.
                let nid = if nid == ROOT_NID { nid } else { nid.wrapping_add(self.nids) };
                block[at..at + 8].copy_from_slice(&nid.to_le_bytes());
            }
            done += len as u64;
        }
        Ok(())
    }
}
