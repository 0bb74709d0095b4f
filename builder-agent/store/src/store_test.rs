//! Commits that fail, or run at the same time as a session, in a whole store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};

use crate::error::DatabaseError;
use crate::index::change::Change;
use crate::index::commit::{About, Drops, Plan, commit_repeatable};
use crate::index::database::Database;
use crate::types::realisation::RealisationId;
use crate::types::result::{BuildRecord, RecordEnd};
use crate::upkeep::evict::{Wish, evict};
use crate::{Member, Provenance, Store, StoreConfig, View};

/// A database that fails.
struct Refuses;

impl Database for Refuses {
    fn write(&mut self, _: &mut dyn Iterator<Item = &Change>) -> Result<(), DatabaseError> {
        Err(DatabaseError::new(std::io::Error::other("no")))
    }

    fn last_row(&self) -> i64 {
        0
    }

    fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        Ok(())
    }
}

/// A store in which alice claims one path.
fn store() -> (tempfile::TempDir, Store, View, StorePath) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let view = store.view(&Member::new("alice"));
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    let made = view.add_ca("x", method, algorithm, &[].into(), &mut &b"x"[..]).unwrap();
    let path = StorePath::from_parts([1; 20], "claim").unwrap();
    let info = PathInfo { path: path.clone(), ca: None, ..PathInfo::clone(&made) };
    view.adopt(vec![(info, Provenance::Claimed(Member::new("alice")))], None).unwrap();
    (dir, store, view, path)
}

fn everything() -> About {
    About { everything: true, ..About::default() }
}

fn drops(changes: Vec<Change>) -> Plan {
    Plan { changes, drops: Some(Drops::Of(Member::new("alice"))), ..Plan::default() }
}

#[test]
fn what_is_held_after_it_was_planned_to_go_is_planned_again() {
    let (_dir, store, view, path) = store();
    let session = view.clone().holding();
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, drop) =
        (Arc::clone(&asked), Change::DropClaim { member: Member::new("alice"), path: path.clone() });
    let held = path.clone();
    commit_repeatable(&store.base.index, everything(), move |_| {
        if count.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok((Plan::default(), ()));
        }
        // As another thread would do, just after the plan.
        session.hold([&held]).unwrap();
        Ok((drops(vec![drop.clone()]), ()))
    })
    .unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(view.is_valid(&path));
}

#[test]
fn what_could_not_be_deleted_is_there_again() {
    let (_dir, store, view, path) = store();
    let alice = Member::new("alice");
    let id = RealisationId { drv_hash: [2; 32], output: "out".to_owned() };
    view.add_realisation(id.clone(), path.clone(), Provenance::Claimed(alice.clone())).unwrap();
    let end = RecordEnd::Failed { status: 1, message: "no".to_owned(), log: None };
    store.record_result(&[3; 32], BuildRecord { drv: path.clone(), time: 4, end }).unwrap();
    let before = (view.info_with_provenance(&path), view.realisation(&id), store.result(&[3; 32]));
    assert!(before.0.is_some() && before.1.is_some() && before.2.is_some());

    store.base.index.replace_database(Box::new(Refuses));
    let changes = vec![
        Change::DropClaim { member: alice.clone(), path: path.clone() },
        Change::DropRealisation { id: id.clone(), member: Some(alice) },
        Change::DropResult { key: [3; 32] },
    ];
    let nar_hash = before.0.as_ref().unwrap().0.nar_hash;
    let users = store.base.index.read().paths_with(&nar_hash);
    commit_repeatable(&store.base.index, everything(), move |_| Ok((drops(changes.clone()), ())))
        .unwrap_err();
    assert_eq!((view.info_with_provenance(&path), view.realisation(&id), store.result(&[3; 32])), before);
    assert_eq!(store.base.index.read().paths_with(&nar_hash), users);
}

/// A Verified path with a Verified reference, and what names them.
fn verified_pair(store: &Store) -> (View, [StorePath; 2], RealisationId) {
    let bob = store.view(&Member::new("bob"));
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    let base = bob.add_ca("base", method, algorithm, &[].into(), &mut &b"base"[..]).unwrap().path.clone();
    let text = ContentAddressMethod::Text;
    let top =
        bob.add_ca("top", text, algorithm, &[base.clone()].into(), &mut &b"top"[..]).unwrap().path.clone();
    let id = RealisationId { drv_hash: [5; 32], output: "out".to_owned() };
    bob.add_realisation(id.clone(), top.clone(), Provenance::Verified).unwrap();
    (bob, [base, top], id)
}

#[test]
fn what_could_not_be_evicted_is_there_again_with_its_charge() {
    let (_dir, store, ..) = store();
    let (bob, pair, id) = verified_pair(&store);
    let before = (bob.all_valid(), bob.charged(), bob.realisation(&id), store.object_bytes());
    store.base.index.replace_database(Box::new(Refuses));
    store.evict(u64::MAX, "a test").unwrap_err();
    assert_eq!((bob.all_valid(), bob.charged(), bob.realisation(&id), store.object_bytes()), before);
    assert!(pair.iter().all(|path| store.base.index.read().is_verified(path)));
}

#[test]
fn what_is_leased_after_an_eviction_was_planned_stays() {
    let (_dir, store, ..) = store();
    let (bob, [base, top], _) = verified_pair(&store);
    let holds = Arc::clone(store.base.index.holds());
    let taken = |session: &View, ask: &dyn Fn(&View)| {
        let mark = holds.mark();
        ask(session);
        holds.taken_since(mark, |member, path| *member == Member::new("bob") && [&base, &top].contains(&path))
    };
    let session = bob.clone().holding();
    assert!(!taken(&session, &|session| drop(session.info(&StorePath::from_parts([9; 20], "no").unwrap()))));
    assert!(taken(&session, &|session| assert!(session.is_valid(&top))), "an answer is a lease");
    assert!(!taken(&session, &|session| assert!(session.is_valid(&top))), "it was one before already");
    let build = std::cell::RefCell::new(None);
    assert!(
        taken(&session, &|session| drop(build.replace(session.snapshot([&base]).ok()))),
        "so is a snapshot"
    );
    // And the planned eviction is planned again.
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, base) = (Arc::clone(&asked), base.clone());
    commit_repeatable(&store.base.index, everything(), move |_| {
        if count.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok((Plan::default(), ()));
        }
        let drops = Some(Drops::Rows(Box::new(|_| true)));
        Ok((
            Plan { changes: vec![Change::DropVerified { path: base.clone() }], drops, ..Plan::default() },
            (),
        ))
    })
    .unwrap();
    assert_eq!((asked.load(Ordering::Relaxed), bob.all_valid().contains(&top)), (2, true));
}

/// The part of a round that only a full disk causes: needs beyond a member's part do not count any more.
#[test]
fn needs_beyond_a_members_part_count_no_more_when_room_is_short() {
    let (_dir, store, alices, _) = store();
    let (bob, [base, top], _) = verified_pair(&store);
    let session = bob.clone().holding();
    assert!(session.is_valid(&base) && session.is_valid(&top));
    let object = store.base.index.read().verified().entry(&top).unwrap().size;
    let evict = |most_needed| {
        let wish = Wish { bytes: u64::MAX, objects: u64::MAX, most_needed: Some(most_needed) };
        evict(&store.base.upkeep, wish).unwrap()
    };
    // The newest lease is that of the top, whose closure has two objects.
    evict(2 * object);
    assert!([&base, &top].into_iter().all(|path| bob.all_valid().contains(path)));
    // With less only the lease of the base counts, and the top goes.
    evict(object);
    assert!(bob.all_valid().contains(&base) && !bob.all_valid().contains(&top));
    evict(0);
    assert!(bob.all_valid().is_empty() && alices.all_valid().is_empty());
}
