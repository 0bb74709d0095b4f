//! A member's annotations of a path are shown to that member, and to nobody else.

mod common;

use std::io::Write;

use common::*;
use nix::PathInfo;
use nix_derivation::StorePath;
use store::{Collect, CollectAction, Member, Provenance, Store, View};

/// A store with `p` that everybody sees.
fn with_verified() -> (tempfile::TempDir, Store, StorePath) {
    let dir = scratch();
    let store = open(dir.path());
    let p = path("p");
    verified(&store.view(&bob()), &p);
    (dir, store, p)
}

fn verified(view: &View, p: &StorePath) {
    let nar = file("x").nar();
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    view.register(ingest.finish().unwrap(), info(p, &nar, &[]), Provenance::Verified).unwrap();
}

fn said(view: &View, p: &StorePath) -> (Option<StorePath>, Vec<String>) {
    let info = view.info(p).unwrap();
    assert_eq!(view.info_with_provenance(p).unwrap().0, info);
    (info.deriver.clone(), info.signatures.clone())
}

fn nothing() -> (Option<StorePath>, Vec<String>) {
    (None, Vec::new())
}

fn collect(view: &View) {
    let wish = Collect { action: CollectAction::DeleteDead, paths: [].into(), max_freed: u64::MAX };
    view.collect(&wish).unwrap();
}

#[test]
fn an_annotation_is_its_members_alone_and_survives_a_restart() {
    let (dir, store, p) = with_verified();
    let (a, drv) = (store.view(&alice()), path("p.drv"));
    a.name_deriver(std::slice::from_ref(&p), &drv).unwrap();
    let signature = "mine-1:c2ln".to_owned();
    a.add_signatures(&p, std::slice::from_ref(&signature)).unwrap();
    let hers = (Some(drv.clone()), vec![signature.clone()]);
    let check = |store: &Store| {
        assert_eq!(said(&store.view(&alice()), &p), hers);
        assert_eq!(said(&store.view(&bob()), &p), nothing());
        // Members who share with her do not see it, either.
        assert_eq!(said(&store.view_sharing(&bob(), &[alice()]), &p), nothing());
    };
    check(&store);
    // The deriver is only a name. It is returned once it is valid here, too.
    assert!(a.valid_derivers(&p).is_empty());
    drop((a, store));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    check(&store);
    verified(&store.view(&bob()), &drv);
    assert_eq!(store.view(&alice()).valid_derivers(&p), [drv].into());
    assert!(store.view(&bob()).valid_derivers(&p).is_empty());
    // A path with a known deriver gets no other deriver.
    store.view(&alice()).name_deriver(std::slice::from_ref(&p), &path("other.drv")).unwrap();
    check(&store);
}

#[test]
fn an_upload_of_what_everybody_sees_leaves_its_deriver_and_signatures_with_its_member() {
    let (_dir, store, p) = with_verified();
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    let nar = file("x").nar();
    let upload = |deriver: &str, signature: &str| {
        let info = PathInfo {
            deriver: Some(path(deriver)),
            signatures: vec![signature.to_owned()],
            ..info(&p, &nar, &[])
        };
        a.import(info, &mut &nar[..]).unwrap();
    };
    upload("p.drv", "k-1:c2ln");
    assert_eq!(said(&a, &p), (Some(path("p.drv")), vec!["k-1:c2ln".to_owned()]));
    upload("q.drv", "k-2:c2ln");
    assert_eq!(said(&a, &p), (Some(path("q.drv")), vec!["k-1:c2ln".to_owned(), "k-2:c2ln".to_owned()]));
    assert_eq!(said(&b, &p), nothing());
    // A path that is no derivation is not recorded as a deriver.
    upload("no-derivation", "k-2:c2ln");
    assert_eq!(said(&a, &p).0, Some(path("q.drv")));
    // The contents prove themselves; the announced deriver and signatures are not proven.
    let mut text = PathInfo::clone(&a.add_ca("t", TEXT, SHA256, &[].into(), &mut &b"t"[..]).unwrap());
    (text.deriver, text.signatures) = (Some(path("t.drv")), vec!["k-3:c2ln".to_owned()]);
    let t = text.path.clone();
    store.view(&Member::new("carol")).import(text, &mut &file("t").nar()[..]).unwrap();
    assert_eq!(
        said(&store.view(&Member::new("carol")), &t),
        (Some(path("t.drv")), vec!["k-3:c2ln".to_owned()])
    );
    assert_eq!((said(&a, &t), said(&b, &t)), (nothing(), nothing()));
}

const TEXT: nix_derivation::ContentAddressMethod = nix_derivation::ContentAddressMethod::Text;
const SHA256: nix_derivation::HashAlgorithm = nix_derivation::HashAlgorithm::Sha256;

#[test]
fn a_claim_that_gives_way_to_a_verified_path_leaves_what_it_said_with_its_member() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b, p) = (store.view(&alice()), store.view(&bob()), path("p"));
    let nar = file("x").nar();
    let hers = PathInfo {
        deriver: Some(path("p.drv")),
        signatures: vec!["k:c2ln".to_owned()],
        ..info(&p, &nar, &[])
    };
    a.import(hers, &mut &nar[..]).unwrap();
    let expected = (Some(path("p.drv")), vec!["k:c2ln".to_owned()]);
    // First bob proves the path: alice's claim is hidden. Then alice proves it: her claim is gone.
    verified(&b, &p);
    assert_eq!((said(&a, &p), said(&b, &p)), (expected.clone(), nothing()));
    a.add_root("r", &p).unwrap();
    collect(&a);
    assert_eq!((said(&a, &p), said(&b, &p)), (expected.clone(), nothing()));
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(said(&store.view(&alice()), &p), expected);
}

#[test]
fn an_annotation_says_nothing_about_other_contents_of_the_same_name() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, p) = (store.view_sharing(&alice(), &[bob()]), path("p"));
    let nar = file("bob's").nar();
    store.view(&bob()).import(info(&p, &nar, &[]), &mut &nar[..]).unwrap();
    a.add_signatures(&p, &["k:c2ln".to_owned()]).unwrap();
    assert_eq!(said(&a, &p).1, ["k:c2ln"]);
    // Bob's claim still has bob's deriver and signatures.
    assert_eq!(said(&store.view(&bob()), &p), nothing());
    assert_eq!(a.info_with_provenance(&p).unwrap().1, Provenance::Claimed(bob()));
    verified(&store.view(&Member::new("carol")), &p);
    assert_eq!(said(&a, &p), nothing());
    a.name_deriver(std::slice::from_ref(&p), &path("p.drv")).unwrap();
    assert_eq!(said(&a, &p), (Some(path("p.drv")), Vec::new()));
}

#[test]
fn a_collection_takes_the_annotations_of_what_nothing_needs() {
    let (_dir, store, p) = with_verified();
    let a = store.view(&alice());
    let kept = path("kept");
    verified(&store.view(&bob()), &kept);
    for p in [&p, &kept] {
        a.name_deriver(std::slice::from_ref(p), &path("p.drv")).unwrap();
    }
    a.add_root("r", &kept).unwrap();
    collect(&a);
    assert_eq!((said(&a, &p), said(&a, &kept).0), (nothing(), Some(path("p.drv"))));
    assert!(a.is_valid(&p));
}

#[test]
fn an_annotation_keeps_nothing_alive() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b, p) = (store.view_sharing(&alice(), &[bob()]), store.view(&bob()), path("p"));
    let nar = file("bob's").nar();
    b.import(info(&p, &nar, &[]), &mut &nar[..]).unwrap();
    a.name_deriver(std::slice::from_ref(&p), &path("p.drv")).unwrap();
    collect(&b);
    assert!(!a.is_valid(&p));
    drop((a, b, store));
    assert_eq!(count(&dir.path().join("objects")), 0);
    // The next start drops annotations without a path.
    let store = open(dir.path());
    assert_eq!(store.recovery().lost_records, 1);
    drop(store);
    assert_eq!(*open(dir.path()).recovery(), store::Recovery::default());
}

#[test]
fn a_member_adds_so_many_signatures_to_a_path_and_no_more() {
    let (_dir, store, p) = with_verified();
    let a = store.view(&alice());
    let signatures = |range: std::ops::Range<usize>| range.map(|n| format!("k-{n}:c2ln")).collect::<Vec<_>>();
    a.add_signatures(&p, &signatures(0..64)).unwrap();
    a.add_signatures(&p, &signatures(0..64)).unwrap();
    let error = a.add_signatures(&p, &signatures(64..65)).unwrap_err();
    assert!(error.is_callers_fault() && error.to_string().contains("at most 64"), "{error}");
    assert_eq!(said(&a, &p).1.len(), 64);
    // Each member has a limit of their own.
    store.view(&bob()).add_signatures(&p, &signatures(64..65)).unwrap();
}
