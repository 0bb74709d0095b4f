//! Questions about paths and derivations.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use nix::{BuildResult, DrvKey, DrvOutputId, PathInfo, Realisation};
use nix_derivation::{NixHash, StorePath};
use store::{RealisationId, View};

use wire::worker::Response;

use super::desk::Desk;
use super::request_error::{RequestError, over};
use crate::Agent;
use builds::study::studied;
use builds::{plan, realisations};
use shares::budget::{Charge, OverBudget};

/// Path info of a path. The client takes the path to be valid.
pub(super) fn info(view: &View, path: &StorePath) -> Result<Arc<PathInfo>, RequestError> {
    view.info(path).ok_or_else(|| RequestError::not_valid(path))
}

/// Memory of one path of a list, while the list is made from a sorted set and then sent.
const LISTED_BYTES: u64 = 320;

/// An answer up to this size fits into the session's own buffers.
const SHORT_BYTES: u64 = 64 << 10;

/// A list that can be as long as the store, charged while it is being sent. If the member's budget has no room, the
/// list is dropped, the session waits for memory without it, and the list is made again.
pub(super) async fn listed<F>(
    desk: &Desk,
    make: impl Fn() -> F,
) -> Result<(Vec<StorePath>, Charge), RequestError>
where
    F: Future<Output = Result<Vec<StorePath>, RequestError>>,
{
    const WHAT: &str = "a list of paths";
    let size = |list: &[StorePath]| list.len() as u64 * LISTED_BYTES;
    let list = make().await?;
    let need = size(&list);
    if let Ok(charge) = desk.budget.charge(need, WHAT) {
        return Ok((list, charge));
    }
    drop(list);
    let mut charge = desk.budget.wait(need, WHAT).await.map_err(over)?;
    let list = make().await?;
    charge.set(size(&list)).map_err(over)?;
    Ok((list, charge))
}

/// Charges an answer that can be long, while it is being sent.
pub(super) fn charged(desk: &Desk, response: &Response) -> Result<Option<Charge>, OverBudget> {
    let bytes = match response {
        Response::Paths(paths) => paths.len() as u64 * LISTED_BYTES,
        Response::Names(names) => names.len() as u64 * LISTED_BYTES,
        Response::OutputMap(outputs) => outputs.len() as u64 * LISTED_BYTES,
        Response::PathInfo(Some(info)) | Response::Added(info) => info.references.len() as u64 * LISTED_BYTES,
        Response::Missing(missing) => {
            let paths = missing.will_build.len() + missing.will_substitute.len() + missing.unknown.len();
            paths as u64 * LISTED_BYTES
        }
        Response::Substitutable(infos) => {
            infos.iter().map(|info| (1 + info.references.len() as u64) * LISTED_BYTES).sum()
        }
        Response::Roots(roots) => roots.len() as u64 * 2 * LISTED_BYTES,
        Response::Garbage { paths, .. } => paths.len() as u64 * LISTED_BYTES,
        Response::BuildResults(results) => {
            let one = |result: &BuildResult| {
                let outputs = 1 + result.built_outputs.len() as u64;
                result.error_msg.len() as u64 + outputs * LISTED_BYTES
            };
            results.iter().map(|(_, result)| one(result)).sum()
        }
        _ => 0,
    };
    // Short answers are part of what each session is charged for.
    (bytes > SHORT_BYTES).then(|| desk.budget.charge(bytes, "this answer")).transpose()
}

/// Output names of the `.drv` at `path`, with their paths: those that it states, and those that have been realised.
pub(super) async fn outputs(
    desk: &Desk,
    agent: &Arc<Agent>,
    view: &View,
    path: StorePath,
) -> Result<BTreeMap<String, Option<StorePath>>, RequestError> {
    let (agent, view) = (agent.clone(), view.clone());
    let reading = studied(&desk.workers, &desk.budget, move |study| {
        plan::outputs(&view, &agent.realiser.drv_hashes, &path, study)
    });
    Ok(reading.await??)
}

/// The realisation of an output of a derivation.
pub(super) async fn realisation(
    desk: &Desk,
    agent: &Arc<Agent>,
    view: &View,
    id: DrvOutputId,
) -> Result<Option<Realisation>, RequestError> {
    let found = match &id.drv {
        DrvKey::Hash(NixHash::Sha256(drv_hash)) => {
            let key = RealisationId { drv_hash: *drv_hash, output: id.output.clone() };
            view.realisation(&key).map(|(path, _, signatures)| (path, signatures))
        }
        DrvKey::Hash(_) => None,
        DrvKey::Path(drv) if !view.is_valid(drv) => None,
        DrvKey::Path(drv) => {
            let outputs = outputs(desk, agent, view, drv.clone()).await?;
            outputs.get(&id.output).cloned().flatten().map(|path| (path, Vec::new()))
        }
    };
    Ok(found.filter(|(path, _)| view.is_valid(path)).map(|(out_path, signatures)| Realisation {
        id,
        out_path,
        signatures,
        dependent_realisations: BTreeMap::new(),
    }))
}

/// Registers a realisation that a client states.
pub(super) async fn register(
    desk: &Desk,
    agent: &Arc<Agent>,
    view: &View,
    realisation: Realisation,
) -> Result<(), RequestError> {
    let (agent, view) = (agent.clone(), view.clone());
    let claiming = studied(&desk.workers, &desk.budget, move |study| {
        realisations::claim(&view, &agent.realiser.drv_hashes, realisation, study)
    });
    Ok(claiming.await??)
}
