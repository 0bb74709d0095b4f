//! Images go from the agent's end of a disk to the guest's driver, and streams to its vsock: real files, the real sockets, the
//! real event thread, the devices' own queues.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest::protocol::SSH_PORTS;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::backend::{Image, Segment};
use crate::error::SandboxError;
use crate::kvm::devices::blk::Blk;
use crate::kvm::devices::console::{Console, Ring};
use crate::kvm::devices::mmio::{Transport, register};
use crate::kvm::devices::rng::Rng;
use crate::kvm::devices::testing::{Count, Driver, PORT, readable, vsock_header, writable};
use crate::kvm::devices::vsock::Vsock;
use crate::kvm::devices::vsock::connection::{HEADER, Header, MAX_PAYLOAD, op};
use crate::kvm::events::Events;
use crate::kvm::handover::{DeviceKind, Shape};
use crate::kvm::jail::{self, seccomp};
use crate::kvm::memory::growing::{Growing, START};
use crate::kvm::memory::{PAGE, SEGMENTS_MAX};
use crate::plugs::Plugs;
use crate::process::memory_file;

/// A file whose page `i` has the bytes `first + i`.
fn file(first: u8, pages: u8) -> Arc<File> {
    let file = memory_file("test").unwrap();
    for page in 0..pages {
        file.write_all_at(&[first + page; PAGE as usize], u64::from(page) * PAGE).unwrap();
    }
    Arc::new(file)
}

fn segment(file: &Arc<File>, page: u64, pages: u64) -> Segment {
    Segment { file: file.clone(), offset: page * PAGE, len: pages * PAGE }
}

/// The guest's vsock driver. The events of the device are served as they are in a VMM.
struct Guest {
    /// Its memory and its queues; the device itself is on the bus.
    driver: Driver,
    machine: Arc<Bus>,
    notify: EventFd,
    /// The stream of the first port.
    first: UnixStream,
}

const RX: usize = 0;
const TX: usize = 1;
const OUT: u64 = 0x8_0000;
const IN: u64 = 0xc_0000;

/// A machine with a vsock, and what an event thread and an additions thread have of it.
fn machine() -> (Guest, Events, Ports) {
    let (first, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut driver = Driver::new(Box::new(Vsock::new(PORT, ours)));
    driver.start();
    let stub = Transport::new(Box::new(Rng), driver.memory.clone(), Box::new(Count::default()));
    let transport = std::mem::replace(&mut driver.transport, stub);
    let console = Console::new(Ring::new(memory_file("console").unwrap()), Box::new(Count::default()));
    let machine = Bus::new(console, vec![transport]);
    let (ports, plugged) = Ports::new(machine.clone(), 0).unwrap();
    let notify = EventFd::new(EFD_NONBLOCK).unwrap();
    let kick = Kick { event: notify.try_clone().unwrap(), device: 0, queue: TX };
    let events = Events::new(machine.clone(), vec![kick, plugged]).unwrap();
    driver.offer(RX, &[writable(IN, HEADER as u32 + MAX_PAYLOAD)]);
    (Guest { driver, machine, notify, first }, events, ports)
}

impl Guest {
    /// As a packet to `port` of the host, from `src_port`.
    fn send(&mut self, op: u16, src_port: u32, port: u32, payload: &[u8]) {
        self.send_header(Header { src_port, dst_port: port, ..vsock_header(op) }, payload);
    }

    fn send_header(&mut self, header: Header, payload: &[u8]) {
        let bytes = header.to_bytes(payload.len() as u32);
        self.driver.memory.write_slice(&bytes, GuestAddress(OUT)).unwrap();
        self.driver.memory.write_slice(payload, GuestAddress(OUT + 0x1000)).unwrap();
        self.driver.offer(TX, &[readable(OUT, HEADER as u32), readable(OUT + 0x1000, payload.len() as u32)]);
        self.notify.write(1).unwrap();
        within(|| (!self.driver.used(TX).is_empty()).then_some(()));
    }

    /// The next packet.
    fn receive(&mut self) -> (u32, u16, Vec<u8>) {
        within(|| (!self.driver.used(RX).is_empty()).then_some(()));
        let mut bytes = [0; HEADER];
        self.driver.memory.read_slice(&mut bytes, GuestAddress(IN)).unwrap();
        let (header, len) = Header::from_bytes(&bytes);
        let mut payload = vec![0; len as usize];
        self.driver.memory.read_slice(&mut payload, GuestAddress(IN + HEADER as u64)).unwrap();
        self.driver.offer(RX, &[writable(IN, HEADER as u32 + MAX_PAYLOAD)]);
        self.notify.write(1).unwrap();
        (header.src_port, header.op, payload)
    }

    fn connect(&mut self, src_port: u32, port: u32) {
        self.send(op::REQUEST, src_port, port, &[]);
        assert_eq!(self.receive(), (port, op::RESPONSE, vec![]));
    }
}

/// Tries until there is something; without sleep, which a jailed process may not.
fn within<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time");
        std::thread::yield_now();
    }
}

/// The agent's end, the VMM's thread, and the disk that the guest's driver has.
fn disk() -> (Plugs, JoinHandle<()>, Driver) {
    let (agent, vmm) = UnixStream::pair().unwrap();
    let (bytes, grower) = Growing::reserve().unwrap();
    let additions = Additions::new(vmm, grower, machine().2);
    let thread = std::thread::spawn(move || additions.run());
    let mut driver = Driver::new(Box::new(Blk::new(bytes)));
    driver.start();
    (Plugs::new(agent, 0, None).unwrap(), thread, driver)
}

/// The agent's end, and the guest, of a machine whose events are served.
fn plugs() -> (Plugs, Guest) {
    let (agent, vmm) = UnixStream::pair().unwrap();
    let (guest, events, ports) = machine();
    let additions = Additions::new(vmm, Growing::reserve().unwrap().1, ports);
    std::thread::spawn(move || additions.run());
    std::thread::spawn(move || panic!("{}", events.run()));
    (Plugs::new(agent, 0, None).unwrap(), guest)
}

/// A stream at a port that may have been given up a moment ago.
fn open(plugs: &mut Plugs, port: u32) -> UnixStream {
    within(|| match plugs.open_port(port) {
        Ok(stream) => Some(stream),
        Err(SandboxError::Setup { why }) if why.ends_with("is in use") => None,
        Err(error) => panic!("{error}"),
    })
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The page at this offset of the disk, or none if the device says that it cannot be read.
fn page(d: &mut Driver, at: u64) -> Option<[u8; PAGE as usize]> {
    let (request, data, status) = (0x8_0000, 0x9_0000, 0xa_0000);
    d.memory.write_slice(&[0; 8], GuestAddress(request)).unwrap();
    d.memory.write_obj(at / 512, GuestAddress(request + 8)).unwrap();
    d.offer(0, &[readable(request, 16), writable(data, PAGE as u32), writable(status, 1)]);
    d.kick(0);
    assert_eq!(d.used(0).len(), 1);
    let mut bytes = [0; PAGE as usize];
    d.memory.read_slice(&mut bytes, GuestAddress(data)).unwrap();
    (d.memory.read_obj::<u8>(GuestAddress(status)).unwrap() == 0).then_some(bytes)
}

#[test]
fn the_guest_reads_what_the_agent_has_added_and_nothing_else() {
    let (mut disk, _vmm, mut d) = disk();
    let (one, two) = (file(10, 4), file(20, 4));
    assert_eq!(page(&mut d, 0), Some([0; PAGE as usize]));
    assert_eq!(page(&mut d, START), None);
    let first = Image { segments: vec![segment(&one, 1, 2), segment(&two, 3, 1)] };
    assert_eq!(disk.add_image(&first).unwrap(), START);
    // More parts than one message has descriptors.
    let second = Image { segments: (0..300).map(|i| segment(&two, i % 4, 1)).collect() };
    assert_eq!(disk.add_image(&second).unwrap(), START + 3 * PAGE);
    let expected = [11, 12, 23].into_iter().chain((0..300).map(|i| 20 + i % 4));
    for (index, byte) in expected.enumerate() {
        assert_eq!(page(&mut d, START + index as u64 * PAGE), Some([byte as u8; PAGE as usize]), "{index}");
    }
    assert_eq!(page(&mut d, START + 303 * PAGE), None);
}

#[test]
fn an_image_that_cannot_be_mapped_is_refused_and_the_next_one_takes_its_place() {
    let (mut disk, _vmm, mut d) = disk();
    let whole = file(10, 4);
    assert_eq!(disk.add_image(&Image { segments: vec![segment(&whole, 0, 1)] }).unwrap(), START);
    // Its files in the middle and at the end of the second message are shorter than they should be.
    let mut segments: Vec<_> = (0..256).map(|_| segment(&whole, 1, 1)).collect();
    (segments[200], segments[255]) = (segment(&whole, 3, 2), segment(&whole, 9, 1));
    let why = disk.add_image(&Image { segments }).unwrap_err().to_string();
    assert!(
        why.contains("the VMM says: segment 200 (offset 12288, length 8192) ends after its file"),
        "{why}"
    );
    assert_eq!(page(&mut d, START + PAGE), None);
    assert_eq!(disk.add_image(&Image { segments: vec![segment(&whole, 2, 1)] }).unwrap(), START + PAGE);
    assert_eq!(page(&mut d, START + PAGE), Some([12; PAGE as usize]));
    assert_eq!(page(&mut d, START + 2 * PAGE), None);
}

#[test]
fn a_disk_without_an_agent_stays_as_it_is() {
    let (mut disk, vmm, mut d) = disk();
    disk.add_image(&Image { segments: vec![segment(&file(10, 1), 0, 1)] }).unwrap();
    drop(disk);
    vmm.join().unwrap();
    assert_eq!(page(&mut d, START), Some([10; PAGE as usize]));
    assert_eq!(page(&mut d, START + PAGE), None);

    // Nor does half an image appear.
    let (agent, ours) = UnixStream::pair().unwrap();
    let (bytes, grower) = Growing::reserve().unwrap();
    handover::send_json(&agent, &Addition::Image { segments: vec![(0, PAGE); 2] }).unwrap();
    let file = file(10, 1);
    handover::send_batch(&agent, &[std::os::fd::AsFd::as_fd(&*file)]).unwrap();
    drop(agent);
    Additions::new(ours, grower, machine().2).run();
    assert_eq!(bytes.shown(), START);
}

#[test]
fn as_many_parts_as_a_home_may_have_are_added_and_no_file_stays_open() {
    let (mut disk, _vmm, mut d) = disk();
    let file = file(10, 3);
    let before = open_descriptors();
    // Pages that do not follow each other, so that the kernel does not merge two of them into one mapping.
    let image = Image { segments: (0..SEGMENTS_MAX as u64).map(|i| segment(&file, 2 - i % 3, 1)).collect() };
    let began = std::time::Instant::now();
    assert_eq!(disk.add_image(&image).unwrap(), START);
    eprintln!("{SEGMENTS_MAX} parts in {:?}", began.elapsed());
    assert_eq!(open_descriptors(), before);
    let last = START + (SEGMENTS_MAX as u64 - 1) * PAGE;
    assert_eq!(page(&mut d, last), Some([10; PAGE as usize]));
    assert_eq!(page(&mut d, last - PAGE), Some([11; PAGE as usize]));
    let why = disk.add_image(&Image { segments: vec![segment(&file, 0, 1)] }).unwrap_err().to_string();
    assert!(why.contains("60000 is the most"), "{why}");
}

/// Receives two images and a stream in a forked process that has gone to jail, with the filter of a VMM of this shape. Reads a
/// byte of each page, and connects the guest to the stream. Gives what the agent's side says, the bytes, or the signal that
/// ended the process, and what came over the stream.
fn in_jail(devices: Vec<DeviceKind>) -> (Vec<bool>, Result<Vec<u8>, i32>, String) {
    const PORT: u32 = 1030;
    let shape = Shape { vcpus: 1, memory_mib: 128, devices };
    let (agent, vmm) = UnixStream::pair().unwrap();
    let (mut from, mut to) = std::io::pipe().unwrap();
    // SAFETY: under nextest a test has a process of its own, whose other thread only waits for this one: no lock is held
    // that the child would miss. The child ends with _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        drop((agent, from));
        let (bytes, grower) = Growing::reserve().unwrap();
        let (mut guest, events, ports) = machine();
        let mut additions = Additions::new(vmm, grower, ports);
        let filter = seccomp::filter(&shape, false).unwrap();
        let uid = jail::is_root().then_some(0x7000_0002);
        jail::enter(uid, &mut jail::Report::default()).unwrap();
        let gate = Arc::new(Barrier::new(2));
        let opened = gate.clone();
        std::thread::spawn(move || {
            opened.wait();
            opened.wait();
            events.run();
        });
        gate.wait();
        seccomp::install(&filter).unwrap();
        gate.wait();
        for _ in 0..3 {
            additions.serve().unwrap();
        }
        let pages = (bytes.shown() - START) / PAGE;
        let mut firsts = vec![0; pages as usize];
        for (page, first) in firsts.iter_mut().enumerate() {
            assert!(bytes.read(START + page as u64 * PAGE, std::slice::from_mut(first)));
        }
        guest.connect(77, PORT);
        guest.send(op::RW, 77, PORT, b"from the guest");
        assert_eq!(guest.receive(), (PORT, op::RW, b"from the agent".to_vec()));
        guest.send(op::RST, 77, PORT, &[]);
        let _ = to.write_all(&firsts);
        // The end of the stream that the agent waits for is not the end of this process.
        drop(to);
        additions.serve().unwrap_err();
        // SAFETY: a number, and it does not return.
        unsafe { libc::_exit(0) };
    }
    drop((vmm, to));
    let mut plugs = Plugs::new(agent, 0, None).unwrap();
    let file = file(1, 4);
    // More files than a VMM may have open at once.
    let large = Image { segments: (0..2000).map(|i| segment(&file, i % 4, 1)).collect() };
    let small = Image { segments: vec![segment(&file, 3, 1)] };
    let mut added: Vec<_> = [large, small].iter().map(|image| plugs.add_image(image).is_ok()).collect();
    let stream = plugs.open_port(PORT);
    added.push(stream.is_ok());
    let mut said = String::new();
    if let Ok(mut stream) = stream {
        stream.write_all(b"from the agent").unwrap();
        stream.read_to_string(&mut said).unwrap();
    }
    let mut read = Vec::new();
    from.read_to_end(&mut read).unwrap();
    drop(plugs);
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    (added, if libc::WIFSIGNALED(status) { Err(libc::WTERMSIG(status)) } else { Ok(read) }, said)
}

#[test]
fn a_jailed_vmm_of_a_home_takes_images_and_streams_and_one_of_a_build_is_killed_for_it() {
    let (added, read, said) = in_jail(vec![DeviceKind::Vsock, DeviceKind::Disk]);
    let expected = (0..2000).map(|i| 1 + i as u8 % 4).chain([4]).collect();
    assert_eq!((added, read, said.as_str()), (vec![true; 3], Ok(expected), "from the guest"));
    let (added, read, said) = in_jail(vec![DeviceKind::Vsock, DeviceKind::Rng, DeviceKind::Net]);
    assert_eq!((added, read, said.as_str()), (vec![false; 3], Err(libc::SIGSYS), ""));
}

#[test]
fn a_thousand_connections_come_and_go_and_leave_no_descriptor() {
    let (mut plugs, mut guest) = plugs();
    guest.connect(7, PORT);
    let before = open_descriptors();
    for round in 0..1000 {
        // Each port is left in each way.
        let port = 1025 + round % 3;
        let src_port = 10_000 + round;
        let mut agent = open(&mut plugs, port);
        let give_up = |guest: &mut Guest, agent: UnixStream| {
            drop(agent);
            assert_eq!(guest.receive(), (port, op::SHUTDOWN, vec![]));
            assert_eq!(guest.receive(), (port, op::RST, vec![]));
        };
        match round % 5 {
            // Given up before the guest comes.
            0 => drop(agent),
            1 => {
                guest.connect(src_port, port);
                give_up(&mut guest, agent);
            }
            // The guest has ended its direction, and goes on listening.
            2 => {
                guest.connect(src_port, port);
                guest.send_header(
                    Header { src_port, dst_port: port, flags: 2, ..vsock_header(op::SHUTDOWN) },
                    &[],
                );
                assert_eq!(agent.read(&mut [0]).unwrap(), 0);
                agent.write_all(b"still here").unwrap();
                assert_eq!(guest.receive(), (port, op::RW, b"still here".to_vec()));
                give_up(&mut guest, agent);
            }
            // The guest ends all of it, and the agent gets the last bytes.
            way => {
                guest.connect(src_port, port);
                guest.send(op::RW, src_port, port, b"last words");
                if way == 3 {
                    guest.send(op::RST, src_port, port, &[]);
                } else {
                    guest.send_header(
                        Header { src_port, dst_port: port, flags: 3, ..vsock_header(op::SHUTDOWN) },
                        &[],
                    );
                    assert_eq!(guest.receive(), (port, op::RST, vec![]));
                }
                let mut text = String::new();
                agent.read_to_string(&mut text).unwrap();
                assert_eq!(text, "last words");
            }
        }
    }
    within(|| (open_descriptors() == before).then_some(()));
    // All of this was nothing to the first connection.
    guest.send(op::RW, 7, PORT, b"frames");
    let mut bytes = [0; 6];
    guest.first.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"frames");
}

#[test]
fn a_home_has_as_many_streams_as_ports_and_a_port_has_one() {
    let (mut plugs, mut guest) = plugs();
    let mut streams: Vec<_> = SSH_PORTS.map(|port| plugs.open_port(port).unwrap()).collect();
    for port in SSH_PORTS {
        let why = plugs.open_port(port).unwrap_err().to_string();
        assert!(why.ends_with(&format!("the VMM says: port {port} is in use")), "{why}");
    }
    for (port, stream) in SSH_PORTS.zip(&mut streams) {
        guest.connect(port, port);
        guest.send(op::RW, port, port, &port.to_le_bytes());
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), port);
    }
    // With all others silent, or stalled, one goes on.
    let last = *SSH_PORTS.end();
    for port in SSH_PORTS.take(10) {
        for _ in 0..4 {
            guest.send(op::RW, port, port, &[7; 60_000]);
        }
    }
    let mut stream = streams.pop().unwrap();
    for _ in 0..100 {
        guest.send(op::RW, last, last, &[8; 4096]);
        let mut bytes = [0; 4096];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            let (port, operation, payload) = guest.receive();
            if operation == op::RW {
                assert_eq!(port, last);
                got.extend(payload);
            }
        }
        assert_eq!(got, bytes);
    }
}

#[test]
fn a_stream_that_is_given_up_is_closed_without_a_word_of_the_guest() {
    let (mut plugs, _guest) = plugs();
    let before = open_descriptors();
    let streams: Vec<_> = SSH_PORTS.map(|port| plugs.open_port(port).unwrap()).collect();
    drop(streams);
    within(|| (open_descriptors() == before).then_some(()));
}

#[test]
fn an_agent_whose_bytes_the_guest_did_not_take_sees_the_end_and_no_error() {
    let (mut plugs, mut guest) = plugs();
    let port = 1050;
    let mut agent = open(&mut plugs, port);
    guest.send_header(Header { src_port: 5, dst_port: port, buf_alloc: 0, ..vsock_header(op::REQUEST) }, &[]);
    assert_eq!(guest.receive().1, op::RESPONSE);
    agent.write_all(&[7; 100_000]).unwrap();
    for (operation, payload) in [(op::RW, &b"last words"[..]), (op::RST, &[])] {
        let header = Header { src_port: 5, dst_port: port, buf_alloc: 0, ..vsock_header(operation) };
        guest.send_header(header, payload);
    }
    let mut text = String::new();
    agent.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
}

/// A port that the agent has given up is free, whatever the guest holds back: it takes no byte, and ends nothing.
#[test]
fn a_guest_cannot_keep_a_port_that_the_agent_has_given_up() {
    let (mut plugs, mut guest) = plugs();
    for flags in [0, 2] {
        let port = 1040;
        let mut agent = open(&mut plugs, port);
        guest.send_header(
            Header { src_port: 5, dst_port: port, buf_alloc: 0, ..vsock_header(op::REQUEST) },
            &[],
        );
        assert_eq!(guest.receive().1, op::RESPONSE);
        guest.send_header(
            Header { src_port: 5, dst_port: port, buf_alloc: 0, flags, ..vsock_header(op::SHUTDOWN) },
            &[],
        );
        agent.write_all(b"of the old stream").unwrap();
        drop(agent);
        let mut agent = open(&mut plugs, port);
        assert_eq!(guest.receive(), (port, op::RST, vec![]));
        guest.connect(6, port);
        agent.write_all(b"of the new stream").unwrap();
        assert_eq!(guest.receive(), (port, op::RW, b"of the new stream".to_vec()));
        drop(agent);
        assert_eq!([guest.receive().1, guest.receive().1], [op::SHUTDOWN, op::RST]);
    }
}

#[test]
fn a_driver_that_restarts_ends_every_plugged_stream() {
    let (mut plugs, mut guest) = plugs();
    let before = open_descriptors();
    let mut agents: Vec<_> = SSH_PORTS.take(4).map(|port| plugs.open_port(port).unwrap()).collect();
    guest.connect(5, 1026);
    guest.machine.device(0).write(register::STATUS, &[0; 4]);
    for agent in &mut agents {
        assert_eq!(agent.read(&mut [0]).unwrap(), 0);
    }
    let why = plugs.open_port(1025).unwrap_err().to_string();
    assert!(why.ends_with("the guest's driver is not ready"), "{why}");
    // Without another event of the device, or of the agent: the descriptors of the VMM are closed, and its own are left.
    within(|| (open_descriptors() == before + agents.len()).then_some(()));
}
