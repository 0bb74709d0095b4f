//! Which processor the guest sees: what KVM supports on this host, less what a builder has no use for.
//!
//! Nested virtualisation, enclaves and performance counters are taken out: each is a large piece of host kernel
//! that a hostile guest could otherwise reach. Topology is flat: one package, one thread per core.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const PDCM: u32 = 1 << 15;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const SGX: u32 = 1 << 2;
const SVM: u32 = 1 << 2;
const KVM_ASYNC_PF: u32 = 1 << 4;
const KVM_ASYNC_PF_INT: u32 = 1 << 14;

/// What the host supports. The same for every vCPU; [`for_vcpu`] makes it one vCPU's own.
pub fn supported(kvm: &Kvm) -> Result<(CpuId, bool), kvm_ioctls::Error> {
    Ok((kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?, kvm.check_extension(Cap::TscDeadlineTimer)))
}

pub fn for_vcpu(supported: &CpuId, tsc_deadline: bool, id: u8, vcpus: u8) -> CpuId {
    let mut cpuid = supported.clone();
    let apic = u32::from(id);
    let count = u32::from(vcpus);
    // Bits of an APIC id that tell cores of the package apart.
    let core_bits = u8::BITS - (vcpus - 1).leading_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ecx &= !(MONITOR | VMX | PDCM | TSC_DEADLINE);
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
            0x7 if entry.index == 0 => entry.ebx &= !SGX,
            // Performance counters, SGX, processor trace.
            0xa | 0x12 | 0x14 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            0xb | 0x1f => {
                entry.edx = apic;
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (core_bits, count, 2 << 8 | 1),
                    index => (0, 0, index & 0xff),
                };
            }
            // The host tells the guest when its memory is paged in; a builder's guest just waits.
            0x4000_0001 => entry.eax &= !(KVM_ASYNC_PF | KVM_ASYNC_PF_INT),
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => entry.ecx = (entry.ecx & 0xffff_0000) | core_bits << 12 | (count - 1),
            // SVM's own leaf.
            0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic, apic & 0xff, 0),
            _ => {}
        }
    }
    cpuid
}

/// Width of a guest-physical address.
pub fn physical_bits(cpuid: &CpuId) -> u32 {
    cpuid.as_slice().iter().find(|e| e.function == 0x8000_0008).map_or(36, |e| e.eax & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

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
        CpuId::from_entries(&[
            entry(1, 0),
            entry(4, 0),
            entry(7, 0),
            entry(0xa, 0),
            entry(0xb, 0),
            entry(0xb, 1),
            entry(0x8000_0001, 0),
            entry(0x8000_000a, 0),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn nested_virtualisation_and_counters_are_hidden() {
        let cpuid = for_vcpu(&host(), true, 0, 1);
        assert_eq!(leaf(&cpuid, 1, 0).ecx & (VMX | MONITOR), 0);
        assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & SVM, 0);
        assert_eq!(leaf(&cpuid, 7, 0).ebx & SGX, 0);
        assert_eq!(leaf(&cpuid, 0xa, 0).eax, 0);
        assert_eq!(leaf(&cpuid, 0x8000_000a, 0).edx, 0);
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
