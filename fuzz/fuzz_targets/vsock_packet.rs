#![no_main]
//! Any packets from a guest, in any order, to the port that is always there and to one whose streams come and go, against the
//! vsock state machine. Nothing is kept beyond its bounds, no packet is longer than the room for it, what reaches the agent
//! was sent by the guest to that port, and what reaches the guest from a port was sent by the agent over the stream that is
//! there.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use libfuzzer_sys::fuzz_target;
use sandbox::kvm::devices::vsock::GUEST_CID;
use sandbox::kvm::devices::vsock::connection::{BUFFER, HEADER, Hangup, Header, MAX_PAYLOAD};
use sandbox::kvm::devices::vsock::connections::Connections;

const PORTS: [u32; 2] = [1024, 1025];

#[derive(Default)]
struct Agent {
    taken: usize,
    room: usize,
    input: VecDeque<u8>,
    /// What a reader sees after that.
    ended: bool,
    hung_up: u32,
}

impl Read for Agent {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.input.is_empty() {
            true if self.ended => Ok(0),
            true => Err(ErrorKind::WouldBlock.into()),
            false => self.input.read(out),
        }
    }
}

impl Write for Agent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert_eq!(self.hung_up, 0, "a byte after the end");
        let n = bytes.len().min(self.room);
        if n == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= n;
        self.taken += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Hangup for Agent {
    fn hang_up(&mut self) {
        self.hung_up += 1;
        assert_eq!(self.hung_up, 1, "one end");
    }
}

fuzz_target!(|data: &[u8]| {
    // Bytes with the number of their stream.
    let agent = |number, ended| Agent {
        room: 100_000,
        input: vec![number; 200_000].into(),
        ended,
        ..Agent::default()
    };
    let [first, plugged] = PORTS;
    let mut connections = Connections::new(first, agent(0, false), GUEST_CID);
    let payload = vec![2; MAX_PAYLOAD as usize];
    let mut sent = [0; 2];
    // Of the stream that is plugged in, or was last.
    let mut number = 0;
    let mut rest = data;
    // A byte that steers, a header; the low bits of its length are how much payload there is.
    while let Some((step, after)) = rest.split_first_chunk::<{ HEADER + 1 }>() {
        rest = after;
        let (steer, bytes) = step.split_first_chunk::<1>().expect("it is longer than that");
        let (mut header, len) = Header::from_bytes(bytes.try_into().expect("a header's length"));
        assert_eq!(Header::from_bytes(&header.to_bytes(len)), (header, len));
        // Mostly the right addresses, or nothing ever gets past the first check.
        if steer[0] & 1 == 0 {
            (header.src_cid, header.dst_cid, header.type_) = (GUEST_CID, 2, 1);
            header.dst_port = PORTS[(header.dst_port & 1) as usize];
            header.src_port &= 1;
            header.op %= 9;
        }
        if steer[0] & 0x10 != 0 {
            // Some agents have little to say, and are gone then.
            let mut agent = agent(number % 100 + 1, steer[0] & 0x40 != 0);
            agent.input.truncate(if agent.ended { 5000 } else { usize::MAX });
            let was_there = connections
                .iter()
                .any(|(_, connection)| connection.port() == plugged && !connection.has_ended());
            let is_new = connections.plug(plugged, agent).is_ok();
            assert_eq!(is_new, !was_there);
            if is_new {
                (number, sent[1]) = (number % 100 + 1, 0);
            }
            assert!(connections.plug(first, Agent::default()).is_err());
        }
        let len = (len % (MAX_PAYLOAD + 1)) as usize;
        if connections.can_take() {
            connections.from_guest(header, &payload[..len]);
            if let Some(index) = PORTS.iter().position(|port| *port == header.dst_port) {
                sent[index] += len;
            }
        }
        if steer[0] & 2 != 0 {
            let ids: Vec<_> =
                connections.iter().map(|(id, connection)| (id, connection.stream().ended)).collect();
            for (id, ended) in ids {
                connections.ready(id, ended && steer[0] & 0x20 != 0);
            }
        }
        connections.flush();
        connections.settle();
        assert!(connections.iter().all(|(id, connection)| id == 0 || !connection.is_over()));
        if steer[0] & 4 != 0 {
            let room = usize::from(steer[0]) * 16;
            if let Some((header, bytes)) = connections.for_guest(room) {
                assert!(bytes.len() <= room);
                let expected = if header.src_port == plugged { number } else { 0 };
                assert!(bytes.iter().all(|byte| *byte == expected));
            }
        }
        if steer[0] & 8 != 0 {
            connections.reset();
            assert_eq!(connections.iter().count(), 1);
        }
        for ((_, connection), sent) in connections.iter().zip(sent) {
            assert!(connection.stream().taken <= sent);
            assert!(connection.held() <= (BUFFER + MAX_PAYLOAD) as usize);
        }
        if steer[0] & 0x80 != 0 {
            connections.release();
        }
    }
});
