//! The file of tickets: one SQLite table with a row per ticket. It holds hashes of tokens, and the tokens that their makers
//! want to see again, so only the agent may read it.
//!
//! Anything can be in the file: the disk may damage it, and an operator may edit it. A ticket that cannot be read is left
//! out, and nobody can use it.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, ErrorCode, params};
use serde::{Deserialize, Serialize};

use crate::{Terms, Used};

const SCHEMA: i64 = 1;
/// Longest row that is read. The agent's have about 600 bytes, and a bound RSA key has up to 3,000 more.
const MAX_ROW: usize = 16 << 10;

/// A row.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub id: String,
    pub name: String,
    pub maker: String,
    pub created: u64,
    pub terms: Terms,
    /// Of the token, in hexadecimal digits.
    pub sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    pub used: Used,
}

pub(crate) struct File {
    connection: Connection,
}

/// The reason why a file cannot be used.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its contents cannot be used: damage, or the schema of a newer version.
    Contents(String),
    /// Another failure, which may pass: a full disk, or another agent that has the file open.
    Other(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // `Unknown`: it has our version number, and not our table.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => {
                Self::Contents(error.to_string())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl File {
    /// Opens the file, or makes it. `flush`: it survives a power loss.
    pub fn open(path: &Path, flush: bool) -> Result<Self, Failure> {
        // SQLite gives its other files the mode of this one.
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        let connection = Connection::open(path)?;
        // The file belongs to one agent: a second one could spend each use again.
        connection.pragma_update(None, "locking_mode", "exclusive")?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", if flush { "full" } else { "off" })?;
        match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            SCHEMA => {}
            0 => connection.execute_batch(&format!(
                "BEGIN; CREATE TABLE ticket (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID; \
                 PRAGMA user_version = {SCHEMA}; COMMIT;"
            ))?,
            newer => {
                let why = format!("it has schema {newer}, and this version reads {SCHEMA}");
                return Err(Failure::Contents(why));
            }
        }
        Ok(Self { connection })
    }

    /// The rows, at most so many, and the number of those that cannot be read.
    pub fn load(&self, most: usize) -> Result<(Vec<Record>, usize), Failure> {
        let mut query = self.connection.prepare("SELECT record FROM ticket ORDER BY id LIMIT ?1")?;
        let mut found = query.query([i64::try_from(most).unwrap_or(i64::MAX)])?;
        let (mut records, mut unreadable) = (Vec::new(), 0);
        while let Some(row) = found.next()? {
            let text = row.get_ref(0)?.as_str().ok().filter(|text| text.len() <= MAX_ROW);
            match text.and_then(|text| serde_json::from_str(text).ok()) {
                Some(record) => records.push(record),
                None => unreadable += 1,
            }
        }
        Ok((records, unreadable))
    }

    /// Writes a row, in place of an earlier one.
    pub fn put(&self, record: &Record) -> Result<(), String> {
        let text = serde_json::to_string(record).map_err(|error| error.to_string())?;
        let sql = "INSERT OR REPLACE INTO ticket (id, record) VALUES (?1, ?2)";
        self.connection.execute(sql, params![record.id, text]).map_err(|error| error.to_string()).map(drop)
    }

    pub fn remove(&self, id: &str) -> Result<(), String> {
        let removed = self.connection.execute("DELETE FROM ticket WHERE id = ?1", [id]);
        removed.map_err(|error| error.to_string()).map(drop)
    }
}
