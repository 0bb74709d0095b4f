//! The ledger's file: one SQLite table, which is written in one transaction every few seconds.
//!
//! A transaction that has ended survives `kill -9`, and where the state is meant to survive a power loss, that too: SQLite
//! waits for the disk then. Anything can be in the file: the disk may damage it, and an operator may edit it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, params};

use crate::book::{Changes, Row};
use crate::calendar::Day;
use crate::{Amounts, Principal, Resource};

/// The version of the table. A dimension of principals (key, ticket, tag) becomes a column, in a step from 1 to 2.
const SCHEMA: i64 = 1;

/// Longest identity that is read. One of the agent has at most 53 bytes.
const MAX_IDENTITY: usize = 128;

// A row per resource: a version with another table of resources reads the file, and keeps what it does not know. Days are
// first in the key, because they are written and forgotten in order, and loading needs no sort.
const CREATE: &str = "
    CREATE TABLE usage (
        member TEXT NOT NULL,
        day TEXT NOT NULL,                -- YYYY-MM-DD, UTC
        resource TEXT NOT NULL,
        amount INTEGER NOT NULL,          -- of seconds: in milliseconds
        PRIMARY KEY (day, member, resource)
    ) STRICT, WITHOUT ROWID;
";

pub(crate) struct File {
    connection: Connection,
}

/// The reason why a file cannot be used.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its contents cannot be used: damage, or the schema of a newer version.
    Contents(String),
    /// Another failure, which may pass: a full disk, a lock.
    Other(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Contents(error.to_string()),
            _ => Self::Other(error),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Contents(why) => f.write_str(why),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl File {
    /// Opens the file, or makes it. `flush`: it survives a power loss.
    pub fn open(path: &Path, flush: bool) -> Result<Self, Failure> {
        let connection = Connection::open(path)?;
        // The file belongs to one agent: a second one gets an error instead of a part of the amounts.
        connection.pragma_update(None, "locking_mode", "exclusive")?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", if flush { "full" } else { "off" })?;
        let sound: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        if sound != "ok" {
            return Err(Failure::Contents(sound));
        }
        match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            SCHEMA => {}
            0 => connection
                .execute_batch(&format!("BEGIN; {CREATE} PRAGMA user_version = {SCHEMA}; COMMIT;"))
                .map_err(|error| match error.sqlite_error_code() {
                    // It has a table of that name already.
                    Some(ErrorCode::Unknown) => Failure::Contents(error.to_string()),
                    _ => error.into(),
                })?,
            newer => {
                return Err(Failure::Contents(format!(
                    "it has schema {newer}, and this version reads {SCHEMA}"
                )));
            }
        }
        Ok(Self { connection })
    }

    /// The newest rows, at most so many, and the number of amounts that mean nothing here.
    pub fn load(&self, most: usize) -> Result<(Vec<Row>, usize), Failure> {
        let sql =
            "SELECT member, day, resource, amount FROM usage ORDER BY day DESC, member DESC, resource DESC";
        let mut query = self.connection.prepare(sql).map_err(missing_table)?;
        let mut found = query.query([])?;
        let (mut rows, mut unreadable) = (Vec::<Row>::new(), 0);
        while let Some(row) = found.next()? {
            let (member, day): (&str, &str) =
                (row.get_ref(0)?.as_str().unwrap_or(""), row.get_ref(1)?.as_str().unwrap_or(""));
            let resource = row.get_ref(2)?.as_str().ok().and_then(Resource::named);
            let amount = row.get_ref(3)?.as_i64().ok().and_then(|amount| u64::try_from(amount).ok());
            let day: Option<Day> = day.parse().ok().filter(|parsed: &Day| parsed.to_string() == day);
            let known = !member.is_empty() && member.len() <= MAX_IDENTITY;
            let (Some(day), Some(resource), Some(amount), true) = (day, resource, amount, known) else {
                unreadable += 1;
                continue;
            };
            if rows.last().is_none_or(|(who, on, _)| &*who.member != member || *on != day) {
                if rows.len() == most {
                    break;
                }
                rows.push((Principal::member(member), day, Amounts::default()));
            }
            if let Some((_, _, amounts)) = rows.last_mut() {
                amounts.add(resource, amount);
            }
        }
        Ok((rows, unreadable))
    }

    /// Writes all of it, or nothing.
    pub fn write(&mut self, changes: &Changes) -> Result<(), Failure> {
        let transaction = self.connection.transaction()?;
        {
            if let Some(before) = changes.before {
                transaction.execute("DELETE FROM usage WHERE day < ?1", [before.to_string()])?;
            }
            for who in &changes.gone {
                transaction.execute("DELETE FROM usage WHERE member = ?1", [&*who.member])?;
            }
            let sql = "INSERT OR REPLACE INTO usage (member, day, resource, amount) VALUES (?1, ?2, ?3, ?4)";
            let mut put = transaction.prepare(sql)?;
            for (who, day, amounts) in &changes.rows {
                let day = day.to_string();
                for (resource, amount) in amounts.iter() {
                    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
                    put.execute(params![&*who.member, day, resource.row().name, amount])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }
}

/// A file of our schema without our table.
fn missing_table(error: rusqlite::Error) -> Failure {
    match error.sqlite_error_code() {
        Some(ErrorCode::Unknown) => Failure::Contents(error.to_string()),
        _ => error.into(),
    }
}

/// Keeps a file that cannot be used for inspection, in place of an earlier one. Returns its new name.
pub(crate) fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let with = |path: &Path, ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let aside = path.with_extension("damaged");
    for ending in ["", "-wal", "-shm", "-journal"] {
        match std::fs::rename(with(path, ending), with(&aside, ending)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            // A log of an earlier file would not belong to this one.
            Err(_) => drop(std::fs::remove_file(with(&aside, ending))),
            Ok(()) => {}
        }
    }
    Ok(aside)
}
