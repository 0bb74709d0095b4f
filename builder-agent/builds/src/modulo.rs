//! Hashes of derivations modulo fixed outputs: what input-addressed paths and realisations are made of.
//!
//! Source: Nix, `hashDerivationModulo` and `Derivation::unparse` (src/libstore/derivations.cc, 2.8 to 2.34). A hash is
//! a pure function of the contents of a `.drv` and of all `.drv` files below it. Those are content-addressed, so what
//! was computed from Verified ones holds for every member and is kept; what came from anything less is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use nix_derivation::store_path::{build_output_path, hash_placeholder};
use nix_derivation::{DerivationModuloHash, Output, StorePath};
use sha2::{Digest, Sha256};
use store::{Provenance, View};
use wire::types::BasicDerivation;

use super::Failure;
use super::derivation::{Derivation, aterm, hex, prefixed};
use super::recipe::MAX_DRV_BYTES;
use super::study::Study;
use super::weight;
use shares::budget::Charge;

/// Derivations whose hashes are kept, about 150 bytes each.
const MAX_KEPT: usize = 300_000;
/// What a request keeps of a derivation whose hashes it has computed: them, its path twice, places in maps.
const HASHES_BYTES: u64 = 512;
/// Derivations below one derivation. A NixOS system with everything from source has about 20,000.
const MAX_BELOW: usize = 200_000;
/// Text of the derivations on one way down, in bytes: each waits, parsed, for what is below it. A way has some hundred, of
/// some kilobytes each.
const MAX_OPEN: usize = 128 << 20;

/// The hashes of one derivation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// Stands for the derivation in those that use it.
    input: [u8; 32],
    /// Without its own output paths: what those, and names of realisations, are made of.
    pub masked: [u8; 32],
    /// An output path below is known only once it is built; so are input-addressed paths made of this hash.
    pub deferred: bool,
    /// Read from Verified `.drv` files only, each of which names its own outputs as it should.
    pub verified: bool,
}

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
    /// From Claimed files too, so for this member and this moment only.
    local: HashMap<StorePath, Arc<Hashes>>,
}

/// A derivation whose inputs are being looked at.
struct Open {
    path: StorePath,
    drv: Parsed,
    verified: bool,
    inputs: Vec<StorePath>,
}

/// A derivation as it stands in its file.
pub struct Parsed {
    pub derivation: Derivation,
    /// Bytes of its text.
    pub text: usize,
    /// What it takes in memory.
    pub weight: u64,
    /// For that.
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
        // A stack of our own: how deep derivations nest is up to whoever wrote them.
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

    /// The hashes of a derivation whose inputs are done.
    fn close(&self, path: &StorePath, drv: &Derivation, mut verified: bool) -> Result<Hashes, Failure> {
        let full = path.to_absolute_path();
        let bad = |why: String| Failure::rejected(format!("cannot build '{full}': {why}"));
        let mut inputs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut deferred = false;
        for (input, wanted) in &drv.inputs {
            let Some(hashes) = self.done(input) else {
                return Err(bad(format!("nothing is known about '{}'", input.to_absolute_path())));
            };
            deferred |= hashes.deferred;
            verified &= hashes.verified;
            inputs.entry(hex(&hashes.input)).or_default().extend(wanted.iter().cloned());
        }
        let mut hashes = of_parts(&drv.name, &drv.basic, &inputs, deferred).map_err(bad)?;
        hashes.verified &= verified;
        Ok(hashes)
    }
}

/// To be asked before a file is read: a claim that is read first may give way to a Verified path with other contents,
/// and what was read would then pass for that. What is Verified stays as it is.
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

/// Hashes of a derivation without input derivations, which is all that `verified` has to go by.
pub fn of_basic(name: &str, basic: &BasicDerivation) -> Result<Hashes, String> {
    of_parts(name, basic, &BTreeMap::new(), false)
}

fn of_parts(
    name: &str,
    drv: &BasicDerivation,
    inputs: &BTreeMap<String, BTreeSet<String>>,
    mut deferred: bool,
) -> Result<Hashes, String> {
    // The only output of a fixed-output derivation stands for it, whatever it was made from.
    if let (1, Some(Output::Fixed { ca })) = (drv.outputs.len(), drv.outputs.get("out")) {
        let path = Output::Fixed { ca: ca.clone() }.path(name, "out").map_err(|e| e.to_string())?;
        let path = path.map(|path| path.to_absolute_path()).unwrap_or_default();
        let (method, hash) = (prefixed(ca.method(), &ca.hash().algorithm().to_string()), ca.hash());
        let text = format!("fixed:out:{method}:{}:{path}", hex(hash.digest_as_bytes()));
        let hash = Sha256::digest(text.as_bytes()).into();
        return Ok(Hashes { input: hash, masked: hash, deferred: false, verified: true });
    }
    let masked: [u8; 32] = Sha256::digest(aterm(name, drv, inputs, true)).into();
    let input = Sha256::digest(aterm(name, drv, inputs, false)).into();
    let mut verified = true;
    for (output, spec) in &drv.outputs {
        let named = match spec {
            Output::InputAddressed { path } => {
                let right = build_output_path(DerivationModuloHash::new(masked), output, name)
                    .map_err(|e| e.to_string())?;
                verified &= !deferred && right == *path;
                path.to_absolute_path()
            }
            Output::Floating { .. } => hash_placeholder(output),
            Output::Deferred => String::new(),
            Output::Fixed { .. } | Output::Impure { .. } => continue,
        };
        // The masked hash leaves the variables of outputs out. With anything else in them a derivation would have the
        // hash of another one, and might do something else.
        verified &= drv.env.get(output.as_bytes()).is_none_or(|value| *value == named.as_bytes());
    }
    deferred |= drv.outputs.values().any(|o| matches!(o, Output::Floating { .. } | Output::Impure { .. }));
    Ok(Hashes { input, masked, deferred, verified })
}

#[cfg(test)]
#[path = "modulo_test.rs"]
mod modulo_test;
