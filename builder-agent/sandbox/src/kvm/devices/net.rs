//! virtio-net (virtio 1.2, 5.1): carries Ethernet frames between the guest and a socket, one message for each frame.
//!
//! The device looks at the length of a frame and at nothing in it: what a guest may say to whom is decided behind the
//! socket. There are no offloads and no control queue, so nothing in the header before a frame matters either.
//! Memory here is one frame in each direction. If the socket is full, the frame waits, and those after it stay in the
//! guest's queue; if the guest has no buffers, frames stay in the socket. What cannot be carried (a wrong length, a
//! buffer that is too small) is lost, as on a real network.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use super::restore_error::RestoreError;
use super::state::DeviceState;
use super::{Device, Used, Watched};

const KIND: u32 = 1;
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;

/// The guest's address.
pub const MAC: [u8; 6] = [0x52, 0x55, 0, 0, 0, 2];
/// Largest payload of a frame.
const MTU: u16 = 1500;
/// Two addresses and a type.
const ETHERNET: usize = 14;
/// Longest frame. No tags of virtual networks.
pub const FRAME_MAX: usize = ETHERNET + MTU as usize;

/// The header before each frame. Virtio 1.2, 5.1.6: struct virtio_net_hdr.
const HEADER: usize = 12;
/// Nothing to compute or to split, and the frame lies in one buffer: `num_buffers`, the last two bytes, is 1.
const TO_GUEST: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// Most frames that one call moves in each direction. Then other devices of the VM have their turn: the guest's stream to
/// the agent does not wait for the end of a flood.
const TURN: usize = 64;

/// The state of a network card, apart from its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The address and the MTU that the driver has read.
    mac: [u8; 6],
    mtu: u16,
    /// The frame of the guest that the socket did not take. Empty: there is none.
    waiting: Vec<u8>,
}

pub struct Net {
    /// A SOCK_SEQPACKET. No call here blocks on it, whatever its flags are.
    socket: OwnedFd,
    /// The address (6 bytes), status and number of queue pairs (4, not offered), the MTU (2), little-endian.
    config: [u8; 12],
    /// The frame of the guest that the socket did not take. Empty: there is none.
    waiting: Vec<u8>,
    /// The guest's queue may have more frames, which no notification will announce again.
    has_more: bool,
    /// The guest has a buffer for the next frame.
    has_room: bool,
    /// The other side of the socket is gone. From then on the guest's frames are lost and none arrive.
    is_cut: bool,
}

/// The next message of the socket.
enum Next {
    Frame(usize),
    /// A message that is no frame.
    Unusable,
    None,
}

impl Net {
    pub fn new(socket: OwnedFd) -> Net {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&MAC);
        config[10..].copy_from_slice(&MTU.to_le_bytes());
        Net {
            socket,
            config,
            waiting: Vec::with_capacity(FRAME_MAX),
            has_more: false,
            has_room: false,
            is_cut: false,
        }
    }

    /// Moves the frames that can move, in both directions, at most [`TURN`] in each.
    fn pump(&mut self, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        Ok(self.take_guest_frames(&mut queues[TX], memory)?
            | self.give_guest_frames(&mut queues[RX], memory)?)
    }

    /// Takes the guest's frames. Stops when the socket is full: the frames after the waiting one stay in the queue.
    fn take_guest_frames(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        self.has_more = false;
        self.flush();
        for _ in 0..TURN {
            if !self.waiting.is_empty() {
                return Ok(moved);
            }
            let Some(chain) = queue.iter(memory)?.next() else { return Ok(moved) };
            let head = chain.head_index();
            self.read_frame(chain, memory);
            self.flush();
            queue.add_used(memory, head, 0)?;
            moved = true;
        }
        self.has_more = true;
        Ok(moved)
    }

    /// Gives the guest the frames of the socket, as long as it has buffers for them.
    fn give_guest_frames(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Used {
        let mut moved = false;
        let mut frame = [0; FRAME_MAX];
        for _ in 0..TURN {
            // The buffer first: a frame without one must stay in the socket.
            let Some(chain) = queue.iter(memory)?.next() else {
                self.has_room = false;
                return Ok(moved);
            };
            self.has_room = true;
            let len = match self.receive(&mut frame) {
                Next::Frame(len) => len,
                Next::Unusable => {
                    queue.go_to_previous_position();
                    continue;
                }
                Next::None => {
                    queue.go_to_previous_position();
                    return Ok(moved);
                }
            };
            let head = chain.head_index();
            // A buffer that cannot hold the frame is returned empty, and the frame is lost.
            let written = write_frame(chain, memory, &frame[..len]);
            queue.add_used(memory, head, written)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Copies one frame out of guest memory into `self.waiting`; of a chain that holds no frame, nothing.
    fn read_frame(&mut self, chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) {
        let Ok(mut reader) = chain.reader(memory) else { return };
        let Some(len) = reader.available_bytes().checked_sub(HEADER) else { return };
        if !is_frame(len) {
            return;
        }
        self.waiting.resize(len, 0);
        let header = &mut [0; HEADER];
        if reader.read_exact(header).and_then(|()| reader.read_exact(&mut self.waiting)).is_err() {
            self.waiting.clear();
        }
    }

    /// Sends the waiting frame, if there is one and the socket takes it.
    fn flush(&mut self) {
        while !self.waiting.is_empty() && !self.is_cut {
            match send(&self.socket, &self.waiting, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => self.waiting.clear(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // The kernel lacks memory for this one.
                Err(Errno::NOBUFS | Errno::NOMEM) => self.waiting.clear(),
                Err(_) => self.is_cut = true,
            }
        }
        if self.is_cut {
            self.waiting.clear();
        }
    }

    fn receive(&mut self, frame: &mut [u8; FRAME_MAX]) -> Next {
        while !self.is_cut {
            // TRUNC: the length of the message, also if it is longer than the buffer.
            match recv(&self.socket, &mut frame[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                // The end: nobody sends empty messages.
                Ok((_, 0)) => self.is_cut = true,
                Ok((_, len)) if is_frame(len) => return Next::Frame(len),
                Ok(_) => return Next::Unusable,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Next::None,
                Err(_) => self.is_cut = true,
            }
        }
        Next::None
    }
}

fn is_frame(len: usize) -> bool {
    (ETHERNET..=FRAME_MAX).contains(&len)
}

/// Writes a header and the frame into the guest's buffer; gives the number of bytes written.
fn write_frame(chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap, frame: &[u8]) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else { return 0 };
    if writer.available_bytes() < HEADER + frame.len() {
        return 0;
    }
    match writer.write_all(&TO_GUEST).and_then(|()| writer.write_all(frame)) {
        Ok(()) => (HEADER + frame.len()) as u32,
        Err(_) => 0,
    }
}

impl Device for Net {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        FEATURE_MAC | FEATURE_MTU
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // Receive, transmit.
        &[QUEUE_SIZE; 2]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn kicked(&mut self, _index: usize, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        self.pump(queues, memory)
    }

    fn watch(&self) -> Vec<Watched> {
        if self.is_cut {
            return Vec::new();
        }
        let mut events = EventSet::empty();
        events.set(EventSet::IN, self.has_room);
        // A socket with room is ready at once: so the next turn comes after those of the other devices.
        events.set(EventSet::OUT, !self.waiting.is_empty() || self.has_more);
        vec![Watched { fd: self.socket.as_raw_fd(), id: 0, events }]
    }

    fn ready(&mut self, _id: u32, _events: EventSet, queues: &mut [Queue], memory: &GuestMemoryMmap) -> Used {
        self.pump(queues, memory)
    }

    fn reset(&mut self) {
        self.waiting.clear();
        (self.has_more, self.has_room) = (false, false);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(State { mac: MAC, mtu: MTU, waiting: self.waiting.clone() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(State { mac, mtu, waiting }) = state else {
            return Err(RestoreError::new("network card", "the state is another device's"));
        };
        if (*mac, *mtu) != (MAC, MTU) {
            return Err(RestoreError::differs("network card", "address and MTU", (mac, mtu), (&MAC, &MTU)));
        }
        if !waiting.is_empty() && !is_frame(waiting.len()) {
            let why = format!("it holds a frame of {} bytes", waiting.len());
            return Err(RestoreError::new("network card", why));
        }
        self.waiting = waiting.clone();
        // The notifications that follow a restore set these again.
        (self.has_more, self.has_room) = (false, false);
        Ok(())
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
