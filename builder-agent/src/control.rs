//! The socket on which another program asks to take the place of this agent, and the request.
//!
//! It is in the agent's folder, and only root and the agent's own user are heard: whoever asks names the program that the agent
//! executes.

use std::io;
use std::os::unix::net::UnixStream as Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// The socket's name in the state directory.
pub const FILE: &str = "agent.sock";
/// Longest request: three paths and some numbers.
const MAX_REQUEST: u64 = 64 << 10;
/// For a request to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that wants to take over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// What it can read. Compared before anything else happens.
    pub format: (u32, u32),
    pub executable: PathBuf,
    pub config: PathBuf,
    /// The `PATH` of the new agent.
    #[serde(default)]
    pub path: Option<String>,
    /// For how long builds may take to be ready.
    pub patience: Duration,
    /// Whether homes may end: they cannot go on.
    #[serde(default)]
    pub end_homes: bool,
}

/// The answer. Written by the program that serves in the end: this agent if nothing came of it, else the new one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// So many builds go on under the new agent, and so many could not be taken over and have ended.
    TakenOver { builds: usize, lost: usize },
    /// The old agent goes on as before.
    Refused { why: String },
}

/// Sends the answer. An error means that whoever asked does not wait any more.
pub fn answer(connection: &Connection, answer: &Answer) {
    use std::io::Write;
    let mut connection = connection;
    let written = serde_json::to_vec(answer).map(|mut line| {
        line.push(b'\n');
        connection.write_all(&line)
    });
    if let Ok(Err(error)) = written {
        tracing::debug!(%error, "nobody waits for the answer about the new agent");
    }
}

/// The requests from now on, one at a time. Takes the place of a socket that an earlier agent has left.
pub fn listen(state_dir: &Path) -> io::Result<mpsc::Receiver<(Request, Connection)>> {
    let path = state_dir.join(FILE);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while !sender.is_closed() {
            match listener.accept().await {
                Ok((stream, _)) => match read(stream).await {
                    Ok(asked) => drop(sender.send(asked).await),
                    Err(error) => tracing::warn!(%error, "a request to replace the agent was not understood"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a request to replace the agent");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    });
    Ok(receiver)
}

async fn read(mut stream: UnixStream) -> io::Result<(Request, Connection)> {
    let (asks, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if asks != 0 && asks != own {
        return Err(io::Error::other(format!("user {asks} may not ask for that")));
    }
    let mut line = String::new();
    let mut reader = BufReader::new((&mut stream).take(MAX_REQUEST));
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await.map_err(late)??;
    let request = serde_json::from_str(&line)?;
    let connection = stream.into_std()?;
    connection.set_nonblocking(false)?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok((request, connection))
}
