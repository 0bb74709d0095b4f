//! `builtin:` builders, which are part of Nix and not of any closure.
//!
//! `builtin:buildenv` and `builtin:unpack-channel` run inside the sandbox like any builder (crate `guest`): they walk
//! what others wrote, and where that goes wrong, it goes wrong where it can do no harm. `builtin:fetchurl` needs the
//! network, which a sandbox does not have, so the agent downloads for it; what comes goes into the store unread, except
//! for the xz decoder, which is safe Rust with a bound on its memory.

mod fetchurl;

pub(super) use fetchurl::fetch;

use super::Recipe;

/// What runs in the sandbox.
const INSIDE: [&str; 2] = ["buildenv", "unpack-channel"];
/// What the agent does itself.
const FETCHURL: &str = "fetchurl";

/// Whether there is such a builder.
pub(super) fn is_known(name: &str) -> bool {
    name == FETCHURL || INSIDE.contains(&name)
}

/// Whether the agent builds this without a sandbox.
pub(super) fn is_fetch(recipe: &Recipe) -> bool {
    recipe.builder.strip_prefix(b"builtin:") == Some(FETCHURL.as_bytes())
}
