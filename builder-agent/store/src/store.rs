//! The store on disk: opening it, and the files of objects. Not here: repairing it (`recover`).
//!
//! ```text
//! <root>/lock          held while the store is open
//! <root>/durable       how much of it is on stable storage (`marker`)
//! <root>/index.sqlite  which paths exist, for whom, with which object
//! <root>/objects/      one file per NAR hash (nixbase32)
//! <root>/new/          complete ones, until the next pass of the housekeeper (`keeper`)
//! <root>/tmp/          objects being written; emptied when the store is opened
//! <root>/trees/        unpacked copies for the namespace backend; a cache
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use nix_derivation::nixbase32;
use rustix::fs::{FlockOperation, flock};

use crate::error::{FileError, OpenError, RegisterError};
use crate::format::object::{Object, ObjectError};
use crate::index::change::Change;
use crate::index::commit::Commits;
use crate::index::database::Db;
use crate::index::holds::Holds;
use crate::index::memory::Index;
use crate::objects::removal::{Pins, Remover};
use crate::objects::trees;
use crate::types::result::BuildRecord;
use crate::types::{Durability, Member, StoreConfig};
use crate::upkeep::keeper::{self, Keeper, WorkList};
use crate::upkeep::marker::{Marker, MarkerFile};
use crate::upkeep::recovery::{self, Found, Recovery};
use crate::views::records;
use crate::views::register::Viewer;
use crate::views::view::View;

/// One store on disk. Clones share it; the last one, view or reader to go releases the lock.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// What is open as long as anybody uses the store.
pub(crate) struct Inner {
    /// Ends first, and needs the shelf until then.
    _keeper: Keeper,
    shelf: Arc<Shelf>,
    pub(crate) commits: Commits,
    pub(crate) holds: Holds,
    recovery: Recovery,
    /// Released last.
    _lock: File,
}

impl Deref for Inner {
    type Target = Shelf;

    fn deref(&self) -> &Shelf {
        &self.shelf
    }
}

/// Objects and their index: what the housekeeper's thread shares with everybody.
pub(crate) struct Shelf {
    pub(crate) root: PathBuf,
    pub(crate) config: StoreConfig,
    /// Taken for writing only to show what is already committed, and to hide what is going to be deleted.
    index: RwLock<Index>,
    /// Held during a commit and while objects are removed. Whoever wants both takes this one first.
    db: Mutex<Db>,
    pub(crate) pins: Pins,
    pub(crate) work: WorkList,
    pub(crate) marker: MarkerFile,
    /// As the marker says.
    pub(crate) through: AtomicI64,
    objects: File,
    next_temporary: AtomicU64,
    /// Objects with rows that the housekeeper has not given their names yet: where they are.
    unsettled: Mutex<HashMap<[u8; 32], PathBuf>>,
    /// Open objects, so that builds with common inputs share descriptors.
    open: Mutex<HashMap<[u8; 32], Weak<File>>>,
    /// Ends before the lock is released.
    pub(crate) remover: Remover,
}

impl Store {
    /// Opens or creates the store at `root` and repairs what an interrupted process left.
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        for dir in [root, &root.join("objects"), &root.join("new"), &root.join("tmp"), &root.join("trees")] {
            fs::create_dir_all(dir).map_err(|e| FileError::new("create", dir, e))?;
        }
        let lock_path = root.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|e| FileError::new("open", &lock_path, e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse(root.to_owned())),
            Err(e) => return Err(FileError::new("lock", lock_path, e).into()),
        }

        let (file, marker) = MarkerFile::open(root)?;
        trees::recover(&root.join("trees"))?;
        let durability = config.durability;
        let Found { db, index, recovery, unregistered } =
            recovery::recover(root, durability, marker.as_ref())?;
        let objects_path = root.join("objects");
        let objects = File::open(&objects_path).map_err(|e| FileError::new("open", &objects_path, e))?;
        let through = db.last_row();
        let shelf = Shelf {
            root: root.to_owned(),
            config,
            index: RwLock::new(index),
            db: Mutex::new(db),
            pins: Pins::default(),
            work: WorkList::default(),
            marker: file,
            through: AtomicI64::new(through),
            objects,
            next_temporary: AtomicU64::new(0),
            unsettled: Mutex::default(),
            open: Mutex::default(),
            remover: Remover::start(),
        };
        // Before anything is written that the marker of the process before says nothing about, and before anything
        // is removed that it vouches for.
        if durability == Durability::Flush {
            shelf.sync_file_system()?;
        }
        shelf.marker.write(&Marker::now(durability, through))?;
        for hash in unregistered {
            shelf.discard(&shelf.object_path(&hash));
        }
        let shelf = Arc::new(shelf);
        Ok(Self {
            inner: Arc::new(Inner {
                _keeper: Keeper::start(&shelf),
                shelf,
                commits: Commits::default(),
                holds: Holds::default(),
                recovery,
                _lock: lock,
            }),
        })
    }

    /// What [`Store::open`] had to clean up.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.inner.recovery
    }

    /// The store as `member` may see it.
    #[must_use]
    pub fn view(&self, member: &Member) -> View {
        self.view_sharing(member, &[])
    }

    /// The store as `member` may see it who shares with `others`, and they with them. Where several know a path,
    /// Verified comes first, then the member's own, then the others' in their order.
    #[must_use]
    pub fn view_sharing(&self, member: &Member, others: &[Member]) -> View {
        let others = others.iter().filter(|other| *other != member).cloned().collect();
        View::new(Arc::clone(&self.inner), Viewer { member: member.clone(), others }, None)
    }

    /// Does now what is otherwise done every few seconds: objects get their names, what nobody names any more goes, and,
    /// where state survives a reboot, all that was committed is made durable. An error means that it may not be.
    pub fn tidy(&self) -> Result<(), RegisterError> {
        keeper::pass(&self.inner)
    }

    /// What became of the build with this key. All outputs it names can be adopted.
    #[must_use]
    pub fn result(&self, key: &[u8; 32]) -> Option<Arc<BuildRecord>> {
        let index = self.inner.index();
        // When its last path goes, so does the result; the row follows later (`removal::removed`).
        index.result(key).filter(|record| record.objects().all(|o| index.paths_with(o) > 0)).cloned()
    }

    /// Records what became of the build with this key, in place of what was known. The
    /// store must have the objects of all outputs; when one goes, the record goes with it.
    pub fn record_result(&self, key: &[u8; 32], record: BuildRecord) -> Result<(), RegisterError> {
        records::record(&self.inner, *key, record)
    }
}

/// File name of the object with this NAR hash.
pub(crate) fn object_name(nar_hash: &[u8; 32]) -> String {
    nixbase32::encode(nar_hash)
}

/// A file below `tmp/` or `new/` that goes away unless it is kept.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: Option<PathBuf>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(e) = fs::remove_file(&path)
        {
            // The next start removes it.
            tracing::warn!(file = %path.display(), "cannot remove temporary file: {e}");
        }
    }
}

impl Temporary {
    pub(crate) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// It is complete, and may get a row: moves it to where a start looks for such files.
    pub(crate) fn complete(&mut self, store: &Shelf) -> Result<(), FileError> {
        if let Some(name) = self.path().file_name() {
            let to = store.root.join("new").join(name);
            fs::rename(self.path(), &to).map_err(|e| FileError::new("move an object to", &to, e))?;
            self.path = Some(to);
        }
        Ok(())
    }
}

impl Shelf {
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        // A panic between two insertions leaves an index that lacks paths, not a wrong one.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For those who lead a commit, and those who remove objects: whoever holds the lock of the database.
    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what is durable.
    pub(crate) fn apply(&self, changes: impl Iterator<Item = Change>) {
        let mut index = self.index_mut();
        changes.for_each(|change| index.apply(change));
    }

    pub(crate) fn forget_object(&self, nar_hash: &[u8; 32]) {
        self.index_mut().forget_object(nar_hash);
    }

    pub(crate) fn db(&self) -> MutexGuard<'_, Db> {
        // A transaction that was not committed has been rolled back by its drop.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new file below `tmp/`.
    pub(crate) fn temporary(&self) -> Result<(File, Temporary), FileError> {
        let name = self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.root.join("tmp").join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|e| FileError::new("create", &path, e))?;
        Ok((file, Temporary { path: Some(path) }))
    }

    pub(crate) fn object_path(&self, nar_hash: &[u8; 32]) -> PathBuf {
        self.root.join("objects").join(object_name(nar_hash))
    }

    /// Notes complete objects that rows name now, with the sizes of their files. The database is locked.
    pub(crate) fn keep(&self, objects: Vec<(Temporary, [u8; 32], u64)>) {
        let bytes = objects.iter().map(|(.., size)| size).sum();
        let places = objects.into_iter().filter_map(|(mut file, hash, _)| Some((hash, file.path.take()?)));
        let places: Vec<_> = places.collect();
        self.unsettled().extend(places.iter().cloned());
        self.work.committed(places, bytes);
    }

    /// Gives an object below `new/` its name, in place of what may be there with the same contents.
    pub(crate) fn settle(&self, nar_hash: &[u8; 32], place: &Path) -> Result<(), FileError> {
        let to = self.object_path(nar_hash);
        fs::rename(place, &to).map_err(|e| FileError::new("move an object to", &to, e))?;
        let mut unsettled = self.unsettled();
        // A later one with these contents has its turn later.
        if unsettled.get(nar_hash).is_some_and(|now| now == place) {
            unsettled.remove(nar_hash);
        }
        Ok(())
    }

    fn unsettled(&self) -> MutexGuard<'_, HashMap<[u8; 32], PathBuf>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes something out of its place, to be removed when there is time.
    pub(crate) fn discard(&self, place: &Path) {
        let name = format!("old-{}", self.next_temporary.fetch_add(1, Ordering::Relaxed));
        let aside = self.root.join("trees").join(name);
        match fs::rename(place, &aside) {
            Ok(()) => self.remover.remove(Some(aside)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The next start removes an object that nothing names; a tree is only a cache.
            Err(e) => tracing::warn!(file = %place.display(), "cannot remove: {e}"),
        }
    }

    /// Makes everything durable that was written to the file system.
    pub(crate) fn sync_file_system(&self) -> Result<(), FileError> {
        rustix::fs::syncfs(&self.objects).map_err(|e| FileError::new("sync", &self.root, e))
    }

    /// The object of a valid path.
    pub(crate) fn object(&self, nar_hash: &[u8; 32]) -> Result<Object, ObjectFailure> {
        let failed = |e: io::Error| FileError::new("read object", self.object_path(nar_hash), e);
        let file = self.object_file(nar_hash).map_err(failed)?;
        let object = Object::open(file).map_err(|e| match e {
            ObjectError::Io(e) => ObjectFailure::File(failed(e)),
            ObjectError::Damaged(why) => ObjectFailure::Damaged(why),
        })?;
        if object.nar_hash() != nar_hash {
            return Err(ObjectFailure::Damaged("it is the object of another NAR".to_owned()));
        }
        Ok(object)
    }

    fn object_file(&self, nar_hash: &[u8; 32]) -> io::Result<Arc<File>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(nar_hash).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let place = self.unsettled().get(nar_hash).cloned();
        let file = match place.map(File::open) {
            Some(Ok(file)) => file,
            // It may just have got its name.
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => File::open(self.object_path(nar_hash))?,
        };
        let file = Arc::new(file);
        let mut open = lock();
        if open.len() == open.capacity() {
            open.retain(|_, file| file.strong_count() > 0);
        }
        open.insert(*nar_hash, Arc::downgrade(&file));
        Ok(file)
    }
}

/// Why an object cannot be used.
pub(crate) enum ObjectFailure {
    File(FileError),
    Damaged(String),
}

impl From<FileError> for ObjectFailure {
    fn from(e: FileError) -> Self {
        Self::File(e)
    }
}
