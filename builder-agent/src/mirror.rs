//! `builder-agent mirror`: keeps the mirrors of git repositories up to date, as a process and a user of its own.
//!
//! It can read neither the keys nor the store. The agent reads what it makes (`mirrors::snapshot`, `mirrors::Status`). Every
//! mirror is looked at now and then, and all at once on SIGUSR1, which the service manager sends when a webhook or a maintainer
//! asks for it. One mirror is synchronised at a time. Not here: what a synchronisation does.

use std::io;
use std::time::{Duration, Instant};

use mirrors::{Repository, Settings, SyncError};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A mirror that cannot be fetched is tried again after at most two to the power of this times the usual pause: what is
/// refused may have been received before.
const MOST_DOUBLINGS: u32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("cannot start")]
    Start(#[source] io::Error),
    #[error("{0} of the mirrors could not be brought up to date; the log says why")]
    Failed(usize),
}

/// A mirror and when it is looked at next.
struct Turn<'a> {
    repository: &'a Repository,
    due: Instant,
    failures: u32,
}

/// Synchronises all mirrors, `once` or until SIGTERM.
pub fn run(settings: &Settings, once: bool) -> Result<(), MirrorError> {
    if settings.repositories.is_empty() {
        tracing::info!("no mirrors are configured (`mirrors.repositories`)");
        return Ok(());
    }
    if once {
        let failed =
            settings.repositories.iter().filter(|repository| !synchronise(settings, repository)).count();
        return if failed == 0 { Ok(()) } else { Err(MirrorError::Failed(failed)) };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(MirrorError::Start)?;
    let ended = runtime.block_on(until_terminated(settings.clone()));
    // A synchronisation that goes on is ended with this process; the next one begins where it was.
    runtime.shutdown_background();
    ended
}

async fn until_terminated(settings: Settings) -> Result<(), MirrorError> {
    let on = |kind| signal(kind).map_err(MirrorError::Start);
    // Before the first synchronisation: without a handler, this signal ends the process.
    let mut asked = on(SignalKind::user_defined1())?;
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    tokio::select! {
        () = forever(&settings, &mut asked) => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn forever(settings: &Settings, asked: &mut Signal) {
    let now = Instant::now();
    let turn = |repository| Turn { repository, due: now, failures: 0 };
    let mut turns: Vec<Turn<'_>> = settings.repositories.iter().map(turn).collect();
    loop {
        for turn in turns.iter_mut().filter(|turn| turn.due <= Instant::now()) {
            let (settings, repository) = (settings.clone(), turn.repository.clone());
            let synchronised = tokio::task::spawn_blocking(move || synchronise(&settings, &repository)).await;
            turn.failures = if synchronised.unwrap_or(false) { 0 } else { turn.failures + 1 };
            turn.due = Instant::now();
        }
        let now = Instant::now();
        for turn in turns.iter_mut().filter(|turn| turn.due <= now) {
            turn.due = now + pause(settings.interval, turn.failures);
        }
        let next = turns.iter().map(|turn| turn.due).min().unwrap_or(now + settings.interval);
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => {}
            _ = asked.recv() => {
                let now = Instant::now();
                turns.iter_mut().for_each(|turn| turn.due = now);
            }
        }
    }
}

fn pause(interval: Duration, failures: u32) -> Duration {
    interval.saturating_mul(1 << failures.saturating_sub(1).min(MOST_DOUBLINGS))
}

/// Synchronises one mirror and logs what is new; false if it failed.
fn synchronise(settings: &Settings, repository: &Repository) -> bool {
    let started = Instant::now();
    let mirror = repository.name();
    match mirrors::sync(settings, repository) {
        Ok(synced) => {
            if synced.anew {
                tracing::warn!(mirror, "the repository of a mirror was broken, and was fetched anew");
            }
            if let Some(error) = &synced.status.seed_failure {
                tracing::warn!(mirror, error, "the seed of a mirror was not used");
            }
            if synced.changed {
                let status = &synced.status;
                let seconds = started.elapsed().as_secs_f64();
                let (commit, bytes, packs) = (status.commit.as_deref(), status.bytes, status.packs);
                tracing::info!(mirror, commit, bytes, packs, seconds, "a mirror has something new");
            }
            true
        }
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(mirror, error, "a mirror was not brought up to date; homes see what it had");
            false
        }
    }
}

fn chain(error: &SyncError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_failures_and_only_so_far() {
        let minute = Duration::from_secs(60);
        let minutes: Vec<u64> = (0..8).map(|failures| pause(minute, failures).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 1, 2, 4, 8, 16, 16, 16]);
        assert!(pause(Duration::MAX, 8) == Duration::MAX);
    }
}
