//! The ports of each guest, apart from those of all others.
//!
//! passt binds the UDP port of the guest on the host as well, and shares it with others who do: of two guests with one port,
//! one would get the other's answers.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use egress::PortRange;

/// Where Linux begins to choose.
const FIRST: u16 = 32_768;
const SIZE: u16 = 512;
const RANGES: usize = 64;

static TAKEN: Mutex<[bool; RANGES]> = Mutex::new([false; RANGES]);

/// A range, until it is dropped.
#[derive(Debug)]
pub struct Ports(usize);

fn taken() -> MutexGuard<'static, [bool; RANGES]> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ports {
    pub fn free() -> io::Result<Ports> {
        let mut taken = taken();
        let free = taken.iter().position(|is_taken| !is_taken);
        let number =
            free.ok_or_else(|| io::Error::other(format!("{RANGES} machines have a network already")))?;
        taken[number] = true;
        Ok(Ports(number))
    }

    /// The range that an earlier program has given to a machine that goes on.
    pub fn taken_over(number: usize) -> io::Result<Ports> {
        match taken().get_mut(number) {
            Some(is_taken) if !*is_taken => {
                *is_taken = true;
                Ok(Ports(number))
            }
            _ => Err(io::Error::other(format!(
                "range {number} of ports does not exist, or is another machine's"
            ))),
        }
    }

    pub fn number(&self) -> usize {
        self.0
    }

    pub fn range(&self) -> PortRange {
        // The last port of all is 65,535.
        let first = FIRST + SIZE * self.0 as u16;
        PortRange { first, last: first + (SIZE - 1) }
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        taken()[self.0] = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_machines_have_a_port_in_common_and_the_last_range_exists() {
        let mut all: Vec<Ports> = std::iter::from_fn(|| Ports::free().ok()).collect();
        assert_eq!(all.len(), RANGES);
        let mut ranges: Vec<_> =
            all.iter().map(Ports::range).map(|range| (range.first, range.last)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:?}");
        assert_eq!((ranges[0].0, ranges[RANGES - 1].1), (FIRST, u16::MAX));
        let number = all.remove(7).number();
        let again = Ports::taken_over(number).unwrap();
        assert!(Ports::taken_over(number).is_err() && Ports::free().is_err());
        assert!(Ports::taken_over(RANGES).is_err());
        drop(again);
        assert_eq!(Ports::free().unwrap().number(), number);
    }
}
