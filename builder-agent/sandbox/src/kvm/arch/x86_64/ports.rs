//! Port I/O: the console (COM1), and the ways in which the guest stops the machine. No other port exists.

use std::sync::Mutex;

use crate::kvm::devices::console::Console;
use crate::kvm::devices::lock;
use crate::kvm::end::Stop;

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

pub fn read(port: u16, data: &mut [u8], console: &Mutex<Console>) {
    match com1(port) {
        Some(offset) => lock(console).read(offset, data),
        // The keyboard controller's status must say "ready", or the kernel polls it before it asks for a reset.
        None if matches!(port, KEYBOARD | SLEEP_STATUS) => data.fill(0),
        // A read from an absent device returns all ones.
        None => data.fill(0xff),
    }
}

/// Handles a write. A write to any port but the console and those that stop the machine has no effect.
pub fn write(port: u16, data: &[u8], console: &Mutex<Console>) -> Option<Stop> {
    match (port, data) {
        (SLEEP, [_]) => return Some(Stop::PowerOff),
        (RESET, [_]) | (KEYBOARD, [KEYBOARD_RESET]) => return Some(Stop::Reset),
        _ => {}
    }
    if let Some(offset) = com1(port) {
        lock(console).write(offset, data);
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
    use crate::kvm::devices::console::{self, Ring};
    use crate::kvm::devices::testing::Count;

    fn console() -> (Mutex<Console>, File) {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(console::FILE_SIZE).unwrap();
        let console = Console::new(Ring::new(file.try_clone().unwrap()), Box::new(Count::default()));
        (Mutex::new(console), file)
    }

    #[test]
    fn only_the_three_ways_to_stop_stop_the_machine() {
        let (console, _) = console();
        assert_eq!(write(SLEEP, &[0x34], &console), Some(Stop::PowerOff));
        assert_eq!(write(RESET, &[1], &console), Some(Stop::Reset));
        assert_eq!(write(KEYBOARD, &[0xfe], &console), Some(Stop::Reset));
        for port in 0..=u16::MAX {
            if ![SLEEP, RESET].contains(&port) {
                assert_eq!(write(port, &[1], &console), None, "{port:#x}");
            }
            assert_eq!(write(port, &[], &console), None);
            assert_eq!(write(port, &[1, 2, 3, 4], &console), None);
        }
    }

    #[test]
    fn the_console_answers_at_com1_and_nowhere_else() {
        let (console, file) = console();
        // Line status: the transmitter is empty. Both neighbours of the eight registers are absent.
        let read_byte = |port| {
            let mut byte = [7];
            read(port, &mut byte, &console);
            byte[0]
        };
        assert_eq!(
            (read_byte(COM1 + 5) & 0x20, read_byte(COM1 - 1), read_byte(COM1 + 8)),
            (0x20, 0xff, 0xff)
        );
        assert_eq!((read_byte(KEYBOARD), read_byte(SLEEP_STATUS)), (0, 0));
        for byte in b"hi\n" {
            write(COM1, &[*byte], &console);
            write(COM1 - 1, &[*byte], &console);
            write(COM1 + 8, &[*byte], &console);
        }
        assert_eq!(console::tail(&file).unwrap(), b"hi\n");
    }
}
