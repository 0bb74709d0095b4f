//! The guest-physical address map.
//!
//! ```text
//! 0x0000_0000_6000  PVH start info, memory map, module list
//! 0x0000_0002_0000  kernel command line
//! 0x0000_000e_0000  ACPI tables (reserved, 128 KiB), in whose last page the generation is
//! 0x0000_0010_0000  RAM; the kernel where its ELF file says, the initrd at the top of low RAM
//! 0x0000_c000_0000  end of low RAM
//! 0x0000_d000_0000  one page of registers per virtio-mmio device
//! 0x0000_fec0_0000  IOAPIC, 0xfee0_0000 local APIC, 0xfffb_d000 TSS for Intel real mode
//! 0x0001_0000_0000  RAM above 4 GiB, then, at the next GiB, the closure
//! ```

pub const START_INFO: u64 = 0x6000;
pub const MODULE_LIST: u64 = 0x6800;
pub const MEMORY_MAP: u64 = 0x7000;
pub const CMDLINE: u64 = 0x2_0000;
/// Linux: COMMAND_LINE_SIZE in arch/x86/include/asm/setup.h.
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory: below the (absent) extended BIOS data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
pub const ACPI: u64 = 0xe_0000;
pub const ACPI_SIZE: u64 = 0x2_0000;
/// The last page of the reserved range.
pub const GENERATION: u64 = ACPI + ACPI_SIZE - 0x1000;
pub const HIGH_RAM: u64 = 0x10_0000;
const GAP_START: u64 = 0xc000_0000;
const GAP_END: u64 = 0x1_0000_0000;
pub const MMIO_BASE: u64 = 0xd000_0000;
pub const MMIO_STRIDE: u64 = 0x1000;
pub const IOAPIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that Intel needs to run real mode; outside RAM and outside every device.
pub const TSS: usize = 0xfffb_d000;
/// Interrupt line of COM1.
pub const COM1_GSI: u32 = 4;
/// First interrupt line for virtio devices: 0 to 4 belong to the timer, the keyboard, the cascade and COM1/COM2.
pub const FIRST_GSI: u32 = 5;

/// The last line of the IOAPIC: devices count from below.
pub const GENERATION_GSI: u32 = 23;

const GIB: u64 = 1 << 30;

/// RAM of `bytes` as (guest address, length), leaving the device gap below 4 GiB free.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= GAP_START { vec![(0, bytes)] } else { vec![(0, GAP_START), (GAP_END, bytes - GAP_START)] }
}

/// Where the closure is mapped: above all RAM and all devices. A whole GiB, which more than satisfies the
/// 2 MiB that Linux asks of persistent memory (memremap_pages: subsection alignment) and its 128 MiB sections.
pub fn closure_base(ram: &[(u64, u64)]) -> u64 {
    let end = ram.iter().map(|(start, len)| start + len).max().unwrap_or(0);
    end.max(GAP_END).next_multiple_of(GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_never_covers_the_device_gap() {
        for mib in [128u64, 3071, 3072, 3073, 16384] {
            let ranges = ram_ranges(mib << 20);
            assert_eq!(ranges.iter().map(|r| r.1).sum::<u64>(), mib << 20);
            for (start, len) in &ranges {
                assert!(start + len <= GAP_START || *start >= GAP_END, "{mib} MiB: {start:#x}+{len:#x}");
            }
            let base = closure_base(&ranges);
            assert!(base >= GAP_END && base.is_multiple_of(GIB));
            assert!(ranges.iter().all(|(start, len)| start + len <= base));
        }
    }
}
