//! Taking over from another program in the same process: the builds that it has paused go on here.
//!
//! Not here: how a program takes the place of another one (`parent`), and what is written down of a build (`paused`).

use std::io;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::FarEnd;
use crate::cancel::Cancel;
use crate::descriptors::Received;
use crate::job::{Host, Run};
use crate::paused::{Paused, PausedMachine, PausedSession};
use crate::session::build;
use crate::{kvm, namespace, usage};

/// The version of what is written down, with that of the protocol of the guests in the machines: a program that speaks
/// another one cannot go on with their builds.
#[must_use]
pub fn format() -> (u32, u32) {
    (4, guest::protocol::VERSION)
}

/// A build that runs in a machine of ours. Dropping it ends the machine.
pub struct TakenOver {
    far_end: Box<dyn FarEnd>,
    stream: UnixStream,
    received: Vec<u8>,
    session: PausedSession,
}

impl TakenOver {
    /// Takes the machine of a paused build, and its descriptors. On an error the machine has ended.
    pub fn claim(paused: Paused, received: &mut Received) -> io::Result<TakenOver> {
        let (PausedMachine::Kvm { pid, .. } | PausedMachine::Namespace { pid, .. }) = &paused.machine;
        let pid = *pid;
        let taken = catch_unwind(AssertUnwindSafe(|| Self::take(paused, received)));
        let panicked = |_| Err(io::Error::other("taking it panicked; this is a bug"));
        taken.unwrap_or_else(panicked).inspect_err(|_| usage::end_child(pid))
    }

    fn take(paused: Paused, received: &mut Received) -> io::Result<TakenOver> {
        let far_end: Box<dyn FarEnd> = match paused.machine {
            machine @ PausedMachine::Kvm { .. } => Box::new(kvm::taken_over(machine, received)?),
            machine @ PausedMachine::Namespace { .. } => Box::new(namespace::taken_over(machine, received)?),
        };
        let stream = received.take(paused.stream)?.into();
        Ok(TakenOver { far_end, stream, received: paused.received.0, session: paused.session })
    }

    /// What the host of the job has written down.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.session.host
    }

    /// Blocks until the job is over. Nothing of the machine is left running when it returns.
    pub fn go_on(mut self, host: &mut dyn Host, cancel: &Cancel) -> Run {
        build::go_on_in(&mut *self.far_end, self.stream, &self.received, &self.session, host, cancel)
    }
}
