//! The roster: from `users.nix` in a git repository to `roster.json` on the box.
//!
//! `users.nix` comes in pull requests from people whom nobody knows yet, so it is hostile input. A small pure
//! evaluator ([`nix`]) with limits on time, memory, depth and text evaluates it, and it can name only files of its own
//! repository ([`source`]). Every mistake in it is reported as a [`diag::Diagnostic`]: the place, the line, what was
//! expected, what was found, and what to do.
//!
//! ```text
//! git remote --sync--> bare repository --source--> nix (evaluator) --roster--> roster.json --> the agent
//! ```
//!
//! Not here: who is logged in, and what a member may do on the box. The agent decides that from `roster.json`.

mod bounded;
pub mod check;
pub mod children;
pub mod diag;
pub mod export;
pub mod import;
pub mod nix;
mod nix_text;
pub mod roster;
pub mod source;
pub mod sync;
pub mod watch;

pub use ::roster::keys as ssh_keys;

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod test_keys;
