//! The ledger's file: two SQLite tables, of members and of their parts, which are written in one transaction every few
//! seconds.
//!
//! A transaction that has ended survives `kill -9`, and where the state is meant to survive a power loss, that too: SQLite
//! waits for the disk then. Anything can be in the file: the disk may damage it, and an operator may edit it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, params};

use crate::account::{Account, Kind, Part};
use crate::book::{Changes, Row};
use crate::calendar::Day;
use crate::resource::{Amounts, Resource};

/// The version of the tables. Version 1 had no parts; a file of it gets the table that it lacks.
const SCHEMA: i64 = 2;

/// Longest identity, or name of a part, that is read. One of the agent has at most 53 bytes.
const MAX_NAME: usize = 128;

// A row per resource: a version with another table of resources reads the file, and keeps what it does not know. Days are
// first in the key, because they are written and forgotten in order, and loading needs no sort.
const CREATE_USAGE: &str = "
    CREATE TABLE usage (
        member TEXT NOT NULL,
        day TEXT NOT NULL,                -- YYYY-MM-DD, UTC
        resource TEXT NOT NULL,
        amount INTEGER NOT NULL,          -- of seconds: in milliseconds
        PRIMARY KEY (day, member, resource)
    ) STRICT, WITHOUT ROWID;
";

// Apart from `usage`: a part is counted there too, and whoever adds up that table must not count it twice.
const CREATE_PARTS: &str = "
    CREATE TABLE parts (
        member TEXT NOT NULL,
        kind TEXT NOT NULL,               -- key, ticket, tag
        name TEXT NOT NULL,
        day TEXT NOT NULL,
        resource TEXT NOT NULL,
        amount INTEGER NOT NULL,
        PRIMARY KEY (day, member, kind, name, resource)
    ) STRICT, WITHOUT ROWID;
";

const LOAD_USAGE: &str = "SELECT member, '', '', day, resource, amount FROM usage
    ORDER BY day DESC, member DESC, resource DESC";
const LOAD_PARTS: &str = "SELECT member, kind, name, day, resource, amount FROM parts
    ORDER BY day DESC, member DESC, kind DESC, name DESC, resource DESC";
const PUT_USAGE: &str =
    "INSERT OR REPLACE INTO usage (member, day, resource, amount) VALUES (?1, ?2, ?3, ?4)";
const PUT_PART: &str = "INSERT OR REPLACE INTO parts (member, day, resource, amount, kind, name)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

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
        let missing = match connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
            SCHEMA => String::new(),
            1 => CREATE_PARTS.to_owned(),
            0 => format!("{CREATE_USAGE}{CREATE_PARTS}"),
            newer => {
                return Err(Failure::Contents(format!(
                    "it has schema {newer}, and this version reads {SCHEMA}"
                )));
            }
        };
        if !missing.is_empty() {
            let step = format!("BEGIN; {missing} PRAGMA user_version = {SCHEMA}; COMMIT;");
            connection.execute_batch(&step).map_err(|error| match error.sqlite_error_code() {
                // It has a table of that name already.
                Some(ErrorCode::Unknown) => Failure::Contents(error.to_string()),
                _ => error.into(),
            })?;
        }
        Ok(Self { connection })
    }

    /// The newest rows of members and of their parts, at most so many of each, and the number of amounts that mean nothing
    /// here.
    pub fn load(&self, most: usize, most_parts: usize) -> Result<(Vec<Row>, Vec<Row>, usize), Failure> {
        let mut unreadable = 0;
        let rows = self.read(LOAD_USAGE, most, &mut unreadable)?;
        let parts = self.read(LOAD_PARTS, most_parts, &mut unreadable)?;
        Ok((rows, parts, unreadable))
    }

    fn read(&self, sql: &str, most: usize, unreadable: &mut usize) -> Result<Vec<Row>, Failure> {
        let mut query = self.connection.prepare(sql).map_err(missing_table)?;
        let mut found = query.query([])?;
        let mut rows = Vec::<Row>::new();
        while let Some(row) = found.next()? {
            let text = |at| -> Result<&str, rusqlite::Error> { Ok(row.get_ref(at)?.as_str().unwrap_or("")) };
            let (member, kind, name, day) = (text(0)?, text(1)?, text(2)?, text(3)?);
            let resource = Resource::named(text(4)?);
            let amount = row.get_ref(5)?.as_i64().ok().and_then(|amount| u64::try_from(amount).ok());
            let day: Option<Day> = day.parse().ok().filter(|parsed: &Day| parsed.to_string() == day);
            let known = |name: &str| !name.is_empty() && name.len() <= MAX_NAME;
            let part = match Kind::named(kind) {
                Some(kind) if known(name) => Some(Some((kind, name))),
                None if kind.is_empty() && name.is_empty() => Some(None),
                _ => None,
            };
            let (Some(day), Some(resource), Some(amount), Some(part), true) =
                (day, resource, amount, part, known(member))
            else {
                *unreadable += 1;
                continue;
            };
            let is_same = |(account, on, _): &Row| {
                let its = account.part.as_ref().map(|part| (part.kind, &*part.name));
                &*account.member == member && its == part && *on == day
            };
            if !rows.last().is_some_and(is_same) {
                if rows.len() == most {
                    break;
                }
                let part = part.map(|(kind, name)| Part::new(kind, name));
                rows.push((Account { member: member.into(), part }, day, Amounts::default()));
            }
            if let Some((_, _, amounts)) = rows.last_mut() {
                amounts.add(resource, amount);
            }
        }
        Ok(rows)
    }

    /// Writes all of it, or nothing.
    pub fn write(&mut self, changes: &Changes) -> Result<(), Failure> {
        let transaction = self.connection.transaction()?;
        {
            if let Some(before) = changes.before {
                transaction.execute("DELETE FROM usage WHERE day < ?1", [before.to_string()])?;
                transaction.execute("DELETE FROM parts WHERE day < ?1", [before.to_string()])?;
            }
            for (member, before) in &changes.parts_before {
                let sql = "DELETE FROM parts WHERE member = ?1 AND day < ?2";
                transaction.execute(sql, params![&**member, before.to_string()])?;
            }
            for member in &changes.gone {
                transaction.execute("DELETE FROM usage WHERE member = ?1", [&**member])?;
                transaction.execute("DELETE FROM parts WHERE member = ?1", [&**member])?;
            }
            let mut put = transaction.prepare(PUT_USAGE)?;
            let mut put_part = transaction.prepare(PUT_PART)?;
            for (Account { member, part }, day, amounts) in &changes.rows {
                let day = day.to_string();
                for (resource, amount) in amounts.iter() {
                    let (member, name) = (&**member, resource.row().name);
                    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
                    match part {
                        None => put.execute(params![member, day, name, amount])?,
                        Some(part) => {
                            let (kind, its) = (part.kind.name(), &*part.name);
                            put_part.execute(params![member, day, name, amount, kind, its])?
                        }
                    };
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
