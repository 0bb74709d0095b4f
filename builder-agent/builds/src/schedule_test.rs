use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize};

use sandbox::{
    Cancel, Host, Job, JobRunner, Paused, PausedMachine, PausedSession, Received, Run, SandboxError,
};
use store::{BuildRecord, Member as Owner, RecordEnd, StoreConfig};

use super::*;
use crate::recipe::OutputSpec;
use crate::{BuildKey, Envelope, Recipe, SandboxIdentity};
use shares::budget::Budgets;

/// Builders that run until they are cancelled.
#[derive(Default)]
struct Endless {
    running: AtomicUsize,
    /// Whether they can be paused.
    pauses: AtomicBool,
}

/// A paused build of which nothing is there.
fn paused() -> Paused {
    let now = sandbox::Moment::of(Instant::now());
    let limits = sandbox::Limits {
        vcpus: 1,
        memory_mib: 1,
        wall: None,
        silent: None,
        log_bytes: 1,
        output_bytes: 1,
        processes: 1,
    };
    let session = PausedSession {
        limits,
        outputs: Vec::new(),
        kernel: String::new(),
        started: now,
        last_log: now,
        log_bytes: 0,
        phases: Default::default(),
        phase_began: now,
        usage: Default::default(),
        since: now,
        host: String::new(),
    };
    let machine = PausedMachine::Namespace { pid: 1, init: None, stderr: 2, scratch: ("/nowhere".into(), 0) };
    Paused { machine, stream: 1, received: sandbox::Bytes(Vec::new()), session }
}

impl JobRunner for Endless {
    fn name(&self) -> &'static str {
        "endless"
    }

    fn run(&self, _: Job, _: &mut dyn Host, cancel: &Cancel) -> Run {
        self.running.fetch_add(1, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(60);
        let cancelled = loop {
            if self.pauses.load(Ordering::SeqCst) {
                cancel.pause(paused());
            }
            if cancel.wait(Duration::from_millis(10)) || Instant::now() > deadline {
                break cancel.is_cancelled();
            }
        };
        self.running.fetch_sub(1, Ordering::SeqCst);
        assert!(cancelled, "nobody cancelled the build");
        Err(SandboxError::Cancelled).into()
    }
}

struct Barn {
    dir: tempfile::TempDir,
    store: Store,
    backend: Arc<Endless>,
    scheduler: Arc<Embedded>,
    roster: watch::Sender<Arc<Roster>>,
}

impl Barn {
    /// A box where builds go on without waiters. The roster names alice and bob.
    fn open(settings: &str) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let text = format!(
            "roster = \"/r\"\nstate-dir = {:?}\nkeep-builds-running = true\n{settings}\n[sandbox]\nbackend = \"namespace\"\n",
            dir.path()
        );
        std::fs::write(dir.path().join("agent.toml"), text).expect("written");
        let config = Arc::new(Config::load(&dir.path().join("agent.toml")).expect("a configuration"));
        let store = Store::open(&dir.path().join("store"), StoreConfig::default()).expect("a store");
        let kept = Arc::new(KeptLogs::new(dir.path().join("kept"), 1 << 20));
        let backend = Arc::new(Endless::default());
        let (sender, roster) = watch::channel(roster(dir.path(), &[("alice", 4), ("bob", 4)]));
        let (logs, threads) = (dir.path().to_owned(), Threads::new());
        let http = Arc::new(HttpClient::new(&config.fetch));
        let ledger = ledger::Ledger::in_memory();
        let parts = Parts { config, store: store.clone(), kept, logs, roster, threads, ledger };
        let scheduler = Embedded::here(parts, backend.clone(), http);
        Self { dir, store, backend, scheduler, roster: sender }
    }

    fn set_roster(&self, members: &[(&str, u32)]) {
        self.roster.send_replace(roster(self.dir.path(), members));
    }

    /// The request of a session that looked the member up in this roster.
    fn request(&self, roster: &Roster, member: &str, name: &str) -> (Request, Arc<Held>) {
        let view = self.store.view(&Owner::new(member));
        let mut digest = [3; 20];
        name.bytes().enumerate().for_each(|(i, byte)| digest[i % 20] ^= byte);
        let path = |name: &str| StorePath::from_parts(digest, name).expect("a path");
        let recipe = Recipe {
            drv_path: path(&format!("{name}.drv")),
            system: "x86_64-linux".into(),
            builder: "/bin/sh".into(),
            args: vec![name.into()],
            env: BTreeMap::new(),
            structured: None,
            outputs: [("out".to_owned(), OutputSpec { path: Some(path(name)), fixed: None, floating: None })]
                .into(),
            inputs: BTreeSet::new(),
            input_derivations: BTreeMap::new(),
            verified_paths: false,
            drv_hash: None,
            weight: 0,
        };
        let envelope = Envelope::of_box(&self.scheduler.shared.parts.config);
        let inputs = view.snapshot(&recipe.inputs).expect("no inputs");
        let key = BuildKey::of(&recipe, inputs.info(), SandboxIdentity::default(), &envelope);
        let request = Request {
            principal: ledger::Principal::of(&member.into()),
            member: roster.by_id(member).expect("a member").clone(),
            recipe: Arc::new(recipe),
            inputs: inputs.info().clone(),
            envelope,
            key,
            known: Known::default(),
            check: false,
            before: 0,
            alone: false,
            wall: None,
            silent: None,
            log: None,
            keep_running: false,
            priority: 0,
            tags: Vec::new(),
            paid: false,
            memory_set_by: members::SetBy::Box("sandbox.memory-mib"),
        };
        let memory = Budgets::new(1 << 30, 1 << 30).of(&"alice".into()).charge(0, "x");
        let memory = memory.expect("nothing is held");
        (request, Arc::new(Held { view, inputs: Arc::new(inputs), memory }))
    }

    /// Builds as a session does.
    fn build(&self, roster: &Roster, member: &str, name: &str) -> Result<Attached, NotStarted> {
        let (request, held) = self.request(roster, member, name);
        self.scheduler.build(request, held)
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn running(&self) -> usize {
        self.backend.running.load(Ordering::SeqCst)
    }
}

/// An ssh key for the roster. No test logs in with it.
fn key(member: &str) -> &'static str {
    match member {
        "alice" => "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG7z6PiwK1uDDzhy/72n5iOpsr/D8cxjjhwLx2FdEvtM",
        _ => "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPUM1MLo3r3bSysovvV67Ftp0r731R002SnBS9fiO2pP",
    }
}

fn roster(dir: &std::path::Path, members: &[(&str, u32)]) -> Arc<Roster> {
    let entries: Vec<_> = members
        .iter()
        .map(|(name, jobs)| serde_json::json!({ "name": name, "keys": [key(name)], "role": "member", "limits": { "max-jobs": jobs } }))
        .collect();
    let path = dir.join("roster.json");
    std::fs::write(&path, serde_json::json!({ "schema": 1, "members": entries }).to_string())
        .expect("written");
    Arc::new(members::load(&path).expect("a roster"))
}

/// One thread and no waiting, so the task that ends the builds of departed members does not run in between.
#[tokio::test]
async fn a_build_that_is_asked_for_in_the_moment_of_a_removal_does_not_start() {
    let barn = Barn::open("");
    let before = barn.roster.borrow().clone();
    barn.set_roster(&[("alice", 4)]);
    let refused = barn.build(&before, "bob", "late");
    let Err(NotStarted::Refused(failure)) = refused else { panic!("let in") };
    assert!(failure.message.contains("bob is no longer in the roster"), "{}", failure.message);
    assert_eq!(barn.scheduler.shared.running.len(), 0);
    // The other order: the request was accepted, and then the member left before the run did anything.
    barn.set_roster(&[("alice", 4), ("bob", 4)]);
    let mut build = barn.build(&before, "bob", "early").expect("let in");
    barn.set_roster(&[("alice", 4)]);
    assert!(build.finished().await.result.as_ref().is_err_and(Failure::is_cancelled));
    barn.until("a run is listed", |barn| barn.scheduler.shared.running.len() == 0).await;
    assert_eq!(barn.running(), 0);
}

#[tokio::test]
async fn who_looked_before_an_equal_build_was_recorded_looks_again_instead_of_building() {
    let barn = Barn::open("");
    let roster = barn.roster.borrow().clone();
    let (mut late, held) = barn.request(&roster, "bob", "x");
    let end = RecordEnd::Failed { status: 3, message: "no oak".into(), log: None };
    let record = BuildRecord { drv: late.recipe.drv_path.clone(), time: 1, end };
    barn.store.record_result(&late.key.of_failure(), record).expect("recorded");
    assert!(matches!(barn.scheduler.build(late.clone(), held.clone()), Err(NotStarted::Known)));
    assert_eq!(barn.scheduler.shared.running.len(), 0);
    // A requester who has seen the record and still wants the build gets it; so does one who builds to compare.
    late.known = Known::look(&barn.store, &late.key);
    let mut builds = vec![barn.scheduler.build(late.clone(), held.clone()).expect("let in")];
    late = Request { known: Known::default(), check: true, ..late };
    builds.push(barn.scheduler.build(late, held).expect("let in"));
    barn.until("not both run", |barn| barn.running() == 2).await;
    barn.set_roster(&[]);
    barn.until("a builder runs", |barn| barn.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_build_of_a_removed_member_goes_on_however_requests_and_removals_meet() {
    let barn = Arc::new(Barn::open("[limits]\nmax-jobs = 64\nmax-jobs-per-member = 64"));
    let before = barn.roster.borrow().clone();
    for round in 0..60 {
        barn.set_roster(&[("alice", 64), ("bob", 64)]);
        let alices = barn.build(&before, "alice", &format!("a{round}")).expect("let in");
        let asking: Vec<_> = (0..4)
            .map(|n| {
                let (request, held) = barn.request(&before, "bob", &format!("b{round}-{n}"));
                let barn = barn.clone();
                // Nobody waits for the run: with `keep-builds-running` it goes on all the same.
                tokio::task::spawn_blocking(move || drop(barn.scheduler.build(request, held)))
            })
            .collect();
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        barn.set_roster(&[("alice", 64)]);
        for asked in asking {
            asked.await.expect("asked");
        }
        barn.until("a build of bob's goes on", |barn| barn.scheduler.shared.running.len() == 1).await;
        barn.set_roster(&[]);
        barn.until("a build goes on", |barn| barn.scheduler.shared.running.len() == 0).await;
        drop(alices);
    }
    barn.until("a builder runs", |barn| barn.running() == 0).await;
}

#[tokio::test]
async fn limits_are_those_of_the_roster_when_a_build_starts_and_not_when_its_member_logged_in() {
    let barn = Barn::open("[limits]\nmax-jobs = 64\nmax-jobs-per-member = 64");
    let login = barn.roster.borrow().clone();
    let mut builds = Vec::new();
    let mut ask = |barn: &Barn, roster: &Roster| {
        builds.push(barn.build(roster, "bob", &format!("build-{}", builds.len())).expect("let in"));
    };
    barn.set_roster(&[("bob", 1)]);
    let later = barn.roster.borrow().clone();
    // Two connections: one logged in when there were four slots, the other later.
    for n in 0..8 {
        ask(&barn, if n % 2 == 0 { &login } else { &later });
    }
    barn.until("nothing runs", |barn| barn.running() > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(barn.running(), 1);
    // Builds that wait already get the new slots.
    barn.set_roster(&[("bob", 3)]);
    barn.until("the new slots are not used", |barn| barn.running() == 3).await;
    barn.set_roster(&[]);
    barn.until("a builder runs", |barn| barn.running() == 0).await;
}

/// One thread: the task of a run has queued it after one `yield_now`.
#[tokio::test]
async fn a_first_build_starts_when_a_build_of_another_member_ends_and_before_all_that_that_member_has_queued()
{
    let barn = Barn::open("[limits]\nmax-jobs = 2");
    let roster = barn.roster.borrow().clone();
    let ask = |member, name: String| barn.build(&roster, member, &name).expect("let in");
    let alices: Vec<Attached> = (0..8).map(|n| ask("alice", format!("a{n}"))).collect();
    barn.until("not both slots are used", |barn| barn.running() == 2).await;
    let bobs = ask("bob", "b".to_owned());
    tokio::task::yield_now().await;
    let ended = &alices[0].hold;
    barn.scheduler.shared.running.leave(&ended.key, ended.id, ended.waiter, false);
    barn.until("bob waits", |_| bobs.begun.borrow().is_some()).await;
    assert_eq!(alices.iter().filter(|build| build.begun.borrow().is_some()).count(), 2);
    barn.set_roster(&[]);
    barn.until("a builder runs", |barn| barn.running() == 0).await;
}

fn drained(deadline: Option<u64>) -> crate::drain::Drained {
    crate::drain::Drained { by: "carol".into(), since: 0, deadline, reason: Some("new disk".into()) }
}

/// The failure of this build, which the box caused: nothing for the record.
async fn failure_of(build: &mut Attached) -> Failure {
    let outcome = build.finished().await;
    let failure = outcome.result.as_ref().expect_err("ended by the box").clone();
    assert_eq!((failure.status, failure.cause), (nix::BuildStatus::TransientFailure, Cause::Box));
    failure
}

#[tokio::test]
async fn a_drained_box_ends_what_waits_and_starts_nothing_and_what_runs_can_still_be_joined() {
    let barn = Barn::open("[limits]\nmax-jobs = 1");
    let roster = barn.roster.borrow().clone();
    let ask = |member, name: &str| barn.build(&roster, member, name);
    let mut runs = ask("alice", "runs").expect("let in");
    barn.until("nothing runs", |barn| barn.running() == 1).await;
    let mut waits = ask("bob", "waits").expect("let in");

    let left = barn.scheduler.drain(drained(None)).expect("written");
    assert_eq!(left, Left { running: 1, ended: 1 });
    let failure = failure_of(&mut waits).await;
    assert!(failure.message.contains("is not built: the box is drained"), "{}", failure.message);
    assert!(failure.message.contains("(by carol: new disk)"), "{}", failure.message);
    let Err(NotStarted::Refused(failure)) = ask("bob", "new") else { panic!("let in") };
    assert!(failure.message.contains("is not built: the box is drained"), "{}", failure.message);
    let joined = ask("bob", "runs").expect("joined");
    assert!(joined.joined && runs.outcome.borrow().is_none());

    // The deadline is now.
    barn.scheduler.drain(drained(Some(1))).expect("written");
    let failure = failure_of(&mut runs).await;
    assert!(failure.message.contains("was ended at the deadline"), "{}", failure.message);
    barn.until("a builder runs", |barn| barn.running() == 0).await;

    assert!(barn.scheduler.undrain().expect("removed").is_some());
    let _again = ask("bob", "new").expect("let in");
    barn.until("nothing runs", |barn| barn.running() == 1).await;
    barn.set_roster(&[]);
    barn.until("a builder runs", |barn| barn.running() == 0).await;
}

#[tokio::test]
async fn a_run_that_cannot_be_paused_keeps_everything_as_it_is_and_nothing_starts_meanwhile() {
    let barn = Barn::open("");
    let roster = barn.roster.borrow().clone();
    let first = barn.build(&roster, "alice", "one").expect("a run");
    barn.until("it runs", |barn| barn.running() == 1).await;
    let pausing = tokio::spawn({
        let scheduler = barn.scheduler.clone();
        async move { scheduler.pause(Duration::from_millis(400)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let second = barn.build(&roster, "bob", "two").expect("a run");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(barn.running(), 1, "it waits");
    let refused = pausing.await.expect("no panic").expect_err("the builder cannot be paused");
    assert_eq!(refused, NotPaused(vec![1]));
    assert!(refused.to_string().contains("(build 1)"), "{refused}");
    barn.until("the second runs", |barn| barn.running() == 2).await;

    // Clients who are about to be disconnected leave their runs behind; later ones end theirs as always.
    barn.scheduler.let_runs_stay();
    drop(first);
    barn.scheduler.go_on();
    drop(second);
    barn.until("the second has ended", |barn| barn.running() == 1).await;
    assert_eq!(barn.scheduler.list(&|_| true).len(), 1);
    barn.scheduler.retain(&|_| false);
    barn.until("the first has ended", |barn| barn.running() == 0).await;
}

#[tokio::test]
async fn runs_stay_with_their_owner_in_whatever_order_clients_are_disconnected() {
    let barn = Barn::open("");
    let roster = barn.roster.borrow().clone();
    let owner = || {
        let table = barn.scheduler.shared.running.lock();
        let owner = table.values().next().expect("a run").owner.borrow().clone();
        owner.expect("an owner").request.member.name.to_string()
    };
    let build = |member| barn.build(&roster, member, "one").expect("a run");
    let (first, second) = (build("alice"), build("bob"));
    barn.until("it runs", |barn| barn.running() == 1).await;
    barn.scheduler.let_runs_stay();
    drop(first);
    assert_eq!(owner(), "alice");
    drop(second);
    assert_eq!(owner(), "alice");
    barn.scheduler.go_on();
    assert_eq!(owner(), "alice", "nobody else waits");

    // If nobody takes over, whoever still waits is the successor of an owner who has left.
    let (first, second) = (build("alice"), build("bob"));
    barn.scheduler.let_runs_stay();
    drop(first);
    assert_eq!(owner(), "alice");
    barn.scheduler.go_on();
    assert_eq!(owner(), "bob");
    drop(second);
    barn.until("it has ended", |barn| barn.running() == 0).await;
}

#[tokio::test]
async fn a_run_that_is_cancelled_after_it_was_written_down_ends_if_nobody_takes_over() {
    let barn = Barn::open("");
    barn.backend.pauses.store(true, Ordering::SeqCst);
    let roster = barn.roster.borrow().clone();
    let _first = barn.build(&roster, "alice", "one").expect("a run");
    barn.until("it runs", |barn| barn.running() == 1).await;
    barn.scheduler.pause(Duration::from_secs(30)).await.expect("it can be paused");
    assert_eq!(barn.scheduler.write_down().expect("paused").len(), 1);
    barn.scheduler.retain(&|_| false);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(barn.running(), 1, "it waits for whoever takes over");
    barn.scheduler.go_on();
    barn.until("it has ended", |barn| barn.running() == 0).await;
}

#[tokio::test]
async fn builds_that_cannot_be_taken_over_are_counted() {
    let (old, new) = (Barn::open(""), Barn::open(""));
    old.backend.pauses.store(true, Ordering::SeqCst);
    let roster = old.roster.borrow().clone();
    let _first = old.build(&roster, "alice", "one").expect("a run");
    old.until("it runs", |barn| barn.running() == 1).await;
    old.scheduler.pause(Duration::from_secs(30)).await.expect("it can be paused");
    let written = old.scheduler.write_down().expect("paused");
    let scheduler = new.scheduler.clone();
    let taking = tokio::task::spawn_blocking(move || {
        let (mut received, budgets) = (Received::default(), Budgets::new(1 << 30, 1 << 30));
        let identity = SandboxIdentity::default();
        let inputs = BTreeMap::new();
        scheduler.take_over(written, Heir { received: &mut received, inputs, budgets: &budgets, identity })
    });
    assert_eq!(taking.await.expect("no panic"), Taken { builds: 0, lost: 1 });
    assert_eq!(new.scheduler.list(&|_| true).len(), 0);
    old.scheduler.retain(&|_| false);
    old.scheduler.go_on();
    old.until("it has ended", |barn| barn.running() == 0).await;
}
