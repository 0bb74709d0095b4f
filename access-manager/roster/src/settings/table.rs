//! The table of settings.

use std::fmt::{self, Write as _};

use crate::words::{did_you_mean, quoted};

/// A place where settings are written. Later ones override earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The configuration of the box.
    System,
    /// A group in the roster. A member can be in several.
    Group,
    /// A member in the roster.
    Member,
    /// A key of a member, or a certificate authority, in the roster.
    Key,
    /// The variables that an ssh client sends.
    Ssh,
    /// The variables of a derivation.
    Derivation,
}

impl Level {
    pub const ALL: [Level; 6] =
        [Level::System, Level::Group, Level::Member, Level::Key, Level::Ssh, Level::Derivation];

    /// One word, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Level::System => "system",
            Level::Group => "group",
            Level::Member => "member",
            Level::Key => "key",
            Level::Ssh => "ssh",
            Level::Derivation => "derivation",
        }
    }

    /// For sentences.
    pub fn words(self) -> &'static str {
        match self {
            Level::System => "the configuration of the box",
            Level::Group => "a group",
            Level::Member => "the member's entry in the roster",
            Level::Key => "the settings of the key in the roster",
            Level::Ssh => "the ssh environment",
            Level::Derivation => "the derivation",
        }
    }
}

/// The place of a setting in [`SETTINGS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Id {
    AllowBuilds,
    AllowHome,
    AllowOverride,
    AllowShell,
    AlwaysSubstitute,
    DefaultCpu,
    DefaultMemPerCpu,
    Dotfiles,
    HomeTtl,
    InjectFsRandomness,
    KeepBuildsRunning,
    KeepGoing,
    MaxBuildRestarts,
    MaxCpu,
    MaxMem,
    MaxSilentTime,
    MinCpu,
    MinMem,
    NeverSubstitute,
    Priority,
    ReuseBuildFailures,
    ReuseBuildTimeouts,
    SettingsFromDrvEnv,
    SettingsFromSshEnv,
    Substituters,
    Tags,
    Timeout,
    TrustedPublicKeys,
}

/// The kind of a value, and how the values of several levels become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; the last level counts.
    Flag {
        /// The default of the key of the box.
        default: bool,
    },
    /// A number of units; zero means that this level sets none. The smallest counts: no level can give more than an
    /// earlier one.
    Most { smallest: i64, largest: i64, unit: &'static str },
    /// A number of units; the last level counts, and zero takes back what earlier ones say.
    Amount { smallest: i64, largest: i64, unit: &'static str },
    /// A number from zero to `largest`; the last level counts.
    Count {
        largest: i64,
        /// The default of the key of the box.
        default: i64,
    },
    /// A number from `-largest` to `largest`; the last level counts, and without any it is zero.
    Rank { largest: i64 },
    /// Where files come from: a git repository or an archive. The last level counts, and an empty text takes back what earlier
    /// ones say.
    Source,
    /// Globs over names of store paths. Those of all levels count together.
    Globs,
    /// Short words. Those of all levels count together.
    Tags,
    /// URLs of binary caches. Those of all levels count together.
    Caches,
    /// Public keys of binary caches, `name:base64`. Those of all levels count together.
    CacheKeys,
}

/// One setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    pub id: Id,
    pub name: &'static str,
    pub kind: Kind,
    /// The key of `builder-agent.toml` that is the system level; empty if there is none.
    pub key: &'static str,
    /// The last level that may set it; every earlier one may too.
    pub last: Level,
    pub help: &'static str,
}

impl Setting {
    /// Whether this level may set it.
    pub fn may_be_on(&self, level: Level) -> bool {
        level <= self.last && !(level == Level::System && self.key.is_empty())
    }

    /// The names of the levels that may set it.
    pub fn levels(&self) -> Vec<&'static str> {
        Level::ALL.iter().filter(|level| self.may_be_on(**level)).map(|level| level.name()).collect()
    }

    /// The values that it may have, for sentences.
    pub fn expected(&self) -> String {
        match self.kind {
            Kind::Flag { .. } => "`true` or `false`".into(),
            Kind::Most { smallest: 1, largest, unit } | Kind::Amount { smallest: 1, largest, unit } => {
                format!("a whole number of {unit}, from 0 (none) to {largest}")
            }
            Kind::Most { smallest, largest, unit } | Kind::Amount { smallest, largest, unit } => {
                format!("a whole number of {unit}, from {smallest} to {largest}, or 0 for none")
            }
            Kind::Count { largest, .. } => format!("a whole number from 0 to {largest}"),
            Kind::Rank { largest } => format!("a whole number from -{largest} to {largest}"),
            Kind::Source => "the address of a git repository (`https://`, `ssh://`, `git://`) or of an archive (`https://`, with a \
                             name like `x.tar.gz`) without a password, or an empty text for none"
                .into(),
            Kind::Tags => "a list of short words".into(),
            Kind::Caches => "a list of `https://` or `http://` URLs without user and password".into(),
            Kind::CacheKeys => "a list of `name:base64`".into(),
            Kind::Globs => "a list of names, in which `*` stands for any text".into(),
        }
    }
}

const fn setting(
    id: Id,
    (name, key): (&'static str, &'static str),
    kind: Kind,
    last: Level,
    help: &'static str,
) -> Setting {
    Setting { id, name, kind, key, last, help }
}

const fn flag(default: bool) -> Kind {
    Kind::Flag { default }
}

/// A month, as for the limit `maxBuildSeconds`.
const SECONDS: Kind = Kind::Most { smallest: 1, largest: 31 * 24 * 3600, unit: "seconds" };
/// As for the limits `maxCpus` and `maxMemoryMib`.
const CPUS: Kind = Kind::Most { smallest: 1, largest: 255, unit: "processors" };
const MIB: Kind = Kind::Most { smallest: 64, largest: 16 << 20, unit: "MiB" };
const SOME_CPUS: Kind = Kind::Amount { smallest: 1, largest: 255, unit: "processors" };
const SOME_MIB: Kind = Kind::Amount { smallest: 64, largest: 16 << 20, unit: "MiB" };
/// Each restart can double the memory of a build: ten times is a thousand times the memory.
const RESTARTS: Kind = Kind::Count { largest: 10, default: 2 };

/// All settings that have an effect, in order of name.
#[rustfmt::skip]
pub const SETTINGS: &[Setting] = &[
    setting(Id::AllowBuilds, ("allow-builds", "settings.allow-builds"), flag(true), Level::Key, "whether builders run for the member; without it, paths are fetched, and results of earlier builds are given"),
    setting(Id::AllowHome, ("allow-home", "settings.allow-home"), flag(true), Level::Key, "whether the member has a home on a box that has homes: a throw-away machine for work by hand"),
    setting(Id::AllowOverride, ("allow-override", "settings.allow-override"), flag(true), Level::Key, "`false` locks all settings for the levels after the one that says it"),
    setting(Id::AllowShell, ("allow-shell", "settings.allow-shell"), flag(true), Level::Key, "whether the member may run the commands for people; without it only stores and deployment tools are served"),
    setting(Id::AlwaysSubstitute, ("always-substitute", "always-substitute"), Kind::Globs, Level::Ssh, "names of paths that are fetched even if the client or the derivation disables substitution"),
    setting(Id::DefaultCpu, ("default-cpu", "sandbox.vcpus"), SOME_CPUS, Level::Derivation, "processors of a build, between `min-cpu` and `max-cpu`; with others than the box gives, the result is the member's claim, and not shared or signed"),
    setting(Id::DefaultMemPerCpu, ("default-mem-per-cpu", ""), SOME_MIB, Level::Derivation, "memory of a build for each of its processors, between `min-mem` and `max-mem`; without it a build has `sandbox.memory-mib` of the box. With other memory than the box gives, the result is the member's claim"),
    setting(Id::Dotfiles, ("dotfiles", ""), Kind::Source, Level::Ssh, "files of the member's own that a new home fetches, as its member and through its network: a git repository or an archive of `tar`"),
    setting(Id::HomeTtl, ("home-ttl", "homes.ttl-seconds"), SECONDS, Level::Ssh, "how long a home stays after its last session has ended; then it is gone with all that is in it"),
    setting(Id::InjectFsRandomness, ("inject-fs-randomness", "settings.inject-fs-randomness"), flag(false), Level::Derivation, "whether a builder sees the entries of each directory in a random order, another one in each build, which shows whether a result depends on it; the result is the member's claim, and not shared or signed"),
    setting(Id::KeepBuildsRunning, ("keep-builds-running", "keep-builds-running"), flag(false), Level::Derivation, "whether a build goes on when its last client has disconnected; of several clients the last one's setting counts"),
    setting(Id::KeepGoing, ("keep-going", "keep-going"), flag(true), Level::Ssh, "whether the other derivations of a request are still built after one has failed; what a client says in the protocol comes last"),
    setting(Id::MaxBuildRestarts, ("max-build-restarts", "settings.max-build-restarts"), RESTARTS, Level::Derivation, "how often a build is started again: with twice the memory, up to `max-mem`, if it ran out of memory; as it was, if its sandbox failed. Every start is charged"),
    setting(Id::MaxCpu, ("max-cpu", "limits.max-cpus"), CPUS, Level::Derivation, "most processors of a build; with fewer than the box gives to a build, the result is the member's claim, and not shared or signed"),
    setting(Id::MaxMem, ("max-mem", "limits.max-memory-mib"), MIB, Level::Derivation, "most memory of a build, also when it is started again; with less than the box gives to a build, the result is the member's claim, and not shared or signed"),
    setting(Id::MaxSilentTime, ("max-silent-time", "limits.max-silent-seconds"), SECONDS, Level::Derivation, "longest time without output from a build"),
    setting(Id::MinCpu, ("min-cpu", ""), SOME_CPUS, Level::Derivation, "fewest processors of a build; above `max-cpu`, or the limit `maxCpus`, the build is refused"),
    setting(Id::MinMem, ("min-mem", ""), SOME_MIB, Level::Derivation, "least memory of a build; above `max-mem`, or the limit `maxMemoryMib`, the build is refused"),
    setting(Id::NeverSubstitute, ("never-substitute", "never-substitute"), Kind::Globs, Level::Ssh, "names of paths that are never fetched for the member; it takes precedence over `always-substitute`"),
    setting(Id::Priority, ("priority", ""), Kind::Rank { largest: 100 }, Level::Derivation, "the order of the member's own builds: above 0 as if somebody waited for each, below 0 after those; 0: the box decides by the number of builds in a request, and by how many of one key come one by one"),
    setting(Id::ReuseBuildFailures, ("reuse-build-failures", "reuse-failures"), flag(true), Level::Derivation, "whether the failure of an earlier equal build is the answer instead of a new build"),
    setting(Id::ReuseBuildTimeouts, ("reuse-build-timeouts", "settings.reuse-build-timeouts"), flag(false), Level::Derivation, "whether the time-out of an earlier equal build is the answer instead of a new build, if the limit of the request is no longer than the one that ended it; on a box with less to do the build might have ended in time"),
    setting(Id::SettingsFromDrvEnv, ("settings-from-drv-env", "settings.settings-from-drv-env"), flag(false), Level::Ssh, "whether variables of derivations are settings of their builds"),
    setting(Id::SettingsFromSshEnv, ("settings-from-ssh-env", "settings.settings-from-ssh-env"), flag(true), Level::Key, "whether variables of ssh clients are settings of their sessions"),
    setting(Id::Substituters, ("substituters", ""), Kind::Caches, Level::Ssh, "binary caches of the member's own, at most 5, as the box's `member-substituters` allows; they are asked after those of the box"),
    setting(Id::Tags, ("tags", ""), Kind::Tags, Level::Derivation, "words for the box's log line about a build, and for `usage --per tag`"),
    setting(Id::Timeout, ("timeout", "limits.max-build-seconds"), SECONDS, Level::Derivation, "longest time of a build; the limit `maxBuildSeconds` of the member counts too"),
    setting(Id::TrustedPublicKeys, ("trusted-public-keys", ""), Kind::CacheKeys, Level::Ssh, "keys of caches that the member trusts, at most 10; a path that only such a key signed is the member's claim, and not shared or signed"),
];

/// Settings of nixbuild.net that have no effect here, and why. They are refused, as their users would expect an effect.
pub const NOT_HERE: &[(&str, &str)] = &[
    ("cache-build-failures", "it is called `reuse-build-failures`"),
    ("cache-build-timeouts", "it is called `reuse-build-timeouts`"),
    ("max-cpu-hours-per-month", "it is a limit, and not a setting"),
];

/// Why a name is not that of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    name: String,
    /// Another service knows it; it has no effect here for this reason.
    pub reason: Option<&'static str>,
    /// The setting that was probably meant.
    pub near: Option<&'static str>,
}

impl fmt::Display for Unknown {
    /// A sentence, without the suggestion.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = quoted(&self.name);
        match self.reason {
            Some(reason) => write!(f, "the setting {name} has no effect on this box: {reason}"),
            None => write!(f, "there is no setting {name}"),
        }
    }
}

impl Unknown {
    /// The sentence with the suggestion.
    pub fn in_full(&self) -> String {
        match self.near {
            Some(near) => format!("{self}; did you mean `{near}`?"),
            None => self.to_string(),
        }
    }
}

/// The setting of this name.
pub fn find(name: &str) -> Result<&'static Setting, Unknown> {
    if let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) {
        return Ok(setting);
    }
    let reason = NOT_HERE.iter().find(|(other, _)| *other == name).map(|(_, reason)| *reason);
    let near = match reason {
        Some(_) => None,
        None => did_you_mean(name, SETTINGS.iter().map(|setting| setting.name)),
    };
    // The suggestion borrows from a table of static texts, which `did_you_mean` cannot say.
    let near =
        near.and_then(|near| SETTINGS.iter().find(|setting| setting.name == near)).map(|near| near.name);
    Err(Unknown { name: name.to_owned(), reason, near })
}

/// The reference table of `docs/reference/settings.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "| setting | value | last level | key of the box, default | meaning |\n|---|---|---|---|---|\n",
    );
    for Setting { name, kind, key, last, help, .. } in SETTINGS {
        let (value, default) = match kind {
            Kind::Flag { default } => ("`true` or `false`".to_owned(), format!(": `{default}`")),
            Kind::Amount { smallest: 1, largest, unit } => (format!("{unit}, 0 to {largest}"), String::new()),
            Kind::Amount { smallest, largest, unit } => {
                (format!("{unit}, 0 or {smallest} to {largest}"), String::new())
            }
            Kind::Count { largest, default } => (format!("0 to {largest}"), format!(": `{default}`")),
            Kind::Most { smallest: 1, largest, unit } => {
                (format!("{unit}, 0 to {largest}; the smallest of all levels counts"), String::new())
            }
            Kind::Most { smallest, largest, unit } => {
                let value =
                    format!("{unit}, 0 or {smallest} to {largest}; the smallest of all levels counts");
                (value, String::new())
            }
            Kind::Rank { largest } => (format!("-{largest} to {largest}"), String::new()),
            Kind::Source => ("a URL, or an empty text for none".to_owned(), String::new()),
            Kind::Globs => ("globs; those of all levels count".to_owned(), String::new()),
            Kind::Tags => ("words; those of all levels count".to_owned(), String::new()),
            Kind::Caches => ("URLs; those of all levels count".to_owned(), String::new()),
            Kind::CacheKeys => ("`name:base64`; those of all levels count".to_owned(), String::new()),
        };
        let key = if key.is_empty() { "none".to_owned() } else { format!("`{key}`") };
        let _ = writeln!(out, "| `{name}` | {value} | {} | {key}{default} | {help} |", last.name());
    }
    let _ = writeln!(out, "\n| refused | why |\n|---|---|");
    for (name, reason) in NOT_HERE {
        let _ = writeln!(out, "| `{name}` | {reason} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "<!-- levels: start -->\n";
    const END: &str = "<!-- levels: end -->\n";

    #[test]
    fn the_page_lists_exactly_these_settings() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/settings.md");
        let page = std::fs::read_to_string(file).expect("the page");
        let (before, rest) = page.split_once(START).expect("a start mark");
        let (listed, after) = rest.split_once(END).expect("an end mark");
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(file, format!("{before}{START}{}{END}{after}", markdown())).expect("written");
            return;
        }
        assert_eq!(listed, markdown(), "run this test again with WRITE_DOCS=1 to write the table");
    }

    #[test]
    fn each_setting_is_in_the_table_where_its_id_says_and_has_one_meaning() {
        for (place, setting) in SETTINGS.iter().enumerate() {
            assert_eq!(setting.id as usize, place, "{}", setting.name);
            assert!(NOT_HERE.iter().all(|(name, _)| *name != setting.name), "{}", setting.name);
        }
        assert!(SETTINGS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(NOT_HERE.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn an_unknown_name_is_refused_with_what_was_probably_meant_or_why_it_has_no_effect() {
        assert_eq!(find("timeout").expect("a setting").id, Id::Timeout);
        for (name, said) in [
            ("keep-goin", "there is no setting `keep-goin`; did you mean `keep-going`?"),
            ("colour", "there is no setting `colour`"),
            (
                "max-cpu-hours-per-month",
                "the setting `max-cpu-hours-per-month` has no effect on this box: it is a limit, and not a setting",
            ),
        ] {
            assert_eq!(find(name).expect_err(name).in_full(), said);
        }
    }
}
