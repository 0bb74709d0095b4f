//! Port I/O: the console (COM1), and the ways in which the guest stops the machine. No other port exists.

use crate::kvm::bus::Bus;
use crate::kvm::vcpu::Stop;

const COM1: u16 = 0x3f8;
const COM1_LEN: u16 = 8;
/// `_S5` writes here (ACPI sleep control register): power off.
pub const SLEEP: u16 = 0x600;
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register.
pub const RESET: u16 = 0x602;
/// Keyboard controller command port; 0xfe pulses the reset line. Linux falls back to it (`reboot=k`).
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

pub fn read(port: u16, data: &mut [u8], machine: &Bus) {
    match com1(port) {
        Some(offset) => machine.console().read(offset, data),
        // The keyboard controller's status must say "ready", or the kernel polls it before it asks for a reset.
        None if matches!(port, KEYBOARD | SLEEP_STATUS) => data.fill(0),
        // A read from an absent device returns all ones.
        None => data.fill(0xff),
    }
}

/// Handles a write. A write to any port but the console and those that stop the machine has no effect.
pub fn write(port: u16, data: &[u8], machine: &Bus) -> Option<Stop> {
    match (port, data) {
        (SLEEP, [_]) => return Some(Stop::PowerOff),
        (RESET, [_]) | (KEYBOARD, [KEYBOARD_RESET]) => return Some(Stop::Reset),
        _ => {}
    }
    if let Some(offset) = com1(port) {
        machine.console().write(offset, data);
    }
    None
}

fn com1(port: u16) -> Option<u8> {
    port.checked_sub(COM1).filter(|offset| *offset < COM1_LEN).map(|offset| offset as u8)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::kvm::devices::console::{self, Console, Ring};
    use crate::kvm::devices::testing::Count;

    fn machine() -> (std::sync::Arc<Bus>, File) {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(console::FILE_SIZE).unwrap();
        let console = Console::new(Ring::new(file.try_clone().unwrap()), Box::new(Count::default()));
        (Bus::new(console, Vec::new()), file)
    }

    #[test]
    fn only_the_three_ways_to_stop_stop_the_machine() {
        let (machine, _) = machine();
        assert_eq!(write(SLEEP, &[0x34], &machine), Some(Stop::PowerOff));
        assert_eq!(write(RESET, &[1], &machine), Some(Stop::Reset));
        assert_eq!(write(KEYBOARD, &[0xfe], &machine), Some(Stop::Reset));
        for port in 0..=u16::MAX {
            if ![SLEEP, RESET].contains(&port) {
                assert_eq!(write(port, &[1], &machine), None, "{port:#x}");
            }
            assert_eq!(write(port, &[], &machine), None);
            assert_eq!(write(port, &[1, 2, 3, 4], &machine), None);
        }
    }

    #[test]
    fn the_console_answers_at_com1_and_nowhere_else() {
        let (machine, file) = machine();
        // Line status: the transmitter is empty. Both neighbours of the eight registers are absent.
        let read_byte = |port| {
            let mut byte = [7];
            read(port, &mut byte, &machine);
            byte[0]
        };
        assert_eq!(
            (read_byte(COM1 + 5) & 0x20, read_byte(COM1 - 1), read_byte(COM1 + 8)),
            (0x20, 0xff, 0xff)
        );
        assert_eq!((read_byte(KEYBOARD), read_byte(SLEEP_STATUS)), (0, 0));
        for byte in b"hi\n" {
            write(COM1, &[*byte], &machine);
            write(COM1 - 1, &[*byte], &machine);
            write(COM1 + 8, &[*byte], &machine);
        }
        assert_eq!(console::tail(&file).unwrap(), b"hi\n");
    }
}
