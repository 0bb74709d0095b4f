//! Tickets: a member gives a friend a bounded part of what the member may do, without a change of the roster.
//!
//! A ticket is a secret token with [`Terms`], and an account of what was used of it. Its holder acts under an identity of
//! their own, with a view and logs of their own; the member who made it pays (`members` and `builds` see to that). A
//! ticket ends when it expires or is revoked. An ended one is listed for [`KEPT`], so that maker and holder can see what
//! became of it.
//!
//! All tickets are in memory, and in one small file. A new ticket, a spent use and a revocation are written before they
//! take effect; times and bytes every few seconds ([`Tickets::flush`]). If the file cannot be used, the agent goes on
//! without the tickets in it.
//! Not here: who may log in with a ticket (`ssh`), whether its maker is still a member (`members`), and what a build costs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ::roster::date;
use tokio::sync::watch;

mod file;
mod terms;
mod ticket;
mod token;

pub use terms::{Scope, Terms};
pub use ticket::{NotSpent, Over, Spent, SpentBefore, State, Ticket, Used};

use file::{Failure, File, Record};
use token::Hash;

/// The identities of holders begin with it. No identity of a member does: a name has no colon (crate `roster`, `name`).
pub const PREFIX: &str = "ticket:";
/// Seconds for which an ended ticket is listed.
pub const KEPT: u64 = 7 * 24 * 3600;
/// Limit on the tickets of a box, ended ones included: as many as it has identities of members. About 1 KiB each.
pub const MAX_TICKETS: usize = 20_000;

/// The tickets of a box. Clones share them.
#[derive(Clone)]
pub struct Tickets {
    book: Arc<Book>,
}

pub(crate) struct Book {
    all: Mutex<All>,
    /// `None`: nothing is kept on disk.
    file: Mutex<Option<File>>,
    /// Counts the changes that decide who may log in.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct All {
    by_id: BTreeMap<Arc<str>, Arc<Ticket>>,
    by_hash: HashMap<Hash, Arc<str>>,
    /// The tickets that are bound to each key: strangers offer keys, so the look-up must cost nothing.
    by_key: HashMap<String, Vec<Arc<str>>>,
    /// Forgotten tickets that the file still has.
    forgotten: Vec<Arc<str>>,
}

/// A ticket that is to be made.
#[derive(Debug, Clone)]
pub struct New {
    pub name: String,
    pub maker: Arc<str>,
    pub terms: Terms,
    /// Whether its maker can see the token again.
    pub revealable: bool,
    /// Limit on the live tickets of this maker.
    pub most: usize,
}

/// The reason why a ticket was not made.
#[derive(Debug, thiserror::Error)]
pub enum NotMade {
    #[error("you have a live ticket `{0}` already; choose another `--name`, or revoke that one")]
    Name(String),
    #[error(
        "you have {most} tickets that are live, or have ended and still own data here, and {most} is the limit \
         (limits.max-tickets-per-member); revoke one, or wait until one has expired"
    )]
    TooMany { most: usize },
    #[error("the box has {MAX_TICKETS} tickets, which is its limit; try again when some have expired")]
    Full,
    #[error("the ticket cannot be written down: {0}; tell the operator of the box")]
    File(String),
}

impl Tickets {
    /// Reads the file. A damaged one is moved aside, and its tickets are lost; one that cannot be opened is left alone: its
    /// tickets are of no use until the next start, and new ones last until then. Both are logged.
    #[must_use]
    pub fn open(path: &Path, flush: bool) -> Self {
        let opened = match read(path, flush) {
            Err(Failure::Contents(error)) => {
                let aside = path.with_extension("damaged");
                tracing::error!(path = %path.display(), error, aside = %aside.display(), "the tickets cannot be read; the file is moved aside, and they are lost");
                for ending in ["", "-wal", "-shm"] {
                    let named = |path: &Path| format!("{}{ending}", path.display());
                    let _ = std::fs::rename(named(path), named(&aside));
                }
                read(path, flush)
            }
            opened => opened,
        };
        match opened {
            Ok((file, records)) => Self::of(Some(file), records),
            Err(Failure::Contents(error) | Failure::Other(error)) => {
                tracing::error!(path = %path.display(), error, "tickets cannot be kept on disk; new ones end with this process");
                Self::in_memory()
            }
        }
    }

    /// Tickets that are gone with the process.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::of(None, Vec::new())
    }

    fn of(file: Option<File>, records: Vec<Record>) -> Self {
        let book = Arc::new_cyclic(|book: &Weak<Book>| {
            let mut all = All::default();
            records
                .into_iter()
                .filter_map(|record| of_record(record, book))
                .for_each(|ticket| all.add(ticket));
            Book { all: Mutex::new(all), file: Mutex::new(file), changes: watch::channel(0).0 }
        });
        Self { book }
    }

    /// Makes a ticket, and returns it with its token. Waits for the disk.
    pub fn make(&self, new: New) -> Result<(Arc<Ticket>, String), NotMade> {
        let random = |error: std::io::Error| NotMade::File(error.to_string());
        let (text, hash) = token::make().map_err(random)?;
        let id = hex::encode(token::random::<8>().map_err(random)?);
        let token = new.revealable.then(|| text.clone());
        let ticket = Ticket::new(
            format!("{PREFIX}{id}").into(),
            new.name.as_str().into(),
            new.maker.clone(),
            date::now(),
            new.terms,
            (hash, token),
            Used::default(),
            Arc::downgrade(&self.book),
        );
        {
            let mut all = self.book.lock();
            let of_maker = || all.by_id.values().filter(|other| other.maker == new.maker);
            if of_maker().any(|other| *other.name == *new.name && other.is_live()) {
                return Err(NotMade::Name(new.name));
            }
            // An ended ticket counts until the data of its holder is deleted: otherwise the number of those would have no
            // bound.
            if of_maker().filter(|other| other.is_live() || !other.used().dropped).count() >= new.most {
                return Err(NotMade::TooMany { most: new.most });
            }
            all.forget(|other, now| now >= other.end().saturating_add(KEPT));
            let of_maker = all.by_id.values().filter(|other| other.maker == new.maker).count();
            if all.by_id.len() >= MAX_TICKETS || of_maker >= 2 * new.most {
                all.forget_the_first_ended(&new.maker);
            }
            if all.by_id.len() >= MAX_TICKETS {
                return Err(NotMade::Full);
            }
            all.add(ticket.clone());
        }
        if let Err(error) = ticket.save() {
            self.book.lock().remove(&ticket.id);
            return Err(NotMade::File(error));
        }
        self.book.changed();
        Ok((ticket, text))
    }

    /// The ticket with this token, live or not.
    #[must_use]
    pub fn by_token(&self, token: &str) -> Option<Arc<Ticket>> {
        let hash = token::hash(token)?;
        let all = self.book.lock();
        all.by_hash.get(&hash).and_then(|id| all.by_id.get(id)).cloned()
    }

    /// Whether a live ticket is bound to this key: `type base64`.
    #[must_use]
    pub fn is_bound(&self, key: &str) -> bool {
        let all = self.book.lock();
        let bound = all.by_key.get(key).into_iter().flatten();
        bound.filter_map(|id| all.by_id.get(id)).any(|ticket| ticket.is_live())
    }

    /// The tickets for which `of` is true, ended ones included, in the order in which they were made.
    #[must_use]
    pub fn list(&self, of: impl Fn(&Ticket) -> bool) -> Vec<Arc<Ticket>> {
        let mut found: Vec<Arc<Ticket>> =
            self.book.lock().by_id.values().filter(|ticket| of(ticket)).cloned().collect();
        found.sort_by_key(|ticket| (ticket.created, ticket.id.clone()));
        found
    }

    #[must_use]
    pub fn live(&self) -> Vec<Arc<Ticket>> {
        self.list(Ticket::is_live)
    }

    /// Ends a ticket. Waits for the disk. On error it has ended, but could be live again after the next start.
    pub fn revoke(&self, ticket: &Ticket) -> Result<(), String> {
        ticket.set_revoked(date::now());
        self.book.changed();
        ticket.save()
    }

    /// Counts the changes that decide who may log in; expiry is not among them.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.book.changes.subscribe()
    }

    /// Ended tickets whose holder's data has to be deleted.
    #[must_use]
    pub fn gone(&self) -> Vec<Arc<str>> {
        let gone = self.list(|ticket| !ticket.is_live() && !ticket.used().dropped);
        gone.into_iter().map(|ticket| ticket.id.clone()).collect()
    }

    /// Reports that this holder owns nothing any more.
    pub fn dropped(&self, id: &str) -> Result<(), String> {
        let Some(ticket) = self.book.lock().by_id.get(id).cloned() else { return Ok(()) };
        ticket.set_dropped();
        ticket.save()
    }

    /// Writes the accounts that have changed, and forgets tickets that ended long ago. Blocks. An account that cannot be
    /// written is tried again by the next call.
    pub fn flush(&self) -> Result<(), String> {
        let forgotten = {
            let mut all = self.book.lock();
            all.forget(|ticket, now| now >= ticket.end().saturating_add(KEPT));
            std::mem::take(&mut all.forgotten)
        };
        if let Some(file) = &*self.book.file() {
            // One that stays in the file because of an error has ended, and is forgotten again after the next start.
            forgotten.iter().try_for_each(|id| file.remove(id))?;
        }
        self.list(Ticket::is_unsaved).iter().try_for_each(|ticket| ticket.save())
    }
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// The row is made with the file locked, so that the latest one stays.
    fn save(&self, ticket: &Ticket) -> Result<(), String> {
        let file = self.file();
        let used = ticket.take_unsaved();
        let Some(file) = &*file else { return Ok(()) };
        file.put(&record(ticket, used)).inspect_err(|_| ticket.put_back_unsaved())
    }
}

impl All {
    fn add(&mut self, ticket: Arc<Ticket>) {
        self.by_hash.insert(ticket.hash, ticket.id.clone());
        if let Some(key) = &ticket.terms.bind_key {
            self.by_key.entry(key.clone()).or_default().push(ticket.id.clone());
        }
        self.by_id.insert(ticket.id.clone(), ticket);
    }

    fn remove(&mut self, id: &str) {
        let Some(ticket) = self.by_id.remove(id) else { return };
        self.by_hash.remove(&ticket.hash);
        if let Some(key) = &ticket.terms.bind_key
            && let Some(bound) = self.by_key.get_mut(key)
        {
            bound.retain(|other| **other != *id);
            if bound.is_empty() {
                self.by_key.remove(key);
            }
        }
    }

    /// Forgets ended tickets of holders who own nothing, if `is_due`.
    fn forget(&mut self, is_due: impl Fn(&Ticket, u64) -> bool) {
        let now = date::now();
        let ended = |ticket: &Ticket| !ticket.is_live() && ticket.used().dropped;
        let due = self.by_id.values().filter(|ticket| ended(ticket) && is_due(ticket, now));
        let due: Vec<Arc<str>> = due.map(|ticket| ticket.id.clone()).collect();
        due.iter().for_each(|id| self.remove(id));
        self.forgotten.extend(due);
    }

    /// Makes room for another ticket of this maker.
    fn forget_the_first_ended(&mut self, maker: &str) {
        let ended =
            |ticket: &&Arc<Ticket>| *ticket.maker == *maker && !ticket.is_live() && ticket.used().dropped;
        let first = self.by_id.values().filter(ended).min_by_key(|ticket| ticket.end());
        if let Some(id) = first.map(|ticket| ticket.id.clone()) {
            self.forget(|ticket, _| ticket.id == id);
        }
    }
}

fn read(path: &Path, flush: bool) -> Result<(File, Vec<Record>), Failure> {
    let file = File::open(path, flush)?;
    let (records, unreadable) = file.load(MAX_TICKETS)?;
    if unreadable > 0 {
        tracing::warn!(path = %path.display(), unreadable, "tickets that cannot be read are left out");
    }
    Ok((file, records))
}

fn record(ticket: &Ticket, used: Used) -> Record {
    Record {
        id: ticket.id.to_string(),
        name: ticket.name.to_string(),
        maker: ticket.maker.to_string(),
        created: ticket.created,
        terms: ticket.terms.clone(),
        sha256: hex::encode(ticket.hash),
        token: ticket.token.clone(),
        used,
    }
}

/// `None` for a row that the agent cannot have written.
fn of_record(record: Record, book: &Weak<Book>) -> Option<Arc<Ticket>> {
    let mut hash = [0; 32];
    hex::decode_to_slice(&record.sha256, &mut hash).ok()?;
    let sound = record.id.starts_with(PREFIX) && ::roster::name::check(&record.name).is_ok();
    sound.then(|| {
        Ticket::new(
            record.id.into(),
            record.name.into(),
            record.maker.into(),
            record.created,
            record.terms,
            (hash, record.token),
            record.used,
            book.clone(),
        )
    })
}

#[cfg(test)]
#[path = "tickets_test.rs"]
mod tickets_test;
