//! Random trees, their NARs by an independent encoder, and stores on a temporary file system.
#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::PathInfo;
use nix_archive::nar::Encoder;
use nix_derivation::{StorePath, nixbase32};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use store::{Member, Store, StoreConfig, View};

#[derive(Debug, Clone)]
pub enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
    Dir(BTreeMap<Vec<u8>, Tree>),
}

pub fn file(contents: impl AsRef<[u8]>) -> Tree {
    Tree::File { executable: false, contents: contents.as_ref().to_vec() }
}

pub fn dir<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
    Tree::Dir(entries.into_iter().map(|(n, t)| (n.as_bytes().to_vec(), t)).collect())
}

impl Tree {
    /// The NAR, by the encoder of `nix-archive`.
    pub fn nar(&self) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new()).unwrap();
        self.encode(None, &mut encoder);
        encoder.finish().unwrap()
    }

    fn encode(&self, name: Option<&[u8]>, to: &mut Encoder<Vec<u8>>) {
        match self {
            Tree::File { executable, contents } => to.regular(name, *executable, contents).unwrap(),
            Tree::Symlink(target) => to.symlink(name, target).unwrap(),
            Tree::Dir(entries) => {
                to.start_directory(name).unwrap();
                for (name, child) in entries {
                    child.encode(Some(name), to);
                }
                to.end_directory().unwrap();
            }
        }
    }
}

/// Pseudo-random bytes from `seed`; no two pages are equal.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let odd = prop::collection::vec(any::<u8>(), 1..20);
    let plain = prop::collection::vec(97_u8..123, 1..60);
    let long = prop::collection::vec(97_u8..123, 200..=255);
    prop_oneof![3 => odd, 3 => plain, 1 => long].prop_map(|mut name| {
        name.iter_mut().filter(|b| matches!(**b, 0 | b'/')).for_each(|b| *b = b'!');
        if name == b"." || name == b".." {
            name.push(b'!');
        }
        name
    })
}

pub fn tree() -> impl Strategy<Value = Tree> {
    let size = prop_oneof![
        0_usize..40,
        Just(4095),
        Just(4096),
        Just(4097),
        4000_usize..20_000,
        Just(16 << 10),
        Just((16 << 10) + 1),
        250_000_usize..600_000
    ];
    let file = (any::<bool>(), any::<u64>(), size)
        .prop_map(|(executable, seed, len)| Tree::File { executable, contents: noise(seed, len) });
    let target = prop_oneof![1_usize..100, 4000_usize..=4095]
        .prop_flat_map(|len| prop::collection::vec(1_u8..=255, len));
    let leaf = prop_oneof![4 => file, 1 => target.prop_map(Tree::Symlink)];
    leaf.prop_recursive(5, 120, 40, |inner| {
        prop::collection::btree_map(name(), inner, 0..40).prop_map(Tree::Dir)
    })
}

/// A folder in memory: the tests write a lot and keep nothing of it.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub fn open(dir: &Path) -> Store {
    Store::open(dir, StoreConfig::default()).unwrap()
}

pub fn alice() -> Member {
    Member::new("alice")
}

pub fn bob() -> Member {
    Member::new("bob")
}

/// A path whose digest is made from `name`, as that of an input-addressed output.
pub fn path(name: &str) -> StorePath {
    let digest = Sha256::digest(name);
    StorePath::from_parts(digest[..20].try_into().unwrap(), name).unwrap()
}

pub fn hash_part(path: &StorePath) -> String {
    nixbase32::encode(path.digest())
}

/// The path info that an honest client announces for `nar`.
pub fn info(path: &StorePath, nar: &[u8], references: &[&StorePath]) -> PathInfo {
    PathInfo {
        path: path.clone(),
        nar_hash: Sha256::digest(nar).into(),
        nar_size: nar.len() as u64,
        references: references.iter().map(|r| (*r).clone()).collect(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}

/// The NAR of a valid path.
pub fn nar_of(view: &View, path: &StorePath) -> Vec<u8> {
    let mut nar = Vec::new();
    view.nar(path).unwrap().read_to_end(&mut nar).unwrap();
    nar
}

/// The unpacked copy of a valid path.
pub fn unpacked(view: &View, path: &StorePath) -> PathBuf {
    view.snapshot([path]).unwrap().tree(path).unwrap()
}

/// Number of files in `dir`.
pub fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}
