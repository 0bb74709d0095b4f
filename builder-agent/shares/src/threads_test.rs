//! A member who fills a crew with work delays only their own work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

fn owner(name: &str) -> Arc<str> {
    Arc::from(name)
}

/// Work that lasts until the sender of the pair is dropped.
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
    // The last thread may not have updated the state yet.
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
    // Only one thread runs, so the order of the notes is the order in which the work was done.
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

/// With one worker thread, blocking that thread would stop everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn short_work_that_waits_stops_no_other_task() {
    let crew = Crew::new("test", 4);
    let (hold, work) = parked();
    let waiting = tokio::spawn({
        let crew = crew.clone();
        async move { crew.short(&owner("mallory"), work).await }
    });
    while crew.0.lock().entered == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = tokio::spawn(async { 1 });
    assert_eq!(other.await.expect("it went on"), 1);
    assert_eq!(crew.short(&owner("alice"), || 2).await.expect("done"), 2);
    assert_eq!(crew.0.lock().threads, 0, "nobody needed a thread of the crew");
    drop(hold);
    waiting.await.expect("no panic").expect("done");
    assert!(crew.0.lock().lanes.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_work_counts_as_its_owners() {
    let crew = Crew::new("test", 4);
    let mallory = owner("mallory");
    let (holds, works): (Vec<_>, Vec<_>) = (0..10).map(|_| parked()).unzip();
    let waiting: Vec<_> = works
        .into_iter()
        .map(|work| {
            let (crew, mallory) = (crew.clone(), mallory.clone());
            tokio::spawn(async move { crew.short(&mallory, work).await })
        })
        .collect();
    let all_asked = |state: &State| state.lanes.get(&mallory).is_some_and(|l| l.running + l.jobs.len() == 10);
    while !all_asked(&crew.0.lock()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(crew.0.lock().lanes[&mallory].running, 2, "half of the threads");
    for n in 0..100 {
        assert_eq!(crew.short(&owner("alice"), move || n).await.expect("done"), n);
    }
    drop(holds);
    for work in waiting {
        work.await.expect("no panic").expect("done");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn short_work_that_panics_gives_its_place_back() {
    let crew = Crew::new("test", 4);
    let lost = crew.short(&owner("alice"), || -> () { panic!("a bug") }).await;
    assert!(lost.expect_err("it panicked").to_string().contains("a bug"));
    assert!(crew.0.lock().lanes.is_empty());
    assert_eq!(crew.0.lock().entered, 0);
}

/// With one worker thread: short work that keeps the thread's other tasks has them moved where it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn short_work_that_hands_over_where_it_waits_stops_no_other_task() {
    let threads = Threads::new().whose_commits_hand_over();
    let (hold, work) = parked();
    let waiting = tokio::spawn({
        let mallory = threads.of(&owner("mallory"));
        let mut work = Some(work);
        async move { mallory.commit_short(move || hand_over(&mut || work.take().expect("once")())).await }
    });
    while threads.commits.0.lock().entered == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(tokio::spawn(async { 1 }).await.expect("it went on"), 1);
    let thread = std::thread::current().id();
    let alice = threads.of(&owner("alice"));
    let same = tokio::spawn(async move {
        let here = std::thread::current().id();
        (here, alice.commit_short(|| std::thread::current().id()).await.expect("done"))
    });
    let (here, there) = same.await.expect("no panic");
    assert_eq!(here, there, "short work that does not wait is done by the thread that has it");
    assert_ne!(here, thread, "that is a thread of the runtime");
    drop(hold);
    waiting.await.expect("no panic").expect("done");
}

#[test]
fn handing_over_outside_of_a_runtime_only_does_the_work() {
    let mut done = 0;
    hand_over(&mut || done += 1);
    let alone = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    alone.block_on(async { hand_over(&mut || done += 1) });
    assert_eq!(done, 2);
}
