//! Hashes of the derivations in a view, modulo fixed outputs: input-addressed paths and realisations are made of them.
//!
//! A hash is a pure function ([`nix::modulo`]) of the contents of a `.drv` and of all `.drv` files below it. Those are
//! content-addressed, so a hash computed from Verified files alone holds for every member and is kept; every other hash
//! is dropped with its request.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use nix::derivation::Derivation;
use nix::modulo::{self, Hashes};
use nix_derivation::StorePath;
use shares::budget::Charge;
use store::{Provenance, View};

use super::Failure;
use super::recipe::MAX_DRV_BYTES;
use super::study::Study;
use super::weight;

/// Derivations whose hashes are kept, about 150 bytes each.
const MAX_KEPT: usize = 300_000;
/// Memory that a request keeps for a derivation with hashes: the hashes, the path twice, places in maps.
const HASHES_BYTES: u64 = 512;
/// Derivations below one derivation. A NixOS system with everything from source has about 20,000.
const MAX_BELOW: usize = 200_000;
/// Text of the derivations on one way down, in bytes: each is held, parsed, until all below it is done. A way has some
/// hundred derivations of some kilobytes each.
const MAX_OPEN: usize = 128 << 20;

/// Hashes of derivations read from Verified paths. Shared by all sessions.
#[derive(Debug, Default)]
pub struct Known(Mutex<HashMap<StorePath, Arc<Hashes>>>);

impl Known {
    fn get(&self, drv: &StorePath) -> Option<Arc<Hashes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(drv).cloned()
    }

    fn put(&self, drv: &StorePath, hashes: &Arc<Hashes>) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= MAX_KEPT {
            map.clear();
        }
        map.insert(drv.clone(), hashes.clone());
    }
}

/// Computes hashes for one request. Blocking: reads `.drv` files of the view.
pub struct Hasher<'a> {
    view: &'a View,
    known: &'a Known,
    study: &'a Study,
    /// Hashes that come from Claimed files too, so they hold for this member and this request only.
    local: HashMap<StorePath, Arc<Hashes>>,
}

/// A derivation whose inputs are being processed.
struct Open {
    path: StorePath,
    drv: Parsed,
    verified: bool,
    inputs: Vec<StorePath>,
}

/// A parsed `.drv` file.
pub struct Parsed {
    pub derivation: Derivation,
    /// Bytes of the file's text.
    pub text: usize,
    /// Estimated memory of the derivation.
    pub weight: u64,
    /// The charge for that memory.
    pub room: Option<Charge>,
}

impl<'a> Hasher<'a> {
    pub fn new(view: &'a View, known: &'a Known, study: &'a Study) -> Self {
        Self { view, known, study, local: HashMap::new() }
    }

    fn done(&self, drv: &StorePath) -> Option<Arc<Hashes>> {
        self.local.get(drv).cloned().or_else(|| self.known.get(drv))
    }

    /// Hashes of the valid derivation at `drv`. Fails if a derivation below is missing, malformed, or depends on itself.
    pub fn of(&mut self, drv: &StorePath) -> Result<Arc<Hashes>, Failure> {
        // An explicit stack, not recursion: a stranger decides how deeply derivations nest.
        let mut open: Vec<Open> = Vec::new();
        let mut opened: HashSet<StorePath> = HashSet::new();
        let mut open_bytes = 0;
        let mut next = Some(drv.clone());
        loop {
            if let Some(path) = next.take()
                && self.done(&path).is_none()
            {
                if opened.len() >= MAX_BELOW || !opened.insert(path.clone()) {
                    let (drv, path) = (drv.to_absolute_path(), path.to_absolute_path());
                    return Err(Failure::rejected(if opened.len() >= MAX_BELOW {
                        format!("derivation '{drv}' depends on more than {MAX_BELOW} derivations")
                    } else {
                        format!("derivation '{path}' depends on itself")
                    }));
                }
                let verified = is_verified(self.view, &path);
                self.study.note(HASHES_BYTES)?;
                let drv = read(self.view, &path, self.study)?;
                open_bytes += drv.text;
                if open_bytes > MAX_OPEN {
                    return Err(Failure::rejected(format!(
                        "the derivations on the way down to '{}' have more than {} MiB together, the limit of this box",
                        path.to_absolute_path(),
                        MAX_OPEN >> 20
                    )));
                }
                let inputs = drv.derivation.inputs.keys().cloned().collect();
                open.push(Open { path, drv, verified, inputs });
            }
            let Some(top) = open.last_mut() else { break };
            next = top.inputs.pop();
            if next.is_none()
                && let Some(Open { path, drv, verified, .. }) = open.pop()
            {
                open_bytes -= drv.text;
                let hashes = Arc::new(self.close(&path, &drv.derivation, verified)?);
                if hashes.verified {
                    self.known.put(&path, &hashes);
                }
                self.local.insert(path, hashes);
            }
        }
        self.done(drv).ok_or_else(|| {
            Failure::transient(format!(
                "the hash of '{}' was lost; this is a bug of the box",
                drv.to_absolute_path()
            ))
        })
    }

    /// The hashes of a derivation whose inputs have theirs.
    fn close(&self, path: &StorePath, drv: &Derivation, verified: bool) -> Result<Hashes, Failure> {
        let mut hashes = modulo::of(drv, |input| self.done(input))
            .map_err(|why| Failure::rejected(format!("cannot build '{}': {why}", path.to_absolute_path())))?;
        hashes.verified &= verified;
        Ok(hashes)
    }
}

/// The caller must call this before it reads the file. A claim can give way to a Verified path with other contents
/// after it was read, and the contents of the claim would pass for Verified. A Verified path stays Verified.
pub fn is_verified(view: &View, path: &StorePath) -> bool {
    view.info_with_provenance(path).is_some_and(|(_, why)| why == Provenance::Verified)
}

/// Reads and parses a valid `.drv`.
pub fn read(view: &View, path: &StorePath, study: &Study) -> Result<Parsed, Failure> {
    let full = path.to_absolute_path();
    let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
    let name = path.name().strip_suffix(".drv").ok_or_else(|| bad(&"its name does not end in .drv"))?;
    let bytes = view.read_file(path, MAX_DRV_BYTES).map_err(|e| match e.is_the_boxs_fault() {
        true => Failure::of_contents(format!("cannot read '{full}'"), &e),
        false => Failure::rejected(e.to_string()),
    })?;
    study.parse(path, bytes.len())?;
    let weight = weight::of_text(&bytes);
    let room = study.room(weight)?;
    let derivation = Derivation::parse(&bytes, name).map_err(|e| bad(&e))?;
    Ok(Parsed { derivation, text: bytes.len(), weight, room })
}

#[cfg(test)]
#[path = "modulo_test.rs"]
mod modulo_test;
