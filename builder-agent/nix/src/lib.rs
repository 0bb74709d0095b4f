//! Nix's vocabulary: path infos, derivations and their hashes, results of builds, realisations.
//!
//! Plain values and pure functions of them: no I/O, no clock, no threads, so that every other crate can use it. Store
//! paths, hashes, content addresses and derivation outputs are those of the crate `nix_derivation`; callers take them
//! from there.
//!
//! The text of a derivation is a client's: [`derivation`] has limits for what it accepts.
//! Not here: how these values are encoded in a protocol (`wire`), who sees them (`store`), and what is built (`builds`).

mod build_result;
pub mod derivation;
pub mod modulo;
pub mod numbers;
mod path_info;
pub mod placeholders;
mod realisation;

pub use build_result::{BuildMode, BuildResult, BuildStatus, BuiltOutput};
pub use path_info::{Missing, PathInfo, SubstitutablePathInfo};
pub use realisation::{DrvKey, DrvOutputId, Realisation};
