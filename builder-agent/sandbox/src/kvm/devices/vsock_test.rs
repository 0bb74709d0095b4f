//! Packets through real queues, in the layouts that Linux uses and in those of a hostile driver.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::super::mmio::{register, status};
use super::super::testing::{Buffer, Driver, OTHER_PORT, PORT, RAM, readable, vsock_header, writable};
use super::connection::op;
use super::*;

const OUT: u64 = 0x8_0000;
const IN: u64 = 0xc_0000;

struct Guest {
    driver: Driver,
    agent: UnixStream,
}

fn guest() -> Guest {
    guest_with_queues_of(16)
}

fn guest_with_queues_of(size: u16) -> Guest {
    let (agent, ours) = UnixStream::pair().unwrap();
    for stream in [&agent, &ours] {
        stream.set_nonblocking(true).unwrap();
    }
    let mut driver = Driver::new(Box::new(Vsock::new(PORT, ours)));
    driver.size = size;
    driver.start();
    Guest { driver, agent }
}

impl Guest {
    /// Sends a header that claims `len` bytes, and `payload` after it in memory, described by `buffers`.
    fn send(&mut self, op: u16, len: u32, payload: &[u8], buffers: &[Buffer]) {
        self.driver.memory.write_slice(&vsock_header(op).to_bytes(len), GuestAddress(OUT)).unwrap();
        self.driver.memory.write_slice(payload, GuestAddress(OUT + 0x1000)).unwrap();
        self.driver.offer(TX, buffers);
        self.driver.kick(TX);
    }

    fn connect(&mut self) {
        self.driver.offer(RX, &[writable(IN, 4096)]);
        self.send(op::REQUEST, 0, &[], &[readable(OUT, 44)]);
        assert_eq!(self.received(), [(op::RESPONSE, 44)]);
    }

    /// Operation and length of each received packet; all of them lie at `IN`.
    fn received(&mut self) -> Vec<(u16, u32)> {
        let used = self.driver.used(RX);
        used.into_iter()
            .map(|(_, len)| {
                let mut bytes = [0; HEADER];
                self.driver.memory.read_slice(&mut bytes, GuestAddress(IN)).unwrap();
                (Header::from_bytes(&bytes).0.op, len)
            })
            .collect()
    }

    fn agent_has(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 17];
        let n = self.agent.read(&mut bytes).unwrap_or(0);
        bytes.truncate(n);
        bytes
    }

    fn agent_saw_the_end(&mut self) -> bool {
        matches!(self.agent.read(&mut [0; 1]), Ok(0))
    }
}

#[test]
fn a_payload_may_lie_in_any_number_of_descriptors() {
    let layouts: [&[Buffer]; 4] = [
        &[readable(OUT, 44), readable(OUT + 0x1000, 9)],
        &[readable(OUT, 44), readable(OUT + 0x1000, 4), readable(OUT + 0x1004, 5)],
        &[readable(OUT, 20), readable(OUT + 20, 24), readable(OUT + 0x1000, 9)],
        &[readable(OUT, 44), readable(OUT + 0x1000, 4096)],
    ];
    for buffers in layouts {
        let mut g = guest();
        g.connect();
        g.send(op::RW, 9, b"nine byte", buffers);
        assert_eq!(g.agent_has(), b"nine byte");
    }
}

#[test]
fn a_length_that_the_chain_does_not_hold_ends_the_connection() {
    let cases: [(u32, &[Buffer]); 5] = [
        (10, &[readable(OUT, 44), readable(OUT + 0x1000, 9)]),
        (u32::MAX, &[readable(OUT, 44), readable(OUT + 0x1000, 9)]),
        (MAX_PAYLOAD + 1, &[readable(OUT, 44), readable(OUT + 0x1000, MAX_PAYLOAD + 1)]),
        (4, &[readable(OUT, 43)]),
        (9, &[readable(OUT, 44), readable(RAM - 4, 9)]),
    ];
    for (len, buffers) in cases {
        let mut g = guest();
        g.connect();
        g.send(op::RW, len, b"nine byte", buffers);
        assert!(g.agent_saw_the_end(), "{len}: nothing of it reaches the agent");
        assert_eq!(g.driver.used(TX).len(), 2, "the guest gets its buffers back");
    }
}

#[test]
fn the_agents_bytes_reach_the_guest_in_the_buffers_it_gave() {
    let mut g = guest();
    g.connect();
    g.agent.write_all(b"job for you").unwrap();
    let Watched { fd, events, .. } = g.driver.transport.watch()[0];
    assert!(fd >= 0 && events.contains(EventSet::IN));
    g.driver.offer(RX, &[writable(IN, 44), writable(IN + 44, 4), writable(IN + 48, 100)]);
    g.driver.transport.ready(0, EventSet::IN);
    assert_eq!(g.received(), [(op::RW, 44 + 11)]);
    let mut text = [0; 11];
    g.driver.memory.read_slice(&mut text, GuestAddress(IN + 44)).unwrap();
    assert_eq!(&text, b"job for you");
}

#[test]
fn a_buffer_too_small_for_a_header_is_given_back_empty_and_nothing_is_lost() {
    let mut g = guest();
    g.connect();
    g.agent.write_all(b"x").unwrap();
    g.driver.offer(RX, &[writable(IN, 43)]);
    g.driver.transport.ready(0, EventSet::IN);
    assert_eq!(g.driver.used(RX).iter().map(|u| u.1).collect::<Vec<_>>(), [0]);
    g.driver.offer(RX, &[writable(IN, 45)]);
    g.driver.kick(RX);
    assert_eq!(g.received(), [(op::RW, 45)]);
}

#[test]
fn nobody_is_waited_for_on_behalf_of_a_guest_without_credit() {
    let mut g = guest();
    g.connect();
    g.driver
        .memory
        .write_slice(
            &Header { buf_alloc: 0, ..vsock_header(op::CREDIT_UPDATE) }.to_bytes(0),
            GuestAddress(OUT),
        )
        .unwrap();
    g.driver.offer(TX, &[readable(OUT, 44)]);
    g.driver.kick(TX);
    assert!(g.driver.transport.watch()[0].events.is_empty());
}

#[test]
fn a_flood_of_questions_waits_in_the_guests_own_queue() {
    let mut g = guest();
    g.connect();
    let mut answered = 0;
    for _ in 0..20 {
        g.driver
            .memory
            .write_slice(&vsock_header(op::CREDIT_REQUEST).to_bytes(0), GuestAddress(OUT))
            .unwrap();
        for _ in 0..8 {
            g.driver.offer(TX, &[readable(OUT, 44)]);
        }
        g.driver.kick(TX);
        answered += g.driver.used(TX).len();
        if g.driver.get(register::STATUS) & status::NEEDS_RESET != 0 {
            break;
        }
    }
    // The connection's own packet, and as many answers as it keeps.
    assert!((1..=65).contains(&answered), "{answered}");
}

#[test]
fn two_streams_share_the_queues_and_no_byte() {
    let (mut control, ours) = UnixStream::pair().unwrap();
    let (mut ssh, other) = UnixStream::pair().unwrap();
    for stream in [&control, &ours, &ssh, &other] {
        stream.set_nonblocking(true).unwrap();
    }
    let mut d = Driver::new(Box::new(Vsock::new(PORT, ours)));
    d.start();
    d.transport.plug(OTHER_PORT, other).unwrap();
    let events = |d: &Driver| d.transport.watch().iter().map(|w| w.events).collect::<Vec<_>>();
    // That the agent gives the plugged one up is always waited for.
    assert_eq!(events(&d), [EventSet::empty(), EventSet::HANG_UP]);
    let send = |d: &mut Driver, port, op, payload: &[u8]| {
        let header = Header { dst_port: port, ..vsock_header(op) };
        d.memory.write_slice(&header.to_bytes(payload.len() as u32), GuestAddress(OUT)).unwrap();
        d.memory.write_slice(payload, GuestAddress(OUT + 0x1000)).unwrap();
        d.offer(TX, &[readable(OUT, 44), readable(OUT + 0x1000, payload.len() as u32)]);
        d.kick(TX);
    };
    let receive = |d: &mut Driver| {
        d.offer(RX, &[writable(IN, 4096)]);
        d.kick(RX);
        let mut bytes = [0; HEADER];
        d.memory.read_slice(&mut bytes, GuestAddress(IN)).unwrap();
        let (header, len) = Header::from_bytes(&bytes);
        let mut payload = vec![0; len as usize];
        d.memory.read_slice(&mut payload, GuestAddress(IN + 44)).unwrap();
        d.used(RX).first().map(|_| (header.src_port, header.op, payload))
    };
    for port in [OTHER_PORT, PORT] {
        send(&mut d, port, op::REQUEST, b"");
        assert_eq!(receive(&mut d), Some((port, op::RESPONSE, vec![])));
    }
    let mut bytes = [0; 64];
    send(&mut d, OTHER_PORT, op::RW, b"SSH-2.0-guest");
    send(&mut d, PORT, op::RW, b"started");
    let n = ssh.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"SSH-2.0-guest");
    let n = control.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"started");

    ssh.write_all(b"SSH-2.0-agent").unwrap();
    control.write_all(b"attach").unwrap();
    let watched = d.transport.watch();
    assert!(watched.len() == 2 && watched[0].fd != watched[1].fd && watched[0].id != watched[1].id);
    assert_eq!(events(&d), [EventSet::IN, EventSet::IN | EventSet::HANG_UP]);
    for Watched { id, .. } in watched {
        d.transport.ready(id, EventSet::IN);
    }
    let got = [receive(&mut d), receive(&mut d)];
    assert!(got.contains(&Some((OTHER_PORT, op::RW, b"SSH-2.0-agent".to_vec()))), "{got:?}");
    assert!(got.contains(&Some((PORT, op::RW, b"attach".to_vec()))), "{got:?}");

    // The end of one.
    drop(ssh);
    let late = d.transport.watch()[1];
    d.transport.ready(late.id, EventSet::IN | EventSet::HANG_UP);
    assert_eq!(receive(&mut d).map(|(port, op, _)| (port, op)), Some((OTHER_PORT, op::SHUTDOWN)));
    assert_eq!(receive(&mut d).map(|(port, op, _)| (port, op)), Some((OTHER_PORT, op::RST)));
    assert_eq!(events(&d), [EventSet::IN]);
    // Its port has another stream, and what epoll still says of the one before is nothing to that.
    let (_agent, third) = UnixStream::pair().unwrap();
    third.set_nonblocking(true).unwrap();
    d.transport.plug(OTHER_PORT, third).unwrap();
    d.transport.ready(late.id, EventSet::IN | EventSet::HANG_UP);
    assert_eq!(events(&d), [EventSet::IN, EventSet::HANG_UP]);
    send(&mut d, PORT, op::RW, b"goes on");
    let n = control.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"goes on");
}

#[test]
fn a_flood_of_packets_leaves_turns_to_the_agent_and_the_other_devices() {
    let mut g = guest_with_queues_of(128);
    g.connect();
    g.agent.write_all(b"for the guest").unwrap();
    let update = vsock_header(op::CREDIT_UPDATE).to_bytes(0);
    g.driver.memory.write_slice(&update, GuestAddress(OUT)).unwrap();
    for _ in 0..TURN + 2 {
        g.driver.offer(TX, &[readable(OUT, 44)]);
    }
    g.driver.offer(RX, &[writable(IN, 4096)]);
    g.driver.used(TX);
    g.driver.kick(TX);
    assert_eq!((g.driver.used(TX).len(), g.driver.transport.unfinished()), (TURN, Some(TX)));
    // One notification was enough for all of them.
    g.driver.transport.ready(0, EventSet::IN);
    assert_eq!(g.received(), [(op::RW, 44 + 13)]);
    assert_eq!((g.driver.used(TX).len(), g.driver.transport.unfinished()), (2, None));
    g.driver.offer(TX, &[readable(OUT, 44); 1]);
    g.driver.kick(TX);
    assert_eq!((g.driver.used(TX).len(), g.driver.transport.unfinished()), (1, None));
}

#[test]
fn a_stream_is_plugged_into_a_device_that_was_started_and_ends_when_its_driver_restarts() {
    let mut g = guest();
    let pair = || {
        let (agent, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (agent, ours)
    };
    for port in [OTHER_PORT, OTHER_PORT + 1] {
        let (mut agent, ours) = pair();
        let fd = ours.as_raw_fd();
        g.driver.transport.plug(port, ours).unwrap();
        if port != OTHER_PORT {
            // This one is connected, the other one waits.
            let header = Header { dst_port: port, ..vsock_header(op::REQUEST) };
            g.driver.memory.write_slice(&header.to_bytes(0), GuestAddress(OUT)).unwrap();
            g.driver.offer(TX, &[readable(OUT, 44)]);
            g.driver.kick(TX);
        }
        g.driver.set(register::STATUS, 0);
        assert_eq!(agent.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(g.driver.transport.watch(), []);
        // Open until the event thread has taken it out of epoll.
        let is_open = || std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap();
        assert!(is_open() && agent.write(b"x").is_err());
        g.driver.transport.release();
        assert!(!is_open());
        let refused = g.driver.transport.plug(port, pair().1);
        assert_eq!(refused, Err(PlugError::NotReady));
        g.driver.restart();
    }
    g.driver.transport.plug(OTHER_PORT, pair().1).unwrap();
    assert_eq!(g.driver.transport.plug(OTHER_PORT, pair().1), Err(PlugError::InUse { port: OTHER_PORT }));
}
