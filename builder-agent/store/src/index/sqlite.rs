//! The embedded database: SQLite, one file beside the objects.
//!
//! A commit that returned survives the process. [`Durability`] decides what survives a power loss: with
//! `Flush` the write-ahead log is on the disk in the right order (`synchronous=NORMAL`), so that a start
//! finds all commits up to some moment and none after it; the housekeeper's flush makes that moment a recent
//! one. With `None` SQLite never waits for the disk, and after a power loss the file cannot be trusted.

mod apply;
mod load;
mod schema;

use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use crate::config::Durability;
use crate::error::DatabaseError;
use crate::index::change::Change;
use crate::index::database::{Database, Loaded};

pub(crate) use schema::SCHEMA;

/// Pages of the log at which SQLite checkpoints by itself, during a commit (64 MiB). The housekeeper should
/// checkpoint before that.
const LOG_PAGES: u32 = 16_384;
/// Number of changes after which the housekeeper checkpoints: about SQLite's own 1,000 pages.
const CHECKPOINT_AFTER: usize = 300;

pub(crate) struct Sqlite {
    connection: Connection,
    /// Number of the last row of `paths`, even if that row has been deleted.
    last_row: i64,
    /// Number of changes since the last checkpoint.
    changes: usize,
}

/// An index file cannot be used.
pub(crate) enum OpenFailure {
    /// A newer version wrote the file, with this schema.
    Newer(i64),
    /// The file itself is damaged.
    Damaged(DatabaseError),
    /// Another failure: a disk that is full or cannot be read is the operator's problem, and may pass.
    Other(DatabaseError),
}

impl From<rusqlite::Error> for OpenFailure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.into()),
            _ => Self::Other(error.into()),
        }
    }
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> Self {
        Self::new(error)
    }
}

impl Sqlite {
    /// Opens the file, migrates it to our schema and reads it.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<(Self, Loaded), OpenFailure> {
        let connection = Connection::open(path)?;
        // The store has a lock of its own; SQLite would take and release its lock at each commit.
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
        let steps = schema::steps(found).ok_or(OpenFailure::Newer(found))?;
        if !steps.is_empty() {
            // One transaction: a crash leaves the old schema or the new one.
            connection.execute_batch(&format!("BEGIN; {steps} PRAGMA user_version = {SCHEMA}; COMMIT;"))?;
        }
        let last_row =
            connection.query_row("SELECT coalesce(max(id), 0) FROM paths", [], |row| row.get(0))?;
        let mut database = Self { connection, last_row, changes: 0 };
        let loaded = database.load()?;
        Ok((database, loaded))
    }

    /// New rows get numbers above this one.
    pub(crate) fn number_from(&mut self, row: i64) {
        self.last_row = self.last_row.max(row);
    }

    /// Deletes rows of `paths`, for repair.
    pub(crate) fn delete(&mut self, ids: &[i64]) -> Result<(), DatabaseError> {
        let transaction = self.connection.transaction()?;
        {
            let mut delete = transaction.prepare("DELETE FROM paths WHERE id = ?1")?;
            for id in ids {
                delete.execute([id])?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Database for Sqlite {
    fn write(&mut self, changes: &mut dyn Iterator<Item = &Change>) -> Result<(), DatabaseError> {
        let transaction = self.connection.transaction()?;
        let mut last_row = self.last_row;
        for change in changes {
            apply::write(&transaction, change, &mut last_row)?;
            self.changes += 1;
        }
        transaction.commit()?;
        self.last_row = last_row;
        Ok(())
    }

    fn last_row(&self) -> i64 {
        self.last_row
    }

    /// Moves the log into the file, if the log is long.
    fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        if self.changes >= CHECKPOINT_AFTER {
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
            self.changes = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use nix_derivation::StorePath;
    use rusqlite::Transaction;

    use super::*;
    use crate::index::account::Account;
    use crate::index::rows::{Annotation, Origins};
    use crate::types::realisation::{Realisation, RealisationId};
    use crate::types::result::{BuildRecord, RecordEnd, RecordedOutput};
    use crate::types::{Member, Provenance};
    use nix::PathInfo;

    fn write(db: &mut Sqlite, changes: &[Change]) {
        db.write(&mut changes.iter()).unwrap();
    }

    /// Panics if SQLite would scan a whole table. Called for every statement that a unit test runs.
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
        let opened = Sqlite::open(&dir.path().join("index.sqlite"), Durability::Flush);
        let Ok((mut db, _)) = opened else { panic!("a new file can be opened") };
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
                Change::AddPath {
                    info,
                    provenance: provenance.clone(),
                    proven,
                    object_size,
                    origins,
                    account: Account { payer: Some(member.clone()), used: 9 },
                },
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
        write(&mut db, &add);
        let loaded = db.load().unwrap();
        assert!(loaded.paths.iter().all(|record| record.info.signatures == ["c:d"]));
        assert_eq!((loaded.paths.len(), loaded.rest.len(), loaded.unreadable), (2, 5, 0));

        let used = |member: Option<&Member>, used| Change::Used {
            path: path.clone(),
            member: member.cloned(),
            used,
        };
        write(&mut db, &[used(None, 10), used(Some(&member), 11)]);
        let accounts = |db: &mut Sqlite| {
            let mut all: Vec<_> = db.load().unwrap().paths.into_iter().map(|r| r.account).collect();
            all.sort_by_key(|account| account.used);
            all
        };
        let payer = Some(member.clone());
        let (verified, claim) = (Account { payer: payer.clone(), used: 10 }, Account { payer, used: 11 });
        assert_eq!(accounts(&mut db), [verified, claim.clone()]);
        write(&mut db, &[Change::Charge { path: path.clone(), payer: None, used: 0 }]);
        assert_eq!(accounts(&mut db), [Account::default(), claim]);

        let drop_of =
            |whose: &Option<Member>| Change::DropRealisation { id: id.clone(), member: whose.clone() };
        write(&mut db, &[drop_of(&Some(member.clone()))]);
        let left = |db: &mut Sqlite| db.load().unwrap().rest.len();
        assert_eq!(left(&mut db), 4, "the other layer's realisation is there");
        let rest = [
            drop_of(&None),
            Change::DropClaim { member: member.clone(), path: path.clone() },
            Change::DropAnnotation { member: member.clone(), path: path.clone() },
            Change::DropResult { key: [7; 32] },
            Change::DropRoot { member, name },
        ];
        let gone = Change::DropVerified { path: path.clone() };
        write(&mut db, &rest);
        assert_eq!((left(&mut db), db.load().unwrap().paths.len()), (0, 1));
        write(&mut db, &[gone]);
        assert_eq!(db.load().unwrap().paths.len(), 0);
    }
}
