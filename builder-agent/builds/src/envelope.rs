//! The envelope of a build: the properties of its sandbox that the box decides and that its builder can see.
//!
//! A builder sees how many processors and how much memory it has, and can make its result depend on that. So the whole
//! envelope is in the build key, and all builds whose results are for everybody have the same one: the box's. A client
//! chooses no part of it. A member whose limits in the roster are lower cannot have all of it, and a member can ask for
//! less (`max-cpu`, `max-mem`). Such a build has the key of a smaller envelope, and its result stays that member's claim.
//! Not here: limits that only end a build (time, silence, log, size of outputs), see `schedule::shared::limits`.

use members::MemberLimits;
use settings::Config;

/// The size of the sandbox of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// Processors; also the value of `NIX_BUILD_CORES`.
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Limit on processes and threads; a builder can ask the kernel for it (`ulimit -u`).
    pub processes: u32,
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
            of_box: true,
        }
    }

    /// The box's envelope, reduced to these limits of one build of a member.
    #[must_use]
    pub fn for_member(config: &Config, own: &MemberLimits) -> Self {
        let whole = Self::of_box(config);
        let vcpus = whole.vcpus.min(own.max_cpus.unwrap_or(u8::MAX)).max(1);
        let memory_mib = whole.memory_mib.min(own.max_memory_mib.unwrap_or(u32::MAX));
        let of_box = vcpus == whole.vcpus && memory_mib == whole.memory_mib;
        Self { vcpus, memory_mib, of_box, ..whole }
    }

    /// This envelope, with at most so many processors and MiB. Less is not the box's envelope any more.
    #[must_use]
    pub fn at_most(self, cpus: Option<u64>, memory_mib: Option<u64>) -> Self {
        let vcpus =
            cpus.map_or(self.vcpus, |most| u8::try_from(most).unwrap_or(u8::MAX).clamp(1, self.vcpus));
        let most_mib = memory_mib.map_or(u32::MAX, |most| u32::try_from(most).unwrap_or(u32::MAX));
        let memory_mib = self.memory_mib.min(most_mib);
        let same = vcpus == self.vcpus && memory_mib == self.memory_mib;
        Self { vcpus, memory_mib, of_box: self.of_box && same, ..self }
    }

    /// Whether the result of a build in this envelope may become Verified.
    #[must_use]
    pub fn is_of_box(&self) -> bool {
        self.of_box
    }

    /// `NIX_BUILD_CORES`.
    #[must_use]
    pub fn cores(&self) -> u32 {
        self.vcpus.into()
    }
}
