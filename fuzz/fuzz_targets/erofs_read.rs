#![no_main]
//! Any bytes as an object: everything that reads one ends, in an error or in a tree, without a panic.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use store::nar::MAX_DEPTH;
use store::object::{Kind, Object, ObjectError};

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

fuzz_target!(|data: &[u8]| {
    let fd = rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::CLOEXEC).expect("a memory file");
    let mut file = File::from(fd);
    file.write_all(data).expect("memory holds it");
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
