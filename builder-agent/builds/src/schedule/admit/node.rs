//! One node of the tree of owners, or a group beside the tree, and the list of all.
//!
//! Not here: how nodes depend on each other (`tree`).

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};
use std::time::Instant;

use super::line::{Class, Line};
use super::owner::Terms;
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

    pub fn has_room(&self) -> bool {
        self.started < self.terms.slots
    }

    pub fn has(&self, class: Class) -> bool {
        self.line.as_ref().is_some_and(|line| line.has(class))
    }

    pub fn has_aged(&self, now: Instant) -> bool {
        self.line.as_ref().is_some_and(|line| line.has_aged(now))
    }
}
