//! The configuration file: one table of keys, checked before anything starts.
//!
//! [`keys::KEYS`] is the only list of keys. The parser, the error messages and the table in
//! `docs/reference/settings.md` come from it, so they cannot disagree. An operator writes the file, or it is part of an
//! image: it is trusted, but mistakes in it must be easy to see. Not here: what the settings do.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sandbox::kvm::jail::Step;
use store::signing::PublicKey;
use store::{Durability, MinFree};

use net::Fetch;
use roster::settings::Layer;
use substitute::{Substitution, Terms};

mod error;
pub mod keys;
mod parse;
mod reached;
pub mod strangers;

pub use error::ConfigError;
pub use reached::Reached;
use strangers::{NetBlocks, Penalties, Startups};

/// All settings of an operator. Fields carry the unit in their type or name.
#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    /// The address under which members reach the box. `None`: the name of the box, and its first port.
    pub address: Option<Reached>,
    pub roster: PathBuf,
    /// Age of the last successful check from which on the roster counts for maintainers only. `None`: it never gets too
    /// old.
    pub roster_max_age: Option<Duration>,
    pub state_dir: PathBuf,
    pub host_key: PathBuf,
    pub signing_key: PathBuf,
    pub signing_key_name: String,
    pub trusted_public_keys: Vec<PublicKey>,
    pub systems: Vec<String>,
    pub system_features: Vec<String>,
    /// How the store survives a power loss.
    pub durability: Durability,
    /// When the store evicts.
    pub min_free: MinFree,
    /// The values of the settings that groups, members and clients can override (`roster::settings`).
    pub settings: Layer,
    /// The time for which a failure of the build itself is reused, where a request reuses failures; and likewise the end at
    /// a time limit.
    pub reuse_failures: Duration,
    pub sandbox: Sandbox,
    pub fetch: Fetch,
    pub network: Network,
    pub homes: Homes,
    /// Git repositories that homes have at hand.
    pub mirrors: mirrors::Settings,
    pub substitution: Substitution,
    pub limits: Limits,
}

/// The isolation of builds. There is no automatic choice: see `sandbox.backend` in the guide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    Kvm,
    Namespace,
}

impl BackendKind {
    /// The value of `sandbox.backend`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Namespace => "namespace",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Sandbox {
    pub backend: BackendKind,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub guest: PathBuf,
    pub shell: PathBuf,
    pub cgroup: Option<PathBuf>,
    /// Steps of the jail that may be missing; VMs run without them.
    pub allow_missing: Vec<Step>,
    /// At a time.
    pub templates: usize,
    pub vcpus: u8,
    pub memory_mib: u32,
}

/// The network of builders of fixed outputs.
#[derive(Debug, Clone)]
pub struct Network {
    pub builds: bool,
    pub passt: PathBuf,
    /// `None`: that of the host.
    pub resolver: Option<IpAddr>,
    pub policy: egress::Policy,
}

/// The throw-away machines in which members work.
#[derive(Debug, Clone)]
pub struct Homes {
    pub image: PathBuf,
    /// At a time.
    pub max: usize,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub processes: u32,
    /// After the last session.
    pub ttl: Duration,
    /// Connections of one home at a time.
    pub sessions: usize,
}

#[derive(Debug, Clone)]
pub struct Limits {
    pub max_jobs: usize,
    pub max_jobs_per_member: usize,
    /// Processor time of one member's builds in a month; `None`: as much as they can.
    pub max_cpu_hours_per_month: Option<u64>,
    pub max_tickets_per_member: usize,
    /// From the making of a ticket to its expiry.
    pub max_ticket_life: Duration,
    pub max_build: Duration,
    pub max_silent: Duration,
    pub max_log_bytes: u64,
    pub max_kept_log_bytes: u64,
    pub max_output_bytes: u64,
    pub max_nar_bytes: u64,
    /// What one member's paths may take; `None`: half of the store's file system.
    pub max_store_bytes_per_member: Option<u64>,
    pub max_memory_mib: u32,
    pub max_vcpus: u8,
    pub max_processes: u32,
    pub max_connections: usize,
    pub max_connections_per_member: usize,
    pub max_sessions_per_member: usize,
    pub max_sessions_per_connection: usize,
    pub login_time: Duration,
    pub max_auth_tries: usize,
    pub max_startups: Startups,
    pub max_startups_per_source: usize,
    pub net_blocks: NetBlocks,
    pub penalties: Penalties,
    pub penalty_exempt: Vec<addresses::Network>,
    /// Longest wait for the next piece of a request, or until the client takes the next piece of an answer.
    pub client_stall: Duration,
    /// Memory that all sessions together may hold; the next field is for those of one member.
    pub max_session_bytes: u64,
    pub max_session_bytes_per_member: u64,
}

impl Config {
    /// The host key and the limits for requests to caches and other stores.
    #[must_use]
    pub fn terms_of_substitution(&self) -> Terms {
        let (host_key, stall) = (self.host_key.clone(), self.fetch.stall);
        Terms { host_key, stall, max_nar_bytes: self.limits.max_nar_bytes }
    }

    /// The address under which members reach the box, as far as the configuration says it. A name that cannot be a host
    /// name is replaced by `box`.
    #[must_use]
    pub fn reached(&self) -> Reached {
        let port = self.listen.first().map_or(22, SocketAddr::port);
        let by_name = || format!("{}:{port}", self.name).parse().ok();
        let unnamed = || Reached { host: "box".to_owned(), port };
        self.address.clone().or_else(by_name).unwrap_or_else(unnamed)
    }

    /// Reads and checks a file. Nothing is created or changed.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|cause| match cause.kind() {
            std::io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
            _ => ConfigError::Unreadable { path: path.to_owned(), cause },
        })?;
        parse::config(&text, path)
    }
}

/// Bytes of memory in this machine.
#[must_use]
pub fn machine_memory() -> u64 {
    parse::machine_memory()
}

#[cfg(test)]
#[path = "config_test.rs"]
mod config_test;
