//! From TOML text to [`Config`], by the table in [`super::keys`].

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use egress::{Policy, PortRange};
use mirrors::{Repository, Seed};
use sandbox::kvm::jail::Step;
use store::signing::PublicKey;
use store::{Durability, MinFree};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Fallback, KEYS, Key, Kind};
use super::strangers::{NetBlocks, Penalties, Startups};
use net::Fetch;
use roster::settings::{self as levels, Layer, MAX_WORDS, SETTINGS};
use substitute::{OfMembers, Substitution};

use super::{BackendKind, Config, ConfigError, Homes, Limits, Network, Reached, Sandbox};
use substitute::address::Address;

const MIB: u64 = 1024 * 1024;

#[derive(Debug, Clone)]
enum Value {
    Text(String),
    Int(i64),
    Bool(bool),
    Texts(Vec<String>),
}

/// Checked values by key name. Absent keys are included only if their default is fixed.
struct Values<'a> {
    path: &'a Path,
    found: BTreeMap<&'static str, Value>,
}

pub(super) fn config(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let values = Values { path, found: collect(text, path)? };
    let state_dir = values.path("state-dir").unwrap_or_else(|| unreachable!("state-dir has a default"));
    let backend = match values.text("sandbox.backend").as_deref() {
        Some("namespace") => BackendKind::Namespace,
        _ => BackendKind::Kvm,
    };
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get()) as i64;
    let max_jobs = values.int("limits.max-jobs").unwrap_or(cpus);
    let memory = values.int_of("sandbox.memory-mib");
    let vcpus = values.int_of("sandbox.vcpus");
    let name = values.text("name").unwrap_or_else(host_name);
    let session_mib = values
        .int("limits.max-session-memory-mib")
        .map_or_else(|| (machine_memory() / MIB / 4).max(512), |mib| mib as u64);
    Ok(Config {
        signing_key_name: values.text("signing-key-name").unwrap_or_else(|| format!("{name}-1")),
        name,
        listen: values.parsed("listen"),
        address: values.text("address").and_then(|text| text.parse().ok()),
        roster: values.required_path("roster")?,
        roster_max_age: match values.int_of("roster-max-age-seconds") {
            0 => None,
            seconds => Some(Duration::from_secs(seconds as u64)),
        },
        host_key: values.path("host-key").unwrap_or_else(|| state_dir.join("ssh_host_ed25519_key")),
        signing_key: values.path("signing-key").unwrap_or_else(|| state_dir.join("signing-key")),
        trusted_public_keys: values.parsed("trusted-public-keys"),
        state_dir,
        systems: values.texts("systems").unwrap_or_else(|| vec![format!("{}-linux", std::env::consts::ARCH)]),
        system_features: values.texts("system-features").unwrap_or_default(),
        durability: match values.text("store.durability").as_deref() {
            Some("none") => Durability::None,
            _ => Durability::Flush,
        },
        min_free: min_free(&values),
        settings: values.layer(),
        reuse_failures: Duration::from_secs(values.int_of("reuse-failures-seconds") as u64),
        sandbox: Sandbox {
            backend,
            kernel: values.required_path("sandbox.kernel")?,
            initrd: values.required_path("sandbox.initrd")?,
            guest: values.required_path("sandbox.guest")?,
            shell: values.required_path("sandbox.shell")?,
            cgroup: values.path("sandbox.cgroup"),
            allow_missing: values.parsed("sandbox.allow-missing"),
            templates: values.int_of("sandbox.templates") as usize,
            vcpus: vcpus as u8,
            memory_mib: memory as u32,
        },
        fetch: Fetch {
            allow_private: values.bool_of("fetch.allow-private"),
            certificates: values.required_path("fetch.certificates")?,
            stall: Duration::from_secs(values.int_of("fetch.stall-seconds") as u64),
            whole: Duration::from_secs(values.int_of("fetch.max-seconds") as u64),
        },
        substitution: Substitution {
            enabled: values.bool_of("substitute"),
            substituters: values.parsed("substituters"),
            of_members: match values.text("member-substituters").as_deref() {
                Some("no") => OfMembers::None,
                Some("any") => OfMembers::Any,
                _ => OfMembers::Https,
            },
        },
        network: network(&values)?,
        homes: homes(&values),
        mirrors: mirrors(&values)?,
        limits: Limits {
            max_jobs: max_jobs as usize,
            max_jobs_per_member: values.int("limits.max-jobs-per-member").unwrap_or(max_jobs) as usize,
            max_cpu_hours_per_month: values.int("limits.max-cpu-hours-per-month").map(|hours| hours as u64),
            max_tickets_per_member: values.int_of("limits.max-tickets-per-member") as usize,
            max_ticket_life: Duration::from_secs(values.int_of("limits.max-ticket-seconds") as u64),
            max_build: Duration::from_secs(values.int_of("limits.max-build-seconds") as u64),
            max_silent: Duration::from_secs(values.int_of("limits.max-silent-seconds") as u64),
            max_log_bytes: values.int_of("limits.max-log-mib") as u64 * MIB,
            max_kept_log_bytes: values.int_of("limits.max-kept-logs-mib") as u64 * MIB,
            max_output_bytes: values.int_of("limits.max-output-mib") as u64 * MIB,
            max_nar_bytes: values.int_of("limits.max-nar-mib") as u64 * MIB,
            max_store_bytes_per_member: values
                .int("limits.max-store-mib-per-member")
                .map(|mib| mib as u64 * MIB),
            max_memory_mib: values.number("limits.max-memory-mib") as u32,
            max_vcpus: values.number("limits.max-cpus") as u8,
            max_processes: values.int_of("limits.max-processes") as u32,
            max_connections: values.int_of("limits.max-connections") as usize,
            max_connections_per_member: values.int_of("limits.max-connections-per-member") as usize,
            max_sessions_per_member: values.int_of("limits.max-sessions-per-member") as usize,
            max_sessions_per_connection: values.int_of("limits.max-sessions-per-connection") as usize,
            login_time: Duration::from_secs(values.int_of("limits.login-seconds") as u64),
            max_auth_tries: values.int_of("limits.max-auth-tries") as usize,
            max_startups: values.one("limits.max-startups"),
            max_startups_per_source: values.int_of("limits.per-source-max-startups") as usize,
            net_blocks: values.one("limits.per-source-net-block-size"),
            penalties: values.one("limits.per-source-penalties"),
            penalty_exempt: values.parsed("limits.per-source-penalty-exempt"),
            client_stall: Duration::from_secs(values.int_of("limits.client-stall-seconds") as u64),
            max_session_bytes: session_mib * MIB,
            max_session_bytes_per_member: values
                .int("limits.max-session-memory-per-member-mib")
                .map_or((session_mib / 4).max(512), |mib| mib as u64)
                .min(session_mib)
                * MIB,
        },
    })
}

fn homes(values: &Values<'_>) -> Homes {
    let memory_mib = values.int_of("homes.memory-mib") as u32;
    let fit = || (machine_memory() / MIB / 4 / u64::from(memory_mib)).max(1) as usize;
    Homes {
        image: values.path("homes.image").unwrap_or_else(|| unreachable!("homes.image has a default")),
        max: values.int("homes.max").map_or_else(fit, |max| max as usize),
        vcpus: values.int_of("homes.vcpus") as u8,
        memory_mib,
        processes: values.int_of("homes.processes") as u32,
        ttl: Duration::from_secs(values.int_of("homes.ttl-seconds") as u64),
        sessions: values.int_of("homes.sessions") as usize,
    }
}

fn min_free(values: &Values<'_>) -> MinFree {
    let files_percent = values.int_of("store.min-free-inodes-percent") as u8;
    match values.int("store.min-free-mib") {
        None => MinFree::Usual { files_percent },
        Some(0) => MinFree::Off,
        Some(mib) => MinFree::Bytes { bytes: mib as u64 * MIB, files_percent },
    }
}

/// Bytes of memory in this machine.
pub(super) fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

impl Values<'_> {
    fn text(&self, key: &str) -> Option<String> {
        match self.found.get(key) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Option<Vec<String>> {
        match self.found.get(key) {
            Some(Value::Texts(texts)) => Some(texts.clone()),
            _ => None,
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    fn required_path(&self, key: &str) -> Result<PathBuf, ConfigError> {
        self.path(key).ok_or_else(|| {
            let help = KEYS.iter().find(|k| k.name == key).map_or("", |k| k.help);
            ConfigError::NotSet { path: self.path.to_owned(), key: key.into(), help: help.into() }
        })
    }

    fn int(&self, key: &str) -> Option<i64> {
        match self.found.get(key) {
            Some(Value::Int(int)) => Some(*int),
            _ => None,
        }
    }

    /// For keys whose default is in the table, so that there is always a value.
    fn int_of(&self, key: &str) -> i64 {
        self.int(key).unwrap_or_else(|| unreachable!("`{key}` has a default in the table of keys"))
    }

    /// As `int_of`. Without a limit of its own, a build has no more than what builds have.
    fn number(&self, key: &str) -> i64 {
        let of_builds = match key {
            "limits.max-cpus" => "sandbox.vcpus",
            "limits.max-memory-mib" => "sandbox.memory-mib",
            own => own,
        };
        self.int(key).unwrap_or_else(|| self.int_of(of_builds))
    }

    fn bool_of(&self, key: &str) -> bool {
        matches!(self.found.get(key), Some(Value::Bool(true)))
    }

    /// The system level of the settings on levels, each from its key.
    fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        for setting in SETTINGS.iter().filter(|setting| !setting.key.is_empty()) {
            let value = match setting.kind {
                levels::Kind::Flag { .. } => levels::Value::Flag(self.bool_of(setting.key)),
                levels::Kind::Most { .. }
                | levels::Kind::Amount { .. }
                | levels::Kind::Count { .. }
                | levels::Kind::Rank { .. } => levels::Value::Number(self.number(setting.key)),
                // No key of the box has one.
                levels::Kind::Source => levels::Value::Text(String::new()),
                levels::Kind::Globs | levels::Kind::Tags | levels::Kind::Caches | levels::Kind::CacheKeys => {
                    levels::Value::Words(self.texts(setting.key).unwrap_or_default())
                }
            };
            let set = layer.set(setting, value);
            set.unwrap_or_else(|error| unreachable!("the range of a key is in that of its setting: {error}"));
        }
        layer
    }

    /// A text whose default is in the table. Its check has parsed it before, so this cannot fail.
    fn one<T: FromStr>(&self, key: &str) -> T {
        self.text(key)
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| unreachable!("`{key}` has a default in the table of keys, and was checked"))
    }

    /// A list of texts. Their check has parsed them before, so this cannot fail.
    fn parsed<T: FromStr>(&self, key: &str) -> Vec<T> {
        self.texts(key).unwrap_or_default().iter().filter_map(|text| text.parse().ok()).collect()
    }
}

fn network(values: &Values<'_>) -> Result<Network, ConfigError> {
    let number = |key| u64::try_from(values.int_of(key)).unwrap_or_default();
    let small = |key| u32::try_from(values.int_of(key)).unwrap_or(u32::MAX);
    let names = |key| values.texts(key).unwrap_or_default();
    Ok(Network {
        builds: values.bool_of("network.builds"),
        passt: values.required_path("network.passt")?,
        resolver: values.text("network.resolver").and_then(|text| text.parse().ok()),
        policy: Policy {
            allow_networks: values.parsed("network.allow-networks"),
            deny_networks: values.parsed("network.deny-networks"),
            allow_names: names("network.allow-names"),
            deny_names: names("network.deny-names"),
            tcp_ports: values.parsed("network.tcp-ports"),
            udp_ports: values.parsed("network.udp-ports"),
            limits: egress::Limits {
                max_connections: small("network.max-connections"),
                max_new_connections_per_second: small("network.max-new-connections-per-second"),
                max_bytes: number("network.max-mib") * MIB,
                max_bytes_per_second: number("network.max-kib-per-second") * 1024,
                max_seconds: number("network.max-connection-seconds"),
                ..egress::Limits::default()
            },
            ..Policy::default()
        },
    })
}

fn mirrors(values: &Values<'_>) -> Result<mirrors::Settings, ConfigError> {
    Ok(mirrors::Settings {
        dir: values.required_path("mirrors.dir")?,
        repositories: values.parsed("mirrors.repositories"),
        seeds: values.parsed("mirrors.seed"),
        interval: Duration::from_secs(values.int_of("mirrors.interval-seconds") as u64),
        max_bytes: values.int_of("mirrors.max-mib") as u64 * MIB,
        certificates: values.path("fetch.certificates"),
        patience: mirrors::Patience::default(),
    })
}

fn collect(text: &str, path: &Path) -> Result<BTreeMap<&'static str, Value>, ConfigError> {
    let not_toml =
        |e: toml::de::Error| ConfigError::NotToml { path: path.to_owned(), message: e.to_string() };
    let file = File { text, path };
    let table = DeTable::parse(text).map_err(not_toml)?;
    let mut found = BTreeMap::new();
    for (name, value) in table.get_ref() {
        let name = name.get_ref().as_ref();
        match value.get_ref() {
            DeValue::Table(section) if is_section(name) => {
                for (inner, value) in section {
                    file.take(&format!("{name}.{}", inner.get_ref()), value, &mut found)?;
                }
            }
            _ => file.take(name, value, &mut found)?,
        }
    }
    for key in KEYS {
        if let (Fallback::Toml(default), false) = (key.default, found.contains_key(key.name)) {
            let default = DeValue::parse(default).map_err(not_toml)?;
            found.insert(key.name, file.check(key, &default)?);
        }
    }
    Ok(found)
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

struct File<'a> {
    text: &'a str,
    path: &'a Path,
}

impl File<'_> {
    fn take(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        found: &mut BTreeMap<&'static str, Value>,
    ) -> Result<(), ConfigError> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err(ConfigError::UnknownKey {
                path: self.path.to_owned(),
                line: self.line(value),
                key: name.into(),
                value: self.shown(value),
                accepted: accepted(name),
            });
        };
        found.insert(key.name, self.check(key, value)?);
        Ok(())
    }

    fn check(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, ConfigError> {
        let bad = |wanted: String| ConfigError::BadValue {
            path: self.path.to_owned(),
            line: self.line(value),
            key: key.name.into(),
            value: self.shown(value),
            wanted,
        };
        let plain = value.get_ref();
        match key.kind {
            Kind::Text => plain
                .as_str()
                .filter(|text| !text.is_empty())
                .map(|text| Value::Text(text.into()))
                .ok_or_else(|| bad("it must be text in quotes".into())),
            Kind::Path => plain
                .as_str()
                .filter(|text| text.starts_with('/'))
                .map(|text| Value::Text(text.into()))
                .ok_or_else(|| bad("it must be an absolute path in quotes".into())),
            Kind::Word(words) => plain
                .as_str()
                .filter(|text| words.contains(text))
                .map(|text| Value::Text(text.into()))
                .ok_or_else(|| {
                    let words: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
                    bad(format!("it must be {}", words.join(" or ")))
                }),
            Kind::Int { min, max } => plain
                .as_integer()
                .and_then(|int| i64::from_str_radix(int.as_str(), int.radix()).ok())
                .filter(|int| (min..=max).contains(int))
                .map(Value::Int)
                .ok_or_else(|| bad(format!("it must be a whole number from {min} to {max}"))),
            Kind::Bool => {
                plain.as_bool().map(Value::Bool).ok_or_else(|| bad("it must be true or false".into()))
            }
            Kind::Addresses => {
                let list = strings(plain).filter(|list| {
                    !list.is_empty() && list.iter().all(|text| text.parse::<SocketAddr>().is_ok())
                });
                list.map(Value::Texts).ok_or_else(|| {
                    bad("it must be a list of \"address:port\", such as [\"0.0.0.0:22\", \"[::]:22\"]".into())
                })
            }
            Kind::Substituters => each::<Address>(plain, "store URLs").map_err(bad),
            Kind::PublicKeys => each::<PublicKey>(plain, "public keys").map_err(bad),
            Kind::JailSteps => each::<Step>(plain, "steps of the jail").map_err(bad),
            Kind::Globs => {
                strings(plain).filter(|globs| is_globs(key.name, globs)).map(Value::Texts).ok_or_else(|| {
                    bad(format!("it must be a list of at most {MAX_WORDS} names, with `*` and `?`"))
                })
            }
            Kind::Texts => each::<String>(plain, "texts").map_err(bad),
            Kind::Networks => each::<addresses::Network>(plain, "addresses and networks").map_err(bad),
            Kind::Ports => each::<PortRange>(plain, "ports and ranges").map_err(bad),
            Kind::Mirrors => each::<Repository>(plain, "mirrors").and_then(once).map_err(bad),
            Kind::Seeds => each::<Seed>(plain, "seeds of mirrors").and_then(once).map_err(bad),
            Kind::Ip => text_of::<IpAddr>(plain).map_err(bad),
            Kind::Address => text_of::<Reached>(plain).map_err(bad),
            Kind::Startups => text_of::<Startups>(plain).map_err(bad),
            Kind::NetBlocks => text_of::<NetBlocks>(plain).map_err(bad),
            Kind::Penalties => text_of::<Penalties>(plain).map_err(bad),
        }
    }

    fn line(&self, value: &Spanned<DeValue<'_>>) -> usize {
        let start = value.span().start.min(self.text.len());
        self.text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// The value as the operator wrote it, shortened if it is long.
    fn shown(&self, value: &Spanned<DeValue<'_>>) -> String {
        const LONGEST: usize = 80;
        let raw = self.text.get(value.span()).unwrap_or("?");
        let first = raw.lines().next().unwrap_or("");
        match first.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}...", &first[..end]),
            None if first.len() < raw.len() => format!("{first} ..."),
            None => first.to_owned(),
        }
    }
}

fn strings(value: &DeValue<'_>) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
}

/// Whether the setting whose system level this key is accepts these globs; for other keys, any setting with globs.
fn is_globs(key: &str, globs: &[String]) -> bool {
    let value = levels::Value::Words(globs.to_vec());
    let any = || SETTINGS.iter().find(|setting| matches!(setting.kind, levels::Kind::Globs));
    let setting = SETTINGS.iter().find(|setting| setting.key == key).or_else(any);
    setting.is_some_and(|setting| value.check(setting).is_ok())
}

/// A list of texts in quotes, each of which is a `T`.
fn each<T: FromStr<Err: Display>>(value: &DeValue<'_>, what: &str) -> Result<Value, String> {
    let list = strings(value).ok_or("it must be a list of texts in quotes")?;
    match list.iter().find_map(|text| text.parse::<T>().err()) {
        Some(error) => Err(format!("it must be a list of {what}: {error}")),
        None => Ok(Value::Texts(list)),
    }
}

/// A list of `NAME=URL` has each name once.
fn once(value: Value) -> Result<Value, String> {
    let Value::Texts(texts) = &value else { return Ok(value) };
    let names: Vec<&str> = texts.iter().filter_map(|text| text.split('=').next()).collect();
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((_, name)) => Err(format!("it must have each name once, and `{name}` is there twice")),
        None => Ok(value),
    }
}

/// A text in quotes that is a `T`.
fn text_of<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<Value, String> {
    let text = value.as_str().ok_or("it must be a text in quotes")?;
    match text.parse::<T>() {
        Ok(_) => Ok(Value::Text(text.into())),
        Err(error) => Err(format!("it must be another text: {error}")),
    }
}

/// The keys that are accepted where the unknown one was written.
fn accepted(name: &str) -> String {
    let section = name.split_once('.').map(|(section, _)| section);
    let inside: Vec<&str> = KEYS
        .iter()
        .filter_map(|key| match (section, key.name.split_once('.')) {
            (Some(section), Some((s, k))) if s == section => Some(k),
            (None, None) => Some(key.name),
            _ => None,
        })
        .collect();
    match section.filter(|_| !inside.is_empty()) {
        Some(section) => format!("accepted in [{section}]: {}", inside.join(", ")),
        None => format!(
            "accepted at the top: {}; sections: [settings], [store], [sandbox], [fetch], [limits]",
            inside.join(", ")
        ),
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
