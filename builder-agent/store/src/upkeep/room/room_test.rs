//! Writers who wait for room, without a thread that makes any.

use std::time::Duration;

use super::*;

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
