//! The box evicts what was not used for the longest time and what nobody needs. No view has a hole afterwards, no name gets
//! other contents, and what is needed stays.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use nix_derivation::StorePath;
use store::{BuildRecord, Provenance, RealisationId, RecordEnd, RecordedOutput, Recovery, Store, View};

/// As large as an object that several of the smallest fit into.
const BIG: usize = 300_000;
const ALL: u64 = u64::MAX;

/// Uses after this one are later.
fn later() {
    std::thread::sleep(Duration::from_millis(3));
}

fn put(view: &View, name: &str, seed: u64, references: &[&StorePath], provenance: Provenance) -> StorePath {
    let nar = file(noise(seed, BIG)).nar();
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    view.register(ingest.finish().unwrap(), info(&path(name), &nar, references), provenance).unwrap();
    later();
    path(name)
}

fn verified(view: &View, name: &str, seed: u64, references: &[&StorePath]) -> StorePath {
    put(view, name, seed, references, Provenance::Verified)
}

fn claimed(view: &View, name: &str, seed: u64, references: &[&StorePath]) -> StorePath {
    put(view, name, seed, references, Provenance::Claimed(view.member().clone()))
}

fn names(paths: &[&StorePath]) -> BTreeSet<StorePath> {
    paths.iter().map(|p| (*p).clone()).collect()
}

/// Evicts one object's worth of bytes.
fn evict_one(store: &Store) -> u64 {
    store.evict(1, "a test").unwrap().paths
}

/// The reference of every visible path is visible.
fn has_no_hole(view: &View) {
    for path in view.all_valid() {
        view.closure(&[path]).unwrap();
    }
}

fn objects(dir: &Path) -> usize {
    count(&dir.join("objects"))
}

#[test]
fn what_was_not_used_for_the_longest_time_goes_first_with_what_refers_to_it() {
    let dir = scratch();
    let store = open(dir.path());
    let a = store.view(&alice());
    let base = verified(&a, "base", 1, &[]);
    let old = verified(&a, "old", 2, &[]);
    let unused = verified(&a, "unused", 3, &[&old]);
    let top = verified(&a, "top", 4, &[&base, &a_self("top")]);
    assert_eq!(a.info(&base).unwrap().path, base);
    later();
    // Whoever uses the top needs its base.
    assert!(a.is_valid(&top));
    // `old` is the oldest, and `unused` refers to it; an age is that of the newest that refers to it.
    assert_eq!(evict_one(&store), 1);
    assert_eq!(a.all_valid(), names(&[&base, &old, &top]), "the referrer first");
    assert_eq!(evict_one(&store), 1);
    assert_eq!(a.all_valid(), names(&[&base, &top]));
    assert_eq!(evict_one(&store), 1);
    assert_eq!(a.all_valid(), names(&[&base]));
    has_no_hole(&a);
    let evicted = store.evict(ALL, "a test").unwrap();
    assert_eq!((evicted.paths, evicted.objects), (1, 1));
    assert_eq!((evict_one(&store), objects(dir.path())), (0, 0), "its file is gone when this returns");
    let _ = unused;
    drop((a, store));
    assert_eq!(*open(dir.path()).recovery(), Recovery::default());
}

fn a_self(name: &str) -> StorePath {
    path(name)
}

#[test]
fn roots_sessions_and_inputs_of_builds_stay_with_their_closures() {
    let dir = scratch();
    let store = open(dir.path());
    let a = store.view(&alice());
    let base = verified(&a, "base", 1, &[]);
    let rooted = verified(&a, "rooted", 2, &[&base]);
    let told = verified(&a, "told", 3, &[]);
    let input = verified(&a, "input", 4, &[]);
    let held = claimed(&a, "held", 5, &[]);
    let hers = claimed(&a, "hers", 6, &[]);
    let idle = verified(&a, "idle", 7, &[]);
    a.add_root("r", &rooted).unwrap();
    // Sessions of other members keep what is theirs to see, and nothing else of alice.
    let session = store.view(&bob()).holding();
    assert!(session.is_valid(&told) && !session.is_valid(&hers));
    session.hold([&hers]).unwrap();
    let build = store.view(&bob()).snapshot([&input]).unwrap();
    let own = store.view(&alice()).holding();
    own.hold([&held]).unwrap();
    store.evict(ALL, "a test").unwrap();
    assert_eq!(a.all_valid(), names(&[&base, &rooted, &told, &input, &held]));
    let _ = idle;
    drop((session, build, own));
    a.remove_root("r").unwrap();
    store.evict(ALL, "a test").unwrap();
    assert_eq!(a.all_valid(), BTreeSet::new());
}

#[test]
fn a_claim_goes_with_what_it_refers_to_and_never_appears_in_its_place() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    // Alice claims other contents of the name that becomes Verified, and bob builds on the Verified ones.
    let base = claimed(&a, "base", 1, &[]);
    let hers = claimed(&a, "hers", 2, &[&base]);
    verified(&b, "base", 3, &[]);
    let his = claimed(&b, "his", 4, &[&base]);
    let public = a.info(&base).unwrap().nar_hash;
    a.add_root("r", &hers).unwrap();
    store.evict(ALL, "a test").unwrap();
    assert_eq!(
        (b.all_valid(), a.all_valid()),
        (names(&[&base]), names(&[&base, &hers])),
        "alice's root needs it"
    );
    assert_eq!(a.info(&base).unwrap().nar_hash, public);
    a.remove_root("r").unwrap();
    store.evict(ALL, "a test").unwrap();
    assert_eq!((a.all_valid(), b.all_valid()), (BTreeSet::new(), BTreeSet::new()), "not even her old claim");
    let _ = his;
}

#[test]
fn after_an_eviction_other_contents_can_come_and_nothing_of_the_earlier_is_combined_with_them() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    let base = verified(&a, "base", 1, &[]);
    let top = verified(&a, "top", 2, &[&base]);
    let claim = claimed(&b, "claim", 3, &[&top]);
    let id = RealisationId { drv_hash: [1; 32], output: "out".to_owned() };
    a.add_realisation(id.clone(), top.clone(), Provenance::Verified).unwrap();
    let his = RealisationId { drv_hash: [2; 32], output: "out".to_owned() };
    b.add_realisation(his.clone(), base.clone(), Provenance::Claimed(bob())).unwrap();
    let output = |path: &StorePath| {
        let info = a.info(path).unwrap();
        RecordedOutput {
            path: path.clone(),
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
            ca: None,
        }
    };
    let end = RecordEnd::Built { outputs: [("out".to_owned(), output(&top))].into(), log: None };
    store.record_result(&[3; 32], BuildRecord { drv: path("d.drv"), time: 1, end }).unwrap();
    store.evict(ALL, "a test").unwrap();
    assert!(
        a.realisation(&id).is_none() && b.realisation(&his).is_none() && store.result(&[3; 32]).is_none()
    );

    verified(&a, "base", 9, &[]);
    assert_eq!((a.all_valid(), b.all_valid()), (names(&[&base]), names(&[&base])));
    let _ = (top, claim);
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), Recovery::default());
    store.view(&alice()).verify(&base).unwrap();
}

#[test]
fn a_member_who_brings_much_pushes_out_their_own_paths() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    let (old, base) = (verified(&a, "old", 1, &[]), verified(&b, "base", 2, &[]));
    let on_his = claimed(&a, "on-his", 3, &[&base]);
    for n in 0..6 {
        claimed(&b, &format!("claim-{n}"), 10 + n, &[]);
        verified(&b, &format!("verified-{n}"), 20 + n, &[]);
    }
    // Alice has two objects and bob thirteen, so he has more than the average until eleven of his are gone. Alice has built
    // on the other two.
    for left in (0..11).rev() {
        assert_eq!(evict_one(&store), 1);
        assert!([&old, &on_his, &base].into_iter().all(|path| a.all_valid().contains(path)), "{left}");
    }
    // From there on the oldest goes, whoever brought it.
    assert_eq!(evict_one(&store), 1);
    assert!(!a.all_valid().contains(&old) && a.all_valid().contains(&on_his));
}

#[test]
fn an_eviction_that_somebody_asks_for_spares_all_that_is_needed() {
    // What the box does when room is short: `src/store_test.rs`, and tests/attacks.
    let dir = scratch();
    let store = open(dir.path());
    let a = store.view(&alice());
    let all: Vec<StorePath> = (0..5).map(|n| verified(&a, &format!("p{n}"), n, &[])).collect();
    let session = store.view(&bob()).holding();
    assert_eq!(session.query_valid(&all).len(), 5);
    assert_eq!(store.evict(ALL, "a test").unwrap().paths, 0);
}

#[test]
fn the_last_use_survives_a_restart_if_it_is_older_than_an_hour() {
    let dir = scratch();
    let store = open(dir.path());
    let a = store.view(&alice());
    let (first, second) = (verified(&a, "first", 1, &[]), verified(&a, "second", 2, &[]));
    drop((a, store));
    // Two hours ago, in the order of their registration.
    let age = |sql: &str| {
        let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
        assert_eq!(db.execute(sql, []).unwrap(), 2);
    };
    age("UPDATE paths SET used = used - 7200000");
    let store = open(dir.path());
    assert!(store.view(&bob()).is_valid(&first));
    store.tidy().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(evict_one(&store), 1);
    assert_eq!(store.view(&alice()).all_valid(), names(&[&first]));
    let _ = second;
}

#[test]
fn an_index_of_schema_3_is_migrated_and_its_paths_are_the_boxs() {
    let dir = scratch();
    let store = open(dir.path());
    let a = store.view(&alice());
    let (claim, proven) = (claimed(&a, "claim", 1, &[]), verified(&a, "proven", 2, &[]));
    drop((a, store));
    let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
    db.execute_batch(
        "ALTER TABLE paths DROP COLUMN payer; ALTER TABLE paths DROP COLUMN used;
         ALTER TABLE results DROP COLUMN silent; ALTER TABLE results DROP COLUMN seconds; PRAGMA user_version = 3;",
    )
    .unwrap();
    drop(db);
    let store = open(dir.path());
    assert_eq!(*store.recovery(), Recovery::default());
    let a = store.view(&alice());
    assert_eq!(a.all_valid(), names(&[&claim, &proven]));
    let (charged, _) = a.charged();
    assert!((BIG as u64..2 * BIG as u64).contains(&charged), "her claim alone: {charged}");
    // The old paths count as used when they were registered, to the second.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(store.oldest_use().is_some_and(|used| (now - 600..=now).contains(&used)));
}

/// Set in the child process, which then brings and evicts paths until it is killed.
const CHILD: &str = "STORE_EVICT_CHILD";
const KILLS: u64 = 12;

fn bring_and_evict(dir: &str, round: u64) -> ! {
    let store = open(dir.as_ref());
    let a = store.view(&alice());
    println!("ready");
    let mut last: Option<StorePath> = None;
    for n in round * 10_000.. {
        let nar = file(noise(n, 40_000)).nar();
        let i = info(&path(&format!("p{n}")), &nar, &last.iter().collect::<Vec<_>>());
        let mut ingest = a.ingest(&[]).unwrap();
        ingest.write_all(&nar).unwrap();
        let provenance = if n % 3 == 0 { Provenance::Claimed(alice()) } else { Provenance::Verified };
        // An eviction may have taken the path before; then a new chain begins.
        let registered = a.register(ingest.finish().unwrap(), i, provenance);
        last = registered.ok().filter(|_| n % 7 != 0).map(|info| info.path.clone());
        if n % 4 == 3 {
            store.evict(60_000, "a test").unwrap();
        }
    }
    unreachable!("the loop does not end")
}

#[test]
fn killed_at_any_moment_an_eviction_leaves_no_hole_and_no_damaged_path() {
    if let Ok(value) = std::env::var(CHILD) {
        let (round, dir) = value.split_once(' ').unwrap();
        bring_and_evict(dir, round.parse().unwrap());
    }
    let dir = scratch();
    let mut seen = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "killed_at_any_moment_an_eviction_leaves_no_hole_and_no_damaged_path",
                "--nocapture",
            ])
            .env(CHILD, format!("{round} {}", dir.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while lines.next().unwrap().unwrap() != "ready" {}
        // At another moment each time.
        std::thread::sleep(Duration::from_micros(3000 + round * 1370));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(dir.path());
        let recovery = store.recovery();
        assert_eq!((recovery.lost_paths, recovery.lost_records, recovery.damaged_objects), (0, 0, 0));
        let view = store.view(&alice());
        has_no_hole(&view);
        let all = view.all_valid();
        all.iter().for_each(|path| view.verify(path).unwrap());
        seen += all.len();
    }
    assert!(seen > 0, "the child did something before it was killed");
}
