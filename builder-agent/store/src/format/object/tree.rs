//! The metadata of an image: a tree of directories, files and symlinks becomes inodes and directory blocks.
//!
//! Both writers of images use it: that of objects (`write`) and that of files that are open anyway (`files`). Where the data
//! of the files is, they say. Nothing is read or written here.

use super::erofs::{
    BLOCK, DirBlocks, FT_DIR, FT_REG, FT_SYMLINK, ROOT_ENTRY, ROOT_NID, RawInode, S_IFDIR, S_IFLNK, S_IFMT,
    S_IFREG, SLOT, Slots, dir_size,
};

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

/// The tree of an image, in the order of a NAR: parents before children, siblings sorted.
#[derive(Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    open: Vec<u32>,
    names: Vec<u8>,
}

/// What the root directory of an image is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Top {
    /// A directory whose only entry, [`ROOT_ENTRY`], is the first node.
    Above,
    /// The first node, which is a directory.
    Node,
}

impl Tree {
    /// Memory in use, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.names.capacity()
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn directory(&mut self, name: &[u8]) {
        let this = self.nodes.len() as u32;
        self.node(name, Kind::Dir { end: 0 });
        self.open.push(this);
    }

    pub(super) fn directory_end(&mut self) {
        let after = self.nodes.len() as u32;
        if let Some(dir) = self.open.pop() {
            self.nodes[dir as usize].kind = Kind::Dir { end: after };
        }
    }

    /// `block` is the first one of its data, and 0 if it has none.
    pub(super) fn file(&mut self, name: &[u8], executable: bool, size: u64, block: u32) {
        self.node(name, Kind::File { executable, size, block });
    }

    /// `block` is 0 for a target that follows its inode.
    pub(super) fn symlink(&mut self, name: &[u8], target: &[u8], block: u32) {
        let target_at = self.names.len() as u32;
        self.names.extend_from_slice(target);
        self.node(name, Kind::Link { target_at, target_len: target.len() as u16, block });
    }

    /// The last node, if it is a file, has `more` bytes from block 1 on.
    pub(super) fn last_file_grows(&mut self, more: u64) {
        if let Some(Node { kind: Kind::File { size, block, .. }, .. }) = self.nodes.last_mut() {
            *block = 1;
            *size += more;
        }
    }

    /// The size of the only node, if that is a file that cannot be executed.
    pub(super) fn single_plain_file(&self) -> Option<u64> {
        match self.nodes[..] {
            [Node { kind: Kind::File { executable: false, size, .. }, .. }] => Some(size),
            _ => None,
        }
    }

    fn node(&mut self, name: &[u8], kind: Kind) {
        // Callers limit each name to 255 bytes, and all of them to far less than 4 GiB.
        let name_at = self.names.len() as u32;
        self.names.extend_from_slice(name);
        let parent = self.open.last().copied().unwrap_or(0);
        self.nodes.push(Node { name_at, name_len: name.len() as u8, parent, kind });
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

/// Stands for `.` and `..` among the children of a directory.
const SELF: usize = usize::MAX;
const PARENT: usize = usize::MAX - 1;

/// The place of every inode and block. Made before any metadata is written, since a directory names its
/// children's inodes.
pub(super) struct Plan {
    top: Top,
    /// With [`Top::Above`].
    above: RawInode,
    above_at: u64,
    inodes: Vec<RawInode>,
    /// Byte offset of each inode in the inode area.
    places: Vec<u64>,
    pub(super) inode_blocks: u64,
    pub(super) dir_blocks: u64,
}

impl Plan {
    pub(super) fn new(tree: &Tree, top: Top) -> Self {
        let nodes = &tree.nodes;
        let mut slots = Slots::new();
        let above = RawInode {
            mode: S_IFDIR | 0o555,
            links: 2 + u32::from(matches!(nodes[0].kind, Kind::Dir { .. })),
            size: dir_size([1, 2, ROOT_ENTRY.len()].into_iter()),
            inline: true,
            block: 0,
            number: 1,
        };
        let (above_at, first_number) = match top {
            Top::Above => (slots.place(above.len(), above.tail()), 2),
            Top::Node => (0, 1),
        };

        let mut inodes = Vec::with_capacity(nodes.len());
        let mut places = Vec::with_capacity(nodes.len());
        let mut dir_blocks = 0;
        let mut list = Vec::new();
        for (i, node) in nodes.iter().enumerate() {
            let number = i as u32 + first_number;
            let plain = |mode, size, block| RawInode { mode, links: 1, size, inline: false, block, number };
            let inode = match node.kind {
                Kind::File { executable: false, size, block } => plain(S_IFREG | 0o444, size, block),
                Kind::File { executable: true, size, block } => plain(S_IFREG | 0o555, size, block),
                Kind::Link { target_len, block, .. } => {
                    RawInode { inline: block == 0, ..plain(S_IFLNK | 0o777, u64::from(target_len), block) }
                }
                Kind::Dir { .. } => {
                    tree.list(i, &mut list);
                    let below = list.iter().filter(|(_, c)| tree.is_dir(*c)).count() as u32;
                    let size = dir_size(list.iter().map(|(name, _)| name.len()));
                    let mut inode = RawInode { links: 2 + below, ..plain(S_IFDIR | 0o555, size, 0) };
                    // A tail that (nearly) fills its block leaves no room for the inode before it.
                    // The root has its place in the first block, behind the empty slot.
                    let before = if i == 0 && top == Top::Node { ROOT_NID * SLOT } else { 0 };
                    inode.inline = size % BLOCK != 0 && before + inode.len() + size % BLOCK <= BLOCK;
                    // Relative for now: the inode area before it grows until the last inode has its place.
                    inode.block = dir_blocks as u32;
                    dir_blocks += inode.full_blocks();
                    inode
                }
            };
            places.push(slots.place(inode.len(), inode.tail()));
            inodes.push(inode);
        }
        Self { top, above, above_at, inodes, places, inode_blocks: slots.blocks(), dir_blocks }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.inode_blocks + self.dir_blocks
    }

    /// The data of all files that have some is this many blocks further on than the tree said.
    pub(super) fn data_moves(&mut self, by: u32) {
        for inode in self.inodes.iter_mut().filter(|inode| inode.mode & S_IFMT == S_IFREG && inode.size > 0) {
            inode.block += by;
        }
    }

    pub(super) fn nid(&self, node: usize) -> u64 {
        self.places[node] / SLOT
    }

    /// The inode area and the directory blocks. `tree` is the one of the plan; inode numbers count from `meta_block`.
    pub(super) fn write(&self, tree: &Tree, meta_block: u32) -> Vec<u8> {
        let dir_area = self.inode_blocks * BLOCK;
        let mut out = vec![0; (dir_area + self.dir_blocks * BLOCK) as usize];

        if self.top == Top::Above {
            let mut root = DirBlocks::default();
            root.entry(ROOT_NID, FT_DIR, b".");
            root.entry(ROOT_NID, FT_DIR, b"..");
            root.entry(self.nid(0), file_type(&tree.nodes[0]), ROOT_ENTRY.as_bytes());
            put_inode(&mut out, self.above_at, self.above, &root.finish());
        }

        let mut list = Vec::new();
        for (i, node) in tree.nodes.iter().enumerate() {
            let (mut inode, at) = (self.inodes[i], self.places[i]);
            match node.kind {
                Kind::File { .. } => put_inode(&mut out, at, inode, b""),
                Kind::Link { block: 0, target_at, target_len } => {
                    let target = &tree.names[target_at as usize..][..usize::from(target_len)];
                    put_inode(&mut out, at, inode, target);
                }
                Kind::Link { .. } => put_inode(&mut out, at, inode, b""),
                Kind::Dir { .. } => {
                    tree.list(i, &mut list);
                    let parent = if i == 0 { ROOT_NID } else { self.nid(node.parent as usize) };
                    let mut blocks = DirBlocks::default();
                    for (name, child) in &list {
                        match *child {
                            SELF => blocks.entry(self.nid(i), FT_DIR, name),
                            PARENT => blocks.entry(parent, FT_DIR, name),
                            c => blocks.entry(self.nid(c), file_type(&tree.nodes[c]), name),
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
