//! The agreement between `access-manager`, which writes `roster.json`, and the agent, which reads it. Both compile this,
//! so a name, a limit, an option of a key or a date has one meaning.
//!
//! The file comes from the other side's disk and is parsed with bounds. What is wrong with *one* member leaves that
//! member out and nobody else ([`LeftOut`]); only what makes the whole file ambiguous refuses it whole ([`FileError`]).
//!
//! ```text
//! file.rs       roster.json: members, those left out, reading and writing
//! group.rs      groups: members who share limits
//! keys.rs       lines of authorized_keys: keys, certificate authorities, their options
//! addresses.rs  from="…" and a certificate's source-address
//! limits.rs     a member's own limits and their bounds
//! settings.rs   settings on levels: the table, variables of clients, which level wins
//! date.rs       `expires`, `expiry-time`
//! person.rs     which keys tell one person of a name from another
//! status.rs     roster-status.json: which commit is in force, and why a newer one is not
//! ```
//! Not here: where a roster comes from (`access-manager`), and who is let in by it (the agent's `ssh/login.rs`).

pub mod addresses;
pub mod date;
mod file;
mod group;
pub mod keys;
mod limits;
pub mod name;
pub mod nix_text;
pub mod person;
pub mod settings;
pub mod status;
pub mod words;

pub use date::Day;
pub use file::{
    BAKED_IN, FileError, LeftOut, MAX_FILE, Member, Read, Role, Roster, SCHEMA, SCHEMA_WITH_GROUPS, read,
};
pub use group::Group;
pub use keys::Key;
pub use limits::{LIMITS, Limit, MemberLimits};
pub use status::Status;

/// Members of one roster; ten times the largest community builder.
pub const MAX_MEMBERS: usize = 10_000;
/// Keys of one member. sshd tries them in order and clients offer six; people with thirty exist.
pub const MAX_KEYS: usize = 100;
/// Groups of one roster: a tenth of its members.
pub const MAX_GROUPS: usize = 1_000;
/// Groups of one member. Each build is counted in each of them.
pub const MAX_GROUPS_OF_MEMBER: usize = 20;
/// Members that one member shares with. Every question to the store looks at each of them.
pub const MAX_SHARES: usize = 100;
