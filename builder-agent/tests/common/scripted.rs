//! An agent without ssh and without a real sandbox. Sessions are in memory, and a script plays the
//! builders.
//!
//! The script is the derivation's first argument, so that a test has the builder's behaviour next to its
//! derivation.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::homes::{Homes, Machines};
use builds::SandboxIdentity;
use builds::kept::KeptLogs;
use builds::realise::Realiser;
use builds::schedule::{Embedded, Parts};
use daemon::Agent;
use daemon::{Caller, SessionOptions};
use ledger::Ledger;
use members::{Member, Roster};
use nix::PathInfo;
use nix::derivation::BasicDerivation;
use nix_derivation::{Output, StorePath};
use sandbox::{
    BuilderStatus, Cancel, Finished, Host, Inputs, Job, JobRunner, Phases, Run, SandboxError, Usage,
};
use settings::Config;
use sha2::{Digest, Sha256};
use shares::budget::Budgets;
use shares::threads::Threads;
use store::signing::TrustedKeys;
use store::{Store, StoreConfig};
use substitute::Substituters;
use tempfile::TempDir;
use tickets::Tickets;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::watch;
use wire::client::{Client, encode_file_nar};

use super::client::Drv;

/// Plays builders. Words of the script, separated by spaces:
///
/// - `log:X` prints a line (longer than the limit of the log: ends as the sandbox would);
/// - `write:X` makes every output a file that holds X, `refer` one that holds the inputs' paths, `count` one
///   that holds the number of runs so far;
/// - `mib:N` adds N MiB to what `write` writes (more than the limit of the outputs: ends as the sandbox would);
/// - `quiet:N` is silent for N seconds, by the sandbox's clock;
/// - `cpu:N` uses N seconds of processor time, by the sandbox's account;
/// - `timeout`, `memory` and `broken` end as the sandbox would, `exit:N` ends with this status;
/// - `needs:MIB` ends as out of memory with less, `size` writes processors and MiB, `breaks:N` is broken in the first runs;
/// - `limit` waits for the gate and ends if it may run for a second only;
/// - `wait` waits until cancelled, `gate` waits until the test opens the gate.
#[derive(Default)]
pub struct Script {
    pub runs: AtomicUsize,
    pub cancelled: AtomicUsize,
    pub gate: Cancel,
    /// The inputs of the last build: store paths of trees, or the bytes of an image.
    pub inputs: Mutex<Option<Inputs>>,
}

impl JobRunner for Script {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn run(&self, job: Job, host: &mut dyn Host, cancel: &Cancel) -> Run {
        let mut usage = Usage::default();
        let result = self.play(&mut usage, job, host, cancel);
        Run { result, phases: Phases::default(), usage }
    }
}

impl Script {
    fn play(
        &self,
        usage: &mut Usage,
        job: Job,
        host: &mut dyn Host,
        cancel: &Cancel,
    ) -> Result<Finished, SandboxError> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        *self.inputs.lock().expect("inputs") = Some(job.inputs.clone());
        let mut contents = String::new();
        let mut status = 0;
        for word in String::from_utf8_lossy(&job.args[0]).split(' ') {
            match word.split_once(':').unwrap_or((word, "")) {
                ("log", line) => {
                    host.log(format!("{line}\n").as_bytes());
                    if line.len() as u64 > job.limits.log_bytes {
                        return Err(SandboxError::LogLimit { limit: job.limits.log_bytes });
                    }
                }
                ("cpu", seconds) => usage.cpu = Duration::from_secs(seconds.parse().expect("a number")),
                ("write", text) => contents.push_str(text),
                ("refer", _) => contents.push_str(&String::from_utf8_lossy(&job.env[&b"inputs"[..]])),
                ("mib", number) => {
                    contents
                        .extend(std::iter::repeat_n('m', number.parse::<usize>().expect("a number") << 20));
                }
                ("quiet", seconds) => {
                    let quiet = Duration::from_secs(seconds.parse().expect("a number"));
                    if let Some(after) = job.limits.silent.filter(|silent| *silent < quiet) {
                        return Err(SandboxError::Silent { after });
                    }
                }
                ("count", _) => contents.push_str(&run.to_string()),
                ("timeout", _) => return Err(SandboxError::Timeout { after: Duration::from_secs(1) }),
                ("needs", mib) if job.limits.memory_mib < mib.parse().expect("a number") => {
                    return Err(SandboxError::OutOfMemory { mib: job.limits.memory_mib });
                }
                ("needs", _) => {}
                ("size", _) => {
                    contents.push_str(&format!("{}x{}", job.limits.vcpus, job.limits.memory_mib));
                }
                ("order", _) => contents.push_str(if job.random_order { "random" } else { "plain" }),
                ("breaks", times) if run < times.parse().expect("a number") => {
                    return Err(SandboxError::GuestDied { console: String::new() });
                }
                ("breaks", _) => {}
                ("memory", _) => return Err(SandboxError::OutOfMemory { mib: job.limits.memory_mib }),
                ("broken", _) => return Err(SandboxError::GuestDied { console: String::new() }),
                ("limit", _) => {
                    assert!(self.gate.wait(Duration::from_secs(60)), "nobody opened the gate");
                    // A part of its second passes before the sandbox starts.
                    if let Some(after) = job.limits.wall.filter(|wall| wall.as_secs() < 2) {
                        return Err(SandboxError::Timeout { after });
                    }
                }
                ("exit", code) => status = code.parse().expect("a number"),
                ("wait", _) => {
                    assert!(cancel.wait(Duration::from_secs(60)), "nobody cancelled the build");
                }
                ("gate", _) => {
                    assert!(self.gate.wait(Duration::from_secs(60)), "nobody opened the gate");
                }
                _ => panic!("unknown word {word}"),
            }
            if cancel.is_cancelled() {
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                return Err(SandboxError::Cancelled);
            }
        }
        if status == 0 {
            let limit = job.limits.output_bytes;
            if (contents.len() * job.outputs.len()) as u64 > limit {
                return Err(SandboxError::OutputLimit { limit });
            }
            for name in job.outputs.keys() {
                let sink = |source| SandboxError::Sink { name: name.clone(), source };
                let mut output = host.output(name).map_err(sink)?;
                output.write_all(&encode_file_nar(contents.as_bytes(), false)).map_err(sink)?;
                output.finish().map_err(sink)?;
            }
        }
        Ok(Finished { status: BuilderStatus::Exited(status), kernel: "scripted".into() })
    }
}

pub struct Scripted {
    pub dir: TempDir,
    pub agent: Arc<Agent>,
    pub script: Arc<Script>,
    pub roster: watch::Sender<Arc<Roster>>,
}

pub type ServeClient = wire::serve_client::Client<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

pub type TestClient = Client<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

impl Scripted {
    /// `config` goes before the first section. The roster names alice and bob.
    pub fn open(config: &str) -> Scripted {
        Self::open_for("namespace", config)
    }

    /// The same, with the configuration of this sandbox backend.
    pub fn open_for(backend: &str, config: &str) -> Scripted {
        Self::open_with(backend, config, false, None)
    }

    /// The same, with tickets. A change of the roster then takes effect a moment after it was made.
    pub fn open_with_tickets(config: &str) -> Scripted {
        Self::open_with("namespace", config, true, None)
    }

    /// The same, with homes in these machines, and with tickets.
    pub fn open_with_homes(config: &str, machines: Arc<dyn Machines>) -> Scripted {
        Self::open_with("namespace", config, true, Some(machines))
    }

    fn open_with(
        backend: &str,
        config: &str,
        with_tickets: bool,
        machines: Option<Arc<dyn Machines>>,
    ) -> Scripted {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        for name in ["alice", "bob"] {
            super::make_key(&dir.path().join(name));
        }
        let path = dir.path().join("agent.toml");
        // Nobody looks into it.
        let image = dir.path().join("home.erofs");
        std::fs::write(&image, [0; 4096]).expect("an image");
        let text = format!(
            "name = \"testbox\"\nroster = \"/r\"\nstate-dir = {:?}\nsystems = [\"x86_64-linux\"]\nhomes.image = {image:?}\n{config}\n[sandbox]\nbackend = \"{backend}\"\n",
            dir.path(),
        );
        std::fs::write(&path, text).expect("config");
        let config = Arc::new(Config::load(&path).expect("a good configuration"));
        let trusted = Arc::new(TrustedKeys::new(config.trusted_public_keys.iter().cloned()));
        let max_bytes_per_member = config.limits.max_store_bytes_per_member;
        let settings =
            StoreConfig { trusted: trusted.clone(), max_bytes_per_member, ..StoreConfig::default() };
        let store = Store::open(&dir.path().join("store"), settings).expect("a store");
        let script = Arc::new(Script::default());
        let (sender, roster) = watch::channel(read_roster(dir.path(), &["alice", "bob"]));
        let tickets = Tickets::open(&dir.path().join("tickets.sqlite"), false);
        let roster = if with_tickets { members::with_tickets(roster, tickets.clone()) } else { roster };
        let logs = dir.path().to_owned();
        let kept = Arc::new(KeptLogs::new(logs.join("kept"), config.limits.max_kept_log_bytes));
        let threads = Threads::new();
        let ledger = Ledger::open(ledger::Settings::new(dir.path().join("ledger.sqlite"), true));
        let http = Arc::new(net::HttpClient::new(&config.fetch));
        let parts = Parts {
            config: config.clone(),
            store: store.clone(),
            kept: kept.clone(),
            logs,
            roster: roster.clone(),
            threads: threads.clone(),
            ledger: ledger.clone(),
        };
        let scheduler = Embedded::here(parts, script.clone(), http.clone());
        let sandbox_identity = SandboxIdentity::default();
        let signing_key =
            builder_agent::signing::load_or_create(&dir.path().join("signing-key"), "testbox-1")
                .expect("a signing key")
                .public();
        let terms = config.terms_of_substitution();
        let substituters =
            Substituters::new(&config.substitution, &terms, &store, trusted, &http, threads.clone());
        let realiser = Realiser {
            config: config.clone(),
            store: store.clone(),
            scheduler,
            kept,
            sandbox_identity,
            substituters,
            drv_hashes: Default::default(),
        };
        let homes = Homes::new(::homes::Parts {
            machines: machines.ok_or_else(|| "this agent is scripted".to_owned()),
            settings: config.homes.clone(),
            name: config.name.clone(),
            network: false,
            may_stay: builder_agent::stay::until_the_month_is_used_up(&config, &ledger, &roster),
            certificates: None,
            repositories: vec!["nixpkgs.git".into()],
            beside: Arc::new(|| vec![("nixpkgs.git".into(), sandbox::Image::default())]),
            store: store.clone(),
            roster: roster.clone(),
            ledger: ledger.clone(),
            threads: threads.clone(),
            // So that many charges lie between the last session and the end of a home.
            charge_every: Duration::from_millis(300),
            dotfiles_patience: Duration::from_secs(4),
        });
        let agent = Arc::new(Agent {
            homes,
            config,
            store,
            realiser: Arc::new(realiser),
            signing_key,
            host_key: String::new(),
            roster,
            tickets,
            checks: members::Checks::none(),
            threads,
            budgets: Budgets::new(1 << 30, 1 << 30),
            ledger,
            opened: Default::default(),
            paces: shares::pace::Paces::new(|| 0),
        });
        Scripted { dir, agent, script, roster: sender }
    }

    /// A worker session of this member, as ssh would start one.
    pub async fn session(&self, name: &str) -> TestClient {
        self.session_with(name, SessionOptions::default()).await
    }

    /// A session of a client that set environment variables.
    pub async fn session_with(&self, name: &str, options: SessionOptions) -> TestClient {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(theirs);
        let member = member(name);
        let agent = self.agent.clone();
        tokio::spawn(async move {
            let caller = Caller::outside(member, 0, options);
            let _ = daemon::serve(Box::new(reader), Box::new(writer), agent, caller).await;
        });
        let (reader, writer) = tokio::io::split(ours);
        Client::connect(reader, writer, 35, &[]).await.expect("a handshake")
    }

    /// A session of the serve protocol, 2.7 like most stock clients, and the stream of its stderr.
    pub async fn serve_session(&self, name: &str, write: bool) -> (ServeClient, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (reader, writer) = tokio::io::split(theirs);
        let (stderr, shown) = tokio::io::duplex(64 * 1024);
        let member = member(name);
        let agent = self.agent.clone();
        tokio::spawn(async move {
            let caller = Caller::outside(member, 0, SessionOptions::default());
            let _ = daemon::serve_store(
                Box::new(reader),
                Box::new(writer),
                Box::new(stderr),
                write,
                agent,
                caller,
            )
            .await;
        });
        let (reader, writer) = tokio::io::split(ours);
        (ServeClient::connect(reader, writer, 7).await.expect("a handshake"), shown)
    }

    /// The builders that ran so far, those that run now among them.
    pub fn runs(&self) -> usize {
        self.script.runs.load(Ordering::SeqCst)
    }

    /// Waits until this many builders have started. More are a failure.
    pub async fn until_runs(&self, count: usize) {
        until("a builder to run", || self.runs() >= count).await;
        assert_eq!(self.runs(), count, "a builder ran that nobody waited for");
    }

    /// The builders that were cancelled so far.
    pub fn cancelled(&self) -> usize {
        self.script.cancelled.load(Ordering::SeqCst)
    }

    /// Waits until this many builders have been cancelled. More are a failure.
    pub async fn until_cancelled(&self, count: usize) {
        until("a builder to be cancelled", || self.cancelled() >= count).await;
        assert_eq!(self.cancelled(), count, "a builder was cancelled that should go on");
    }

    pub fn set_roster(&self, names: &[&str]) {
        self.roster.send_replace(read_roster(self.dir.path(), names));
    }

    /// Sets the limits of a member of the roster.
    pub fn limit(&self, name: &str, limits: serde_json::Value) {
        self.edit_roster(|roster| {
            let members = roster["members"].as_array_mut().expect("members");
            let member = members.iter_mut().find(|member| member["name"] == name).expect("a member");
            member["limits"] = limits;
        });
    }

    /// Puts these members in the group `ci` with these limits.
    pub fn group(&self, names: &[&str], limits: serde_json::Value) {
        self.edit_roster(|roster| {
            roster["schema"] = 2.into();
            roster["groups"] = serde_json::json!([{ "name": "ci", "limits": limits }]);
            for member in roster["members"].as_array_mut().expect("members") {
                let is_in = names.iter().any(|name| member["name"] == *name);
                member["groups"] = if is_in { serde_json::json!(["ci"]) } else { serde_json::json!([]) };
            }
        });
    }

    pub fn edit_roster(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let path = self.dir.path().join("roster.json");
        let text = std::fs::read_to_string(&path).expect("a roster");
        let mut roster = serde_json::from_str(&text).expect("JSON");
        edit(&mut roster);
        super::put_roster(self.dir.path(), &roster);
        self.roster.send_replace(Arc::new(members::load(&path).expect("a roster")));
    }
}

/// Waits until a condition holds, which another task makes true.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(super::PATIENCE, waiting).await;
    in_time.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// A member without special settings.
pub fn member(name: &str) -> Arc<Member> {
    Arc::new(Member::named(name))
}

fn read_roster(dir: &Path, names: &[&str]) -> Arc<Roster> {
    super::write_roster(dir, names);
    Arc::new(members::load(&dir.join("roster.json")).expect("a roster"))
}

/// A store path with this name. Different names have different digests.
pub fn path(name: &str) -> StorePath {
    let mut digest = [7; 20];
    for (i, byte) in name.bytes().enumerate() {
        digest[i % 20] ^= byte.rotate_left((i / 20) as u32);
    }
    StorePath::from_parts(digest, name).expect("a path")
}

/// The info of a path with this archive, which nobody signed.
pub fn info_of(path: StorePath, nar: &[u8], references: &[StorePath]) -> PathInfo {
    PathInfo {
        path,
        deriver: None,
        nar_hash: Sha256::digest(nar).into(),
        nar_size: nar.len() as u64,
        references: references.iter().cloned().collect(),
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}

/// A derivation whose builder runs `script`; its one output is `path(name)`.
pub fn derivation(name: &str, script: &str, env: &[(&str, &str)]) -> Drv {
    let derivation = BasicDerivation {
        outputs: BTreeMap::from([("out".to_owned(), Output::InputAddressed { path: path(name) })]),
        input_sources: Default::default(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec![script.into()],
        env: env.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect(),
    };
    (path(&format!("{name}.drv")), derivation)
}

/// A derivation whose builder is a real shell with this script; its one output is `path(name)`.
pub fn shell_derivation(name: &str, script: &str) -> Drv {
    let out = path(name).to_absolute_path();
    let (drv, mut derivation) = derivation(name, script, &[("out", &out)]);
    derivation.args.insert(0, "-c".into());
    (drv, derivation)
}

/// What a client sends in the environment of ssh.
pub fn from_client(variables: &[(&str, &str)]) -> SessionOptions {
    let mut options = SessionOptions::default();
    for (name, value) in variables {
        assert!(options.set(name, value), "{name}");
    }
    assert_eq!(options.wrong(), None);
    options
}
