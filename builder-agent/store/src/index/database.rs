//! The index on disk: SQLite, read once at start, written at each change.
//!
//! A commit that returned survives the process. What survives a power loss is decided by [`Durability`]: with `Flush` the
//! write-ahead log is on the disk in the right order (`synchronous=NORMAL`), so that a start finds all commits up to some
//! moment and none after it; `keeper` sees to it that this moment is not long ago. With `None` SQLite never waits for the
//! disk, and after a power loss nothing here can be believed.
//!
//! Rows of `paths` are numbered upwards and no number is used twice, so that one number says what is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use nix_derivation::StorePath;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, ToSql, Transaction, params};

use crate::index::change::Change;
use crate::types::realisation::{Realisation, RealisationId};
use crate::types::result::{BuildRecord, RecordEnd, RecordedOutput};
use crate::types::{Durability, Member, PathInfo, Provenance};
use crate::views::annotation::Annotation;
use crate::views::origins::Origins;

/// Version of the tables below.
pub(crate) const SCHEMA: i64 = 3;

// Lists (references, signatures) are in one column: nobody asks SQL about them, the maps in memory do that.
const CREATE_1: &str = "
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

/// Schema 1 becomes 2. Old claims count as unproven, which at worst keeps them Claimed.
const CREATE_2: &str = "
    ALTER TABLE paths ADD COLUMN proven INTEGER NOT NULL DEFAULT 0;  -- content address or trusted signature holds
    CREATE TABLE realisations (
        drv_hash BLOB NOT NULL,
        output TEXT NOT NULL,
        member TEXT,                      -- who claims it; NULL: Verified
        path TEXT NOT NULL,
        signatures TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX realisations_verified ON realisations (drv_hash, output) WHERE member IS NULL;
    CREATE UNIQUE INDEX realisations_claimed ON realisations (member, drv_hash, output) WHERE member IS NOT NULL;
    CREATE TABLE results (
        key BLOB PRIMARY KEY NOT NULL,
        drv TEXT NOT NULL,
        time INTEGER NOT NULL,
        status INTEGER,                   -- NULL: built
        message TEXT NOT NULL,
        log TEXT
    ) STRICT;
    CREATE TABLE result_outputs (
        key BLOB NOT NULL,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        nar_hash BLOB NOT NULL,
        nar_size INTEGER NOT NULL,
        refs TEXT NOT NULL,
        ca TEXT,
        PRIMARY KEY (key, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE roots (
        member TEXT NOT NULL,
        name TEXT NOT NULL,
        path TEXT NOT NULL,
        PRIMARY KEY (member, name)
    ) STRICT, WITHOUT ROWID;
";

/// Schema 2 becomes 3. Of old claims nobody knows which are copies of others', so none of them is shown to those who
/// share with their members (see [`Origins::from_text`]), until they are collected and come again.
const CREATE_3: &str = "
    ALTER TABLE paths ADD COLUMN origins TEXT;  -- whose claims a claim is made of, one a line; NULL: its member's
    UPDATE paths SET origins = '' WHERE member IS NOT NULL;
    CREATE TABLE annotations (
        id INTEGER PRIMARY KEY,           -- the older, the lower
        member TEXT NOT NULL,
        path TEXT NOT NULL,
        nar_hash BLOB NOT NULL,
        deriver TEXT,
        signatures TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX annotations_by_path ON annotations (member, path);
";

/// Pages of the log at which SQLite checkpoints by itself, in the middle of a commit (64 MiB). The housekeeper is to come
/// first.
const LOG_PAGES: u32 = 16_384;
/// Changes after which the housekeeper checkpoints: about SQLite's own 1,000 pages.
const CHECKPOINT_AFTER: usize = 300;

pub(crate) struct Db {
    connection: Connection,
    /// Number of the last row of `paths`, there or gone.
    last_row: i64,
    /// Since the last checkpoint.
    changes: usize,
}

/// One row of `paths`.
pub(crate) struct Record {
    pub(crate) id: i64,
    pub(crate) info: PathInfo,
    pub(crate) provenance: Provenance,
    pub(crate) proven: bool,
    pub(crate) object_size: u64,
    pub(crate) origins: Origins,
}

/// What the file holds.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) paths: Vec<Record>,
    /// All that is not a path, as the changes that make it.
    pub(crate) rest: Vec<Change>,
    /// How many rows were left out.
    pub(crate) unreadable: usize,
    /// Those, by what removes each.
    bad: Vec<(&'static str, i64)>,
}

impl Loaded {
    fn leave_out(&mut self, remove: &'static str, row: i64, error: &rusqlite::Error) {
        tracing::error!(row, "a row of the index cannot be understood and is left out: {error}");
        self.bad.push((remove, row));
    }
}

impl Db {
    /// Opens the file and brings it to our schema; returns the schema found if it is a newer one.
    pub(crate) fn open(path: &Path, durability: Durability) -> rusqlite::Result<Result<Self, i64>> {
        let connection = Connection::open(path)?;
        // The store has a lock of its own; SQLite's would be taken and released at each commit.
        connection.pragma_update(None, "locking_mode", "exclusive")?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        let synchronous = match durability {
            Durability::None => "off",
            Durability::Flush => "normal",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        if durability == Durability::Flush {
            connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        }
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let steps = match found {
            0 => [CREATE_1, CREATE_2, CREATE_3].concat(),
            1 => [CREATE_2, CREATE_3].concat(),
            2 => CREATE_3.to_owned(),
            SCHEMA => String::new(),
            other => return Ok(Err(other)),
        };
        if !steps.is_empty() {
            // One transaction: a crash leaves the old schema or the new one.
            connection.execute_batch(&format!("BEGIN; {steps} PRAGMA user_version = {SCHEMA}; COMMIT;"))?;
        }
        let last_row =
            connection.query_row("SELECT coalesce(max(id), 0) FROM paths", [], |row| row.get(0))?;
        Ok(Ok(Self { connection, last_row, changes: 0 }))
    }

    /// New rows get numbers above this one.
    pub(crate) fn number_from(&mut self, row: i64) {
        self.last_row = self.last_row.max(row);
    }

    pub(crate) fn last_row(&self) -> i64 {
        self.last_row
    }

    /// Moves the log into the file, if there is much in it.
    pub(crate) fn checkpoint(&mut self) -> rusqlite::Result<()> {
        if self.changes >= CHECKPOINT_AFTER {
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
            self.changes = 0;
        }
        Ok(())
    }

    /// All that is in the file. Rows that cannot be understood are left out, and removed: each is one member's, or one
    /// result, and the rest is everybody's.
    pub(crate) fn load(&mut self) -> rusqlite::Result<Loaded> {
        let mut loaded = Loaded::default();
        self.load_paths(&mut loaded)?;
        self.load_results(&mut loaded)?;
        self.load_realisations(&mut loaded)?;
        self.load_roots(&mut loaded)?;
        self.load_annotations(&mut loaded)?;
        let bad = std::mem::take(&mut loaded.bad);
        loaded.unreadable = bad.len();
        let transaction = self.connection.transaction()?;
        for (sql, id) in bad {
            transaction.execute(sql, [id])?;
        }
        transaction.commit()?;
        Ok(loaded)
    }

    fn load_paths(&self, loaded: &mut Loaded) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare(
            "SELECT id, path, member, nar_hash, nar_size, object_size, refs, deriver, registration_time,
                    ultimate, signatures, ca, proven, origins FROM paths",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_path(row) {
                Ok(record) => loaded.paths.push(record),
                Err(e) => loaded.leave_out("DELETE FROM paths WHERE id = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    fn load_results(&self, loaded: &mut Loaded) -> rusqlite::Result<()> {
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
                // Half a result is none.
                Err(_) => *of_key = None,
            }
        }
        let mut query =
            self.connection.prepare("SELECT rowid, key, drv, time, status, message, log FROM results")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            // An output whose key is lost may be anybody's.
            let known = |key: &[u8; 32]| if lost { None } else { outputs.get(key)?.clone() };
            match read_result(row, known) {
                Ok((key, record)) => {
                    loaded.rest.push(Change::PutResult { key, record: Arc::new(record) });
                }
                // Its outputs are replaced with it, should it be recorded again.
                Err(e) => loaded.leave_out("DELETE FROM results WHERE rowid = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    fn load_realisations(&self, loaded: &mut Loaded) -> rusqlite::Result<()> {
        let mut query = self
            .connection
            .prepare("SELECT rowid, drv_hash, output, member, path, signatures FROM realisations")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_realisation(row) {
                Ok(change) => loaded.rest.push(change),
                Err(e) => loaded.leave_out("DELETE FROM realisations WHERE rowid = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    fn load_roots(&self, loaded: &mut Loaded) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare("SELECT member, name, path FROM roots")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_root(row) {
                Ok(change) => loaded.rest.push(change),
                // Replaced when a root of that name is made.
                Err(e) => tracing::error!("a root in the index cannot be understood and is left out: {e}"),
            }
        }
        Ok(())
    }

    fn load_annotations(&self, loaded: &mut Loaded) -> rusqlite::Result<()> {
        let mut query = self
            .connection
            .prepare("SELECT id, member, path, nar_hash, deriver, signatures FROM annotations ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            match read_annotation(row) {
                Ok(change) => loaded.rest.push(change),
                Err(e) => loaded.leave_out("DELETE FROM annotations WHERE id = ?1", row.get(0)?, &e),
            }
        }
        Ok(())
    }

    /// Removes rows of `paths`, for repair.
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

    /// From now on every write fails.
    #[cfg(test)]
    pub(crate) fn refuse_writes(&self) {
        self.connection.pragma_update(None, "query_only", true).unwrap();
    }

    /// Makes all changes or none.
    pub(crate) fn write<'a>(
        &mut self,
        changes: impl IntoIterator<Item = &'a Change>,
    ) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        let mut last_row = self.last_row;
        for change in changes {
            write(&transaction, change, &mut last_row)?;
            self.changes += 1;
        }
        transaction.commit()?;
        self.last_row = last_row;
        Ok(())
    }
}

/// Every statement of a commit goes through here. None may walk a table, since all members wait for it.
fn run(transaction: &Transaction<'_>, sql: &str, params: &[&dyn ToSql]) -> rusqlite::Result<()> {
    #[cfg(test)]
    tests::walks_no_table(transaction, sql);
    transaction.prepare_cached(sql)?.execute(params).map(|_| ())
}

/// `member IS ?` would fit both layers, and neither of their indices: those are partial, and SQLite uses one only where
/// the statement itself says which layer it is about.
fn write(transaction: &Transaction<'_>, change: &Change, last_row: &mut i64) -> rusqlite::Result<()> {
    let run = |sql: &str, params: &[&dyn ToSql]| run(transaction, sql, params);
    match change {
        Change::AddPath { info, provenance, proven, object_size, origins } => {
            *last_row += 1;
            run(
                "INSERT INTO paths (id, path, member, nar_hash, nar_size, object_size, refs, deriver,
                                registration_time, ultimate, signatures, ca, proven, origins)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14) ON CONFLICT DO NOTHING",
                params![
                    *last_row,
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
                    info.ca,
                    proven,
                    origins.to_text(),
                ],
            )
        }
        Change::DropClaim { member, path } => run(
            "DELETE FROM paths WHERE member = ?1 AND path = ?2",
            params![member.name(), path.to_basename()],
        ),
        Change::SetSignatures { info, provenance, proven } => {
            let (signatures, path) = (info.signatures.join("\n"), info.path.to_basename());
            match provenance {
                Provenance::Verified => run(
                    "UPDATE paths SET signatures = ?1, proven = ?2 WHERE path = ?3 AND member IS NULL",
                    params![signatures, proven, path],
                ),
                Provenance::Claimed(member) => run(
                    "UPDATE paths SET signatures = ?1, proven = ?2 WHERE path = ?3 AND member = ?4",
                    params![signatures, proven, path, member.name()],
                ),
            }
        }
        Change::AddRealisation { id, provenance, realisation } => run(
            "INSERT INTO realisations (drv_hash, output, member, path, signatures)
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            params![
                &id.drv_hash[..],
                id.output,
                member(provenance),
                realisation.path.to_basename(),
                realisation.signatures.join("\n"),
            ],
        ),
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
        // The new one has a new id, and is the newest.
        Change::Annotate { member, path, annotation } => run(
            "INSERT OR REPLACE INTO annotations (member, path, nar_hash, deriver, signatures)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                member.name(),
                path.to_basename(),
                &annotation.nar_hash[..],
                annotation.deriver.as_ref().map(StorePath::to_basename),
                annotation.signatures.join("\n"),
            ],
        ),
        Change::DropAnnotation { member, path } => run(
            "DELETE FROM annotations WHERE member = ?1 AND path = ?2",
            params![member.name(), path.to_basename()],
        ),
    }
}

fn put_result(transaction: &Transaction<'_>, key: &[u8; 32], record: &BuildRecord) -> rusqlite::Result<()> {
    let (status, message, log, outputs) = match &record.end {
        RecordEnd::Built { outputs, log } => (None, "", log, Some(outputs)),
        RecordEnd::Failed { status, message, log } => (Some(*status), message.as_str(), log, None),
    };
    run(transaction, "DELETE FROM result_outputs WHERE key = ?1", params![&key[..]])?;
    run(
        transaction,
        "INSERT OR REPLACE INTO results (key, drv, time, status, message, log)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![&key[..], record.drv.to_basename(), record.time, status, message, log],
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
                output.ca,
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

fn provenance(member: Option<String>) -> Provenance {
    member.map_or(Provenance::Verified, |name| Provenance::Claimed(Member::new(&name)))
}

fn basenames(paths: &BTreeSet<StorePath>) -> String {
    paths.iter().map(StorePath::to_basename).collect::<Vec<_>>().join(" ")
}

fn path_at(column: usize, text: &str) -> rusqlite::Result<StorePath> {
    StorePath::from_basename(text.as_bytes())
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn paths_at(column: usize, text: &str) -> rusqlite::Result<BTreeSet<StorePath>> {
    text.split(' ').filter(|p| !p.is_empty()).map(|p| path_at(column, p)).collect()
}

fn read_output(row: &Row<'_>) -> rusqlite::Result<(String, RecordedOutput)> {
    let output = RecordedOutput {
        path: path_at(2, &row.get::<_, String>(2)?)?,
        nar_hash: row.get(3)?,
        nar_size: row.get::<_, i64>(4)?.cast_unsigned(),
        references: paths_at(5, &row.get::<_, String>(5)?)?,
        ca: row.get(6)?,
    };
    Ok((row.get(1)?, output))
}

fn read_result(
    row: &Row<'_>,
    outputs: impl FnOnce(&[u8; 32]) -> Option<BTreeMap<String, RecordedOutput>>,
) -> rusqlite::Result<([u8; 32], BuildRecord)> {
    let key = row.get(1)?;
    let log = row.get(6)?;
    let end = match row.get(4)? {
        None => match outputs(&key) {
            Some(outputs) => RecordEnd::Built { outputs, log },
            None => return Err(rusqlite::Error::QueryReturnedNoRows),
        },
        Some(status) => RecordEnd::Failed { status, message: row.get(5)?, log },
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
        ca: row.get(11)?,
    };
    Ok(Record {
        id: row.get(0)?,
        info,
        provenance: provenance(row.get(2)?),
        proven: row.get(12)?,
        object_size: row.get::<_, i64>(5)?.cast_unsigned(),
        origins: Origins::from_text(row.get::<_, Option<String>>(13)?.as_deref()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Panics if SQLite would look at all rows of a table. Called for every statement that a unit test runs.
    pub(super) fn walks_no_table(transaction: &Transaction<'_>, sql: &str) {
        let mut query = transaction.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let mut rows = query.raw_query();
        while let Some(row) = rows.next().unwrap() {
            let step: String = row.get("detail").unwrap();
            assert!(!step.starts_with("SCAN"), "{step}: {sql}");
        }
    }

    #[test]
    fn no_change_of_either_layer_walks_a_table() {
        let dir = tempfile::tempdir().unwrap();
        let mut db = Db::open(&dir.path().join("index.sqlite"), Durability::Flush).unwrap().unwrap();
        let path = StorePath::from_parts([1; 20], "p").unwrap();
        let member = Member::new("alice");
        let info = Arc::new(PathInfo {
            path: path.clone(),
            nar_hash: [2; 32],
            nar_size: 3,
            references: BTreeSet::new(),
            deriver: None,
            registration_time: 4,
            ultimate: false,
            signatures: vec!["a:b".to_owned()],
            ca: None,
        });
        let signed = Arc::new(PathInfo { signatures: vec!["c:d".to_owned()], ..PathInfo::clone(&info) });
        let id = RealisationId { drv_hash: [5; 32], output: "out".to_owned() };
        let realisation = Arc::new(Realisation { path: path.clone(), signatures: Vec::new() });
        let output = RecordedOutput {
            path: path.clone(),
            nar_hash: [2; 32],
            nar_size: 3,
            references: BTreeSet::new(),
            ca: None,
        };
        let outputs = [("out".to_owned(), output)].into();
        let end = RecordEnd::Built { outputs, log: None };
        let record = Arc::new(BuildRecord { drv: path.clone(), time: 6, end });

        let both = [Provenance::Verified, Provenance::Claimed(member.clone())];
        let mut add: Vec<Change> = Vec::new();
        for provenance in both.clone() {
            let (info, signed, proven, object_size) = (info.clone(), signed.clone(), true, 8192);
            let origins = Origins::default();
            let (id, realisation) = (id.clone(), realisation.clone());
            add.extend([
                Change::AddPath { info, provenance: provenance.clone(), proven, object_size, origins },
                Change::SetSignatures { info: signed, provenance: provenance.clone(), proven },
                Change::AddRealisation { id, provenance, realisation },
            ]);
        }
        add.push(Change::PutResult { key: [7; 32], record });
        let name = "r".to_owned();
        add.push(Change::PutRoot { member: member.clone(), name: name.clone(), path: path.clone() });
        let annotation =
            Arc::new(Annotation { nar_hash: [2; 32], deriver: None, signatures: vec!["e:f".to_owned()] });
        add.push(Change::Annotate { member: member.clone(), path: path.clone(), annotation });
        db.write(&add).unwrap();
        let loaded = db.load().unwrap();
        assert!(loaded.paths.iter().all(|record| record.info.signatures == ["c:d"]));
        assert_eq!((loaded.paths.len(), loaded.rest.len(), loaded.unreadable), (2, 5, 0));

        let drop_of =
            |whose: &Option<Member>| Change::DropRealisation { id: id.clone(), member: whose.clone() };
        db.write(&[drop_of(&Some(member.clone()))]).unwrap();
        let left = |db: &mut Db| db.load().unwrap().rest.len();
        assert_eq!(left(&mut db), 4, "the other layer's realisation is there");
        let rest = [
            drop_of(&None),
            Change::DropClaim { member: member.clone(), path: path.clone() },
            Change::DropAnnotation { member: member.clone(), path },
            Change::DropResult { key: [7; 32] },
            Change::DropRoot { member, name },
        ];
        db.write(&rest).unwrap();
        assert_eq!((left(&mut db), db.load().unwrap().paths.len()), (0, 1));
    }
}
