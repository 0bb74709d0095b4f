//! The serial console: a 16550 from vm-superio whose output ends in a fixed-size ring in a shared file.
//!
//! It exists for the messages of a panic. The guest may print without end: new bytes replace the oldest. The agent makes
//! the ring as a memory file, so that it can read the end of the output after this process has ended, as untrusted bytes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::Interrupt;
use super::restore_error::RestoreError;
use crate::text;

/// Enough for a kernel's panic message with its call trace; small enough to quote in an error.
pub const RING: u64 = 16 * 1024;
/// The ring follows an eight-byte count of all bytes ever written.
const HEADER: u64 = 8;
/// Bytes gathered before they are written out when no newline comes.
const LINE: usize = 256;

/// Size of the shared file.
pub const FILE_SIZE: u64 = HEADER + RING;

/// The state of a console. Its ring is the agent's file and not a part of the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// In the order of vm-superio's `SerialState`.
    registers: [u8; 9],
    /// Received bytes that the guest has not read yet.
    input: Vec<u8>,
    /// Printed bytes that are not in the ring yet.
    line: Vec<u8>,
}

/// The destination of the serial output.
pub struct Ring {
    file: File,
    written: u64,
    line: Vec<u8>,
}

impl Ring {
    /// `file` has [`FILE_SIZE`] bytes.
    pub fn new(file: File) -> Ring {
        Ring { file, written: 0, line: Vec::with_capacity(LINE) }
    }

    fn put(&mut self) -> io::Result<()> {
        for byte_run in std::mem::take(&mut self.line).chunks(LINE) {
            let at = self.written % RING;
            let first = byte_run.len().min((RING - at) as usize);
            self.file.write_all_at(&byte_run[..first], HEADER + at)?;
            self.file.write_all_at(&byte_run[first..], HEADER)?;
            self.written += byte_run.len() as u64;
        }
        self.line.reserve(LINE);
        self.file.write_all_at(&self.written.to_le_bytes(), 0)
    }
}

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LINE {
                self.put()?;
            }
        }
        Ok(bytes.len())
    }

    /// vm-superio flushes after each byte; a system call per byte is not worth it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the contents of a ring, oldest first. They were written by the guest, or by a VMM that it has taken over.
pub fn tail(file: &File) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, 0)?;
    let written = u64::from_le_bytes(header);
    let mut ring = vec![0; RING as usize];
    file.read_exact_at(&mut ring, HEADER)?;
    if written < RING {
        ring.truncate(written as usize);
    } else {
        ring.rotate_left((written % RING) as usize);
        ring = text::rest(&ring).to_vec();
    }
    Ok(ring)
}

struct Line(Box<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> Result<(), io::Error> {
        self.0.trigger();
        Ok(())
    }
}

/// The registers of a 16550, output only. The architecture decides how the guest reaches them.
pub struct Console(Serial<Line, NoEvents, Ring>);

impl Console {
    pub fn new(ring: Ring, interrupt: Box<dyn Interrupt>) -> Console {
        Console(Serial::new(Line(interrupt), ring))
    }

    pub fn read(&mut self, offset: u8, data: &mut [u8]) {
        data.fill(0);
        if let [byte] = data {
            *byte = self.0.read(offset);
        }
    }

    pub fn write(&mut self, offset: u8, data: &[u8]) {
        if let [byte] = data {
            // A byte of console output that cannot be stored does not stop the build.
            let _ = self.0.write(offset, *byte);
        }
    }

    /// Writes out an unfinished last line.
    pub fn sync(&mut self) {
        let _ = self.0.writer_mut().put();
    }

    pub fn save(&self) -> ConsoleState {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = self.0.state();
        let registers = [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ];
        ConsoleState { registers, input: in_buffer, line: self.0.writer().line.clone() }
    }

    /// A console that continues from the state of another one. The output of that one stays in its own ring.
    pub fn restore(
        state: &ConsoleState,
        mut ring: Ring,
        interrupt: Box<dyn Interrupt>,
    ) -> Result<Console, RestoreError> {
        if state.line.len() >= LINE {
            return Err(RestoreError::new("console", "its unfinished line is too long"));
        }
        ring.line.extend_from_slice(&state.line);
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let registers = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.input.clone(),
        };
        Serial::from_state(&registers, Line(interrupt), NoEvents, ring)
            .map(Console)
            .map_err(|error| RestoreError::new("console", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(FILE_SIZE).unwrap();
        file
    }

    #[test]
    fn endless_output_keeps_its_size_and_its_end() {
        let file = file();
        let mut ring = Ring::new(file.try_clone().unwrap());
        for i in 0..10_000 {
            writeln!(ring, "line {i}").unwrap();
        }
        assert_eq!(file.metadata().unwrap().len(), FILE_SIZE);
        let tail = tail(&file).unwrap();
        assert_eq!(tail.len() as u64, RING);
        assert!(tail.ends_with(b"line 9998\nline 9999\n"));
    }

    #[test]
    fn a_short_ring_is_read_as_it_was_written() {
        let file = file();
        let mut ring = Ring::new(file.try_clone().unwrap());
        ring.write_all(b"one\ntwo").unwrap();
        assert_eq!(tail(&file).unwrap(), b"one\n");
        ring.put().unwrap();
        assert_eq!(tail(&file).unwrap(), b"one\ntwo");
    }

    #[test]
    fn a_nonsense_count_in_the_ring_is_survived() {
        let file = file();
        for count in [u64::MAX, RING, RING + 1] {
            file.write_all_at(&count.to_le_bytes(), 0).unwrap();
            assert_eq!(tail(&file).unwrap().len() as u64, RING);
        }
    }

    #[test]
    fn accesses_of_other_sizes_do_nothing() {
        let file = file();
        struct Nothing;
        impl Interrupt for Nothing {
            fn trigger(&self) {}
        }
        let mut console = Console::new(Ring::new(file.try_clone().unwrap()), Box::new(Nothing));
        console.write(0, b"");
        console.write(0, b"abcd");
        for byte in b"ok\n" {
            console.write(0, &[*byte]);
        }
        let mut wide = [9; 4];
        console.read(5, &mut wide);
        assert_eq!(wide, [0; 4]);
        assert_eq!(tail(&file).unwrap(), b"ok\n");
    }

    #[test]
    fn a_restored_console_answers_as_the_saved_one_and_finishes_its_line() {
        let count = crate::kvm::devices::testing::Count::default;
        let mut console = Console::new(Ring::new(file()), Box::new(count()));
        // Divisor latch, its two bytes, back to data; interrupts; scratch.
        for (offset, value) in [(3, 0x83), (0, 0x0c), (1, 0x01), (3, 0x03), (1, 0x02), (4, 0x0b), (7, 0x5a)] {
            console.write(offset, &[value]);
        }
        for byte in b"half a li" {
            console.write(0, &[*byte]);
        }
        let state = console.save();
        let json = serde_json::to_string(&state).unwrap();
        let state: ConsoleState = serde_json::from_str(&json).unwrap();
        let file = file();
        let ring = Ring::new(file.try_clone().unwrap());
        let mut restored = Console::restore(&state, ring, Box::new(count())).unwrap();
        assert_eq!(restored.save(), state);
        for offset in 0..8 {
            let (mut was, mut is) = ([0], [0]);
            console.read(offset, &mut was);
            restored.read(offset, &mut is);
            assert_eq!(was, is, "register {offset}");
        }
        for byte in b"ne\n" {
            restored.write(0, &[*byte]);
        }
        assert_eq!(tail(&file).unwrap(), b"half a line\n");
    }

    #[test]
    fn a_console_state_that_no_console_has_is_refused() {
        let console =
            Console::new(Ring::new(file()), Box::new(crate::kvm::devices::testing::Count::default()));
        let state = console.save();
        let wrong = [
            ConsoleState { line: vec![b'x'; LINE], ..state.clone() },
            ConsoleState { input: vec![0; 1 << 16], ..state },
        ];
        for state in wrong {
            let interrupt = Box::new(crate::kvm::devices::testing::Count::default());
            assert!(Console::restore(&state, Ring::new(file()), interrupt).is_err());
        }
    }
}
