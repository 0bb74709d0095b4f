//! The context of an attempt. Both kinds of attempts take it: a builder in a sandbox (`attempt`), and a download by the
//! agent itself (`builtin`).

use std::path::Path;

use net::HttpClient;
use sandbox::{Cancel, JobRunner};
use settings::BackendKind;
use store::{Closure, View};

use crate::limits::RunLimits;

/// The parts that an attempt needs besides the recipe.
pub struct AttemptContext<'a> {
    /// Names the build in logs.
    pub id: u64,
    /// Takes in the outputs.
    pub view: &'a View,
    /// The paths that the builder sees.
    pub inputs: &'a Closure,
    pub backend: &'a dyn JobRunner,
    pub http: &'a HttpClient,
    /// A folder of the box's state, for files without names.
    pub scratch: &'a Path,
    pub kind: BackendKind,
    pub limits: RunLimits,
    pub cores: u32,
    /// Whether the builder sees directories in a random order.
    pub random_order: bool,
    /// The certificates for builders with a network. `None`: builders have none on this box.
    pub certificates: Option<&'a Path>,
    pub cancel: &'a Cancel,
}
