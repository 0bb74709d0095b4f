//! Makes objects visible: checks what may be registered, and makes the changes. `provenance` decides what
//! becomes Verified.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::PathInfo;
use nix_derivation::StorePath;

use super::annotation::Notes;
use super::copies::make_own;
use super::limits::{check_info, within_limits};
use super::origins::trace;
use super::provenance::{add_signature, follow, settle, signature};
use super::quota;
use super::seen::{Seen, Viewer};
use super::staged::Staged;
use crate::config::StoreConfig;
use crate::error::RegisterError;
use crate::index::account::Account;
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit};
use crate::index::memory::Memory;
use crate::index::rows::{Annotation, Origins};
use crate::long_work::SHORT;
use crate::objects::ingest::Ingested;
use crate::types::Provenance;
use crate::upkeep::base::Base;

/// A path that is about to be registered.
pub(super) struct New {
    pub(super) info: PathInfo,
    pub(super) provenance: Provenance,
    proven: bool,
    /// `None`: the store must have the object already; otherwise registration fails.
    object_size: Option<u64>,
    /// The box's signature, made before the queue so that other threads do not wait for it; kept only if the
    /// path becomes Verified.
    signature: Option<String>,
    /// The member's annotation, besides the info that all members see.
    said: Annotation,
}

pub(crate) fn register(
    base: &Base,
    viewer: &Viewer,
    batch: Vec<Staged>,
) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
    let mut items = Vec::with_capacity(batch.len());
    let mut objects = Vec::with_capacity(batch.len());
    for Staged { ingested, info, provenance, proven, said } in batch {
        let object_size = Some(ingested.object_size);
        items.push(New { info, provenance, proven, object_size, signature: None, said });
        objects.push(ingested);
    }
    let long_work = base.config.long_work;
    let weight = |new: &New| 1 + new.info.references.len() + new.info.signatures.len();
    if items.iter().map(weight).sum::<usize>() > SHORT {
        return long_work.run(|| register_items(base, viewer, items, objects));
    }
    register_items(base, viewer, items, objects)
}

/// `objects` are those of `items`.
fn register_items(
    base: &Base,
    viewer: &Viewer,
    mut items: Vec<New>,
    mut objects: Vec<Ingested>,
) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
    if let Some(infos) = prepare(base, viewer, &mut items)? {
        return Ok(infos);
    }
    objects.iter_mut().try_for_each(|ingested| base.objects.complete(&mut ingested.temporary))?;
    let (config, viewer, upkeep) = (base.config.clone(), viewer.clone(), Arc::clone(&base.upkeep));
    commit(&base.index, about(&items), move |index| {
        let far = goes_far(index, &viewer, &items);
        let plan = || plan(index, &config, &viewer, items);
        let Planned { changes, infos, new } = if far { config.long_work.run(plan) } else { plan() }?;
        // Objects of paths that are valid already (another thread was faster) are removed.
        let kept = objects.into_iter().zip(new).filter(|(_, new)| *new);
        let objects = kept.map(|(i, _)| (i.temporary, i.nar_hash, i.object_size)).collect::<Vec<_>>();
        let once_written = Some(Box::new(move || upkeep.keep(objects)) as _);
        Ok((Plan { changes, once_written, ..Plan::default() }, infos))
    })
}

/// Registers paths whose objects the store has already. The member gets `deriver` as their deriver.
pub(crate) fn adopt(
    base: &Base,
    viewer: &Viewer,
    batch: Vec<(PathInfo, Provenance)>,
    deriver: Option<&StorePath>,
) -> Result<Vec<Arc<PathInfo>>, RegisterError> {
    let mut items = Vec::with_capacity(batch.len());
    for (info, provenance) in batch {
        check_info(&viewer.member, &info, &provenance)?;
        let said = Annotation::deriver(info.nar_hash, deriver);
        items.push(New { info, provenance, proven: false, object_size: None, signature: None, said });
    }
    if let Some(infos) = prepare(base, viewer, &mut items)? {
        return Ok(infos);
    }
    let (config, viewer) = (base.config.clone(), viewer.clone());
    commit(&base.index, about(&items), move |index| {
        let Planned { changes, infos, .. } = plan(index, &config, &viewer, items)?;
        Ok((Plan { changes, ..Plan::default() }, infos))
    })
}

/// The work that does not need the queue: finds errors, answers if all paths are registered already, and
/// signs the paths that will be Verified.
fn prepare(
    base: &Base,
    viewer: &Viewer,
    items: &mut [New],
) -> Result<Option<Vec<Arc<PathInfo>>>, RegisterError> {
    {
        let index = base.index.read();
        settle(&index, viewer, items)?;
        let seen = viewer.sees(&index);
        let there = |new: &New| existing(&seen, &new.info.path, &new.provenance).cloned();
        if let Some(infos) = items.iter().map(there).collect::<Option<Vec<_>>>() {
            let news = notes(&infos, items).changes(&seen, &viewer.member);
            drop(index);
            if !news.is_empty() {
                note(base, viewer, notes(&infos, items))?;
            }
            return Ok(Some(infos));
        }
    }
    for new in items.iter_mut().filter(|new| new.provenance == Provenance::Verified) {
        new.signature = signature(&base.config, &new.info);
    }
    Ok(None)
}

/// The annotations of the items for paths that are registered already, as `infos`.
fn notes(infos: &[Arc<PathInfo>], items: &[New]) -> Notes {
    let mut notes = Notes::default();
    infos.iter().zip(items).for_each(|(info, new)| notes.add(info, new.said.clone()));
    notes
}

/// Stores the member's annotations, and changes nothing else.
pub(crate) fn note(base: &Base, viewer: &Viewer, notes: Notes) -> Result<(), RegisterError> {
    let viewer = viewer.clone();
    let about = About { adds: notes.paths().map(|path| *path.digest()).collect(), ..About::default() };
    commit(&base.index, about, move |index| {
        let changes = notes.changes(&viewer.sees(index), &viewer.member);
        Ok((Plan { changes, ..Plan::default() }, ()))
    })
}

/// Whether a plan may go through a closure of the member's: copy it from others, or make claims Verified that waited for
/// one of these paths.
fn goes_far(index: &Memory, viewer: &Viewer, items: &[New]) -> bool {
    let seen = viewer.sees(index);
    !viewer.others.is_empty() || items.iter().any(|new| seen.own_referrers(&new.info.path).next().is_some())
}

fn about(items: &[New]) -> About {
    let adds = items.iter().map(|new| *new.info.path.digest()).collect();
    let reads = items.iter().flat_map(|new| new.info.references.iter().map(|r| *r.digest())).collect();
    About { adds, reads, everything: false }
}

/// The info that counts if `path` is registered again.
fn existing<'a>(seen: &Seen<'a>, path: &StorePath, provenance: &Provenance) -> Option<&'a Arc<PathInfo>> {
    match provenance {
        _ if seen.is_verified(path) => seen.info(path),
        Provenance::Verified => None,
        Provenance::Claimed(_) => seen.own_claim(path).map(|entry| &entry.info),
    }
}

struct Planned {
    changes: Vec<Change>,
    /// In the order of the batch.
    infos: Vec<Arc<PathInfo>>,
    /// Whether the object of each item is needed, in the order of the batch.
    new: Vec<bool>,
}

fn plan(
    index: &Memory,
    config: &StoreConfig,
    viewer: &Viewer,
    mut items: Vec<New>,
) -> Result<Planned, RegisterError> {
    settle(index, viewer, &mut items)?;
    let seen = viewer.sees(index);
    let mut planned = Planned { changes: Vec::new(), infos: Vec::new(), new: Vec::new() };
    let mut first: HashMap<StorePath, Arc<PathInfo>> = HashMap::new();
    let mut verified: Vec<Arc<PathInfo>> = Vec::new();
    let mut leaned_on: BTreeSet<StorePath> = BTreeSet::new();
    let mut notes = Notes::default();
    for New { mut info, provenance, proven, object_size, signature: made, said } in items {
        // The same path twice in one batch: the first one counts.
        let there = existing(&seen, &info.path, &provenance).cloned();
        if let Some(existing) = there.or_else(|| first.get(&info.path).cloned()) {
            notes.add(&existing, said);
            planned.infos.push(existing);
            planned.new.push(false);
            continue;
        }
        let Some(object_size) = object_size.or_else(|| index.object_size(&info.nar_hash)) else {
            return Err(RegisterError::NoObject { path: info.path });
        };
        if info.registration_time == 0 {
            info.registration_time = now();
        }
        if provenance == Provenance::Verified {
            // `settle` never makes an item Verified that was not, so the signature exists if the store has a
            // key.
            add_signature(&mut info, made);
        } else {
            // A claim contains the member's whole statement, also the part that other members do not see.
            said.describe(&mut info);
            leaned_on.extend(info.references.iter().cloned());
        }
        let info = Arc::new(info);
        if provenance == Provenance::Verified {
            verified.push(Arc::clone(&info));
            notes.add(&info, said);
        }
        first.insert(info.path.clone(), Arc::clone(&info));
        planned.infos.push(Arc::clone(&info));
        planned.new.push(true);
        let payer = viewer.payer.member.clone().filter(|_| provenance == Provenance::Verified);
        let (origins, account) = (Origins::default(), Account::opened_by(payer));
        planned.changes.push(Change::AddPath { info, provenance, proven, object_size, origins, account });
    }
    let leaned_on = leaned_on.iter().filter(|r| !first.contains_key(*r));
    planned.changes.extend(make_own(index, viewer, leaned_on)?);
    within_limits(&seen, viewer, &planned.changes)?;
    planned.changes.extend(follow(index, config, viewer, verified, &mut notes));
    quota::within(index, viewer, &planned.changes)?;
    trace(index, &viewer.member, &mut planned.changes);
    planned.changes.extend(notes.changes(&seen, &viewer.member));
    Ok(planned)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed())
}
