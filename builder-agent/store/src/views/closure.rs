//! One consistent closure: some paths of a view and all that they refer to, at one moment.
//!
//! The meaning of a path in a view can change while a build is prepared: a Verified path appears in place of
//! a claim. Therefore a build takes its inputs from one snapshot, contents and provenance alike; its result
//! is Verified only if all paths of that snapshot were.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;

use crate::error::{ComposeError, FileError, MissingPath, NarError, TreeError};
use crate::format::object::{ComposeFailure, Composed, Composer, memory_file};
use crate::index::holds::Hold;
use crate::objects::ObjectFailure;
use crate::objects::contents::Contents;
use crate::objects::room::{Room, Writer};
use crate::objects::trees::Tree;
use crate::types::{Member, Provenance};
use crate::upkeep::base::Base;
use crate::upkeep::work::Pinned;

/// Paths of a view at one moment, with their infos. The NAR hashes determine all contents, but the contents
/// are not part of it: this is plain data, which can be sent elsewhere and outlives the paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosureInfo {
    /// In order; the provenance of each path is the one that the view's member saw.
    pub paths: BTreeMap<StorePath, (Arc<PathInfo>, Provenance)>,
}

impl ClosureInfo {
    /// The info of one of its paths.
    #[must_use]
    pub fn get(&self, path: &StorePath) -> Option<&Arc<PathInfo>> {
        self.paths.get(path).map(|(info, _)| info)
    }

    /// Whether all its paths were Verified.
    #[must_use]
    pub fn all_verified(&self) -> bool {
        self.paths.values().all(|(_, provenance)| *provenance == Provenance::Verified)
    }
}

/// The contents of the paths in a [`ClosureInfo`]. While this lives the member's own paths are not collected,
/// and all contents stay readable, even if their owners delete them.
pub struct Closure {
    base: Arc<Base>,
    info: Arc<ClosureInfo>,
    _pinned: Pinned,
    _held: Hold,
}

impl Closure {
    pub(crate) fn new(
        base: &Arc<Base>,
        member: &Member,
        paths: BTreeMap<StorePath, (Arc<PathInfo>, Provenance)>,
    ) -> Self {
        let pinned = Pinned::new(&base.upkeep, paths.values().map(|(info, _)| info.nar_hash).collect());
        // Verified paths, too: what is built from them refers to them.
        let held = Hold::new(base.index.holds(), member, paths.keys().cloned().collect());
        let info = Arc::new(ClosureInfo { paths });
        Self { base: Arc::clone(base), info, _pinned: pinned, _held: held }
    }

    /// Its paths and their infos.
    #[must_use]
    pub fn info(&self) -> &Arc<ClosureInfo> {
        &self.info
    }

    /// An EROFS image whose root directory lists exactly the basenames of its paths. Only metadata is generated;
    /// the data stays in the objects. Keeps one open descriptor per path while it lives.
    pub fn compose(&self) -> Result<Composed, ComposeError> {
        self.compose_of(|_| true)
    }

    /// The same with those of its paths that are in `some`.
    pub fn compose_some(&self, some: &BTreeSet<StorePath>) -> Result<Composed, ComposeError> {
        self.compose_of(|path| some.contains(path))
    }

    fn compose_of(&self, of: impl Fn(&StorePath) -> bool) -> Result<Composed, ComposeError> {
        // A StorePath sorts like its basename, so the names are in the order that the directory needs.
        let infos = self.info.paths.iter().filter(|(path, _)| of(path));
        let infos: Vec<&Arc<PathInfo>> = infos.map(|(_, (info, _))| info).collect();
        let damaged = |i: usize, why| ComposeError::Damaged { path: infos[i].path.clone(), why };
        let mut composer = Composer::new();
        for (i, info) in infos.iter().enumerate() {
            let object = self.base.objects.open(&info.nar_hash).map_err(|e| match e {
                ObjectFailure::File(e) => ComposeError::File(e),
                ObjectFailure::Damaged(why) => damaged(i, why),
            })?;
            composer.add(info.path.to_basename(), object);
        }
        let image = composer.finish().map_err(|e| match e {
            ComposeFailure::Damaged(i, why) => damaged(i, why),
            ComposeFailure::TooLarge(blocks) => {
                ComposeError::TooLarge { paths: infos.len(), blocks, limit: u64::from(u32::MAX) }
            }
        })?;
        let meta =
            memory_file(&image.meta).map_err(|e| FileError::new("write closure metadata to", "memory", e))?;
        let mut segments = vec![(Arc::new(meta), 0, image.meta.len() as u64)];
        segments.extend(image.data.into_iter().map(|(file, len)| (file, crate::format::object::BLOCK, len)));
        let len = segments.iter().map(|(_, _, len)| len).sum();
        Ok(Composed { segments, len })
    }

    /// The bytes of one of its paths that is a single file, at most `max`.
    pub fn read_file(&self, path: &StorePath, max: u64) -> Result<Vec<u8>, NarError> {
        let info = self.info.get(path).ok_or_else(|| MissingPath(path.clone()))?;
        Contents::of(&*self.base.objects, info)?.read_file(max)
    }

    /// An unpacked, read-only copy of one of its paths, made once and kept.
    pub fn tree(&self, path: &StorePath) -> Result<PathBuf, TreeError> {
        let (info, provenance) = self.info.paths.get(path).ok_or_else(|| MissingPath(path.clone()))?;
        if !self.base.trees.has(&Tree::of(info.nar_hash, provenance)) {
            let room = self.base.rooms.wait_for(info.nar_size, Writer::Build);
            room.map_err(|e| FileError::new("unpack", path.to_absolute_path(), e))?;
        }
        self.base.trees.unpacked(&*self.base.objects, info, provenance)
    }
}
