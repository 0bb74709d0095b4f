//! The index on disk: one SQLite table, read once at start, written at each registration.
//!
//! WAL with `synchronous=FULL`: a commit that returned survives power loss; one that did not leaves no trace.

use std::collections::BTreeSet;
use std::path::Path;

use nix_derivation::StorePath;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use crate::types::{Member, PathInfo, Provenance};

/// Version of the table below.
pub(crate) const SCHEMA: i64 = 1;

// References and signatures are lists in one column: nobody asks SQL about them, the maps in memory do that.
const CREATE: &str = "
    CREATE TABLE paths (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL,               -- basename
        member TEXT,                      -- who claims it; NULL: Verified
        nar_hash BLOB NOT NULL,
        nar_size INTEGER NOT NULL,
        object_size INTEGER NOT NULL,     -- bytes of the object's file
        refs TEXT NOT NULL,               -- basenames, separated by spaces
        deriver TEXT,
        registration_time INTEGER NOT NULL,
        ultimate INTEGER NOT NULL,
        signatures TEXT NOT NULL,         -- separated by line feeds
        ca TEXT
    ) STRICT;
    CREATE UNIQUE INDEX paths_verified ON paths (path) WHERE member IS NULL;
    CREATE UNIQUE INDEX paths_claimed ON paths (member, path) WHERE member IS NOT NULL;
";

pub(crate) struct Db {
    connection: Connection,
}

/// One row.
pub(crate) struct Record {
    pub(crate) id: i64,
    pub(crate) info: PathInfo,
    pub(crate) provenance: Provenance,
    pub(crate) object_size: u64,
}

impl Db {
    /// Opens the file; returns the schema found if it is not ours.
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Result<Self, i64>> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match found {
            0 => {
                let create = format!("BEGIN; {CREATE} PRAGMA user_version = {SCHEMA}; COMMIT;");
                connection.execute_batch(&create)?;
            }
            SCHEMA => {}
            other => return Ok(Err(other)),
        }
        Ok(Ok(Self { connection }))
    }

    pub(crate) fn load(&self) -> rusqlite::Result<Vec<Record>> {
        let mut query = self.connection.prepare(
            "SELECT id, path, member, nar_hash, nar_size, object_size, refs, deriver, registration_time,
                    ultimate, signatures, ca FROM paths",
        )?;
        let rows = query.query_map([], read_row)?;
        rows.collect()
    }

    pub(crate) fn delete(&mut self, ids: &[i64]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut delete = transaction.prepare("DELETE FROM paths WHERE id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
        }
        transaction.commit()
    }

    /// Writes all or none.
    pub(crate) fn insert<'a>(
        &mut self,
        paths: impl Iterator<Item = (&'a PathInfo, &'a Provenance, u64)>,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO paths (path, member, nar_hash, nar_size, object_size, refs, deriver,
                                    registration_time, ultimate, signatures, ca)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?;
            for (info, provenance, object_size) in paths {
                let member = match provenance {
                    Provenance::Verified => None,
                    Provenance::Claimed(member) => Some(member.name()),
                };
                let refs: Vec<String> = info.references.iter().map(StorePath::to_basename).collect();
                insert.execute(params![
                    info.path.to_basename(),
                    member,
                    &info.nar_hash[..],
                    info.nar_size.cast_signed(),
                    object_size.cast_signed(),
                    refs.join(" "),
                    info.deriver.as_ref().map(StorePath::to_basename),
                    info.registration_time,
                    info.ultimate,
                    info.signatures.join("\n"),
                    info.ca,
                ])?;
            }
        }
        transaction.commit()
    }
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<Record> {
    let path_at = |column: usize, text: &str| {
        StorePath::from_basename(text.as_bytes())
            .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
    };
    let deriver: Option<String> = row.get(7)?;
    let refs: String = row.get(6)?;
    let references = refs.split(' ').filter(|r| !r.is_empty()).map(|r| path_at(6, r));
    let member: Option<String> = row.get(2)?;
    let signatures: String = row.get(10)?;
    let info = PathInfo {
        path: path_at(1, &row.get::<_, String>(1)?)?,
        nar_hash: row.get(3)?,
        nar_size: row.get::<_, i64>(4)?.cast_unsigned(),
        references: references.collect::<Result<BTreeSet<_>, _>>()?,
        deriver: deriver.map(|d| path_at(7, &d)).transpose()?,
        registration_time: row.get(8)?,
        ultimate: row.get(9)?,
        signatures: signatures.lines().map(str::to_owned).collect(),
        ca: row.get(11)?,
    };
    Ok(Record {
        id: row.get(0)?,
        info,
        provenance: member.map_or(Provenance::Verified, |m| Provenance::Claimed(Member::new(&m))),
        object_size: row.get::<_, i64>(5)?.cast_unsigned(),
    })
}
