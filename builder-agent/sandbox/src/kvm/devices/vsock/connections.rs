//! All connections of a VM: one for each port that the agent listens on.
//!
//! A packet belongs to the connection of the port that it names. The connections share the guest's queues, and nothing
//! else: each has its own stream, its own credit and its own buffers, so one that is stalled never holds another. They give
//! the guest packets in turns.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use super::connection::{Connection, Hangup, Header, State};
use crate::kvm::devices::restore_error::RestoreError;

/// The state of one connection, by its port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub port: u32,
    pub state: State,
}

pub struct Connections<S> {
    /// At least one, each with another port.
    all: Vec<Connection<S>>,
    /// The first to be asked for a packet for the guest.
    turn: usize,
}

impl<S: Read + Write + Hangup> Connections<S> {
    /// One connection for each port, each over a stream of its own. There must be at least one.
    pub fn new(streams: impl IntoIterator<Item = (u32, S)>, guest_cid: u64) -> Connections<S> {
        let all: Vec<_> =
            streams.into_iter().map(|(port, stream)| Connection::new(stream, guest_cid, port)).collect();
        assert!(!all.is_empty(), "a vsock device without a port");
        Connections { all, turn: 0 }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Connection<S>> {
        self.all.iter()
    }

    /// Whether another packet of the guest can be taken, to whichever port it is.
    pub fn can_take(&self) -> bool {
        self.all.iter().all(Connection::can_take)
    }

    /// A packet from the guest. Every field is the guest's choice; `payload` is at most
    /// [`MAX_PAYLOAD`](super::connection::MAX_PAYLOAD) bytes.
    pub fn from_guest(&mut self, header: Header, payload: &[u8]) {
        let named = self.all.iter().position(|connection| connection.port() == header.dst_port);
        // Nobody listens on another port; any connection resets what is not its own.
        self.all[named.unwrap_or(0)].from_guest(header, payload);
    }

    /// Writes as many bytes as the agent's sockets take.
    pub fn flush(&mut self) {
        self.all.iter_mut().for_each(Connection::flush);
    }

    /// Reads from the agent for every connection whose guest has room.
    pub fn read_from_agent(&mut self) {
        self.all.iter_mut().for_each(Connection::read_from_agent);
    }

    pub fn has_for_guest(&self) -> bool {
        self.all.iter().any(Connection::has_for_guest)
    }

    /// The next packet for the guest, with at most `room` bytes of payload: of the first connection that has one, and the
    /// next time of one after it.
    pub fn for_guest(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        let count = self.all.len();
        for index in (0..count).map(|n| (self.turn + n) % count) {
            if let Some(packet) = self.all[index].for_guest(room) {
                self.turn = (index + 1) % count;
                return Some(packet);
            }
        }
        None
    }

    /// The driver restarted, or broke the rules so that nobody knows whose packet was lost.
    pub fn reset(&mut self) {
        self.all.iter_mut().for_each(Connection::reset);
    }

    pub fn save(&self) -> Vec<Saved> {
        let saved =
            |connection: &Connection<S>| Saved { port: connection.port(), state: connection.state().clone() };
        self.all.iter().map(saved).collect()
    }

    /// Continues from the state of others, on streams of their own. On error nothing has changed.
    pub fn restore(&mut self, saved: &[Saved]) -> Result<(), RestoreError> {
        let ports = |ports: &mut dyn Iterator<Item = u32>| ports.collect::<Vec<_>>();
        let (were, are) = (
            ports(&mut saved.iter().map(|saved| saved.port)),
            ports(&mut self.all.iter().map(Connection::port)),
        );
        if were != are {
            return Err(RestoreError::differs("vsock", "list of ports", were, are));
        }
        saved.iter().try_for_each(|saved| saved.state.check())?;
        for (connection, saved) in self.all.iter_mut().zip(saved) {
            connection.restore(&saved.state);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "connections_test.rs"]
mod tests;
