//! Git's hash of an object: `git hash-object` of a file and `git write-tree` of a directory, by SHA-1 or
//! SHA-256 (Nix: `dumpHash` in `src/libutil/git.cc`).
//!
//! A blob is a file's bytes or a symlink's target. A tree lists mode, name and hash of each entry, sorted as if the
//! names of directories ended in a slash. Unlike git itself, Nix gives empty directories an entry too.

use nix_derivation::{HashAlgorithm, NixHash, NixHasher};

use crate::format::object::{Kind, Object, ObjectError, WalkGuard};

/// The hash of an object whose root is a directory or a plain file. The caller has checked the kind of the
/// root, since the hash does not cover a root's mode.
pub(crate) fn hash(object: &Object, algorithm: HashAlgorithm) -> Result<NixHash, ObjectError> {
    let mut walk = Walk { object, algorithm, guard: object.walk_guard() };
    Ok(walk.node(object.root(), 0)?.1)
}

struct Walk<'a> {
    object: &'a Object,
    algorithm: HashAlgorithm,
    guard: WalkGuard,
}

impl Walk<'_> {
    /// Mode as git writes it, and hash.
    fn node(&mut self, nid: u64, depth: usize) -> Result<(&'static str, NixHash), ObjectError> {
        self.guard.enter(depth)?;
        match self.object.inode(nid)? {
            Kind::File { executable, at, size } => {
                let mode = if executable { "100755" } else { "100644" };
                Ok((mode, self.blob(at, size)?))
            }
            Kind::Symlink { target } => {
                let mut hasher = self.start("blob", target.len() as u64);
                hasher.update(&target);
                Ok(("120000", hasher.finalize()))
            }
            Kind::Directory(mut dir) => {
                let mut entries: Vec<(Vec<u8>, &'static str, NixHash)> = Vec::new();
                while let Some(entry) = self.object.next_entry(&mut dir)? {
                    let mut name = self.object.name(&entry).to_vec();
                    let (mode, hash) = self.node(entry.nid, depth + 1)?;
                    if mode == DIRECTORY {
                        name.push(b'/');
                    }
                    entries.push((name, mode, hash));
                }
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                let mut tree = Vec::new();
                for (name, mode, hash) in entries {
                    tree.extend_from_slice(mode.as_bytes());
                    tree.push(b' ');
                    tree.extend_from_slice(name.strip_suffix(b"/").unwrap_or(&name));
                    tree.push(0);
                    tree.extend_from_slice(hash.digest_as_bytes());
                }
                let mut hasher = self.start("tree", tree.len() as u64);
                hasher.update(&tree);
                Ok((DIRECTORY, hasher.finalize()))
            }
        }
    }

    fn start(&self, kind: &str, size: u64) -> NixHasher {
        let mut hasher = NixHasher::new(self.algorithm);
        hasher.update(format!("{kind} {size}\0").as_bytes());
        hasher
    }

    fn blob(&self, at: u64, size: u64) -> Result<NixHash, ObjectError> {
        let mut hasher = self.start("blob", size);
        self.object.pieces(at, size, |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        Ok(hasher.finalize())
    }
}

/// Mode of a directory: git writes no leading zero.
const DIRECTORY: &str = "40000";
