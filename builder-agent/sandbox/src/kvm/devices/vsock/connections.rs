//! All connections of a VM: that of the port on which the agent listens from the start, and those of the ports to which it has
//! plugged a stream while the VM runs.
//!
//! A packet belongs to the connection of the port that it names. The connections share the guest's queues, and nothing
//! else: each has its own stream, its own credit and its own buffers, so one that is stalled never holds another. They give
//! the guest packets in turns.
//! A plugged stream carries one connection. When that is over, the stream is closed, and its port can get another one. The
//! agent can also give a stream up: then the guest still gets what it takes, but the port can get another stream at once.

use std::collections::VecDeque;
use std::io::{Read, Write};

use guest::protocol::SSH_PORTS;

use super::connection::{Connection, Hangup, Header, MAX_ANSWERS, State};
use crate::kvm::devices::PlugError;
use crate::kvm::devices::restore_error::RestoreError;

/// The id of the connection that is there from the start.
pub const FIRST: u32 = 0;

pub struct Connections<S> {
    guest_cid: u64,
    /// The first one always; then those that were plugged in, each with another of [`SSH_PORTS`].
    all: Vec<Member<S>>,
    next_id: u32,
    /// The first to be asked for a packet for the guest.
    turn: usize,
    /// For the guest, from connections that are over. At most [`MAX_ANSWERS`].
    answers: VecDeque<Header>,
    /// Of connections that are over, until [`Connections::release`].
    ended: Vec<S>,
}

struct Member<S> {
    /// Never that of another one, as long as the VM lives.
    id: u32,
    connection: Connection<S>,
}

impl<S: Read + Write + Hangup> Connections<S> {
    /// With the connection of this port.
    pub fn new(port: u32, stream: S, guest_cid: u64) -> Connections<S> {
        let first = Member { id: FIRST, connection: Connection::new(stream, guest_cid, port) };
        Connections {
            guest_cid,
            all: vec![first],
            next_id: FIRST + 1,
            turn: 0,
            answers: VecDeque::new(),
            ended: Vec::new(),
        }
    }

    /// Connections with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Connection<S>)> {
        self.all.iter().map(|member| (member.id, &member.connection))
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection<S>> {
        self.all.iter_mut().map(|member| &mut member.connection)
    }

    fn at(&self, port: u32) -> Option<usize> {
        self.all.iter().position(|member| member.connection.port() == port)
    }

    /// Lets the guest connect once to this port, over this stream.
    pub fn plug(&mut self, port: u32, stream: S) -> Result<(), PlugError> {
        if !SSH_PORTS.contains(&port) {
            return Err(PlugError::NoSuchPort { port });
        }
        if let Some(index) = self.at(port) {
            // The first one has another port. Of the others the agent has its end, or has given it up.
            if !self.all[index].connection.has_ended() {
                return Err(PlugError::InUse { port });
            }
            self.end(index);
        }
        let connection = Connection::new(stream, self.guest_cid, port);
        self.all.push(Member { id: self.next_id, connection });
        // It comes round after 4 billion streams.
        self.next_id = self.next_id.checked_add(1).unwrap_or(FIRST + 1);
        Ok(())
    }

    /// Ends the plugged connections of which nothing more can come.
    pub fn settle(&mut self) {
        for index in (1..self.all.len()).rev() {
            if self.all[index].connection.is_over() {
                self.end(index);
            }
        }
    }

    fn end(&mut self, index: usize) {
        let (stream, answers) = self.all.remove(index).connection.end();
        self.ended.push(stream);
        // A guest that has not taken so many gets no more. To what it sends to this port later, it gets an answer again.
        let room = MAX_ANSWERS - self.answers.len();
        self.answers.extend(answers.into_iter().take(room));
        if self.turn > index {
            self.turn -= 1;
        }
    }

    /// Closes the streams of the connections that are over.
    pub fn release(&mut self) {
        self.ended.clear();
    }

    /// Whether another packet of the guest can be taken, to whichever port it is.
    pub fn can_take(&self) -> bool {
        self.answers.len() < MAX_ANSWERS && self.iter().all(|(_, connection)| connection.can_take())
    }

    /// A packet from the guest. Every field is the guest's choice; `payload` is at most
    /// [`MAX_PAYLOAD`](super::connection::MAX_PAYLOAD) bytes.
    pub fn from_guest(&mut self, header: Header, payload: &[u8]) {
        // Nobody listens on another port; any connection resets what is not its own.
        let index = self.at(header.dst_port).unwrap_or(0);
        self.all[index].connection.from_guest(header, payload);
    }

    /// Writes as many bytes as the agent's sockets take.
    pub fn flush(&mut self) {
        self.iter_mut().for_each(Connection::flush);
    }

    /// The stream with this id has bytes of the agent, or `has_ended` in both directions. It may be over since.
    pub fn ready(&mut self, id: u32, has_ended: bool) {
        let Some(member) = self.all.iter_mut().find(|member| member.id == id) else { return };
        if has_ended && id != FIRST {
            member.connection.stream_ended();
        }
        member.connection.read_from_agent();
    }

    pub fn has_for_guest(&self) -> bool {
        !self.answers.is_empty() || self.iter().any(|(_, connection)| connection.has_for_guest())
    }

    /// The next packet for the guest, with at most `room` bytes of payload: of the first connection that has one, and the
    /// next time of one after it.
    pub fn for_guest(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(answer) = self.answers.pop_front() {
            return Some((answer, Vec::new()));
        }
        let count = self.all.len();
        for index in (0..count).map(|n| (self.turn + n) % count) {
            if let Some(packet) = self.all[index].connection.for_guest(room) {
                self.turn = (index + 1) % count;
                return Some(packet);
            }
        }
        None
    }

    /// The driver restarted, or broke the rules so that nobody knows whose packet was lost. What was plugged in is over.
    pub fn reset(&mut self) {
        self.iter_mut().for_each(Connection::reset);
        for index in (1..self.all.len()).rev() {
            self.end(index);
        }
        self.answers.clear();
    }

    /// The state of the first connection.
    pub fn save(&self) -> State {
        self.all[0].connection.state().clone()
    }

    /// Continues from that state, on a stream of its own. On error nothing has changed.
    pub fn restore(&mut self, state: &State) -> Result<(), RestoreError> {
        state.check()?;
        self.all[0].connection.restore(state);
        Ok(())
    }
}

#[cfg(test)]
#[path = "connections_test.rs"]
mod tests;
