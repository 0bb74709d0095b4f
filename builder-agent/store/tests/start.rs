//! No stored data keeps the store from opening: neither what a member may store, nor damage on the disk.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use common::*;
use nix_derivation::StorePath;
use store::{Provenance, RealisationId, Recovery, Store, View};

/// References of one path, as many as are accepted.
const MOST: usize = 30_000;

/// Registers `name` as alice's claim with the contents of another of her paths.
fn adopt(a: &View, name: &str, references: BTreeSet<StorePath>) -> Result<(), store::RegisterError> {
    let like = a.info(&path("link")).expect("it is there");
    let info = nix::PathInfo { path: path(name), references, ..nix::PathInfo::clone(&like) };
    a.adopt(vec![(info, Provenance::Claimed(alice()))], None).map(|_| ())
}

fn with_one(store: &Store) -> View {
    let a = store.view(&alice());
    let nar = file("contents").nar();
    a.import(info(&path("link"), &nar, &[]), &mut &nar[..]).unwrap();
    a
}

#[test]
fn a_member_has_so_many_references_and_the_start_reads_them_in_good_time() {
    let dir = scratch();
    let store = open(dir.path());
    let a = with_one(&store);
    let names: Vec<StorePath> = (0..MOST).map(|n| path(&format!("r{n}"))).collect();
    let like = a.info(&path("link")).unwrap();
    let claim = |path: &StorePath| {
        let info = nix::PathInfo { path: path.clone(), ..nix::PathInfo::clone(&like) };
        (info, Provenance::Claimed(alice()))
    };
    a.adopt(names.iter().map(claim).collect(), None).unwrap();
    let all: BTreeSet<StorePath> = names.iter().cloned().collect();
    let refused = (0..1000).find_map(|n| adopt(&a, &format!("large-{n}"), all.clone()).err()).unwrap();
    assert!(refused.is_callers_fault());
    let said = refused.to_string();
    assert!(said.contains("at most 1000000 are accepted") && said.contains("nix store gc"), "{said}");
    // At the limit a registration that adds nothing still works, and other members are not affected.
    adopt(&a, "small", BTreeSet::new()).unwrap();
    let nar = file("bob").nar();
    store.view(&bob()).import(info(&path("bobs"), &nar, &[]), &mut &nar[..]).unwrap();
    let had = a.all_valid().len();
    drop((a, store));

    let begun = Instant::now();
    let store = open(dir.path());
    let took = begun.elapsed();
    println!("{had} claims with 1000000 references: open after {took:?}");
    assert_eq!(store.view(&alice()).all_valid().len(), had);
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn a_row_that_cannot_be_understood_is_left_out_and_the_rest_is_served() {
    let dir = scratch();
    let store = open(dir.path());
    let a = with_one(&store);
    let id = RealisationId { drv_hash: [1; 32], output: "out".to_owned() };
    a.add_realisation(id.clone(), path("link"), Provenance::Claimed(alice())).unwrap();
    a.add_root("r", &path("link")).unwrap();
    drop((a, store));
    let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
    db.execute_batch(
        "INSERT INTO paths SELECT id + 100, 'no store path', member, nar_hash, nar_size, object_size, refs, deriver,
                                  registration_time, ultimate, signatures, ca, proven, origins, payer, used FROM paths LIMIT 1;
         INSERT INTO paths SELECT id + 1000, path || '-2', member, x'00', nar_size, object_size, refs, deriver,
                                  registration_time, ultimate, signatures, ca, proven, origins, payer, used FROM paths LIMIT 1;
         INSERT INTO paths SELECT id + 2000, path || '-3', member, nar_hash, nar_size, object_size, 'x y', deriver,
                                  registration_time, ultimate, signatures, ca, proven, origins, payer, used FROM paths LIMIT 1;
         INSERT INTO paths SELECT id + 3000, path || '-4', member, nar_hash, nar_size, object_size, refs, deriver,
                                  registration_time, ultimate, signatures, 'no address', proven, origins, payer, used FROM paths LIMIT 1;
         INSERT INTO realisations SELECT x'17', output, member, path, signatures FROM realisations;
         INSERT INTO results VALUES (x'0102', 'no store path', 1, 3, 'failed', NULL, NULL, NULL);
         INSERT INTO results VALUES (zeroblob(32), '00000000000000000000000000000000-d.drv', 1, NULL, '', NULL, NULL, 5);
         INSERT INTO result_outputs VALUES (zeroblob(32), 'out', 'no store path', x'00', 1, '', NULL);
         INSERT INTO roots VALUES ('alice', 'bad', 'no store path');
         INSERT INTO annotations VALUES (7, 'alice', 'no store path', zeroblob(32), NULL, '');",
    )
    .unwrap();
    drop(db);
    let store = open(dir.path());
    assert_eq!(*store.recovery(), Recovery { unreadable_rows: 8, ..Recovery::default() });
    let a = store.view(&alice());
    assert_eq!(a.all_valid(), [path("link")].into());
    assert!(a.realisation(&id).is_some());
    assert_eq!(a.roots().keys().collect::<Vec<_>>(), ["r"]);
    drop((a, store));
    assert_eq!(*open(dir.path()).recovery(), Recovery::default());
}

#[test]
fn a_damaged_index_is_moved_aside_and_the_store_starts_empty() {
    for garbage in [true, false] {
        let dir = scratch();
        let store = open(dir.path());
        drop(with_one(&store));
        drop(store);
        let index = dir.path().join("index.sqlite");
        let mut bytes = fs::read(&index).unwrap();
        let _ = fs::remove_file(dir.path().join("index.sqlite-wal"));
        match garbage {
            true => bytes = noise(1, 50_000),
            // The header is intact, the tables are not.
            false => bytes[4096..].fill(0xab),
        }
        fs::write(&index, &bytes).unwrap();
        let store = open(dir.path());
        let found = store.recovery();
        assert!(found.damaged_index && found.unregistered_objects == 1, "{found:?}");
        assert_eq!(fs::read(dir.path().join("index.damaged")).unwrap().len(), bytes.len());
        assert!(store.view(&alice()).all_valid().is_empty());
        let a = with_one(&store);
        a.verify(&path("link")).unwrap();
        drop((a, store));
        assert_eq!(*open(dir.path()).recovery(), Recovery::default());
    }
}
