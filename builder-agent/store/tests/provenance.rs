//! Visibility of paths: a Claimed path does not exist for anybody but its owner.

mod common;

use std::collections::BTreeSet;
use std::io::Write;

use common::*;
use nix::PathInfo;
use nix_derivation::{
    CAHash, ContentAddressMethod, HashAlgorithm, NixHash, StorePath, store_path::build_ca_path,
};
use store::{ImportError, Provenance, RegisterError, Store, View};

fn claim(view: &View, path: &StorePath, contents: &str, references: &[&StorePath]) {
    let nar = file(contents).nar();
    view.import(info(path, &nar, references), &mut &nar[..]).unwrap();
}

fn verified(view: &View, path: &StorePath, contents: &str, references: &[&StorePath]) -> Provenance {
    let nar = file(contents).nar();
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    view.register(ingest.finish().unwrap(), info(path, &nar, references), Provenance::Verified).unwrap();
    view.info_with_provenance(path).unwrap().1
}

fn two_members() -> (tempfile::TempDir, Store, View, View) {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    (dir, store, a, b)
}

#[test]
fn a_claimed_path_is_invisible_to_others_in_every_question() {
    let (_dir, _store, a, b) = two_members();
    let (dep, user, drv) = (path("dep"), path("user"), path("user.drv"));
    claim(&a, &drv, "drv", &[]);
    claim(&a, &dep, "dep", &[]);
    let nar = file("user").nar();
    let with_deriver = PathInfo { deriver: Some(drv.clone()), ..info(&user, &nar, &[&dep]) };
    a.import(with_deriver, &mut &nar[..]).unwrap();

    assert_eq!(a.referrers(&dep), [user.clone()].into());
    assert_eq!(a.valid_derivers(&user), [drv.clone()].into());
    assert_eq!(a.by_hash_part(user.digest()), Some(user.clone()));
    assert_eq!(a.closure(std::slice::from_ref(&user)).unwrap(), [user.clone(), dep.clone()].into());
    assert_eq!(a.info_with_provenance(&user).unwrap().1, Provenance::Claimed(alice()));

    assert!(b.info(&user).is_none() && b.info_with_provenance(&user).is_none() && !b.is_valid(&user));
    assert!(b.query_valid(&[dep.clone(), user.clone()]).is_empty());
    assert!(b.by_hash_part(user.digest()).is_none());
    assert!(b.referrers(&dep).is_empty() && b.valid_derivers(&user).is_empty());
    assert!(b.all_valid().is_empty());
    assert!(b.closure(std::slice::from_ref(&user)).is_err());
    assert!(b.nar(&user).is_err() && b.read_file(&user, 100).is_err() && b.snapshot([&user]).is_err());
    assert!(b.verify(&user).is_err());
    // Nor can another member build upon it.
    let nar = file("on top").nar();
    let error = b.import(info(&path("top"), &nar, &[&dep]), &mut &nar[..]).unwrap_err();
    assert!(matches!(error, ImportError::Register(RegisterError::MissingReference { .. })), "{error}");
}

#[test]
fn one_path_may_have_other_contents_for_each_member() {
    let (_dir, store, a, b) = two_members();
    let p = path("same-name");
    claim(&a, &p, "alice's", &[]);
    claim(&b, &p, "bob's", &[]);
    assert_eq!(a.read_file(&p, 100).unwrap(), b"alice's");
    assert_eq!(b.read_file(&p, 100).unwrap(), b"bob's");
    assert_ne!(unpacked(&a, &p), unpacked(&b, &p));
    assert!(store.view(&store::Member::new("carol")).info(&p).is_none());
}

#[test]
fn copies_of_equal_claims_are_not_shared_between_members() {
    let (_dir, _store, a, b) = two_members();
    claim(&a, &path("p"), "equal", &[]);
    claim(&b, &path("p"), "equal", &[]);
    // With a shared copy the second call would return at once, and its duration would show what the first
    // member has.
    assert_ne!(unpacked(&a, &path("p")), unpacked(&b, &path("p")));
}

#[test]
fn verified_wins_over_a_claim_and_hides_its_references() {
    let (_dir, _store, a, b) = two_members();
    let (p, dep) = (path("p"), path("dep"));
    claim(&a, &dep, "dep", &[]);
    claim(&a, &p, "claimed", &[&dep]);
    assert_eq!(verified(&b, &p, "verified", &[]), Provenance::Verified);
    for view in [&a, &b] {
        assert_eq!(view.read_file(&p, 100).unwrap(), b"verified");
        assert_eq!(view.info_with_provenance(&p).unwrap().1, Provenance::Verified);
        assert!(view.referrers(&dep).is_empty());
    }
    assert_eq!(a.all_valid(), [p.clone(), dep].into());
    // A later claim changes nothing.
    claim(&a, &p, "claimed again", &[]);
    assert_eq!(a.read_file(&p, 100).unwrap(), b"verified");
}

#[test]
fn verified_on_top_of_a_claim_is_a_claim() {
    let (_dir, _store, a, b) = two_members();
    let (dep, top) = (path("dep"), path("top"));
    claim(&a, &dep, "dep", &[]);
    assert_eq!(verified(&a, &top, "top", &[&dep]), Provenance::Claimed(alice()));
    assert!(!b.is_valid(&top));
    // When the reference has become Verified, so can the path.
    assert_eq!(verified(&b, &dep, "dep", &[]), Provenance::Verified);
    assert_eq!(verified(&a, &top, "top", &[&dep]), Provenance::Verified);
    assert!(b.is_valid(&top));
}

#[test]
fn one_claim_in_a_batch_taints_all_that_build_on_it() {
    let (_dir, _store, a, b) = two_members();
    let paths: Vec<StorePath> = (0..5).map(|i| path(&format!("p{i}"))).collect();
    let stage = |i: usize, refs: &[&StorePath], provenance| {
        let nar = file(format!("{i}")).nar();
        let mut ingest = a.ingest(&[]).unwrap();
        ingest.write_all(&nar).unwrap();
        a.stage_built(ingest.finish().unwrap(), info(&paths[i], &nar, refs), provenance).unwrap()
    };
    // In an order in which no reference comes first; p4 refers to itself and to nothing claimed.
    let batch = vec![
        stage(3, &[&paths[2], &paths[4]], Provenance::Verified),
        stage(2, &[&paths[1]], Provenance::Verified),
        stage(1, &[&paths[0], &paths[1]], Provenance::Verified),
        stage(0, &[], Provenance::Claimed(alice())),
        stage(4, &[&paths[4]], Provenance::Verified),
    ];
    let infos = a.register_many(batch).unwrap();
    assert_eq!(
        infos.iter().map(|i| i.path.clone()).collect::<Vec<_>>(),
        [3, 2, 1, 0, 4].map(|i| paths[i].clone())
    );
    assert_eq!(a.all_valid().len(), 5);
    assert_eq!(b.all_valid(), [paths[4].clone()].into());
}

#[test]
fn an_entry_that_does_not_count_vouches_for_nothing() {
    let (_dir, _store, a, b) = two_members();
    let (p, top) = (path("p"), path("top"));
    let stage = |path: &StorePath, contents: &str, refs: &[&StorePath], provenance| {
        let nar = file(contents).nar();
        let mut ingest = a.ingest(&[]).unwrap();
        ingest.write_all(&nar).unwrap();
        a.stage_built(ingest.finish().unwrap(), info(path, &nar, refs), provenance).unwrap()
    };
    // The first p counts, and its contents are wrong; the second one is right and comes too late.
    let batch = vec![
        stage(&p, "lie", &[], Provenance::Claimed(alice())),
        stage(&p, "truth", &[], Provenance::Verified),
        stage(&top, "top", &[&p], Provenance::Verified),
    ];
    a.register_many(batch).unwrap();
    assert!(b.all_valid().is_empty(), "{:?}", b.all_valid());
    assert_eq!(a.read_file(&p, 10).unwrap(), b"lie");
}

#[test]
fn a_batch_with_one_bad_member_registers_nothing() {
    let (dir, _store, a, _b) = two_members();
    let stage = |name: &str, refs: &[&StorePath]| {
        let nar = file(name).nar();
        a.stage(info(&path(name), &nar, refs), &mut &nar[..]).unwrap()
    };
    let missing = path("missing");
    let error = a.register_many(vec![stage("good", &[]), stage("bad", &[&missing])]).unwrap_err();
    assert!(error.to_string().contains(&missing.to_string()), "{error}");
    assert!(a.all_valid().is_empty());
    assert_eq!((count(&dir.path().join("tmp")), count(&dir.path().join("objects"))), (0, 0));
}

#[test]
fn a_view_registers_for_its_own_member_only() {
    let (_dir, _store, a, b) = two_members();
    let nar = file("x").nar();
    let mut ingest = a.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    let error = a
        .register(ingest.finish().unwrap(), info(&path("x"), &nar, &[]), Provenance::Claimed(bob()))
        .unwrap_err();
    assert!(matches!(error, RegisterError::ForeignMember { .. }), "{error}");
    assert!(!a.is_valid(&path("x")) && !b.is_valid(&path("x")));
}

#[test]
fn the_first_contents_of_a_path_stay() {
    let (_dir, _store, a, _b) = two_members();
    claim(&a, &path("p"), "first", &[]);
    claim(&a, &path("p"), "second", &[]);
    claim(&a, &path("p"), "first", &[]);
    assert_eq!(a.read_file(&path("p"), 100).unwrap(), b"first");
}

#[test]
fn a_restart_changes_nothing_that_anybody_sees() {
    let (dir, store, a, b) = two_members();
    let (dep, top) = (path("dep"), path("top"));
    let nar = file("dep").nar();
    let full = PathInfo {
        deriver: Some(path("dep.drv")),
        signatures: vec!["k-1:c2ln".to_owned(), "k-2:c2ln".to_owned()],
        ..info(&dep, &nar, &[&dep])
    };
    a.import(full, &mut &nar[..]).unwrap();
    claim(&a, &top, "top", &[&dep]);
    verified(&b, &path("v"), "v", &[]);
    let before: Vec<_> =
        [&a, &b].map(|v| v.all_valid().iter().map(|p| v.info_with_provenance(p)).collect::<Vec<_>>()).into();
    drop((store, a, b));
    let store = open(dir.path());
    assert_eq!(*store.recovery(), store::Recovery::default());
    let after: Vec<_> = [alice(), bob()]
        .map(|m| {
            let v = store.view(&m);
            v.all_valid().iter().map(|p| v.info_with_provenance(p)).collect::<Vec<_>>()
        })
        .into();
    assert_eq!(before, after);
    assert_eq!(store.view(&alice()).referrers(&dep), [dep, top].into());
}

#[test]
fn a_right_content_address_is_verified_for_everybody() {
    let (_dir, _store, a, b) = two_members();
    let none = BTreeSet::new();
    let text =
        a.add_ca("t", ContentAddressMethod::Text, HashAlgorithm::Sha256, &none, &mut &b"text"[..]).unwrap();
    let flat =
        a.add_ca("f", ContentAddressMethod::Flat, HashAlgorithm::Sha512, &none, &mut &b"flat"[..]).unwrap();
    let nar = dir([("x", file("x"))]).nar();
    for algorithm in [HashAlgorithm::Sha1, HashAlgorithm::Md5, HashAlgorithm::Sha256] {
        let tree = a.add_ca("n", ContentAddressMethod::Nar, algorithm, &none, &mut &nar[..]).unwrap();
        assert!(b.is_valid(&tree.path));
    }
    let refs = [text.path.clone()].into();
    let on_top =
        a.add_ca("s", ContentAddressMethod::Nar, HashAlgorithm::Sha256, &refs, &mut &nar[..]).unwrap();
    assert_eq!(b.read_file(&text.path, 10).unwrap(), b"text");
    assert_eq!(b.read_file(&flat.path, 10).unwrap(), b"flat");
    assert_eq!(b.referrers(&text.path), [on_top.path.clone()].into());
    b.verify(&text.path).unwrap();

    // The same as an upload with an announced address; unproven fields are dropped.
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    b.nar(&text.path).unwrap_err();
    let text_nar = file("text").nar();
    let announced = PathInfo {
        deriver: Some(path("x.drv")),
        signatures: vec!["k:c2ln".to_owned()],
        ultimate: true,
        ..(*text).clone()
    };
    let got = a.import(announced, &mut &text_nar[..]).unwrap();
    assert_eq!((&got.deriver, got.signatures.len(), got.ultimate), (&None, 0, false));
    assert_eq!(b.info_with_provenance(&text.path).unwrap().1, Provenance::Verified);
}

/// Small files are hashed while they arrive, large ones are read back.
#[test]
fn a_flat_address_is_of_the_contents_of_one_plain_file_of_any_size() {
    let (_dir, _store, a, b) = two_members();
    for size in [0, 1, 4096, 70_000, 300_000] {
        let contents = noise(size as u64, size);
        let ca = CAHash::Flat(nix_derivation::hash_bytes(HashAlgorithm::Sha256, &contents));
        let none: [StorePath; 0] = [];
        let at = build_ca_path("f", &ca, &none, false).unwrap();
        let import = |tree: Tree| {
            let nar = tree.nar();
            a.import(PathInfo { ca: Some(ca.clone()), ..info(&at, &nar, &[]) }, &mut &nar[..])
        };
        let executable = import(Tree::File { executable: true, contents: contents.clone() });
        assert!(executable.unwrap_err().to_string().contains("executable"), "{size}");
        let mut other = contents.clone();
        other.push(0);
        assert!(matches!(import(file(other)), Err(ImportError::ContentMismatch { .. })), "{size}");
        import(file(contents)).unwrap();
        assert!(b.is_valid(&at), "{size}");
    }
}

#[test]
fn a_known_text_path_of_nix_is_reproduced() {
    // nix-instantiate --eval -E 'builtins.toFile "foo" "bar"'
    let (_dir, _store, a, _b) = two_members();
    let got = a
        .add_ca("foo", ContentAddressMethod::Text, HashAlgorithm::Sha256, &BTreeSet::new(), &mut &b"bar"[..])
        .unwrap();
    assert_eq!(got.path.to_string(), "/nix/store/vxjiwkjkn7x4079qvh1jkl5pn05j2aw0-foo");
}

#[test]
fn a_wrong_content_address_is_an_error_not_a_claim() {
    let (_dir, _store, a, _b) = two_members();
    let nar = file("contents").nar();
    let none: [StorePath; 0] = [];
    let right = CAHash::Nar(NixHash::Sha256(info(&path("x"), &nar, &[]).nar_hash));
    let at = build_ca_path("x", &right, &none, false).unwrap();
    let wrong = CAHash::Nar(NixHash::Sha256([7; 32]));
    let cases = [
        (path("x"), right.clone(), "belong at"),
        (at.clone(), wrong, "but its contents have 'fixed:r:sha256:"),
        (at.clone(), CAHash::Text([0; 32]), "but its contents have 'text:sha256:"),
    ];
    for (path, ca, expected) in cases {
        let said = a.import(PathInfo { ca: Some(ca), ..info(&path, &nar, &[]) }, &mut &nar[..]).unwrap_err();
        assert!(said.is_callers_fault());
        assert!(said.to_string().contains(expected), "{said}");
    }
    // References are part of the address.
    claim(&a, &path("dep"), "dep", &[]);
    let with_ref = PathInfo { ca: Some(right), ..info(&at, &nar, &[&path("dep")]) };
    assert!(matches!(a.import(with_ref, &mut &nar[..]), Err(ImportError::PathMismatch { .. })));
    // A directory has no flat hash.
    let tree = dir([]).nar();
    let flat = CAHash::Flat(NixHash::Sha256([0; 32]));
    let said = a.import(PathInfo { ca: Some(flat), ..info(&at, &tree, &[]) }, &mut &tree[..]).unwrap_err();
    assert!(said.to_string().contains("is a directory, not a plain file"), "{said}");
    assert!(a.info(&at).is_none());
}

#[test]
fn content_addressed_on_top_of_a_claim_is_a_claim() {
    let (_dir, _store, a, b) = two_members();
    claim(&a, &path("dep"), "dep", &[]);
    let refs = [path("dep")].into();
    let got =
        a.add_ca("t", ContentAddressMethod::Text, HashAlgorithm::Sha256, &refs, &mut &b"t"[..]).unwrap();
    assert_eq!(a.info_with_provenance(&got.path).unwrap().1, Provenance::Claimed(alice()));
    assert!(!b.is_valid(&got.path));
}

/// In any order, at once or one by one; and finally a path that refers to the last one.
#[test]
fn what_waited_for_its_references_only_follows_the_last_of_them() {
    for (order, size) in [([0, 1, 2, 3], 1), ([3, 2, 1, 0], 1), ([2, 0, 3, 1], 2), ([1, 3, 0, 2], 4)] {
        let (_dir, _store, a, b) = two_members();
        let below: Vec<StorePath> = (0..4).map(|i| path(&format!("p{i}"))).collect();
        below.iter().for_each(|path| claim(&a, path, "x", &[]));
        let text = |name: &str, references: &[&StorePath]| {
            let references = references.iter().map(|path| (*path).clone()).collect();
            let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
            a.add_ca(name, method, algorithm, &references, &mut name.as_bytes()).unwrap().path.clone()
        };
        let all = text("all", &below.iter().collect::<Vec<_>>());
        let top = text("top", &[&all, &below[1]]);
        for (done, group) in order.chunks(size).enumerate() {
            assert!(!b.is_valid(&all) && !b.is_valid(&top), "after {done} of {order:?} by {size}");
            let nar = file("x").nar();
            let batch = group.iter().map(|i| {
                let mut ingest = a.ingest(&[]).unwrap();
                ingest.write_all(&nar).unwrap();
                let info = info(&below[*i], &nar, &[]);
                a.stage_built(ingest.finish().unwrap(), info, Provenance::Verified).unwrap()
            });
            a.register_many(batch.collect()).unwrap();
        }
        assert!(b.is_valid(&all) && b.is_valid(&top), "{order:?} by {size}");
    }
}

#[test]
fn a_content_address_with_self_reference_is_checked_modulo_itself() {
    let (_dir, _store, a, b) = two_members();
    let contents = |part: &str| format!("prefix {part} middle {part} end").into_bytes();
    let (announced, nar) = self_referring(&contents, true);
    a.import(announced.clone(), &mut &nar[..]).unwrap();
    assert_eq!(b.info_with_provenance(&announced.path).unwrap().1, Provenance::Verified);
}

/// Places are kept until the hash is complete, so their number is limited; a path with more of them is not
/// proven.
#[test]
fn self_references_without_end_prove_nothing() {
    let (_dir, _store, a, b) = two_members();
    let contents = |part: &str| part.repeat(1_000_001).into_bytes();
    let (counted, nar) = self_referring(&contents, true);
    let error = a.import(counted, &mut &nar[..]).unwrap_err();
    assert!(matches!(error, ImportError::ContentMismatch { .. }), "{error}");
    let (announced, nar) = self_referring(&contents, false);
    a.import(announced.clone(), &mut &nar[..]).unwrap();
    assert_eq!(a.info_with_provenance(&announced.path).unwrap().1, Provenance::Claimed(alice()));
    assert!(!b.is_valid(&announced.path));
}

/// As `nix store make-content-addressed` does: hash with zeros in place of the path's own hash part, then name.
fn self_referring(contents: &dyn Fn(&str) -> Vec<u8>, with_places: bool) -> (PathInfo, Vec<u8>) {
    let part = hash_part(&path("self"));
    let mut bytes = file(contents(&part)).nar();
    let (mut places, mut from) = (String::new(), 0);
    while let Some(at) = bytes[from..].windows(32).position(|w| w == part.as_bytes()) {
        from += at;
        bytes[from..from + 32].fill(0);
        places += &format!("|{from}");
    }
    if with_places {
        bytes.extend_from_slice(places.as_bytes());
    }
    let ca = CAHash::Nar(nix_derivation::hash_bytes(HashAlgorithm::Sha256, &bytes));
    let none: [StorePath; 0] = [];
    let at = build_ca_path("self", &ca, &none, true).unwrap();
    let nar = file(contents(&hash_part(&at))).nar();
    (PathInfo { ca: Some(ca), ..info(&at, &nar, &[&at]) }, nar)
}

#[test]
fn info_that_would_fill_the_memory_is_refused() {
    let (dir, _store, a, _b) = two_members();
    let nar = file("x").nar();
    let plain = info(&path("x"), &nar, &[]);
    let signature = |len: usize| format!("k:{}", "s".repeat(len));
    let cases = [
        (PathInfo { signatures: vec![signature(10); 65], ..plain.clone() }, "65 signatures, at most 64"),
        (
            PathInfo { signatures: vec![signature(1023)], ..plain.clone() },
            "1025 bytes in a signature, at most 1024",
        ),
        (
            PathInfo { signatures: vec!["a\nb:c".to_owned()], ..plain.clone() },
            "\"a\\nb:c\" is not a signature",
        ),
        (
            PathInfo { references: (0..30_001).map(|i| path(&format!("r{i}"))).collect(), ..plain.clone() },
            "30001 references, at most 30000",
        ),
    ];
    for (info, expected) in cases {
        let said = a.import(info, &mut &nar[..]).unwrap_err();
        assert!(said.is_callers_fault() && said.to_string().contains(expected), "{said}");
    }
    assert_eq!(count(&dir.path().join("tmp")), 0);
}
