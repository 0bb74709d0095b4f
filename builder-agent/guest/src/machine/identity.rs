//! A machine that is a copy of another one becomes one of its own.
//!
//! The host copies a machine that has booted and waits for its task (`sandbox::kvm::templates`). All copies have the same
//! memory, and with it the same state of the kernel's random numbers and the same clock. So the first thing that a copy gets is
//! a seed of its own and the time. Only then does it say hello, and gets its task: no program of a member's has run before.

use std::io;

use guest::protocol::{Resume, SEED};

use crate::sys;

pub fn take(resume: &Resume) -> io::Result<()> {
    let seed = &resume.seed.0;
    if seed.len() != SEED {
        let why = format!("a copy got a seed of {} bytes, which should have {SEED}", seed.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    sys::reseed(seed)?;
    sys::set_time(resume.unix_ns)
}

#[cfg(test)]
mod tests {
    use guest::protocol::Bytes;

    use super::*;

    #[test]
    fn a_copy_does_not_go_on_with_less_than_a_whole_seed() {
        for length in [0, SEED - 1, SEED + 1] {
            let error = take(&Resume { seed: Bytes(vec![7; length]), unix_ns: 0 }).unwrap_err();
            assert!(error.to_string().contains("seed"), "{error}");
        }
    }
}
