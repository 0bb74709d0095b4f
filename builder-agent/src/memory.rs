//! Compares what the store, builds, homes and sessions may take with what the machine has, at the start.
//!
//! Too much is a warning and not an error: all of it at once is rare, and a box that does not start cannot be asked why.

use settings::{Config, machine_memory};
use store::{Space, Store};

/// Logs what does not fit.
pub fn compare(config: &Config, homes: bool, store: &Store) {
    match store.space() {
        Ok(space) => {
            let needs = Needs::of(config, homes, store.is_in_memory().then_some(space.total));
            let outputs = config.limits.max_output_bytes;
            for warning in needs.warning(machine_memory()).into_iter().chain(small(&space, outputs)) {
                tracing::warn!("{warning}");
            }
        }
        Err(error) => tracing::warn!(%error, "cannot compare the store with the machine"),
    }
}

/// Memory that may be in use at the same time, in bytes.
struct Needs {
    /// 0 for a store on a disk.
    store: u64,
    jobs: u64,
    /// Of one build.
    build: u64,
    /// Of the largest one, which may be more than all slots.
    largest: u64,
    sessions: u64,
    /// Of all homes; 0 if the box has none.
    homes: u64,
}

impl Needs {
    fn of(config: &Config, homes: bool, store_in_memory: Option<u64>) -> Self {
        let build = config.sandbox.memory_mib.min(config.limits.max_memory_mib);
        Self {
            store: store_in_memory.unwrap_or_default(),
            jobs: config.limits.max_jobs as u64,
            build: u64::from(build) << 20,
            largest: u64::from(config.limits.max_memory_mib) << 20,
            sessions: config.limits.max_session_bytes,
            homes: match homes {
                true => (u64::from(config.homes.memory_mib) << 20).saturating_mul(config.homes.max as u64),
                false => 0,
            },
        }
    }

    /// The warning, if the machine has less.
    fn warning(&self, machine: u64) -> Option<String> {
        let Self { store, jobs, build, largest, sessions, homes } = *self;
        let builds = jobs.saturating_mul(build).max(largest);
        let all = store.saturating_add(builds).saturating_add(sessions).saturating_add(homes);
        if all <= machine {
            return None;
        }
        let mib = |bytes: u64| bytes >> 20;
        let in_memory = match store {
            0 => String::new(),
            store => format!("the store {} MiB (it is in memory), ", mib(store)),
        };
        let of_homes = match homes {
            0 => String::new(),
            homes => format!(", homes {} MiB (`homes.max`, `homes.memory-mib`)", mib(homes)),
        };
        Some(format!(
            "this machine has {} MiB of memory, and at most {} MiB may be in use: {in_memory}{jobs} builds with {} MiB each, \
             or one with {} (`limits.max-jobs`, `sandbox.memory-mib`, `limits.max-memory-mib`), sessions {} MiB \
             (`limits.max-session-memory-mib`){of_homes}; lower one of them, or make the store smaller",
            mib(machine),
            mib(all),
            mib(build),
            mib(largest),
            mib(sessions),
        ))
    }
}

/// The warning, if the outputs of one build can fill the store.
fn small(space: &Space, outputs: u64) -> Option<String> {
    (outputs > space.total).then(|| {
        format!(
            "the store's file system has {} MiB, and the outputs of one build may have {} (`limits.max-output-mib`)",
            space.total >> 20,
            outputs >> 20
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_in_use_at_once_is_compared_with_the_machine() {
        let needs =
            Needs { store: 6 << 30, jobs: 4, build: 1 << 30, largest: 3 << 30, sessions: 2 << 30, homes: 0 };
        assert_eq!(needs.warning(12 << 30), None);
        let warning = needs.warning(10 << 30).expect("too much");
        for part in [
            "10240 MiB of memory",
            "12288 MiB may",
            "the store 6144 MiB",
            "4 builds with 1024 MiB each, or one with 3072",
            "sessions 2048 MiB",
        ] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        let large = Needs { largest: 5 << 30, ..needs }.warning(12 << 30).expect("too much");
        assert!(large.contains("13312 MiB may") && large.contains("or one with 5120"), "{large}");
        let with_homes = Needs { homes: 3 << 30, ..needs }.warning(12 << 30).expect("too much");
        assert!(with_homes.contains("homes 3072 MiB (`homes.max`, `homes.memory-mib`)"), "{with_homes}");
        let on_disk = Needs { store: 0, ..needs }.warning(1 << 30).expect("too much");
        assert!(!on_disk.contains("the store 0"), "{on_disk}");
    }

    #[test]
    fn a_store_that_one_build_fills_is_named() {
        let space = Space { total: 48 << 20, free: 48 << 20, files: 0, free_files: 0 };
        assert!(
            small(&space, 49 << 20)
                .is_some_and(|warning| warning.contains("48 MiB") && warning.contains("have 49"))
        );
        assert_eq!(small(&space, 48 << 20), None);
    }
}
