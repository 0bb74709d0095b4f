//! The roster: from the value of `users.nix` to members.
//!
//! What a member is and what `roster.json` looks like is the crate `roster`, which the agent compiles, too. Not here: how
//! commits are accepted ([`crate::sync`]).

mod modules;
mod read;
mod sharing;
mod table;
mod twins;

pub use ::roster::{BAKED_IN, LIMITS, LeftOut, Member, MemberLimits, Role, Roster, SCHEMA};
pub use read::{Evaluated, Mistake, evaluate};
pub use table::table;
