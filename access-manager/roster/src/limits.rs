//! A member's own limits: their names in `users.nix` and in `roster.json`, and their range.
//!
//! The box's limits apply besides these; the smaller one wins, except where a limit `replaces` that of the
//! box. Where each is enforced: see the agent's documentation.

use serde::{Deserialize, Serialize};

/// `None` leaves the box's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct MemberLimits {
    /// Builds at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<u32>,
    /// Memory of one build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_mib: Option<u32>,
    /// Processors of one build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cpus: Option<u8>,
    /// Processor time of all builds of a calendar month (UTC), in hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cpu_hours_per_month: Option<u64>,
    /// All outputs of one build together, as NARs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_mib: Option<u64>,
    /// One uploaded NAR or file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_upload_mib: Option<u64>,
    /// Commands that run over ssh at the same time, over all connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sessions: Option<u32>,
    /// Open ssh connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Time without output of one build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_silent_seconds: Option<u64>,
    /// Wall clock of one build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_build_seconds: Option<u64>,
    /// What the member's own paths may take up in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_store_mib: Option<u64>,
}

/// One limit, as people and files name it. The largest value is what no machine reaches: a typo, not a policy.
pub struct Limit {
    /// In `users.nix`.
    pub name: &'static str,
    /// In `roster.json`.
    pub json: &'static str,
    pub smallest: i64,
    pub largest: i64,
    pub unit: &'static str,
    /// Whether a group can have it for all its members together. One that bounds one build or one upload adds up to
    /// nothing that could be shared.
    pub shared: bool,
    /// A member's own takes the place of the box's, also if it is higher. Of all others the smaller one counts.
    pub replaces: bool,
}

const fn limit(name: &'static str, json: &'static str, range: (i64, i64), unit: &'static str) -> Limit {
    Limit { name, json, smallest: range.0, largest: range.1, unit, shared: true, replaces: false }
}

/// One that adds up to nothing.
const fn single(limit: Limit) -> Limit {
    Limit { shared: false, ..limit }
}

pub const LIMITS: &[Limit] = &[
    limit("maxJobs", "max-jobs", (1, 1024), "builds"),
    limit("maxMemoryMib", "max-memory-mib", (64, 16 << 20), "MiB"),
    limit("maxCpus", "max-cpus", (1, 255), "processors"),
    Limit {
        replaces: true,
        ..limit("maxCpuHoursPerMonth", "max-cpu-hours-per-month", (1, 10_000_000), "CPU hours")
    },
    single(limit("maxOutputMib", "max-output-mib", (1, 1 << 30), "MiB")),
    single(limit("maxUploadMib", "max-upload-mib", (1, 1 << 30), "MiB")),
    limit("maxSessions", "max-sessions", (1, 1 << 20), "sessions"),
    limit("maxConnections", "max-connections", (1, 10_000), "connections"),
    single(limit("maxSilentSeconds", "max-silent-seconds", (1, 31 * 24 * 3600), "seconds")),
    single(limit("maxBuildSeconds", "max-build-seconds", (1, 31 * 24 * 3600), "seconds")),
    limit("maxStoreMib", "max-store-mib", (1, 1 << 30), "MiB"),
];

impl MemberLimits {
    /// `name` is from [`LIMITS`] and `value` in its range, so the conversions cannot cut anything off.
    pub fn set(&mut self, name: &str, value: i64) {
        match name {
            "maxJobs" => self.max_jobs = u32::try_from(value).ok(),
            "maxMemoryMib" => self.max_memory_mib = u32::try_from(value).ok(),
            "maxCpus" => self.max_cpus = u8::try_from(value).ok(),
            "maxCpuHoursPerMonth" => self.max_cpu_hours_per_month = u64::try_from(value).ok(),
            "maxOutputMib" => self.max_output_mib = u64::try_from(value).ok(),
            "maxUploadMib" => self.max_upload_mib = u64::try_from(value).ok(),
            "maxSessions" => self.max_sessions = u32::try_from(value).ok(),
            "maxConnections" => self.max_connections = u32::try_from(value).ok(),
            "maxSilentSeconds" => self.max_silent_seconds = u64::try_from(value).ok(),
            "maxBuildSeconds" => self.max_build_seconds = u64::try_from(value).ok(),
            "maxStoreMib" => self.max_store_mib = u64::try_from(value).ok(),
            _ => {}
        }
    }

    /// The limits that are set, with their values.
    pub fn values(&self) -> impl Iterator<Item = (&'static Limit, u64)> {
        let values = [
            self.max_jobs.map(u64::from),
            self.max_memory_mib.map(u64::from),
            self.max_cpus.map(u64::from),
            self.max_cpu_hours_per_month,
            self.max_output_mib,
            self.max_upload_mib,
            self.max_sessions.map(u64::from),
            self.max_connections.map(u64::from),
            self.max_silent_seconds,
            self.max_build_seconds,
            self.max_store_mib,
        ];
        LIMITS.iter().zip(values).filter_map(|(limit, value)| Some((limit, value?)))
    }

    /// These limits, and those of `others` where there is none.
    #[must_use]
    pub fn or(&self, others: &MemberLimits) -> MemberLimits {
        MemberLimits {
            max_jobs: self.max_jobs.or(others.max_jobs),
            max_memory_mib: self.max_memory_mib.or(others.max_memory_mib),
            max_cpus: self.max_cpus.or(others.max_cpus),
            max_cpu_hours_per_month: self.max_cpu_hours_per_month.or(others.max_cpu_hours_per_month),
            max_output_mib: self.max_output_mib.or(others.max_output_mib),
            max_upload_mib: self.max_upload_mib.or(others.max_upload_mib),
            max_sessions: self.max_sessions.or(others.max_sessions),
            max_connections: self.max_connections.or(others.max_connections),
            max_silent_seconds: self.max_silent_seconds.or(others.max_silent_seconds),
            max_build_seconds: self.max_build_seconds.or(others.max_build_seconds),
            max_store_mib: self.max_store_mib.or(others.max_store_mib),
        }
    }

    /// The smaller of each two; a limit that only one side has counts.
    #[must_use]
    pub fn smaller(&self, others: &MemberLimits) -> MemberLimits {
        fn min<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        MemberLimits {
            max_jobs: min(self.max_jobs, others.max_jobs),
            max_memory_mib: min(self.max_memory_mib, others.max_memory_mib),
            max_cpus: min(self.max_cpus, others.max_cpus),
            max_cpu_hours_per_month: min(self.max_cpu_hours_per_month, others.max_cpu_hours_per_month),
            max_output_mib: min(self.max_output_mib, others.max_output_mib),
            max_upload_mib: min(self.max_upload_mib, others.max_upload_mib),
            max_sessions: min(self.max_sessions, others.max_sessions),
            max_connections: min(self.max_connections, others.max_connections),
            max_silent_seconds: min(self.max_silent_seconds, others.max_silent_seconds),
            max_build_seconds: min(self.max_build_seconds, others.max_build_seconds),
            max_store_mib: min(self.max_store_mib, others.max_store_mib),
        }
    }

    /// `Err` names the limit that has a value outside of its range.
    pub fn check(&self) -> Result<(), String> {
        for (limit, value) in self.values() {
            if !(limit.smallest as u64..=limit.largest as u64).contains(&value) {
                let Limit { json, smallest, largest, unit, .. } = limit;
                return Err(format!("`{json}` is {value}, not {smallest} to {largest} {unit}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_limit_as_roster_json_does_and_in_the_same_order() {
        let mut limits = MemberLimits::default();
        for limit in LIMITS {
            limits.set(limit.name, limit.largest);
        }
        assert!(limits.check().is_ok());
        let json = serde_json::to_value(&limits).expect("numbers");
        for (limit, value) in limits.values() {
            assert_eq!(
                (json[limit.json].as_u64(), limit.largest as u64),
                (Some(value), value),
                "{}",
                limit.json
            );
        }
        assert_eq!(json.as_object().expect("an object").len(), LIMITS.len());
    }

    #[test]
    fn a_default_fills_only_what_is_missing_and_the_smaller_of_two_counts() {
        let one = MemberLimits { max_jobs: Some(8), max_cpus: Some(2), ..MemberLimits::default() };
        let other = MemberLimits { max_jobs: Some(4), max_store_mib: Some(9), ..MemberLimits::default() };
        let filled = one.or(&other);
        assert_eq!((filled.max_jobs, filled.max_cpus, filled.max_store_mib), (Some(8), Some(2), Some(9)));
        let both = one.smaller(&other);
        assert_eq!((both.max_jobs, both.max_cpus, both.max_store_mib), (Some(4), Some(2), Some(9)));
    }

    #[test]
    fn every_limit_takes_part_in_defaults_and_in_the_smaller_of_two() {
        for limit in LIMITS {
            let set = |value| {
                let mut limits = MemberLimits::default();
                limits.set(limit.name, value);
                limits
            };
            let (few, many, none) = (set(limit.smallest), set(limit.largest), MemberLimits::default());
            assert_eq!((none.or(&few), many.or(&few)), (few.clone(), many.clone()), "{}", limit.name);
            assert_eq!((many.smaller(&few), few.smaller(&none)), (few.clone(), few), "{}", limit.name);
        }
    }

    #[test]
    fn a_value_outside_of_its_range_is_named() {
        let limits = MemberLimits { max_cpus: Some(0), ..MemberLimits::default() };
        assert_eq!(limits.check().unwrap_err(), "`max-cpus` is 0, not 1 to 255 processors");
    }
}
