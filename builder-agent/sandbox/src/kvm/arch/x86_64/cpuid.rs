//! The processor that the guest sees: the features that KVM supports on this host, without those that no builder needs.
//!
//! Two groups of features are hidden ([`HIDDEN`]): those that would let a hostile guest reach a large part of the host's
//! kernel (nested virtualisation, enclaves), and those that measure or trace the processor, parts of which a guest
//! shares with others (performance counters, sampling, branch records, trace, cache monitoring). CPUID only advises:
//! counters are switched off in KVM as well, where it can (`x86_64::prepare_vm`). Topology is flat: one package, one
//! thread per core.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const KVM_ASYNC_PF: u32 = 1 << 4;
const KVM_ASYNC_PF_INT: u32 = 1 << 14;

#[derive(Debug, Clone, Copy)]
enum Register {
    Ebx,
    Ecx,
    Edx,
}
use Register::{Ebx, Ecx, Edx};

/// Feature bits that are hidden from every guest: leaf, subleaf, register, bits, and their names.
/// Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
#[rustfmt::skip]
const HIDDEN: &[(u32, u32, Register, u32, &str)] = &[
    (0x1, 0, Ecx, 1 << 2 | 1 << 4, "64-bit and qualified debug store: DTES64, DS-CPL"),
    (0x1, 0, Ecx, 1 << 3, "MONITOR, which a guest cannot use"),
    (0x1, 0, Ecx, 1 << 5, "VMX"),
    (0x1, 0, Ecx, 1 << 6, "SMX"),
    (0x1, 0, Ecx, 1 << 15, "PDCM: what the counters can do"),
    (0x1, 0, Edx, 1 << 21, "debug store: records of branches and events"),
    (0x7, 0, Ebx, 1 << 2, "SGX"),
    (0x7, 0, Ebx, 1 << 4 | 1 << 11, "transactional memory, HLE and RTM: faults without a fault, the tool of TAA and others"),
    (0x7, 0, Ebx, 1 << 12 | 1 << 15, "monitoring and allocation of shared caches, RDT-M and RDT-A"),
    (0x7, 0, Ebx, 1 << 25, "processor trace"),
    (0x7, 0, Ecx, 1 << 30, "SGX launch control"),
    (0x7, 0, Edx, 1 << 18, "PCONFIG: memory encryption keys"),
    (0x7, 0, Edx, 1 << 19, "architectural branch records, LBR"),
    (0x8000_0001, 0, Ecx, 1 << 2, "SVM"),
    (0x8000_0001, 0, Ecx, 1 << 10, "instruction based sampling, IBS"),
    (0x8000_0001, 0, Ecx, 1 << 12, "SKINIT"),
    (0x8000_0001, 0, Ecx, 1 << 15, "lightweight profiling, LWP"),
    (0x8000_0001, 0, Ecx, 1 << 23, "performance counters of a core, PerfCtrExtCore"),
    (0x8000_0001, 0, Ecx, 1 << 24, "… of the northbridge, PerfCtrExtNB"),
    (0x8000_0001, 0, Ecx, 1 << 27, "… of time, PerfTsc"),
    (0x8000_0001, 0, Ecx, 1 << 28, "… of the last level cache, PerfCtrExtLLC"),
];

/// Leaves that describe only such features. They read as zero.
#[rustfmt::skip]
const EMPTY: &[(u32, &str)] = &[
    (0xa, "Intel's performance counters"),
    (0xf, "cache monitoring"),
    (0x10, "cache allocation"),
    (0x12, "SGX"),
    (0x14, "processor trace"),
    (0x1b, "PCONFIG"),
    (0x1c, "branch records"),
    (0x23, "Intel's performance counters, continued"),
    (0x8000_000a, "SVM"),
    (0x8000_001b, "IBS"),
    (0x8000_001c, "LWP"),
    (0x8000_001f, "encrypted memory, SEV"),
    (0x8000_0020, "quality of service"),
    (0x8000_0022, "AMD's performance counters, version 2"),
];

/// The features that the host supports. The same for every vCPU; [`for_vcpu`] makes it one vCPU's own.
pub fn supported(kvm: &Kvm) -> Result<(CpuId, bool), kvm_ioctls::Error> {
    Ok((kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?, kvm.check_extension(Cap::TscDeadlineTimer)))
}

pub fn for_vcpu(supported: &CpuId, tsc_deadline: bool, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let apic = u32::from(id);
    let count = u32::from(vcpus);
    // Number of APIC id bits that distinguish the cores of the package.
    let core_bits = u8::BITS - (vcpus - 1).leading_zeros();
    for entry in cpuid.as_mut_slice() {
        hide(entry);
        match entry.function {
            0x1 => {
                entry.ecx &= !TSC_DEADLINE;
                entry.ecx |= HYPERVISOR;
                if tsc_deadline {
                    // With it Linux needs no timer calibration, for which this machine has no reference anyway.
                    entry.ecx |= TSC_DEADLINE;
                }
                entry.ebx = (entry.ebx & 0x0000_ffff) | count << 16 | apic << 24;
                entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            0x4 => {
                // One thread per cache and as many cores as vCPUs in the package.
                let levels_shared_by_all = (entry.eax >> 5) & 7 >= 3;
                let sharers = if levels_shared_by_all { count - 1 } else { 0 };
                entry.eax =
                    (entry.eax & 0x0000_3fff) | sharers.min(0xfff) << 14 | (count - 1).min(0x3f) << 26;
            }
            0xb | 0x1f => {
                entry.edx = apic;
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (core_bits, count, 2 << 8 | 1),
                    index => (0, 0, index & 0xff),
                };
            }
            // Without it the host would notify the guest when its memory is paged in; a builder's guest just
            // waits.
            0x4000_0001 => entry.eax &= !(KVM_ASYNC_PF | KVM_ASYNC_PF_INT),
            0x8000_0008 => entry.ecx = (entry.ecx & 0xffff_0000) | core_bits << 12 | (count - 1),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic, apic & 0xff, 0),
            _ => {}
        }
    }
    cpuid
}

fn hide(entry: &mut kvm_cpuid_entry2) {
    if EMPTY.iter().any(|(leaf, _)| *leaf == entry.function) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
    for (leaf, index, register, bits, _) in HIDDEN {
        if (*leaf, *index) == (entry.function, entry.index) {
            match register {
                Ebx => entry.ebx &= !bits,
                Ecx => entry.ecx &= !bits,
                Edx => entry.edx &= !bits,
            }
        }
    }
}

/// Width of a guest-physical address.
pub fn physical_bits(cpuid: &CpuId) -> u32 {
    cpuid.as_slice().iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let described = [(1, 0), (4, 0), (7, 0), (7, 1), (0xb, 0), (0xb, 1), (0x8000_0001, 0)];
        let empty = EMPTY.iter().flat_map(|(leaf, _)| [(*leaf, 0), (*leaf, 1)]);
        let entries: Vec<_> =
            described.into_iter().chain(empty).map(|(leaf, index)| entry(leaf, index)).collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    /// Checks by name and not by the table above, so that a mistake in the table is found.
    #[test]
    fn nested_virtualisation_and_enclaves_are_hidden() {
        let cpuid = for_vcpu(&host(), true, 0, 1);
        let (vmx, monitor, svm, sgx) = (1 << 5, 1 << 3, 1 << 2, 1 << 2);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & (vmx | monitor), 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & svm, 0);
        assert_eq!(leaf(&cpuid, 7, 0).ebx & sgx, 0);
        assert_eq!(leaf(&cpuid, 0x8000_000a, 0).edx, 0);
    }

    #[test]
    fn what_counts_samples_or_traces_is_hidden_on_processors_of_either_make() {
        let cpuid = for_vcpu(&host(), true, 0, 1);
        // AMD: the bits by which Linux finds counters (X86_FEATURE_PERFCTR_*, IBS, LWP), all in one register.
        for bit in [10, 15, 23, 24, 27, 28] {
            assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & 1 << bit, 0, "bit {bit}");
        }
        // Intel: PDCM and debug store; trace and cache monitoring; LBR.
        assert_eq!(leaf(&cpuid, 1, 0).ecx & (1 << 15 | 1 << 4 | 1 << 2), 0);
        assert_eq!(leaf(&cpuid, 1, 0).edx & 1 << 21, 0);
        assert_eq!(leaf(&cpuid, 7, 0).ebx & (1 << 25 | 1 << 12 | 1 << 15), 0);
        assert_eq!(leaf(&cpuid, 7, 0).edx & 1 << 19, 0);
        for leaf_number in [0xa, 0xf, 0x10, 0x14, 0x1c, 0x23, 0x8000_001b, 0x8000_001c, 0x8000_0022] {
            for index in [0, 1] {
                let it = leaf(&cpuid, leaf_number, index);
                assert_eq!((it.eax, it.ebx, it.ecx, it.edx), (0, 0, 0, 0), "{leaf_number:#x}");
            }
        }
    }

    #[test]
    fn what_builders_use_stays() {
        let cpuid = for_vcpu(&host(), true, 0, 1);
        let (sse42, aes, avx, avx2, rdseed) = (1 << 20, 1 << 25, 1 << 28, 1 << 5, 1 << 18);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & (sse42 | aes | avx), sse42 | aes | avx);
        assert_eq!(leaf(&cpuid, 7, 0).ebx & (avx2 | rdseed), avx2 | rdseed);
        assert_eq!(leaf(&cpuid, 7, 1).eax, !0);
    }

    #[test]
    fn every_vcpu_reads_its_own_apic_id() {
        for vcpus in [1u8, 2, 3, 8, 254] {
            for id in [0, vcpus - 1] {
                let cpuid = for_vcpu(&host(), false, id, vcpus);
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 24, u32::from(id));
                assert_eq!(leaf(&cpuid, 0xb, 0).edx, u32::from(id));
                assert_eq!(leaf(&cpuid, 0xb, 1).ebx, u32::from(vcpus));
                assert!(1u32 << leaf(&cpuid, 0xb, 1).eax >= u32::from(vcpus));
            }
        }
    }
}
