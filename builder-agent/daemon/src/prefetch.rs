//! What is fetched instead of being built, decided before anything is planned.
//!
//! From the targets downwards: an output that is missing and on offer is fetched, and nothing below it is looked at; only
//! what is not on offer leads on to its inputs. The plan is made afterwards, on what is there then. So a
//! download that fails costs a build, never a request.
//! The derivations are the member's own and may name anything: the walk has bounds and does not recurse.

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::{DerivedPath, SingleDerivedPath, StorePath};
use store::View;
use tokio::sync::mpsc;

use super::Session;
use super::audience::Audience;
use super::studied::studied;
use super::transfer::{RequestError, bug, over};
use builds::Failure;
use builds::modulo::{self, Hasher};
use builds::plan::MAX_DERIVATIONS;
use builds::realised;
use builds::structured::Attributes;
use builds::study::Study;
use substitute::{Event, Walk, warn};

/// What an input of a derivation takes in the lists of what to look at and of what was seen, or an output in those of what
/// to ask for.
const LOOKED_BYTES: u64 = 512;

/// What would be fetched for some targets, and what would still have to be built.
#[derive(Debug, Default)]
pub(super) struct FetchPlan {
    /// Outputs and paths that are missing and on offer.
    pub fetch: BTreeSet<StorePath>,
    /// Derivations of which a wanted output is missing and not on offer.
    pub build: BTreeSet<StorePath>,
}

/// A derivation as far as it matters here.
struct Looked {
    drv: StorePath,
    name: String,
    /// Missing outputs that somebody wants, if their paths are known.
    missing: Vec<Option<StorePath>>,
    allows: bool,
    inputs: Vec<(StorePath, Vec<String>)>,
}

impl Session {
    /// Fetches what the targets need and caches have.
    pub(super) async fn prefetch<A: Audience>(
        &self,
        audience: &mut A,
        targets: &[DerivedPath],
    ) -> Result<(), RequestError> {
        if !self.agent.substituters.any() {
            return Ok(());
        }
        let work = |events| async move {
            let fetch_plan = self.fetch_plan(targets, &events).await?;
            if !fetch_plan.fetch.is_empty() {
                // What fails is built, or reported by the plan; the client has been warned.
                let paths: Vec<StorePath> = fetch_plan.fetch.into_iter().collect();
                let (member, budget) = (self.views.owner(), &self.desk.budget);
                self.agent.substituters.fetch(member, budget, &paths, &events).await.map_err(over)?;
            }
            Ok(())
        };
        self.told(audience, work).await?
    }

    /// The outputs of a derivation that came without its inputs, if all of them can be fetched.
    pub(super) async fn prefetch_outputs<A: Audience>(
        &self,
        audience: &mut A,
        drv: &StorePath,
        derivation: &nix::derivation::BasicDerivation,
    ) -> Result<(), RequestError> {
        if !self.agent.substituters.any() {
            return Ok(());
        }
        let name = drv.name().strip_suffix(".drv").unwrap_or(drv.name()).to_owned();
        let paths = derivation.outputs.iter().map(|(output, spec)| spec.path(&name, output).ok().flatten());
        let view = self.view();
        let missing = paths.filter(|path| path.as_ref().is_none_or(|path| !view.is_valid(path))).collect();
        // What there is to parse is a client's.
        let env = derivation.env.clone();
        let allows = self.desk.workers.plan(move || allows(&env)).await.map_err(bug)?;
        let looked = Looked { drv: drv.clone(), name, missing, allows, inputs: Vec::new() };
        let Some(paths) = self.candidates(&looked).filter(|paths| !paths.is_empty()) else { return Ok(()) };
        let work = |events| async move {
            let walk = self.offered(&paths, &events).await?;
            let all = paths.iter().all(|path| walk.offers.contains_key(path));
            drop(walk);
            if all {
                let (member, budget) = (self.views.owner(), &self.desk.budget);
                self.agent.substituters.fetch(member, budget, &paths, &events).await.map_err(over)?;
            }
            Ok(())
        };
        self.told(audience, work).await?
    }

    /// What would be fetched, and what built.
    pub(super) async fn fetch_plan(
        &self,
        targets: &[DerivedPath],
        events: &mpsc::Sender<Event>,
    ) -> Result<FetchPlan, RequestError> {
        let mut fetch_plan = FetchPlan::default();
        if !self.agent.substituters.any() {
            return Ok(fetch_plan);
        }
        let mut seen: BTreeMap<StorePath, BTreeSet<String>> = BTreeMap::new();
        let mut next: Vec<(StorePath, Vec<String>)> = Vec::new();
        // For both.
        let mut memory = Vec::new();
        let mut plain = Vec::new();
        for target in targets {
            match target {
                DerivedPath::Opaque(path) if self.view().is_valid(path) => {}
                DerivedPath::Opaque(path) if self.may_fetch(path.name(), true) => plain.push(path.clone()),
                DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv), outputs } => {
                    next.push((drv.clone(), outputs.clone()));
                }
                // Unknown or not supported: the plan says so.
                _ => {}
            }
        }
        let offered = self.offered(&plain, events).await?;
        fetch_plan.fetch.extend(plain.into_iter().filter(|path| offered.offers.contains_key(path)));
        while !next.is_empty() {
            next.retain(|(drv, outputs)| {
                let known = seen.contains_key(drv);
                let all = seen.entry(drv.clone()).or_default();
                // Without names all outputs are wanted; `*` is no name of an output.
                let names = if outputs.is_empty() { vec!["*".to_owned()] } else { outputs.clone() };
                names.into_iter().fold(!known, |new, name| all.insert(name) || new)
            });
            if seen.len() > MAX_DERIVATIONS {
                return Err(RequestError::Refused(format!(
                    "the targets depend on more than {MAX_DERIVATIONS} derivations; build them in parts"
                )));
            }
            let (agent, view, level) = (self.agent.clone(), self.view(), std::mem::take(&mut next));
            let (looked, held) = studied(&self.desk, move |study| {
                let mut hasher = Hasher::new(&view, &agent.drv_hashes, study);
                let look = |(drv, outputs): &(StorePath, Vec<String>)| {
                    look(&view, &mut hasher, study, drv, outputs).transpose()
                };
                let looked: Result<Vec<Looked>, Failure> = level.iter().filter_map(look).collect();
                (looked, study.memory())
            })
            .await?;
            let looked = looked.map_err(|failure| RequestError::Refused(failure.message))?;
            memory.extend(held);
            let candidates: Vec<Option<Vec<StorePath>>> =
                looked.iter().map(|looked| self.candidates(looked)).collect();
            let asked: Vec<StorePath> = candidates.iter().flatten().flatten().cloned().collect();
            let offered = self.offered(&asked, events).await?;
            for (looked, candidates) in looked.into_iter().zip(candidates) {
                match candidates {
                    Some(paths) if paths.iter().all(|path| offered.offers.contains_key(path)) => {
                        fetch_plan.fetch.extend(paths);
                    }
                    _ => {
                        fetch_plan.build.insert(looked.drv);
                        next.extend(looked.inputs);
                    }
                }
            }
        }
        Ok(fetch_plan)
    }

    /// What is on offer of `paths`, with all they refer to; what speaks against the rest is told.
    pub(super) async fn offered(
        &self,
        paths: &[StorePath],
        events: &mpsc::Sender<Event>,
    ) -> Result<Walk, RequestError> {
        let walk = self.agent.substituters.walk(self.views.owner(), &self.desk.budget, paths).await;
        let mut walk = walk.map_err(over)?;
        warn(std::mem::take(&mut walk.warnings), events).await;
        Ok(walk)
    }

    /// What to ask about instead of building it; `None` if it has to be built in any case.
    fn candidates(&self, looked: &Looked) -> Option<Vec<StorePath>> {
        let paths: Vec<StorePath> = looked.missing.iter().cloned().collect::<Option<_>>()?;
        let may = |name: &str| self.may_fetch(name, looked.allows);
        // By either name, as an operator may know the derivation or its output; each can forbid.
        let substituters = &self.agent.substituters;
        let forbidden = |name: &str| !substituters.may(name, true);
        let allowed =
            paths.iter().all(|path| !forbidden(path.name()) && (may(path.name()) || may(&looked.name)));
        (allowed && !forbidden(&looked.name)).then_some(paths)
    }
}

/// `None` if nothing of it is missing, or nothing can be said about it. Fails if the study is over.
fn look(
    view: &View,
    hasher: &mut Hasher<'_>,
    study: &Study,
    drv: &StorePath,
    wanted: &[String],
) -> Result<Option<Looked>, Failure> {
    let parsed = match modulo::read(view, drv, study) {
        Ok(parsed) => parsed,
        Err(failure) if study.is_over() => return Err(failure),
        Err(_) => return Ok(None),
    };
    let derivation = &parsed.derivation;
    let name = &derivation.name;
    let mut missing = Vec::new();
    for (output, spec) in &derivation.basic.outputs {
        if !wanted.is_empty() && !wanted.contains(output) {
            continue;
        }
        let Ok(path) = spec.path(name, output) else { return Ok(None) };
        let path = path.or_else(|| {
            let realised = realised::path(view, &hasher.of(drv).ok()?.masked, output);
            realised.map(|(path, _)| path)
        });
        if !path.as_ref().is_some_and(|path| view.is_valid(path)) {
            missing.push(path);
        }
    }
    if missing.is_empty() {
        return Ok(None);
    }
    study.note((derivation.inputs.len() + missing.len()) as u64 * LOOKED_BYTES)?;
    let allows = allows(&derivation.basic.env);
    let inputs = derivation.inputs.iter();
    let inputs = inputs.map(|(input, wanted)| (input.clone(), wanted.iter().cloned().collect()));
    let inputs = inputs.collect();
    Ok(Some(Looked { drv: drv.clone(), name: name.to_owned(), missing, allows, inputs }))
}

/// Unless it says `allowSubstitutes = false`, which is empty in an environment.
fn allows(env: &BTreeMap<Vec<u8>, Vec<u8>>) -> bool {
    let attributes = env.get(&b"__json"[..]).and_then(|json| Attributes::parse(json.clone()).ok());
    match attributes {
        Some(attributes) => attributes.get("allowSubstitutes") != Some(&false.into()),
        None => !env.get(&b"allowSubstitutes"[..]).is_some_and(|value| value.is_empty()),
    }
}
