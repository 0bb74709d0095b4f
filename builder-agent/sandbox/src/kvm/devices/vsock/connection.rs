//! The vsock state machine: the meaning of each packet, and the credit of both sides.
//!
//! A port has one connection in all, begun by the guest, to the `port` of [`Connection::new`]. Any other packet
//! is answered with a reset, as by a host without a listener. Credit (virtio 1.2, 5.10.6.3) works in both
//! directions: the guest may have sent [`BUFFER`] bytes that the agent has not taken, and the device sends as
//! much as the guest has room for. Memory here is [`BUFFER`] + [`MAX_PAYLOAD`] + a few headers, whatever the
//! guest does.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::num::Wrapping;

use serde::{Deserialize, Serialize};

use crate::kvm::devices::restore_error::RestoreError;

/// Bytes of a packet's header. Virtio 1.2, 5.10.6: struct virtio_vsock_hdr.
pub const HEADER: usize = 44;
/// Largest payload of one packet. Linux: VIRTIO_VSOCK_MAX_PKT_BUF_SIZE.
pub const MAX_PAYLOAD: u32 = 64 * 1024;
/// Most bytes that the guest may send before the agent has taken them: four of its largest packets.
pub const BUFFER: u32 = 256 * 1024;
/// Most answers kept while the guest offers no buffer for them. At this limit no more packets are taken from the guest.
pub(super) const MAX_ANSWERS: usize = 64;

pub const HOST_CID: u64 = 2;
pub const TYPE_STREAM: u16 = 1;

/// Operations. Virtio 1.2, 5.10.6.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// The sender of SHUTDOWN will not receive, or will not send, any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
pub const SHUTDOWN_SEND: u32 = 2;

/// The header of one packet, copied out of guest memory or about to be written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub type_: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// The header and the length of the payload that it claims.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> (Header, u32) {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let header = Header {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            type_: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        };
        (header, u32_at(24))
    }

    pub fn to_bytes(self, len: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.type_.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The header of an answer to this packet.
    fn answer(&self, op: u16) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            type_: TYPE_STREAM,
            op,
            ..Header::default()
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// The guest has not connected yet.
    Waiting,
    Open {
        guest_port: u32,
    },
    /// The connection has ended. There is no second one: the agent's stream has ended, too.
    Closed,
}

/// The state of a connection, apart from its stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    phase: Phase,
    answers: VecDeque<Header>,
    /// Bytes from the guest that the agent has not taken yet. At most [`BUFFER`].
    to_agent: VecDeque<u8>,
    /// Bytes from the agent that the guest has not received yet. At most [`MAX_PAYLOAD`].
    to_guest: VecDeque<u8>,
    /// Bytes of the guest that the agent has taken: our `fwd_cnt`.
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` that was last sent to the guest.
    told: Wrapping<u32>,
    sent: Wrapping<u32>,
    guest_buffer: u32,
    guest_forwarded: Wrapping<u32>,
    /// The guest will send no more.
    guest_done: bool,
    /// The agent's stream has been shut down for writing.
    hung_up: bool,
    /// The guest will receive no more.
    guest_deaf: bool,
    /// The agent will send no more.
    agent_done: bool,
    /// The guest has been informed of that.
    said_agent_done: bool,
    /// The agent receives no more.
    agent_deaf: bool,
}

impl State {
    /// Whether a connection can have this state: none of its buffers is larger than it may be.
    pub fn check(&self) -> Result<(), RestoreError> {
        let held = [
            ("answers", self.answers.len(), MAX_ANSWERS),
            ("bytes for the agent", self.to_agent.len(), BUFFER as usize),
            ("bytes for the guest", self.to_guest.len(), MAX_PAYLOAD as usize),
        ];
        for (what, held, most) in held {
            if held > most {
                return Err(RestoreError::new("vsock", format!("it holds {held} {what}, more than {most}")));
            }
        }
        Ok(())
    }
}

/// A stream whose sending half can be closed.
pub trait Hangup {
    fn hang_up(&mut self);

    /// Before it is closed: nothing more goes in either direction. The other side sees the end after the last byte.
    fn end(&mut self) {}
}

impl Hangup for std::os::unix::net::UnixStream {
    fn hang_up(&mut self) {
        // Fails only if the agent has closed its end.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }

    fn end(&mut self) {
        let _ = self.shutdown(std::net::Shutdown::Both);
        // If bytes were left, the agent would see an error in place of the end. No more come, so it is one buffer of a socket.
        while self.read(&mut [0; 16 * 1024]).is_ok_and(|n| n > 0) {}
    }
}

pub struct Connection<S> {
    stream: S,
    guest_cid: u64,
    port: u32,
    /// The stream has ended in both directions, as [`Connection::stream_ended`] was told.
    has_ended: bool,
    at: State,
}

impl<S: Read + Write + Hangup> Connection<S> {
    pub fn new(stream: S, guest_cid: u64, port: u32) -> Connection<S> {
        let at = State {
            phase: Phase::Waiting,
            answers: VecDeque::with_capacity(MAX_ANSWERS),
            to_agent: VecDeque::with_capacity(BUFFER as usize),
            to_guest: VecDeque::with_capacity(MAX_PAYLOAD as usize),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_buffer: 0,
            guest_forwarded: Wrapping(0),
            guest_done: false,
            hung_up: false,
            guest_deaf: false,
            agent_done: false,
            said_agent_done: false,
            agent_deaf: false,
        };
        Connection { stream, guest_cid, port, has_ended: false, at }
    }

    pub fn port(&self) -> u32 {
        self.port
    }

    pub fn state(&self) -> &State {
        &self.at
    }

    /// Continues from the state of another connection, which was checked, on a stream of its own.
    pub fn restore(&mut self, state: &State) {
        self.at = state.clone();
        // The stream is a new one, and has not been shut down yet.
        if self.at.hung_up {
            self.stream.hang_up();
        }
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    #[cfg(test)]
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Whether another packet of the guest can be taken. Each causes at most one answer.
    pub fn can_take(&self) -> bool {
        self.at.answers.len() < MAX_ANSWERS
    }

    /// A packet from the guest. Every field is the guest's choice; `payload` is at most [`MAX_PAYLOAD`] bytes.
    pub fn from_guest(&mut self, header: Header, payload: &[u8]) {
        // Not the address of this guest, so an answer has no receiver.
        if header.src_cid != self.guest_cid {
            return;
        }
        let known = header.dst_cid == HOST_CID && header.dst_port == self.port && header.type_ == TYPE_STREAM;
        match (self.at.phase, header.op) {
            (Phase::Waiting, op::REQUEST) if known => {
                self.at.phase = Phase::Open { guest_port: header.src_port };
                self.credit(&header);
                self.answer(header.answer(op::RESPONSE));
            }
            (Phase::Open { guest_port }, op) if known && header.src_port == guest_port => {
                self.credit(&header);
                self.packet(op, &header, payload);
            }
            (_, op::RST) => {}
            _ => self.answer(header.answer(op::RST)),
        }
    }

    /// Handles a packet on the open connection.
    fn packet(&mut self, op: u16, header: &Header, payload: &[u8]) {
        match op {
            op::RW => {
                let room = BUFFER as usize - self.at.to_agent.len();
                if self.at.guest_done || payload.len() > room {
                    // The guest sent without credit, or after it had ended its direction.
                    self.answer(header.answer(op::RST));
                    self.close();
                } else if self.at.agent_deaf {
                    self.at.forwarded += payload.len() as u32;
                } else {
                    self.at.to_agent.extend(payload);
                    self.flush();
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => {
                let update = self.data_header(op::CREDIT_UPDATE);
                self.answer(update);
            }
            op::SHUTDOWN => {
                self.at.guest_done |= header.flags & SHUTDOWN_SEND != 0;
                self.at.guest_deaf |= header.flags & SHUTDOWN_RECEIVE != 0;
                if self.at.guest_deaf {
                    self.at.to_guest.clear();
                }
                if self.at.guest_done && self.at.guest_deaf {
                    // Virtio 1.2, 5.10.6.6: a full shutdown is acknowledged with a reset.
                    self.answer(header.answer(op::RST));
                    self.close();
                }
                self.flush();
            }
            op::RST => self.close(),
            _ => {
                self.answer(header.answer(op::RST));
                self.close();
            }
        }
    }

    fn credit(&mut self, header: &Header) {
        self.at.guest_buffer = header.buf_alloc;
        self.at.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    fn answer(&mut self, mut header: Header) {
        if header.op == op::RESPONSE || header.op == op::CREDIT_UPDATE {
            header.buf_alloc = BUFFER;
        }
        // `can_take` reserved a place for this answer.
        self.at.answers.push_back(header);
    }

    /// Ends the connection. The agent still receives the bytes that the guest has sent, and then the end of
    /// the stream.
    fn close(&mut self) {
        self.at.phase = Phase::Closed;
        self.at.guest_done = true;
        self.at.guest_deaf = true;
        self.at.to_guest.clear();
        self.flush();
    }

    /// The driver restarted. A restarted guest must not write into the stream of the one before.
    pub fn reset(&mut self) {
        self.at.answers.clear();
        if self.at.phase != Phase::Waiting {
            self.close();
        }
    }

    /// Writes as many bytes as the agent's socket takes.
    pub fn flush(&mut self) {
        while !self.at.to_agent.is_empty() && !self.at.agent_deaf {
            match self.stream.write(self.at.to_agent.as_slices().0) {
                Ok(n) if n > 0 => {
                    self.at.to_agent.drain(..n);
                    self.at.forwarded += n as u32;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                _ => self.at.agent_deaf = true,
            }
        }
        if self.at.agent_deaf {
            self.at.forwarded += self.at.to_agent.len() as u32;
            self.at.to_agent.clear();
        }
        if self.at.guest_done && !self.at.hung_up {
            self.at.hung_up = true;
            self.stream.hang_up();
        }
    }

    /// Neither side of the stream sends any more: the agent has closed its end, or each has ended its own direction. What the
    /// agent has sent can still be read.
    pub fn stream_ended(&mut self) {
        self.has_ended = true;
        // Otherwise it was the agent who ended both.
        self.at.agent_deaf |= !self.at.hung_up;
        self.flush();
    }

    /// Whether the agent can do no more with it.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether nothing more can come of it: neither a connection, nor a byte in either direction.
    pub fn is_over(&self) -> bool {
        let agent_has_all = self.at.agent_deaf || self.at.guest_done && self.at.to_agent.is_empty();
        match self.at.phase {
            Phase::Waiting => self.has_ended,
            Phase::Open { .. } => agent_has_all && (self.at.guest_deaf || self.at.said_agent_done),
            Phase::Closed => agent_has_all,
        }
    }

    /// Ends it, and gives its stream, and the answers that the guest has not taken yet. The last one resets what is still open.
    pub fn end(mut self) -> (S, VecDeque<Header>) {
        if matches!(self.at.phase, Phase::Open { .. }) {
            let reset = self.data_header(op::RST);
            self.at.answers.push_back(Header { buf_alloc: 0, ..reset });
        }
        for answer in self.at.answers.iter_mut().filter(|answer| answer.buf_alloc > 0) {
            answer.fwd_cnt = self.at.forwarded.0;
        }
        if !self.at.hung_up {
            self.stream.hang_up();
        }
        self.stream.end();
        (self.stream, self.at.answers)
    }

    /// Number of bytes held in both directions. At most [`BUFFER`] + [`MAX_PAYLOAD`].
    pub fn held(&self) -> usize {
        self.at.to_agent.len() + self.at.to_guest.len()
    }

    pub fn has_for_agent(&self) -> bool {
        !self.at.to_agent.is_empty()
    }

    /// Whether it is useful to read from the agent now. False if the guest has no room, or the agent is done.
    pub fn wants_input(&self) -> bool {
        matches!(self.at.phase, Phase::Open { .. })
            && !self.at.agent_done
            && !self.at.guest_deaf
            && self.at.to_guest.is_empty()
            && self.guest_room() > 0
    }

    pub fn read_from_agent(&mut self) {
        if !self.wants_input() {
            return;
        }
        let mut buffer = [0u8; 16 * 1024];
        while self.at.to_guest.len() < (MAX_PAYLOAD as usize).min(self.guest_room()) {
            let want = (MAX_PAYLOAD as usize - self.at.to_guest.len()).min(buffer.len());
            match self.stream.read(&mut buffer[..want]) {
                Ok(0) => {
                    self.at.agent_done = true;
                    return;
                }
                Ok(n) => self.at.to_guest.extend(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.at.agent_done = true;
                    return;
                }
            }
        }
    }

    /// Number of bytes that the guest can still receive, by its own numbers. 0 if they contradict each other.
    fn guest_room(&self) -> usize {
        let in_flight = (self.at.sent - self.at.guest_forwarded).0;
        self.at.guest_buffer.saturating_sub(in_flight) as usize
    }

    fn owes_credit(&self) -> bool {
        // At half the buffer: the guest may believe that there is no room left.
        matches!(self.at.phase, Phase::Open { .. }) && (self.at.forwarded - self.at.told).0 >= BUFFER / 2
    }

    fn has_data(&self) -> bool {
        !self.at.to_guest.is_empty() && self.guest_room() > 0
    }

    fn owes_end(&self) -> bool {
        matches!(self.at.phase, Phase::Open { .. })
            && self.at.agent_done
            && self.at.to_guest.is_empty()
            && !self.at.said_agent_done
    }

    pub fn has_for_guest(&self) -> bool {
        !self.at.answers.is_empty() || self.owes_credit() || self.has_data() || self.owes_end()
    }

    /// The next packet for the guest, with at most `room` bytes of payload.
    pub fn for_guest(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(mut header) = self.at.answers.pop_front() {
            header.fwd_cnt = if header.buf_alloc > 0 { self.tell() } else { 0 };
            return Some((header, Vec::new()));
        }
        if self.has_data() && room > 0 {
            let n = self.at.to_guest.len().min(room).min(self.guest_room());
            let payload: Vec<u8> = self.at.to_guest.drain(..n).collect();
            self.at.sent += n as u32;
            let mut header = self.data_header(op::RW);
            header.fwd_cnt = self.tell();
            return Some((header, payload));
        }
        if self.owes_credit() {
            let mut header = self.data_header(op::CREDIT_UPDATE);
            header.fwd_cnt = self.tell();
            return Some((header, Vec::new()));
        }
        if self.owes_end() {
            self.at.said_agent_done = true;
            let mut header = self.data_header(op::SHUTDOWN);
            header.flags = SHUTDOWN_SEND;
            header.fwd_cnt = self.tell();
            return Some((header, Vec::new()));
        }
        None
    }

    fn data_header(&self, op: u16) -> Header {
        let dst_port = if let Phase::Open { guest_port } = self.at.phase { guest_port } else { 0 };
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.port,
            dst_port,
            type_: TYPE_STREAM,
            op,
            buf_alloc: BUFFER,
            ..Header::default()
        }
    }

    fn tell(&mut self) -> u32 {
        self.at.told = self.at.forwarded;
        self.at.forwarded.0
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
