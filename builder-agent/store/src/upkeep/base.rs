//! The open store: the state that all views share.
//!
//! ```text
//! <root>/lock          held while the store is open
//! <root>/durable       how much of it is on stable storage (`marker`)
//! <root>/index.sqlite  which paths exist, for whom, with which object
//! <root>/objects/      one file per NAR hash, with `new/` and `tmp/` (`objects::directory`)
//! <root>/trees/        unpacked copies for the namespace backend; a cache (`objects::trees`)
//! ```

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::evict::looks::Looks;
use super::keeper::Keeper;
use super::marker::{Marker, MarkerFile};
use super::recovery::{self, Found, Recovery};
use super::room::{RoomKeeper, Rooms};
use super::work::Upkeep;
use crate::config::{Durability, StoreConfig};
use crate::error::{FileError, OpenError};
use crate::index::Index;
use crate::index::database::Database;
use crate::objects::Objects;
use crate::objects::directory::Directory;
use crate::objects::removal::Removal;
use crate::objects::trees::{self, Trees};

/// One open store. It closes when its last user drops it.
pub(crate) struct Base {
    /// Dropped first, and then the housekeeper: its last pass needs all other fields.
    _room_keeper: RoomKeeper,
    _keeper: Keeper,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) looks: Looks,
    pub(crate) upkeep: Arc<Upkeep>,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) trees: Arc<Trees>,
    pub(crate) index: Arc<Index>,
    pub(crate) config: StoreConfig,
    /// Whether no file of the store is on a disk.
    pub(crate) in_memory: bool,
    pub(crate) recovery: Recovery,
    /// Dropped last.
    _lock: File,
}

impl Base {
    /// Opens or creates the store at `root` and repairs what an interrupted process left.
    pub(crate) fn open(root: &Path, config: StoreConfig) -> Result<Self, OpenError> {
        let trees_place = root.join("trees");
        Directory::create(root)?;
        fs::create_dir_all(&trees_place).map_err(|e| FileError::new("create", &trees_place, e))?;
        let lock = lock(root)?;
        let (marker, before) = MarkerFile::open(root)?;
        trees::recover(&trees_place)?;
        let durability = config.durability;
        let Found { database, memory, recovery, unregistered } =
            recovery::recover(root, durability, before.as_ref())?;

        let removal = Arc::new(Removal::start(trees_place.clone()));
        let objects: Arc<dyn Objects> = Arc::new(Directory::open(root, &removal)?);
        // Before the first write, about which the previous process's marker says nothing, and before anything
        // is removed that the marker covers.
        if durability == Durability::Flush {
            objects.sync()?;
        }
        let through = database.last_row();
        marker.write(&Marker::now(durability, through))?;
        unregistered.iter().for_each(|hash| objects.remove(hash));

        let trees = Arc::new(Trees::new(trees_place, &removal));
        let index = Arc::new(Index::new(memory, Box::new(database), config.long_work));
        let parts = (Arc::clone(&objects), Arc::clone(&trees), Arc::clone(&index));
        let upkeep = Arc::new(Upkeep::new(parts, durability, marker, through));
        let keeper = Keeper::start(&upkeep);
        let rooms = Arc::new(Rooms::open(root, &config)?);
        let room_keeper = RoomKeeper::start(&rooms, &upkeep);
        let in_memory = is_in_memory(root)?;
        Ok(Self {
            _room_keeper: room_keeper,
            _keeper: keeper,
            rooms,
            looks: Looks::default(),
            upkeep,
            objects,
            trees,
            index,
            config,
            in_memory,
            recovery,
            _lock: lock,
        })
    }
}

/// Whether the file system keeps everything in memory: `TMPFS_MAGIC` and `RAMFS_MAGIC` of linux/magic.h.
fn is_in_memory(path: &Path) -> Result<bool, FileError> {
    let stat = rustix::fs::statfs(path).map_err(|e| FileError::new("look at", path, e))?;
    // The type of the field depends on the architecture.
    Ok(matches!(stat.f_type as u32, 0x0102_1994 | 0x8584_58f6))
}

/// Locks the store against other processes.
fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| FileError::new("open", &path, e))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(root.to_owned())),
        Err(e) => Err(FileError::new("lock", path, e).into()),
    }
}
