//! The agent's place in its process: how it leaves it to another program, and how it takes it.
//!
//! The old agent pauses its builds, writes down what the new one needs, and executes it: the process, its children and some
//! descriptors stay. If anything fails before that, the old agent goes on. `docs/design/restart.md` has the whole story.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use builds::schedule::{Embedded, NotPaused, Taken, WrittenRuns};
use daemon::Agent;
use rustix::fs::{MemfdFlags, memfd_create};
use sandbox::{Received, parent, takeover};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::control::{Answer, Request, answer};

/// For the description of all builds, besides twice the memory that requests may take: what members send is charged to that,
/// and takes a third more here.
const WRITTEN: u64 = 256 << 20;
/// The first line of a description.
const MAX_HEAD: u64 = 4096;
/// For connections to end after they were told.
const GRACE: Duration = Duration::from_secs(5);
/// For the store, and what members have used, to reach the disk.
const FLUSH: Duration = Duration::from_secs(60);
/// For the log's thread to write the lines that wait.
const LAST_LINES: Duration = Duration::from_millis(100);
/// For a build that was cancelled at the last moment to end.
const LAST_MOMENT: Duration = Duration::from_secs(10);

/// What clients read when their connections end.
const FAREWELL: &str =
    "the box's agent is being updated: your builds that run go on; ask again to follow them";

/// What the old agent leaves.
#[derive(Serialize, Deserialize)]
struct Written {
    runs: WrittenRuns,
    listeners: Vec<RawFd>,
    /// The connection of the program that asked.
    asked: RawFd,
    /// All of them, also those above.
    descriptors: Vec<RawFd>,
}

/// The first part, which every version reads.
#[derive(Serialize, Deserialize)]
struct Head {
    format: (u32, u32),
}

/// What an agent before this one has left.
pub struct Earlier {
    pub runs: WrittenRuns,
    pub listeners: Vec<TcpListener>,
    pub received: Received,
    asked: UnixStream,
}

impl Earlier {
    /// Reads what the program before has left, in the descriptor with this number. To be called before this program opens
    /// anything.
    pub fn read(number: RawFd) -> io::Result<Self> {
        let mut file = File::from(Received::claim(&[number])?.take(number)?);
        file.rewind()?;
        let mut file = BufReader::new(file);
        let mut head = Vec::new();
        (&mut file).take(MAX_HEAD).read_until(b'\n', &mut head)?;
        let wrong = |what: &str, error| io::Error::other(format!("{what} cannot be read: {error}"));
        let Head { format } =
            serde_json::from_slice(&head).map_err(|error| wrong("the version of the agent before", error))?;
        if format != takeover::format() {
            let ours = takeover::format();
            return Err(io::Error::other(format!(
                "the agent before has written {format:?}, and not {ours:?}"
            )));
        }
        let written: Written =
            serde_json::from_reader(file).map_err(|error| wrong("what the agent before has left", error))?;
        let mut received = Received::claim(&written.descriptors)?;
        let listeners = written.listeners.iter().map(|number| Ok(received.take(*number)?.into()));
        let listeners = listeners.collect::<io::Result<_>>()?;
        let asked = received.take(written.asked)?.into();
        Ok(Self { runs: written.runs, listeners, received, asked })
    }

    /// The program that asked for it.
    pub fn asked(&self) -> io::Result<Asked> {
        Ok(Asked { connection: self.asked.try_clone()? })
    }
}

/// Whoever waits to hear that the new agent serves.
pub struct Asked {
    connection: UnixStream,
}

impl Asked {
    pub fn is_served(self, taken: Taken) {
        let Taken { builds, lost } = taken;
        tracing::info!(builds, lost, "this agent has taken over from an earlier one");
        answer(&self.connection, &Answer::TakenOver { builds, lost });
    }
}

/// The old agent's reason to stay.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    #[error(
        "it writes builds down as {ours:?}, and the new one reads {theirs:?} (format, protocol of guests); drain the box, then restart it"
    )]
    Format { ours: (u32, u32), theirs: (u32, u32) },
    #[error(
        "members have {homes} homes open, which cannot go on under another agent; ask them to leave, or throw their homes away \
         with `--end-homes`"
    )]
    Homes { homes: usize },
    #[error("homes of members did not end within {} seconds", LAST_MOMENT.as_secs())]
    HomesStay,
    #[error(transparent)]
    Builds(#[from] NotPaused),
    #[error("{what} could not be written to the disk within {} seconds", FLUSH.as_secs())]
    Slow { what: &'static str },
    #[error("what the new agent needs cannot be written down: {0}")]
    Write(io::Error),
    #[error("the new agent {} cannot be executed: {cause}", executable.display())]
    Execute { executable: std::path::PathBuf, cause: io::Error },
}

/// The parts of an agent that leaves.
pub struct Leaving<'a> {
    pub agent: &'a Arc<Agent>,
    pub scheduler: &'a Arc<Embedded>,
    pub listeners: &'a [TcpListener],
}

impl Leaving<'_> {
    /// Executes the program that asks, and then does not return. `server` is the task of the ssh server, which ends when
    /// `stop` is called; it has ended if this returns with [`JoinHandle::is_finished`].
    pub async fn make_room(
        &self,
        request: &Request,
        connection: &UnixStream,
        server: &mut JoinHandle<()>,
        stop: impl FnOnce(&'static str),
    ) -> Stays {
        let ours = takeover::format();
        if request.format != ours {
            return Stays::Format { ours, theirs: request.format };
        }
        let homes = self.agent.homes.list().len();
        if homes > 0 && !request.end_homes {
            return Stays::Homes { homes };
        }
        tracing::info!(executable = %request.executable.display(), "another agent is to take over: builds are paused");
        if let Err(not_paused) = self.scheduler.pause(request.patience).await {
            return not_paused.into();
        }
        self.scheduler.let_runs_stay();
        stop(FAREWELL);
        if tokio::time::timeout(GRACE, &mut *server).await.is_err() {
            tracing::warn!("some connections did not end in time");
            server.abort();
            let _ = (&mut *server).await;
        }
        let closed = tokio::time::timeout(LAST_MOMENT, self.agent.homes.close(FAREWELL)).await;
        let stays = match closed {
            Err(_) => Stays::HomesStay,
            Ok(()) => match self.leave(request, connection).await {
                Ok(never) => match never {},
                Err(stays) => stays,
            },
        };
        self.scheduler.go_on();
        self.agent.homes.reopen();
        stays
    }

    async fn leave(&self, request: &Request, connection: &UnixStream) -> Result<Never, Stays> {
        // So that the new agent finds nothing to repair.
        let tidy = |agent: &Agent| {
            if let Err(error) = agent.store.tidy() {
                tracing::error!(%error, "the store could not be flushed; the next start checks it");
            }
        };
        self.flush("the store", tidy).await?;
        // A run may have been cancelled since, for example because of a change of the roster: it ends first, and its charge is
        // not lost. Nothing starts, so this ends.
        let mut flushed = None;
        loop {
            self.scheduler.pause(LAST_MOMENT).await?;
            self.scheduler.let_runs_stay();
            let started = Some(self.scheduler.started());
            if started == flushed {
                break;
            }
            // What the runs that have ended have used.
            let accounts = |agent: &Agent| {
                agent.ledger.flush();
                if let Err(error) = agent.tickets.flush() {
                    tracing::error!(error, "what was used of tickets since the last write is lost");
                }
            };
            self.flush("what members have used", accounts).await?;
            flushed = started;
        }
        // Nothing is waited for from here on.
        let runs = self.scheduler.write_down()?;
        let builds = runs.len();
        let most = 2 * self.agent.config.limits.max_session_bytes + WRITTEN;
        let (file, keep) = write(runs, self.listeners, connection, most).map_err(Stays::Write)?;
        tracing::info!(builds, executable = %request.executable.display(), "the new agent is executed");
        let mut command = Command::new(&request.executable);
        command.arg("serve").arg("--config").arg(&request.config);
        command.arg("--taken-over").arg(file.as_raw_fd().to_string());
        if let Some(path) = &request.path {
            command.env("PATH", path);
        }
        let cause = tokio::task::block_in_place(|| {
            std::thread::sleep(LAST_LINES);
            parent::replace(command, keep)
        });
        Err(Stays::Execute { executable: request.executable.clone(), cause })
    }

    /// Does `work`, which writes `what` to the disk. What cannot be written now is as after a crash; a disk that does not answer
    /// keeps the old agent, whose builds wait meanwhile.
    async fn flush(
        &self,
        what: &'static str,
        work: impl FnOnce(&Agent) + Send + 'static,
    ) -> Result<(), Stays> {
        let agent = self.agent.clone();
        let flushing = tokio::task::spawn_blocking(move || work(&agent));
        match tokio::time::timeout(FLUSH, flushing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(panic)) => {
                tracing::error!(%panic, what, "flushing panicked; what was not written is lost");
                Ok(())
            }
            Err(_) => Err(Stays::Slow { what }),
        }
    }
}

enum Never {}

/// Into a file in memory: what the new agent needs. Also returns the descriptors that it gets.
fn write(
    runs: WrittenRuns,
    listeners: &[TcpListener],
    connection: &UnixStream,
    most: u64,
) -> io::Result<(File, Vec<RawFd>)> {
    let mut keep = runs.descriptors();
    let listeners: Vec<RawFd> = listeners.iter().map(AsRawFd::as_raw_fd).collect();
    keep.extend(&listeners);
    keep.push(connection.as_raw_fd());
    let written = Written { runs, listeners, asked: connection.as_raw_fd(), descriptors: keep.clone() };
    let file = File::from(memfd_create("builds", MemfdFlags::CLOEXEC)?);
    keep.push(file.as_fd().as_raw_fd());
    // Piece by piece: as a whole it would be in memory twice.
    let mut to = BufWriter::new(Bounded { file, left: most, most });
    serde_json::to_writer(&mut to, &Head { format: takeover::format() })?;
    to.write_all(b"\n")?;
    serde_json::to_writer(&mut to, &written)?;
    Ok((to.into_inner().map_err(io::IntoInnerError::into_error)?.file, keep))
}

/// A file that takes so many bytes.
struct Bounded {
    file: File,
    left: u64,
    most: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::other(format!(
                "the builds that run take more than {} bytes, which is twice the operator's \
                 limits.max-session-memory-mib and {WRITTEN} bytes; wait until some of them have ended, or drain the box",
                self.most
            )));
        };
        let written = self.file.write(bytes)?;
        self.left = left + (bytes.len() - written) as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_that_is_too_long_is_refused_with_its_limit() {
        let file = || File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("a file in memory"));
        let mut to = Bounded { file: file(), left: 10, most: 10 };
        to.write_all(b"0123456").expect("within the limit");
        to.write_all(b"789").expect("just the limit");
        let error = to.write_all(b"a").expect_err("one more").to_string();
        assert!(error.contains("more than 10 bytes") && error.contains("max-session-memory-mib"), "{error}");
        assert_eq!(to.file.metadata().expect("its size").len(), 10);
    }
}
