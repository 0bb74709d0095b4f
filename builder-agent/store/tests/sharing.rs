//! Members who share see each other's claims, and keep what they have built when the sharing ends.

mod common;

use std::io::Write;

use common::*;
use nix_derivation::StorePath;
use store::{Collect, CollectAction, Member, Provenance, RealisationId, Store, View};

fn claim(view: &View, path: &StorePath, contents: &str, references: &[&StorePath]) {
    let nar = file(contents).nar();
    view.import(info(path, &nar, references), &mut &nar[..]).unwrap();
}

fn verified(view: &View, path: &StorePath, contents: &str) {
    let nar = file(contents).nar();
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    view.register(ingest.finish().unwrap(), info(path, &nar, &[]), Provenance::Verified).unwrap();
}

fn provenance(view: &View, path: &StorePath) -> Provenance {
    view.info_with_provenance(path).unwrap().1
}

/// Alice sees bob's claims, and bob alice's.
fn sharing() -> (tempfile::TempDir, Store, View, View) {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view_sharing(&alice(), &[bob()]), store.view_sharing(&bob(), &[alice()]));
    (dir, store, a, b)
}

fn delete(view: &View, paths: &[&StorePath]) {
    let paths = paths.iter().map(|p| (*p).clone()).collect();
    let wish = Collect { action: CollectAction::DeleteSpecific, paths, max_freed: u64::MAX };
    view.collect(&wish).unwrap();
}

#[test]
fn a_shared_claim_is_seen_in_every_question_and_named_as_its_owners() {
    let (_dir, store, a, b) = sharing();
    let (dep, top) = (path("dep"), path("top"));
    claim(&b, &dep, "dep", &[]);
    claim(&b, &top, "top", &[&dep]);
    assert_eq!(provenance(&a, &top), Provenance::Claimed(bob()));
    assert_eq!(a.query_valid(&[dep.clone(), top.clone()]).len(), 2);
    assert_eq!(a.by_hash_part(top.digest()), Some(top.clone()));
    assert_eq!(a.referrers(&dep), [top.clone()].into());
    assert_eq!(a.all_valid(), [dep.clone(), top.clone()].into());
    assert_eq!(a.read_file(&top, 10).unwrap(), b"top");
    assert_eq!(a.snapshot([&top]).unwrap().info().paths.len(), 2);
    assert!(!a.all_verified(&[top.clone()].into()));
    unpacked(&a, &top);
    // A member who shares with nobody, or with one of the two only, does not see the path.
    assert!(!store.view(&alice()).is_valid(&top));
    assert!(!store.view_sharing(&Member::new("carol"), &[alice()]).is_valid(&top));
}

#[test]
fn verified_comes_before_own_and_own_before_shared() {
    let (_dir, store, a, b) = sharing();
    let p = path("p");
    claim(&b, &p, "bob's", &[]);
    assert_eq!(a.read_file(&p, 10).unwrap(), b"bob's");
    claim(&a, &p, "alice's", &[]);
    assert_eq!(
        (a.read_file(&p, 10).unwrap(), b.read_file(&p, 10).unwrap()),
        (b"alice's".into(), b"bob's".into())
    );
    // If several members share the same path, the first one counts.
    let carol = Member::new("carol");
    assert_eq!(store.view_sharing(&carol, &[bob(), alice()]).read_file(&p, 10).unwrap(), b"bob's");
    assert_eq!(store.view_sharing(&carol, &[alice(), bob()]).read_file(&p, 10).unwrap(), b"alice's");
    verified(&store.view(&carol), &p, "proven");
    for view in [&a, &b] {
        assert_eq!(
            (view.read_file(&p, 10).unwrap(), provenance(view, &p)),
            (b"proven".into(), Provenance::Verified)
        );
    }
}

#[test]
fn what_is_built_upon_a_shared_claim_survives_the_end_of_sharing_and_its_owner() {
    let (dir, store, a, b) = sharing();
    let (base, dep, other, top) = (path("base"), path("dep"), path("other"), path("top"));
    claim(&b, &base, "base", &[]);
    claim(&b, &dep, "dep", &[&base]);
    claim(&b, &other, "other", &[]);
    claim(&a, &top, "top", &[&dep]);
    assert_eq!(provenance(&a, &base), Provenance::Claimed(alice()));
    // Only the needed paths became alice's own.
    assert_eq!(provenance(&a, &other), Provenance::Claimed(bob()));
    delete(&b, &[&base, &dep, &other]);
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    let a = store.view(&alice());
    assert_eq!(a.closure(std::slice::from_ref(&top)).unwrap().len(), 3);
    for p in [&base, &dep, &top] {
        a.verify(p).unwrap();
    }
    assert!(!a.is_valid(&other));
    assert!(store.view(&bob()).all_valid().is_empty());
}

#[test]
fn a_build_upon_a_shared_claim_is_a_claim() {
    let (_dir, store, a, b) = sharing();
    claim(&b, &path("dep"), "dep", &[]);
    let nar = file("out").nar();
    let mut ingest = a.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    let info = info(&path("out"), &nar, &[&path("dep")]);
    a.register(ingest.finish().unwrap(), info, Provenance::Verified).unwrap();
    assert_eq!(provenance(&a, &path("out")), Provenance::Claimed(alice()));
    assert!(!store.view(&Member::new("carol")).is_valid(&path("out")));
}

#[test]
fn a_root_of_a_shared_path_holds_what_it_names() {
    let (_dir, store, a, b) = sharing();
    let (dep, top) = (path("dep"), path("top"));
    claim(&b, &dep, "dep", &[]);
    claim(&b, &top, "top", &[&dep]);
    a.add_root("result", &top).unwrap();
    delete(&b, &[&dep, &top]);
    assert_eq!(store.view(&alice()).closure(&[top]).unwrap().len(), 2);
}

#[test]
fn the_inputs_of_a_build_are_one_closure_however_the_view_changes() {
    let (_dir, _store, a, b) = sharing();
    let (p, old, top) = (path("p"), path("old-dep"), path("top"));
    claim(&a, &old, "old dep", &[]);
    claim(&a, &p, "claimed", &[&old]);
    claim(&a, &top, "top", &[&p]);
    let before = a.snapshot([&top]).unwrap();
    // Another member builds the real p, which refers to another path.
    verified(&b, &p, "proven");
    let after = a.snapshot([&top]).unwrap();
    let names =
        |c: &store::Closure| c.info().paths.keys().cloned().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names(&before), [p.clone(), old.clone(), top.clone()].into());
    assert_eq!(names(&after), [p.clone(), top.clone()].into());
    // The snapshot from before the change is not proven, although each path may be now.
    assert!(!before.info().all_verified() && !after.info().all_verified());
    let only_p = a.snapshot([&p]).unwrap();
    assert!(only_p.info().all_verified() && a.all_verified(&[p.clone()].into()));
    let contents = |c: &store::Closure, p: &StorePath| std::fs::read(c.tree(p).unwrap()).unwrap();
    assert_eq!((contents(&before, &p), contents(&after, &p)), (b"claimed".to_vec(), b"proven".to_vec()));
    // A path in use is not collected, whether or not the view still shows it.
    let wish =
        Collect { paths: [top, old.clone()].into(), action: CollectAction::DeleteSpecific, ..everything() };
    assert!(a.collect(&wish).unwrap_err().to_string().contains("still alive"));
    assert!(a.collect(&everything()).unwrap().paths.is_empty());
    drop((before, after));
    assert_eq!(a.collect(&wish).unwrap().paths.len(), 2);
}

#[test]
fn inputs_whose_owner_deletes_them_stay_readable_for_a_build() {
    let (_dir, store, a, b) = sharing();
    let (dep, top) = (path("dep"), path("top"));
    claim(&b, &dep, "dep", &[]);
    claim(&b, &top, "top", &[&dep]);
    let inputs = a.snapshot([&top]).unwrap();
    delete(&b, &[&dep, &top]);
    assert!(!a.is_valid(&top));
    assert_eq!(std::fs::read(inputs.tree(&top).unwrap()).unwrap(), b"top");
    assert_eq!(inputs.compose().unwrap().segments.len(), 1 + 2);
    drop(inputs);
    drop((a, b, store));
    assert_eq!(*open(_dir.path()).recovery(), store::Recovery::default());
    assert_eq!(count(&_dir.path().join("objects")), 0);
}

#[test]
fn a_build_can_refer_to_what_its_owner_deletes_while_it_runs() {
    let (_dir, store, a, b) = sharing();
    let (dep, top, unused) = (path("dep"), path("top"), path("unused"));
    claim(&b, &dep, "dep", &[]);
    claim(&b, &top, "top", &[&dep]);
    claim(&b, &unused, "unused", &[]);
    let inputs = a.snapshot_to_build([&top]).unwrap();
    delete(&b, &[&dep, &top, &unused]);
    // Her own session's garbage collection leaves it alone, too.
    assert!(a.collect(&everything()).unwrap().paths.is_empty());
    let nar = file("out").nar();
    let mut ingest = a.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    let info = info(&path("out"), &nar, &[&top]);
    a.register(ingest.finish().unwrap(), info, Provenance::Verified).unwrap();
    assert_eq!(provenance(&a, &path("out")), Provenance::Claimed(alice()));
    assert_eq!(store.view(&alice()).closure(&[path("out")]).unwrap().len(), 3);
    assert!(!a.is_valid(&unused) && inputs.info().paths.len() == 2 && !inputs.info().all_verified());
    // If no path belongs to other members, nothing is written; missing paths are still an error.
    assert_eq!(a.snapshot_to_build([&path("out")]).unwrap().info().paths.len(), 3);
    assert!(matches!(a.snapshot_to_build([&unused]), Err(store::RegisterError::NotValid(_))));
}

fn everything() -> Collect {
    Collect { action: CollectAction::DeleteDead, paths: [].into(), max_freed: u64::MAX }
}

fn carol() -> Member {
    Member::new("carol")
}

/// Asserts that no query of `view` reveals `p`.
fn is_unknown(view: &View, p: &StorePath) {
    assert!(!view.is_valid(p) && view.info(p).is_none() && view.info_with_provenance(p).is_none(), "{p:?}");
    assert_eq!(view.query_valid(std::slice::from_ref(p)), []);
    assert_eq!(view.by_hash_part(p.digest()), None);
    assert!(!view.all_valid().contains(p));
    assert!(view.referrers(p).is_empty() && view.valid_derivers(p).is_empty());
    for known in view.all_valid() {
        assert!(!view.referrers(&known).contains(p), "{known:?} names it");
    }
    assert!(view.closure(std::slice::from_ref(p)).is_err() && view.snapshot([p]).is_err());
    assert!(view.snapshot_to_build([p]).is_err());
    assert!(view.nar(p).is_err() && view.read_file(p, 10).is_err());
    assert!(view.verify(p).is_err());
    assert!(view.add_root("r", p).is_err());
    assert!(view.add_signatures(p, &["k:AAAA".to_owned()]).is_err());
    let id = RealisationId { drv_hash: [9; 32], output: "out".to_owned() };
    assert!(view.add_realisation(id, p.clone(), Provenance::Claimed(view.member().clone())).is_err());
    let delete = Collect { action: CollectAction::DeleteSpecific, paths: [p.clone()].into(), max_freed: 0 };
    assert!(view.collect(&delete).unwrap_err().to_string().contains("not valid"));
    let nar = file("mine").nar();
    assert!(view.import(info(&path("mine"), &nar, &[p]), &mut &nar[..]).is_err());
}

/// Whether `view` shows the closure of every path that it shows.
fn is_closed(view: &View) -> bool {
    view.all_valid().iter().all(|p| view.closure(std::slice::from_ref(p)).is_ok())
}

/// Alice shares with bob, and bob with carol; alice and carol do not share.
#[test]
fn what_one_member_shares_goes_exactly_one_step_however_it_is_used() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view_sharing(&alice(), &[bob()]), store.view_sharing(&bob(), &[alice(), carol()]));
    let (dep, base, rooted, realised, input) =
        (path("dep"), path("base"), path("rooted"), path("realised"), path("input"));
    claim(&a, &dep, "dep", &[]);
    claim(&a, &base, "base", &[&dep]);
    for p in [&rooted, &realised, &input] {
        claim(&a, p, p.name(), &[]);
    }
    // Bob builds upon alice's paths in every possible way, and has paths of his own.
    let (own, upon, upon_that) = (path("own"), path("upon"), path("upon-that"));
    claim(&b, &own, "own", &[]);
    claim(&b, &upon, "upon", &[&base, &own]);
    claim(&b, &upon_that, "upon that", &[&upon]);
    b.add_root("r", &rooted).unwrap();
    let id = |output: &str| RealisationId { drv_hash: [1; 32], output: output.to_owned() };
    b.add_realisation(id("hers"), realised.clone(), Provenance::Claimed(bob())).unwrap();
    b.add_realisation(id("his"), own.clone(), Provenance::Claimed(bob())).unwrap();
    drop(b.snapshot_to_build([&input]).unwrap());
    // A root, a realisation and a snapshot copied these paths to bob's layer: they outlive alice's.
    let hers = [&dep, &base, &rooted, &realised, &input];
    assert!(hers.iter().all(|p| provenance(&b, p) == Provenance::Claimed(bob())));

    let check = |store: &Store| {
        let c = store.view_sharing(&carol(), &[bob()]);
        for p in hers.into_iter().chain([&upon, &upon_that]) {
            is_unknown(&c, p);
        }
        assert_eq!(c.all_valid(), [own.clone()].into());
        assert_eq!((c.realisation(&id("hers")), c.realisation(&id("his")).unwrap().0), (None, own.clone()));
        assert!(c.referrers(&own).is_empty() && is_closed(&c) && c.roots().is_empty());
        assert_eq!(
            store.view_sharing(&bob(), &[]).closure(std::slice::from_ref(&upon_that)).unwrap().len(),
            5
        );
        // A member who shares with both sees all paths, even those that alice does not have any more.
        let both = store.view_sharing(&carol(), &[bob(), alice()]);
        assert!(both.is_valid(&upon_that) && hers.iter().all(|p| both.is_valid(p)) && is_closed(&both));
        assert!(both.realisation(&id("hers")).is_some());
        // And alice sees the paths that were built upon her own.
        assert!(store.view_sharing(&alice(), &[bob()]).is_valid(&upon_that));
    };
    check(&store);
    delete(&a, &hers);
    check(&store);
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    check(&store);
}

#[test]
fn a_copy_of_a_copy_is_still_its_first_owners() {
    let dir = scratch();
    let store = open(dir.path());
    let dave = Member::new("dave");
    claim(&store.view(&dave), &path("daves"), "daves", &[]);
    claim(
        &store.view_sharing(&alice(), std::slice::from_ref(&dave)),
        &path("hers"),
        "hers",
        &[&path("daves")],
    );
    // Bob shares with alice, not with dave; then with both, and copies.
    let b = store.view_sharing(&bob(), &[alice()]);
    assert!(b.all_valid().is_empty());
    let b = store.view_sharing(&bob(), &[alice(), dave.clone()]);
    claim(&b, &path("his"), "his", &[&path("hers")]);
    let sees = |others: &[Member]| store.view_sharing(&carol(), others).all_valid().len();
    assert_eq!(sees(&[bob()]), 0);
    assert_eq!(sees(&[bob(), alice()]), 0);
    assert_eq!(sees(&[bob(), dave.clone()]), 1, "dave's own");
    assert_eq!(sees(&[bob(), alice(), dave]), 3);
}

#[test]
fn claims_of_one_batch_that_refer_in_circles_share_their_origins() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view_sharing(&alice(), &[bob()]), store.view_sharing(&bob(), &[alice(), carol()]));
    claim(&a, &path("hers"), "hers", &[]);
    let nar = file("x").nar();
    let staged = |name: &str, references: &[&StorePath]| {
        b.stage(info(&path(name), &nar, references), &mut &nar[..]).unwrap()
    };
    let (one, two, three) = (path("one"), path("two"), path("three"));
    let hers = path("hers");
    b.register_many(vec![staged("one", &[&two]), staged("two", &[&three]), staged("three", &[&one, &hers])])
        .unwrap();
    b.register_many(vec![staged("four", &[&one]), staged("five", &[])]).unwrap();
    let c = store.view_sharing(&carol(), &[bob()]);
    assert_eq!(c.all_valid(), [path("five")].into());
}

#[test]
fn what_was_built_from_anothers_bytes_does_not_become_open_when_their_name_is_proven() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view_sharing(&alice(), &[bob()]), store.view_sharing(&bob(), &[alice(), carol()]));
    claim(&a, &path("dep"), "hers", &[]);
    claim(&b, &path("top"), "top of hers", &[&path("dep")]);
    verified(&store.view(&Member::new("dave")), &path("dep"), "proven");
    assert!(b.is_valid(&path("top")));
    let c = store.view_sharing(&carol(), &[bob()]);
    assert_eq!(c.all_valid(), [path("dep")].into());
    assert_eq!(c.read_file(&path("dep"), 10).unwrap(), b"proven");
    // A path that bob builds upon the proven one belongs to bob alone, so he may share it.
    claim(&b, &path("next"), "next", &[&path("dep")]);
    assert!(c.is_valid(&path("next")) && is_closed(&c));
}

#[test]
fn a_snapshot_that_another_process_had_is_the_same_or_none() {
    let (dir, store, a, b) = sharing();
    let (own, theirs, everybodys) = (path("own"), path("theirs"), path("everybodys"));
    claim(&a, &own, "own", &[]);
    claim(&b, &theirs, "theirs", &[]);
    verified(&a, &everybodys, "everybodys");
    let before = a.snapshot([&own, &theirs, &everybodys]).unwrap().info().clone();
    let list = || {
        let entries = before.paths.values();
        entries.map(|(info, provenance)| (info.path.clone(), info.nar_hash, provenance.clone()))
    };
    drop((a, b, store));
    let store = open(dir.path());
    let again = store.snapshot_again(&alice(), list()).unwrap();
    assert_eq!(*again.info(), before);
    // It keeps the claims of its member, as the first one did.
    let a = store.view(&alice());
    delete_refused(&a, &own);
    drop(again);
    let other = list().map(|(path, mut hash, provenance)| {
        hash[0] ^= 1;
        (path, hash, provenance)
    });
    assert_eq!(
        store.snapshot_again(&alice(), other).err().map(|missing| missing.0),
        Some(own.min(theirs).min(everybodys))
    );
    assert!(store.snapshot_again(&alice(), [(path("none"), [0; 32], Provenance::Verified)]).is_err());
}

fn delete_refused(view: &View, path: &StorePath) {
    let wish =
        Collect { action: CollectAction::DeleteSpecific, paths: [path.clone()].into(), max_freed: u64::MAX };
    assert!(view.collect(&wish).is_err() && view.is_valid(path));
}
