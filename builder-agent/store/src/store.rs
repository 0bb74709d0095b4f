//! The store on disk: opening it, repairing it, and the files of objects.
//!
//! ```text
//! <root>/lock          held while the store is open
//! <root>/index.sqlite  which paths exist, for whom, with which object
//! <root>/objects/      one file per NAR hash (nixbase32)
//! <root>/tmp/          objects being written; emptied when the store is opened
//! <root>/trees/        unpacked copies for the namespace backend; a cache
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use nix_derivation::{StorePath, nixbase32};
use rustix::fs::{FlockOperation, flock};

use crate::change::Change;
use crate::commit::Commits;
use crate::db::{Db, Record, SCHEMA};
use crate::error::{FileError, OpenError, RegisterError};
use crate::hold::Holds;
use crate::index::Index;
use crate::object::{Object, ObjectError};
use crate::records;
use crate::register::Viewer;
use crate::remove::{Pins, Remover};
use crate::result::BuildRecord;
use crate::tree;
use crate::types::{Member, Provenance, StoreConfig};
use crate::view::View;

/// One store on disk. Clones share it; the last one, view or reader to go releases the lock.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

/// What opening had to clean up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Temporary files of interrupted writes, removed.
    pub temporary_files: usize,
    /// Objects without a row, removed.
    pub unregistered_objects: usize,
    /// Rows without an object, or with a reference that was lost this way, removed.
    pub lost_paths: usize,
    /// Results, realisations and roots that named what was lost, removed.
    pub lost_records: usize,
}

pub(crate) struct Inner {
    pub(crate) root: PathBuf,
    pub(crate) config: StoreConfig,
    /// Taken for writing only to show what is already durable, and to hide what is going to be deleted.
    index: RwLock<Index>,
    /// Held during a commit and while objects are removed. Whoever wants both takes this one first.
    db: Mutex<Db>,
    pub(crate) commits: Commits,
    pub(crate) pins: Pins,
    pub(crate) holds: Holds,
    objects: File,
    next_temporary: AtomicU64,
    /// Open objects, so that builds with common inputs share descriptors.
    open: Mutex<HashMap<[u8; 32], Weak<File>>>,
    recovery: Recovery,
    /// Ends before the lock is released.
    pub(crate) remover: Remover,
    _lock: File,
}

impl Store {
    /// Opens or creates the store at `root` and repairs what an interrupted process left.
    pub fn open(root: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        for dir in [root, &root.join("objects"), &root.join("tmp"), &root.join("trees")] {
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

        let mut recovery = Recovery { temporary_files: clear(&root.join("tmp"))?, ..Recovery::default() };
        tree::recover(&root.join("trees"))?;
        let db_path = root.join("index.sqlite");
        let failed = |source| OpenError::Index { path: db_path.clone(), source };
        let mut db = match Db::open(&db_path).map_err(failed)? {
            Ok(db) => db,
            Err(found) => return Err(OpenError::Schema { path: db_path.clone(), found, known: SCHEMA }),
        };
        let objects_path = root.join("objects");
        let sizes = object_sizes(&objects_path)?;
        let (kept, lost) = split(db.load().map_err(failed)?, &sizes);
        if !lost.is_empty() {
            tracing::error!(
                paths = lost.len(),
                "objects are missing or cut off; their paths are no longer valid"
            );
            let ids: Vec<i64> = lost.iter().map(|r| r.id).collect();
            db.delete(&ids).map_err(failed)?;
            recovery.lost_paths = lost.len();
        }
        let used: HashSet<[u8; 32]> = kept.iter().map(|r| r.info.nar_hash).collect();
        for hash in sizes.keys().filter(|h| !used.contains(*h)) {
            let path = objects_path.join(object_name(hash));
            fs::remove_file(&path).map_err(|e| FileError::new("remove", path, e))?;
            recovery.unregistered_objects += 1;
        }
        let mut index = Index::default();
        for Record { info, provenance, proven, object_size, .. } in kept {
            index.apply(Change::AddPath { info: Arc::new(info), provenance, proven, object_size });
        }
        let mut stale = Vec::new();
        for change in db.load_rest().map_err(failed)? {
            match undo_if_stale(&index, &change) {
                Some(undo) => stale.push(undo),
                None => index.apply(change),
            }
        }
        if !stale.is_empty() {
            db.write(&stale).map_err(failed)?;
            recovery.lost_records = stale.len();
        }
        let objects = File::open(&objects_path).map_err(|e| FileError::new("open", &objects_path, e))?;
        if recovery != Recovery::default() {
            tracing::info!(?recovery, "cleaned up after an interrupted process");
        }
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                config,
                index: RwLock::new(index),
                db: Mutex::new(db),
                commits: Commits::default(),
                pins: Pins::default(),
                holds: Holds::default(),
                remover: Remover::start(),
                objects,
                next_temporary: AtomicU64::new(0),
                open: Mutex::new(HashMap::new()),
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

    /// What became of the build with this key. All outputs it names can be adopted.
    #[must_use]
    pub fn result(&self, key: &[u8; 32]) -> Option<Arc<BuildRecord>> {
        self.inner.index().result(key).cloned()
    }

    /// Records what became of the build with this key, in place of what was known. Durable when it returns. The
    /// store must have the objects of all outputs; when one goes, the record goes with it.
    pub fn record_result(&self, key: &[u8; 32], record: BuildRecord) -> Result<(), RegisterError> {
        records::record(&self.inner, *key, record)
    }
}

/// How to remove from the disk what names something that is not there.
fn undo_if_stale(index: &Index, change: &Change) -> Option<Change> {
    match change {
        Change::PutResult { key, record } => record
            .objects()
            .any(|object| index.paths_with(object) == 0)
            .then_some(Change::DropResult { key: *key }),
        Change::PutRoot { member, name, path } => index
            .seen_by(member, &[])
            .info(path)
            .is_none()
            .then(|| Change::DropRoot { member: member.clone(), name: name.clone() }),
        Change::AddRealisation { id, provenance: Provenance::Claimed(member), realisation } => index
            .seen_by(member, &[])
            .info(&realisation.path)
            .is_none()
            .then(|| Change::DropRealisation { id: id.clone(), member: Some(member.clone()) }),
        Change::AddRealisation { id, provenance: Provenance::Verified, realisation } => (!index
            .is_verified(&realisation.path))
        .then(|| Change::DropRealisation { id: id.clone(), member: None }),
        _ => None,
    }
}

/// File name of the object with this NAR hash.
pub(crate) fn object_name(nar_hash: &[u8; 32]) -> String {
    nixbase32::encode(nar_hash)
}

/// Removes all files in `dir`, returns how many.
fn clear(dir: &Path) -> Result<usize, FileError> {
    let failed = |e| FileError::new("clean up", dir, e);
    let mut count = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        count += 1;
    }
    Ok(count)
}

/// Sizes of all objects on disk. Files that we did not name are left alone.
fn object_sizes(dir: &Path) -> Result<HashMap<[u8; 32], u64>, FileError> {
    let failed = |e| FileError::new("list", dir, e);
    let mut sizes = HashMap::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hash = entry.file_name().to_str().and_then(|n| nixbase32::decode(n.as_bytes()).ok());
        match hash.and_then(|h| <[u8; 32]>::try_from(h).ok()) {
            Some(hash) => {
                sizes.insert(hash, entry.metadata().map_err(failed)?.len());
            }
            None => tracing::warn!(file = %entry.path().display(), "not an object, left alone"),
        }
    }
    Ok(sizes)
}

/// Separates the rows that can be kept: their object is there, whole, and so are all their references.
fn split(records: Vec<Record>, sizes: &HashMap<[u8; 32], u64>) -> (Vec<Record>, Vec<Record>) {
    let (mut kept, mut lost): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|r| sizes.get(&r.info.nar_hash) == Some(&r.object_size));
    // Losing one path can take a reference from others; usually nothing is lost and this ends at once.
    while !lost.is_empty() {
        let there: HashSet<(StorePath, Provenance)> =
            kept.iter().map(|r| (r.info.path.clone(), r.provenance.clone())).collect();
        let whole = |r: &Record| {
            r.info.references.iter().all(|p| {
                there.contains(&(p.clone(), Provenance::Verified))
                    || there.contains(&(p.clone(), r.provenance.clone()))
            })
        };
        let before = lost.len();
        let (still, gone): (Vec<_>, Vec<_>) = kept.into_iter().partition(whole);
        kept = still;
        lost.extend(gone);
        if lost.len() == before {
            break;
        }
    }
    (kept, lost)
}

/// A file below `tmp/` that goes away unless it is renamed.
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
}

impl Inner {
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

    /// Moves a complete, synced object to its name. If there is one already the new one goes, but later: neither
    /// looking first nor deleting now, since both take a time that tells an uploader what others have.
    pub(crate) fn keep(&self, mut temporary: Temporary, nar_hash: &[u8; 32]) -> Result<(), FileError> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let to = self.object_path(nar_hash);
        match renameat_with(CWD, temporary.path(), CWD, &to, RenameFlags::NOREPLACE) {
            Ok(()) => temporary.path = None,
            Err(rustix::io::Errno::EXIST) => self.remover.remove(temporary.path.take()),
            // A file system without that flag.
            Err(rustix::io::Errno::INVAL) => {
                fs::rename(temporary.path(), &to).map_err(|e| FileError::new("move an object to", &to, e))?;
                temporary.path = None;
            }
            Err(e) => return Err(FileError::new("move an object to", &to, e)),
        }
        Ok(())
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

    /// Makes the names of all kept objects durable.
    pub(crate) fn sync_objects(&self) -> Result<(), FileError> {
        self.objects.sync_all().map_err(|e| FileError::new("sync", self.root.join("objects"), e))
    }

    /// Makes everything written to the file system durable; cheaper than syncing many files one by one.
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
        let file = Arc::new(File::open(self.object_path(nar_hash))?);
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
