//! Which value a setting has, by which level, and why others do not count. A pure function of the layers.
//!
//! Levels come in their order. A level counts unless an earlier one has locked it (`allow-override`), or the two levels
//! of variables are switched off (`settings-from-ssh-env`, `settings-from-drv-env`). Of the levels that count, the last
//! one decides about a flag or an amount, the smallest value about a limit, and lists are put together. Groups are one
//! level: where two of a member's groups differ, `false` or the smaller number counts.

use super::layer::Layer;
use super::table::{Id, Kind, Level, SETTINGS, Setting};
use super::value::Value;

/// What all levels say for one session. The levels are in order; several entries of one level are its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers {
    all: Vec<Said>,
    /// Whether the holder of a ticket has the session.
    of_holder: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    level: Level,
    /// The name of a group; empty for others.
    by: String,
    layer: Layer,
}

/// What became of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the value of the setting, or a part of it.
    Counts,
    /// A later level says something else; or another group of the same level.
    Overridden(Level),
    /// Another level has a smaller value.
    NotSmallest(Level),
    /// This level has `allow-override = false`.
    Locked(Level),
    /// This setting is `false`.
    Off(&'static str),
    /// The holder of a ticket has no such setting.
    OfHolder,
}

/// What one level says about one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    pub level: Level,
    /// The name of a group; empty for others.
    pub by: String,
    pub value: Value,
    pub verdict: Verdict,
}

/// One setting with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub setting: &'static Setting,
    pub value: Value,
    /// The level that decided.
    pub level: Level,
    /// All that was said, in the order of the levels.
    pub votes: Vec<Vote>,
}

/// The value of every setting, in the order of [`SETTINGS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved(Vec<Settled>);

/// The values alone, for those who act by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub allow_builds: bool,
    pub allow_home: bool,
    /// Where the member's own files come from.
    pub dotfiles: Option<String>,
    /// Whether no level has locked those after it.
    pub allow_override: bool,
    pub allow_shell: bool,
    /// Seconds; `None` means that no level sets one.
    pub home_ttl: Option<u64>,
    pub inject_fs_randomness: bool,
    pub keep_builds_running: bool,
    pub keep_going: bool,
    pub reuse_build_failures: bool,
    /// The level that says so; `None`: time-outs are not reused.
    pub reuse_build_timeouts: Option<Level>,
    pub settings_from_ssh_env: bool,
    pub settings_from_drv_env: bool,
    /// Seconds; `None` means that no level sets one.
    pub timeout: Option<u64>,
    pub max_silent_time: Option<u64>,
    /// Processors and MiB of a build; the box's envelope is what it is without them.
    pub min_cpu: Option<u64>,
    pub max_cpu: Option<u64>,
    pub default_cpu: Option<u64>,
    pub min_mem: Option<u64>,
    pub max_mem: Option<u64>,
    pub default_mem_per_cpu: Option<u64>,
    /// Values that no build can have together, as a sentence.
    pub conflict: Option<String>,
    pub max_build_restarts: u64,
    /// Above or below zero, or zero.
    pub priority: i64,
    pub tags: Vec<String>,
    pub always_substitute: Vec<String>,
    pub never_substitute: Vec<String>,
    /// The member's own, besides those of the box.
    pub substituters: Vec<String>,
    pub trusted_public_keys: Vec<String>,
}

impl Layers {
    /// Adds a level. Levels are added in their order, and the groups of a member one by one.
    #[must_use]
    pub fn with(mut self, level: Level, by: &str, layer: &Layer) -> Layers {
        debug_assert!(self.all.last().is_none_or(|last| last.level <= level));
        if !layer.is_empty() {
            self.all.push(Said { level, by: by.to_owned(), layer: layer.clone() });
        }
        self
    }

    /// The layers of a session that the holder of a ticket has, or a member. Holders have no caches of their own: what comes
    /// from these is no upload, and needs no use of the ticket.
    #[must_use]
    pub fn of_holder(self, of_holder: bool) -> Layers {
        Layers { of_holder, ..self }
    }

    /// The values for the session.
    pub fn resolve(&self) -> Resolved {
        let locked_by = |before: Level| {
            let locks = |said: &&Said| said.layer.get(Id::AllowOverride) == Some(&Value::Flag(false));
            self.all.iter().filter(locks).map(|said| said.level).find(|level| *level < before)
        };
        // First what decides about later levels, by the levels before these.
        let from_ssh =
            self.flag(Id::SettingsFromSshEnv, &|level| level < Level::Ssh && locked_by(level).is_none());
        let from_drv = self.flag(Id::SettingsFromDrvEnv, &|level| {
            level < Level::Derivation && locked_by(level).is_none() && (level != Level::Ssh || from_ssh)
        });
        let verdict = |level: Level| match (level, locked_by(level)) {
            (_, Some(by)) => Verdict::Locked(by),
            (Level::Ssh, None) if !from_ssh => Verdict::Off("settings-from-ssh-env"),
            (Level::Derivation, None) if !from_drv => Verdict::Off("settings-from-drv-env"),
            _ => Verdict::Counts,
        };
        Resolved(SETTINGS.iter().map(|setting| self.settle(setting, &verdict)).collect())
    }

    /// The value of a flag by the levels that count.
    fn flag(&self, id: Id, counts: &dyn Fn(Level) -> bool) -> bool {
        let verdict = |level| if counts(level) { Verdict::Counts } else { Verdict::Off("") };
        self.settle(&SETTINGS[id as usize], &verdict).value == Value::Flag(true)
    }

    fn settle(&self, setting: &'static Setting, verdict: &dyn Fn(Level) -> Verdict) -> Settled {
        let not_for_holders = self.of_holder && matches!(setting.kind, Kind::Caches | Kind::CacheKeys);
        let votes = self.all.iter().filter_map(|said| {
            let value = said.layer.get(setting.id)?.clone();
            let verdict = if not_for_holders { Verdict::OfHolder } else { verdict(said.level) };
            Some(Vote { level: said.level, by: said.by.clone(), value, verdict })
        });
        let mut votes: Vec<Vote> = votes.collect();
        let counting = votes.iter().filter(|vote| vote.verdict == Verdict::Counts);
        let (value, level) = match setting.kind {
            Kind::Flag { default } => last(counting).unwrap_or((Value::Flag(default), Level::System)),
            Kind::Most { .. } => smallest(counting),
            Kind::Count { default, .. } => last(counting).unwrap_or((Value::Number(default), Level::System)),
            Kind::Amount { .. } | Kind::Rank { .. } => {
                last(counting).unwrap_or((Value::Number(0), Level::System))
            }
            Kind::Source => last(counting).unwrap_or((Value::Text(String::new()), Level::System)),
            Kind::Globs | Kind::Tags | Kind::Caches | Kind::CacheKeys => together(counting),
        };
        for vote in votes.iter_mut().filter(|vote| vote.verdict == Verdict::Counts) {
            vote.verdict = match setting.kind {
                Kind::Flag { .. }
                | Kind::Amount { .. }
                | Kind::Count { .. }
                | Kind::Rank { .. }
                | Kind::Source
                    if vote.level != level || vote.value != value =>
                {
                    Verdict::Overridden(level)
                }
                Kind::Most { .. } if vote.value != value => Verdict::NotSmallest(level),
                _ => Verdict::Counts,
            };
        }
        Settled { setting, value, level, votes }
    }
}

/// The value of the last level; `false`, or the smaller number or text, if two groups differ.
fn last<'a>(votes: impl Iterator<Item = &'a Vote>) -> Option<(Value, Level)> {
    votes.fold(None, |before: Option<(Value, Level)>, vote| match before {
        Some((Value::Flag(false), level)) if level == vote.level => before,
        Some((Value::Number(number), level))
            if level == vote.level && Value::Number(number) <= vote.value =>
        {
            before
        }
        Some((ref text @ Value::Text(_), level)) if level == vote.level && *text <= vote.value => before,
        _ => Some((vote.value.clone(), vote.level)),
    })
}

/// The smallest number but zero, by the first level that has it.
fn smallest<'a>(votes: impl Iterator<Item = &'a Vote>) -> (Value, Level) {
    let numbers = votes.filter_map(|vote| match vote.value {
        Value::Number(number @ 1..) => Some((number, vote.level)),
        _ => None,
    });
    let (number, level) = numbers.min().unwrap_or((0, Level::System));
    (Value::Number(number), level)
}

/// All words once, in order; the level is the last one that has any.
fn together<'a>(votes: impl Iterator<Item = &'a Vote>) -> (Value, Level) {
    let (mut all, mut by) = (Vec::new(), Level::System);
    for vote in votes {
        if let Value::Words(words) = &vote.value
            && !words.is_empty()
        {
            by = vote.level;
            all.extend(words.iter().cloned());
        }
    }
    all.sort();
    all.dedup();
    (Value::Words(all), by)
}

impl Resolved {
    pub fn iter(&self) -> impl Iterator<Item = &Settled> {
        self.0.iter()
    }

    pub fn get(&self, id: Id) -> &Settled {
        &self.0[id as usize]
    }

    /// The votes of this level that do not count although they are on a level that may say them: locked, switched off, or not for
    /// holders of tickets.
    pub fn in_vain(&self, level: Level) -> impl Iterator<Item = (&'static Setting, &Vote)> {
        let votes =
            self.0.iter().flat_map(|settled| settled.votes.iter().map(|vote| (settled.setting, vote)));
        votes.filter(move |(_, vote)| {
            vote.level == level
                && matches!(vote.verdict, Verdict::Locked(_) | Verdict::Off(_) | Verdict::OfHolder)
        })
    }

    /// A least value above its largest one, each with the level that says it, as a sentence.
    pub fn conflict(&self) -> Option<String> {
        let pairs = [(Id::MinCpu, Id::MaxCpu), (Id::MinMem, Id::MaxMem)];
        let above = |(min, max): &(Id, Id)| match (&self.get(*min).value, &self.get(*max).value) {
            (Value::Number(min), Value::Number(max)) => *max > 0 && min > max,
            _ => false,
        };
        let (min, max) = pairs.into_iter().find(above)?;
        let told = |id: Id| {
            let Settled { setting, value, level, .. } = self.get(id);
            let key = match level {
                Level::System => format!(" (`{}`)", setting.key),
                _ => String::new(),
            };
            format!("`{}` is {value} by {}{key}", setting.name, level.words())
        };
        Some(format!("{}, and {}", told(min), told(max)))
    }

    pub fn effective(&self) -> Effective {
        let flag = |id: Id| self.get(id).value == Value::Flag(true);
        let number = |id: Id| match self.get(id).value {
            Value::Number(number @ 1..) => u64::try_from(number).ok(),
            _ => None,
        };
        let words = |id: Id| match &self.get(id).value {
            Value::Words(words) => words.clone(),
            _ => Vec::new(),
        };
        Effective {
            allow_builds: flag(Id::AllowBuilds),
            allow_home: flag(Id::AllowHome),
            dotfiles: match &self.get(Id::Dotfiles).value {
                Value::Text(text) if !text.is_empty() => Some(text.clone()),
                _ => None,
            },
            allow_override: flag(Id::AllowOverride),
            allow_shell: flag(Id::AllowShell),
            home_ttl: number(Id::HomeTtl),
            inject_fs_randomness: flag(Id::InjectFsRandomness),
            keep_builds_running: flag(Id::KeepBuildsRunning),
            keep_going: flag(Id::KeepGoing),
            reuse_build_failures: flag(Id::ReuseBuildFailures),
            reuse_build_timeouts: flag(Id::ReuseBuildTimeouts)
                .then(|| self.get(Id::ReuseBuildTimeouts).level),
            settings_from_ssh_env: flag(Id::SettingsFromSshEnv),
            settings_from_drv_env: flag(Id::SettingsFromDrvEnv),
            timeout: number(Id::Timeout),
            max_silent_time: number(Id::MaxSilentTime),
            min_cpu: number(Id::MinCpu),
            max_cpu: number(Id::MaxCpu),
            default_cpu: number(Id::DefaultCpu),
            min_mem: number(Id::MinMem),
            max_mem: number(Id::MaxMem),
            default_mem_per_cpu: number(Id::DefaultMemPerCpu),
            conflict: self.conflict(),
            max_build_restarts: number(Id::MaxBuildRestarts).unwrap_or(0),
            priority: match self.get(Id::Priority).value {
                Value::Number(number) => number,
                _ => 0,
            },
            tags: words(Id::Tags),
            always_substitute: words(Id::AlwaysSubstitute),
            never_substitute: words(Id::NeverSubstitute),
            substituters: words(Id::Substituters),
            trusted_public_keys: words(Id::TrustedPublicKeys),
        }
    }
}

impl Vote {
    /// The end of a sentence: why the value does not count; `None` if it does.
    pub fn why_not(&self) -> Option<String> {
        match self.verdict {
            Verdict::Counts => None,
            Verdict::Overridden(level) if level == self.level => {
                Some("another group has a smaller value".into())
            }
            Verdict::Overridden(level) => Some(format!("overridden by {}", level.words())),
            Verdict::NotSmallest(_) if self.value == Value::Number(0) => Some("0 sets none".into()),
            Verdict::NotSmallest(level) => Some(format!("the smaller value of {} counts", level.words())),
            Verdict::Locked(level) => {
                Some(format!("locked: `allow-override` is `false` in {}", level.words()))
            }
            Verdict::Off(setting) => Some(format!("`{setting}` is `false`")),
            Verdict::OfHolder => Some("who has a ticket, has no caches of their own".into()),
        }
    }
}

#[cfg(test)]
#[path = "resolve_test.rs"]
mod resolve_test;
