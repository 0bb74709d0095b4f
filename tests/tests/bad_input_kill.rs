//! An agent that is killed by SIGKILL at different moments, and started again with the same state. Visible
//! paths are still there, unfinished work is gone, and it can be repeated.

use e2e::PATIENCE;
use e2e::hostile::*;
use nix::BuildStatus;
use store::{Member, Store, StoreConfig};
use wire::client::encode_frames;
use wire::worker::Request;

/// Checks every path in the store of the killed agent, and starts the agent again.
async fn come_back(test_box: &mut TestBox) {
    {
        let store = Store::open(&test_box.store_dir(), StoreConfig::default()).expect("the store opens");
        println!("repaired: {:?}", store.recovery());
        assert_eq!(store.recovery().lost_paths, 0, "a visible path was lost");
        let view = store.view(&Member::new(MEMBER));
        for path in view.all_valid() {
            view.verify(&path).unwrap_or_else(|error| panic!("{path} is damaged: {error}"));
            view.closure(&[path]).expect("no visible path lacks a reference");
        }
    }
    test_box.agent.restart();
    test_box.still_serves().await;
}

#[tokio::test]
async fn an_agent_killed_in_the_middle_of_an_upload_forgets_it_and_nothing_else() {
    let mut test_box = TestBox::open(&[]).await;
    let mut before = test_box.session().await;
    let kept = nar(&file(b"kept"));
    before.add_nar(&info("kept", &kept), &kept).await;
    within("an answer", before.client.done()).await.expect("added");

    let large = nar(&file(&vec![7; 8 << 20]));
    let mut session = test_box.session().await;
    session.announce(&info("large", &large)).await;
    session.send(&encode_frames(&large, 32 << 10)[..4 << 20]).await;
    let temporary = test_box.store_dir().join("tmp");
    until("the upload to reach the disk", || std::fs::read_dir(&temporary).expect("tmp").count() > 0).await;
    test_box.agent.kill();
    assert!(std::fs::read_dir(&temporary).expect("tmp").count() > 0, "the kill must hit a half-done upload");
    session.vanish().await;
    before.vanish().await;

    come_back(&mut test_box).await;
    let mut session = test_box.session().await;
    assert!(session.is_valid(&path("kept")).await, "what was answered as added is gone");
    assert!(!session.is_valid(&path("large")).await);
    session.add_nar(&info("large", &large), &large).await;
    within("an answer", session.client.done()).await.expect("the second time it is taken");
    session.leave().await;
    let paths = test_box.close().await;
    assert!(paths.contains(&path("large")) && paths.contains(&path("kept")));
}

#[tokio::test]
async fn of_many_paths_in_one_upload_a_kill_leaves_whole_ones_only() {
    let mut test_box = TestBox::open(&[]).await;
    // References first, as clients send them; several times as many as become visible at once.
    let all: Vec<_> = (0..1500)
        .map(|n| {
            let nar = nar(&file(format!("contents {n}").as_bytes()));
            let mut info = info(&format!("p{n}"), &nar);
            if n > 0 {
                info.references.insert(path(&format!("p{}", n - 1)));
            }
            (info, nar)
        })
        .collect();
    let body = encode_frames(&items(1500, &all), 32 << 10);
    let mut session = test_box.session().await;
    session.request(&Request::AddMultipleToStore { repair: false, dont_check_sigs: true }).await;
    session.send(&body[..body.len() - 1000]).await;
    let mut other = test_box.session().await;
    // The first batch is visible, and the upload has not ended.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !other.is_valid(&path("p0")).await {
        assert!(std::time::Instant::now() < deadline, "no batch became visible");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    test_box.agent.kill();
    session.vanish().await;
    other.vanish().await;

    come_back(&mut test_box).await;
    let mut session = test_box.session().await;
    assert!(session.is_valid(&path("p0")).await);
    assert!(!session.is_valid(&path("p1499")).await);
    session.request(&Request::AddMultipleToStore { repair: false, dont_check_sigs: true }).await;
    session.send(&body).await;
    within("an answer", session.client.done()).await.expect("the second time all are taken");
    session.leave().await;
    let paths = test_box.close().await;
    assert!(all.iter().all(|(info, _)| paths.contains(&info.path)));
}

/// Number of folders of this agent's running builds.
fn scratch_of(agent: u32) -> usize {
    let prefix = format!("barnraiser-job-{agent}-");
    let entries = std::fs::read_dir(std::env::temp_dir()).expect("the temporary folder").flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
}

#[tokio::test]
async fn an_agent_killed_in_the_middle_of_a_build_takes_the_builder_with_it() {
    let mut test_box = TestBox::open(&[]).await;
    let script = "echo half > $out; $bb sleep 1000 & ($bb setsid $bb sleep 1000 &); \
                  if [ ! -e /build/again ]; then echo started; wait; fi";
    let mut session = test_box.session().await;
    session.start_build(derivation(&test_box, "victim", script)).await;
    let agent = test_box.agent.pid();
    // bubblewrap once or twice, the guest, the shell, two sleepers.
    until("the builder to run", || family(agent).len() >= 5).await;
    let others: Vec<_> = family(agent).into_iter().filter(|(pid, _)| *pid != agent).collect();
    assert!(others.iter().all(|process| runs(*process)));
    assert_eq!(scratch_of(agent), 1);
    test_box.agent.kill();
    session.vanish().await;
    until("every process of the build to end", || !others.iter().any(|process| runs(*process))).await;

    come_back(&mut test_box).await;
    let logs = test_box.agent.state_dir().join("logs");
    assert_eq!(std::fs::read_dir(&logs).expect("logs").count(), 0, "a log of the dead build is left");
    assert_eq!(scratch_of(agent), 0, "the folder of the dead build is left");
    let mut session = test_box.session().await;
    assert!(!session.is_valid(&path("victim")).await, "half an output is visible");
    let told = session.build(derivation(&test_box, "victim", "echo whole > $out")).await;
    assert_eq!(told.status, BuildStatus::Built as u64, "{told:?}");
    session.leave().await;
    assert!(test_box.close().await.contains(&path("victim")));
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_a_build_ends_it() {
    let test_box = TestBox::open(&[]).await;
    let mut session = test_box.session().await;
    session.start_build(derivation(&test_box, "victim", "echo half > $out; $bb sleep 1000")).await;
    let agent = test_box.agent.pid();
    until("the builder to run", || family(agent).len() >= 4).await;
    session.vanish().await;
    until("every process of the build to end", || family(agent).len() == 1).await;
    let mut session = test_box.session().await;
    assert!(!session.is_valid(&path("victim")).await);
    let told = session.build(derivation(&test_box, "victim", "echo whole > $out")).await;
    assert_eq!(told.status, BuildStatus::Built as u64, "{told:?}");
    session.leave().await;
    test_box.close().await;
}
