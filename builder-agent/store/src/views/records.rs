//! Records besides paths: results of builds, realisations, roots, and signatures that are added later.

use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use super::annotation::Notes;
use super::copies::make_own;
use super::quota;
use super::seen::{Viewer, Whose};
use super::{limits, provenance, register};
use crate::config::StoreConfig;
use crate::error::{MissingPath, RegisterError};
use crate::index::change::Change;
use crate::index::commit::{About, Plan, commit};
use crate::index::memory::Memory;
use crate::index::rows::Annotation;
use crate::signing;
use crate::types::Provenance;
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::{BuildRecord, RecordEnd};
use crate::upkeep::base::Base;

/// Most remembered failures, and builds that timed out. Each takes a few kilobytes at most, and the oldest is the least likely to be
/// asked for.
const MAX_FAILURES: usize = 10_000;
/// Longest message of a remembered failure. It contains the last lines of a log, not the whole log.
const MAX_MESSAGE: usize = 16 << 10;
/// Most roots of one member, and the length of a root's name: a path on a client's disk.
const MAX_ROOTS: usize = 100_000;
const MAX_ROOT_NAME: usize = 4096;
/// Most claimed realisations of one member. They are kept in memory. Room for one for each output of several
/// times as many derivations as a large closure has.
const MAX_REALISATIONS: usize = 100_000;

fn about(paths: &[&StorePath]) -> About {
    About { adds: paths.iter().map(|p| *p.digest()).collect(), ..About::default() }
}

fn changes<T>(changes: Vec<Change>, value: T) -> Result<(Plan, T), RegisterError> {
    Ok((Plan { changes, ..Plan::default() }, value))
}

pub(crate) fn record(base: &Base, key: [u8; 32], mut record: BuildRecord) -> Result<(), RegisterError> {
    if let RecordEnd::Failed { message, .. } = &mut record.end
        && message.len() > MAX_MESSAGE
    {
        let end = (0..=MAX_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
    }
    let record = Arc::new(record);
    commit(&base.index, About::default(), move |index| {
        if let RecordEnd::Built { outputs, .. } = &record.end
            && let Some(gone) = outputs.values().find(|output| index.paths_with(&output.nar_hash) == 0)
        {
            return Err(RegisterError::NoObject { path: gone.path.clone() });
        }
        let mut todo = Vec::new();
        if !record.end.is_built() && index.failures() >= MAX_FAILURES {
            todo.extend(index.oldest_failure().map(|key| Change::DropResult { key }));
        }
        todo.push(Change::PutResult { key, record });
        changes(todo, ())
    })
}

pub(crate) fn add_realisation(
    base: &Base,
    viewer: &Viewer,
    id: RealisationId,
    path: StorePath,
    provenance: Provenance,
) -> Result<(), RegisterError> {
    if !id.is_sound() {
        return Err(RegisterError::BadOutput { output: id.output });
    }
    if let Provenance::Claimed(claimed) = &provenance
        && *claimed != viewer.member
    {
        let (claimed, view) = (claimed.clone(), viewer.member.clone());
        return Err(RegisterError::ForeignMember { claimed, view });
    }
    let (config, viewer) = (base.config.clone(), viewer.clone());
    commit(&base.index, about(&[&path]), move |index| {
        changes(plan_realisation(index, &config, &viewer, id, path, provenance)?, ())
    })
}

fn plan_realisation(
    index: &Memory,
    config: &StoreConfig,
    viewer: &Viewer,
    id: RealisationId,
    path: StorePath,
    provenance: Provenance,
) -> Result<Vec<Change>, RegisterError> {
    let seen = viewer.sees(index);
    let provenance = match provenance {
        // As with paths: a realisation is at most as trusted as its path.
        Provenance::Verified if index.is_verified(&path) => Provenance::Verified,
        _ => Provenance::Claimed(viewer.member.clone()),
    };
    if seen.info(&path).is_none() {
        return Err(MissingPath(path).into());
    }
    let mut todo = Vec::new();
    let signatures = match provenance {
        Provenance::Verified => sign(config, &id, &path),
        Provenance::Claimed(_) => {
            if seen.own_realisation(&id).is_none() && seen.own_realisations().len() >= MAX_REALISATIONS {
                let (member, limit) = (viewer.member.clone(), MAX_REALISATIONS);
                return Err(RegisterError::RealisationLimit { member, limit });
            }
            todo.extend(make_own(index, viewer, [&path])?);
            quota::within(index, viewer, &todo)?;
            Vec::new()
        }
    };
    let realisation = Arc::new(Realisation { path, signatures });
    todo.push(Change::AddRealisation { id, provenance, realisation });
    Ok(todo)
}

fn sign(config: &StoreConfig, id: &RealisationId, path: &StorePath) -> Vec<String> {
    let fingerprint = signing::realisation_fingerprint(id, path);
    config.signer.iter().map(|signer| signer.sign(fingerprint.as_bytes())).collect()
}

pub(crate) fn add_root(
    base: &Base,
    viewer: &Viewer,
    name: String,
    path: StorePath,
) -> Result<(), RegisterError> {
    if name.len() > MAX_ROOT_NAME {
        let why = format!("its name has {} bytes", name.len());
        return Err(RegisterError::RootLimit { why, limit: MAX_ROOT_NAME });
    }
    let viewer = viewer.clone();
    commit(&base.index, about(&[&path]), move |index| changes(plan_root(index, &viewer, name, path)?, ()))
}

fn plan_root(
    index: &Memory,
    viewer: &Viewer,
    name: String,
    path: StorePath,
) -> Result<Vec<Change>, RegisterError> {
    let seen = viewer.sees(index);
    let count = seen.roots().len();
    if count >= MAX_ROOTS && seen.root(&name).is_none() {
        let why = format!("{} has {count} already", viewer.member);
        return Err(RegisterError::RootLimit { why, limit: MAX_ROOTS });
    }
    if seen.info(&path).is_none() {
        return Err(MissingPath(path).into());
    }
    // A root keeps only the member's own paths.
    let mut todo = make_own(index, viewer, [&path])?;
    quota::within(index, viewer, &todo)?;
    todo.push(Change::PutRoot { member: viewer.member.clone(), name, path });
    Ok(todo)
}

pub(crate) fn remove_root(base: &Base, viewer: &Viewer, name: &str) -> Result<bool, RegisterError> {
    let (viewer, name) = (viewer.clone(), name.to_owned());
    commit(&base.index, About::default(), move |index| {
        if viewer.sees(index).root(&name).is_none() {
            return changes(Vec::new(), false);
        }
        changes(vec![Change::DropRoot { member: viewer.member.clone(), name }], true)
    })
}

pub(crate) fn add_signatures(
    base: &Base,
    viewer: &Viewer,
    path: &StorePath,
    signatures: &[String],
) -> Result<(), RegisterError> {
    limits::check_signatures(path, signatures)?;
    let (config, viewer) = (base.config.clone(), viewer.clone());
    let (path, signatures) = (path.clone(), signatures.to_vec());
    commit(&base.index, about(&[&path]), move |index| {
        changes(with_signatures(index, &config, &viewer, path, signatures)?, ())
    })
}

fn with_signatures(
    index: &Memory,
    config: &StoreConfig,
    viewer: &Viewer,
    path: StorePath,
    signatures: Vec<String>,
) -> Result<Vec<Change>, RegisterError> {
    let seen = viewer.sees(index);
    let Some((entry, whose)) = seen.entry(&path) else { return Err(MissingPath(path).into()) };
    let mut info = PathInfo::clone(&entry.info);
    let before = info.signatures.len();
    let said = Annotation { nar_hash: info.nar_hash, deriver: None, signatures: signatures.clone() };
    let known = seen.annotation(&path).map_or(&[][..], |known| &known.signatures);
    let new = |s: &&String| !info.signatures.contains(*s) && !known.contains(*s);
    let count = known.len() + signatures.iter().filter(new).count();
    let mut notes = Notes::default();
    if whose == Whose::Everybodys {
        let good = provenance::trusted_signatures(config, &PathInfo { signatures, ..info.clone() });
        add_new(&mut info.signatures, good);
        limits::check_signatures(&path, &info.signatures)?;
        let info = Arc::new(info);
        limits::check_signature_count(&path, count)?;
        notes.add(&info, said);
        let mut todo = Vec::new();
        if info.signatures.len() > before {
            let (provenance, proven) = (Provenance::Verified, entry.proven);
            todo.push(Change::SetSignatures { info, provenance, proven });
        }
        todo.extend(notes.changes(&seen, &viewer.member));
        return Ok(todo);
    }
    add_new(&mut info.signatures, signatures);
    let good = provenance::trusted_signatures(config, &info);
    let proven = entry.proven || !good.is_empty();
    if proven && info.references.iter().all(|r| *r == path || index.is_verified(r)) {
        let upgrade = provenance::upgrade(index, config, viewer, info, good);
        let Some(Change::AddPath { info, .. }) = &upgrade else {
            return Err(RegisterError::NoObject { path });
        };
        notes.add(info, said);
        let followers = provenance::follow(index, config, viewer, vec![Arc::clone(info)], &mut notes);
        let noted = notes.changes(&seen, &viewer.member);
        return Ok(upgrade.into_iter().chain(followers).chain(noted).collect());
    }
    if matches!(whose, Whose::Shared(_)) {
        // Only its owner may change a claim, so this member gets an annotation.
        limits::check_signature_count(&path, count)?;
        notes.add(&entry.info, said);
        return Ok(notes.changes(&seen, &viewer.member));
    }
    limits::check_signatures(&path, &info.signatures)?;
    let provenance = Provenance::Claimed(viewer.member.clone());
    Ok(vec![Change::SetSignatures { info: Arc::new(info), provenance, proven }])
}

/// Notes for the member the deriver of those paths for which no deriver is known.
pub(crate) fn name_deriver(
    base: &Base,
    viewer: &Viewer,
    paths: &[StorePath],
    deriver: &StorePath,
) -> Result<(), RegisterError> {
    let mut notes = Notes::default();
    let empty = {
        let index = base.index.read();
        let seen = viewer.sees(&index);
        for info in paths.iter().filter_map(|path| Some(seen.described(path)?.0)) {
            if info.deriver.is_none() {
                notes.add(&info, Annotation::deriver(info.nar_hash, Some(deriver)));
            }
        }
        notes.paths().next().is_none()
    };
    if empty { Ok(()) } else { register::note(base, viewer, notes) }
}

fn add_new(to: &mut Vec<String>, from: Vec<String>) {
    for signature in from {
        if !to.contains(&signature) {
            to.push(signature);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::account::Account;
    use crate::index::rows::Origins;
    use crate::types::Member;
    use crate::views::quota::Payer;

    /// Alice with one claim, as many roots and realisations of it as she may have, and what adds one more of each.
    fn full() -> (Memory, Viewer, StorePath) {
        let member = Member::new("alice");
        let path = StorePath::from_parts([1; 20], "p").unwrap();
        let info = Arc::new(PathInfo {
            path: path.clone(),
            nar_hash: [2; 32],
            nar_size: 3,
            references: [].into(),
            deriver: None,
            registration_time: 4,
            ultimate: false,
            signatures: Vec::new(),
            ca: None,
        });
        let provenance = Provenance::Claimed(member.clone());
        let mut index = Memory::default();
        let origins = Origins::default();
        let account = Account::default();
        index.apply(Change::AddPath { info, provenance, proven: false, object_size: 8192, origins, account });
        for i in 0..MAX_ROOTS {
            let (member, name, path) = (member.clone(), i.to_string(), path.clone());
            index.apply(Change::PutRoot { member, name, path });
        }
        for i in 0..MAX_REALISATIONS {
            let realisation = Arc::new(Realisation { path: path.clone(), signatures: Vec::new() });
            let provenance = Provenance::Claimed(member.clone());
            index.apply(Change::AddRealisation { id: id(i), provenance, realisation });
        }
        (index, Viewer { member, others: Arc::new([]), payer: Payer::default() }, path)
    }

    fn id(i: usize) -> RealisationId {
        RealisationId { drv_hash: [7; 32], output: format!("out{i}") }
    }

    #[test]
    fn a_member_has_so_many_roots_and_can_replace_them() {
        let (index, viewer, path) = full();
        let add = |name: &str| plan_root(&index, &viewer, name.to_owned(), path.clone());
        let error = add("more").unwrap_err();
        assert!(error.is_callers_fault());
        assert_eq!(
            error.to_string(),
            "cannot make a root: alice has 100000 already, at most 100000 are accepted"
        );
        assert_eq!(add("7").unwrap().len(), 1);
    }

    #[test]
    fn a_member_has_so_many_claimed_realisations_and_can_repeat_them() {
        let (index, viewer, path) = full();
        let add = |id| {
            let claimed = Provenance::Claimed(viewer.member.clone());
            plan_realisation(&index, &StoreConfig::default(), &viewer, id, path.clone(), claimed)
        };
        let error = add(id(MAX_REALISATIONS)).unwrap_err();
        assert!(error.is_callers_fault());
        let said = error.to_string();
        assert!(said.contains("alice has 100000 already") && !said.contains('\n'), "{said}");
        add(id(7)).unwrap();
    }
}
