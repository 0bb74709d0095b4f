//! One attempt at one recipe: inputs into a sandbox, log and outputs out of it, outputs into the store.
//!
//! Blocking from start to end; runs on a thread of its own. The inputs are one snapshot, taken before: the builder sees
//! exactly that, whatever happens to the view meanwhile. Not here: waiting for a slot (`run`), who shares the result
//! (`scheduler`), and in which views the outputs become visible (`outputs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use sandbox::{
    Backend, BuilderStatus, Cancel, Finished, Host, Image, Inputs, Job, Limits, OutputSink, Segment,
};
use store::{Closure, Ingest, Ingested, View};

use super::checks::{self, NewOutput};
use super::environment::surroundings;
use super::failure::{builder_failed, sandbox_failed};
use super::log::LogWriter;
use super::outputs::Settled;
use super::recipe::{algorithm, sri};
use super::{Failure, Recipe, graph_files};
use crate::config::BackendKind;

/// What an attempt needs besides the recipe.
pub struct Means<'a> {
    /// Names the build in logs.
    pub id: &'a str,
    /// Takes in what the builder makes.
    pub view: &'a View,
    /// What the builder sees.
    pub inputs: &'a Closure,
    pub backend: &'a dyn Backend,
    pub kind: BackendKind,
    pub limits: Limits,
    pub cores: u32,
    pub cancel: &'a Cancel,
}

/// What came of a successful attempt.
#[derive(Debug)]
pub struct Success {
    /// By output name.
    pub outputs: BTreeMap<String, Settled>,
    pub kernel: String,
    pub vmm_overhead_bytes: Option<u64>,
    /// From the inputs being composed to the outputs being checked, in order.
    pub phases: Vec<(&'static str, Duration)>,
}

pub fn run(recipe: &Recipe, means: &Means<'_>, log: &mut LogWriter) -> Result<Success, Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    let began = Instant::now();
    let closure: BTreeSet<StorePath> = means.inputs.paths().cloned().collect();
    let mut around = surroundings(recipe, means.cores)?;
    around.files.extend(graph_files::files(recipe, means.view, &closure)?);
    let trouble = |error: &dyn std::fmt::Display| {
        Failure::transient(format!("cannot prepare the inputs of '{drv}': {error}"))
    };
    let inputs = match means.kind {
        BackendKind::Kvm => {
            let composed = means.inputs.compose().map_err(|e| trouble(&e))?;
            let segments = composed
                .segments
                .into_iter()
                .map(|(file, offset, len)| Segment { file, offset, len })
                .collect();
            Inputs::Image(Image { segments })
        }
        BackendKind::Namespace => {
            let tree = |path: &StorePath| Ok((path.to_absolute_path(), means.inputs.tree(path)?));
            let trees: Result<_, store::TreeError> = closure.iter().map(tree).collect();
            Inputs::Trees(trees.map_err(|e| trouble(&e))?)
        }
    };
    let prepared = began.elapsed();
    let places = recipe.places();
    let job = Job {
        id: means.id.to_owned(),
        system: recipe.system.clone(),
        builder: recipe.builder.clone(),
        args: around.args,
        env: around.env,
        files: around.files,
        outputs: places.iter().map(|(name, place)| (name.clone(), place.to_absolute_path())).collect(),
        inputs,
        limits: means.limits.clone(),
    };

    let mut scan_for: BTreeSet<StorePath> = closure;
    scan_for.extend(places.values().cloned());
    let mut receiver = Receiver {
        view: means.view,
        scan_for: scan_for.into_iter().collect(),
        log,
        outputs: Arc::default(),
        trouble: Arc::default(),
    };
    let result = means.backend.run(job, &mut receiver, means.cancel);
    let refused = receiver.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
    let outputs = std::mem::take(&mut *receiver.outputs.lock().unwrap_or_else(PoisonError::into_inner));
    let finished = match result {
        Ok(finished) => finished,
        Err(error) => {
            if let (Some(refused), sandbox::SandboxError::Sink { name, .. }) = (refused, &error) {
                return Err(output_refused(recipe, name, &refused));
            }
            let places: Vec<_> = places.into_iter().collect();
            return Err(sandbox_failed(&recipe.drv_path, &places, &error));
        }
    };
    if finished.status != BuilderStatus::Exited(0) {
        return Err(builder_failed(
            &recipe.drv_path,
            finished.status,
            recipe.is_fixed(),
            &receiver.log.tail(),
        ));
    }
    let checking = Instant::now();
    let outputs = settle(recipe, means.inputs, outputs)?;
    let Finished { kernel, vmm_overhead_bytes, phases, .. } = finished;
    let mut all = vec![("inputs prepared", prepared)];
    all.extend(phases.0);
    all.push(("outputs checked", checking.elapsed()));
    Ok(Success { outputs, kernel, vmm_overhead_bytes, phases: all })
}

/// Checks everything about the new outputs.
fn settle(
    recipe: &Recipe,
    inputs: &Closure,
    mut outputs: BTreeMap<String, Ingested>,
) -> Result<BTreeMap<String, Settled>, Failure> {
    let drv = recipe.drv_path.to_absolute_path();
    for name in recipe.outputs.keys() {
        if !outputs.contains_key(name) {
            // The sandbox promises this; half of a result must not become visible should it ever not hold.
            return Err(Failure::transient(format!("the sandbox sent no output '{name}' of '{drv}'")));
        }
    }
    let Some(paths) = recipe.known_paths() else {
        return Err(Failure::rejected(format!("the outputs of '{drv}' have no paths")));
    };
    let new: BTreeMap<&str, NewOutput<'_>> = outputs
        .iter()
        .map(|(name, ingested)| {
            let Ingested { references, nar_size, .. } = ingested;
            (name.as_str(), NewOutput { path: &paths[name], references, nar_size: *nar_size })
        })
        .collect();
    for (name, output) in &recipe.outputs {
        check_fixed(recipe, &paths[name], output, &outputs[name])?;
    }
    checks::check(recipe, inputs, &new)?;
    drop(new);

    let settled = recipe.outputs.iter().filter_map(|(name, output)| {
        let ingested = outputs.remove(name)?;
        let (path, references) = (paths[name].clone(), ingested.references.clone());
        let ca = output.fixed.as_ref().map(|ca| ca.to_nix_string());
        Some((name.clone(), Settled { path, ingested, references, ca }))
    });
    Ok(settled.collect())
}

/// Source of the words: Nix, `registerOutputs`.
fn check_fixed(
    recipe: &Recipe,
    path: &StorePath,
    output: &super::recipe::OutputSpec,
    ingested: &Ingested,
) -> Result<(), Failure> {
    let Some(ca) = &output.fixed else { return Ok(()) };
    let drv = recipe.drv_path.to_absolute_path();
    let got = ingested
        .ca_hash(ca.method(), algorithm(ca), None)
        .map_err(|e| Failure::output(format!("output path '{}': {e}", path.to_absolute_path())))?;
    let wanted = ca.hash();
    if got != wanted {
        return Err(Failure::output(format!(
            "hash mismatch in fixed-output derivation '{drv}':\n  specified: {}\n     got:    {}",
            sri(&wanted),
            sri(&got)
        )));
    }
    if !ingested.references.is_empty() {
        let list: String =
            ingested.references.iter().map(|path| format!("\n  {}", path.to_absolute_path())).collect();
        return Err(Failure::output(format!(
            "illegal path references in fixed-output derivation '{drv}':{list}"
        )));
    }
    Ok(())
}

fn output_refused(recipe: &Recipe, name: &str, error: &store::ImportError) -> Failure {
    let drv = recipe.drv_path.to_absolute_path();
    if error.is_callers_fault() {
        Failure::output(format!("output '{name}' of '{drv}' cannot be a store path: {error}"))
    } else {
        tracing::error!(%drv, %error, "cannot store an output");
        Failure::transient(format!("the box cannot store output '{name}' of '{drv}': {error}"))
    }
}

/// Where a sandbox sends what a builder makes.
struct Receiver<'a> {
    view: &'a View,
    scan_for: Vec<StorePath>,
    log: &'a mut LogWriter,
    outputs: Arc<Mutex<BTreeMap<String, Ingested>>>,
    /// Why the store refused an output; `io::Error` on the way through the sandbox would lose it.
    trouble: Arc<Mutex<Option<store::ImportError>>>,
}

impl Host for Receiver<'_> {
    fn log(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
    }

    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>> {
        let ingest = self.view.ingest(&self.scan_for).map_err(io::Error::other)?;
        Ok(Box::new(Sink {
            name: name.to_owned(),
            ingest: Some(ingest),
            outputs: self.outputs.clone(),
            trouble: self.trouble.clone(),
        }))
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
        match &mut self.ingest {
            Some(ingest) => ingest.write(bytes),
            None => Err(io::Error::other("output already complete")),
        }
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
            Err(error) => {
                let text = error.to_string();
                *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Err(io::Error::other(text))
            }
        }
    }
}
