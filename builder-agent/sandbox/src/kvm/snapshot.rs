//! A VM that stands still: how its vCPUs are stopped, and what is written down of it. Its memory is a file already.
//!
//! It stands still once, and does not go on: its copies do (`templates`). Notifications of the guest that no device has looked at
//! are not written down. Each device looks at its queues once more when it is restored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arch::{Architecture, Native, Processor, SetupError};
use super::devices::console::ConsoleState;
use super::devices::mmio::TransportState;

/// Time for a vCPU to leave the guest, after which it gets another signal: the one before may have come just before it entered.
const SIGNAL_AGAIN: Duration = Duration::from_millis(5);

pub type VcpuState = <<Native as Architecture>::Processor as Processor>::State;

#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    pub vm: <Native as Architecture>::VmState,
    /// In the order of their ids.
    pub vcpus: Vec<VcpuState>,
    pub devices: Vec<TransportState>,
    pub console: ConsoleState,
}

impl Snapshot {
    /// All copies of a template have the same file, with one position in it, which is not used.
    pub fn read(file: &File) -> io::Result<Snapshot> {
        let mut json = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut json, 0)?;
        Ok(serde_json::from_slice(&json)?)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StandStillError {
    #[error("cannot handle the signal that stops a vCPU")]
    Handler(#[source] io::Error),
    #[error("cannot read the state of a vCPU")]
    State(#[from] SetupError),
    #[error("a vCPU has ended")]
    Ended,
}

/// A signal without another meaning. It ends KVM_RUN, and does nothing else.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Has the signal that stops vCPUs do nothing but that.
pub fn handle_signals() -> Result<(), StandStillError> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: sigaction is integers, a set of bits and pointers; zero is valid for each.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // Without SA_RESTART.
    // SAFETY: a whole sigaction, with a handler that does nothing and so may run at any moment.
    match unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(StandStillError::Handler(io::Error::last_os_error())),
    }
}

type Stopped = (usize, Result<VcpuState, SetupError>);

/// Stops all vCPUs.
pub struct StandStill {
    is_wanted: Arc<AtomicBool>,
    sender: Sender<Stopped>,
    stopped: Receiver<Stopped>,
    threads: Vec<libc::pthread_t>,
}

impl Default for StandStill {
    fn default() -> StandStill {
        let (sender, stopped) = channel();
        StandStill { is_wanted: Arc::default(), sender, stopped, threads: Vec::new() }
    }
}

impl StandStill {
    /// For the thread of the vCPU with this id.
    pub fn vcpu(&self, id: usize) -> Vcpu {
        Vcpu { id, is_wanted: self.is_wanted.clone(), sender: self.sender.clone() }
    }

    /// The thread of the next vCPU. It must not end.
    pub fn runs_in(&mut self, thread: &JoinHandle<()>) {
        self.threads.push(thread.as_pthread_t());
    }

    /// Returns when none of them is in the guest any more, with what they are at.
    pub fn all(&self) -> Result<Vec<VcpuState>, StandStillError> {
        self.is_wanted.store(true, Ordering::SeqCst);
        let mut states: Vec<Option<VcpuState>> = self.threads.iter().map(|_| None).collect();
        while let Some(missing) = states.iter().position(Option::is_none) {
            // SAFETY: the thread has not ended, by the contract of `runs_in`.
            unsafe { libc::pthread_kill(self.threads[missing], signal()) };
            match self.stopped.recv_timeout(SIGNAL_AGAIN) {
                Ok((id, state)) => states[id] = Some(state?),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(StandStillError::Ended),
            }
        }
        Ok(states.into_iter().flatten().collect())
    }
}

/// The side of one vCPU.
pub struct Vcpu {
    id: usize,
    is_wanted: Arc<AtomicBool>,
    sender: Sender<Stopped>,
}

impl Vcpu {
    /// Set when it is to leave the guest, for which it also gets a signal.
    pub fn is_wanted(&self) -> &AtomicBool {
        &self.is_wanted
    }

    /// Says what it is at, and stands still until the process ends.
    pub fn stands_still(self, state: Result<VcpuState, SetupError>) -> ! {
        // Whoever wanted it waits for it.
        let _ = self.sender.send((self.id, state));
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread in the place of a vCPU, which does nothing until a signal comes.
    fn stands_in(id: usize, stand_still: &StandStill) -> JoinHandle<()> {
        let vcpu = stand_still.vcpu(id);
        std::thread::spawn(move || {
            while !vcpu.is_wanted().load(Ordering::SeqCst) {
                // SAFETY: returns when a handler has run.
                unsafe { libc::pause() };
            }
            let what = "read nothing";
            vcpu.stands_still(Err(SetupError { what, source: kvm_ioctls::Error::new(id as i32) }))
        })
    }

    #[test]
    fn every_vcpu_gets_signals_until_it_has_left_the_guest() {
        handle_signals().unwrap();
        let mut stand_still = StandStill::default();
        for id in 0..3 {
            let thread = stands_in(id, &stand_still);
            stand_still.runs_in(&thread);
        }
        // The first answer is an error here, because only KVM makes a state.
        let error = stand_still.all().err().unwrap();
        assert!(matches!(error, StandStillError::State(_)), "{error}");
    }
}
