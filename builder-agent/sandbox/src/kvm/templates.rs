//! Templates: guests that have booted once and wait for their task, kept as memory and device state. A VM of the same shape starts
//! as a copy of one, in the time of a few page faults, and not by booting a kernel.
//!
//! ```text
//! first VM of a shape ── boots, as without templates
//!        └─ meanwhile: another one boots to its hello, stands still, is written down, ends
//!                      one copy of it is started and says hello: it is a template from now on
//! later VMs ─────────── memory: the template's file, copy-on-write; devices, interrupts, vCPUs: set to where it stood still;
//!                       the seed and the time of its own are the first bytes on its stream (guest: machine/identity.rs)
//! ```
//! A template has seen nothing of a member's: it was made before there was a job. Its closure is a device that its guest has not
//! looked at, so that each copy can have another closure. It belongs to one kernel, initrd and [`Shape`]; when one of them is
//! another, so is the template.
//! Whatever goes wrong with a template, the VM boots.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use guest::protocol::{self, Bytes, Resume, SEED, Tag};

use super::Launcher;
use super::handover::Shape;
use super::making;
use crate::cancel::Cancel;
use crate::error::SandboxError;

/// What a template was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub shape: Shape,
    kernel: FileId,
    initrd: FileId,
}

/// A file, and one state of its contents: device, inode, size, change of the inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileId([u64; 3], (i64, i64));

impl FileId {
    fn of(path: &Path) -> io::Result<FileId> {
        let meta = fs::metadata(path)?;
        Ok(FileId([meta.dev(), meta.ino(), meta.size()], (meta.ctime(), meta.ctime_nsec())))
    }
}

/// A guest that stands still.
pub struct Template {
    pub(super) key: Key,
    /// Read-only, here and in every copy.
    pub memory: File,
    /// The parts of `memory` that are not zeros.
    pub parts: Vec<(u64, u64)>,
    /// The pages of them that a copy writes to until its builder runs. It gets them in advance.
    pub written: Vec<(u64, u64)>,
    /// For `handover`.
    pub snapshot: File,
}

/// The templates of one backend.
pub struct Templates {
    shared: Arc<Shared>,
}

struct Shared {
    launcher: Arc<Launcher>,
    most: usize,
    kept: Mutex<Kept>,
    /// Ends what is being made.
    cancel: Cancel,
}

#[derive(Default)]
struct Kept {
    /// The one that was used last is the last.
    all: Vec<(Key, Attempt)>,
    is_making: bool,
}

enum Attempt {
    Made(Arc<Template>),
    /// The reason, which was logged. It is not tried again.
    Failed(String),
}

impl Templates {
    /// Keeps at most `most` at a time; with 0, every VM boots.
    pub fn new(launcher: Arc<Launcher>, most: usize) -> Templates {
        let (kept, cancel) = (Mutex::default(), Cancel::new());
        Templates { shared: Arc::new(Shared { launcher, most, kept, cancel }) }
    }

    /// The template for a VM of this shape, if there is one.
    pub fn find(&self, shape: &Shape) -> Option<Arc<Template>> {
        let key = self.shared.key(shape).ok()?;
        let mut kept = self.shared.lock();
        let index = kept.all.iter().position(|(other, _)| *other == key)?;
        let found = kept.all.remove(index);
        let template = match &found.1 {
            Attempt::Made(template) => Some(template.clone()),
            Attempt::Failed(_) => None,
        };
        kept.all.push(found);
        template
    }

    /// Makes a template of this shape, in a thread of its own, if there is none and no other one is being made.
    pub fn want(&self, shape: &Shape) {
        let Some(key) = self.shared.begin(shape) else { return };
        let shared = self.shared.clone();
        let work = move || shared.make(key);
        if std::thread::Builder::new().name("template".to_owned()).spawn(work).is_err() {
            self.shared.lock().is_making = false;
        }
    }

    /// Likewise, and returns when that is done. The error says why there is none now.
    pub fn make(&self, shape: &Shape) -> Result<(), String> {
        if let Some(key) = self.shared.begin(shape) {
            self.shared.make(key);
        }
        let key = self.shared.key(shape).map_err(|e| e.to_string())?;
        match self.shared.lock().all.iter().find(|(other, _)| *other == key) {
            Some((_, Attempt::Made(_))) => Ok(()),
            Some((_, Attempt::Failed(why))) => Err(why.clone()),
            None => Err("no template is made now".to_owned()),
        }
    }

    /// A copy of this template did not run. The next VM of its shape boots.
    pub fn discard(&self, template: &Template, error: &SandboxError) {
        let Shape { vcpus, memory_mib, .. } = template.key.shape;
        tracing::warn!(%error, vcpus, memory_mib, "a copy of a template did not start; VMs of its shape boot from now on");
        let mut kept = self.shared.lock();
        if let Some((_, attempt)) = kept.all.iter_mut().find(|(key, _)| *key == template.key) {
            *attempt = Attempt::Failed(error.to_string());
        }
    }
}

impl Drop for Templates {
    /// Nobody uses what is being made.
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, shape: &Shape) -> io::Result<Key> {
        let config = &self.launcher.config;
        let (kernel, initrd) = (FileId::of(&config.kernel)?, FileId::of(&config.initrd)?);
        Ok(Key { shape: shape.clone(), kernel, initrd })
    }

    /// For [`Shared::make`], which must follow; `None` if there is nothing to do.
    fn begin(&self, shape: &Shape) -> Option<Key> {
        let key = self.key(shape).ok()?;
        let mut kept = self.lock();
        let is_known = kept.all.iter().any(|(other, _)| *other == key);
        if self.most == 0 || is_known || kept.is_making || self.cancel.is_cancelled() {
            return None;
        }
        kept.is_making = true;
        Some(key)
    }

    fn make(&self, key: Key) {
        let began = Instant::now();
        let Shape { vcpus, memory_mib, .. } = key.shape;
        let made = making::template(&self.launcher, &key, &self.cancel);
        let mut kept = self.lock();
        kept.is_making = false;
        let attempt = match made {
            Ok(template) => {
                let bytes: u64 = template.parts.iter().map(|(_, len)| len).sum();
                let (mib, took_ms) = (bytes >> 20, began.elapsed().as_millis() as u64);
                tracing::info!(
                    vcpus,
                    memory_mib,
                    mib,
                    took_ms,
                    "VMs of this shape start as copies of a template"
                );
                Attempt::Made(Arc::new(template))
            }
            Err(SandboxError::Cancelled) => return,
            Err(error) => {
                tracing::warn!(%error, vcpus, memory_mib, "a template could not be made; VMs of its shape boot");
                Attempt::Failed(error.to_string())
            }
        };
        kept.all.push((key, attempt));
        let surplus = kept.all.len().saturating_sub(self.most);
        kept.all.drain(..surplus);
    }
}

/// The first bytes for a copy: what makes it one of its own.
pub fn resume() -> io::Result<Vec<u8>> {
    let mut seed = vec![0; SEED];
    // So few bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let unix_ns = u64::try_from(now.as_nanos()).map_err(io::Error::other)?;
    protocol::json_frame(Tag::Resume, &Resume { seed: Bytes(seed), unix_ns }).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "templates_test.rs"]
mod tests;
