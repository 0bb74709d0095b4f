//! A member's own limits: their names in `users.nix` and in `roster.json`, and their range.

use serde::{Deserialize, Serialize};

/// Box-wide limits apply besides these; the smaller one wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    /// Wall clock of one build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_build_seconds: Option<u64>,
    /// What the member's own paths may take up in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_store_mib: Option<u64>,
}

/// (name in users.nix, smallest, largest, unit). The largest is what no machine reaches: a typo, not a policy.
pub const LIMITS: &[(&str, i64, i64, &str)] = &[
    ("maxJobs", 1, 1024, "builds"),
    ("maxMemoryMib", 64, 16 << 20, "MiB"),
    ("maxCpus", 1, 255, "processors"),
    ("maxBuildSeconds", 1, 31 * 24 * 3600, "seconds"),
    ("maxStoreMib", 1, 1 << 30, "MiB"),
];

impl MemberLimits {
    /// `name` and `value` were checked against [`LIMITS`], so the conversions cannot cut anything off.
    pub fn set(&mut self, name: &str, value: i64) {
        match name {
            "maxJobs" => self.max_jobs = u32::try_from(value).ok(),
            "maxMemoryMib" => self.max_memory_mib = u32::try_from(value).ok(),
            "maxCpus" => self.max_cpus = u8::try_from(value).ok(),
            "maxBuildSeconds" => self.max_build_seconds = u64::try_from(value).ok(),
            "maxStoreMib" => self.max_store_mib = u64::try_from(value).ok(),
            _ => {}
        }
    }
}
