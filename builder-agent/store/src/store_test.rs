//! Commits that fail, or run at the same time as a session, in a whole store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};

use crate::error::{DatabaseError, RegisterError};
use crate::index::change::Change;
use crate::index::commit::{About, Drops, Plan, commit_repeatable};
use crate::index::database::Database;
use crate::types::realisation::RealisationId;
use crate::types::result::{BuildRecord, RecordEnd};
use crate::upkeep::evict::looks::{Look, Situation};
use crate::upkeep::evict::{Wish, evict};
use crate::upkeep::room::make_room;
use crate::upkeep::space::Free;
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

/// A database that takes everything and cannot be flushed.
struct Unflushed;

impl Database for Unflushed {
    fn write(&mut self, _: &mut dyn Iterator<Item = &Change>) -> Result<(), DatabaseError> {
        Ok(())
    }

    fn last_row(&self) -> i64 {
        0
    }

    fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        Err(DatabaseError::new(std::io::Error::other("no")))
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

/// Evicts all that is not needed, where the needs of all count up to so many bytes together.
fn evict_all(store: &Store, for_needs: u64) {
    let wish = Wish { bytes: u64::MAX, objects: u64::MAX, for_needs: Some(for_needs) };
    evict(&store.base.upkeep, wish).unwrap();
}

/// The part of a round that only a full disk causes: needs beyond a member's part do not count any more.
#[test]
fn needs_beyond_a_members_part_count_no_more_when_room_is_short() {
    let (_dir, store, alices, _) = store();
    let (bob, [base, top], _) = verified_pair(&store);
    let session = bob.clone().holding();
    assert!(session.is_valid(&base) && session.is_valid(&top));
    let object = store.base.index.read().verified().entry(&top).unwrap().size;
    // The newest lease is that of the top, whose closure has two objects.
    evict_all(&store, 2 * object);
    assert!([&base, &top].into_iter().all(|path| bob.all_valid().contains(path)));
    // With less only the base counts, and the top goes.
    evict_all(&store, object);
    assert!(bob.all_valid().contains(&base) && !bob.all_valid().contains(&top));
    evict_all(&store, 0);
    assert!(bob.all_valid().is_empty() && alices.all_valid().is_empty());
}

/// A claim of as many objects as `names`, each referring to the one before.
fn claims(view: &View, names: &[&str]) -> Vec<StorePath> {
    let mut made: Vec<StorePath> = Vec::new();
    for name in names {
        let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
        let contents = view.add_ca(name, method, algorithm, &[].into(), &mut name.as_bytes()).unwrap();
        let mut digest = [7; 20];
        digest[..name.len()].copy_from_slice(name.as_bytes());
        let path = StorePath::from_parts(digest, "claim").unwrap();
        let references = made.last().cloned().into_iter().collect();
        let info = PathInfo { path: path.clone(), ca: None, references, ..PathInfo::clone(&contents) };
        view.adopt(vec![(info, Provenance::Claimed(view.member().clone()))], None).unwrap();
        made.push(path);
    }
    made
}

#[test]
fn members_who_only_have_roots_get_an_equal_part_too_and_what_they_do_not_need_is_for_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let view = |name: &str| store.view(&Member::new(name));
    let left =
        |name: &str, paths: &[StorePath]| paths.iter().filter(|path| view(name).is_valid(path)).count();
    // Of ten objects each, alice holds hers in a session; bob and carol are not here, and have roots.
    let names: Vec<String> = (0..30).map(|n| format!("{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let paths: Vec<Vec<StorePath>> = ["alice", "bob", "carol"]
        .iter()
        .zip(names.chunks(10))
        .map(|(member, names)| claims(&view(member), names))
        .collect();
    let session = view("alice").holding();
    session.hold(&paths[0]).unwrap();
    let root = |member: &str, paths: &[StorePath]| {
        let mut names = 0..;
        paths
            .iter()
            .for_each(|path| view(member).add_root(&names.next().unwrap().to_string(), path).unwrap());
    };
    // Bob needs all of his, carol two of hers.
    root("bob", &paths[1]);
    root("carol", &paths[2][..2]);
    let object = {
        let index = store.base.index.read();
        index.claims_of(&Member::new("alice")).unwrap().entry(&paths[0][0]).unwrap().size
    };
    let counts = |store: &Store, for_needs| {
        evict_all(store, for_needs);
        [left("alice", &paths[0]), left("bob", &paths[1]), left("carol", &paths[2])]
    };
    assert_eq!(counts(&store, 22 * object), [10, 10, 2], "all that is needed fits");
    assert_eq!(counts(&store, 14 * object), [6, 6, 2], "four each, and what carol leaves of hers");
    assert_eq!(counts(&store, 3 * object), [1, 1, 1]);
    drop(session);
    assert_eq!(counts(&store, 2 * object), [0, 1, 1], "who has neither a session nor a root needs nothing");
}

#[test]
fn the_holders_of_a_members_tickets_have_one_part_with_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let (alice, bob) = (Member::new("alice"), Member::new("bob"));
    let tickets = [Member::new("ticket:1"), Member::new("ticket:2")];
    tickets.iter().for_each(|ticket| store.pays_for(&alice, ticket));
    let holders = [&alice, &tickets[0], &tickets[1], &bob];
    let names: Vec<String> = (0..16).map(|n| format!("{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let sessions: Vec<(View, Vec<StorePath>)> = holders
        .iter()
        .zip(names.chunks(4))
        .map(|(member, names)| {
            let view = store.view(member).holding();
            let paths = claims(&view, names);
            (view, paths)
        })
        .collect();
    let object = store.base.index.read().claims_of(&bob).unwrap().entry(&sessions[3].1[0]).unwrap().size;
    evict_all(&store, 8 * object);
    let left =
        |(view, paths): &(View, Vec<StorePath>)| paths.iter().filter(|path| view.is_valid(path)).count();
    let left: Vec<usize> = sessions.iter().map(left).collect();
    assert_eq!((left[..3].iter().sum::<usize>(), left[3]), (4, 4), "{left:?}");
}

#[test]
fn needs_that_refer_to_each_other_in_a_circle_keep_nothing_beyond_the_part() {
    let (_dir, store, view, _) = store();
    let contents = {
        let index = store.base.index.read();
        Arc::clone(&index.verified().entries().next().unwrap().1.info)
    };
    let path = |n: u8| StorePath::from_parts([n; 20], "circle").unwrap();
    let claim = |own: u8, other: u8| {
        let info = PathInfo {
            path: path(own),
            ca: None,
            references: [path(other)].into(),
            ..PathInfo::clone(&contents)
        };
        (info, Provenance::Claimed(Member::new("alice")))
    };
    let session = view.clone().holding();
    session.adopt(vec![claim(8, 9), claim(9, 8)], None).unwrap();
    store.evict(u64::MAX, "a test").unwrap();
    assert!(session.is_valid(&path(8)) && session.is_valid(&path(9)), "needed like others");
    evict_all(&store, 1);
    assert!(!session.is_valid(&path(8)) && !session.is_valid(&path(9)));
}

#[test]
fn after_a_flush_has_failed_nothing_is_evicted_in_vain() {
    let (_dir, store, ..) = store();
    let (bob, ..) = verified_pair(&store);
    store.base.index.replace_database(Box::new(Unflushed));
    let first = store.evict(1, "a test").unwrap_err();
    assert!(!matches!(first, RegisterError::Stuck), "the flush itself: {first}");
    let left = bob.all_valid();
    assert!(!left.is_empty());
    let all = Free { bytes: u64::MAX, files: 0 };
    for _ in 0..3 {
        assert!(matches!(store.evict(u64::MAX, "a test"), Err(RegisterError::Stuck)));
        let made = make_room(&store.base.rooms, &store.base.upkeep, all, "a test");
        assert!(matches!(made, Err(RegisterError::Stuck)), "{made:?}");
    }
    assert_eq!(bob.all_valid(), left);
}

#[test]
fn unpacked_trees_go_only_if_room_is_missing() {
    let (_dir, store, ..) = store();
    let (bob, [base, _], _) = verified_pair(&store);
    let tree = bob.snapshot([&base]).unwrap().tree(&base).unwrap();
    let make = |bytes| {
        let enough = Free { bytes, files: 0 };
        make_room(&store.base.rooms, &store.base.upkeep, enough, "a test").unwrap()
    };
    assert!(!make(0) && tree.exists());
    assert!(make(u64::MAX) && !tree.exists());
}

/// In a store in which so many paths refer to each other, each Verified one to the one before, with one object.
fn chain(store: &Store, length: u32) -> Vec<StorePath> {
    let alice = store.view(&Member::new("alice"));
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    let contents = alice.add_ca("x", method, algorithm, &[].into(), &mut &b"x"[..]).unwrap();
    let path = |n: u32| {
        let mut digest = [9; 20];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        StorePath::from_parts(digest, "chain").unwrap()
    };
    let link = |n: u32| {
        let references = n.checked_sub(1).map(path).into_iter().collect();
        (PathInfo { path: path(n), ca: None, references, ..PathInfo::clone(&contents) }, Provenance::Verified)
    };
    let all: Vec<u32> = (0..length).collect();
    for part in all.chunks(1000) {
        alice.adopt(part.iter().copied().map(link).collect(), None).unwrap();
    }
    all.into_iter().map(path).collect()
}

/// With a look at all referrers of each row this takes minutes.
#[test]
fn an_eviction_takes_as_long_as_there_are_rows_and_references_however_they_refer_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let paths = chain(&store, 40_000);
    // All of alice's, who has more than the average, are below what bob has.
    let bob = store.view(&Member::new("bob"));
    let top = {
        let below = bob.info(paths.last().unwrap()).unwrap();
        let path = StorePath::from_parts([1; 20], "top").unwrap();
        PathInfo { path, references: [below.path.clone()].into(), ..PathInfo::clone(&below) }
    };
    bob.adopt(vec![(top.clone(), Provenance::Claimed(Member::new("bob")))], None).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(store.evict(u64::MAX, "a test").unwrap().paths, 40_002);
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Each of so many roots has the same closure below it, which does not fit.
#[test]
fn a_closure_that_does_not_fit_is_looked_at_once_for_all_roots_that_lead_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let paths = chain(&store, 20_000);
    let bob = store.view(&Member::new("bob"));
    let below = bob.info(paths.last().unwrap()).unwrap();
    let top = |n: u32| {
        let mut digest = [3; 20];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        let path = StorePath::from_parts(digest, "top").unwrap();
        let info = PathInfo { path, references: [below.path.clone()].into(), ..PathInfo::clone(&below) };
        (info, Provenance::Claimed(Member::new("bob")))
    };
    let session = bob.clone().holding();
    let all: Vec<u32> = (0..10_000).collect();
    for part in all.chunks(1000) {
        session.adopt(part.iter().copied().map(top).collect(), None).unwrap();
    }
    let begun = std::time::Instant::now();
    let wish = Wish { bytes: 1, objects: 1, for_needs: Some(8192) };
    evict(&store.base.upkeep, wish).unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn a_refusal_is_not_worked_out_again_while_nothing_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { max_bytes_per_member: Some(40_000), ..StoreConfig::default() };
    let store = Store::open(dir.path(), config).unwrap();
    let session = store.view(&Member::new("alice")).holding();
    claims(&session, &["01"]);
    let refused = |view: &View| matches!(view.make_room(20_000), Err(RegisterError::Quota { .. }));
    assert!(refused(&session));
    // A view that needed nothing, as each question makes one.
    drop(store.view(&Member::new("alice")).holding());
    let (tell, told) = std::sync::mpsc::channel();
    let locked = store.base.index.lock();
    let again = session.clone();
    let asking = std::thread::spawn(move || tell.send(refused(&again)));
    // No commit is possible meanwhile.
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(30)), Ok(true));
    drop(locked);
    // It holds what the session holds until it ends.
    asking.join().unwrap().unwrap();
    drop(session);
    store.view(&Member::new("alice")).make_room(20_000).unwrap();
}

#[test]
fn who_asks_for_room_soon_after_a_look_waits_for_the_next_one_and_is_not_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { max_bytes_per_member: Some(40_000), ..StoreConfig::default() };
    let store = Store::open(dir.path(), config).unwrap();
    let member = Member::new("alice");
    let alice = store.view(&member);
    let holder = store.view(&Member::new("ticket:1")).charged_to(&member);
    claims(&alice, &["01"]);
    // A look through so many rows is followed by half a second without another one, whatever it has found.
    let looked = || {
        let situation = Situation { charged: 1, freed: 0 };
        let look = Look { began: std::time::Instant::now(), rows: 100_000, situation, possible: 0 };
        store.base.looks.note(&member, look);
        std::time::Instant::now()
    };
    for more in ["02", "03"] {
        let begun = looked();
        // What can never fit is refused without a look, and delays nobody.
        let huge = holder.make_room(1 << 40);
        assert!(matches!(huge, Err(RegisterError::Quota { .. })), "{huge:?}");
        assert!(begun.elapsed() < std::time::Duration::from_millis(400), "{:?}", begun.elapsed());
        alice.make_room(30_000).unwrap();
        assert!(begun.elapsed() >= std::time::Duration::from_millis(400), "{:?}", begun.elapsed());
        claims(&alice, &[more]);
    }
    // All who wait are answered by one look, each for what they want.
    let held = alice.clone().holding();
    claims(&held, &["04"]);
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    alice.add_ca("dead", method, algorithm, &[].into(), &mut &b"dead"[..]).unwrap();
    looked();
    std::thread::scope(|scope| {
        let asks = |view: View, bytes| scope.spawn(move || view.make_room(bytes).is_ok());
        let asked = [asks(alice.clone(), 10_000), asks(holder.clone(), 40_000), asks(held.clone(), 10_000)];
        assert_eq!(asked.map(|ask| ask.join().unwrap()), [true, false, true]);
    });
}
