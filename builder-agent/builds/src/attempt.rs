//! One attempt at one recipe: inputs go into a sandbox, the log and the outputs come out of it, the outputs go into the
//! store.
//!
//! An attempt blocks from start to end and runs on a thread of its own. Its inputs are one snapshot, taken before: the
//! builder sees exactly that snapshot, even if the view changes meanwhile. Not here: waiting for a slot and sharing the
//! result (`schedule`), and in which views the outputs become visible (`outputs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use egress::Event;
use nix_derivation::StorePath;
use sandbox::{BuilderStatus, Host, Inputs, Job, Limits, Moment, OutputSink, Phases, Run, Usage};
use store::{ClosureInfo, Ingest, Ingested, View};

use super::checks;
use super::environment::surroundings;
use super::failure::{builder_failed, sandbox_failed};
use super::floating;
use super::log::LogWriter;
use super::outputs::Settled;
use super::watch::Watch;
use super::{Failure, Recipe, builtin, graphs};
use settings::BackendKind;

mod connections;
mod context;
mod takeover;

pub use context::AttemptContext;
pub use takeover::TakenOver;
use takeover::Written;

/// The outputs of a successful attempt, by name.
pub type Outputs = BTreeMap<String, Settled>;

/// The measurements of an attempt, however it ended. `None`: the attempt ended before that part.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The kernel that the builder ran on.
    pub kernel: Option<String>,
    pub inputs_prepared: Option<Duration>,
    pub phases: Phases,
    pub outputs_checked: Option<Duration>,
    /// `None` if nothing was started in a sandbox.
    pub usage: Option<Usage>,
    /// Bytes that the agent fetched, if the builder is one of its own.
    pub downloaded: u64,
}

pub fn run(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    log: &mut LogWriter,
    report: &mut Report,
) -> Result<Outputs, Failure> {
    let began = Instant::now();
    let closure: BTreeSet<StorePath> = context.inputs.info().paths.keys().cloned().collect();
    let limits = &context.limits;
    let watch = Watch::start(&recipe.drv_path, context.cancel, limits.of_sandbox.wall, &limits.set_by);
    if builtin::is_fetch(recipe) {
        return fetch(recipe, context, closure, &watch, log, report);
    }
    let around = surroundings(recipe, graphs::of(recipe, context.inputs, &watch)?, context.cores, &watch)?;
    let inputs = inputs(recipe, context, &closure, &watch)?;
    watch.go_on()?;
    report.inputs_prepared = Some(began.elapsed());
    let outputs = recipe.scratch_paths().into_iter();
    let job = Job {
        id: context.id.to_string(),
        // `Recipe::check` has seen that this is one of the box's systems, which are text.
        system: String::from_utf8_lossy(&recipe.system).into_owned(),
        builder: recipe.builder.clone(),
        args: around.args,
        env: around.env,
        files: around.files,
        etc: certificates(recipe, context),
        outputs: outputs.map(|(name, path)| (name, path.to_absolute_path())).collect(),
        inputs,
        random_order: context.random_order,
        network: has_network(recipe, context),
        limits: Limits { wall: watch.left(), ..limits.of_sandbox.clone() },
    };

    let mut receiver = Receiver::new(recipe, context, &watch, log, report.inputs_prepared);
    let run = context.backend.run(job, &mut receiver, context.cancel);
    conclude(recipe, context, &watch, receiver, run, report)
}

/// Goes on with an attempt that another program has paused. Its job and its inputs are in its sandbox already.
pub fn go_on(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    paused: TakenOver,
    log: &mut LogWriter,
    report: &mut Report,
) -> Result<Outputs, Failure> {
    let TakenOver { sandbox, until, inputs_prepared } = paused;
    let until = until.map(|(moment, whole)| (moment.instant(), whole));
    let watch = Watch::started_before(&recipe.drv_path, context.cancel, until, &context.limits.set_by);
    report.inputs_prepared = inputs_prepared;
    let mut receiver = Receiver::new(recipe, context, &watch, log, inputs_prepared);
    let run = sandbox.go_on(&mut receiver, context.cancel);
    conclude(recipe, context, &watch, receiver, run, report)
}

/// The outputs of a builder that has ended, checked; or why there are none.
fn conclude(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    watch: &Watch<'_>,
    receiver: Receiver<'_>,
    Run { result, phases, usage }: Run,
    report: &mut Report,
) -> Result<Outputs, Failure> {
    let limits = &context.limits;
    (report.phases, report.usage) = (phases, Some(usage));
    let refused = receiver.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
    let outputs = std::mem::take(&mut *receiver.outputs.lock().unwrap_or_else(PoisonError::into_inner));
    let finished = match result {
        Ok(finished) => finished,
        Err(error) => {
            if let (Some(refused), sandbox::SandboxError::Sink { name, .. }) = (refused, &error) {
                return Err(output_refused(recipe, name, &refused));
            }
            let outputs: Vec<_> = recipe.scratch_paths().into_iter().collect();
            return Err(sandbox_failed(&recipe.drv_path, &outputs, &watch.whole(error), &limits.set_by));
        }
    };
    report.kernel = Some(finished.kernel);
    if finished.status != BuilderStatus::Exited(0) {
        return Err(exit_failure(recipe, context, finished.status, &receiver.log.tail()));
    }
    let checking = Instant::now();
    let outputs = settle(recipe, context.view, context.inputs.info(), outputs, watch)?;
    report.outputs_checked = Some(checking.elapsed());
    Ok(outputs)
}

/// The builder's view of its inputs, as the sandbox takes it.
fn inputs(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    closure: &BTreeSet<StorePath>,
    watch: &Watch<'_>,
) -> Result<Inputs, Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    let trouble = |error: &dyn std::fmt::Display| {
        Failure::transient(format!("cannot prepare the inputs of '{drv}': {error}"))
    };
    match context.kind {
        BackendKind::Kvm => {
            let composed = context.inputs.compose().map_err(|e| trouble(&e))?;
            Ok(Inputs::Image(composed.segments.into()))
        }
        BackendKind::Namespace => {
            let tree = |path: &StorePath| {
                watch.go_on()?;
                Ok((path.to_absolute_path(), context.inputs.tree(path).map_err(|e| trouble(&e))?))
            };
            Ok(Inputs::Trees(closure.iter().map(tree).collect::<Result<_, Failure>>()?))
        }
    }
}

/// As in Nix: a builder whose output is known may fetch it from anywhere.
fn has_network(recipe: &Recipe, context: &AttemptContext<'_>) -> bool {
    recipe.is_fixed() && context.certificates.is_some()
}

/// For a builder with a network, if the box has any. Nix shows them in the same place.
fn certificates(recipe: &Recipe, context: &AttemptContext<'_>) -> Vec<(String, Vec<u8>)> {
    sandbox::certificates(context.certificates.filter(|_| recipe.is_fixed()), "a builder's")
}

fn exit_failure(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    status: BuilderStatus,
    tail: &[String],
) -> Failure {
    let mut failure = builder_failed(&recipe.drv_path, status, recipe.is_fixed(), tail);
    if recipe.is_fixed() && context.certificates.is_none() {
        failure.message.push_str(
            "\nnote: builders have no network on this box, fixed-output ones neither; let the client build this one, \
             or fetch with `builtin:fetchurl` (<nix/fetchurl.nix>)",
        );
    }
    failure
}

/// `builtin:fetchurl`, which needs no sandbox.
fn fetch(
    recipe: &Recipe,
    context: &AttemptContext<'_>,
    closure: BTreeSet<StorePath>,
    watch: &Watch<'_>,
    log: &mut LogWriter,
    report: &mut Report,
) -> Result<Outputs, Failure> {
    let began = Instant::now();
    let scan_for: Vec<StorePath> = closure.into_iter().chain(recipe.scratch_paths().into_values()).collect();
    let fetched = builtin::fetch(recipe, context, &scan_for, log, &mut report.downloaded)?;
    report.phases.builder = Some(began.elapsed());
    let fetched = [("out".to_owned(), fetched)].into();
    settle(recipe, context.view, context.inputs.info(), fetched, watch)
}

/// Checks the new outputs, and computes the paths of floating ones.
fn settle(
    recipe: &Recipe,
    view: &View,
    inputs: &ClosureInfo,
    outputs: BTreeMap<String, Ingested>,
    watch: &Watch<'_>,
) -> Result<BTreeMap<String, Settled>, Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    for name in recipe.outputs.keys() {
        if !outputs.contains_key(name) {
            // The sandbox promises all outputs. We check it, because half of a result must not become visible.
            return Err(Failure::transient(format!("the sandbox sent no output '{name}' of '{drv}'")));
        }
    }
    let outputs = floating::settle(recipe, view, outputs, watch)?;
    for (name, output) in &recipe.outputs {
        watch.go_on()?;
        check_fixed(recipe, name, output, &outputs[name])?;
    }
    checks::check(recipe, inputs, &outputs, watch)?;
    Ok(outputs)
}

/// The error messages are those of Nix, `registerOutputs`.
fn check_fixed(
    recipe: &Recipe,
    name: &str,
    output: &super::recipe::OutputSpec,
    new: &Settled,
) -> Result<(), Failure> {
    let Some(ca) = &output.fixed else { return Ok(()) };
    let drv = recipe.drv_path.to_absolute_path();
    let wanted = ca.hash();
    let (method, algorithm) = (ca.method(), wanted.algorithm());
    let got = floating::hash(recipe, name, &new.path, &new.ingested, method, algorithm, None)?;
    if got != wanted {
        return Err(Failure::output(format!(
            "hash mismatch in fixed-output derivation '{drv}':\n  specified: {}\n     got:    {}",
            wanted.to_sri_string(),
            got.to_sri_string()
        )));
    }
    if !new.references.is_empty() {
        let list: String =
            new.references.iter().map(|path| format!("\n  {}", path.to_absolute_path())).collect();
        return Err(Failure::output(format!(
            "illegal path references in fixed-output derivation '{drv}':{list}"
        )));
    }
    Ok(())
}

fn output_refused(recipe: &Recipe, name: &str, error: &store::ImportError) -> Failure {
    let drv = recipe.drv_path.to_absolute_path();
    let what = match error.is_callers_fault() {
        true => format!("output '{name}' of '{drv}' cannot be a store path"),
        false => format!("the box cannot store output '{name}' of '{drv}'"),
    };
    Failure::of_import(what, error)
}

/// Takes the log and the outputs of a builder from the sandbox.
struct Receiver<'a> {
    view: &'a View,
    scan_for: Vec<StorePath>,
    log: &'a mut LogWriter,
    outputs: Arc<Mutex<BTreeMap<String, Ingested>>>,
    /// The store's reason to refuse an output. The sandbox passes on an `io::Error`, which would lose it.
    trouble: Arc<Mutex<Option<store::ImportError>>>,
    watch: &'a Watch<'a>,
    inputs_prepared: Option<Duration>,
    /// The number of the build, and the derivation, for lines about its network.
    build: u64,
    drv: String,
}

impl<'a> Receiver<'a> {
    fn new(
        recipe: &Recipe,
        context: &AttemptContext<'a>,
        watch: &'a Watch<'a>,
        log: &'a mut LogWriter,
        inputs_prepared: Option<Duration>,
    ) -> Self {
        let mut scan_for: BTreeSet<StorePath> = context.inputs.info().paths.keys().cloned().collect();
        scan_for.extend(recipe.scratch_paths().into_values());
        Receiver {
            view: context.view,
            scan_for: scan_for.into_iter().collect(),
            log,
            outputs: Arc::default(),
            trouble: Arc::default(),
            watch,
            inputs_prepared,
            build: context.id,
            drv: recipe.drv_path.to_absolute_path(),
        }
    }

    fn refused(&self, error: store::ImportError) -> io::Error {
        refused(&self.trouble, error)
    }
}

/// Notes the reason to refuse an output. Only its text goes through the sandbox.
fn refused(trouble: &Mutex<Option<store::ImportError>>, error: store::ImportError) -> io::Error {
    let text = error.to_string();
    *trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    io::Error::other(text)
}

impl Host for Receiver<'_> {
    fn log(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
    }

    fn connected(&mut self, event: Event) {
        if let Some(line) = connections::tell(&event, self.build, self.view.member().name(), &self.drv) {
            self.log.write(line.as_bytes());
        }
    }

    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>> {
        let ingest = self.view.ingest(&self.scan_for).map_err(|e| self.refused(e))?;
        Ok(Box::new(Sink {
            name: name.to_owned(),
            ingest: Some(ingest),
            outputs: self.outputs.clone(),
            trouble: self.trouble.clone(),
        }))
    }

    fn written_down(&mut self) -> String {
        let written = Written {
            until: self.watch.until().map(|(until, whole)| (Moment::of(until), whole)),
            inputs_prepared: self.inputs_prepared,
            log: self.log.written_down(),
        };
        // Numbers and text, which cannot fail.
        serde_json::to_string(&written).unwrap_or_default()
    }
}

struct Sink {
    name: String,
    ingest: Option<Ingest>,
    outputs: Arc<Mutex<BTreeMap<String, Ingested>>>,
    trouble: Arc<Mutex<Option<store::ImportError>>>,
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(ingest) = &mut self.ingest else { return Err(io::Error::other("output already complete")) };
        ingest.write(bytes).map_err(|e| match self.ingest.take().map(Ingest::finish) {
            // The store's error says whether the builder or the box is at fault.
            Some(Err(error)) => refused(&self.trouble, error),
            _ => e,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputSink for Sink {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        let Some(ingest) = self.ingest.take() else { return Ok(()) };
        match ingest.finish() {
            Ok(ingested) => {
                let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
                outputs.insert(self.name.clone(), ingested);
                Ok(())
            }
            Err(error) => Err(refused(&self.trouble, error)),
        }
    }
}
