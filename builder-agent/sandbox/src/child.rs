//! The executable as a helper process of itself.

use std::os::fd::{FromRawFd, OwnedFd};

/// Becomes a VMM, or the guard of a network, if this process was started as one; returns at once if not.
///
/// To be called first thing in `main`, while there is one thread and no open file but the three standard ones.
pub fn child_main_if_requested() {
    let main: fn(OwnedFd) -> ! = match std::env::args_os().nth(1) {
        Some(argument) if argument == crate::kvm::ARGUMENT => crate::kvm::vmm_main,
        Some(argument) if argument == crate::kvm::network::ARGUMENT => crate::kvm::network::guard_main,
        _ => return,
    };
    // SAFETY: stdin is open (whoever starts such a process made it a socket), and nobody else has taken it: this is the
    // first thing `main` does, and we do not return.
    main(unsafe { OwnedFd::from_raw_fd(0) });
}
