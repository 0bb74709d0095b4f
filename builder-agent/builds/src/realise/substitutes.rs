//! Substitution: which outputs are fetched instead of built. This is decided before the plan is made.
//!
//! The walk goes from the targets downwards. An output that is missing and on offer is fetched, and nothing below it is
//! read; the walk goes on to the inputs only of derivations with an output that is not on offer. The plan is made
//! afterwards, from the paths that are valid then. So a download that fails costs a build, never a request.
//! The member wrote the derivations and they may name anything: the walk has bounds and does not recurse.
//! Not here: where paths come from, and what makes them trustworthy (`substitute`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::derivation::BasicDerivation;
use nix_derivation::{DerivedPath, SingleDerivedPath, StorePath};
use store::View;

use super::{Context, lost};
use crate::modulo::{self, Hasher};
use crate::plan::MAX_DERIVATIONS;
use crate::structured::Attributes;
use crate::study::Study;
use crate::{Failure, realisations};
use shares::budget::{Charge, OverBudget};
use substitute::{Asker, Fetched, Offer, Substituters, Walk, warn};

/// Memory of an input of a derivation in the lists of derivations to read and of those that were read, or of an output
/// in the lists of paths to ask for.
const LOOKED_BYTES: u64 = 512;

/// The paths to fetch for some targets, and the derivations that would still have to be built.
#[derive(Debug, Default)]
pub(super) struct FetchPlan {
    /// Outputs and paths that are missing and on offer.
    pub fetch: BTreeSet<StorePath>,
    /// Derivations of which a wanted output is missing and not on offer.
    pub build: BTreeSet<StorePath>,
}

/// Derivations, each with the names of the wanted outputs; no names means all.
type Wanted = Vec<(StorePath, Vec<String>)>;

/// The parts of a derivation that matter here.
struct Looked {
    drv: StorePath,
    name: String,
    /// Missing outputs that some target needs; `None` if the path is not known.
    missing: Vec<Option<StorePath>>,
    allows: bool,
    inputs: Wanted,
}

impl Context {
    /// Whether paths and outputs called `name` may be fetched for this client.
    fn may_fetch(&self, name: &str) -> bool {
        self.may_fetch_if(name, true)
    }

    fn may_fetch_if(&self, name: &str, derivation_allows: bool) -> bool {
        let asked = self.options.use_substitutes && derivation_allows;
        self.options.wishes.may_fetch(&self.member, name, asked)
    }

    /// Whether nothing called `name` is ever fetched for this session.
    fn may_never_fetch(&self, name: &str) -> bool {
        !self.options.wishes.may_fetch(&self.member, name, true)
    }

    /// Whether there is anything to fetch from for this member.
    pub(super) fn may_fetch_at_all(&self) -> bool {
        self.realiser.substituters.any_with(self.options.wishes.own_caches())
    }

    /// The substituters of the box, and the member's own.
    fn substituters(&self, view: &View) -> Substituters {
        let (payer, own) = (&self.downloads.payer, self.options.wishes.own_caches());
        self.realiser.substituters.with_own(payer, view.member(), own)
    }

    fn asker<'a>(&'a self, view: &'a View) -> Asker<'a> {
        let (budget, workers) = (&self.budget, &self.workers);
        Asker { view, budget, workers, never: self.options.wishes.never(), account: &self.downloads }
    }

    /// Fetches `paths` and all paths they refer to.
    pub async fn fetch(&self, paths: &[StorePath]) -> Result<Fetched, Failure> {
        let (view, events) = (self.views.now(), self.reporter.channel());
        self.substituters(&view).fetch(&self.asker(&view), paths, events).await.map_err(over)
    }

    /// Offers of `paths` alone, and the memory for that list. `mass`: the client asks about all paths it has; then only
    /// sources that accept such questions are asked.
    pub async fn offers(
        &self,
        paths: &[StorePath],
        mass: bool,
    ) -> Result<(BTreeMap<StorePath, Arc<Offer>>, Charge), Failure> {
        let (view, events) = (self.views.now(), self.reporter.channel());
        self.substituters(&view).offers(&self.asker(&view), paths, mass, events).await.map_err(over)
    }
}

/// Fetches those paths that the targets need and caches have.
pub(super) async fn prefetch(context: &Context, targets: &[DerivedPath]) -> Result<(), Failure> {
    let fetch_plan = fetch_plan(context, targets).await?;
    if !fetch_plan.fetch.is_empty() {
        // A path that fails is built, or the plan reports it; the client has had a warning.
        let paths: Vec<StorePath> = fetch_plan.fetch.into_iter().collect();
        context.fetch(&paths).await?;
    }
    Ok(())
}

/// Fetches the outputs of a derivation that came without its inputs, if all of them can be fetched.
pub(super) async fn prefetch_outputs(
    context: &Context,
    drv: &StorePath,
    derivation: &BasicDerivation,
) -> Result<(), Failure> {
    if !context.may_fetch_at_all() {
        return Ok(());
    }
    let name = drv.name().strip_suffix(".drv").unwrap_or(drv.name()).to_owned();
    let paths = derivation.outputs.iter().map(|(output, spec)| spec.path(&name, output).ok().flatten());
    let view = context.views.now();
    let missing = paths.filter(|path| path.as_ref().is_none_or(|path| !view.is_valid(path))).collect();
    // The text to parse comes from a client and can be long.
    let env = derivation.env.clone();
    let allows = context.workers.plan(move || allows(&env)).await.map_err(lost)?;
    let looked = Looked { drv: drv.clone(), name, missing, allows, inputs: Vec::new() };
    let Some(paths) = candidates(context, &looked).filter(|paths| !paths.is_empty()) else { return Ok(()) };
    let walk = offered(context, &paths).await?;
    let all = paths.iter().all(|path| walk.offers.contains_key(path));
    drop(walk);
    if all {
        context.fetch(&paths).await?;
    }
    Ok(())
}

/// The paths that would be fetched and the derivations that would be built.
pub(super) async fn fetch_plan(context: &Context, targets: &[DerivedPath]) -> Result<FetchPlan, Failure> {
    let mut fetch_plan = FetchPlan::default();
    if !context.may_fetch_at_all() {
        return Ok(fetch_plan);
    }
    let (plain, mut next) = sorted(context, targets);
    let offered_plain = offered(context, &plain).await?;
    fetch_plan.fetch.extend(plain.into_iter().filter(|path| offered_plain.offers.contains_key(path)));
    let mut seen: BTreeMap<StorePath, BTreeSet<String>> = BTreeMap::new();
    // The charges for `seen` and `next`, held until both are dropped.
    let mut memory = Vec::new();
    while !next.is_empty() {
        keep_new(&mut seen, &mut next)?;
        let (looked, held) = look_at(context, std::mem::take(&mut next)).await?;
        memory.extend(held);
        let candidates: Vec<Option<Vec<StorePath>>> =
            looked.iter().map(|looked| candidates(context, looked)).collect();
        let asked: Vec<StorePath> = candidates.iter().flatten().flatten().cloned().collect();
        let offered = offered(context, &asked).await?;
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

/// Splits the targets into paths that may be fetched and outputs of derivations.
fn sorted(context: &Context, targets: &[DerivedPath]) -> (Vec<StorePath>, Wanted) {
    let (mut plain, mut wanted) = (Vec::new(), Vec::new());
    let view = context.views.now();
    for target in targets {
        match target {
            DerivedPath::Opaque(path) if view.is_valid(path) => {}
            DerivedPath::Opaque(path) if context.may_fetch(path.name()) => plain.push(path.clone()),
            DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv), outputs } => {
                wanted.push((drv.clone(), outputs.clone()));
            }
            // The target is unknown or not supported; the plan reports it.
            _ => {}
        }
    }
    (plain, wanted)
}

/// Keeps in `next` only derivations and outputs that are not in `seen`, and adds those to `seen`.
fn keep_new(seen: &mut BTreeMap<StorePath, BTreeSet<String>>, next: &mut Wanted) -> Result<(), Failure> {
    next.retain(|(drv, outputs)| {
        let known = seen.contains_key(drv);
        let all = seen.entry(drv.clone()).or_default();
        // No names means all outputs; `*` stands for that, as no output can have this name.
        let names = if outputs.is_empty() { vec!["*".to_owned()] } else { outputs.clone() };
        names.into_iter().fold(!known, |new, name| all.insert(name) || new)
    });
    if seen.len() > MAX_DERIVATIONS {
        return Err(Failure::rejected(format!(
            "the targets depend on more than {MAX_DERIVATIONS} derivations; build them in parts"
        )));
    }
    Ok(())
}

/// Reads derivations, and leaves out those without missing outputs. Also returns the memory that the list takes.
async fn look_at(context: &Context, level: Wanted) -> Result<(Vec<Looked>, Option<Charge>), Failure> {
    let (realiser, view) = (context.realiser.clone(), context.views.now());
    let studied = context.study(move |study| {
        let mut hasher = Hasher::new(&view, &realiser.drv_hashes, study);
        let look = |(drv, outputs): &(StorePath, Vec<String>)| {
            look(&view, &mut hasher, study, drv, outputs).transpose()
        };
        let looked: Result<Vec<Looked>, Failure> = level.iter().filter_map(look).collect();
        (looked, study.memory())
    });
    let (looked, held) = studied.await?;
    Ok((looked?, held))
}

/// Offers of `paths` and all paths they refer to. Reports the reason for every path without an offer.
pub(super) async fn offered(context: &Context, paths: &[StorePath]) -> Result<Walk, Failure> {
    let view = context.views.now();
    let walk = context.substituters(&view).walk(&context.asker(&view), paths).await;
    let mut walk = walk.map_err(over)?;
    warn(std::mem::take(&mut walk.warnings), context.reporter.channel()).await;
    Ok(walk)
}

/// The paths to ask caches for instead of building this; `None` if it has to be built in any case.
fn candidates(context: &Context, looked: &Looked) -> Option<Vec<StorePath>> {
    let paths: Vec<StorePath> = looked.missing.iter().cloned().collect::<Option<_>>()?;
    let may = |name: &str| context.may_fetch_if(name, looked.allows);
    // The name of the derivation and that of its output both count, as people may know either; each can forbid.
    let forbidden = |name: &str| context.may_never_fetch(name);
    let allowed = paths.iter().all(|path| !forbidden(path.name()) && (may(path.name()) || may(&looked.name)));
    (allowed && !forbidden(&looked.name)).then_some(paths)
}

/// The member's memory budget has no room.
fn over(why: OverBudget) -> Failure {
    Failure::transient(why.to_string())
}

/// `None` if no output is missing, or if the derivation cannot be read. Fails if the study is over.
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
            let realised = realisations::path(view, &hasher.of(drv).ok()?.masked, output);
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

/// Whether the derivation may be substituted: `allowSubstitutes = false` is an empty string in an environment.
fn allows(env: &BTreeMap<Vec<u8>, Vec<u8>>) -> bool {
    let attributes = env.get(&b"__json"[..]).and_then(|json| Attributes::parse(json.clone()).ok());
    match attributes {
        Some(attributes) => attributes.get("allowSubstitutes") != Some(&false.into()),
        None => !env.get(&b"allowSubstitutes"[..]).is_some_and(|value| value.is_empty()),
    }
}
