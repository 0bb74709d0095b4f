//! One member is at a limit and keeps trying; the work of another one is measured, alone and beside that.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::BuildStatus;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::client::{Drv, is_valid};
use super::scripted::{derivation, path};
use super::served::{Served, Session};

/// What bob's work may take beside a member at a limit: a multiple of what it takes alone, and some time for the machine
/// that runs the test, where the other member's OpenSSH clients need processors too.
pub fn is_close(beside: Duration, alone: Duration) -> bool {
    beside <= alone * 4 + Duration::from_secs(5)
}

/// The middle one of three times of a login, a question, an upload and a build.
pub async fn work<F: Future<Output = Session>>(
    login: impl Fn() -> F,
    drv: impl Fn(&str) -> Drv,
    name: &str,
) -> Duration {
    let mut times = Vec::new();
    for round in 0..3 {
        let (began, name) = (Instant::now(), format!("{name}-{round}"));
        let mut session = login().await;
        assert!(!is_valid(&mut session.client, &path(&name)).await);
        assert_eq!(session.add(&format!("{name}-source"), name.as_bytes()).await, None);
        session.build(drv(&name), BuildStatus::Built).await;
        times.push(began.elapsed());
    }
    times.sort();
    times[1]
}

/// The same of bob, whose builders a script plays.
pub async fn bobs_work(served: &Served, name: &str) -> Duration {
    let drv = |name: &str| derivation(name, &format!("write:{name}"), &[]);
    work(|| served.session("bob"), drv, name).await
}

/// Attempts of a member at a limit, one after the other in each of some tasks, until it is dropped.
pub struct Trying {
    tasks: JoinSet<()>,
    ended: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Trying {
    /// Each of `with` goes from attempt to attempt of one task. An attempt also gets a number that no other one has, and
    /// asserts itself how it ends.
    pub fn start<T, F>(with: Vec<T>, attempt: impl Fn(T, usize) -> F + Clone + Send + Sync + 'static) -> Self
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for mut with in with {
            let (begun, ended, stop, attempt) = (begun.clone(), ended.clone(), stop.clone(), attempt.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    with = attempt(with, begun.fetch_add(1, Ordering::SeqCst)).await;
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self { tasks, ended, stop }
    }

    /// Waits until so many attempts have ended as they should.
    pub async fn until(&mut self, count: usize) {
        let began = Instant::now();
        while self.ended.load(Ordering::SeqCst) < count {
            if let Some(ended) = self.tasks.try_join_next() {
                ended.expect("an attempt that ends as it should");
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{} attempts in this time",
                self.ended.load(Ordering::SeqCst)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets those in progress end. Returns how many there were.
    pub async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("an attempt that ends as it should");
        }
        self.ended.load(Ordering::SeqCst)
    }
}
