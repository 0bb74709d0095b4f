//! A real agent with the namespace sandbox, on a free port of the loopback interface, its state in memory by
//! default.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::keys::Key;
use crate::log::Log;
use crate::{PATIENCE, place, roster};

/// Interval between checks whether a process has ended.
const GLANCE: Duration = Duration::from_millis(10);

/// The settings with which an agent is started.
#[derive(Default)]
pub struct Setup {
    settings: String,
    roster: Option<PathBuf>,
    below: Option<PathBuf>,
}

impl Setup {
    /// One line of configuration with a dotted key, such as `limits.max-build-seconds = 5`.
    pub fn setting(mut self, line: &str) -> Self {
        self.settings.push_str(line);
        self.settings.push('\n');
        self
    }

    /// Reads this roster, which another program writes.
    pub fn roster_at(mut self, path: &Path) -> Self {
        self.roster = Some(path.to_owned());
        self
    }

    /// Keeps its state below this folder instead of in memory.
    pub fn below(mut self, folder: &Path) -> Self {
        self.below = Some(folder.to_owned());
        self
    }

    /// Starts the agent with these members in its own roster file (which is not used after `roster_at`).
    pub fn start(self, members: &[(&str, &Key)]) -> Agent {
        let dir = match &self.below {
            Some(folder) => place::scratch_below(folder, "agent"),
            None => place::scratch("agent"),
        };
        let mut agent = Agent { dir, setup: self, port: 0, child: None, log: Log::default(), starts: 0 };
        agent.set_roster(members);
        agent.launch();
        agent
    }
}

/// An agent that serves until dropped. If a test fails meanwhile, the log is shown.
pub struct Agent {
    dir: TempDir,
    setup: Setup,
    port: u16,
    child: Option<Child>,
    log: Log,
    starts: usize,
}

impl Agent {
    /// Starts an agent with the default configuration.
    pub fn start(members: &[(&str, &Key)]) -> Self {
        Setup::default().start(members)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with the store, the logs and the host key.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Replaces the roster file, unless `roster_at` was used.
    pub fn set_roster(&self, members: &[(&str, &Key)]) {
        roster::write(&self.dir.path().join("roster.json"), &roster::roster(members));
    }

    /// As [`Agent::set_roster`], with any contents.
    pub fn set_roster_to(&self, roster: &Value) {
        roster::write(&self.dir.path().join("roster.json"), roster);
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running agent").id()
    }

    /// All log events so far, of all starts.
    pub fn events(&self) -> Vec<Value> {
        self.log.events()
    }

    /// Number of log events with this message.
    pub fn count(&self, message: &str) -> usize {
        self.log.events().iter().filter(|event| event["message"] == message).count()
    }

    pub fn log_text(&self) -> String {
        self.log.text()
    }

    /// The first event with this message.
    #[track_caller]
    pub fn wait_for(&self, message: &str) -> Value {
        self.wait_for_event(message, |event| event["message"] == message)
    }

    /// The first event for which `fits` is true; `what` names it in the message if none comes.
    #[track_caller]
    pub fn wait_for_event(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.log
            .wait(|events| events.iter().find(|event| fits(event)).cloned())
            .unwrap_or_else(|| panic!("the agent did not log {what:?}"))
    }

    /// Ends the agent as the service manager does, and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.end(Signal::TERM)
    }

    /// Kills the agent with `kill -9`: it cannot clean up.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Starts it again with the same state and port. A running agent is stopped first.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
        self.launch();
    }

    fn launch(&mut self) {
        let path = self.dir.path().display();
        let roster = self.setup.roster.clone().unwrap_or_else(|| self.dir.path().join("roster.json"));
        let config = self.dir.path().join("agent.toml");
        let text = format!(
            "name = \"testbox\"\nlisten = [\"127.0.0.1:{}\"]\nroster = \"{}\"\nstate-dir = \"{path}/state\"\n\
             systems = [\"x86_64-linux\"]\n{}sandbox.backend = \"namespace\"\nsandbox.guest = \"{}\"\nsandbox.shell = \"{}\"\n",
            self.port,
            roster.display(),
            self.setup.settings,
            place::guest().display(),
            place::busybox().display(),
        );
        std::fs::write(&config, text).expect("a configuration");
        let mut child = Command::new(place::program("builder-agent"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("an agent");
        self.log.follow(child.stderr.take().expect("piped"));
        self.child = Some(child);
        self.starts += 1;
        let starts = self.starts;
        let listening = self
            .log
            .wait(|events| events.iter().filter(|e| e["message"] == "listening").nth(starts - 1).cloned())
            .unwrap_or_else(|| panic!("the agent does not listen"));
        let address = listening["address"].as_str().expect("an address");
        self.port = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        let mut child = self.child.take().expect("a running agent");
        kill_process(Pid::from_child(&child), signal).expect("a signal");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("wait") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("the agent does not end");
            }
            std::thread::sleep(GLANCE);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}--- end of the agent's log ---", self.log_text());
        }
    }
}
