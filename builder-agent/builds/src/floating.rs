//! Computes the paths of floating outputs from their contents, once they are built.
//!
//! The builder wrote to scratch paths. Each output is processed after those that it refers to: the scratch paths in its
//! contents are replaced by the final ones. The output's own path counts as zeros while the contents are hashed, since
//! the final path is made of that hash. Source: Nix, `registerOutputs` (src/libstore/unix/build/derivation-builder.cc;
//! local-derivation-goal.cc before 2.30).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{Read, Write};

use nix::placeholders::is_base32;
use nix_derivation::store_path::build_ca_path;
use nix_derivation::{CAHash, ContentAddressMethod, NixHash, StorePath, nixbase32};
use store::{Ingested, NarError, View};

use super::outputs::Settled;
use super::watch::Watch;
use super::{Failure, Recipe};

/// Bytes read from an object at once.
const PIECE: usize = 256 << 10;
/// Characters of the hash part of a store path.
const HASH_PART: usize = 32;

/// Computes the path of each floating output. Outputs with a stated path stay as they are.
pub(super) fn settle(
    recipe: &Recipe,
    view: &View,
    mut outputs: BTreeMap<String, Ingested>,
    watch: &Watch<'_>,
) -> Result<BTreeMap<String, Settled>, Failure> {
    let scratch_paths = recipe.scratch_paths();
    let names: BTreeMap<&StorePath, &String> =
        scratch_paths.iter().map(|(name, path)| (path, name)).collect();
    let mut settled: BTreeMap<String, Settled> = BTreeMap::new();
    for name in sorted(recipe, &outputs, &names)? {
        let Some(ingested) = outputs.remove(&name) else { continue };
        watch.go_on()?;
        let mut references = ingested.references.clone();
        if discards_references(recipe, &name) {
            references.clear();
        }
        let spec = &recipe.outputs[&name];
        let one = match (&spec.path, spec.floating) {
            (_, Some((method, algorithm))) => {
                let own = &scratch_paths[&name];
                let others: Vec<(&StorePath, &StorePath)> = ingested
                    .references
                    .iter()
                    .filter(|path| *path != own)
                    .filter_map(|path| names.get_key_value(path))
                    .filter_map(|(path, other)| Some((*path, &settled.get(*other)?.path)))
                    .collect();
                let output = FloatingOutput { recipe, view, name: &name, own, watch };
                output.settle(ingested, references, &others, (method, algorithm))?
            }
            (Some(path), None) => {
                Settled { path: path.clone(), ingested, references, ca: spec.fixed.clone() }
            }
            (None, None) => {
                let drv = recipe.drv_path.to_absolute_path();
                return Err(Failure::rejected(format!("the output '{name}' of '{drv}' has no path")));
            }
        };
        settled.insert(name, one);
    }
    Ok(settled)
}

/// Output names, each after the outputs that it refers to.
fn sorted(
    recipe: &Recipe,
    outputs: &BTreeMap<String, Ingested>,
    names: &BTreeMap<&StorePath, &String>,
) -> Result<Vec<String>, Failure> {
    let uses = |ingested: &Ingested, name: &String| -> Vec<&String> {
        let used = ingested.references.iter().filter_map(|path| names.get(path).copied());
        used.filter(|other| *other != name && outputs.contains_key(*other)).collect()
    };
    // Per output: the number of outputs that it waits for, and the outputs that wait for it.
    let mut waits: BTreeMap<&String, usize> = BTreeMap::new();
    let mut used_by: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
    for (name, ingested) in outputs {
        let uses = uses(ingested, name);
        waits.insert(name, uses.len());
        uses.into_iter().for_each(|other| used_by.entry(other).or_default().push(name));
    }
    let mut ready: BTreeSet<&String> =
        waits.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect();
    let mut order = Vec::new();
    while let Some(name) = ready.pop_first() {
        waits.remove(name);
        order.push(name.clone());
        for user in used_by.remove(name).into_iter().flatten() {
            if let Some(n) = waits.get_mut(user) {
                *n -= 1;
                if *n == 0 {
                    ready.insert(user);
                }
            }
        }
    }
    if let Some(parent) = waits.keys().next() {
        // Every output that is left uses another that is left. The message names the first and one that it uses as an
        // example.
        let used = outputs.get(*parent).map(|ingested| uses(ingested, parent)).unwrap_or_default();
        let used = used.into_iter().find(|other| waits.contains_key(other));
        return Err(Failure::output(format!(
            "cycle detected in build of '{}' in the references of output '{}' from output '{parent}'",
            recipe.drv_path.to_absolute_path(),
            used.map_or("", String::as_str),
        )));
    }
    Ok(order)
}

/// The data needed to compute the path of one output.
struct FloatingOutput<'a> {
    recipe: &'a Recipe,
    view: &'a View,
    name: &'a str,
    /// The output's scratch path.
    own: &'a StorePath,
    watch: &'a Watch<'a>,
}

impl FloatingOutput<'_> {
    /// Rewrites the output and computes its path. `others` are the scratch paths that it contains, with their final
    /// paths.
    fn settle(
        &self,
        mut ingested: Ingested,
        mut references: BTreeSet<StorePath>,
        others: &[(&StorePath, &StorePath)],
        (method, algorithm): (ContentAddressMethod, nix_derivation::HashAlgorithm),
    ) -> Result<Settled, Failure> {
        let (name, own) = (self.name, self.own);
        let drv = self.recipe.drv_path.to_absolute_path();
        let bad = |e: &dyn std::fmt::Display| Failure::output(format!("output '{name}' of '{drv}': {e}"));
        // True if the path occurs anywhere, also where it does not count as a reference.
        let contains_itself = ingested.references.contains(own);
        let refers_to_itself = references.remove(own);
        if contains_itself && !refers_to_itself {
            return Err(bad(
                &"it contains its own path, and `unsafeDiscardReferences` hides that; no content address can be checked then",
            ));
        }
        for (scratch, path) in others {
            if references.remove(*scratch) {
                references.insert((*path).clone());
            }
        }
        if !others.is_empty() {
            ingested = self.rewrite(&ingested, others)?;
        }
        self.watch.go_on()?;
        let itself = contains_itself.then_some(own);
        let hash = hash(self.recipe, name, own, &ingested, method, algorithm, itself)?;
        let ca = CAHash::from_parts(method, algorithm, hash.digest_as_bytes()).map_err(|e| bad(&e))?;
        let path = build_ca_path(own.name(), &ca, &references, refers_to_itself).map_err(|e| {
            bad(&format!("{e}; outputs of other modes than recursive SHA-256 may not refer to store paths"))
        })?;
        if contains_itself {
            ingested = self.rewrite(&ingested, &[(own, &path)])?;
        }
        if refers_to_itself {
            references.insert(path.clone());
        }
        Ok(Settled { path, ingested, references, ca: Some(ca) })
    }

    /// The same contents with some hash parts replaced.
    fn rewrite(&self, ingested: &Ingested, paths: &[(&StorePath, &StorePath)]) -> Result<Ingested, Failure> {
        let (name, drv) = (self.name, self.recipe.drv_path.to_absolute_path());
        let trouble = |e: &dyn std::fmt::Display| {
            Failure::transient(format!("cannot rewrite output '{name}' of '{drv}': {e}"))
        };
        let part = |path: &StorePath| nixbase32::encode(path.digest()).into_bytes();
        let pairs = paths.iter().map(|(from, to)| (part(from), part(to))).collect();
        let mut from = ingested.nar().map_err(|e| trouble(&e))?;
        let mut to =
            Rewriter { to: self.view.ingest(&[]).map_err(|e| trouble(&e))?, pairs, held: Vec::new() };
        let mut piece = vec![0; PIECE];
        loop {
            self.watch.go_on()?;
            let n = from.read(&mut piece).map_err(|e| trouble(&e))?;
            if n == 0 {
                break;
            }
            // A write fails for example if the names in the NAR are no longer in order. `finish` returns the error,
            // which says who is at fault.
            if to.push(&piece[..n]).is_err() {
                break;
            }
        }
        let unsettled = format!("output '{name}' of '{drv}' cannot get its final path");
        to.finish().finish().map_err(|e| Failure::of_import(unsettled, &e))
    }
}

/// Hash of an output in the form that a content address uses.
pub(super) fn hash(
    recipe: &Recipe,
    name: &str,
    path: &StorePath,
    ingested: &Ingested,
    method: ContentAddressMethod,
    algorithm: nix_derivation::HashAlgorithm,
    modulo: Option<&StorePath>,
) -> Result<NixHash, Failure> {
    ingested.ca_hash(method, algorithm, modulo).map_err(|error| match error {
        NarError::NotAFile { found, .. } if method == ContentAddressMethod::Git => Failure::output(format!(
            "output path '{}' should be a directory or a non-executable regular file since git hashing is enabled \
             (outputHashMode=git); found: {found}, which can be put into a directory",
            path.to_absolute_path()
        )),
        NarError::NotAFile { .. } => Failure::output(format!(
            "output path '{}' should be a non-executable regular file since recursive hashing is not enabled \
             (one of outputHashMode={{flat,text}} is true)",
            path.to_absolute_path()
        )),
        error => Failure::of_contents(
            format!("cannot hash output '{name}' of '{}'", recipe.drv_path.to_absolute_path()),
            &error,
        ),
    })
}

/// Whether the paths found in this output count as references (`unsafeDiscardReferences`).
fn discards_references(recipe: &Recipe, output: &str) -> bool {
    let attrs = recipe.structured.as_ref().and_then(|attrs| attrs.get("unsafeDiscardReferences"));
    attrs.and_then(|by_output| by_output.get(output)?.as_bool()).unwrap_or(false)
}

/// Passes bytes on with some hash parts replaced by others of the same length (Nix: `RewritingSink`).
struct Rewriter<W> {
    to: W,
    pairs: HashMap<Vec<u8>, Vec<u8>>,
    /// Bytes that may be the beginning of a hash part.
    held: Vec<u8>,
}

impl<W: Write> Rewriter<W> {
    fn push(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.held.extend_from_slice(piece);
        let mut at = 0;
        while at + HASH_PART <= self.held.len() {
            let window = &mut self.held[at..at + HASH_PART];
            // Searches from the end: one character that occurs in no hash part rules out every window over it.
            if let Some(last) = window.iter().rposition(|byte| !is_base32(*byte)) {
                at += last + 1;
            } else if let Some(new) = self.pairs.get(&*window) {
                window.copy_from_slice(new);
                at += HASH_PART;
            } else {
                at += 1;
            }
        }
        let at = at.min(self.held.len());
        self.to.write_all(&self.held[..at])?;
        self.held.drain(..at);
        Ok(())
    }

    /// Writes the held bytes. If that fails, `to` keeps the error.
    fn finish(mut self) -> W {
        let _ = self.to.write_all(&self.held);
        self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v";
    const NEW: &[u8] = b"00000000000000000000000000000001";

    fn rewritten(pieces: &[&[u8]]) -> Vec<u8> {
        let mut rewriter = Rewriter {
            to: Vec::new(),
            pairs: HashMap::from([(OLD.to_vec(), NEW.to_vec())]),
            held: Vec::new(),
        };
        for piece in pieces {
            rewriter.push(piece).expect("memory");
        }
        rewriter.finish()
    }

    #[test]
    fn a_hash_part_is_replaced_wherever_the_stream_is_cut() {
        let text = [b"/nix/store/", OLD, b"-x 0", OLD, OLD, b"ab", &OLD[..31]].concat();
        let wanted = [b"/nix/store/", NEW, b"-x 0", NEW, NEW, b"ab", &OLD[..31]].concat();
        for cut in 0..text.len() {
            assert_eq!(rewritten(&[&text[..cut], &text[cut..]]), wanted, "cut at {cut}");
        }
        assert_eq!(rewritten(&text.chunks(1).collect::<Vec<_>>()), wanted);
    }

    #[test]
    fn other_hash_parts_stay() {
        let other = b"8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0w--8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v".to_vec();
        let wanted = [b"8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0w--", NEW].concat();
        assert_eq!(rewritten(&[&other]), wanted);
    }
}
