#![no_main]
//! Any bytes as a NAR, in pieces of any size. What is accepted is what another parser accepts too, and comes back
//! byte for byte.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nix::PathInfo;
use store::{Member, Provenance, Store, StoreConfig};

fn root() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    base.join(format!("fuzz-nar-ingest-{}", std::process::id()))
}

static STORE: LazyLock<Store> = LazyLock::new(|| {
    let config = StoreConfig { max_nar_bytes: 1 << 20, max_entries: 1000, ..StoreConfig::default() };
    Store::open(&root(), config).expect("a store opens")
});

fuzz_target!(|data: &[u8]| {
    let Some((pieces, nar)) = data.split_first() else { return };
    let view = STORE.view(&Member::new("fuzz"));
    let mut ingest = view.ingest(&[]).expect("the store takes in");
    let (mut at, mut least) = (0, 0);
    for piece in nar.chunks(usize::from(*pieces) + 1) {
        least = at + ingest.surely_left();
        if ingest.write_all(piece).is_err() {
            break;
        }
        at += piece.len() as u64;
    }
    let finished = ingest.finish();
    assert!(finished.is_err() || least <= nar.len() as u64, "import would read beyond the end");
    assert_eq!(finished.is_ok(), nix_archive::nar::decode(nar).is_ok(), "two parsers disagree");
    let Ok(ingested) = finished else { return };
    // A path of its own for each NAR: the first contents of a path stay.
    let path =
        nix_derivation::StorePath::from_parts(*ingested.nar_hash.first_chunk().expect("32 >= 20"), "x")
            .expect("a valid name");
    let info = PathInfo {
        path: path.clone(),
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: Default::default(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    };
    view.register(ingested, info, Provenance::Verified).expect("a whole object registers");
    let mut out = Vec::new();
    view.nar(&path).expect("it reads").read_to_end(&mut out).expect("it reads");
    assert!(out == nar);
    view.snapshot([&path]).expect("it is there").compose().expect("it composes");
});
