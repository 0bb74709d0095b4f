//! A power loss keeps everything up to the store's last flush, and any part of what was written later.
//!
//! The power loss is simulated. A store is copied right after a flush, and again after more changes. The
//! simulated disk has the first copy, and of every file that is new in the second: nothing, a part, pages of
//! zeros, or all of it; of the write-ahead log its first part, and then blocks of either kind. After it is
//! opened in another boot, every visible path must have the right hash, and everything that was there at the
//! flush must be visible.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use nix_derivation::{StorePath, nixbase32};
use sha2::{Digest, Sha256};
use store::{
    BuildRecord, Collect, CollectAction, Durability, Provenance, RealisationId, RecordEnd, RecordedOutput,
    Recovery, Store, StoreConfig, View,
};

/// Number of simulated disks. Each takes some milliseconds.
const DISKS: u64 = 60;
const PAGE: usize = 4096;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

fn claim(view: &View, name: &str, contents: &[u8], references: &[&str]) -> StorePath {
    let references: Vec<StorePath> = references.iter().map(|name| path(name)).collect();
    let nar = file(contents).nar();
    let info = info(&path(name), &nar, &references.iter().collect::<Vec<_>>());
    view.import(info, &mut &nar[..]).unwrap().path.clone()
}

fn verified(view: &View, name: &str, contents: &[u8]) -> StorePath {
    let nar = file(contents).nar();
    let mut ingest = view.ingest(&[]).unwrap();
    std::io::Write::write_all(&mut ingest, &nar).unwrap();
    view.register(ingest.finish().unwrap(), info(&path(name), &nar, &[]), Provenance::Verified).unwrap();
    path(name)
}

fn record(store: &Store, view: &View, name: &str, n: u8) {
    let info = view.info(&path(name)).unwrap();
    let output = RecordedOutput {
        path: info.path.clone(),
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.clone(),
        ca: None,
    };
    let end = RecordEnd::Built { outputs: [("out".to_owned(), output)].into(), log: None };
    store.record_result(&[n; 32], BuildRecord { drv: path("d.drv"), time: 1, end }).unwrap();
    let id = RealisationId { drv_hash: [n; 32], output: "out".to_owned() };
    view.add_realisation(id, info.path.clone(), Provenance::Claimed(alice())).unwrap();
    view.add_root(&n.to_string(), &info.path).unwrap();
}

fn delete(view: &View, name: &str) {
    let paths = [path(name)].into();
    let wish = Collect { action: CollectAction::DeleteSpecific, paths, max_freed: u64::MAX };
    assert_eq!(view.collect(&wish).unwrap().paths.len(), 1);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), &to).unwrap()),
        }
    }
}

/// Makes the store look as if its last process had run in another boot; and, if given, with another number in
/// the marker.
fn in_another_boot(dir: &Path, through: Option<i64>) {
    let line = fs::read_to_string(dir.join("durable")).unwrap();
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let through = through.map_or(words[4].to_owned(), |n| n.to_string());
    (words[3], words[4]) = ("another-boot", &through);
    let said = words[..5].join(" ");
    let line = format!("{said} {}", nixbase32::encode(&Sha256::digest(&said)[..20]));
    fs::write(dir.join("durable"), format!("{line:<255}\n")).unwrap();
}

/// A store right after a flush, and some time later, with no flush in between.
struct TwoMoments {
    dir: tempfile::TempDir,
    /// The paths that alice had at the flush and has not deleted since.
    old: BTreeSet<StorePath>,
}

fn two_moments() -> TwoMoments {
    for _ in 0..10 {
        let dir = scratch();
        let root = dir.path().join("store");
        let store = open(&root);
        let (a, b) = (store.view(&alice()), store.view(&bob()));
        let mut old = BTreeSet::new();
        for n in 0..8 {
            old.insert(claim(&a, &format!("old-{n}"), &noise(n + 1, 20_000), &[]));
        }
        old.insert(verified(&b, "for-all", &noise(50, 30_000)));
        claim(&a, "goes", &noise(60, 40_000), &[]);
        claim(&b, "bobs", &noise(61, 40_000), &[]);
        record(&store, &a, "old-3", 1);
        store.tidy().unwrap();
        let flushed = Instant::now();
        copy(&root, &dir.path().join("flushed"));

        // Deleted, and then made again: the name of an object that the marker covers gets new bytes.
        delete(&a, "goes");
        delete(&b, "bobs");
        claim(&a, "again", &noise(60, 40_000), &[]);
        claim(&b, "bobs", &noise(61, 40_000), &[]);
        // The same contents as an old path, under another name and for another member.
        claim(&b, "same", &noise(2, 20_000), &[]);
        claim(&a, "same", &noise(3, 20_000), &["old-2"]);
        for n in 0..10_u64 {
            let before = format!("new-{}", n.saturating_sub(1));
            let references: &[&str] = if n == 0 { &["old-1"] } else { &[&before] };
            claim(&a, &format!("new-{n}"), &noise(100 + n, 1000 + 9000 * n as usize), references);
        }
        verified(&a, "new-for-all", &noise(200, 50_000));
        record(&store, &a, "new-9", 2);
        record(&store, &a, "old-4", 3);
        copy(&root, &dir.path().join("later"));
        // Later, a flush might have come in between.
        if flushed.elapsed() < Duration::from_secs(4) {
            return TwoMoments { dir, old };
        }
    }
    panic!("this machine is too busy to do so little within four seconds");
}

/// The simulated disk's version of a file that was not flushed.
fn damaged(random: &mut Random, good: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = good.to_vec();
    match random.below(5) {
        0 => return None,
        1 => {}
        2 => bytes.truncate(random.below(good.len())),
        3 => {
            // Its size arrived, its data did not.
            for page in bytes.chunks_mut(PAGE).skip(1) {
                if random.below(2) == 0 {
                    page.fill(0);
                }
            }
        }
        _ => {
            let pages = bytes.len().div_ceil(PAGE);
            let page = random.below(pages);
            let end = bytes.len().min((page + 1) * PAGE);
            bytes[page * PAGE..end].fill(0);
        }
    }
    Some(bytes)
}

/// The log at the flush, followed by those blocks written later that reached the disk.
fn log(random: &mut Random, flushed: &[u8], later: &[u8]) -> Vec<u8> {
    assert!(later.starts_with(flushed), "there was a checkpoint");
    let mut bytes = later.to_vec();
    if random.below(3) == 0 {
        bytes.truncate(flushed.len() + random.below(later.len() - flushed.len() + 1));
    }
    if random.below(2) == 0 {
        let lost = 1 + random.below(20);
        for page in bytes[flushed.len()..].chunks_mut(PAGE) {
            if random.below(lost) == 0 {
                page.fill(0);
            }
        }
    }
    bytes
}

fn disk(moments: &TwoMoments, seed: u64) -> std::path::PathBuf {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (flushed, later) = (moments.dir.path().join("flushed"), moments.dir.path().join("later"));
    let root = moments.dir.path().join(format!("disk-{seed}"));
    copy(&flushed, &root);
    for entry in fs::read_dir(later.join("new")).unwrap() {
        let entry = entry.unwrap();
        if let Some(bytes) = damaged(&mut random, &fs::read(entry.path()).unwrap()) {
            fs::write(root.join("new").join(entry.file_name()), bytes).unwrap();
        }
    }
    let wal = |dir: &Path| fs::read(dir.join("index.sqlite-wal")).unwrap();
    fs::write(root.join("index.sqlite-wal"), log(&mut random, &wal(&flushed), &wal(&later))).unwrap();
    root
}

/// Number of visible paths with wrong contents.
fn wrong(store: &Store) -> usize {
    let mut wrong = 0;
    for member in [alice(), bob()] {
        let view = store.view(&member);
        for path in view.all_valid() {
            wrong += usize::from(view.verify(&path).is_err());
            assert!(view.closure(std::slice::from_ref(&path)).is_ok());
        }
        assert!(view.roots().values().all(|path| view.is_valid(path)));
        for n in 1..4 {
            let id = RealisationId { drv_hash: [n; 32], output: "out".to_owned() };
            assert!(view.realisation(&id).is_none_or(|(path, ..)| view.is_valid(&path)));
        }
    }
    let view = store.view(&alice());
    for n in 1..4 {
        let Some(record) = store.result(&[n; 32]) else { continue };
        let RecordEnd::Built { outputs, .. } = &record.end else { panic!("{record:?}") };
        assert!(view.is_valid(&outputs["out"].path));
    }
    wrong
}

#[test]
fn whatever_a_disk_has_after_a_power_loss_what_is_served_is_whole_and_what_was_flushed_is_there() {
    let moments = two_moments();
    let (mut lost, mut believed_too_much, mut newer) = (0, 0, 0);
    for seed in 0..DISKS {
        let root = disk(&moments, seed);
        // With a wrong number in the marker the simulated damage becomes visible, so it is real.
        let naive = moments.dir.path().join("naive");
        copy(&root, &naive);
        in_another_boot(&naive, Some(i64::MAX / 2));
        // Files below new/ are hashed in any case, so this gives them their names first.
        for entry in fs::read_dir(naive.join("new")).unwrap() {
            let entry = entry.unwrap();
            let header = fs::read(entry.path()).unwrap();
            if let Some(hash) = header.get(32..64) {
                fs::rename(entry.path(), naive.join("objects").join(nixbase32::encode(hash))).unwrap();
            }
        }
        believed_too_much += wrong(&open(&naive));
        fs::remove_dir_all(&naive).unwrap();

        in_another_boot(&root, None);
        let store = open(&root);
        let valid = store.view(&alice()).all_valid();
        assert!(moments.old.is_subset(&valid), "disk {seed}: lost {:?}", moments.old.difference(&valid));
        assert_eq!(wrong(&store), 0, "disk {seed}");
        assert!(store.view(&alice()).roots().contains_key("1"), "disk {seed}");
        newer += valid.difference(&moments.old).count();
        lost += store.recovery().lost_paths;
        // The store works as any other afterwards.
        claim(&store.view(&alice()), "afterwards", b"x", &["old-0"]);
        drop(store);
        assert_eq!(*open(&root).recovery(), Recovery::default(), "disk {seed}");
        fs::remove_dir_all(&root).unwrap();
    }
    // Otherwise the test would prove nothing.
    println!(
        "{lost} paths lost, {newer} newer ones kept, {believed_too_much} would have been served damaged"
    );
    assert!(lost > DISKS as usize && newer > DISKS as usize && believed_too_much > 0);
}

#[test]
fn a_store_that_is_never_flushed_is_forgotten_by_a_boot_and_by_nothing_else() {
    let dir = scratch();
    let config = |durability| StoreConfig { durability, ..StoreConfig::default() };
    let open = |durability| Store::open(dir.path(), config(durability)).unwrap();
    let store = open(Durability::None);
    claim(&store.view(&alice()), "p", b"x", &[]);
    drop(store);
    let store = open(Durability::None);
    assert_eq!(*store.recovery(), Recovery::default());
    assert_eq!(store.view(&alice()).all_valid().len(), 1);
    drop(store);
    in_another_boot(dir.path(), None);
    // Also if the store is flushed from now on: the state of the disk is unknown.
    let store = open(Durability::Flush);
    assert_eq!(*store.recovery(), Recovery { forgotten: true, ..Recovery::default() });
    assert!(store.view(&alice()).all_valid().is_empty());
    assert_eq!(count(&dir.path().join("objects")), 0);
    claim(&store.view(&alice()), "q", b"y", &[]);
    drop(store);
    in_another_boot(dir.path(), None);
    let store = open(Durability::None);
    assert_eq!(*store.recovery(), Recovery::default());
    assert_eq!(store.view(&alice()).all_valid(), [path("q")].into());
}

#[test]
fn without_a_marker_everything_is_hashed() {
    let dir = scratch();
    let store = open(dir.path());
    for n in 0..3 {
        claim(&store.view(&alice()), &format!("p{n}"), &noise(n + 1, 9000), &[]);
    }
    let broken = store.view(&alice()).info(&path("p1")).unwrap().nar_hash;
    drop(store);
    let object = dir.path().join("objects").join(nixbase32::encode(&broken));
    let mut bytes = fs::read(&object).unwrap();
    bytes[5000] ^= 1;
    fs::remove_file(&object).unwrap();
    fs::write(&object, bytes).unwrap();
    // A store of an older version, or one whose marker was only partly written.
    fs::remove_file(dir.path().join("durable")).unwrap();
    let store = open(dir.path());
    let found = store.recovery();
    assert_eq!((found.checked_objects, found.damaged_objects, found.lost_paths), (3, 1, 1));
    assert_eq!(store.view(&alice()).all_valid(), [path("p0"), path("p2")].into());
}
