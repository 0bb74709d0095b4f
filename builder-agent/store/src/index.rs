//! The index: which paths exist, which members see them, and which object each one has.
//!
//! Every query is answered from [`memory`]. Every change is written to a [`database`] first and then made in
//! memory; [`commit`] does both, for all waiting changes at once. Temporary roots ([`holds`]) are in memory
//! only.
//!
//! Another database would implement [`database::Database`], below the maps in memory: a query costs a read
//! lock and no call through a trait, whatever the database is.
//!
//! Not here: files of objects, and the rules that decide who may see and change what (`views`).

pub(crate) mod account;
pub(crate) mod change;
pub(crate) mod charges;
pub(crate) mod commit;
pub(crate) mod database;
pub(crate) mod holds;
pub(crate) mod leases;
pub(crate) mod memory;
pub(crate) mod rows;
pub(crate) mod sqlite;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use crate::error::DatabaseError;
use crate::long_work::LongWork;
use crate::types::Member;
use change::Change;
use commit::Commits;
use database::Database;
use holds::Holds;
use memory::Memory;

/// The index of one store.
pub(crate) struct Index {
    /// Locked for writing only to show changes that are already written, and to hide paths that are about to
    /// be deleted.
    memory: RwLock<Memory>,
    /// Locked during a commit and while objects are removed. A thread that needs both locks takes this one
    /// first.
    database: Mutex<Box<dyn Database>>,
    commits: Commits,
    holds: Arc<Holds>,
    /// Whether there was a commit since [`Locked::take_committed`].
    committed: AtomicBool,
    long_work: LongWork,
}

impl Index {
    /// An index for which `database` and `memory` have the same contents.
    pub(crate) fn new(memory: Memory, database: Box<dyn Database>, long_work: LongWork) -> Self {
        Self {
            memory: RwLock::new(memory),
            database: Mutex::new(database),
            commits: Commits::default(),
            holds: Arc::default(),
            committed: AtomicBool::new(false),
            long_work,
        }
    }

    /// The current index. The caller must not wait for anything while it holds the lock.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Memory> {
        // A panic between two insertions leaves maps in which paths are missing, but no wrong ones.
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`charges::Charges::pay_for`]. It is said with each view, so what is known already takes no lock for writing.
    pub(crate) fn pay_for(&self, payer: &Member, member: &Member) {
        if self.read().payer_of(member) == payer {
            return;
        }
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        memory.pay_for(payer, member);
    }

    /// Waits for other changes of the index to end, and prevents new ones.
    pub(crate) fn lock(&self) -> Locked<'_> {
        // If a transaction was not committed, its drop has rolled it back.
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { index: self, database }
    }

    /// As [`Index::lock`]; `None` if another thread changes the index.
    fn try_lock(&self) -> Option<Locked<'_>> {
        let database = match self.database.try_lock() {
            Ok(database) => database,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Locked { index: self, database })
    }

    /// Replaces the database.
    #[cfg(test)]
    pub(crate) fn replace_database(&self, database: Box<dyn Database>) {
        *self.lock().database = database;
    }

    /// Temporary roots.
    pub(crate) fn holds(&self) -> &Arc<Holds> {
        &self.holds
    }
}

/// The index, locked against changes by others. Queries still work.
pub(crate) struct Locked<'a> {
    index: &'a Index,
    database: MutexGuard<'a, Box<dyn Database>>,
}

impl Locked<'_> {
    pub(crate) fn holds(&self) -> &Holds {
        &self.index.holds
    }

    pub(crate) fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.index.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all changes or none. They stay invisible until [`Locked::show`].
    pub(crate) fn write<'c>(
        &mut self,
        changes: impl IntoIterator<Item = &'c Change>,
    ) -> Result<(), DatabaseError> {
        self.database.write(&mut changes.into_iter())
    }

    /// Makes the written changes in memory.
    pub(crate) fn show(&self, changes: Vec<Change>) {
        let mut memory = self.memory_mut();
        changes.into_iter().for_each(|change| memory.apply(change));
    }

    fn note_commit(&self) {
        self.index.committed.store(true, Ordering::Relaxed);
    }

    /// Whether there was a commit since the last call.
    pub(crate) fn take_committed(&self) -> bool {
        self.index.committed.swap(false, Ordering::Relaxed)
    }

    /// Number of the last row of a path, even if that row has been deleted.
    pub(crate) fn last_row(&self) -> i64 {
        self.database.last_row()
    }

    /// See [`Database::checkpoint`].
    pub(crate) fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        self.database.checkpoint()
    }
}
