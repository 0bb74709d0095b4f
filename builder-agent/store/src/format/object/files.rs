//! Composes one image of files that are open anyway, without copying them.
//!
//! ```text
//! block 0        superblock
//! 1 .. 1+M       inodes, then directory blocks
//! then           small contents that exist only in memory, each from a block of its own
//! then           each open file as it is, filled up with zeros to a whole block
//! ```
//!
//! All up to the first open file is one memory file. The zeros behind a file are those that a mapping shows between the end
//! of a file and the end of its last page, so not one byte of a file is copied.
//!
//! Assumption: nobody makes an open file shorter while the image is in use. A page that was cut off would end the process that
//! reads it (SIGBUS).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use super::composed::{Composed, memory_file};
use super::erofs::{BLOCK, Superblock};
use super::tree::{Plan, Top, Tree};

/// Longest name of a directory entry.
const MAX_NAME: usize = 255;
/// Block from which inode numbers count.
const META_BLOCK: u32 = 1;

/// The errors of a [`FileTree`].
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("`{0}` cannot be a path in an image: it needs names of 1 to 255 bytes other than `.` and `..`")]
    Path(String),
    /// One of the two would be invisible.
    #[error("the image would have two entries with the path `{0}`")]
    Twice(String),
    #[error("the image would have {0} blocks of 4 KiB, more than EROFS can count")]
    TooLarge(u64),
    #[error("cannot write the metadata of an image to memory")]
    Memory(#[source] io::Error),
}

enum Item {
    Folder(BTreeMap<String, Item>),
    Open(Arc<File>, u64),
    Bytes(Vec<u8>),
}

/// Folders and files for one image. All belong to root, with the modes 0555 and 0444; paths are relative, with `/` between
/// names. Folders on the way to a file are made.
#[derive(Default)]
pub struct FileTree {
    root: BTreeMap<String, Item>,
}

impl FileTree {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty folder.
    pub fn folder(&mut self, path: &str) -> Result<(), FilesError> {
        self.add(path, Item::Folder(BTreeMap::new()))
    }

    /// A file whose contents are the first `len` bytes of `file`, which is open for reading and has at least so many.
    pub fn open(&mut self, path: &str, file: Arc<File>, len: u64) -> Result<(), FilesError> {
        self.add(path, Item::Open(file, len))
    }

    /// A small file with these contents.
    pub fn bytes(&mut self, path: &str, contents: Vec<u8>) -> Result<(), FilesError> {
        self.add(path, Item::Bytes(contents))
    }

    fn add(&mut self, path: &str, item: Item) -> Result<(), FilesError> {
        let good =
            |name: &str| !matches!(name, "" | "." | "..") && name.len() <= MAX_NAME && !name.contains('\0');
        if !path.split('/').all(good) {
            return Err(FilesError::Path(path.into()));
        }
        let (above, name) = path.rsplit_once('/').map_or((None, path), |(above, name)| (Some(above), name));
        let mut folder = &mut self.root;
        for name in above.into_iter().flat_map(|above| above.split('/')) {
            match folder.entry(name.into()).or_insert_with(|| Item::Folder(BTreeMap::new())) {
                Item::Folder(next) => folder = next,
                _ => return Err(FilesError::Twice(path.into())),
            }
        }
        if folder.contains_key(name) {
            return Err(FilesError::Twice(path.into()));
        }
        folder.insert(name.into(), item);
        Ok(())
    }

    /// Writes the metadata; the files stay as they are and are part of the result.
    pub fn compose(self) -> Result<Composed, FilesError> {
        let mut sizes = Sizes::default();
        sizes.measure(&self.root);
        let mut laid_out = LaidOut {
            tree: Tree::default(),
            next_small: 0,
            next_open: sizes.small,
            small: Vec::new(),
            open: Vec::new(),
        };
        // Blocks are counted from the end of the metadata, whose size nobody knows yet. Those beyond u32 are refused below.
        laid_out.tree.directory(b"");
        laid_out.lay_out(self.root);
        laid_out.tree.directory_end();
        let LaidOut { tree, small, open, .. } = laid_out;

        let mut plan = Plan::new(&tree, Top::Node);
        let data = u64::from(META_BLOCK) + plan.blocks();
        let blocks = data + sizes.small + sizes.open;
        let block_count = u32::try_from(blocks).map_err(|_| FilesError::TooLarge(blocks))?;
        // It is less than `blocks`.
        plan.data_moves(data as u32);

        let mut head = vec![0; BLOCK as usize];
        let inodes = tree.len() as u64;
        Superblock { meta_block: META_BLOCK, inodes, blocks: block_count, uuid: *b"barnraiser-files" }
            .write(&mut head);
        head.append(&mut plan.write(&tree, META_BLOCK));
        for contents in small {
            head.extend_from_slice(&contents);
            head.resize(head.len().next_multiple_of(BLOCK as usize), 0);
        }
        debug_assert_eq!(head.len() as u64, (data + sizes.small) * BLOCK);
        let head_len = head.len() as u64;
        let head = memory_file(&head).map_err(FilesError::Memory)?;
        let mut segments = vec![(Arc::new(head), 0, head_len)];
        segments.extend(open.into_iter().map(|(file, len)| (file, 0, len.next_multiple_of(BLOCK))));
        Ok(Composed { segments, len: blocks * BLOCK })
    }
}

/// Blocks of all contents.
#[derive(Default)]
struct Sizes {
    small: u64,
    open: u64,
}

impl Sizes {
    fn measure(&mut self, folder: &BTreeMap<String, Item>) {
        for item in folder.values() {
            match item {
                Item::Folder(inner) => self.measure(inner),
                Item::Bytes(contents) => self.small += (contents.len() as u64).div_ceil(BLOCK),
                Item::Open(_, len) => self.open = self.open.saturating_add(len.div_ceil(BLOCK)),
            }
        }
    }
}

struct LaidOut {
    tree: Tree,
    next_small: u64,
    next_open: u64,
    small: Vec<Vec<u8>>,
    open: Vec<(Arc<File>, u64)>,
}

impl LaidOut {
    fn lay_out(&mut self, folder: BTreeMap<String, Item>) {
        for (name, item) in folder {
            match item {
                Item::Folder(inner) => {
                    self.tree.directory(name.as_bytes());
                    self.lay_out(inner);
                    self.tree.directory_end();
                }
                Item::Bytes(contents) => {
                    let len = contents.len() as u64;
                    self.tree.file(name.as_bytes(), false, len, self.next_small as u32);
                    self.next_small += len.div_ceil(BLOCK);
                    self.small.push(contents);
                }
                Item::Open(file, len) => {
                    self.tree.file(name.as_bytes(), false, len, self.next_open as u32);
                    self.next_open = self.next_open.saturating_add(len.div_ceil(BLOCK));
                    if len > 0 {
                        self.open.push((file, len));
                    }
                }
            }
        }
    }
}
