#![no_main]
//! Any bytes as an object: everything that reads one ends, in an error or in a tree, without a panic.
//!
//! Most inputs are edits of a sound object, because random bytes hardly get past its header.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use nix::PathInfo;
use store::nar::MAX_DEPTH;
use store::object::{Kind, Object, ObjectError};
use store::{Member, Provenance, Store, StoreConfig};

/// A walk through directories that contain each other would never end by itself.
fn walk(object: &Object, nid: u64, depth: usize, left: &mut u32) -> Result<(), ObjectError> {
    *left = left.saturating_sub(1);
    if depth >= MAX_DEPTH || *left == 0 {
        return Ok(());
    }
    match object.inode(nid)? {
        Kind::Directory(mut dir) => {
            while let Some(entry) = object.next_entry(&mut dir)? {
                let name = object.name(&entry);
                assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
                assert!(name != b"." && name != b"..");
                walk(object, entry.nid, depth + 1, left)?;
                if *left == 0 {
                    break;
                }
            }
        }
        Kind::File { at, size, .. } => {
            let mut first = vec![0; size.min(100) as usize];
            object.read_data(&mut first, at)?;
        }
        Kind::Symlink { target } => assert!(!target.is_empty()),
    }
    Ok(())
}

fn root() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    base.join(format!("fuzz-erofs-read-{}", std::process::id()))
}

fn strings(nar: &mut Vec<u8>, parts: &[&str]) {
    for part in parts {
        nar.extend((part.len() as u64).to_le_bytes());
        nar.extend(part.as_bytes());
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
}

/// With everything an object can have: files over several blocks, an empty one, symlinks, nested and long directories.
fn nar() -> Vec<u8> {
    let mut nar = Vec::new();
    strings(&mut nar, &["nix-archive-1", "(", "type", "directory"]);
    for i in 0..200 {
        strings(&mut nar, &["entry", "(", "name", &format!("entry-{i:03}-{}", "x".repeat(30)), "node", "("]);
        match i % 4 {
            0 => strings(&mut nar, &["type", "regular", "contents", &"data".repeat(i * 20)]),
            1 => strings(&mut nar, &["type", "symlink", "target", &"../".repeat(i + 1)]),
            2 => strings(&mut nar, &["type", "regular", "executable", "", "contents", ""]),
            _ => {
                strings(&mut nar, &["type", "directory", "entry", "(", "name", "below", "node"]);
                strings(&mut nar, &["(", "type", "regular", "contents", "x", ")", ")"]);
            }
        }
        strings(&mut nar, &[")", ")"]);
    }
    strings(&mut nar, &[")"]);
    nar
}

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let store = Store::open(&root(), StoreConfig::default()).expect("a store opens");
    let view = store.view(&Member::new("fuzz"));
    let mut ingest = view.ingest(&[]).expect("the store takes in");
    ingest.write_all(&nar()).expect("a NAR");
    let ingested = ingest.finish().expect("a whole NAR");
    let digest = *ingested.nar_hash.first_chunk().expect("32 >= 20");
    let info = PathInfo {
        path: nix_derivation::StorePath::from_parts(digest, "x").expect("a valid name"),
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: Default::default(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    };
    view.register(ingested, info, Provenance::Verified).expect("it registers");
    store.tidy().expect("objects get their names");
    let object = std::fs::read_dir(root().join("objects")).expect("a folder").next().expect("an object");
    let bytes = std::fs::read(object.expect("an entry").path()).expect("it reads");
    std::fs::remove_dir_all(root()).expect("it goes");
    bytes
});

/// What the fuzzer says, as bytes of an object: as they are, or as edits (an offset of 3 bytes, then 2 bytes to put).
fn object_bytes(data: &[u8]) -> Vec<u8> {
    let Some((how, edits)) = data.split_first() else { return Vec::new() };
    if how % 8 == 7 {
        return edits.to_vec();
    }
    let mut bytes = SOUND.clone();
    for edit in edits.chunks_exact(5) {
        let at = u32::from_le_bytes([edit[0], edit[1], edit[2], 0]) as usize % (bytes.len() - 1);
        bytes[at..at + 2].copy_from_slice(&edit[3..]);
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let fd = rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let mut file = File::from(fd);
    let data = object_bytes(data);
    file.write_all(&data).expect("memory holds it");
    // Whole blocks only, or nothing gets past the first check.
    let len = data.len().next_multiple_of(4096) as u64;
    file.set_len(len).expect("memory holds it");
    let Ok(object) = Object::open(Arc::new(file)) else { return };
    let _ = walk(&object, object.root(), 0, &mut 10_000);
    let (limit, mut total) = (object.nar_size().min(1 << 20), 0);
    let mut piece = [0; 4096];
    let mut reader = object.into_nar();
    while total <= limit {
        match std::io::Read::read(&mut reader, &mut piece) {
            Ok(0) | Err(_) => break,
            Ok(n) => total += n as u64,
        }
    }
});
