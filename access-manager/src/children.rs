//! Child processes with a time limit.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Waits for the end of a child, and kills it if that takes longer than `longest`. `None` if it was killed. `glance` is the
/// interval between two looks.
pub fn wait(child: &mut Child, longest: Duration, glance: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + longest;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(glance),
            Ok(Some(status)) => return Some(status),
            _ => {
                // Either fails only if the child is gone already.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}
