//! Which paths exist, for whom, and with which object.
//!
//! Every question is answered from [`memory`]. Every change is written to a [`database`] first and then made in memory;
//! [`commit`] does both, for all who wait at once. Temporary roots ([`holds`]) are in memory only.
//!
//! The seam for another database is [`database::Database`], below the maps in memory: questions cost a lock for reading
//! and no call through a trait, whatever the database is.
//!
//! Not here: files of objects, and the rules that decide who may see and change what (`views`).

pub(crate) mod change;
pub(crate) mod commit;
pub(crate) mod database;
pub(crate) mod holds;
pub(crate) mod memory;
pub(crate) mod rows;
pub(crate) mod sqlite;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::DatabaseError;
use change::Change;
use commit::Commits;
use database::Database;
use holds::Holds;
use memory::Memory;

/// The index of one store.
pub(crate) struct Index {
    /// Locked for writing only to show what is already written, and to hide what is going to be deleted.
    memory: RwLock<Memory>,
    /// Locked during a commit and while objects are removed. Whoever needs both locks takes this one first.
    database: Mutex<Box<dyn Database>>,
    commits: Commits,
    holds: Arc<Holds>,
    /// Whether there was a commit since [`Locked::take_committed`].
    committed: AtomicBool,
}

impl Index {
    /// An index whose `database` has what `memory` has.
    pub(crate) fn new(memory: Memory, database: Box<dyn Database>) -> Self {
        Self {
            memory: RwLock::new(memory),
            database: Mutex::new(database),
            commits: Commits::default(),
            holds: Arc::default(),
            committed: AtomicBool::new(false),
        }
    }

    /// The index as it is now. Whoever has it must not wait for anything.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Memory> {
        // A panic between two insertions leaves maps that lack paths, not wrong ones.
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody changes the index, and keeps everybody else from changing it.
    pub(crate) fn lock(&self) -> Locked<'_> {
        // A transaction that was not committed has been rolled back by its drop.
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { index: self, database }
    }

    /// From now on `database` is asked.
    #[cfg(test)]
    pub(crate) fn replace_database(&self, database: Box<dyn Database>) {
        *self.lock().database = database;
    }

    /// Temporary roots.
    pub(crate) fn holds(&self) -> &Arc<Holds> {
        &self.holds
    }
}

/// The index, which nobody else can change meanwhile. Questions can still be asked of it.
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

    /// Writes all changes or none. Nobody sees them before [`Locked::show`].
    pub(crate) fn write<'c>(
        &mut self,
        changes: impl IntoIterator<Item = &'c Change>,
    ) -> Result<(), DatabaseError> {
        self.database.write(&mut changes.into_iter())
    }

    /// Makes in memory what is written.
    pub(crate) fn show(&self, changes: Vec<Change>) {
        let mut memory = self.memory_mut();
        changes.into_iter().for_each(|change| memory.apply(change));
    }

    fn note_commit(&self) {
        self.index.committed.store(true, Ordering::Relaxed);
    }

    /// Whether there was a commit since this was asked before.
    pub(crate) fn take_committed(&self) -> bool {
        self.index.committed.swap(false, Ordering::Relaxed)
    }

    /// Number of the last row of a path, there or gone.
    pub(crate) fn last_row(&self) -> i64 {
        self.database.last_row()
    }

    /// See [`Database::checkpoint`].
    pub(crate) fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        self.database.checkpoint()
    }
}
