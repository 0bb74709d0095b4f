//! The roster: from `users.nix` in a git repository to `roster.json` on the box.
//!
//! `users.nix` is written by people we do not know yet (it arrives in pull requests), so it is hostile input: it is
//! evaluated by a small pure evaluator ([`nix`]) with bounds on time, memory, depth and text, and it can name only
//! files of its own repository ([`source`]). Whatever is wrong with it is told as a [`diag::Diagnostic`]: where, which
//! line, what was expected, what was found, what to do.
//!
//! ```text
//! git remote --sync--> bare repository --source--> nix (evaluator) --roster--> roster.json --> the agent
//! ```
//!
//! Not here: who is logged in, and what a member may do on the box. The agent decides that from `roster.json`.

pub mod check;
pub mod diag;
pub mod export;
pub mod nix;
pub mod roster;
pub mod source;
pub mod sync;

pub use ::roster::keys as ssh_keys;

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod test_keys;
