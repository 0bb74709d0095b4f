//! A member deletes their own claims that they do not need, and nothing else; and cannot learn what other
//! members have.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use nix_derivation::StorePath;
use store::{
    BuildRecord, Collect, CollectAction, CollectError, Collected, Provenance, RealisationId, RecordEnd,
    RecordedOutput, View,
};

/// As large as an object that gets a file of its own.
const BIG: usize = 300_000;

fn claim(view: &View, path: &StorePath, seed: u64, references: &[&StorePath]) {
    let nar = file(noise(seed, BIG)).nar();
    view.import(info(path, &nar, references), &mut &nar[..]).unwrap();
}

fn verified(view: &View, path: &StorePath, seed: u64) {
    let nar = file(noise(seed, BIG)).nar();
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    view.register(ingest.finish().unwrap(), info(path, &nar, &[]), Provenance::Verified).unwrap();
}

fn wish(action: CollectAction) -> Collect {
    Collect { action, paths: BTreeSet::new(), max_freed: u64::MAX }
}

fn delete(view: &View, paths: &[&StorePath]) -> Result<Collected, CollectError> {
    let paths = paths.iter().map(|p| (*p).clone()).collect();
    view.collect(&Collect { paths, ..wish(CollectAction::DeleteSpecific) })
}

fn names(paths: &[&StorePath]) -> BTreeSet<StorePath> {
    paths.iter().map(|p| (*p).clone()).collect()
}

/// Waits, because files are removed in the background.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn objects(dir: &Path) -> usize {
    count(&dir.join("objects"))
}

#[test]
fn roots_and_what_is_in_use_live_with_their_closures_and_the_rest_goes() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    let [dep, kept, used, dead, deader] = ["dep", "kept", "used", "dead", "deader"].map(path);
    claim(&a, &dep, 1, &[]);
    claim(&a, &kept, 2, &[&dep, &kept]);
    claim(&a, &used, 3, &[]);
    claim(&a, &deader, 4, &[&dep]);
    claim(&a, &dead, 5, &[&deader]);
    claim(&b, &path("bobs"), 6, &[]);
    verified(&b, &path("proven"), 7);
    a.add_root("result", &kept).unwrap();
    assert_eq!(a.roots(), BTreeMap::from([("result".to_owned(), kept.clone())]));

    let session = store.view(&alice()).holding();
    session.hold([&used]).unwrap();
    let ask = |action| a.collect(&wish(action)).unwrap();
    assert_eq!(ask(CollectAction::ReturnLive).paths, names(&[&dep, &kept, &used]));
    assert_eq!(ask(CollectAction::ReturnDead).paths, names(&[&dead, &deader]));
    store.tidy().unwrap();
    assert_eq!(objects(dir.path()), 7);
    let done = ask(CollectAction::DeleteDead);
    assert_eq!(done.paths, names(&[&dead, &deader]));
    assert!(done.bytes_freed > 2 * BIG as u64 && done.bytes_freed < 3 * BIG as u64);
    assert_eq!(a.all_valid(), names(&[&dep, &kept, &used, &path("proven")]));
    assert_eq!(b.all_valid(), names(&[&path("bobs"), &path("proven")]));
    store.tidy().unwrap();
    eventually("objects go", || objects(dir.path()) == 5);

    assert!(a.remove_root("result").unwrap() && !a.remove_root("result").unwrap());
    assert_eq!(ask(CollectAction::DeleteDead).paths, names(&[&dep, &kept]));
    drop((a, b, session, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    assert_eq!(store.view(&alice()).all_valid(), names(&[&used, &path("proven")]));
    assert_eq!(count(&dir.path().join("trees")), 1);
}

#[test]
fn roots_survive_a_restart() {
    let dir = scratch();
    let a = open(dir.path()).view(&alice());
    claim(&a, &path("p"), 1, &[]);
    a.add_root("one", &path("p")).unwrap();
    a.add_root("two", &path("p")).unwrap();
    a.remove_root("one").unwrap();
    drop(a);
    let a = open(dir.path()).view(&alice());
    assert_eq!(a.roots().into_keys().collect::<Vec<_>>(), ["two"]);
    assert!(a.collect(&wish(CollectAction::DeleteDead)).unwrap().paths.is_empty());
}

#[test]
fn what_may_not_be_deleted_is_refused_with_the_reason_and_nothing_happens() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    let [dep, top, rooted] = ["dep", "top", "rooted"].map(path);
    claim(&a, &dep, 1, &[]);
    claim(&a, &top, 2, &[&dep]);
    claim(&a, &rooted, 3, &[]);
    claim(&b, &path("bobs"), 4, &[]);
    verified(&b, &path("proven"), 5);
    a.add_root("r", &rooted).unwrap();
    let said = |paths: &[&StorePath]| delete(&a, paths).unwrap_err().to_string();
    let alive = |p: &StorePath| format!("cannot delete path '{p}' since it is still alive");
    for p in [&dep, &rooted] {
        assert!(said(&[p]).starts_with(&alive(p)), "{p}");
    }
    assert!(said(&[&dep, &top, &rooted]).starts_with(&alive(&rooted)));
    assert!(said(&[&path("proven")]).starts_with(&alive(&path("proven"))));
    // Another member's claim and a path that does not exist give the same answer.
    assert_eq!(said(&[&path("bobs")]), format!("path '{}' is not valid", path("bobs")));
    assert_eq!(said(&[&path("nobodys")]), format!("path '{}' is not valid", path("nobodys")));
    let sharing = store.view_sharing(&alice(), &[bob()]);
    let error = delete(&sharing, &[&path("bobs")]).unwrap_err();
    assert!(error.to_string().ends_with("it belongs to bob, who shares it with you"), "{error}");
    assert_eq!(a.all_valid().len(), 4);
    // Together with all its referrers, the path may be deleted.
    assert_eq!(delete(&a, &[&dep, &top]).unwrap().paths, names(&[&dep, &top]));
}

#[test]
fn a_limit_on_bytes_stops_early_and_leaves_no_hole() {
    let dir = scratch();
    let a = open(dir.path()).view(&alice());
    let paths: Vec<StorePath> = (0..10).map(|i| path(&format!("p{i}"))).collect();
    for i in 0..10 {
        let refs: Vec<_> = paths[..i].iter().collect();
        claim(&a, &paths[i], i as u64 + 1, &refs);
    }
    let done = a.collect(&Collect { max_freed: 3 * BIG as u64, ..wish(CollectAction::DeleteDead) }).unwrap();
    assert_eq!(done.paths, paths[7..].iter().cloned().collect());
    for p in a.all_valid() {
        a.closure(&[p]).unwrap();
    }
}

#[test]
fn what_a_session_uploads_or_names_is_held_until_it_ends() {
    let dir = scratch();
    let store = open(dir.path());
    let mut session = store.view(&alice()).holding();
    let other = store.view(&alice());
    let [before, uploaded, dep] = ["before", "uploaded", "dep"].map(path);
    claim(&other, &before, 1, &[]);
    claim(&other, &dep, 2, &[]);
    claim(&session, &uploaded, 3, &[&dep]);
    session.hold([&before]).unwrap();
    // The roster changes, and the session goes on.
    session = store.view_sharing(&alice(), &[bob()]).holding_as(&session);
    assert!(other.collect(&wish(CollectAction::DeleteDead)).unwrap().paths.is_empty());
    assert!(delete(&other, &[&before]).unwrap_err().to_string().contains("still alive"));
    // Another member's session holds nothing of alice's.
    let bobs = store.view(&bob()).holding();
    bobs.hold([&before]).unwrap();
    drop(session);
    assert_eq!(
        other.collect(&wish(CollectAction::DeleteDead)).unwrap().paths,
        names(&[&before, &uploaded, &dep])
    );
}

#[test]
fn a_session_cannot_hold_without_end() {
    let dir = scratch();
    let store = open(dir.path());
    let session = store.view(&alice()).holding();
    let paths: Vec<StorePath> = (0..200_001).map(|i| path(&format!("p{i}"))).collect();
    session.hold(&paths[1..]).unwrap();
    let error = session.hold(&paths[..1]).unwrap_err().to_string();
    assert!(error.contains("at most 200000 are accepted") && !error.contains('\n'), "{error}");
    // It does not upload a path that it cannot hold either; Verified paths need no hold.
    let nar = file("x").nar();
    assert!(session.import(info(&paths[0], &nar, &[]), &mut &nar[..]).is_err());
    verified(&store.view(&bob()), &path("proven"), 7);
    session.hold([&path("proven")]).unwrap();
    store.view(&alice()).holding().hold(&paths[..1]).unwrap();
}

#[test]
fn garbage_can_be_looked_for_among_some_paths_only() {
    let dir = scratch();
    let a = open(dir.path()).view(&alice());
    let [dep, top, other] = ["dep", "top", "other"].map(path);
    claim(&a, &dep, 1, &[]);
    claim(&a, &top, 2, &[&dep]);
    claim(&a, &other, 3, &[]);
    let among = |action, paths: &[&StorePath]| {
        a.collect(&Collect { paths: names(paths), ..wish(action) }).unwrap().paths
    };
    assert_eq!(among(CollectAction::ReturnDead, &[&dep, &other]), names(&[&dep, &other]));
    // It is garbage, but a path that is excluded from this collection needs it.
    assert_eq!(among(CollectAction::DeleteDead, &[&dep, &other]), names(&[&other]));
    assert_eq!(among(CollectAction::DeleteDead, &[&dep, &top]), names(&[&dep, &top]));
}

#[test]
fn made_up_circles_can_be_deleted() {
    let dir = scratch();
    let a = open(dir.path()).view(&alice());
    let (x, y) = (path("x"), path("y"));
    let stage = |p: &StorePath, to: &StorePath| {
        let nar = file(p.to_string()).nar();
        a.stage(info(p, &nar, &[to]), &mut &nar[..]).unwrap()
    };
    a.register_many(vec![stage(&x, &y), stage(&y, &x)]).unwrap();
    assert!(delete(&a, &[&x]).is_err());
    assert_eq!(a.collect(&wish(CollectAction::DeleteDead)).unwrap().paths, names(&[&x, &y]));
}

#[test]
fn an_object_that_another_has_stays_and_the_bytes_reported_do_not_tell() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    claim(&a, &path("shared"), 1, &[]);
    claim(&b, &path("other-name"), 1, &[]);
    claim(&a, &path("alone"), 2, &[]);
    let freed = |p: &StorePath| delete(&a, &[p]).unwrap().bytes_freed;
    assert_eq!(freed(&path("shared")), freed(&path("alone")));
    store.tidy().unwrap();
    eventually("the unshared object goes", || objects(dir.path()) == 1);
    b.verify(&path("other-name")).unwrap();
    // And they can be uploaded again.
    claim(&a, &path("shared"), 1, &[]);
    a.verify(&path("shared")).unwrap();
}

#[test]
fn a_claim_that_a_verified_path_hides_goes_and_the_verified_one_stays() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    claim(&a, &path("p"), 1, &[]);
    verified(&b, &path("p"), 2);
    a.add_root("r", &path("p")).unwrap();
    store.tidy().unwrap();
    assert_eq!(objects(dir.path()), 2);
    assert!(a.collect(&wish(CollectAction::DeleteDead)).unwrap().paths.is_empty());
    store.tidy().unwrap();
    eventually("the hidden object goes", || objects(dir.path()) == 1);
    assert!(a.is_valid(&path("p")) && a.verify(&path("p")).is_ok());
}

fn built(p: &StorePath, seed: u64) -> BuildRecord {
    let nar = file(noise(seed, BIG)).nar();
    let i = info(p, &nar, &[]);
    let output = RecordedOutput {
        path: i.path.clone(),
        nar_hash: i.nar_hash,
        nar_size: i.nar_size,
        references: i.references,
        ca: None,
    };
    let end = RecordEnd::Built { outputs: [("out".to_owned(), output)].into(), log: Some("l".to_owned()) };
    BuildRecord { drv: path("d.drv"), time: 12, end }
}

#[test]
fn a_result_goes_with_the_last_path_that_has_its_object() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    claim(&a, &path("p"), 1, &[]);
    let record = built(&path("p"), 1);
    store.record_result(&[9; 32], record.clone()).unwrap();
    assert_eq!(store.result(&[9; 32]).as_deref(), Some(&record));
    // Another member adopts the result, without uploading a byte.
    let nar = file(noise(1, BIG)).nar();
    let adopted = b.adopt(vec![(info(&path("p"), &nar, &[]), Provenance::Claimed(bob()))], None).unwrap();
    assert_eq!(adopted[0].path, path("p"));
    b.verify(&path("p")).unwrap();
    delete(&a, &[&path("p")]).unwrap();
    assert_eq!(store.result(&[9; 32]).as_deref(), Some(&record));
    delete(&b, &[&path("p")]).unwrap();
    assert_eq!(store.result(&[9; 32]), None);
    let error = b.adopt(vec![(info(&path("p"), &nar, &[]), Provenance::Claimed(bob()))], None).unwrap_err();
    assert!(error.to_string().contains("has no object with its contents"), "{error}");
    assert!(store.record_result(&[9; 32], record).is_err());
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    assert_eq!(store.result(&[9; 32]), None);
}

#[test]
fn a_realisation_goes_with_its_path() {
    let dir = scratch();
    let a = open(dir.path()).view(&alice());
    claim(&a, &path("p"), 1, &[]);
    let id = RealisationId { drv_hash: [3; 32], output: "out".to_owned() };
    a.add_realisation(id.clone(), path("p"), Provenance::Claimed(alice())).unwrap();
    delete(&a, &[&path("p")]).unwrap();
    assert_eq!(a.realisation(&id), None);
}

#[test]
fn a_claimed_realisation_that_a_verified_one_hides_goes() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    claim(&a, &path("p"), 1, &[]);
    a.add_root("r", &path("p")).unwrap();
    verified(&b, &path("q"), 2);
    let id = RealisationId { drv_hash: [3; 32], output: "out".to_owned() };
    let other = RealisationId { output: "doc".to_owned(), ..id.clone() };
    for id in [&id, &other] {
        a.add_realisation(id.clone(), path("p"), Provenance::Claimed(alice())).unwrap();
    }
    b.add_realisation(id.clone(), path("q"), Provenance::Verified).unwrap();
    let rows = || {
        let db = rusqlite::Connection::open(dir.path().join("index.sqlite")).unwrap();
        let count: i64 = db.query_row("SELECT count(*) FROM realisations", [], |row| row.get(0)).unwrap();
        count
    };
    a.collect(&wish(CollectAction::DeleteDead)).unwrap();
    let found = |id| a.realisation(id).map(|(path, _, _)| path);
    assert_eq!((found(&id), found(&other)), (Some(path("q")), Some(path("p"))));
    drop((a, b, store));
    assert_eq!(rows(), 2);
}

#[test]
fn collecting_while_others_upload_the_same_contents_never_loses_an_object() {
    let dir = scratch();
    let store = open(dir.path());
    std::thread::scope(|scope| {
        for (who, name) in [(alice(), "a"), (bob(), "b")] {
            let view = store.view(&who);
            let friend = store.view_sharing(&store::Member::new("carol"), &[who]);
            scope.spawn(move || {
                for round in 0..60 {
                    let p = path(&format!("{name}-{}", round % 3));
                    claim(&view, &p, 1, &[]);
                    let closure = friend.snapshot([&p]).unwrap();
                    assert_eq!(delete(&view, &[&p]).unwrap().paths.len(), 1);
                    // The closure is still usable.
                    closure.tree(&p).unwrap();
                    closure.compose().unwrap();
                    drop(closure);
                    claim(&view, &p, 1, &[]);
                    view.verify(&p).unwrap();
                }
            });
        }
    });
    for who in [alice(), bob()] {
        store.view(&who).collect(&wish(CollectAction::DeleteDead)).unwrap();
    }
    store.tidy().unwrap();
    eventually("the last object goes", || objects(dir.path()) == 0);
    drop(store);
    assert_eq!(*open(dir.path()).recovery(), store::Recovery::default());
}

/// A chain in which each path refers to the next; all share one object, of which `from` has a claim.
fn chain(from: &View, length: usize) -> Vec<nix::PathInfo> {
    let nar = file("link").nar();
    from.import(info(&path("link"), &nar, &[]), &mut &nar[..]).unwrap();
    let paths: Vec<StorePath> = (0..length).map(|i| path(&format!("c{i}"))).collect();
    (0..length).map(|i| info(&paths[i], &nar, &paths.get(i + 1).into_iter().collect::<Vec<_>>())).collect()
}

/// All members wait while one member's garbage is searched. (If each link required a look at all others, the
/// time limit of the test run would end this.)
#[test]
fn a_long_chain_of_claims_is_looked_at_once() {
    const LENGTH: usize = 100_000;
    let dir = scratch();
    let store = open(dir.path());
    let a = store.view(&alice());
    let infos = chain(&a, LENGTH);
    let claimed = |info: &nix::PathInfo| (info.clone(), Provenance::Claimed(alice()));
    a.adopt(infos.iter().map(claimed).collect(), None).unwrap();
    // The top is excluded from the collection, so it stays; it needs the next path, which needs the next, and
    // so on.
    let paths: BTreeSet<StorePath> = infos[1..].iter().map(|info| info.path.clone()).collect();
    let done = a.collect(&Collect { paths, ..wish(CollectAction::DeleteDead) }).unwrap();
    assert_eq!(done.paths, BTreeSet::new());
    let done = a.collect(&wish(CollectAction::DeleteDead)).unwrap();
    assert_eq!(done.paths.len(), LENGTH + 1);
}

/// As above, for a batch in which only the last path refers to something unproven.
#[test]
fn a_long_chain_in_one_batch_is_looked_at_once() {
    const LENGTH: usize = 100_000;
    let dir = scratch();
    let a = open(dir.path()).view(&alice());
    let mut infos = chain(&a, LENGTH);
    infos[LENGTH - 1].references.insert(path("link"));
    a.adopt(infos.iter().map(|info| (info.clone(), Provenance::Verified)).collect(), None).unwrap();
    for at in [0, LENGTH / 2, LENGTH - 1] {
        let (_, provenance) = a.info_with_provenance(&infos[at].path).unwrap();
        assert_eq!(provenance, Provenance::Claimed(alice()));
    }
}

/// A session that holds a path and then learns that it is valid can rely on it, whatever another session of
/// the same member deletes meanwhile.
#[test]
fn what_is_held_and_then_valid_stays_valid() {
    let dir = scratch();
    let store = open(dir.path());
    let p = path("p");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let view = store.view(&alice());
            for _ in 0..3000 {
                claim(&view, &p, 1, &[]);
                view.collect(&wish(CollectAction::DeleteDead)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let session = store.view(&alice()).holding();
                session.hold([&p]).unwrap();
                if session.is_valid(&p) {
                    std::thread::sleep(Duration::from_micros(300));
                    assert!(session.is_valid(&p), "it was held");
                }
            }
        });
    });
}
