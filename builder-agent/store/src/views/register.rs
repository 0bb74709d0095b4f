//! Making objects visible: what may be registered, as what, and what changes with it.
//!
//! Three ways make a path Verified: the caller's word, a content address that its contents have, a signature of a
//! trusted key. Each counts only if all that the path refers to is Verified.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix_derivation::{StorePath, nixbase32};

use crate::error::RegisterError;
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit};
use crate::index::memory::{Index, Seen, Whose};
use crate::objects::ingest::{Ingested, Staged};
use crate::signing;
use crate::store::Inner;
use crate::types::{Member, PathInfo, Provenance, StoreConfig};
use crate::views::annotation::{Annotation, Notes};
use crate::views::origins::{Origins, trace};

/// Most references of one path. The largest packages in nixpkgs have a few thousand; the list of a closure (`closureInfo`)
/// refers to all of it, and large closures have some ten thousand paths.
const MAX_REFERENCES: usize = 30_000;
/// Most claims of one member, and references of all of them together. They are in memory and read at every start: about
/// 500 bytes each, and 250 for a reference. That is several large closures, with ten references for each path.
const MAX_CLAIMS: usize = 200_000;
const MAX_CLAIMED_REFERENCES: usize = 1_000_000;
/// Most signatures of one path, and bytes of one signature; an Ed25519 signature with its key name is about 120.
pub(crate) const MAX_SIGNATURES: usize = 64;
const MAX_SIGNATURE_BYTES: usize = 1024;
/// Longest `ca` field; the longest real one, SHA-512, has about 120 bytes.
const MAX_CA_BYTES: usize = 256;

/// Whose view something is registered through.
#[derive(Clone)]
pub(crate) struct Viewer {
    pub(crate) member: Member,
    pub(crate) others: Arc<[Member]>,
}

impl Viewer {
    pub(crate) fn sees<'a>(&'a self, index: &'a Index) -> Seen<'a> {
        index.seen_by(&self.member, &self.others)
    }
}

/// Whether `info` may be registered for `ingested` at all.
pub(crate) fn check(
    member: &Member,
    ingested: &Ingested,
    info: &PathInfo,
    provenance: &Provenance,
) -> Result<(), RegisterError> {
    if info.nar_hash != ingested.nar_hash || info.nar_size != ingested.nar_size {
        return Err(RegisterError::HashMismatch {
            path: info.path.clone(),
            announced: nixbase32::encode(&info.nar_hash),
            announced_size: info.nar_size,
            got: nixbase32::encode(&ingested.nar_hash),
            got_size: ingested.nar_size,
        });
    }
    check_info(member, info, provenance)
}

fn check_info(member: &Member, info: &PathInfo, provenance: &Provenance) -> Result<(), RegisterError> {
    if let Provenance::Claimed(claimed) = provenance
        && claimed != member
    {
        return Err(RegisterError::ForeignMember { claimed: claimed.clone(), view: member.clone() });
    }
    let counts = [
        ("references", info.references.len(), MAX_REFERENCES),
        ("bytes of content address", info.ca.as_ref().map_or(0, String::len), MAX_CA_BYTES),
    ];
    for (what, count, limit) in counts {
        if count > limit {
            return Err(RegisterError::TooMany { path: info.path.clone(), what, count, limit });
        }
    }
    check_signatures(&info.path, &info.signatures)
}

pub(crate) fn check_signatures(path: &StorePath, signatures: &[String]) -> Result<(), RegisterError> {
    check_signature_count(path, signatures.len())?;
    let longest = signatures.iter().map(String::len).max().unwrap_or(0);
    if longest > MAX_SIGNATURE_BYTES {
        let (path, what, limit) = (path.clone(), "bytes in a signature", MAX_SIGNATURE_BYTES);
        return Err(RegisterError::TooMany { path, what, count: longest, limit });
    }
    if let Some(bad) = signatures.iter().find(|s| !s.contains(':') || s.contains(char::is_whitespace)) {
        return Err(RegisterError::BadSignature { path: path.clone(), signature: bad.clone() });
    }
    Ok(())
}

pub(crate) fn check_signature_count(path: &StorePath, count: usize) -> Result<(), RegisterError> {
    match count > MAX_SIGNATURES {
        true => Err(RegisterError::TooMany {
            path: path.clone(),
            what: "signatures",
            count,
            limit: MAX_SIGNATURES,
        }),
        false => Ok(()),
    }
}

/// Signatures of trusted keys that are right for `info`.
pub(crate) fn trusted_signatures(config: &StoreConfig, info: &PathInfo) -> Vec<String> {
    if config.trusted.is_empty() || info.signatures.is_empty() {
        return Vec::new();
    }
    let fingerprint = signing::fingerprint(info);
    config.trusted.good(fingerprint.as_bytes(), &info.signatures).into_iter().cloned().collect()
}

/// What everybody may be told about a path that proves itself: only what was checked. `good` are the
/// [`trusted_signatures`] of `info`.
pub(crate) fn only_checked(info: &mut PathInfo, good: Vec<String>) {
    info.signatures = good;
    info.deriver = None;
    info.ultimate = false;
}

/// Our signature of `info`, if the store has a key. Asked for Verified paths and nothing else.
///
/// Not of content-addressed paths: they prove themselves to every client, so Nix asks no signature of them
/// (`ValidPathInfo::checkSignatures` in `src/libstore/path-info.cc`), and making one is most of the work for a small
/// path.
fn signature(config: &StoreConfig, info: &PathInfo) -> Option<String> {
    let signer = config.signer.as_ref().filter(|_| info.ca.is_none())?;
    Some(signer.sign(signing::fingerprint(info).as_bytes()))
}

fn add_signature(info: &mut PathInfo, signature: Option<String>) {
    // Signatures of Ed25519 do not vary, so one that is there already is the same.
    info.signatures.extend(signature.filter(|s| !info.signatures.contains(s)));
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed())
}

/// A path on its way into the index.
struct New {
    info: PathInfo,
    provenance: Provenance,
    proven: bool,
    /// `None`: the store has the object already, or it is an error.
    object_size: Option<u64>,
    /// Ours, made before the queue so that nobody else waits for it; kept only if the path becomes Verified.
    signature: Option<String>,
    /// What the member says of it, beside what is told to everybody.
    said: Annotation,
}

pub(crate) fn register(
    store: &Inner,
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
    if let Some(infos) = prepare(store, viewer, &mut items)? {
        return Ok(infos);
    }
    objects.iter_mut().try_for_each(|ingested| ingested.temporary.complete(store))?;
    let (config, viewer) = (store.config.clone(), viewer.clone());
    commit(store, about(&items), move |index| {
        let Planned { changes, infos, new } = plan(index, &config, &viewer, items)?;
        // Those that are valid already (somebody was faster) go.
        let kept = objects.into_iter().zip(new).filter(|(_, new)| *new);
        let objects = kept.map(|(i, _)| (i.temporary, i.nar_hash, i.object_size)).collect();
        Ok((Plan { changes, objects, ..Plan::default() }, infos))
    })
}

/// Registers paths whose objects the store has already. The member knows them as made by `deriver`.
pub(crate) fn adopt(
    store: &Inner,
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
    if let Some(infos) = prepare(store, viewer, &mut items)? {
        return Ok(infos);
    }
    let (config, viewer) = (store.config.clone(), viewer.clone());
    commit(store, about(&items), move |index| {
        let Planned { changes, infos, .. } = plan(index, &config, &viewer, items)?;
        Ok((Plan { changes, ..Plan::default() }, infos))
    })
}

/// What can be done without the queue: finds out what is wrong, answers if all is there already, signs what is
/// going to be Verified.
fn prepare(
    store: &Inner,
    viewer: &Viewer,
    items: &mut [New],
) -> Result<Option<Vec<Arc<PathInfo>>>, RegisterError> {
    {
        let index = store.index();
        settle(&index, viewer, items)?;
        let seen = viewer.sees(&index);
        let there = |new: &New| existing(&seen, &new.info.path, &new.provenance).cloned();
        if let Some(infos) = items.iter().map(there).collect::<Option<Vec<_>>>() {
            let news = notes(&infos, items).changes(&seen, &viewer.member);
            drop(index);
            if !news.is_empty() {
                note(store, viewer, notes(&infos, items))?;
            }
            return Ok(Some(infos));
        }
    }
    for new in items.iter_mut().filter(|new| new.provenance == Provenance::Verified) {
        new.signature = signature(&store.config, &new.info);
    }
    Ok(None)
}

/// What the items say of paths that are there already, as `infos`.
fn notes(infos: &[Arc<PathInfo>], items: &[New]) -> Notes {
    let mut notes = Notes::default();
    infos.iter().zip(items).for_each(|(info, new)| notes.add(info, new.said.clone()));
    notes
}

/// Keeps what the member says, and changes nothing else.
pub(crate) fn note(store: &Inner, viewer: &Viewer, notes: Notes) -> Result<(), RegisterError> {
    let viewer = viewer.clone();
    let about = About { adds: notes.paths().map(|path| *path.digest()).collect(), ..About::default() };
    commit(store, about, move |index| {
        let changes = notes.changes(&viewer.sees(index), &viewer.member);
        Ok((Plan { changes, ..Plan::default() }, ()))
    })
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
    /// Whose object is needed, in the order of the batch.
    new: Vec<bool>,
}

fn plan(
    index: &Index,
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
            // `settle` never makes Verified what was not, so it is there if the store has a key.
            add_signature(&mut info, made);
        } else {
            // It says all of it itself, also what could not be told to everybody.
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
        let origins = Origins::default();
        planned.changes.push(Change::AddPath { info, provenance, proven, object_size, origins });
    }
    let leaned_on = leaned_on.iter().filter(|r| !first.contains_key(*r));
    planned.changes.extend(make_own(index, viewer, leaned_on)?);
    within_limits(&seen, viewer, &planned.changes)?;
    planned.changes.extend(follow(index, config, viewer, verified, &mut notes));
    trace(index, &viewer.member, &mut planned.changes);
    planned.changes.extend(notes.changes(&seen, &viewer.member));
    Ok(planned)
}

/// Refuses what would give a member more claims than anybody needs: all of them are loaded before anybody is served.
fn within_limits(seen: &Seen<'_>, viewer: &Viewer, changes: &[Change]) -> Result<(), RegisterError> {
    let claims = changes.iter().filter_map(|change| match change {
        Change::AddPath { info, provenance: Provenance::Claimed(member), .. } if *member == viewer.member => {
            Some(info)
        }
        _ => None,
    });
    let (mut paths, mut references) = (0, 0);
    for info in claims {
        paths += 1;
        references += info.references.len();
    }
    if paths == 0 {
        return Ok(());
    }
    let (has_paths, has_references) = seen.own_size();
    for (what, count, limit) in [
        ("paths", has_paths + paths, MAX_CLAIMS),
        ("references of paths", has_references + references, MAX_CLAIMED_REFERENCES),
    ] {
        if count > limit {
            return Err(RegisterError::ClaimLimit { member: viewer.member.clone(), what, count, limit });
        }
    }
    Ok(())
}

/// Makes those of `paths` the member's own that others share with them.
pub(crate) fn own(store: &Inner, viewer: &Viewer, paths: Vec<StorePath>) -> Result<(), RegisterError> {
    let adds = paths.iter().map(|path| *path.digest()).collect();
    let viewer = viewer.clone();
    commit(store, About { adds, ..About::default() }, move |index| {
        let changes = make_own(index, &viewer, &paths)?;
        Ok((Plan { changes, ..Plan::default() }, ()))
    })
}

/// Copies the rows of those claims of others that `paths` and their closures need: what a member has built upon
/// stays theirs when the other stops sharing or deletes it.
pub(crate) fn make_own<'a>(
    index: &Index,
    viewer: &Viewer,
    paths: impl IntoIterator<Item = &'a StorePath>,
) -> Result<Vec<Change>, RegisterError> {
    let seen = viewer.sees(index);
    let shared = |p: &&StorePath| matches!(seen.entry(p), Some((_, Whose::Shared(_))));
    let paths: Vec<&StorePath> = paths.into_iter().filter(shared).collect();
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let missing =
        |m: crate::MissingPath| RegisterError::MissingReference { path: paths[0].clone(), reference: m.0 };
    let closure = seen.closure(paths.iter().copied()).map_err(missing)?;
    let theirs = closure.into_values().filter(|(_, whose)| matches!(whose, Whose::Shared(_)));
    let mut copies: Vec<Change> = theirs
        .filter_map(|(info, _)| {
            let (entry, whose) = seen.entry(&info.path)?;
            let (proven, object_size) = (entry.proven, index.object_size(&info.nar_hash)?);
            let provenance = Provenance::Claimed(viewer.member.clone());
            // It stays the claim of whose it was.
            let origins = match whose {
                Whose::Shared(layer) => entry.origins.seen_from_outside(layer),
                Whose::Everybodys | Whose::Own(_) => return None,
            };
            Some(Change::AddPath { info, provenance, proven, object_size, origins })
        })
        .collect();
    within_limits(&seen, viewer, &copies)?;
    trace(index, &viewer.member, &mut copies);
    Ok(copies)
}

/// What becomes Verified because `verified` have: the member's own claims that prove themselves and waited for their
/// references only. Also drops the member's claims that Verified ones replace with the same contents; what they said
/// goes to `notes`.
///
/// Other members' claims wait until those members come back to them: how long this takes must not tell what they have.
pub(crate) fn follow(
    index: &Index,
    config: &StoreConfig,
    viewer: &Viewer,
    verified: Vec<Arc<PathInfo>>,
    notes: &mut Notes,
) -> Vec<Change> {
    let seen = viewer.sees(index);
    // Verified by now, or about to be.
    let mut queued: HashSet<StorePath> = verified.iter().map(|info| info.path.clone()).collect();
    let mut done: HashSet<StorePath> = HashSet::new();
    // How many references a claim still waits for. Each is counted once, however many become Verified here.
    let mut missing: HashMap<StorePath, usize> = HashMap::new();
    let mut changes = Vec::new();
    let mut todo = verified;
    while let Some(new) = todo.pop() {
        if let Some(claim) = seen.own_claim(&new.path).filter(|entry| entry.info.nar_hash == new.nar_hash) {
            notes.add(&new, Annotation::of(&claim.info));
            changes.push(Change::DropClaim { member: viewer.member.clone(), path: new.path.clone() });
        }
        let was_missing = !index.is_verified(&new.path) && done.insert(new.path.clone());
        for referrer in seen.own_referrers(&new.path) {
            let Some(entry) = seen.own_claim(referrer).filter(|entry| entry.proven) else { continue };
            if queued.contains(referrer) || index.is_verified(referrer) {
                continue;
            }
            let left = match missing.get_mut(referrer) {
                Some(left) => {
                    *left = left.saturating_sub(usize::from(was_missing));
                    *left
                }
                None => {
                    let sound = |p: &StorePath| p == referrer || done.contains(p) || index.is_verified(p);
                    let left = entry.info.references.iter().filter(|r| !sound(r)).count();
                    missing.insert(referrer.clone(), left);
                    left
                }
            };
            if left > 0 {
                continue;
            }
            let good = trusted_signatures(config, &entry.info);
            let Some(upgrade) = upgrade(index, config, PathInfo::clone(&entry.info), good) else { continue };
            if let Change::AddPath { info, .. } = &upgrade {
                queued.insert(info.path.clone());
                todo.push(Arc::clone(info));
            }
            changes.push(upgrade);
        }
    }
    changes
}

/// A claim that proves itself becomes Verified. `good` are its [`trusted_signatures`].
pub(crate) fn upgrade(
    index: &Index,
    config: &StoreConfig,
    mut info: PathInfo,
    good: Vec<String>,
) -> Option<Change> {
    let object_size = index.object_size(&info.nar_hash)?;
    only_checked(&mut info, good);
    let made = signature(config, &info);
    add_signature(&mut info, made);
    let (info, provenance) = (Arc::new(info), Provenance::Verified);
    Some(Change::AddPath { info, provenance, proven: true, object_size, origins: Origins::default() })
}

/// Checks that all references are there, and lets a path be Verified only if all it refers to is. Otherwise others
/// would see a path whose references they do not have, or, worse, combine it with their own idea of those references.
/// Each reference is looked at once: all members wait for this.
fn settle(index: &Index, viewer: &Viewer, items: &mut [New]) -> Result<(), RegisterError> {
    let seen = viewer.sees(index);
    // Of two with one name the first counts, so only that one may vouch for it.
    let mut ours: HashMap<StorePath, usize> = HashMap::with_capacity(items.len());
    for (i, New { info, .. }) in items.iter().enumerate() {
        ours.entry(info.path.clone()).or_insert(i);
    }
    for New { info, .. } in items.iter() {
        if let Some(reference) =
            info.references.iter().find(|r| !ours.contains_key(r) && seen.info(r).is_none())
        {
            let (path, reference) = (info.path.clone(), reference.clone());
            return Err(RegisterError::MissingReference { path, reference });
        }
    }
    let verified = |new: &New| new.provenance == Provenance::Verified;
    // By the place in the batch of what they refer to: those that are Verified only as long as it is.
    let mut leaning: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut bad = Vec::new();
    for (i, new) in items.iter().enumerate().filter(|(_, new)| verified(new)) {
        for reference in new.info.references.iter().filter(|r| !index.is_verified(r)) {
            match ours.get(reference) {
                Some(&at) if verified(&items[at]) => leaning.entry(at).or_default().push(i),
                _ => bad.push(i),
            }
        }
    }
    while let Some(i) = bad.pop() {
        if verified(&items[i]) {
            items[i].provenance = Provenance::Claimed(viewer.member.clone());
            bad.extend(leaning.remove(&ours[&items[i].info.path]).into_iter().flatten());
        }
    }
    Ok(())
}
