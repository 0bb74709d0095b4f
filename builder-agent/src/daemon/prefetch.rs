//! What is fetched instead of being built, decided before anything is planned.
//!
//! From the targets downwards: an output that is missing and on offer is fetched, and nothing below it is looked at; only
//! what is not on offer leads on to its inputs. The plan is made afterwards, on what is there then. So a
//! download that fails costs a build, never a request.
//! The derivations are the member's own and may name anything: the walk has bounds and does not recurse.

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::{Derivation, DerivedPath, SingleDerivedPath, StorePath};
use store::View;

use super::Session;
use super::audience::Audience;
use super::transfer::{Trouble, blocking};
use crate::build::plan::MAX_DERIVATIONS;
use crate::build::recipe::MAX_DRV_BYTES;
use crate::substitute::Walk;

/// What would be fetched for some targets, and what would still have to be built.
#[derive(Debug, Default)]
pub(super) struct Instead {
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
    ) -> Result<(), Trouble> {
        let instead = self.instead(targets).await?;
        if !instead.fetch.is_empty() {
            // What fails is built, or reported by the plan; the client has been warned.
            self.fetch(audience, instead.fetch.into_iter().collect()).await?;
        }
        Ok(())
    }

    /// The outputs of a derivation that came without its inputs, if all of them can be fetched.
    pub(super) async fn prefetch_outputs<A: Audience>(
        &self,
        audience: &mut A,
        drv: &StorePath,
        derivation: &wire::types::BasicDerivation,
    ) -> Result<(), Trouble> {
        let name = drv.name().strip_suffix(".drv").unwrap_or(drv.name()).to_owned();
        let paths = derivation.outputs.iter().map(|(output, spec)| spec.path(&name, output).ok().flatten());
        let missing =
            paths.filter(|path| path.as_ref().is_none_or(|path| !self.view.is_valid(path))).collect();
        let allows = !derivation.env.get("allowSubstitutes").is_some_and(|value| value.is_empty())
            && !derivation.env.get("__json").is_some_and(|json| refuses(json));
        let looked = Looked { drv: drv.clone(), name, missing, allows, inputs: Vec::new() };
        let Some(paths) = self.candidates(&looked) else { return Ok(()) };
        let walk = self.house.substituters.walk(self.view.member(), &paths).await;
        if !paths.is_empty() && paths.iter().all(|path| walk.offers.contains_key(path)) {
            self.fetch(audience, paths).await?;
        }
        Ok(())
    }

    /// What would be fetched, and what built.
    pub(super) async fn instead(&self, targets: &[DerivedPath]) -> Result<Instead, Trouble> {
        let mut instead = Instead::default();
        if !self.house.substituters.any() {
            return Ok(instead);
        }
        let mut seen: BTreeMap<StorePath, BTreeSet<String>> = BTreeMap::new();
        let mut next: Vec<(StorePath, Vec<String>)> = Vec::new();
        let mut plain = Vec::new();
        for target in targets {
            match target {
                DerivedPath::Opaque(path) if self.view.is_valid(path) => {}
                DerivedPath::Opaque(path) if self.may_fetch(path.name(), true) => plain.push(path.clone()),
                DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv), outputs } => {
                    next.push((drv.clone(), outputs.clone()));
                }
                // Unknown or not supported: the plan says so.
                _ => {}
            }
        }
        let offered = self.offered(&plain).await;
        instead.fetch.extend(plain.into_iter().filter(|path| offered.offers.contains_key(path)));
        while !next.is_empty() {
            next.retain(|(drv, outputs)| {
                let known = seen.contains_key(drv);
                let all = seen.entry(drv.clone()).or_default();
                // Without names all outputs are wanted; `*` is no name of an output.
                let names = if outputs.is_empty() { vec!["*".to_owned()] } else { outputs.clone() };
                names.into_iter().fold(!known, |new, name| all.insert(name) || new)
            });
            if seen.len() > MAX_DERIVATIONS {
                return Err(Trouble::Refused(format!(
                    "the targets depend on more than {MAX_DERIVATIONS} derivations; build them in parts"
                )));
            }
            let (view, level) = (self.view.clone(), std::mem::take(&mut next));
            let looked: Vec<Looked> = blocking(move || {
                level.iter().filter_map(|(drv, outputs)| look(&view, drv, outputs)).collect()
            })
            .await?;
            let candidates: Vec<Option<Vec<StorePath>>> =
                looked.iter().map(|looked| self.candidates(looked)).collect();
            let asked: Vec<StorePath> = candidates.iter().flatten().flatten().cloned().collect();
            let offered = self.offered(&asked).await;
            for (looked, candidates) in looked.into_iter().zip(candidates) {
                match candidates {
                    Some(paths) if paths.iter().all(|path| offered.offers.contains_key(path)) => {
                        instead.fetch.extend(paths);
                    }
                    _ => {
                        instead.build.insert(looked.drv);
                        next.extend(looked.inputs);
                    }
                }
            }
        }
        Ok(instead)
    }

    async fn offered(&self, paths: &[StorePath]) -> Walk {
        match paths.is_empty() {
            true => Walk::default(),
            false => self.house.substituters.walk(self.view.member(), paths).await,
        }
    }

    /// What to ask about instead of building it; `None` if it has to be built in any case.
    fn candidates(&self, looked: &Looked) -> Option<Vec<StorePath>> {
        let paths: Vec<StorePath> = looked.missing.iter().cloned().collect::<Option<_>>()?;
        let may = |name: &str| self.may_fetch(name, looked.allows);
        // By either name, as an operator may know the derivation or its output; each can forbid.
        let substituters = &self.house.substituters;
        let forbidden = |name: &str| !substituters.may(name, true);
        let allowed =
            paths.iter().all(|path| !forbidden(path.name()) && (may(path.name()) || may(&looked.name)));
        (allowed && !forbidden(&looked.name)).then_some(paths)
    }
}

/// `None` if nothing of it is missing, or nothing can be said about it.
fn look(view: &View, drv: &StorePath, wanted: &[String]) -> Option<Looked> {
    let name = drv.name().strip_suffix(".drv")?;
    let bytes = view.read_file(drv, MAX_DRV_BYTES).ok()?;
    let derivation = Derivation::from_aterm_bytes(&bytes, name).ok()?;
    let mut missing = Vec::new();
    for (output, spec) in derivation.outputs() {
        if wanted.is_empty() || wanted.contains(output) {
            match spec.path(name, output).ok()? {
                Some(path) if view.is_valid(&path) => {}
                path => missing.push(path),
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let env = derivation.environment();
    // Empty is how `false` gets into an environment.
    let allows = !env.get("allowSubstitutes").is_some_and(|value| value.is_empty())
        && !derivation.structured_attrs().is_some_and(|attrs| refuses(attrs.raw_json()));
    let inputs = derivation.input_derivations().iter();
    let inputs = inputs.map(|(input, wanted)| (input.clone(), wanted.outputs().iter().cloned().collect()));
    Some(Looked { drv: drv.clone(), name: name.to_owned(), missing, allows, inputs: inputs.collect() })
}

/// `allowSubstitutes = false` among structured attributes.
fn refuses(json: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(json)
        .is_ok_and(|attributes| attributes["allowSubstitutes"] == false)
}
