//! Which paths of its member's view a home shows, and what is new to it.
//!
//! The view is not copied into a home as a whole: a path appears when the Nix inside learns that it is valid, with all that it
//! refers to. Several paths become one image, which is composed of their objects; derivations, which are many and small, are
//! sent as they are. What was shown once stays, with the contents of that moment, and is not collected while the home lives.

use std::collections::BTreeSet;

use members::Views;
use nix_derivation::StorePath;
use sandbox::Image;
use sandbox::home::SmallFile;
use store::View;

/// Largest derivation that is sent as it is.
const MAX_SMALL: u64 = 256 << 10;
/// Most bytes of derivations in one piece; more go into an image.
const MAX_SENT: u64 = 8 << 20;

pub(crate) struct Shown {
    paths: BTreeSet<StorePath>,
    /// Keeps them.
    views: Views,
}

/// What a home does not show yet.
pub(crate) struct News {
    pub paths: Vec<StorePath>,
    /// With exactly the paths of `names`.
    pub image: Option<Image>,
    pub names: Vec<String>,
    pub files: Vec<SmallFile>,
}

impl Shown {
    pub fn new(views: Views) -> Self {
        Self { paths: BTreeSet::new(), views }
    }

    pub fn has_all(&self, paths: &[StorePath]) -> bool {
        paths.iter().all(|path| self.paths.contains(path))
    }

    /// What is to be shown so that these paths are; `None` if all are, or are not valid. Reads from the store.
    pub fn news(&self, view: &View, paths: &[StorePath]) -> Result<Option<News>, String> {
        let mut wanted =
            paths.iter().filter(|path| !self.paths.contains(path) && view.is_valid(path)).peekable();
        if wanted.peek().is_none() {
            return Ok(None);
        }
        let closure = view.snapshot(wanted).map_err(|missing| missing.to_string())?;
        let mut news = News { paths: Vec::new(), image: None, names: Vec::new(), files: Vec::new() };
        let (mut large, mut sent) = (BTreeSet::new(), 0);
        for (path, (info, _)) in &closure.info().paths {
            if self.paths.contains(path) {
                continue;
            }
            news.paths.push(path.clone());
            if path.is_derivation() && info.nar_size <= MAX_SMALL && sent + info.nar_size <= MAX_SENT {
                // A derivation is a regular file that is not executable, or else it is shown as any other path.
                if let Ok(contents) = closure.read_file(path, MAX_SMALL) {
                    sent += info.nar_size;
                    news.files.push(SmallFile { name: path.to_basename(), contents, executable: false });
                    continue;
                }
            }
            news.names.push(path.to_basename());
            large.insert(path.clone());
        }
        if !large.is_empty() {
            let composed = closure.compose_some(&large).map_err(|error| error.to_string())?;
            news.image = Some(composed.segments.into());
        }
        Ok(Some(news))
    }

    /// These are shown now.
    pub fn has(&mut self, paths: Vec<StorePath>) -> Result<(), String> {
        self.views.now().hold(&paths).map_err(|error| error.to_string())?;
        self.paths.extend(paths);
        Ok(())
    }
}
