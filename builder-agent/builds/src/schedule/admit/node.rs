//! One node of the tree of owners, or a group beside the tree, and the list of all.
//!
//! Not here: how nodes depend on each other (`tree`).

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};
use std::time::Instant;

use super::line::{Class, Line};
use super::owner::{Size, Terms};
use super::usage::Usage;

pub type NodeId = usize;

/// The box.
pub const ROOT: NodeId = 0;

#[derive(Debug, Default)]
pub struct Node {
    pub parent: NodeId,
    pub terms: Terms,
    pub usage: Usage,
    /// Runs that wait below this node.
    pub queued: usize,
    pub started: usize,
    /// What the started runs take of the box.
    pub taken: Taken,
    /// Since when a member, who would have been next, has been passed by because the box has no room for the next run.
    pub passed: Option<Instant>,
    /// Since when it waits without a start: a number that grows.
    pub since: u64,
    /// A member's groups.
    pub groups: Vec<NodeId>,
    /// The children that can give a run as far as slots of their own matter: one that waits, with a free slot on each
    /// level.
    pub ready: BTreeSet<NodeId>,
    /// No child counts as having less usage than this.
    pub floor: i128,
    /// The class of a member's last start.
    pub class: Class,
    /// Only keys have one.
    pub line: Option<Line>,
}

/// A sum of sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    vcpus: u64,
    memory_mib: u64,
}

/// All nodes. The numbers of those that are gone are given again.
#[derive(Debug)]
pub struct Nodes {
    all: Vec<Node>,
    free: Vec<NodeId>,
}

impl Default for Nodes {
    fn default() -> Self {
        Self { all: vec![Node::default()], free: Vec::new() }
    }
}

impl Index<NodeId> for Nodes {
    type Output = Node;

    fn index(&self, id: NodeId) -> &Node {
        &self.all[id]
    }
}

impl IndexMut<NodeId> for Nodes {
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.all[id]
    }
}

impl Nodes {
    pub fn add(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.free.pop() {
            self.all[id] = node;
            return id;
        }
        self.all.push(node);
        self.all.len() - 1
    }

    pub fn remove(&mut self, ids: impl IntoIterator<Item = NodeId>) {
        for id in ids {
            self.all[id] = Node::default();
            self.free.push(id);
        }
    }

    pub fn each(&mut self, change: impl FnMut(&mut Node)) {
        self.all.iter_mut().for_each(change);
    }
}

impl Node {
    pub fn is_idle(&self) -> bool {
        self.queued == 0 && self.started == 0
    }

    pub fn can_give(&self) -> bool {
        let below = self.line.is_some() || !self.ready.is_empty();
        self.queued > 0 && below && self.has_room()
    }

    pub fn began(&mut self, size: Size) {
        self.started += 1;
        self.taken = self.taken.with(size);
    }

    pub fn ended(&mut self, size: Size) {
        self.started -= 1;
        self.taken = self.taken.without(size);
    }

    pub fn has_room(&self) -> bool {
        self.started < self.terms.slots
    }

    /// Whether there is room for a run of this size besides those that have started.
    pub fn has_room_for(&self, size: Size) -> bool {
        let Terms { most, .. } = self.terms;
        let fits = most == Size::ALL || self.started == 0 || self.taken.with(size).fits(most);
        self.has_room() && fits
    }

    pub fn has(&self, class: Class) -> bool {
        self.line.as_ref().is_some_and(|line| line.has(class))
    }

    pub fn has_aged(&self, now: Instant) -> bool {
        self.line.as_ref().is_some_and(|line| line.has_aged(now))
    }
}

impl From<Size> for Taken {
    fn from(size: Size) -> Self {
        Self { vcpus: size.vcpus.into(), memory_mib: size.memory_mib.into() }
    }
}

impl Taken {
    pub fn with(self, more: impl Into<Self>) -> Self {
        let more = more.into();
        Self { vcpus: self.vcpus + more.vcpus, memory_mib: self.memory_mib + more.memory_mib }
    }

    /// `less` is a part of this sum.
    pub fn without(self, less: impl Into<Self>) -> Self {
        let less = less.into();
        Self { vcpus: self.vcpus - less.vcpus, memory_mib: self.memory_mib - less.memory_mib }
    }

    pub fn fits(self, most: Size) -> bool {
        self.vcpus <= most.vcpus.into() && self.memory_mib <= most.memory_mib.into()
    }
}
