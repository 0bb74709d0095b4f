//! The event thread: notifications of the guest and readiness of the agent's streams, for all devices of the VM.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::bus::Bus;
use super::devices::Watched;

/// Set in the tag of a watched descriptor; of the other bits the upper ones are the device, and 32 the id. Without it the tag is an
/// index of `kicks`.
const WATCHED: u64 = 1 << 63;

/// A queue notification. KVM delivers it without an exit of the vCPU to this process; or the VMM itself has something for the
/// device.
pub struct Kick {
    pub event: EventFd,
    pub device: usize,
    pub queue: usize,
}

pub struct Events {
    epoll: Epoll,
    machine: Arc<Bus>,
    kicks: Vec<Kick>,
    /// Per device: the descriptors and the events that are registered with epoll for it.
    watched: Vec<Vec<Watched>>,
    /// Devices that have stopped in the middle, with the queue.
    unfinished: BTreeMap<usize, usize>,
}

impl Events {
    pub fn new(machine: Arc<Bus>, kicks: Vec<Kick>) -> io::Result<Events> {
        let epoll = Epoll::new()?;
        for (index, kick) in kicks.iter().enumerate() {
            let event = EpollEvent::new(EventSet::IN, index as u64);
            epoll.ctl(ControlOperation::Add, kick.event.as_raw_fd(), event)?;
        }
        let watched = vec![Vec::new(); machine.device_count()];
        Ok(Events { epoll, machine, kicks, watched, unfinished: BTreeMap::new() })
    }

    /// Serves all events. Returns only if epoll itself fails.
    pub fn run(mut self) -> io::Error {
        let mut ready = vec![EpollEvent::default(); 32];
        // Devices that go on where a template stood still wait for something from the start.
        for device in 0..self.machine.device_count() {
            if let Err(e) = self.watch(device) {
                return e;
            }
        }
        loop {
            match self.turn(&mut ready) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return e,
                _ => {}
            }
        }
    }

    /// Serves each device that has something to do, and after those the ones that stopped in the middle the last time.
    fn turn(&mut self, ready: &mut [EpollEvent]) -> io::Result<()> {
        let timeout = if self.unfinished.is_empty() { -1 } else { 0 };
        let n = self.epoll.wait(timeout, ready)?;
        let unfinished = std::mem::take(&mut self.unfinished);
        for event in &ready[..n] {
            self.serve(event)?;
        }
        for (device, queue) in unfinished {
            self.machine.device(device).kick(queue);
            self.watch(device)?;
        }
        Ok(())
    }

    fn serve(&mut self, event: &EpollEvent) -> io::Result<()> {
        let device = if event.data() & WATCHED != 0 {
            let device = ((event.data() & !WATCHED) >> 32) as usize;
            self.machine.device(device).ready(event.data() as u32, event.event_set());
            device
        } else {
            let kick = &self.kicks[event.data() as usize];
            // Before the queue is read: a notification that arrives meanwhile counts again.
            match kick.event.read() {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
            self.machine.device(kick.device).kick(kick.queue);
            kick.device
        };
        self.watch(device)
    }

    /// Notes whether the device has stopped in the middle, and registers with epoll the events that it waits for now. A
    /// descriptor without events is removed: with an empty mask epoll would still report a hang-up again and again.
    ///
    /// The device is locked until the end: what it no longer waits for is removed from epoll before it is closed. Afterwards
    /// the number could be another's, and epoll would go on reporting the old one as long as another process has it open.
    fn watch(&mut self, device: usize) -> io::Result<()> {
        let mut transport = self.machine.device(device);
        if let Some(queue) = transport.unfinished() {
            self.unfinished.insert(device, queue);
        }
        let mut wanted = transport.watch();
        wanted.retain(|watched| !watched.events.is_empty());
        let current = &self.watched[device];
        if wanted != *current {
            let is_in = |all: &[Watched], id| all.iter().any(|other| other.id == id);
            for Watched { fd, .. } in current.iter().filter(|watched| !is_in(&wanted, watched.id)) {
                self.epoll.ctl(ControlOperation::Delete, *fd, EpollEvent::default())?;
            }
            for watched in wanted.iter().filter(|watched| !current.contains(watched)) {
                let known = is_in(current, watched.id);
                let operation = if known { ControlOperation::Modify } else { ControlOperation::Add };
                let tag = WATCHED | (device as u64) << 32 | u64::from(watched.id);
                self.epoll.ctl(operation, watched.fd, EpollEvent::new(watched.events, tag))?;
            }
            self.watched[device] = wanted;
        }
        transport.release();
        Ok(())
    }
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
