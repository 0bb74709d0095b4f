//! Writes changes. No statement may scan a table, since all members wait for a commit.

use std::collections::BTreeSet;

use nix::PathInfo;
use nix_derivation::{CAHash, StorePath};
use rusqlite::{ToSql, Transaction, params};

use crate::index::account::Account;
use crate::index::change::Change;
use crate::index::rows::{Annotation, Origins};
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::{BuildRecord, RecordEnd, TimeLimit};
use crate::types::{Member, Provenance};

/// Runs one statement of a commit. All of them come through here, where tests check that none scans a table.
fn run(transaction: &Transaction<'_>, sql: &str, params: &[&dyn ToSql]) -> rusqlite::Result<()> {
    #[cfg(test)]
    super::tests::walks_no_table(transaction, sql);
    transaction.prepare_cached(sql)?.execute(params).map(|_| ())
}

/// `member IS ?` would fit both layers, but neither of their indices: these are partial, and SQLite uses a
/// partial index only if the statement itself says which layer it is about.
pub(super) fn write(
    transaction: &Transaction<'_>,
    change: &Change,
    last_row: &mut i64,
) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn ToSql]| run(transaction, sql, params);
    match change {
        Change::AddPath { info, provenance, proven, object_size, origins, account } => {
            *last_row += 1;
            add_path(transaction, *last_row, info, provenance, (*proven, *object_size, origins, account))
        }
        Change::DropClaim { member, path } => run(
            "DELETE FROM paths WHERE member = ?1 AND path = ?2",
            params![member.name(), path.to_basename()],
        ),
        Change::DropVerified { path } => {
            run("DELETE FROM paths WHERE path = ?1 AND member IS NULL", params![path.to_basename()])
        }
        Change::Charge { path, payer, used } => run(
            "UPDATE paths SET payer = ?1, used = ?2 WHERE path = ?3 AND member IS NULL",
            params![payer.as_ref().map(Member::name), used.cast_signed(), path.to_basename()],
        ),
        Change::Used { path, member: None, used } => run(
            "UPDATE paths SET used = ?1 WHERE path = ?2 AND member IS NULL",
            params![used.cast_signed(), path.to_basename()],
        ),
        Change::Used { path, member: Some(member), used } => run(
            "UPDATE paths SET used = ?1 WHERE path = ?2 AND member = ?3",
            params![used.cast_signed(), path.to_basename(), member.name()],
        ),
        Change::SetSignatures { info, provenance, proven } => {
            set_signatures(transaction, info, provenance, *proven)
        }
        Change::AddRealisation { id, provenance, realisation } => {
            add_realisation(transaction, id, provenance, realisation)
        }
        Change::DropRealisation { id, member: None } => run(
            "DELETE FROM realisations WHERE drv_hash = ?1 AND output = ?2 AND member IS NULL",
            params![&id.drv_hash[..], id.output],
        ),
        Change::DropRealisation { id, member: Some(member) } => run(
            "DELETE FROM realisations WHERE drv_hash = ?1 AND output = ?2 AND member = ?3",
            params![&id.drv_hash[..], id.output, member.name()],
        ),
        Change::PutResult { key, record } => put_result(transaction, key, record),
        Change::DropResult { key } => {
            run("DELETE FROM results WHERE key = ?1", params![&key[..]])?;
            run("DELETE FROM result_outputs WHERE key = ?1", params![&key[..]])
        }
        Change::PutRoot { member, name, path } => run(
            "INSERT OR REPLACE INTO roots (member, name, path) VALUES (?1, ?2, ?3)",
            params![member.name(), name, path.to_basename()],
        ),
        Change::DropRoot { member, name } => {
            run("DELETE FROM roots WHERE member = ?1 AND name = ?2", params![member.name(), name])
        }
        Change::Annotate { member, path, annotation } => annotate(transaction, member, path, annotation),
        Change::DropAnnotation { member, path } => run(
            "DELETE FROM annotations WHERE member = ?1 AND path = ?2",
            params![member.name(), path.to_basename()],
        ),
    }
}

fn add_path(
    transaction: &Transaction<'_>,
    row: i64,
    info: &PathInfo,
    provenance: &Provenance,
    (proven, object_size, origins, account): (bool, u64, &Origins, &Account),
) -> rusqlite::Result<()> {
    run(
        transaction,
        "INSERT INTO paths (id, path, member, nar_hash, nar_size, object_size, refs, deriver,
                        registration_time, ultimate, signatures, ca, proven, origins, payer, used)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16) ON CONFLICT DO NOTHING",
        params![
            row,
            info.path.to_basename(),
            member(provenance),
            &info.nar_hash[..],
            info.nar_size.cast_signed(),
            object_size.cast_signed(),
            basenames(&info.references),
            info.deriver.as_ref().map(StorePath::to_basename),
            info.registration_time,
            info.ultimate,
            info.signatures.join("\n"),
            info.ca.as_ref().map(CAHash::to_nix_string),
            proven,
            origins.to_text(),
            account.payer.as_ref().map(Member::name),
            account.used.cast_signed(),
        ],
    )
}

fn set_signatures(
    transaction: &Transaction<'_>,
    info: &PathInfo,
    provenance: &Provenance,
    proven: bool,
) -> rusqlite::Result<()> {
    let (signatures, path) = (info.signatures.join("\n"), info.path.to_basename());
    match provenance {
        Provenance::Verified => run(
            transaction,
            "UPDATE paths SET signatures = ?1, proven = ?2 WHERE path = ?3 AND member IS NULL",
            params![signatures, proven, path],
        ),
        Provenance::Claimed(member) => run(
            transaction,
            "UPDATE paths SET signatures = ?1, proven = ?2 WHERE path = ?3 AND member = ?4",
            params![signatures, proven, path, member.name()],
        ),
    }
}

fn add_realisation(
    transaction: &Transaction<'_>,
    id: &RealisationId,
    provenance: &Provenance,
    realisation: &Realisation,
) -> rusqlite::Result<()> {
    run(
        transaction,
        "INSERT INTO realisations (drv_hash, output, member, path, signatures)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
        params![
            &id.drv_hash[..],
            id.output,
            member(provenance),
            realisation.path.to_basename(),
            realisation.signatures.join("\n"),
        ],
    )
}

/// The new annotation gets a new id, and is the newest.
fn annotate(
    transaction: &Transaction<'_>,
    member: &Member,
    path: &StorePath,
    annotation: &Annotation,
) -> rusqlite::Result<()> {
    run(
        transaction,
        "INSERT OR REPLACE INTO annotations (member, path, nar_hash, deriver, signatures)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            member.name(),
            path.to_basename(),
            &annotation.nar_hash[..],
            annotation.deriver.as_ref().map(StorePath::to_basename),
            annotation.signatures.join("\n"),
        ],
    )
}

fn put_result(transaction: &Transaction<'_>, key: &[u8; 32], record: &BuildRecord) -> rusqlite::Result<()> {
    let (status, message, log, outputs) = match &record.end {
        RecordEnd::Built { outputs, log } => (None, "", log, Some(outputs)),
        RecordEnd::Failed { status, message, log } => (Some(*status), message.as_str(), log, None),
        RecordEnd::TimedOut { log, .. } => (None, "", log, None),
    };
    let (silent, seconds) = match record.end {
        RecordEnd::TimedOut { limit, seconds, .. } => {
            (Some(limit == TimeLimit::Silence), Some(seconds.cast_signed()))
        }
        _ => (None, None),
    };
    run(transaction, "DELETE FROM result_outputs WHERE key = ?1", params![&key[..]])?;
    run(
        transaction,
        "INSERT OR REPLACE INTO results (key, drv, time, status, message, log, silent, seconds)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![&key[..], record.drv.to_basename(), record.time, status, message, log, silent, seconds],
    )?;
    for (name, output) in outputs.into_iter().flatten() {
        run(
            transaction,
            "INSERT INTO result_outputs (key, name, path, nar_hash, nar_size, refs, ca)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                &key[..],
                name,
                output.path.to_basename(),
                &output.nar_hash[..],
                output.nar_size.cast_signed(),
                basenames(&output.references),
                output.ca.as_ref().map(CAHash::to_nix_string),
            ],
        )?;
    }
    Ok(())
}

fn member(provenance: &Provenance) -> Option<&str> {
    match provenance {
        Provenance::Verified => None,
        Provenance::Claimed(member) => Some(member.name()),
    }
}

fn basenames(paths: &BTreeSet<StorePath>) -> String {
    paths.iter().map(StorePath::to_basename).collect::<Vec<_>>().join(" ")
}
