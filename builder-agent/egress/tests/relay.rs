//! The relay between real sockets: framing, who waits for whom, and how it ends.

mod common;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use common::*;
use egress::{Event, Limits, MAX_FRAME, Policy, run};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time for something that must not happen.
const A_MOMENT: Duration = Duration::from_millis(200);

struct Ends {
    guest: OwnedFd,
    network: UnixStream,
    control: UnixStream,
    relay: JoinHandle<io::Result<()>>,
}

fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("sockets")
}

fn start(policy: Policy) -> Ends {
    start_with(policy, || {})
}

fn start_with(policy: Policy, first: impl FnOnce() + Send + 'static) -> Ends {
    let (guest, guest_of_relay) = pair(SocketType::SEQPACKET);
    let (network, network_of_relay) = pair(SocketType::STREAM);
    let (control, control_of_relay) = UnixStream::pair().expect("sockets");
    let relay = spawn(move || {
        first();
        run(guest_of_relay, network_of_relay, control_of_relay, policy)
    });
    let network = UnixStream::from(network);
    network.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    control.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Ends { guest, network, control, relay }
}

impl Ends {
    fn guest_sends(&self, frame: &[u8]) {
        assert_eq!(send(&self.guest, frame, SendFlags::NOSIGNAL).expect("sent"), frame.len());
    }

    fn guest_has(&self, patience: Duration) -> bool {
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let mut polled = [PollFd::new(&self.guest, PollFlags::IN)];
        poll(&mut polled, Some(&timeout)).expect("poll") > 0
    }

    fn guest_gets(&self) -> Vec<u8> {
        assert!(self.guest_has(PATIENCE), "nothing came");
        let mut buffer = vec![0; 70_000];
        let (length, _) = recv(&self.guest, &mut *buffer, RecvFlags::empty()).expect("a frame");
        buffer.truncate(length);
        buffer
    }

    fn network_sends(&mut self, frame: &[u8]) {
        let prefix = u32::try_from(frame.len()).expect("short").to_be_bytes();
        self.network.write_all(&[&prefix[..], frame].concat()).expect("sent");
    }

    fn network_gets(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.network.read_exact(&mut prefix).expect("a prefix");
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.network.read_exact(&mut frame).expect("a frame");
        frame
    }

    /// Opens a connection.
    fn connect(&mut self, peer: &str) {
        self.guest_sends(&syn(peer, 443));
        assert_eq!(self.network_gets(), syn(peer, 443));
        let answer = segment(inward(peer), (443, PORT), "SA", (500, 101), &[]);
        self.network_sends(&answer);
        assert_eq!(self.guest_gets(), answer);
    }
}

/// The events until the relay ends its side.
fn read_events(control: UnixStream) -> Vec<Event> {
    let lines = BufReader::new(control).lines();
    lines.map(|line| serde_json::from_str(&line.expect("a line")).expect("an event")).collect()
}

fn is_total(event: Option<&Event>) -> bool {
    matches!(event, Some(Event::Total { .. }))
}

fn data(flow: u16, payload: &[u8]) -> Vec<u8> {
    segment(inward(PEER), (443, flow), "A", (501, 101), payload)
}

#[test]
fn frames_pass_both_ways_and_the_guests_own_end_is_the_end() {
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    for length in [0, 1, 700, MAX_FRAME - 54] {
        let frame = segment(out(PEER), (PORT, 443), "A", (101, 501), &vec![7; length]);
        ends.guest_sends(&frame);
        assert_eq!(ends.network_gets(), frame);
        let frame = data(PORT, &vec![8; length]);
        ends.network_sends(&frame);
        assert_eq!(ends.guest_gets(), frame);
    }
    // Refused, and answered.
    ends.guest_sends(&syn("10.0.0.1", 443));
    assert_eq!(flags(&ends.guest_gets()).0, "AR");
    drop(ends.guest);
    ends.relay.join().expect("no panic").expect("an ordinary end");
    let events = read_events(ends.control);
    assert!(matches!(events[0], Event::Connection { up: 2425.., down: 2425.., .. }), "{events:?}");
    assert!(matches!(events[1], Event::Refused { times: 1, .. }), "{events:?}");
    assert!(matches!(events[2], Event::Total { connections: 1, refused: 1, lost: 0, .. }), "{events:?}");
    assert_eq!(events.len(), 3);
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    let frames = [data(PORT, b"one"), data(PORT, &[1; 1400]), data(PORT, b"three")];
    let mut bytes = Vec::new();
    for frame in &frames {
        bytes.extend(u32::try_from(frame.len()).expect("short").to_be_bytes());
        bytes.extend(frame);
    }
    for size in [1, 3, 4, 5, 57, 1000, bytes.len()] {
        for piece in bytes.chunks(size) {
            ends.network.write_all(piece).expect("sent");
            if size > 50 {
                sleep(Duration::from_millis(2));
            }
        }
        for frame in &frames {
            assert_eq!(&ends.guest_gets(), frame, "pieces of {size}");
        }
    }
}

#[test]
fn a_frame_too_long_for_the_link_is_skipped_and_nonsense_ends_the_relay() {
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    for length in [MAX_FRAME + 1, 9000, 65_549] {
        ends.network_sends(&vec![0xee; length]);
        ends.network_sends(&data(PORT, b"next"));
        assert_eq!(ends.guest_gets(), data(PORT, b"next"), "{length}");
    }
    ends.guest_sends(&vec![0xee; MAX_FRAME + 1]);
    ends.guest_sends(&vec![0xee; 60_000]);
    ends.network.write_all(&[0xff; 4]).expect("sent");
    let error = ends.relay.join().expect("no panic").expect_err("nonsense");
    assert_eq!(error.to_string(), "the stream of the user-mode network has a frame of 4294967295 bytes");
    let events = read_events(ends.control);
    assert!(is_total(events.last()), "{events:?}");
    let Some(Event::Total { dropped, .. }) = events.last() else { unreachable!() };
    assert!((3..=5).contains(&dropped[&egress::Dropped::Oversized]), "{dropped:?}");
}

#[test]
fn a_guest_that_does_not_read_still_sends_and_one_that_cannot_send_still_reads() {
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    // The network sends until everything between it and the guest is full.
    ends.network.set_nonblocking(true).expect("set");
    let frame = data(PORT, &[1; 1400]);
    let message = [&u32::try_from(frame.len()).expect("short").to_be_bytes()[..], &frame].concat();
    let (mut rest, mut sent) = (Vec::new(), 0);
    let mut quiet = Instant::now();
    while quiet.elapsed() < A_MOMENT {
        if rest.is_empty() {
            rest.clone_from(&message);
            sent += 1;
        }
        match ends.network.write(&rest) {
            Ok(length) => {
                rest.drain(..length);
                quiet = Instant::now();
            }
            Err(_) => sleep(Duration::from_millis(1)),
        }
    }
    assert!((100..5000).contains(&sent), "buffers are bounded: {sent}");
    ends.network.set_nonblocking(false).expect("set");
    // The other direction goes on.
    let request = segment(out(PEER), (PORT, 443), "A", (101, 501), b"still here");
    for _ in 0..50 {
        ends.guest_sends(&request);
        assert_eq!(ends.network_gets(), request);
    }
    // Nothing was lost.
    let mut network = ends.network.try_clone().expect("a clone");
    let finish = spawn(move || network.write_all(&rest));
    for _ in 0..sent {
        assert_eq!(ends.guest_gets(), frame);
    }
    finish.join().expect("no panic").expect("sent");

    // And the other way round: the guest sends until everything is full.
    let mut sent = 0;
    let mut quiet = Instant::now();
    while quiet.elapsed() < A_MOMENT {
        match send(&ends.guest, &request, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => {
                sent += 1;
                quiet = Instant::now();
            }
            Err(_) => sleep(Duration::from_millis(1)),
        }
    }
    assert!((100..20_000).contains(&sent), "buffers are bounded: {sent}");
    for _ in 0..50 {
        ends.network_sends(&frame);
        assert_eq!(ends.guest_gets(), frame);
    }
    for _ in 0..sent {
        assert_eq!(ends.network_gets(), request);
    }
}

#[test]
fn an_agent_that_does_not_read_stops_no_frame() {
    let limits = Limits { max_new_connections_per_second: 1_000_000, ..Limits::default() };
    let mut ends = start(Policy { limits, ..Policy::default() });
    // Connections that are refused by their peer: each is an event.
    let reset = segment(inward(PEER), (443, PORT), "RA", (0, 101), &[]);
    let connections = 10_000;
    for _ in 0..connections {
        ends.guest_sends(&syn(PEER, 443));
        ends.network_gets();
        ends.network_sends(&reset);
        assert_eq!(ends.guest_gets(), reset);
    }
    ends.control.shutdown(Shutdown::Write).expect("shut down");
    let events = read_events(ends.control);
    ends.relay.join().expect("no panic").expect("an ordinary end");
    let Some(Event::Total { connections: total, lost, .. }) = events.last() else { panic!("no total") };
    assert_eq!(*total, connections);
    assert!(*lost > 0, "the test made too few events");
    assert_eq!(events.len() as u64 + lost, connections + 1, "each event is told or counted");
}

#[test]
fn the_agents_end_is_the_end() {
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    drop(ends.control);
    ends.relay.join().expect("no panic").expect("an ordinary end");
    // Half of it is enough, and then the total still comes.
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    ends.control.shutdown(Shutdown::Write).expect("shut down");
    let events = read_events(ends.control);
    ends.relay.join().expect("no panic").expect("an ordinary end");
    assert!(is_total(events.last()), "{events:?}");
    assert_eq!(ends.network.read(&mut [0]).expect("an end"), 0, "the user-mode network ends, too");
}

#[test]
fn the_networks_end_is_an_error_and_the_total_comes() {
    let mut ends = start(Policy::default());
    ends.connect(PEER);
    drop(ends.network);
    let error = ends.relay.join().expect("no panic").expect_err("the network ended");
    assert_eq!(error.to_string(), "the user-mode network ended");
    assert!(is_total(read_events(ends.control).last()));
}

#[test]
fn the_pace_holds_on_real_sockets_and_nothing_is_lost() {
    let limits = Limits { max_bytes_per_second: 1_000_000, ..Limits::default() };
    let mut ends = start(Policy { limits, ..Policy::default() });
    ends.connect(PEER);
    let frame = data(PORT, &[1; 1400]);
    let count = 1_500_000 / frame.len();
    let mut network = ends.network.try_clone().expect("a clone");
    let message = [&u32::try_from(frame.len()).expect("short").to_be_bytes()[..], &frame].concat();
    let began = Instant::now();
    let sender = spawn(move || (0..count).try_for_each(|_| network.write_all(&message)));
    for _ in 0..count {
        assert_eq!(ends.guest_gets(), frame);
    }
    // A quarter of a second's bytes may come at once.
    assert!(began.elapsed() > Duration::from_millis(1100), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    sender.join().expect("no panic").expect("sent");
}

#[test]
fn what_ends_by_the_clock_ends_without_a_frame() {
    let limits = Limits { max_seconds: 1, ..Limits::default() };
    let mut ends = start(Policy { limits, ..Policy::default() });
    ends.connect(PEER);
    assert_eq!(flags(&ends.guest_gets()), ("AR".to_owned(), 501, 101));
    assert_eq!(flags(&ends.network_gets()).0, "AR");
    let mut line = String::new();
    BufReader::new(&ends.control).read_line(&mut line).expect("a line");
    let event: Event = serde_json::from_str(&line).expect("an event");
    assert!(matches!(event, Event::Connection { .. }), "{event:?}");
}

/// The filter of the process that runs the relay is made from the list in `relay.rs`. Here is the same list; any other
/// call kills this test.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_relay_makes_only_the_system_calls_that_it_lists() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
    let relay =
        [libc::SYS_ppoll, libc::SYS_recvfrom, libc::SYS_sendto, libc::SYS_clock_gettime, libc::SYS_close];
    let allocator = [
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
    ];
    // The end of a thread, and what another one does to join it.
    let thread = [libc::SYS_futex, libc::SYS_exit, libc::SYS_sigaltstack, libc::SYS_rt_sigprocmask];
    let rules =
        [&relay[..], &allocator, &thread].concat().into_iter().map(|call| (call, Vec::new())).collect();
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64);
    let program: BpfProgram = filter.expect("a filter").try_into().expect("a program");
    let limits = Limits { max_seconds: 1, ..Limits::default() };
    let mut ends = start_with(Policy { limits, ..Policy::default() }, move || {
        apply_filter(&program).expect("the filter is applied");
    });
    ends.connect(PEER);
    let asked = datagram(out(DNS), (53535, 53), &query(1, "example.org", 1));
    ends.guest_sends(&asked);
    assert_eq!(ends.network_gets(), asked);
    for port in 1..100 {
        ends.guest_sends(&syn("10.0.0.1", port));
        ends.guest_gets();
    }
    // The connection reaches its limit.
    ends.guest_gets();
    ends.network_gets();
    ends.control.shutdown(Shutdown::Write).expect("shut down");
    let events = read_events(ends.control);
    assert!(is_total(events.last()), "{events:?}");
    ends.relay.join().expect("no panic").expect("an ordinary end");
}
