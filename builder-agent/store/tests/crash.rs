//! A store whose process was killed at any moment opens again, and everything that is visible is complete.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use store::{Collect, CollectAction, Durability, Provenance, RealisationId, Store, StoreConfig};

/// Set in the child process, which then does not test but uploads until it is killed.
const CHILD: &str = "STORE_CRASH_CHILD";
/// Number of times that a child is killed, for each kind of durability. Each run takes as long as its delay.
const KILLS: u64 = 18;

fn open_as(dir: &Path, durability: Durability) -> Store {
    Store::open(dir, StoreConfig { durability, ..StoreConfig::default() }).unwrap()
}

/// The contents of `p<round>-<i>`, so that the parent can tell whether they are right.
fn contents(round: u64, i: u64) -> Tree {
    let size = [10, 5000, 200_000, 2_000_000][(i % 4) as usize];
    dir([
        ("data", file(noise(round * 1_000_003 + i + 1, size))),
        ("more", dir([("x", file(format!("{i}")))])),
    ])
}

fn child(dir: &str, round: u64, durability: Durability) -> ! {
    let store = open_as(dir.as_ref(), durability);
    let view = store.view(&alice());
    println!("ready");
    for i in 0.. {
        // Single paths and batches, each referring to the path before.
        let batch: Vec<_> = (0..if i % 3 == 0 { 10 } else { 1 })
            .map(|j| {
                let n = i * 100 + j;
                let nar = contents(round, n).nar();
                let mut ingest = view.ingest(&[]).unwrap();
                nar.chunks(10_000).for_each(|p| ingest.write_all(p).unwrap());
                let before = path(&format!("p{round}-{}", n.saturating_sub(if j == 0 { 100 } else { 1 })));
                let info = info(&path(&format!("p{round}-{n}")), &nar, &[&before]);
                let provenance = if n % 2 == 0 { Provenance::Verified } else { Provenance::Claimed(alice()) };
                view.stage_built(ingest.finish().unwrap(), info, provenance).unwrap()
            })
            .collect();
        let last = batch.last().map(|s| s.info().path.clone());
        let infos = view.register_many(batch).unwrap();
        if i % 2 == 1 {
            keep_records(&store, &view, &infos[0], round * 1000 + i);
        }
        if i % 4 == 3 {
            bobs_garbage(&store, round * 1000 + i);
        }
        if i % 5 == 4 {
            store.tidy().unwrap();
        }
        println!("{}", last.unwrap().to_basename());
    }
    unreachable!("the loop does not end")
}

/// A result, a realisation and a root that name `info`.
fn keep_records(store: &Store, view: &store::View, info: &nix::PathInfo, n: u64) {
    let output = store::RecordedOutput {
        path: info.path.clone(),
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references.clone(),
        ca: None,
    };
    let end = store::RecordEnd::Built { outputs: [("out".to_owned(), output)].into(), log: None };
    let record = store::BuildRecord { drv: path("d.drv"), time: 1, end };
    store.record_result(&key(n), record).unwrap();
    let id = RealisationId { drv_hash: key(n), output: "out".to_owned() };
    view.add_realisation(id, info.path.clone(), Provenance::Verified).unwrap();
    view.add_root(&n.to_string(), &info.path).unwrap();
}

fn key(n: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_le_bytes());
    key
}

/// Uploads by several threads at once, a result that names one of them, and all of it collected again.
fn bobs_garbage(store: &Store, n: u64) {
    let view = store.view(&bob());
    std::thread::scope(|scope| {
        for t in 0..3 {
            let view = view.clone();
            scope.spawn(move || {
                let nar = file(noise(n * 10 + t + 1, 100_000)).nar();
                view.import(info(&path(&format!("b{n}-{t}")), &nar, &[]), &mut &nar[..]).unwrap();
            });
        }
    });
    let one = view.info(&path(&format!("b{n}-0"))).unwrap();
    keep_records(store, &view, &one, u64::MAX - n);
    view.remove_root(&(u64::MAX - n).to_string()).unwrap();
    let wish = Collect { action: CollectAction::DeleteDead, paths: [].into(), max_freed: u64::MAX };
    assert_eq!(view.collect(&wish).unwrap().paths.len(), 3);
    assert!(store.result(&key(u64::MAX - n)).is_none());
}

#[test]
fn killed_at_any_moment_every_visible_path_is_whole() {
    kill_again_and_again("killed_at_any_moment_every_visible_path_is_whole", Durability::Flush);
}

#[test]
fn killed_at_any_moment_a_store_that_is_never_flushed_is_whole() {
    kill_again_and_again("killed_at_any_moment_a_store_that_is_never_flushed_is_whole", Durability::None);
}

/// `test` is the name of the calling test: this test program runs it again as the child.
fn kill_again_and_again(test: &str, durability: Durability) {
    if let Ok(value) = std::env::var(CHILD) {
        let (round, dir) = value.split_once(' ').unwrap();
        child(dir, round.parse().unwrap(), durability);
    }
    let dir = scratch();
    let (mut visible, mut interrupted) = (0, 0);
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CHILD, format!("{round} {}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while lines.next().unwrap().unwrap() != "ready" {}
        // Between any two registrations, at a different moment each time: during a write, a sync, a rename, a
        // commit.
        let mut acknowledged = Vec::new();
        for _ in 0..round % 6 {
            acknowledged.push(lines.next().unwrap().unwrap());
        }
        std::thread::sleep(Duration::from_micros(round * 270));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(lines.map_while(Result::ok));

        let store = open_as(dir.path(), durability);
        interrupted += store.recovery().temporary_files + store.recovery().unregistered_objects;
        assert_eq!((store.recovery().lost_paths, store.recovery().lost_records), (0, 0));
        let view = store.view(&alice());
        let paths = view.all_valid();
        // Every recorded result, realisation and root names a valid path.
        for n in (0..=round).flat_map(|round| (0..200).map(move |i| round * 1000 + i)) {
            if let Some(result) = store.result(&key(n)) {
                let store::RecordEnd::Built { outputs, .. } = &result.end else { panic!("{result:?}") };
                assert!(paths.contains(&outputs["out"].path));
            }
            let id = RealisationId { drv_hash: key(n), output: "out".to_owned() };
            assert!(view.realisation(&id).is_none_or(|(path, ..)| paths.contains(&path)));
        }
        assert!(view.roots().values().all(|path| paths.contains(path)));
        for path in &paths {
            view.verify(path).unwrap();
            assert!(view.closure(std::slice::from_ref(path)).is_ok());
        }
        // Every path reported as registered is there; every path that is there has the right contents.
        for name in &acknowledged {
            // The child's test harness prints lines of its own.
            if let Ok(path) = nix_derivation::StorePath::from_basename(name.as_bytes()) {
                assert!(paths.contains(&path), "{name} was reported as registered");
                let (round, i) = path.name()[1..].split_once('-').unwrap();
                let nar = contents(round.parse().unwrap(), i.parse().unwrap()).nar();
                assert!(nar_of(&view, &path) == nar, "{name}");
            }
        }
        assert_eq!(count(&dir.path().join("tmp")) + count(&dir.path().join("new")), 0);
        let bobs = store.view(&bob());
        for path in bobs.all_valid() {
            bobs.verify(&path).unwrap();
        }
        let hash = |view: &store::View, p: &nix_derivation::StorePath| view.info(p).unwrap().nar_hash;
        let mut objects: std::collections::BTreeSet<_> = paths.iter().map(|p| hash(&view, p)).collect();
        objects.extend(bobs.all_valid().iter().map(|p| hash(&bobs, p)));
        assert_eq!(count(&dir.path().join("objects")), objects.len());
        visible = visible.max(paths.len());
    }
    // Otherwise the kills came too early or too late to prove anything.
    assert!(visible > 20, "only {visible} paths were ever registered");
    assert!(interrupted > 0, "no kill interrupted a write");
    println!("{visible} paths in the end, {interrupted} leftovers removed");
}

fn filled() -> (tempfile::TempDir, Vec<nix_derivation::StorePath>) {
    let dir = scratch();
    let view = open(dir.path()).view(&alice());
    let paths: Vec<_> = (0..4).map(|i| path(&format!("p{i}"))).collect();
    for (i, p) in paths.iter().enumerate() {
        let nar = file(noise(i as u64 + 1, 9000)).nar();
        // p0 <- p1 <- p2, and p3 alone.
        let refs: Vec<_> = if (1..3).contains(&i) { vec![&paths[i - 1]] } else { vec![] };
        view.import(info(p, &nar, &refs), &mut &nar[..]).unwrap();
    }
    // The store is closed by now, so all objects have their names.
    drop(view);
    (dir, paths)
}

fn object_of(
    dir: &tempfile::TempDir,
    view: &store::View,
    path: &nix_derivation::StorePath,
) -> std::path::PathBuf {
    let hash = nix_derivation::nixbase32::encode(&view.info(path).unwrap().nar_hash);
    dir.path().join("objects").join(hash)
}

#[test]
fn a_lost_object_takes_its_path_and_all_that_refer_to_it_along() {
    for truncate in [false, true] {
        let (dir, paths) = filled();
        let store = open(dir.path());
        let object = object_of(&dir, &store.view(&alice()), &paths[0]);
        drop(store);
        if truncate {
            let file = fs::File::options().write(true).open(&object).unwrap();
            file.set_len(4096).unwrap();
        } else {
            fs::remove_file(&object).unwrap();
        }
        let store = open(dir.path());
        assert_eq!(store.recovery().lost_paths, 3);
        assert_eq!(store.view(&alice()).all_valid(), [paths[3].clone()].into());
        assert_eq!(count(&dir.path().join("objects")), 1);
        drop(store);
        assert_eq!(*open(dir.path()).recovery(), store::Recovery::default());
    }
}

#[test]
fn leftovers_are_removed_and_strange_files_are_not() {
    let (dir, _) = filled();
    fs::write(dir.path().join("tmp/17"), b"half").unwrap();
    fs::write(dir.path().join("objects").join(nix_derivation::nixbase32::encode(&[9; 32])), b"x").unwrap();
    fs::write(dir.path().join("objects/README"), b"x").unwrap();
    fs::create_dir_all(dir.path().join("trees/new-3/sub")).unwrap();
    let store = open(dir.path());
    assert_eq!((store.recovery().temporary_files, store.recovery().unregistered_objects), (1, 1));
    assert_eq!(count(&dir.path().join("objects")), 5);
    assert!(!dir.path().join("trees/new-3").exists());
    assert_eq!(store.view(&alice()).all_valid().len(), 4);
}

#[test]
fn trees_survive_a_restart_and_not_a_reboot() {
    let (dir, paths) = filled();
    let tree = unpacked(&open(dir.path()).view(&alice()), &paths[0]);
    open(dir.path());
    assert!(tree.exists());
    fs::write(dir.path().join("trees/boot"), "another boot").unwrap();
    open(dir.path());
    assert!(!tree.exists());
}

#[test]
fn a_damaged_object_is_reported_and_never_followed() {
    let (dir, paths) = filled();
    let store = open(dir.path());
    let view = store.view(&alice());
    let object = object_of(&dir, &view, &paths[3]);
    let good = fs::read(&object).unwrap();
    let write = |bytes: &[u8]| {
        fs::remove_file(&object).unwrap();
        fs::write(&object, bytes).unwrap();
    };
    // Every byte of header and metadata, one after the other; the data is 3 blocks from byte 4096 on.
    let places = (0..72).chain(4096 * 4..good.len()).step_by(3);
    let mut noticed = 0;
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        write(&bad);
        let outcomes = [
            view.verify(&paths[3]).is_err(),
            view.snapshot([&paths[3]]).unwrap().compose().is_err(),
            view.read_file(&paths[3], 1 << 20).is_err(),
        ];
        noticed += usize::from(outcomes.contains(&true));
    }
    assert!(noticed > 40, "{noticed}");
    // Only the hash detects a flipped bit in the data.
    let mut bad = good.clone();
    bad[5000] ^= 1;
    write(&bad);
    assert!(view.verify(&paths[3]).unwrap_err().to_string().contains("damaged"));
    write(&good[..good.len() - 4096]);
    assert!(view.nar(&paths[3]).is_err());
    write(&good);
    view.verify(&paths[3]).unwrap();
}

#[test]
fn a_store_is_opened_by_one_process_at_a_time() {
    let dir = scratch();
    let store = open(dir.path());
    let Err(error) = Store::open(dir.path(), StoreConfig::default()) else { panic!("opened twice") };
    assert!(error.to_string().contains("is in use by another process"), "{error}");
    // A reader also keeps the store open: recovery would remove the files that it reads.
    let view = store.view(&alice());
    drop(store);
    assert!(Store::open(dir.path(), StoreConfig::default()).is_err());
    drop(view);
    open(dir.path());
}

#[test]
fn an_index_of_the_future_is_refused() {
    let dir = scratch();
    drop(open(dir.path()));
    let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let Err(error) = Store::open(dir.path(), StoreConfig::default()) else { panic!("opened") };
    assert!(error.to_string().contains("schema 99, this version knows 5"), "{error}");
}

#[test]
fn parallel_uploads_of_the_same_and_of_different_paths_all_succeed() {
    let dir = scratch();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        for t in 0..8 {
            let view = store.view(&if t % 2 == 0 { alice() } else { bob() });
            scope.spawn(move || {
                for i in 0..20 {
                    let (name, seed) = if i % 2 == 0 {
                        (format!("same-{i}"), i)
                    } else {
                        (format!("t{t}-{i}"), t * 100 + i)
                    };
                    let nar = file(noise(seed + 1, 3000)).nar();
                    let p = path(&name);
                    view.import(info(&p, &nar, &[]), &mut &nar[..]).unwrap();
                    view.verify(&p).unwrap();
                }
            });
        }
    });
    assert_eq!(store.view(&alice()).all_valid().len(), 10 + 4 * 10);
    drop(store);
    assert_eq!(*open(dir.path()).recovery(), store::Recovery::default());
}

#[test]
fn an_upload_interrupted_anywhere_leaves_no_file_and_nothing_visible() {
    let dir_ = scratch();
    let store = open(dir_.path());
    let view = store.view(&alice());
    let nar = dir([("large", file(noise(1, 700_000))), ("small", file("x"))]).nar();
    let left = || (count(&dir_.path().join("tmp")), count(&dir_.path().join("objects")));
    for cut in (0..nar.len()).step_by(nar.len() / 23).chain([nar.len() - 1]) {
        // Three cases: an upload is cut off; an ingest is dropped in the middle; a complete upload is never
        // registered.
        view.import(info(&path("p"), &nar, &[]), &mut &nar[..cut]).unwrap_err();
        let mut ingest = view.ingest(&[]).unwrap();
        ingest.write_all(&nar[..cut]).unwrap();
        drop(ingest);
        assert_eq!(left(), (0, 0), "cut at {cut}");
    }
    let batch: Vec<_> = (0..10)
        .map(|i| view.stage(info(&path(&format!("p{i}")), &nar, &[]), &mut &nar[..]).unwrap())
        .collect();
    drop(batch);
    // A batch in which one path is refused.
    let missing = path("missing");
    let bad = vec![
        view.stage(info(&path("good"), &nar, &[]), &mut &nar[..]).unwrap(),
        view.stage(info(&path("bad"), &nar, &[&missing]), &mut &nar[..]).unwrap(),
    ];
    view.register_many(bad).unwrap_err();
    assert_eq!(left(), (0, 0));
    assert!(view.all_valid().is_empty());
    drop((view, store));
    assert_eq!(*open(dir_.path()).recovery(), store::Recovery::default());
}
