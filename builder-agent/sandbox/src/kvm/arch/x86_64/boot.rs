//! Puts a kernel, an initrd and their command line into guest memory, by the PVH protocol.
//!
//! PVH starts an uncompressed ELF kernel at a 32-bit entry point and takes the memory map, the initrd and the
//! ACPI root from one structure. There is no decompressor and no firmware, which is most of a boot's time.
//! Source: xen docs/misc/pvh.pandoc; Linux arch/x86/platform/pvh/.
//! Not here: a bzImage. `netboot-image guest` unpacks Debian's to the ELF file inside it.

use std::fs::File;
use std::io;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use super::{acpi, layout};
use crate::kvm::arch::{Boot, Entry, Hardware};

const START_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const START_VERSION: u32 = 1;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot load the guest kernel; hint: it must be an uncompressed ELF vmlinux")]
    Kernel(#[source] linux_loader::loader::Error),
    #[error("the guest kernel has no PVH entry point; hint: build it with CONFIG_PVH=y")]
    NoPvh,
    #[error("the kernel command line is {len} bytes long, over the limit of {max}")]
    Cmdline { len: usize, max: usize },
    #[error(
        "the initrd of {initrd} bytes does not fit beside the kernel into the {low} bytes of low memory; hint: raise `memory-mib`"
    )]
    InitrdTooLarge { initrd: u64, low: u64 },
    #[error("cannot read the initrd")]
    Initrd(#[source] io::Error),
    #[error("cannot write {what} to guest memory")]
    Memory { what: &'static str, source: vm_memory::GuestMemoryError },
    #[error("cannot write the boot parameters")]
    Parameters(#[source] linux_loader::configurator::Error),
}

pub fn load(memory: &GuestMemoryMmap, hardware: &Hardware, boot: Boot<'_>) -> Result<Entry, LoadError> {
    let kernel = Elf::load(memory, None, boot.kernel, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(LoadError::Kernel)?;
    let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap else {
        return Err(LoadError::NoPvh);
    };
    let initrd = load_initrd(memory, boot.initrd, &hardware.ram, kernel.kernel_end)?;
    write_cmdline(memory, boot.cmdline)?;
    let acpi = acpi::tables(layout::ACPI, hardware.vcpus, &hardware.slots);
    memory
        .write_slice(&acpi, GuestAddress(layout::ACPI))
        .map_err(|source| LoadError::Memory { what: "the ACPI tables", source })?;

    let map = memory_map(&hardware.ram);
    let start = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        nr_modules: 1,
        modlist_paddr: layout::MODULE_LIST,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start, GuestAddress(layout::START_INFO));
    params.set_sections(&map, GuestAddress(layout::MEMORY_MAP));
    params.set_modules(&[initrd], GuestAddress(layout::MODULE_LIST));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(LoadError::Parameters)?;
    Ok(Entry { instruction: entry.0, argument: layout::START_INFO })
}

/// Loads the initrd at the top of low memory, so that the kernel, which grows from below, does not reach it.
fn load_initrd(
    memory: &GuestMemoryMmap,
    initrd: &mut File,
    ram: &[(u64, u64)],
    kernel_end: u64,
) -> Result<hvm_modlist_entry, LoadError> {
    let size = initrd.metadata().map_err(LoadError::Initrd)?.len();
    let low = ram.first().map_or(0, |(start, len)| start + len);
    let address = low
        .checked_sub(size)
        .map(|a| a & !(PAGE - 1))
        .filter(|a| *a >= kernel_end)
        .ok_or(LoadError::InitrdTooLarge { initrd: size, low })?;
    let mut at = address;
    let end = address + size;
    while at < end {
        let want = (end - at).min(1 << 20) as usize;
        let slice = vm_memory::GuestMemoryBackend::get_slice(memory, GuestAddress(at), want)
            .map_err(|source| LoadError::Memory { what: "the initrd", source })?;
        initrd
            .read_exact_volatile(&mut slice.offset(0).expect("offset 0 is inside every slice"))
            .map_err(|e| LoadError::Initrd(io::Error::other(e)))?;
        at += want as u64;
    }
    Ok(hvm_modlist_entry { paddr: address, size, ..Default::default() })
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), LoadError> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(LoadError::Cmdline { len: cmdline.len(), max: layout::CMDLINE_MAX - 1 });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(layout::CMDLINE))
        .map_err(|source| LoadError::Memory { what: "the command line", source })
}

fn memory_map(ram: &[(u64, u64)]) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, end, type_| hvm_memmap_table_entry { addr, size: end - addr, type_, reserved: 0 };
    let mut map = vec![
        entry(0, layout::LOW_RAM_END, E820_RAM),
        entry(layout::ACPI, layout::ACPI + layout::ACPI_SIZE, E820_RESERVED),
    ];
    for (start, len) in ram {
        map.push(entry((*start).max(layout::HIGH_RAM), start + len, E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_map_is_sorted_disjoint_and_hides_the_tables() {
        let map = memory_map(&layout::ram_ranges(5 << 30));
        for pair in map.windows(2) {
            assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{pair:x?}");
        }
        let usable = map.iter().filter(|e| e.type_ == E820_RAM);
        assert!(usable.clone().all(|e| e.addr + e.size <= layout::ACPI || e.addr >= layout::HIGH_RAM));
        assert_eq!(map.iter().filter(|e| e.type_ == E820_RESERVED).count(), 1);
    }
}
