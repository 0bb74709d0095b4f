//! The roster: from the value of `users.nix` to members.
//!
//! What a member is and what `roster.json` looks like is the crate `roster`, which the agent compiles, too. Not here: how
//! commits are accepted ([`crate::sync`]).

mod evaluated;
mod inspect;
mod modules;
mod names;
mod read;
mod sharing;
mod table;
mod twins;

pub use ::roster::{BAKED_IN, LIMITS, LeftOut, Member, MemberLimits, Role, Roster, SCHEMA};
pub use evaluated::{About, Evaluated, GroupEntry, KeySource, Mistake, Warning};
pub use inspect::{ALLOWED_USERS, Groups, Inspected, TRUSTED_USERS, Unused};
pub use read::{evaluate, inspect};
pub use table::table;
