//! Renders the events of builds and downloads for clients.
//!
//! `worker` renders for the worker protocol, `lines` for people: on the stderr of a serve session, and of commands.
//! Both use the texts here, so that a failure has the same text in each of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use builds::events::{Again, BuildKind};
use builds::schedule::Why;
use nix_derivation::StorePath;

pub mod lines;
pub mod worker;

/// Warnings shown for one request. A cache that does not answer would give one for every path.
const MAX_WARNINGS: usize = 5;

/// The headline of a build.
fn started(kind: BuildKind, drv: &StorePath) -> String {
    let drv = drv.to_absolute_path();
    match kind {
        BuildKind::Building => format!("building '{drv}'"),
        BuildKind::Checking => format!("checking outputs of '{drv}'"),
        BuildKind::EarlierFailure => format!("reporting the earlier failure of '{drv}'"),
    }
}

/// Why a build has not started yet.
fn waiting(why: &Why, drv: &StorePath) -> String {
    let why = match why {
        Why::Box { slots } => format!("builds run in all {slots} slots of the box (its `limits.max-jobs`)"),
        Why::Member { slots } => {
            format!(
                "{slots} of your builds run, as many as one member may have (the box's `limits.max-jobs-per-member`)"
            )
        }
        Why::Own { slots } => {
            format!("{slots} of your builds run, as many as you may have (your `maxJobs` in the roster)")
        }
        Why::Group { name, slots } => {
            format!(
                "{slots} builds of the group '{name}' run, as many as it may have (its `maxJobs` in the roster)"
            )
        }
        Why::Size { name } => format!(
            "builds of the group '{name}' run with all processors or memory that it may have (its `maxCpus` and \
             `maxMemoryMib` in the roster)"
        ),
        Why::OwnSize { slots } => format!(
            "your builds that run leave too few processors or too little memory of what one member may have (the box's \
             `limits.max-jobs-per-member`, which is {slots}, times `sandbox.vcpus` and `sandbox.memory-mib`)"
        ),
        Why::Room => {
            "the builds that run leave too few processors or too little memory (the box's `limits.max-jobs` times \
             `sandbox.vcpus` and `sandbox.memory-mib`), or a larger build that has waited for long is next"
                .to_owned()
        }
        Why::Slot => "none is free for it yet".to_owned(),
    };
    format!("waiting for a slot to build '{}': {why}", drv.to_absolute_path())
}

fn limit_of_others(drv: &StorePath) -> String {
    format!(
        "note: '{}' reached a limit of another request for the same build; it starts again with your limits",
        drv.to_absolute_path()
    )
}

fn starts_again(why: Again, drv: &StorePath) -> String {
    let drv = drv.to_absolute_path();
    match why {
        Again::Memory { before_mib, now_mib } => {
            format!("note: '{drv}' ran out of {before_mib} MiB of memory; it starts again with {now_mib} MiB")
        }
        Again::Sandbox => {
            format!(
                "note: the sandbox of '{drv}' failed, which is not an error of its builder; it starts again"
            )
        }
    }
}

fn dependency_failed(message: &str) -> String {
    format!("error: {message}")
}

/// `machine`: the name of the box.
fn keep_failed_refused(machine: &str) -> String {
    format!(
        "warning: '--keep-failed' is refused: the folder of a failed build is removed with its sandbox on '{machine}'; \
         build on your own machine to keep it"
    )
}

/// The warnings that a request has shown.
#[derive(Debug, Default)]
struct Warnings(BTreeSet<Arc<str>>);

impl Warnings {
    /// The text of a warning; `None` if it has been shown already, or if enough others have.
    fn show(&mut self, warning: Arc<str>) -> Option<String> {
        let show = self.0.len() < MAX_WARNINGS && self.0.insert(warning.clone());
        show.then(|| format!("warning: {warning}"))
    }
}
