//! Writers who wait for room, without a thread that makes any.

use std::sync::atomic::AtomicUsize;
use std::task::{Wake, Waker};
use std::time::Duration;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};

use super::*;
use crate::error::DatabaseError;
use crate::index::change::Change;
use crate::index::database::Database;
use crate::{Provenance, Store};

/// With these levels.
fn rooms(free: u64) -> (tempfile::TempDir, Arc<Rooms>) {
    let dir = tempfile::tempdir().unwrap();
    let mut rooms = Rooms::open(dir.path(), &StoreConfig::default()).unwrap();
    let free = Free { bytes: free, files: 0 };
    rooms.levels = Some(Levels { enough: free, low: free, for_uploads: free, for_builds: free });
    (dir, Arc::new(rooms))
}

/// No disk has so much.
const NEVER: u64 = u64::MAX / 2;

fn poll(asking: &mut Asking) -> Poll<Result<Leave, ImportError>> {
    Pin::new(asking).poll(&mut Context::from_waker(std::task::Waker::noop()))
}

fn levels(rooms: &Rooms) -> Levels {
    rooms.levels.unwrap()
}

#[test]
fn an_upload_waits_without_a_thread_as_long_as_rounds_have_an_effect() {
    let (_dir, rooms) = rooms(NEVER);
    let mut asking = rooms.ask(&Member::new("alice"), 1 << 20, 1);
    assert!(poll(&mut asking).is_pending());
    assert_eq!(rooms.wanted(&levels(&rooms)).bytes, NEVER + (1 << 20));
    for _ in 0..5 {
        rooms.end_round(&levels(&rooms), true);
        assert!(poll(&mut asking).is_pending());
    }
    rooms.end_round(&levels(&rooms), false);
    assert!(poll(&mut asking).is_pending(), "that round may have begun before");
    rooms.end_round(&levels(&rooms), false);
    let Poll::Ready(Err(refused)) = poll(&mut asking) else { panic!("refused") };
    let said = refused.to_string();
    assert!(said.contains("No space left on device") && said.contains("store.min-free-mib"), "{said}");
    drop(asking);
    let mut gone = rooms.ask(&Member::new("alice"), 1 << 20, 1);
    assert!(poll(&mut gone).is_pending());
    drop(gone);
    assert_eq!(rooms.wanted(&levels(&rooms)), Free::default(), "whoever has gone wants nothing");
}

#[test]
fn with_room_nobody_waits_and_when_the_store_closes_neither() {
    let (_dir, ample) = rooms(0);
    assert!(matches!(poll(&mut ample.ask(&Member::new("alice"), 1, 1)), Poll::Ready(Ok(_))));
    let (_dir, rooms) = rooms(NEVER);
    let mut asking = rooms.ask(&Member::new("alice"), 1, 1);
    assert!(poll(&mut asking).is_pending());
    rooms.stop();
    assert!(matches!(poll(&mut asking), Poll::Ready(Err(_))));
    assert!(matches!(poll(&mut rooms.ask(&Member::new("bob"), 1, 1)), Poll::Ready(Err(_))));
    ample.stop();
    assert!(matches!(poll(&mut ample.ask(&Member::new("alice"), 1, 1)), Poll::Ready(Ok(_))));
}

/// A store with so many Verified paths, which nobody needs and which have one object.
fn store_of(paths: u32) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreConfig::default()).unwrap();
    let alice = store.view(&Member::new("alice"));
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    let contents = alice.add_ca("x", method, algorithm, &[].into(), &mut &b"x"[..]).unwrap();
    let info = |n: u32| {
        let mut digest = [9; 20];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        let path = StorePath::from_parts(digest, "row").unwrap();
        (PathInfo { path, ca: None, ..PathInfo::clone(&contents) }, Provenance::Verified)
    };
    let all: Vec<u32> = (1..paths).collect();
    all.chunks(1000)
        .for_each(|part| drop(alice.adopt(part.iter().copied().map(info).collect(), None).unwrap()));
    (dir, store)
}

/// Notes how many paths there are when it is called.
struct Noted {
    store: Store,
    paths: AtomicUsize,
}

impl Wake for Noted {
    fn wake(self: Arc<Self>) {
        let paths = self.store.base.index.read().verified().entries().count();
        self.paths.store(paths, Ordering::Relaxed);
    }
}

/// A round goes on until all is free that should be, which can take longer than anybody waits.
#[test]
fn who_has_room_after_the_first_eviction_does_not_wait_for_the_end_of_the_round() {
    // Two evictions.
    let (_dir, store) = store_of(20_500);
    let (_dir, rooms) = rooms(0);
    let noted = Arc::new(Noted { store: store.clone(), paths: AtomicUsize::new(usize::MAX) });
    let until = (Instant::now() + PATIENCE, IDLE_ROUNDS);
    let waker = Waker::from(Arc::clone(&noted));
    let id = rooms.state().queue.add(&Member::new("alice"), (1, 1), until, waker);
    let all = Free { bytes: NEVER, files: 0 };
    assert!(make_room(&rooms, &store.base.upkeep, all, "a test").unwrap());
    assert_eq!(rooms.state().queue.answer(id, Waker::noop()), Some(Answer::Room));
    let left = noted.paths.load(Ordering::Relaxed);
    assert_eq!((left, store.base.index.read().verified().entries().count()), (500, 0));
}

/// A database that ends the thread which makes room.
struct Panics;

impl Database for Panics {
    fn write(&mut self, _: &mut dyn Iterator<Item = &Change>) -> Result<(), DatabaseError> {
        match std::thread::current().name() {
            Some("store-room") => panic!("a test"),
            _ => Ok(()),
        }
    }

    fn last_row(&self) -> i64 {
        0
    }

    fn checkpoint(&mut self) -> Result<(), DatabaseError> {
        Ok(())
    }
}

#[test]
fn when_the_thread_that_makes_room_panics_nobody_waits_for_it_any_more() {
    let (_dir, store) = store_of(1);
    let (_dir, rooms) = rooms(NEVER);
    store.base.index.replace_database(Box::new(Panics));
    let _keeper = RoomKeeper::start(&rooms, &store.base.upkeep);
    let mut asking = rooms.ask(&Member::new("alice"), 1, 1);
    let begun = Instant::now();
    let refused = loop {
        match poll(&mut asking) {
            Poll::Ready(end) => break end.unwrap_err().to_string(),
            Poll::Pending => std::thread::sleep(Duration::from_millis(10)),
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
    };
    assert!(!refused.contains("No space left"), "{refused}");
    assert!(rooms.wait_for(1, Writer::Build).is_err(), "nor on a thread");
}

#[test]
fn of_writers_who_wait_on_threads_the_one_who_wants_most_decides_how_much_is_made() {
    let (_dir, rooms) = rooms(NEVER);
    let wait = |bytes: u64| {
        let rooms = Arc::clone(&rooms);
        std::thread::spawn(move || rooms.wait_for(bytes, Writer::Build))
    };
    let waiting = [wait(3 << 20), wait(1 << 20)];
    let both = || rooms.wanted(&levels(&rooms)).bytes == NEVER + (3 << 20);
    for _ in 0..1000 {
        if both() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(both());
    // As many rounds as both need, whenever they began.
    while !waiting.iter().all(|thread| thread.is_finished()) {
        rooms.end_round(&levels(&rooms), false);
        std::thread::sleep(Duration::from_millis(1));
    }
    for thread in waiting {
        assert_eq!(thread.join().unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
