//! The embedded store of objects: a directory.
//!
//! ```text
//! <root>/objects/      one file per NAR hash (nixbase32)
//! <root>/new/          complete objects, until they are settled
//! <root>/tmp/          objects being written; emptied when the store is opened
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix_derivation::nixbase32;

use super::removal::Removal;
use super::temporary::Temporary;
use super::{Kept, ObjectFailure, Objects};
use crate::error::FileError;
use crate::format::object::{Object, ObjectError};

/// File name of the object with this NAR hash.
pub(crate) fn object_name(nar_hash: &[u8; 32]) -> String {
    nixbase32::encode(nar_hash)
}

pub(crate) struct Directory {
    root: PathBuf,
    /// `<root>/objects`, open.
    objects: File,
    next_temporary: AtomicU64,
    /// Names below `new/` of the objects that are kept and not yet settled.
    unsettled: Mutex<HashMap<[u8; 32], String>>,
    /// Open objects, so that builds with common inputs share descriptors.
    open: Mutex<HashMap<[u8; 32], Weak<File>>>,
    removal: Arc<Removal>,
}

impl Directory {
    /// Makes the directories that are missing.
    pub(crate) fn create(root: &Path) -> Result<(), FileError> {
        for dir in [root, &root.join("objects"), &root.join("new"), &root.join("tmp")] {
            fs::create_dir_all(dir).map_err(|e| FileError::new("create", dir, e))?;
        }
        Ok(())
    }

    /// Opens a directory that [`super::recovery`] has repaired.
    pub(crate) fn open(root: &Path, removal: &Arc<Removal>) -> Result<Self, FileError> {
        let path = root.join("objects");
        let objects = File::open(&path).map_err(|e| FileError::new("open", &path, e))?;
        Ok(Self {
            root: root.to_owned(),
            objects,
            next_temporary: AtomicU64::new(0),
            unsettled: Mutex::default(),
            open: Mutex::default(),
            removal: Arc::clone(removal),
        })
    }

    fn place(&self, nar_hash: &[u8; 32]) -> PathBuf {
        self.root.join("objects").join(object_name(nar_hash))
    }

    fn unreadable(&self, nar_hash: &[u8; 32], error: ObjectError) -> ObjectFailure {
        match error {
            ObjectError::Io(e) => ObjectFailure::File(FileError::new("read object", self.place(nar_hash), e)),
            ObjectError::Damaged(why) => ObjectFailure::Damaged(why),
        }
    }

    fn new_place(&self, name: &str) -> PathBuf {
        self.root.join("new").join(name)
    }

    fn unsettled(&self) -> MutexGuard<'_, HashMap<[u8; 32], String>> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, nar_hash: &[u8; 32]) -> io::Result<Arc<File>> {
        let lock = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = lock().get(nar_hash).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let new = self.unsettled().get(nar_hash).map(|name| self.new_place(name));
        let file = match new.map(File::open) {
            Some(Ok(file)) => file,
            // The object may just have been settled.
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => File::open(self.place(nar_hash))?,
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

impl Objects for Directory {
    fn create(&self) -> Result<(File, Temporary), FileError> {
        let name = self.next_temporary.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.root.join("tmp").join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(|e| FileError::new("create", &path, e))?;
        Ok((file, Temporary::new(path)))
    }

    fn complete(&self, new: &mut Temporary) -> Result<(), FileError> {
        if let Some(name) = new.path().file_name() {
            let to = self.root.join("new").join(name);
            fs::rename(new.path(), &to).map_err(|e| FileError::new("move an object to", &to, e))?;
            new.moved_to(to);
        }
        Ok(())
    }

    fn keep(&self, new: Temporary, nar_hash: [u8; 32]) -> Option<Kept> {
        let path = new.keep()?;
        let name = path.file_name()?.to_str()?.to_owned();
        self.unsettled().insert(nar_hash, name.clone());
        Some(Kept { nar_hash, name })
    }

    fn settle(&self, Kept { nar_hash, name }: &Kept) -> Result<(), FileError> {
        let to = self.place(nar_hash);
        fs::rename(self.new_place(name), &to).map_err(|e| FileError::new("move an object to", &to, e))?;
        let mut unsettled = self.unsettled();
        // A later file with the same contents is settled in its own turn.
        if unsettled.get(nar_hash).is_some_and(|now| now == name) {
            unsettled.remove(nar_hash);
        }
        Ok(())
    }

    fn open(&self, nar_hash: &[u8; 32]) -> Result<Object, ObjectFailure> {
        let file = self.file(nar_hash).map_err(|e| self.unreadable(nar_hash, e.into()))?;
        let object = Object::open(file).map_err(|e| self.unreadable(nar_hash, e))?;
        if object.nar_hash() != nar_hash {
            return Err(ObjectFailure::Damaged("it is the object of another NAR".to_owned()));
        }
        Ok(object)
    }

    fn measure(&self, nar_hash: &[u8; 32]) -> Result<u64, ObjectFailure> {
        let file = self.file(nar_hash).map_err(|e| self.unreadable(nar_hash, e.into()))?;
        Object::measure(&file).map_err(|e| self.unreadable(nar_hash, e))
    }

    fn remove(&self, nar_hash: &[u8; 32]) {
        self.removal.discard(&self.place(nar_hash));
    }

    /// Flushes the whole file system with one call; that includes the index.
    fn sync(&self) -> Result<(), FileError> {
        rustix::fs::syncfs(&self.objects).map_err(|e| FileError::new("sync", &self.root, e))
    }
}
