//! `log <path>`: the log of a build, on stdout.
//!
//! Nix has `nix log`, but its stores behind ssh cannot ask for a log (`getBuildLogExact` is unsupported in
//! src/libstore/ssh-store.cc, and neither protocol has an operation), so this command stands in.

use std::io;
use std::sync::Arc;

use daemon::Agent;
use members::Member;
use nix_derivation::StorePath;
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use crate::terminal::{self, ExitStatus, Screen, Terminal};

/// Bytes of a log read at once.
const PIECE: usize = 64 << 10;

/// Prints the log of `path` if this member may read it.
pub(super) async fn run(
    path: &StorePath,
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Member,
) -> ExitStatus {
    let stall = agent.config.limits.client_stall;
    let Terminal { stdout, stderr, screen, .. } = terminal;
    let mut stdout = PatientWriter::new(stdout, stall);
    match print(&mut stdout, screen, agent, member, path).await {
        Ok(true) => ExitStatus::DONE,
        Ok(false) => {
            let line = format!(
                "there is no log of '{}' here that you may read: the box keeps logs of builds that it ran for you \
                 and of builds that everybody may see; where they are more than {} MiB (the box's \
                 `limits.max-kept-logs-mib`), the oldest go first: build it again (`--rebuild`) for a new one",
                path.to_absolute_path(),
                agent.config.limits.max_kept_log_bytes >> 20
            );
            terminal::fail(stderr, screen, &line, stall).await
        }
        Err(error) => {
            tracing::info!(member = %member.name, %error, "a log was not read to its end");
            ExitStatus::FAILED
        }
    }
}

async fn print(
    stdout: &mut (impl AsyncWriteExt + Unpin),
    screen: Screen,
    agent: &Agent,
    member: &Member,
    path: &StorePath,
) -> io::Result<bool> {
    let drv = if path.is_derivation() {
        path.clone()
    } else {
        // The deriver is known only for a path that is valid in this member's view.
        let view = agent.roster.borrow().view_of(&agent.store, member);
        match view.info(path).and_then(|info| info.deriver.clone()) {
            Some(drv) => drv,
            None => return Ok(false),
        }
    };
    let Some(file) = agent.realiser.kept.find(&member.id, &drv) else { return Ok(false) };
    let (workers, file, mut at) = (agent.threads.of(&member.payer().id), Arc::new(file), 0);
    loop {
        let piece = workers.read_at(&file, at, PIECE).await.map_err(io::Error::other)??;
        if piece.is_empty() {
            stdout.flush().await?;
            return Ok(true);
        }
        at += piece.len() as u64;
        stdout.write_all(&screen.log(&piece)).await?;
    }
}
