//! Results and realisations survive restarts and are layered like paths; an old index is migrated in place.

mod common;

use std::io::Write;

use common::*;
use store::{
    BuildRecord, Provenance, RealisationId, RecordEnd, RegisterError, TimeLimit, View,
    signing::{SecretKey, realisation_fingerprint},
};

fn claim(view: &View, name: &str) {
    let nar = file(name).nar();
    view.import(info(&path(name), &nar, &[]), &mut &nar[..]).unwrap();
}

fn verified(view: &View, name: &str) {
    let nar = file(name).nar();
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    view.register(ingest.finish().unwrap(), info(&path(name), &nar, &[]), Provenance::Verified).unwrap();
}

fn id(output: &str) -> RealisationId {
    RealisationId { drv_hash: [7; 32], output: output.to_owned() }
}

fn failure(time: i64, message: &str) -> BuildRecord {
    let end = RecordEnd::Failed { status: 3, message: message.to_owned(), log: None };
    BuildRecord { drv: path("x.drv"), time, end }
}

#[test]
fn failures_are_remembered_over_a_restart_and_replaced_by_what_comes_later() {
    let dir = scratch();
    let store = open(dir.path());
    store.record_result(&[1; 32], failure(1, "first")).unwrap();
    store.record_result(&[1; 32], failure(2, "second")).unwrap();
    store.record_result(&[2; 32], failure(3, &"ä".repeat(20_000))).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.result(&[1; 32]).as_deref(), Some(&failure(2, "second")));
    let long = store.result(&[2; 32]).unwrap();
    let RecordEnd::Failed { message, .. } = &long.end else { panic!("{long:?}") };
    assert!(message.len() <= 16 << 10 && message.chars().all(|c| c == 'ä'));
    assert_eq!(store.result(&[3; 32]), None);
}

fn timed_out(limit: TimeLimit, seconds: u64) -> BuildRecord {
    BuildRecord {
        drv: path("x.drv"),
        time: 5,
        end: RecordEnd::TimedOut { limit, seconds, log: Some("l".into()) },
    }
}

#[test]
fn builds_that_timed_out_are_remembered_with_their_limit_over_a_restart() {
    let dir = scratch();
    let store = open(dir.path());
    let (wall, silence) = (timed_out(TimeLimit::Wall, 3600), timed_out(TimeLimit::Silence, u64::MAX));
    store.record_result(&[1; 32], wall.clone()).unwrap();
    store.record_result(&[2; 32], silence.clone()).unwrap();
    store.record_result(&[3; 32], failure(1, "x")).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    assert_eq!(store.result(&[1; 32]).as_deref(), Some(&wall));
    assert_eq!(store.result(&[2; 32]).as_deref(), Some(&silence));
    assert_eq!(store.result(&[3; 32]).as_deref(), Some(&failure(1, "x")));
}

#[test]
fn an_index_of_schema_4_is_migrated_with_its_results() {
    let dir = scratch();
    {
        let store = open(dir.path());
        verified(&store.view(&alice()), "proven");
        store.record_result(&[1; 32], failure(1, "old")).unwrap();
    }
    let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
    db.execute_batch(
        "ALTER TABLE results DROP COLUMN silent; ALTER TABLE results DROP COLUMN seconds; PRAGMA user_version = 4;",
    )
    .unwrap();
    drop(db);
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    assert_eq!(store.result(&[1; 32]).as_deref(), Some(&failure(1, "old")));
    let late = timed_out(TimeLimit::Wall, 60);
    store.record_result(&[1; 32], late.clone()).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).result(&[1; 32]).as_deref(), Some(&late));
}

#[test]
fn a_realisation_has_layers_and_is_signed_only_when_verified() {
    let dir = scratch();
    let key = SecretKey::generate("box-1").unwrap();
    let public = key.public();
    let config = store::StoreConfig { signer: Some(std::sync::Arc::new(key)), ..Default::default() };
    let store = store::Store::open(dir.path(), config).unwrap();
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    claim(&a, "claimed");
    verified(&b, "proven");

    let said = a.add_realisation(id("out"), path("nothing"), Provenance::Claimed(alice())).unwrap_err();
    assert!(matches!(said, RegisterError::NotValid(_)), "{said}");
    let said = a.add_realisation(id("o\"ut"), path("proven"), Provenance::Verified).unwrap_err();
    assert!(matches!(said, RegisterError::BadOutput { .. }), "{said}");
    let said = a.add_realisation(id("out"), path("proven"), Provenance::Claimed(bob())).unwrap_err();
    assert!(matches!(said, RegisterError::ForeignMember { .. }), "{said}");

    // A realisation with a false path is seen by its owner only.
    a.add_realisation(id("out"), path("claimed"), Provenance::Verified).unwrap();
    assert_eq!(a.realisation(&id("out")), Some((path("claimed"), Provenance::Claimed(alice()), vec![])));
    assert_eq!(b.realisation(&id("out")), None);
    let shared = store.view_sharing(&bob(), &[alice()]);
    assert_eq!(shared.realisation(&id("out")).unwrap().1, Provenance::Claimed(alice()));
    // The first stays.
    a.add_realisation(id("out"), path("proven"), Provenance::Claimed(alice())).unwrap();
    assert_eq!(a.realisation(&id("out")).unwrap().0, path("claimed"));

    b.add_realisation(id("out"), path("proven"), Provenance::Verified).unwrap();
    for view in [&a, &b, &shared] {
        let (at, provenance, signatures) = view.realisation(&id("out")).unwrap();
        assert_eq!((at, provenance), (path("proven"), Provenance::Verified));
        let text = realisation_fingerprint(&id("out"), &path("proven"));
        assert!(public.verify(text.as_bytes(), &signatures[0]) && signatures.len() == 1);
    }
    let before = a.realisation(&id("out"));
    drop((a, b, shared, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    assert_eq!(store.view(&alice()).realisation(&id("out")), before);
}

#[test]
fn an_index_of_the_first_schema_is_brought_up_to_date_in_place() {
    let dir = scratch();
    {
        let store = open(dir.path());
        claim(&store.view(&alice()), "claimed");
        verified(&store.view(&bob()), "proven");
    }
    // Changes the index back to the first version's schema.
    let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
    db.execute_batch(
        "DROP TABLE realisations; DROP TABLE results; DROP TABLE result_outputs; DROP TABLE roots;
         DROP TABLE annotations; ALTER TABLE paths DROP COLUMN origins;
         ALTER TABLE paths DROP COLUMN payer; ALTER TABLE paths DROP COLUMN used;
         ALTER TABLE paths DROP COLUMN proven; PRAGMA user_version = 1;",
    )
    .unwrap();
    drop(db);
    for _ in 0..2 {
        let store = open(dir.path());
        assert_eq!(*store.recovery(), store::Recovery::default());
        let a = store.view(&alice());
        assert_eq!(a.all_valid(), [path("claimed"), path("proven")].into());
        assert_eq!(a.info_with_provenance(&path("proven")).unwrap().1, Provenance::Verified);
        a.verify(&path("claimed")).unwrap();
        // The claim may be a copy of any member's claim, so it is not shown to those who share with alice.
        let b = store.view_sharing(&bob(), &[alice()]);
        assert_eq!(b.all_valid(), [path("proven")].into());
        a.add_root("r", &path("claimed")).unwrap();
        store.record_result(&[1; 32], failure(1, "x")).unwrap();
    }
}

#[test]
fn what_names_a_lost_path_goes_with_it() {
    let dir = scratch();
    {
        let store = open(dir.path());
        let a = store.view(&alice());
        let nar = file(noise(1, 300_000)).nar();
        let i = info(&path("p"), &nar, &[]);
        a.import(i.clone(), &mut &nar[..]).unwrap();
        a.add_root("r", &path("p")).unwrap();
        a.add_realisation(id("out"), path("p"), Provenance::Claimed(alice())).unwrap();
        let output = store::RecordedOutput {
            path: path("p"),
            nar_hash: i.nar_hash,
            nar_size: i.nar_size,
            references: [].into(),
            ca: None,
        };
        let end = RecordEnd::Built { outputs: [("out".to_owned(), output)].into(), log: None };
        store.record_result(&[1; 32], BuildRecord { drv: path("d.drv"), time: 1, end }).unwrap();
        let hash = nix_derivation::nixbase32::encode(&i.nar_hash);
        store.tidy().unwrap();
        std::fs::remove_file(dir.path().join("objects").join(hash)).unwrap();
    }
    let store = open(dir.path());
    let found = store.recovery();
    assert_eq!((found.lost_paths, found.lost_records, found.stale_results), (1, 2, 1));
    let a = store.view(&alice());
    assert!(a.roots().is_empty() && a.realisation(&id("out")).is_none() && store.result(&[1; 32]).is_none());
    drop((store, a));
    assert_eq!(*open(dir.path()).recovery(), store::Recovery::default());
}
