//! How long an eviction keeps commits waiting: `cargo run --release -p store --example eviction [ROWS [DIR]]`.
//!
//! All rows have one object, so an eviction frees nothing until the last row is gone: it goes through all of them.

use std::path::PathBuf;
use std::time::Instant;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{Member, Provenance, Store, StoreConfig, View};

fn path(kind: u8, n: u32) -> StorePath {
    let mut digest = [kind; 20];
    digest[..4].copy_from_slice(&n.to_be_bytes());
    StorePath::from_parts(digest, "row").expect("a name")
}

/// The rows to which a row refers.
type Below = fn(u32) -> Vec<u32>;

/// So many rows, row `n` with the references that `below` gives.
fn fill(view: &View, rows: u32, below: Below, provenance: &Provenance) {
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    let contents = view.add_ca("x", method, algorithm, &[].into(), &mut &b"x"[..]).expect("added");
    let info = |n: u32| {
        let references = below(n).into_iter().map(|n| path(9, n)).collect();
        (
            PathInfo { path: path(9, n), ca: None, references, ..PathInfo::clone(&contents) },
            provenance.clone(),
        )
    };
    let all: Vec<u32> = (0..rows).collect();
    for part in all.chunks(1000) {
        view.adopt(part.iter().copied().map(info).collect(), None).expect("registered");
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rows: u32 = arguments.next().and_then(|rows| rows.parse().ok()).unwrap_or(100_000);
    let dir = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from).join("store-eviction");
    let shapes: [(&str, Below); 3] = [
        ("a chain: each row refers to the one before", |n| n.checked_sub(1).into_iter().collect()),
        ("a fan: all rows refer to the first", |n| if n == 0 { Vec::new() } else { vec![0] }),
        ("ten references of each row to those before", |n| (n.saturating_sub(10)..n).collect()),
    ];
    for (what, below) in shapes {
        let _ = std::fs::remove_dir_all(&dir);
        let store = Store::open(&dir, StoreConfig::default()).expect("a store");
        let alice = store.view(&Member::new("alice"));
        fill(&alice, rows, below, &Provenance::Verified);
        // Bob has one path on top of all of alice's, who is charged for more than the average.
        let bob = Member::new("bob");
        let last = alice.info(&path(9, rows - 1)).expect("valid");
        let references = [last.path.clone()].into();
        let top = PathInfo { path: path(8, 0), references, ca: None, ..PathInfo::clone(&last) };
        store.view(&bob).adopt(vec![(top, Provenance::Claimed(bob.clone()))], None).expect("registered");
        drop(alice);
        let begun = Instant::now();
        let evicted = store.evict(u64::MAX, "a measurement").expect("evicted");
        let rounds = evicted.paths.div_ceil(20_000).max(1);
        let took = begun.elapsed();
        println!(
            "{what}: {} rows in {took:.2?}, {:.2?} for each commit",
            evicted.paths,
            took / rounds as u32
        );
    }
    let _ = std::fs::remove_dir_all(&dir);
}
