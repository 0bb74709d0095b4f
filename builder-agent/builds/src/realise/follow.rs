//! Sends the log of a build to the client, from the beginning to the end of the build.

use std::sync::Arc;
use std::time::Duration;

use sandbox::SandboxError;
use tokio::sync::watch;
use tokio::time::Instant;

use super::one::One;
use crate::events::{BuildKind, BuildNumber, Event};
use crate::failure::sandbox_failed;
use crate::log::{Lines, LogReader};
use crate::schedule::{NotStarted, Wait};
use crate::{Attached, Failure, Outcome, Request};

/// A build that waits longer than this for its start says why. Most waits are shorter, and not worth a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes read from a kept log at once.
const CHUNK: usize = 32 * 1024;

impl One {
    /// Starts a run or joins one, and shows its log from the beginning to the end.
    pub async fn run(&self, kind: BuildKind) -> Result<(Attached, Arc<Outcome>), NotStarted> {
        if let Some(refusal) = self.context.options.wishes.refusal(&self.request.recipe) {
            return Err(NotStarted::Refused(refusal));
        }
        let number = self.context.reporter.number();
        let request = Request { before: number.0, ..self.request.clone() };
        let mut attached = self.context.realiser.scheduler.build(request, self.held.clone())?;
        self.started(number, kind).await;
        let cancelled = attached.cancellation();
        let (begun, wait) = (attached.begun.clone(), attached.wait(&self.request.member));
        let told = self.tell_of_wait(begun, wait);
        let ended = tokio::select! {
            shown = async { tokio::join!(self.follow_to_the_end(number, &mut attached), told).0 } => shown,
            () = cancelled.cancelled() => Err(Failure::cancelled(&self.request.recipe.drv_path)),
        };
        let ended = ended.map_err(NotStarted::Refused);
        self.context.reporter.report(Event::Stopped { number }).await;
        Ok((attached, ended?))
    }

    async fn follow_to_the_end(
        &self,
        number: BuildNumber,
        attached: &mut Attached,
    ) -> Result<Arc<Outcome>, Failure> {
        self.follow(number, attached).await?;
        Ok(attached.finished().await)
    }

    /// Says why the run has not started, if that takes long.
    async fn tell_of_wait(&self, mut begun: watch::Receiver<Option<std::time::Instant>>, wait: Wait) {
        // An error means that the run has ended.
        if tokio::time::timeout(PATIENCE, begun.wait_for(Option::is_some)).await.is_ok() {
            return;
        }
        let Some(why) = wait.why() else { return };
        let drv = self.request.recipe.drv_path.clone();
        self.context.reporter.report(Event::Waiting { drv, why }).await;
    }

    /// Shows the kept log of a build that is not run again.
    pub async fn show_again(&self, log: &str) {
        // The log may have been removed to make room for others.
        let Ok(file) = self.context.realiser.kept.open(log) else { return };
        let (workers, file, mut at) = (&self.context.workers, Arc::new(file), 0);
        let number = self.context.reporter.number();
        self.started(number, BuildKind::EarlierFailure).await;
        let mut lines = Lines::default();
        while let Ok(Ok(chunk)) = workers.read_at(&file, at, CHUNK).await
            && !chunk.is_empty()
        {
            at += chunk.len() as u64;
            self.show_lines(number, &mut lines, &chunk).await;
        }
        self.show_last(number, &mut lines).await;
        self.context.reporter.report(Event::Stopped { number }).await;
    }

    async fn started(&self, number: BuildNumber, kind: BuildKind) {
        let drv = self.request.recipe.drv_path.clone();
        self.context.reporter.report(Event::Started { number, drv, kind }).await;
    }

    /// Passes the log on, line by line, until it is complete. A joined run has the limits of the request that started
    /// it, so this request's own limits are enforced here: the request stops waiting at them, and the run goes on for
    /// the others.
    async fn follow(&self, number: BuildNumber, attached: &mut Attached) -> Result<(), Failure> {
        let mut lines = Lines::default();
        let mut clock = Clock::new(attached);
        let mut left = attached.limits.of_sandbox.log_bytes;
        loop {
            let read =
                clock.bound(&mut attached.log).await.map_err(|error| self.too_late(&error, attached))?;
            let chunk = match read {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "cannot read a build log back");
                    break;
                }
            };
            self.show_lines(number, &mut lines, &chunk).await;
            let limit = attached.limits.of_sandbox.log_bytes;
            left = left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| self.too_late(&SandboxError::LogLimit { limit }, attached))?;
        }
        self.show_last(number, &mut lines).await;
        Ok(())
    }

    async fn show_lines(&self, number: BuildNumber, lines: &mut Lines, chunk: &[u8]) {
        let mut events = Vec::new();
        lines.push(chunk, |notice| events.extend(Event::of_log(number, notice)));
        for event in events {
            self.context.reporter.report(event).await;
        }
    }

    async fn show_last(&self, number: BuildNumber, lines: &mut Lines) {
        let mut last = None;
        lines.finish(|notice| last = Event::of_log(number, notice));
        if let Some(event) = last {
            self.context.reporter.report(event).await;
        }
    }

    fn too_late(&self, error: &SandboxError, attached: &Attached) -> Failure {
        sandbox_failed(&self.request.recipe.drv_path, &[], error, &attached.limits.set_by)
    }
}

/// The time limits of a request that joined a run.
struct Clock {
    limits: Option<sandbox::Limits>,
    begun: watch::Receiver<Option<std::time::Instant>>,
    joined_at: Instant,
    last_line: Instant,
}

impl Clock {
    fn new(attached: &Attached) -> Self {
        // The sandbox keeps the limits of the request that starts a run.
        let limits = attached.joined.then(|| attached.limits.of_sandbox.clone());
        let now = Instant::now();
        Self { limits, begun: attached.begun.clone(), joined_at: now, last_line: now }
    }

    async fn bound(&mut self, log: &mut LogReader) -> Result<std::io::Result<Option<Vec<u8>>>, SandboxError> {
        let Some(limits) = self.limits.clone() else { return Ok(log.next().await) };
        let read = log.next();
        tokio::pin!(read);
        // The time limit of a build does not include the wait for a slot.
        let begun = async {
            let begun = self.begun.wait_for(Option::is_some).await.ok().and_then(|begun| *begun);
            begun.map(Instant::from_std)
        };
        let begun = tokio::select! {
            biased;
            read = &mut read => {
                self.last_line = Instant::now();
                return Ok(read);
            }
            begun = begun => begun,
        };
        let Some(begun) = begun else { return Ok(read.await) };
        let since = |start: Instant, limit: Option<Duration>| {
            limit.map(|limit| (start.max(self.joined_at) + limit, limit))
        };
        let wall = since(begun, limits.wall);
        let silent = since(self.last_line.max(begun), limits.silent);
        let sleep = |until: Option<(Instant, Duration)>| async move {
            match until {
                Some((until, limit)) => {
                    tokio::time::sleep_until(until).await;
                    limit
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            read = &mut read => {
                self.last_line = Instant::now();
                Ok(read)
            }
            after = sleep(wall) => Err(SandboxError::Timeout { after }),
            after = sleep(silent) => Err(SandboxError::Silent { after }),
        }
    }
}
