//! This machine as a place: each task has a thread, and is one attempt in the configured sandbox.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use sandbox::{Cancel, JobRunner};
use store::{Closure, Member, Store};

use super::{Done, Place, Snapshots, Task};
use crate::Failure;
use crate::attempt::{self, AttemptContext, Report, TakenOver};
use crate::log::LogWriter;
use net::HttpClient;
use settings::BackendKind;
use shares::threads::Threads;

/// Runs tasks on this machine. Clones share all parts.
#[derive(Clone)]
pub struct Here {
    pub backend: Arc<dyn JobRunner>,
    pub kind: BackendKind,
    /// Downloads for builders that are part of Nix.
    pub http: Arc<HttpClient>,
    /// The store that takes the outputs.
    pub store: Store,
    /// The contents of inputs.
    pub snapshots: Snapshots,
    /// A folder of the box's state, for files without names.
    pub scratch: PathBuf,
    pub threads: Threads,
    /// See [`AttemptContext::certificates`].
    pub certificates: Option<PathBuf>,
}

impl Place for Here {
    fn name(&self) -> &'static str {
        self.backend.name()
    }

    fn run(
        &self,
        task: Task,
        paused: Option<TakenOver>,
        log: LogWriter,
        cancel: Cancel,
    ) -> Pin<Box<dyn Future<Output = Done> + Send>> {
        let (run, drv) = (task.run, task.recipe.drv_path.to_absolute_path());
        let trouble = move |why: &dyn std::fmt::Display| {
            tracing::error!(build = run, error = %why, "a build was lost");
            let result =
                Err(Failure::transient(format!("building '{drv}' failed because of the box: {why}")));
            Done { report: Report::default(), result }
        };
        let Some(inputs) = self.snapshots.of(&task) else {
            return Box::pin(async move { trouble(&"its inputs are not kept; this is a bug of the box") });
        };
        // Each run has a slot, which bounds the number of these threads.
        let here = self.clone();
        let work = self.threads.alone("build", move || here.attempt(&task, paused, &inputs, log, &cancel));
        Box::pin(async move { work.await.unwrap_or_else(|lost| trouble(&lost)) })
    }
}

impl Here {
    /// An attempt, or the rest of the one that is `paused`.
    fn attempt(
        &self,
        task: &Task,
        paused: Option<TakenOver>,
        inputs: &Closure,
        mut log: LogWriter,
        cancel: &Cancel,
    ) -> Done {
        let context = AttemptContext {
            id: task.run,
            view: &self.store.view(&Member::new(&task.member)),
            http: &self.http,
            scratch: &self.scratch,
            inputs,
            backend: &*self.backend,
            kind: self.kind,
            limits: task.limits.clone(),
            cores: task.envelope.cores(),
            random_order: task.envelope.random_order,
            certificates: self.certificates.as_deref(),
            cancel,
        };
        let mut report = Report::default();
        let result = match paused {
            None => attempt::run(&task.recipe, &context, &mut log, &mut report),
            Some(paused) => attempt::go_on(&task.recipe, &context, paused, &mut log, &mut report),
        };
        Done { report, result }
    }
}
