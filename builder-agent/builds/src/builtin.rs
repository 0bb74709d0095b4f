//! `builtin:` builders, which are part of Nix and not of any closure.
//!
//! `builtin:buildenv` and `builtin:unpack-channel` run inside the sandbox like any builder (crate `guest`): they read
//! trees that other people wrote, and a mistake in that does no harm there. `builtin:fetchurl` needs the network, which
//! a sandbox does not have, so the agent downloads the file for it. The agent puts the download into the store unread,
//! except for the xz decoder, which is safe Rust with a bound on its memory.

mod fetchurl;

pub(super) use fetchurl::fetch;

use super::Recipe;

/// Builtins that run in the sandbox.
const INSIDE: [&str; 2] = ["buildenv", "unpack-channel"];
/// The builtin that the agent runs itself.
const FETCHURL: &str = "fetchurl";

/// Whether there is such a builder.
pub(super) fn is_known(name: &str) -> bool {
    name == FETCHURL || INSIDE.contains(&name)
}

/// Whether the agent builds this without a sandbox.
pub(super) fn is_fetch(recipe: &Recipe) -> bool {
    recipe.builder.strip_prefix(b"builtin:") == Some(FETCHURL.as_bytes())
}
