//! The owner of a run as admission sees it: a member and a key, each a name with terms, and the member's groups.
//!
//! Names are opaque. The caller makes sure that no two members have the same name: usage is charged to a name.
//! A group is a limit and has no share: members of a large group would otherwise have less than those of a small one.
//! Not here: what the roster says of each (`shared`), and what an owner has used (`tree`).

use std::sync::Arc;

/// Largest weight. The charge of a run is divided by the weights of its owner; with this limit it stays far above one
/// unit, so that rounding cannot give a share away.
pub const MAX_WEIGHT: u32 = 1000;

/// What a run takes of the box, or what one slot of the box is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub vcpus: u32,
    pub memory_mib: u32,
}

/// What holds for one level of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Shares are in proportion to it, among the owners of one level. Counts for runs that start from now on.
    pub weight: u32,
    /// Limit on runs that have started, of all below this level together.
    pub slots: usize,
    /// Limit on what these runs take together, as in [`Group::most`].
    pub most: Size,
}

/// A member or a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    pub name: Arc<str>,
    pub terms: Terms,
}

/// A limit on the runs that all its members have started: on their number, and on what they take together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: Arc<str>,
    pub slots: usize,
    /// Both parts are limits of their own. A run that is larger than this can start when the group has no other: its size
    /// was right when it was asked for, and it must not wait for ever.
    pub most: Size,
}

/// Who is charged for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    pub member: Level,
    /// All groups of the member. Those of one name have the limits that were named last.
    pub groups: Vec<Group>,
    /// What the member acts with.
    pub key: Level,
}

/// Parts of a slot in which sizes are measured.
const PARTS: u64 = 1000;

impl Size {
    /// No limit.
    pub const ALL: Self = Self { vcpus: u32::MAX, memory_mib: u32::MAX };

    /// What so many slots of this size are together.
    #[must_use]
    pub fn times(self, slots: usize) -> Self {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        Self { vcpus: self.vcpus.saturating_mul(slots), memory_mib: self.memory_mib.saturating_mul(slots) }
    }

    /// The larger of the parts that this is of a slot's processors and of its memory, in thousandths of a slot: the
    /// dominant share. A run takes a slot in any case, so it is never nothing.
    pub(super) fn of(self, slot: Self) -> u64 {
        let part = |own: u32, whole: u32| (u64::from(own) * PARTS).div_ceil(u64::from(whole.max(1)));
        let dominant = part(self.vcpus, slot.vcpus).max(part(self.memory_mib, slot.memory_mib));
        dominant.clamp(1, PARTS * PARTS)
    }
}

impl Terms {
    #[must_use]
    pub fn slots(slots: usize) -> Self {
        Self { slots, ..Self::default() }
    }

    pub(super) fn divisor(self) -> u64 {
        self.weight.clamp(1, MAX_WEIGHT).into()
    }
}

impl Default for Terms {
    fn default() -> Self {
        Self { weight: 1, slots: usize::MAX, most: Size::ALL }
    }
}

impl Level {
    #[must_use]
    pub fn new(name: &Arc<str>, terms: Terms) -> Self {
        Self { name: name.clone(), terms }
    }
}

impl Owner {
    /// A member without a group, who acts with one key.
    #[must_use]
    pub fn member(name: &Arc<str>, terms: Terms) -> Self {
        let (member, key) = (Level::new(name, terms), Level::new(name, Terms::default()));
        Self { member, groups: Vec::new(), key }
    }
}
