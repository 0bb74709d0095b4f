#![no_main]
//! Any packets from a guest, in any order, to two ports, against the vsock state machine. Nothing is kept beyond its bounds,
//! no packet is longer than the room for it, what reaches the agent was sent by the guest to that port, and what reaches the
//! guest from a port was sent by the agent there.

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
    hung_up: u32,
}

impl Read for Agent {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { self.input.read(out) }
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
    // Bytes with the number of their port.
    let agent = |index| Agent { room: 100_000, input: vec![index; 200_000].into(), ..Agent::default() };
    let mut connections = Connections::new(PORTS.into_iter().zip([agent(0), agent(1)]), GUEST_CID);
    let payload = vec![2; MAX_PAYLOAD as usize];
    let mut sent = [0; 2];
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
        let len = (len % (MAX_PAYLOAD + 1)) as usize;
        if connections.can_take() {
            connections.from_guest(header, &payload[..len]);
            if let Some(index) = PORTS.iter().position(|port| *port == header.dst_port) {
                sent[index] += len;
            }
        }
        if steer[0] & 2 != 0 {
            connections.read_from_agent();
        }
        connections.flush();
        if steer[0] & 4 != 0 {
            let room = usize::from(steer[0]) * 16;
            if let Some((header, bytes)) = connections.for_guest(room) {
                assert!(bytes.len() <= room);
                let index = PORTS.iter().position(|port| *port == header.src_port);
                assert!(bytes.iter().all(|byte| Some(usize::from(*byte)) == index));
            }
        }
        if steer[0] & 8 != 0 {
            connections.reset();
        }
        for (connection, sent) in connections.iter().zip(sent) {
            assert!(connection.stream().taken <= sent);
            assert!(connection.held() <= (BUFFER + MAX_PAYLOAD) as usize);
        }
    }
});
