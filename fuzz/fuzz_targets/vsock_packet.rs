#![no_main]
//! Any packets from a guest, in any order, against the vsock state machine. Nothing is kept beyond its bounds, no
//! packet is longer than the room for it, and what reaches the agent was sent by the guest, in order.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

use libfuzzer_sys::fuzz_target;
use sandbox::kvm::devices::vsock::GUEST_CID;
use sandbox::kvm::devices::vsock::connection::{BUFFER, Connection, HEADER, Hangup, Header, MAX_PAYLOAD};

const PORT: u32 = 1024;

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
    let agent = Agent { room: 100_000, input: vec![1; 200_000].into(), ..Agent::default() };
    let mut connection = Connection::new(agent, GUEST_CID, PORT);
    let payload = vec![2; MAX_PAYLOAD as usize];
    let mut sent = 0;
    let mut rest = data;
    // A byte that steers, a header; the low bits of its length are how much payload there is.
    while let Some((step, after)) = rest.split_first_chunk::<{ HEADER + 1 }>() {
        rest = after;
        let (steer, bytes) = step.split_first_chunk::<1>().expect("it is longer than that");
        let (mut header, len) = Header::from_bytes(bytes.try_into().expect("a header's length"));
        assert_eq!(Header::from_bytes(&header.to_bytes(len)), (header, len));
        // Mostly the right addresses, or nothing ever gets past the first check.
        if steer[0] & 1 == 0 {
            (header.src_cid, header.dst_cid, header.dst_port, header.type_) = (GUEST_CID, 2, PORT, 1);
            header.src_port &= 1;
            header.op %= 9;
        }
        let len = (len % (MAX_PAYLOAD + 1)) as usize;
        if connection.can_take() {
            connection.from_guest(header, &payload[..len]);
            sent += len;
        }
        if steer[0] & 2 != 0 {
            connection.read_from_agent();
        }
        connection.flush();
        if steer[0] & 4 != 0 {
            let room = usize::from(steer[0]) * 16;
            if let Some((_, bytes)) = connection.for_guest(room) {
                assert!(bytes.len() <= room);
                assert!(bytes.iter().all(|b| *b == 1));
            }
        }
        if steer[0] & 8 != 0 {
            connection.reset();
        }
        assert!(connection.stream().taken <= sent);
        assert!(connection.held() <= (BUFFER + MAX_PAYLOAD) as usize);
    }
});
