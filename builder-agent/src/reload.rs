//! `builder-agent reload`: this executable takes the place of the agent that runs.
//!
//! The agent executes the program that asks. So what has been read and checked here (that the program starts, that the
//! configuration is good, and which format it reads) is true of the new agent, and a broken one never gets so far.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::takeover;
use settings::Config;

use crate::control::{self, Answer, Request};

/// For the new agent to open everything, besides the patience for builds.
const START: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("no agent answers at {}: {cause}\nhint: `reload` replaces an agent that runs and knows of it; restart an older one, or one that does not run", socket.display())]
    NoAgent { socket: PathBuf, cause: io::Error },
    #[error("cannot ask the agent: {0}")]
    Ask(#[from] io::Error),
    #[error("the agent goes on as before: {0}")]
    Refused(String),
    #[error(
        "the new agent ended before it served; its log says why. Builds have ended; the service manager starts it again"
    )]
    Lost,
    #[error(
        "this agent serves now, and {lost} builds have ended because they could not be taken over; its log says why. Builds that go on: {builds}"
    )]
    BuildsLost { builds: usize, lost: usize },
}

/// Asks the agent with this configuration to execute this program. Returns how many builds went on.
pub fn run(config: &Config, file: &Path, patience: Duration, end_homes: bool) -> Result<usize, ReloadError> {
    let request = Request {
        format: takeover::format(),
        executable: std::env::current_exe()?,
        config: std::path::absolute(file)?,
        path: std::env::var("PATH").ok(),
        patience,
        end_homes,
    };
    let socket = config.state_dir.join(control::FILE);
    let mut agent = UnixStream::connect(&socket).map_err(|cause| ReloadError::NoAgent { socket, cause })?;
    agent.set_read_timeout(Some(patience.saturating_add(START)))?;
    let mut line = serde_json::to_vec(&request).map_err(io::Error::other)?;
    line.push(b'\n');
    agent.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(agent).read_line(&mut answer)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::TakenOver { builds, lost: 0 }) => Ok(builds),
        Ok(Answer::TakenOver { builds, lost }) => Err(ReloadError::BuildsLost { builds, lost }),
        Ok(Answer::Refused { why }) => Err(ReloadError::Refused(why)),
        Err(_) => Err(ReloadError::Lost),
    }
}
