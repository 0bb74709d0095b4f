//! Whoever fills a crew with work waits for themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

fn owner(name: &str) -> Arc<str> {
    Arc::from(name)
}

/// A work that lasts until the sender of the pair is dropped.
fn parked() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
    let (hold, held) = mpsc::channel::<()>();
    (hold, move || assert!(held.recv().is_err(), "only dropped"))
}

#[tokio::test]
async fn one_owner_never_has_more_than_half_of_the_threads() {
    let crew = Crew::new("test", 4);
    let (mallory, alice) = (owner("mallory"), owner("alice"));
    let (holds, tasks): (Vec<_>, Vec<_>) = (0..50)
        .map(|_| {
            let (hold, work) = parked();
            (hold, crew.start(&mallory, work))
        })
        .unzip();
    for n in 0..100 {
        assert_eq!(crew.start(&alice, move || n).await.expect("done"), n);
    }
    assert_eq!(crew.0.lock().lanes[&mallory].running, 2);
    drop(holds);
    for task in tasks {
        task.await.expect("done");
    }
    // The last thread may not have said so yet.
    while !crew.0.lock().lanes.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(crew.0.lock().threads, 4, "threads are kept, and no more than allowed");
}

#[tokio::test]
async fn owners_are_served_in_turn_however_much_one_has_asked_for() {
    let crew = Crew::new("test", 2);
    let (gate, held) = parked();
    let (other_gate, also_held) = parked();
    // Both threads are busy while the queues fill.
    let held = [crew.start(&owner("x"), held), crew.start(&owner("y"), also_held)];
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |who: &'static str| {
        let order = order.clone();
        crew.start(&owner(who), move || order.lock().expect("order").push(who))
    };
    let many: Vec<_> = (0..20).map(|_| note("mallory")).collect();
    let few: Vec<_> = (0..3).map(|_| note("alice")).collect();
    // One thread alone, so that the order in which it is served is the order in which it is noted.
    drop(gate);
    for task in few.into_iter().chain(many) {
        task.await.expect("done");
    }
    drop(other_gate);
    for task in held {
        task.await.expect("done");
    }
    let order = order.lock().expect("order");
    let last = order.iter().rposition(|who| *who == "alice").expect("alice was served");
    assert!(last < 8, "alice waited for work of mallory's: {order:?}");
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_begun() {
    let crew = Crew::new("test", 2);
    let (alice, done) = (owner("alice"), Arc::new(AtomicUsize::new(0)));
    let (hold, work) = parked();
    let held = crew.start(&alice, work);
    let counted = done.clone();
    drop(crew.start(&alice, move || counted.fetch_add(1, Ordering::SeqCst)));
    drop(hold);
    held.await.expect("done");
    crew.start(&alice, || ()).await.expect("done");
    assert_eq!(done.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_panic_ends_one_work_and_no_thread() {
    let crew = Crew::new("test", 1);
    let alice = owner("alice");
    let lost = crew.start(&alice, || panic!("on purpose")).await.expect_err("it panicked");
    assert!(lost.to_string().contains("on purpose"), "{lost}");
    assert_eq!(crew.start(&alice, || 7).await.expect("done"), 7);
}

#[tokio::test]
async fn long_work_has_a_thread_of_its_own_and_is_waited_for_at_the_end() {
    let threads = Threads::new();
    let (hold, work) = parked();
    let task = threads.alone("test", work);
    threads.wait(Duration::from_millis(20));
    drop(hold);
    threads.wait(Duration::from_secs(30));
    assert_eq!(*threads.lone.running.lock().expect("count"), 0);
    task.await.expect("done");
}
