//! Reads the file, once, at the start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::{CAHash, StorePath};
use rusqlite::Row;
use rusqlite::types::Type;

use super::Sqlite;
use crate::index::account::Account;
use crate::index::change::Change;
use crate::index::database::{Loaded, Record};
use crate::index::rows::{Annotation, Origins};
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::{BuildRecord, RecordEnd, RecordedOutput, TimeLimit};
use crate::types::{Member, Provenance};

/// The rows read so far.
#[derive(Default)]
struct Reading {
    loaded: Loaded,
    /// Rows that cannot be understood: the statement that deletes each, and its number.
    bad: Vec<(&'static str, i64)>,
}

impl Reading {
    fn leave_out(&mut self, remove: &'static str, row: i64, error: &rusqlite::Error) {
        tracing::error!(row, "a row of the index cannot be understood and is left out: {error}");
        self.bad.push((remove, row));
    }
}

impl Sqlite {
    /// Reads the whole file. Rows that cannot be understood are left out and deleted: each belongs to one
    /// member or one result, and the other rows belong to everybody.
    pub(super) fn load(&mut self) -> rusqlite::Result<Loaded> {
        let mut reading = Reading::default();
        self.load_paths(&mut reading)?;
        self.load_results(&mut reading)?;
        self.load_realisations(&mut reading)?;
        self.load_roots(&mut reading)?;
        self.load_annotations(&mut reading)?;
        let Reading { mut loaded, bad } = reading;
        loaded.unreadable = bad.len();
        let transaction = self.connection.transaction()?;
        for (sql, id) in bad {
            transaction.execute(sql, [id])?;
        }
        transaction.commit()?;
        Ok(loaded)
    }

    fn load_paths(&self, reading: &mut Reading) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare(
            "SELECT id, path, member, nar_hash, nar_size, object_size, refs, deriver, registration_time,
                    ultimate, signatures, ca, proven, origins, payer, used FROM paths",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_path(row) {
                Ok(record) => reading.loaded.paths.push(record),
                Err(e) => reading.leave_out("DELETE FROM paths WHERE id = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    fn load_results(&self, reading: &mut Reading) -> rusqlite::Result<()> {
        let mut outputs: BTreeMap<[u8; 32], Option<BTreeMap<String, RecordedOutput>>> = BTreeMap::new();
        let mut query = self
            .connection
            .prepare("SELECT key, name, path, nar_hash, nar_size, refs, ca FROM result_outputs")?;
        let mut rows = query.query([])?;
        let mut lost = false;
        while let Some(row) = rows.next()? {
            let Ok(key) = row.get(0) else {
                lost = true;
                continue;
            };
            let of_key = outputs.entry(key).or_insert_with(|| Some(BTreeMap::new()));
            match read_output(row) {
                Ok((name, output)) => drop(of_key.as_mut().map(|all| all.insert(name, output))),
                // A result with a missing output is useless.
                Err(_) => *of_key = None,
            }
        }
        let mut query = self
            .connection
            .prepare("SELECT rowid, key, drv, time, status, message, log, silent, seconds FROM results")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            // An output with an unreadable key may belong to any result.
            let known = |key: &[u8; 32]| if lost { None } else { outputs.get(key)?.clone() };
            match read_result(row, known) {
                Ok((key, record)) => {
                    reading.loaded.rest.push(Change::PutResult { key, record: Arc::new(record) });
                }
                // If the result is recorded again, its outputs are replaced with it.
                Err(e) => reading.leave_out("DELETE FROM results WHERE rowid = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    fn load_realisations(&self, reading: &mut Reading) -> rusqlite::Result<()> {
        let mut query = self
            .connection
            .prepare("SELECT rowid, drv_hash, output, member, path, signatures FROM realisations")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_realisation(row) {
                Ok(change) => reading.loaded.rest.push(change),
                Err(e) => reading.leave_out("DELETE FROM realisations WHERE rowid = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    fn load_roots(&self, reading: &mut Reading) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare("SELECT member, name, path FROM roots")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_root(row) {
                Ok(change) => reading.loaded.rest.push(change),
                // The row is replaced when a root of that name is made.
                Err(e) => tracing::error!("a root in the index cannot be understood and is left out: {e}"),
            }
        }
        Ok(())
    }

    fn load_annotations(&self, reading: &mut Reading) -> rusqlite::Result<()> {
        let mut query = self
            .connection
            .prepare("SELECT id, member, path, nar_hash, deriver, signatures FROM annotations ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_annotation(row) {
                Ok(change) => reading.loaded.rest.push(change),
                Err(e) => reading.leave_out("DELETE FROM annotations WHERE id = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }
}

fn provenance(member: Option<String>) -> Provenance {
    member.map_or(Provenance::Verified, |name| Provenance::Claimed(Member::new(&name)))
}

fn path_at(column: usize, text: &str) -> rusqlite::Result<StorePath> {
    StorePath::from_basename(text.as_bytes())
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn paths_at(column: usize, text: &str) -> rusqlite::Result<BTreeSet<StorePath>> {
    text.split(' ').filter(|p| !p.is_empty()).map(|p| path_at(column, p)).collect()
}

fn address_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<CAHash>> {
    let text: Option<String> = row.get(column)?;
    let address = text.map(|text| CAHash::parse(&text)).transpose();
    address.map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn read_output(row: &Row<'_>) -> rusqlite::Result<(String, RecordedOutput)> {
    let output = RecordedOutput {
        path: path_at(2, &row.get::<_, String>(2)?)?,
        nar_hash: row.get(3)?,
        nar_size: row.get::<_, i64>(4)?.cast_unsigned(),
        references: paths_at(5, &row.get::<_, String>(5)?)?,
        ca: address_at(row, 6)?,
    };
    Ok((row.get(1)?, output))
}

fn read_result(
    row: &Row<'_>,
    outputs: impl FnOnce(&[u8; 32]) -> Option<BTreeMap<String, RecordedOutput>>,
) -> rusqlite::Result<([u8; 32], BuildRecord)> {
    let key = row.get(1)?;
    let log = row.get(6)?;
    let end = match (row.get(4)?, row.get::<_, Option<i64>>(8)?) {
        (Some(status), _) => RecordEnd::Failed { status, message: row.get(5)?, log },
        (None, Some(seconds)) => {
            let limit = if row.get(7)? { TimeLimit::Silence } else { TimeLimit::Wall };
            RecordEnd::TimedOut { limit, seconds: seconds.cast_unsigned(), log }
        }
        (None, None) => match outputs(&key) {
            Some(outputs) => RecordEnd::Built { outputs, log },
            None => return Err(rusqlite::Error::QueryReturnedNoRows),
        },
    };
    Ok((key, BuildRecord { drv: path_at(2, &row.get::<_, String>(2)?)?, time: row.get(3)?, end }))
}

fn read_realisation(row: &Row<'_>) -> rusqlite::Result<Change> {
    let id = RealisationId { drv_hash: row.get(1)?, output: row.get(2)? };
    let realisation = Realisation {
        path: path_at(4, &row.get::<_, String>(4)?)?,
        signatures: row.get::<_, String>(5)?.lines().map(str::to_owned).collect(),
    };
    let provenance = provenance(row.get(3)?);
    Ok(Change::AddRealisation { id, provenance, realisation: Arc::new(realisation) })
}

fn read_annotation(row: &Row<'_>) -> rusqlite::Result<Change> {
    let deriver: Option<String> = row.get(4)?;
    let annotation = Annotation {
        nar_hash: row.get(3)?,
        deriver: deriver.map(|d| path_at(4, &d)).transpose()?,
        signatures: row.get::<_, String>(5)?.lines().map(str::to_owned).collect(),
    };
    Ok(Change::Annotate {
        member: Member::new(&row.get::<_, String>(1)?),
        path: path_at(2, &row.get::<_, String>(2)?)?,
        annotation: Arc::new(annotation),
    })
}

fn read_root(row: &Row<'_>) -> rusqlite::Result<Change> {
    let path = path_at(2, &row.get::<_, String>(2)?)?;
    let member = Member::new(&row.get::<_, String>(0)?);
    Ok(Change::PutRoot { member, name: row.get(1)?, path })
}

fn read_path(row: &Row<'_>) -> rusqlite::Result<Record> {
    let deriver: Option<String> = row.get(7)?;
    let info = PathInfo {
        path: path_at(1, &row.get::<_, String>(1)?)?,
        nar_hash: row.get(3)?,
        nar_size: row.get::<_, i64>(4)?.cast_unsigned(),
        references: paths_at(6, &row.get::<_, String>(6)?)?,
        deriver: deriver.map(|d| path_at(7, &d)).transpose()?,
        registration_time: row.get(8)?,
        ultimate: row.get(9)?,
        signatures: row.get::<_, String>(10)?.lines().map(str::to_owned).collect(),
        ca: address_at(row, 11)?,
    };
    Ok(Record {
        id: row.get(0)?,
        info,
        provenance: provenance(row.get(2)?),
        proven: row.get(12)?,
        object_size: row.get::<_, i64>(5)?.cast_unsigned(),
        origins: Origins::from_text(row.get::<_, Option<String>>(13)?.as_deref()),
        account: Account {
            payer: row.get::<_, Option<String>>(14)?.map(|name| Member::new(&name)),
            used: row.get::<_, i64>(15)?.cast_unsigned(),
        },
    })
}
