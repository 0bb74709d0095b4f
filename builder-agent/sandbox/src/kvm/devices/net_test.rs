//! Frames through real queues and a real socket, in the layouts that Linux uses and in those of a hostile driver.

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress};

use super::super::mmio::{register, status};
use super::super::testing::{Buffer, Driver, RAM, readable, writable};
use super::*;

const OUT: u64 = 0x8_0000;
const IN: u64 = 0xc_0000;
const LONGEST: u32 = (HEADER + FRAME_MAX) as u32;

/// The device's end and the other one of a socket of frames.
fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

struct Guest {
    driver: Driver,
    far: OwnedFd,
}

fn guest() -> Guest {
    guest_with_queues_of(16)
}

fn guest_with_queues_of(size: u16) -> Guest {
    let (ours, far) = pair();
    let mut driver = Driver::new(Box::new(Net::new(ours)));
    driver.size = size;
    driver.start();
    assert_eq!(driver.get(register::STATUS) & status::NEEDS_RESET, 0);
    Guest { driver, far }
}

/// A frame with this number in each byte.
fn frame(number: u8, len: usize) -> Vec<u8> {
    vec![number; len]
}

impl Guest {
    /// Puts a header, which asks for all offloads there are, and `frame` after it into memory.
    fn write(&mut self, frame: &[u8]) {
        self.driver.memory.write_slice(&[0xff; HEADER], GuestAddress(OUT)).unwrap();
        self.driver.memory.write_slice(frame, GuestAddress(OUT + HEADER as u64)).unwrap();
    }

    fn send(&mut self, frame: &[u8]) {
        self.write(frame);
        self.driver.offer(TX, &[readable(OUT, (HEADER + frame.len()) as u32)]);
        self.driver.kick(TX);
    }

    /// The frames that arrived at the other end.
    fn sent(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.next_sent()).collect()
    }

    fn next_sent(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 1 << 17];
        let (n, _) = recv(&self.far, &mut bytes[..], RecvFlags::DONTWAIT).ok()?;
        bytes.truncate(n);
        Some(bytes)
    }

    /// A message from the other end.
    fn arrive(&self, message: &[u8]) {
        send(&self.far, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap();
    }

    fn ready(&mut self) {
        self.driver.transport.ready(0, EventSet::IN);
    }

    fn events(&self) -> Option<EventSet> {
        self.driver.transport.watch().first().map(|watched| watched.events)
    }

    /// The lengths of the buffers of the receive queue that came back.
    fn received(&mut self) -> Vec<u32> {
        self.driver.used(RX).into_iter().map(|(_, len)| len).collect()
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

#[test]
fn the_driver_reads_the_address_and_the_mtu() {
    let g = guest();
    let mut config = [0; 12];
    g.driver.transport.read(register::CONFIG, &mut config);
    assert_eq!(config[..6], [0x52, 0x55, 0, 0, 0, 2]);
    assert_eq!(config[10..], 1500u16.to_le_bytes());
    assert_eq!(g.driver.get(register::DEVICE_ID), 1);
}

#[test]
fn a_driver_that_wants_more_than_address_and_mtu_is_refused() {
    // Offloads, mergeable buffers, reports of hashes and others would change the header or add queues.
    for bit in 0..64 {
        let mut driver = Driver::new(Box::new(Net::new(pair().0)));
        driver.add_status(status::ACKNOWLEDGE);
        driver.add_status(status::DRIVER);
        let wanted = 1u64 << 32 | 1 << bit;
        for page in 0..2 {
            driver.set(register::DRIVER_FEATURES_SELECT, page);
            driver.set(register::DRIVER_FEATURES, (wanted >> (32 * page)) as u32);
        }
        driver.add_status(status::FEATURES_OK);
        let is_accepted = driver.get(register::STATUS) & status::FEATURES_OK != 0;
        assert_eq!(is_accepted, [3, 5, 32].contains(&bit), "bit {bit}");
    }
}

#[test]
fn a_frame_of_the_guest_is_one_message_however_it_lies_in_memory() {
    let body = OUT + HEADER as u64;
    let layouts: [&[Buffer]; 4] = [
        &[readable(OUT, 72)],
        &[readable(OUT, 12), readable(body, 60)],
        &[readable(OUT, 5), readable(OUT + 5, 7), readable(body, 14), readable(body + 14, 46)],
        // What the device could write has no part in it.
        &[readable(OUT, 72), writable(IN, 100)],
    ];
    for buffers in layouts {
        let mut g = guest();
        g.write(&frame(7, 60));
        g.driver.offer(TX, buffers);
        g.driver.kick(TX);
        assert_eq!(g.sent(), [frame(7, 60)]);
        assert_eq!(g.driver.used(TX), [(0, 0)]);
    }
}

#[test]
fn a_frame_for_the_guest_follows_a_header_without_offloads() {
    let layouts: [&[Buffer]; 3] = [
        &[writable(IN, LONGEST)],
        &[writable(IN, 12), writable(IN + 12, FRAME_MAX as u32)],
        &[writable(IN, 3), writable(IN + 3, 20), writable(IN + 23, 49)],
    ];
    for buffers in layouts {
        let mut g = guest();
        g.arrive(&frame(9, 60));
        g.driver.offer(RX, buffers);
        g.driver.kick(RX);
        assert_eq!(g.received(), [72]);
        assert_eq!(g.memory(IN, HEADER), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(g.memory(IN + 12, 60), frame(9, 60));
        assert_eq!(g.memory(IN + 72, 8), [0; 8]);
    }
}

#[test]
fn of_the_guests_chains_only_those_with_a_whole_frame_are_sent() {
    let cases: [(&[Buffer], usize); 11] = [
        (&[readable(OUT, 11)], 0),
        (&[readable(OUT, 12)], 0),
        (&[readable(OUT, 12 + 13)], 0),
        (&[readable(OUT, 12 + 14)], 14),
        (&[readable(OUT, LONGEST)], FRAME_MAX),
        (&[readable(OUT, LONGEST + 1)], 0),
        (&[readable(OUT, 12), readable(OUT, 1000), readable(OUT, 1000)], 0),
        (&[readable(0, RAM as u32)], 0),
        (&[readable(OUT, u32::MAX)], 0),
        (&[readable(RAM - 20, 60)], 0),
        (&[writable(OUT, 72)], 0),
    ];
    let mut g = guest();
    for (buffers, len) in cases {
        g.driver.offer(TX, buffers);
        g.driver.kick(TX);
        assert_eq!(g.driver.used(TX).len(), 1, "the guest gets its buffer back");
        let lengths: Vec<_> = g.sent().iter().map(Vec::len).collect();
        assert_eq!(lengths, if len == 0 { vec![] } else { vec![len] });
    }
    assert_eq!(g.driver.get(register::STATUS) & status::NEEDS_RESET, 0);
}

#[test]
fn messages_that_are_no_frames_take_no_buffer() {
    let mut g = guest();
    for len in [1, 13, FRAME_MAX + 1, 60_000] {
        g.arrive(&frame(1, len));
    }
    g.arrive(&frame(2, 14));
    g.arrive(&frame(3, FRAME_MAX));
    g.driver.offer(RX, &[writable(IN, LONGEST)]);
    g.driver.offer(RX, &[writable(IN + 0x1000, LONGEST)]);
    g.driver.kick(RX);
    assert_eq!(g.received(), [12 + 14, LONGEST]);
    assert_eq!(g.memory(IN + 12, 14), frame(2, 14));
    assert_eq!(g.memory(IN + 0x1000 + 12, FRAME_MAX), frame(3, FRAME_MAX));
}

#[test]
fn a_buffer_that_is_too_small_or_nowhere_loses_one_frame() {
    let useless: [&[Buffer]; 5] = [
        &[writable(IN, 71)],
        &[writable(IN, 11)],
        &[readable(IN, LONGEST)],
        &[writable(RAM - 4, LONGEST)],
        &[writable(IN, 12), writable(u64::MAX - 100, 1000)],
    ];
    for buffers in useless {
        let mut g = guest();
        g.driver.offer(RX, buffers);
        g.driver.offer(RX, &[writable(IN, 72)]);
        g.arrive(&frame(1, 60));
        g.arrive(&frame(2, 60));
        g.driver.kick(RX);
        assert_eq!(g.received(), [0, 72]);
        assert_eq!(g.memory(IN + 12, 60), frame(2, 60));
    }
}

#[test]
fn a_full_socket_keeps_one_frame_waiting_and_the_others_in_the_guests_queue() {
    let mut g = guest();
    let mut taken = 0;
    // A socket has room for some hundred frames.
    while taken < 1000 && g.events().is_some_and(|events| !events.contains(EventSet::OUT)) {
        g.send(&frame(taken as u8, 1514));
        taken += g.driver.used(TX).len();
    }
    assert!((2..1000).contains(&taken), "{taken}");
    // The last one is taken from the queue and waits; the next ones are not taken.
    for number in [200, 201] {
        g.send(&frame(number, 1514));
        assert_eq!(g.driver.used(TX), []);
    }
    let mut arrived = 0;
    for _ in 0..1000 {
        while let Some(bytes) = g.next_sent() {
            // Both chains have the same memory, which has the last of these two frames.
            let number = if arrived < taken { arrived as u8 } else { 201 };
            assert_eq!((bytes.len(), bytes[0]), (1514, number));
            arrived += 1;
        }
        if !g.events().unwrap().contains(EventSet::OUT) {
            break;
        }
        g.driver.transport.ready(0, EventSet::OUT);
    }
    assert_eq!(arrived, taken + 2);
    assert_eq!(g.driver.used(TX).len(), 2);
}

#[test]
fn without_buffers_frames_stay_in_the_socket_and_nobody_waits_for_them() {
    let mut g = guest();
    assert_eq!(g.events(), Some(EventSet::empty()));
    g.arrive(&frame(1, 60));
    g.ready();
    assert_eq!(g.events(), Some(EventSet::empty()));
    g.driver.offer(RX, &[writable(IN, LONGEST)]);
    g.driver.kick(RX);
    assert_eq!(g.received(), [72]);
    // The only buffer is used.
    assert_eq!(g.events(), Some(EventSet::empty()));
    g.driver.offer(RX, &[writable(IN, LONGEST)]);
    g.driver.kick(RX);
    assert_eq!((g.received(), g.events()), (vec![], Some(EventSet::IN)));
    g.arrive(&frame(2, 60));
    g.ready();
    assert_eq!(g.received(), [72]);
}

#[test]
fn a_flood_in_either_direction_leaves_turns_to_the_other_devices() {
    let mut g = guest_with_queues_of(256);
    g.write(&frame(5, 14));
    for _ in 0..100 {
        g.driver.offer(TX, &[readable(OUT, 26)]);
    }
    g.driver.kick(TX);
    // The rest follows without another notification: the socket is ready.
    assert_eq!(g.sent().len(), TURN);
    assert!(g.events().unwrap().contains(EventSet::OUT));
    g.driver.transport.ready(0, EventSet::OUT);
    assert_eq!(g.sent().len(), 100 - TURN);
    assert!(!g.events().unwrap().contains(EventSet::OUT));

    // Not even messages that are no frames, and take no buffer.
    for _ in 0..100 {
        g.arrive(&[1]);
    }
    g.arrive(&frame(6, 14));
    g.driver.offer(RX, &[writable(IN, LONGEST)]);
    g.driver.kick(RX);
    assert_eq!((g.received(), g.events()), (vec![], Some(EventSet::IN)));
    g.ready();
    assert_eq!(g.received(), [26]);
}

#[test]
fn a_card_whose_socket_is_closed_is_quiet() {
    // With a buffer for the next frame; with a frame that waits; with nothing.
    let situations: [fn(&mut Guest); 3] = [
        |g| {
            g.driver.offer(RX, &[writable(IN, LONGEST)]);
            g.driver.kick(RX);
        },
        |g| {
            while g.events().is_some_and(|events| !events.contains(EventSet::OUT)) {
                g.send(&frame(1, 1514));
            }
            g.driver.used(TX);
        },
        |_| {},
    ];
    for situation in situations {
        let mut g = guest();
        situation(&mut g);
        let (other, _) = pair();
        drop(std::mem::replace(&mut g.far, other));
        g.driver.transport.ready(0, EventSet::IN | EventSet::OUT | EventSet::HANG_UP);
        // An empty mask is taken out of epoll, too.
        assert!(g.events().is_none_or(|events| events.is_empty()));
        // The guest's frames are lost, and its queue does not fill.
        for _ in 0..40 {
            g.send(&frame(1, 60));
            assert_eq!(g.driver.used(TX).len(), 1);
        }
        g.driver.offer(RX, &[writable(IN, LONGEST)]);
        g.driver.kick(RX);
        assert!(g.received().is_empty());
        assert_eq!(g.events(), None);
    }
}

#[test]
fn a_restarted_driver_sends_no_frame_of_the_one_before() {
    let mut g = guest();
    while g.events().is_some_and(|events| !events.contains(EventSet::OUT)) {
        g.send(&frame(1, 1514));
    }
    let full = g.sent().len();
    assert!(full > 0);
    g.driver.restart();
    g.send(&frame(2, 60));
    assert_eq!(g.sent(), [frame(2, 60)]);
}

#[test]
fn a_read_of_nothing_does_not_block() {
    // The descriptor's own flags do not matter: another process may share and change them.
    let (ours, far) = pair();
    let mut card = Net::new(ours);
    assert!(matches!(card.receive(&mut [0; FRAME_MAX]), Next::None));
    while card.waiting.is_empty() {
        card.waiting = frame(1, 1514);
        card.flush();
    }
    assert!(!card.is_cut);
    assert_eq!(recv(&far, &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::TRUNC), Ok((1, 1514)));
    assert_eq!(recv(&card.socket, &mut [0; 1][..], RecvFlags::DONTWAIT), Err(Errno::AGAIN));
}
