//! The envelope of a build: the properties of its sandbox that the box decides and that its builder can see.
//!
//! A builder sees how many processors and how much memory it has, and can make its result depend on that. So the whole
//! envelope is in the build key, and all builds whose results are for everybody have the same one: the box's. A client
//! chooses no part of it. A member whose limits in the roster are lower cannot have all of it, and a member can ask for
//! another one (`min-cpu`, `max-cpu`, `default-cpu`, `min-mem`, `max-mem`, `default-mem-per-cpu`). Such a build has the key
//! of another envelope, and its result stays that member's claim. The same holds for a build that lists directories in a
//! random order (`inject-fs-randomness`), which shows whether a result depends on that order.
//!
//! A build that runs out of memory is started again in a larger envelope. The memory of the next one follows from that of
//! the last and from the box's limit alone: so after the box's envelope each one on this ladder is the box's, too. It
//! takes a build that ran out of memory to get there: nobody can choose to begin higher, and still share the result.
//! No build is larger than all builds of one member together may be. Not here: limits that only end a build (time, silence, log, size of outputs), see `schedule::shared::limits`.

use std::sync::Arc;

use members::settings::Effective;
use members::{Effective as Limit, Group, MemberLimits, SetBy};
use serde::{Deserialize, Serialize};
use settings::Config;

/// The size of the sandbox of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Processors; also the value of `NIX_BUILD_CORES`.
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Limit on processes and threads; a builder can ask the kernel for it (`ulimit -u`).
    pub processes: u32,
    /// Whether directories are listed in a random order.
    pub random_order: bool,
    /// Whether this is the box's own envelope, not one made smaller for a member.
    pub(super) of_box: bool,
}

impl Envelope {
    /// The box's envelope: that of every build whose result may become Verified.
    #[must_use]
    pub fn of_box(config: &Config) -> Self {
        Self {
            vcpus: config.sandbox.vcpus.min(config.limits.max_vcpus).max(1),
            memory_mib: config.sandbox.memory_mib.min(config.limits.max_memory_mib),
            processes: config.limits.max_processes,
            random_order: false,
            of_box: true,
        }
    }

    /// The envelope of a build that may have `most`, as the settings ask for it. `Err` is a clause that says which two values
    /// exclude each other.
    pub fn of_build(config: &Config, most: &Most, settings: &Effective) -> Result<Self, String> {
        if let Some(conflict) = &settings.conflict {
            return Err(conflict.clone());
        }
        let whole = Self::of_box(config);
        let least = |setting: &str, least: Option<u64>, most: u32, set_by: &SetBy| match least {
            Some(least) if least > u64::from(most) => {
                Err(format!("`{setting}` is {least}, and a build may have {most} at most ({set_by})"))
            }
            least => Ok(narrow(least.unwrap_or(0))),
        };
        let Most { vcpus: most_vcpus, memory_mib: most_memory } = most;
        let min_cpu = least("min-cpu", settings.min_cpu, most_vcpus.value.into(), &most_vcpus.set_by)?;
        let min_mem = least("min-mem", settings.min_mem, most_memory.value, &most_memory.set_by)?;
        let cpus = settings.default_cpu.map_or(whole.vcpus.into(), narrow).max(min_cpu);
        let vcpus = u8::try_from(cpus).unwrap_or(u8::MAX).min(most_vcpus.value).max(1);
        let by_cpu = |per_cpu: u64| narrow(per_cpu.saturating_mul(vcpus.into()));
        let memory = settings.default_mem_per_cpu.map_or(whole.memory_mib, by_cpu);
        let memory_mib = memory.max(min_mem).min(most_memory.value);
        let random_order = settings.inject_fs_randomness;
        let of_box = vcpus == whole.vcpus && memory_mib == whole.memory_mib && !random_order;
        Ok(Self { vcpus, memory_mib, random_order, of_box, ..whole })
    }

    /// The envelope in which a build is started again that ran out of memory in this one: twice the memory, if `most`
    /// allows more. `None` if it does not.
    #[must_use]
    pub fn larger(self, config: &Config, most: &Most) -> Option<Self> {
        let doubled = self.memory_mib.saturating_mul(2);
        let memory_mib = doubled.min(most.memory_mib.value);
        // Less than the next one on the box's ladder is this member's alone.
        let of_box = self.of_box && memory_mib == doubled.min(Most::of_one_member(config).memory_mib.value);
        (memory_mib > self.memory_mib).then_some(Self { memory_mib, of_box, ..self })
    }

    /// Whether the result of a build in this envelope may become Verified.
    #[must_use]
    pub fn is_of_box(&self) -> bool {
        self.of_box
    }

    /// Whether a result of the box's own envelope is an answer to who asks for a build in this one. It is, where less was
    /// asked for; it is not, where the build was to show what another order of directories does.
    #[must_use]
    pub fn is_served_by_box(&self) -> bool {
        !self.random_order
    }

    /// `NIX_BUILD_CORES`.
    #[must_use]
    pub fn cores(&self) -> u32 {
        self.vcpus.into()
    }
}

/// The most that a build of a member may have, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Most {
    pub vcpus: Limit<u8>,
    pub memory_mib: Limit<u32>,
}

impl Most {
    /// The least of the box's limits, of those of the member and of each of the member's groups, and of the settings.
    #[must_use]
    pub fn of(config: &Config, own: &MemberLimits, groups: &[Arc<Group>], settings: &Effective) -> Self {
        let of_box = Self::of_one_member(config);
        let cpus = settings.max_cpu.map(|most| u8::try_from(most).unwrap_or(u8::MAX));
        let vcpus =
            of_box.vcpus.and(cpus, SetBy::Client("max-cpu")).and(own.max_cpus, SetBy::Member("max-cpus"));
        let memory = of_box
            .memory_mib
            .and(settings.max_mem.map(narrow), SetBy::Client("max-mem"))
            .and(own.max_memory_mib, SetBy::Member("max-memory-mib"));
        let by = |group: &Group, limit| SetBy::Group { limit, group: group.name.clone() };
        let vcpus =
            groups.iter().fold(vcpus, |most, group| most.and(group.limits.max_cpus, by(group, "max-cpus")));
        let memory_mib = groups
            .iter()
            .fold(memory, |most, group| most.and(group.limits.max_memory_mib, by(group, "max-memory-mib")));
        Self { vcpus: Limit { value: vcpus.value.max(1), ..vcpus }, memory_mib }
    }

    /// The box's limits of one build, and of what one member's builds have together: the same for all members.
    #[must_use]
    pub fn of_one_member(config: &Config) -> Self {
        let (slot, limits) = (Envelope::of_box(config), &config.limits);
        let slots = limits.max_jobs_per_member as u64;
        let together = "limits.max-jobs-per-member";
        let narrow_cpus = |cpus: u64| u8::try_from(cpus).unwrap_or(u8::MAX);
        let cpus = narrow_cpus(slots.saturating_mul(slot.vcpus.into()));
        let memory = narrow(slots.saturating_mul(slot.memory_mib.into()));
        // Of two equal ones the limit of one build is named.
        let vcpus = Limit::of_box(together, cpus).and(Some(limits.max_vcpus), SetBy::Box("limits.max-cpus"));
        let memory_mib = Limit::of_box(together, memory)
            .and(Some(limits.max_memory_mib), SetBy::Box("limits.max-memory-mib"));
        Self { vcpus: Limit { value: vcpus.value.max(1), ..vcpus }, memory_mib }
    }

    /// Whose value it is that a build in `envelope`, which is one for these settings, is not started again with more memory.
    #[must_use]
    pub fn memory_set_by(&self, config: &Config, envelope: &Envelope, settings: &Effective) -> SetBy {
        let (has, of_box) = (envelope.memory_mib, Self::of_one_member(config).memory_mib);
        if has >= of_box.value {
            // Whoever else has the same limit: a higher one of theirs would change nothing.
            return match of_box.set_by {
                SetBy::Box("limits.max-memory-mib") if of_box.value == config.sandbox.memory_mib => {
                    SetBy::Box("sandbox.memory-mib")
                }
                set_by => set_by,
            };
        }
        if has >= self.memory_mib.value {
            return self.memory_mib.set_by.clone();
        }
        let is_least = settings.min_mem.is_some_and(|least| narrow(least) >= has);
        SetBy::Client(match settings.max_build_restarts {
            0 if is_least => "min-mem",
            0 if settings.default_mem_per_cpu.is_some() => "default-mem-per-cpu",
            // The next one would have been larger.
            _ => "max-build-restarts",
        })
    }
}

fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "envelope_test.rs"]
mod envelope_test;
