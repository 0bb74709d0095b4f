//! Which limit holds, and who set it: every message about a limit that is reached says so, and whom to ask for more.
//!
//! Not here: the limits themselves (`roster`, `settings`), and where each is enforced.

use std::fmt;

/// Who set a limit, and the name that it has there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetBy {
    /// The configuration of the box: a key such as `limits.max-jobs`.
    Box(&'static str),
    /// The member's own limits in the roster, by their name in `roster.json`.
    Member(&'static str),
    /// The limit that all members of a group share, likewise.
    Group { limit: &'static str, group: String },
    /// A setting that the client sent, or that one of the levels of settings has.
    Client(&'static str),
}

impl SetBy {
    /// What to do for a higher limit: a clause without a subject.
    #[must_use]
    pub fn ask(&self) -> &'static str {
        match self {
            Self::Box(_) => "ask the operator of the box for more",
            Self::Member(_) | Self::Group { .. } => "ask a maintainer of the roster for more",
            Self::Client(_) => "set a higher one",
        }
    }

    /// One word, and the group's name.
    #[must_use]
    pub fn short(&self) -> String {
        match self {
            Self::Box(_) => "box".to_owned(),
            Self::Member(_) => "roster".to_owned(),
            Self::Group { group, .. } => format!("group {group}"),
            Self::Client(_) => "client".to_owned(),
        }
    }
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Box(key) => write!(f, "the box's `{key}`"),
            Self::Member(limit) => write!(f, "your `{limit}` in the roster"),
            Self::Group { limit, group } => write!(f, "the `{limit}` of the group '{group}' in the roster"),
            Self::Client(setting) => write!(f, "the client's `{setting}`, or that of `ssh box settings`"),
        }
    }
}

/// The limit that holds where several people can set one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective<T> {
    pub value: T,
    pub set_by: SetBy,
}

impl<T: PartialOrd> Effective<T> {
    #[must_use]
    pub fn of_box(key: &'static str, value: T) -> Self {
        Self { value, set_by: SetBy::Box(key) }
    }

    /// The smaller of this and another one. Of two equal ones it is the other.
    #[must_use]
    pub fn and(self, other: Option<T>, set_by: SetBy) -> Self {
        match other {
            Some(value) if value <= self.value => Self { value, set_by },
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_holds_and_is_told_with_who_set_it() {
        let of_box = || Effective::of_box("limits.max-cake", 9);
        let (own, client) = (SetBy::Member("max-cake"), SetBy::Client("cake"));
        let both = |one, other| of_box().and(one, own.clone()).and(other, client.clone());
        let told = |limit: Effective<i32>| (limit.value, limit.set_by.to_string());
        assert_eq!(told(both(None, None)), (9, "the box's `limits.max-cake`".into()));
        assert_eq!(told(both(Some(9), None)), (9, "your `max-cake` in the roster".into()));
        assert_eq!(
            told(both(Some(10), Some(3))),
            (3, "the client's `cake`, or that of `ssh box settings`".into())
        );
        assert_eq!(told(both(Some(2), Some(3))), (2, "your `max-cake` in the roster".into()));
    }
}
