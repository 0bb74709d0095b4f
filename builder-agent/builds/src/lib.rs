//! From a derivation to valid outputs: what to build, when, in which sandbox, and with which result.
//!
//! Derivations come from clients, so every recipe is checked before a sandbox sees it. Logs and outputs come from a
//! hostile builder; the store decides what an output is, and the paths it may claim come from the recipe alone.
//! Not here: how a client asked (`daemon`), and how a builder is isolated (`sandbox`).

pub mod attempt;
pub mod backend;
mod builtin;
mod checks;
pub mod drain;
pub mod envelope;
mod environment;
pub mod events;
pub mod failure;
mod floating;
mod graphs;
pub mod kept;
pub mod key;
pub mod limits;
pub mod log;
pub mod modulo;
pub mod monthly;
pub mod outputs;
pub mod plan;
pub mod realisations;
pub mod realise;
pub mod recipe;
pub mod resolve;
pub mod reuse;
pub mod schedule;
pub mod structured;
pub mod study;
mod watch;
pub mod weight;
mod written;

pub use envelope::Envelope;
pub use failure::Failure;
pub use key::{BuildKey, SandboxIdentity};
pub use plan::Plan;
pub use recipe::Recipe;
pub use schedule::{Attached, Held, Left, Listed, Load, Outcome, Request, Scheduler};
