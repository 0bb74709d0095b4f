//! ACPI tables that tell the guest what this machine has: processors, the IOAPIC, a serial port, and one
//! `LNRO0005` device per virtio-mmio slot, which is the only way Debian's kernel learns of them.
//!
//! "Hardware-reduced": no PM timer, no SCI, no legacy PIC or PIT to probe; fewer devices to emulate and fewer
//! exits at boot. Power off and reset are two bytes of I/O port space (`ports::SLEEP`, `ports::RESET`).

use acpi_tables::aml::{
    self, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::layout;
use super::ports;
use crate::kvm::arch::MmioSlot;

const OEM: [u8; 6] = *b"BARNRA";
const TABLE: [u8; 8] = *b"BUILDER ";
const REVISION: u32 = 1;
const COM1: u16 = 0x3f8;
const COM1_IRQ: u32 = 4;
/// ACPI 6.5, 5.2.9.3: there is no VGA to probe and no CMOS clock.
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_CMOS_RTC: u16 = 1 << 5;
/// The value of `_S5`: written to the sleep control register (shifted) to power off.
const SLEEP_TYPE_S5: u8 = 5;
/// The notification of the specification of generations.
const CHANGED: u8 = 0x80;

/// All tables as one block to be placed at `base`; the RSDP is its first byte.
pub fn tables(base: u64, vcpus: u8, slots: &[MmioSlot]) -> Vec<u8> {
    let mut block = Block { base, bytes: Vec::new() };
    // The RSDP comes first but contains the address of the XSDT, which comes last: reserve its place.
    block.place(&[0; 36]);
    let dsdt = block.place(dsdt(slots).as_slice());
    let madt = block.place_aml(&madt(vcpus));
    let fadt = block.place_aml(&fadt(dsdt));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = block.place_aml(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    block.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    block.bytes
}

struct Block {
    base: u64,
    bytes: Vec<u8>,
}

impl Block {
    /// Appends at the next multiple of 16 and returns the guest address.
    fn place(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.base + self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        address
    }

    fn place_aml(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.place(&bytes)
    }
}

fn io_register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_CMOS_RTC).into();
    fadt.reset_reg = io_register(ports::RESET);
    fadt.reset_value = 1;
    fadt.sleep_control_reg = io_register(ports::SLEEP);
    fadt.sleep_status_reg = io_register(ports::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, layout::IOAPIC, 0));
    madt
}

fn dsdt(slots: &[MmioSlot]) -> Sdt {
    let mut aml = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5])).to_aml_bytes(&mut aml);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(COM1, COM1, 1, 8),
                    &Interrupt::new(true, true, false, false, COM1_IRQ),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    generation(&mut aml);
    for (index, slot) in slots.iter().enumerate() {
        virtio(index, slot, &mut aml);
    }
    // 36 is the length of a table with a header and no body; revision 2 means 64-bit integers.
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// The machine's generation, and the device through which the guest is told of another one: without the events of a full ACPI,
/// that is a generic one (ACPI 6.5, 5.6.9).
fn generation(out: &mut dyn AmlSink) {
    let name = "VM_Gen_Counter";
    let (low, high) = (layout::GENERATION as u32, (layout::GENERATION >> 32) as u32);
    Device::new(
        "_SB_.VGEN".into(),
        vec![
            // Linux: vmgenid_acpi_ids. The second one is the name of the specification.
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &name),
            &Name::new("_DDN".into(), &name),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )
    .to_aml_bytes(out);
    let device = Path::new("\\_SB_.VGEN");
    let changed = Notify::new(&device, &CHANGED);
    let event = Method::new("_EVT".into(), 1, true, vec![&changed]);
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    layout::GENERATION_GSI,
                )]),
            ),
            &event,
        ],
    )
    .to_aml_bytes(out);
}

fn virtio(index: usize, slot: &MmioSlot, out: &mut dyn AmlSink) {
    let path = format!("_SB_.V{index:03}");
    // Register pages lie below 4 GiB by `layout`; the resource descriptor has only 32 bits.
    let (base, size) = (slot.base as u32, slot.size as u32);
    Device::new(
        path.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            // Linux takes the cache attribute of device memory from the parent: declare it coherent.
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, base, size),
                    &Interrupt::new(true, true, false, false, slot.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(out);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> Vec<MmioSlot> {
        (0..3).map(|i| MmioSlot { base: 0xd000_0000 + i * 0x1000, size: 0x1000, gsi: 5 + i as u32 }).collect()
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// Follows the pointers as a kernel would; gives (signature, bytes) of every table.
    fn walk(block: &[u8], base: u64) -> Vec<([u8; 4], Vec<u8>)> {
        let table = |address: u64| {
            let at = (address - base) as usize;
            let bytes = &block[at..at + u32_at(block, at + 4) as usize];
            (bytes[..4].try_into().unwrap(), bytes.to_vec())
        };
        let xsdt = table(u64_at(block, 24));
        let mut found: Vec<([u8; 4], Vec<u8>)> =
            xsdt.1[36..].chunks(8).map(|c| table(u64::from_le_bytes(c.try_into().unwrap()))).collect();
        let fadt = found.iter().find(|t| &t.0 == b"FACP").unwrap();
        let dsdt = table(u64_at(&fadt.1, 140));
        found.extend([xsdt, dsdt]);
        found
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let base = layout::ACPI;
        let block = tables(base, 4, &slots());
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!(sum(&block[..20]), 0, "RSDP, revision 1 part");
        assert_eq!(sum(&block[..36]), 0, "RSDP");
        let mut names = Vec::new();
        for (name, bytes) in walk(&block, base) {
            assert_eq!(sum(&bytes), 0, "{}", String::from_utf8_lossy(&name));
            names.push(name);
        }
        names.sort();
        assert_eq!(names, [*b"APIC", *b"DSDT", *b"FACP", *b"XSDT"]);
    }

    #[test]
    fn every_slot_is_described_with_its_address_and_interrupt() {
        let block = tables(layout::ACPI, 1, &slots());
        let dsdt = walk(&block, layout::ACPI).into_iter().find(|t| &t.0 == b"DSDT").unwrap().1;
        for slot in slots() {
            // Memory32Fixed: 0x86, length 9, read-write. Extended interrupt: 0x89, length 6, flags, count 1.
            let mut memory = vec![0x86, 9, 0, 1];
            memory.extend((slot.base as u32).to_le_bytes());
            memory.extend((slot.size as u32).to_le_bytes());
            let mut interrupt = vec![0x89, 6, 0, 0b11, 1];
            interrupt.extend(slot.gsi.to_le_bytes());
            memory.extend(interrupt);
            assert!(dsdt.windows(memory.len()).any(|w| w == memory), "{slot:x?}");
        }
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), 3);
    }

    #[test]
    fn tables_for_the_largest_machine_fit_their_reserved_range() {
        let slots: Vec<_> =
            (0..18).map(|i| MmioSlot { base: 0xd000_0000, size: 0x1000, gsi: 5 + i }).collect();
        assert!((tables(layout::ACPI, 254, &slots).len() as u64) < layout::ACPI_SIZE);
    }
}
