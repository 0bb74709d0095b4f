//! Who is charged, and the accounts in which a charge is kept.
//!
//! Each member has an account of everything. Beside it are accounts of *parts*: what was used with one key, with one
//! ticket, and by builds with one tag. A part counts what its member's account counts too, so parts are never added to it;
//! and a build with two tags is in both. Not here: how many parts are kept (`book`).

use std::fmt;
use std::sync::Arc;

/// Who acts: a member, with a key or with a ticket. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The identity, not the name: two people who use one name in turn have two. For the holder of a ticket, that of the
    /// member who made it.
    pub member: Arc<str>,
    /// A key or a ticket; `None` where nobody knows which.
    pub with: Option<Part>,
}

impl Principal {
    /// The member of this identity.
    #[must_use]
    pub fn member(id: &str) -> Self {
        Self { member: id.into(), with: None }
    }

    /// The same, without a copy of the text.
    #[must_use]
    pub fn of(id: &Arc<str>) -> Self {
        Self { member: id.clone(), with: None }
    }

    /// This member with a key (its fingerprint).
    #[must_use]
    pub fn with_key(self, fingerprint: &str) -> Self {
        Self { with: Some(Part::new(Kind::Key, fingerprint)), ..self }
    }

    /// This member's ticket (its identity).
    #[must_use]
    pub fn with_ticket(self, id: &str) -> Self {
        Self { with: Some(Part::new(Kind::Ticket, id)), ..self }
    }
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Key,
    Ticket,
    Tag,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Key, Self::Ticket, Self::Tag];

    /// The name in files and in reports, which is never changed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Ticket => "ticket",
            Self::Tag => "tag",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of the part that counts what belongs to no other one. No key, ticket or tag has a parenthesis.
pub const OTHER: &str = "(other)";

/// A key, a ticket or a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Part {
    pub kind: Kind,
    pub name: Arc<str>,
}

impl Part {
    #[must_use]
    pub fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.into() }
    }

    pub(crate) fn other(kind: Kind) -> Self {
        Self::new(kind, OTHER)
    }
}

/// A member, or a part of what a member used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    pub member: Arc<str>,
    pub part: Option<Part>,
}

impl Account {
    pub(crate) fn of(who: &Principal) -> Self {
        Self { member: who.member.clone(), part: None }
    }

    pub(crate) fn part(who: &Principal, part: Part) -> Self {
        Self { member: who.member.clone(), part: Some(part) }
    }
}
