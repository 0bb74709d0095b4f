//! The executable as a helper process of itself.

use std::os::fd::{FromRawFd, OwnedFd};

/// Becomes a VMM process if this process was started as one; returns at once if not.
///
/// To be called first thing in `main`, while there is one thread and no open file but the three standard ones.
pub fn child_main_if_requested() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == crate::kvm::ARGUMENT) {
        // SAFETY: stdin is open (the process that starts a VMM made it a socket), and nobody else has taken it:
        // this is the first thing `main` does, and we do not return.
        crate::kvm::vmm_main(unsafe { OwnedFd::from_raw_fd(0) });
    }
}
