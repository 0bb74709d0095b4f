//! A device restored from another one's state answers as the other would have.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::*;
use crate::kvm::devices::Device;
use crate::kvm::devices::Watched;
use crate::kvm::devices::blk::Blk;
use crate::kvm::devices::mmio::{TransportState, register, status};
use crate::kvm::devices::net::Net;
use crate::kvm::devices::pmem::Pmem;
use crate::kvm::devices::rng::Rng;
use crate::kvm::devices::testing::{Driver, PORT, RAM, readable, vsock_header, writable};
use crate::kvm::devices::vsock::Vsock;
use crate::kvm::devices::vsock::connection::{BUFFER, HEADER, Header, op};
use crate::kvm::memory::Closure;
use crate::kvm::memory::growing::Growing;
use crate::kvm::memory::tests::file;

const OUT: u64 = 0x8_0000;
const IN: u64 = 0xc_0000;
const RX: usize = 0;
const TX: usize = 1;

fn pmem() -> Box<dyn Device> {
    Box::new(Pmem::new(0x1_0000_0000, 0x20_0000))
}

fn blk(contents: u8) -> Box<dyn Device> {
    let mut closure = Closure::reserve(4096).unwrap();
    closure.map(0, 0, &file(&[contents; 4096]), 0, 4096).unwrap();
    Box::new(Blk::new(Arc::new(closure)))
}

/// A growing disk with one page.
fn disk() -> Box<dyn Device> {
    let (disk, mut grower) = Growing::reserve().unwrap();
    grower.map(0, &file(&[7; 4096]), (0, 4096)).unwrap();
    grower.show();
    Box::new(Blk::new(disk))
}

fn vsock() -> (Box<dyn Device>, UnixStream) {
    let (agent, ours) = UnixStream::pair().unwrap();
    for stream in [&agent, &ours] {
        stream.set_nonblocking(true).unwrap();
    }
    (Box::new(Vsock::new(PORT, ours)), agent)
}

fn net() -> (Box<dyn Device>, OwnedFd) {
    let kind = SocketType::SEQPACKET;
    let (ours, far) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    (Box::new(Net::new(ours)), far)
}

fn registers(d: &Driver) -> Vec<u32> {
    (0..0x140).step_by(4).map(|at| d.get(at)).collect()
}

#[test]
fn registers_are_the_same_after_every_step_of_a_driver() {
    let devices: [fn() -> Box<dyn Device>; 6] =
        [|| Box::new(Rng), pmem, || blk(7), disk, || vsock().0, || net().0];
    for new in devices {
        let mut d = Driver::new(new());
        let steps: [fn(&mut Driver); 5] = [
            |_| {},
            |d| d.add_status(status::ACKNOWLEDGE),
            |d| d.negotiate(),
            |d| d.configure(0),
            |d| {
                d.set(register::STATUS, 0);
                d.start();
            },
        ];
        for step in steps {
            step(&mut d);
            let before = registers(&d);
            d.move_to(new()).unwrap();
            assert_eq!(registers(&d), before);
        }
        assert_eq!(d.get(register::STATUS) & status::NEEDS_RESET, 0);
    }
}

/// The closure of a template is not the closure of its copies.
#[test]
fn a_device_that_no_driver_has_looked_at_may_be_another_one_of_its_kind_afterwards() {
    let larger = || -> Box<dyn Device> { Box::new(Pmem::new(0x1_0000_0000, 0x40_0000)) };
    let mut d = Driver::new(pmem());
    d.add_status(status::ACKNOWLEDGE);
    d.move_to(larger()).unwrap();
    let length = [register::CONFIG + 8, register::CONFIG + 12].map(|at| d.get(at));
    assert_eq!(length, [0x40_0000, 0], "the new one's");
    d.negotiate();
    assert!(d.move_to(pmem()).is_err(), "the driver knows its length now");
    d.move_to(larger()).unwrap();
    // It is of the same kind in any case.
    let mut d = Driver::new(pmem());
    assert!(d.move_to(blk(7)).is_err());
}

#[test]
fn requests_before_and_after_are_answered_in_one_order() {
    let mut d = Driver::new(blk(7));
    d.start();
    for round in 0..40u64 {
        // Rings of 16 entries: they wrap several times, and the second device continues in the middle.
        let (request, data, result) = (OUT, IN, IN + 0x1000);
        d.memory.write_slice(&[0; 16], GuestAddress(request)).unwrap();
        d.memory.write_slice(&[0; 512], GuestAddress(data)).unwrap();
        let head = d.offer(0, &[readable(request, 16), writable(data, 512), writable(result, 1)]);
        if round % 3 == 0 {
            // The request was offered, and the device has not seen it: its notification is lost with the old
            // device.
            d.move_to(blk(7)).unwrap();
        } else {
            d.kick(0);
        }
        assert_eq!(d.used(0), [(head.into(), 513)], "round {round}");
        assert_eq!(d.memory.read_obj::<u64>(GuestAddress(data)).unwrap(), 0x0707_0707_0707_0707);
    }
}

#[test]
fn an_interrupt_that_nobody_took_is_raised_again() {
    let mut d = Driver::new(Box::new(Rng));
    d.start();
    d.offer(0, &[writable(IN, 64)]);
    d.kick(0);
    assert_eq!((d.get(register::INTERRUPT_STATUS), d.interrupt.get()), (1, 1));
    d.move_to(Box::new(Rng)).unwrap();
    assert_eq!((d.get(register::INTERRUPT_STATUS), d.interrupt.get()), (1, 2));
    d.set(register::INTERRUPT_ACK, 1);
    d.move_to(Box::new(Rng)).unwrap();
    assert_eq!((d.get(register::INTERRUPT_STATUS), d.interrupt.get()), (0, 2));
}

#[test]
fn an_open_connection_goes_on_with_all_that_was_under_way() {
    let send = |d: &mut Driver, op, payload: &[u8]| {
        let bytes = vsock_header(op).to_bytes(payload.len() as u32);
        d.memory.write_slice(&bytes, GuestAddress(OUT)).unwrap();
        d.memory.write_slice(payload, GuestAddress(OUT + 0x1000)).unwrap();
        d.offer(TX, &[readable(OUT, 44), readable(OUT + 0x1000, payload.len() as u32)]);
        d.kick(TX);
    };
    let received = |d: &mut Driver| {
        assert_eq!(d.used(RX).len(), 1);
        let mut bytes = [0; HEADER];
        d.memory.read_slice(&mut bytes, GuestAddress(IN)).unwrap();
        Header::from_bytes(&bytes)
    };
    let (first, mut old_agent) = vsock();
    let mut d = Driver::new(first);
    d.start();
    d.offer(RX, &[writable(IN, 4096)]);
    send(&mut d, op::REQUEST, &[]);
    assert_eq!(received(&mut d).0.op, op::RESPONSE);
    // In both directions: bytes that have left one side and not reached the other.
    send(&mut d, op::RW, b"first");
    old_agent.write_all(b"for the guest").unwrap();
    d.transport.ready(0, EventSet::IN);

    let (second, mut agent) = vsock();
    d.move_to(second).unwrap();
    let Watched { fd, events, .. } = d.transport.watch()[0];
    // It does not read more before the guest has the bytes that it holds.
    assert!(fd >= 0 && !events.contains(EventSet::IN));
    d.offer(RX, &[writable(IN, 4096)]);
    d.kick(RX);
    let (answer, len) = received(&mut d);
    assert_eq!((answer.op, len, answer.fwd_cnt), (op::RW, 13, 5));
    send(&mut d, op::RW, b"second");
    let mut bytes = [0; 64];
    let n = agent.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"second");
    // As before, a second connection is refused.
    let (third, _agent) = vsock();
    d.move_to(third).unwrap();
    d.offer(RX, &[writable(IN, 4096)]);
    send(&mut d, op::REQUEST, &[]);
    assert_eq!(received(&mut d).0.op, op::RST);
}

#[test]
fn a_frame_that_waits_leaves_by_the_next_card_and_those_after_it_follow() {
    let send = |d: &mut Driver, number: u8| {
        d.memory.write_slice(&[0; 12], GuestAddress(OUT)).unwrap();
        d.memory.write_slice(&[number; 1514], GuestAddress(OUT + 12)).unwrap();
        d.offer(TX, &[readable(OUT, 1526)]);
        d.kick(TX);
    };
    let sent = |far: &OwnedFd| {
        let mut bytes = [0; 2048];
        let message = recv(far, &mut bytes[..], RecvFlags::DONTWAIT).ok();
        // Empty: the end.
        message.filter(|(_, len)| *len > 0).map(|(_, len)| (bytes[0], len))
    };
    let (first, old) = net();
    let mut d = Driver::new(first);
    d.start();
    let mut last = 0;
    while !d.transport.watch()[0].events.contains(EventSet::OUT) {
        last += 1;
        send(&mut d, last);
    }
    // In the queue of the guest.
    send(&mut d, 0xff);
    let (second, far) = net();
    d.move_to(second).unwrap();
    assert_eq!([sent(&far), sent(&far), sent(&far)], [Some((last, 1514)), Some((0xff, 1514)), None]);
    // The others had been sent.
    assert_eq!(std::iter::from_fn(|| sent(&old)).count(), usize::from(last) - 1);
    d.offer(RX, &[writable(IN, 1526)]);
    d.kick(RX);
    d.move_to(net().0).unwrap();
    assert!(d.transport.watch()[0].events.contains(EventSet::IN));
}

#[test]
fn a_card_takes_no_frame_that_is_none_and_no_other_address() {
    let changes = [
        ("waiting", serde_json::json!([1, 2, 3])),
        ("waiting", serde_json::json!(vec![0u8; 1515])),
        ("mac", serde_json::json!([2, 0, 0, 0, 0, 1])),
        ("mtu", serde_json::json!(9000)),
    ];
    for (field, value) in changes {
        let mut d = Driver::new(net().0);
        d.start();
        let before = d.transport.save();
        let mut json = serde_json::to_value(&before).unwrap();
        assert!(!json["device"][field].is_null());
        json["device"][field] = value;
        let state: TransportState = serde_json::from_value(json).unwrap();
        let error = d.transport.restore(&state).unwrap_err().to_string();
        assert!(error.starts_with("cannot restore the network card: "), "{error}");
        assert_eq!(d.transport.save(), before, "an error changes nothing");
    }
}

#[test]
fn a_device_takes_the_state_of_no_other() {
    let states: Vec<_> = [Box::new(Rng) as Box<dyn Device>, pmem(), blk(7), vsock().0, net().0, disk()]
        .map(|device| Driver::new(device).transport.save())
        .into();
    for (index, state) in states.iter().enumerate() {
        let others: [Box<dyn Device>; 6] = [Box::new(Rng), pmem(), blk(7), vsock().0, net().0, disk()];
        for (other, device) in others.into_iter().enumerate() {
            let mut d = Driver::new(device);
            assert_eq!(d.transport.restore(state).is_ok(), index == other, "{index} {other}");
            // Nor a state that names the right kind and has the state of another device.
            let kind = d.transport.save().kind;
            let mixed = TransportState { kind, ..state.clone() };
            assert_eq!(d.transport.restore(&mixed).is_ok(), index == other, "{index} {other}");
        }
    }
    let started = |device| {
        let mut d = Driver::new(device);
        d.start();
        d.transport.save()
    };
    let mut smaller = Driver::new(Box::new(Pmem::new(0x1_0000_0000, 0x10_0000)));
    smaller.start();
    let error = smaller.transport.restore(&started(pmem())).unwrap_err().to_string();
    assert!(error.starts_with("cannot restore the pmem: its state was"), "{error}");
    // Nor does a disk take the state of one that has other images.
    let mut empty = Driver::new(Box::new(Blk::new(Growing::reserve().unwrap().0)));
    empty.start();
    assert!(empty.transport.restore(&started(disk())).is_err());
}

type Change = fn(&mut TransportState);

/// A state of a running device with one thing wrong.
fn broken(change: Change) -> Result<(), RestoreError> {
    let mut d = Driver::new(vsock().0);
    d.start();
    let mut state = d.transport.save();
    change(&mut state);
    let before = d.transport.save();
    let result = d.transport.restore(&state);
    assert_eq!(d.transport.save(), before, "an error changes nothing");
    result
}

#[test]
fn nonsense_is_an_error_and_changes_nothing() {
    assert_eq!(broken(|_| {}), Ok(()));
    let wrong: [(&str, Change); 11] = [
        ("kind", |s| s.kind = 4),
        ("number of queues", |s| s.queues.truncate(2)),
        ("no queue", |s| s.queues.clear()),
        ("size of zero", |s| s.queues[0].size = 0),
        ("size over the device's", |s| s.queues[1].size = 256),
        ("another largest size", |s| s.queues[1].max_size = 64),
        ("outside memory", |s| s.queues[2].descriptors = RAM - 16),
        ("crooked address", |s| s.queues[0].used = 0x4001),
        ("a queue that is not ready", |s| s.queues[0].ready = false),
        ("status out of order", |s| s.status = status::DRIVER_OK),
        ("features never offered", |s| s.driver_features |= 1 << 3),
    ];
    for (what, change) in wrong {
        assert!(broken(change).is_err(), "{what}");
    }
    let too_much = |s: &mut TransportState| {
        let mut json = serde_json::to_value(&*s).unwrap();
        json["device"]["connection"]["to_agent"] = serde_json::json!(vec![0u8; BUFFER as usize + 1]);
        *s = serde_json::from_value(json).unwrap();
    };
    assert!(broken(too_much).unwrap_err().to_string().contains("bytes for the agent"));
}

proptest! {
    /// Whatever a driver did, its device can be saved, and continues from the same state.
    #[test]
    fn every_state_that_a_driver_can_reach_can_be_restored(
        starts in any::<bool>(),
        accesses in prop::collection::vec((0u64..0x44, prop_oneof![0u32..16, any::<u32>()]), 0..40),
    ) {
        let (device, _agent) = vsock();
        let mut d = Driver::new(device);
        if starts {
            d.start();
        }
        for (register, value) in accesses {
            d.set(register * 4, value);
        }
        let before = registers(&d);
        d.move_to(vsock().0).unwrap();
        let after = registers(&d);
        prop_assert_eq!(before, after);
    }

    /// Queue positions that no device could reach stop the device, but cause no panic.
    #[test]
    fn no_state_makes_a_device_panic(
        status in any::<u32>(),
        features in any::<u64>(),
        interrupt in 0u32..8,
        size in any::<u16>(),
        addresses in any::<[u64; 3]>(),
        positions in any::<[u16; 2]>(),
        plausible in any::<bool>(),
    ) {
        let (device, _agent) = vsock();
        let mut d = Driver::new(device);
        d.start();
        let mut state = d.transport.save();
        if !plausible {
            (state.status, state.driver_features) = (status, features);
            (state.queues[0].size, state.queues[0].descriptors) = (size, addresses[0]);
            (state.queues[0].available, state.queues[0].used) = (addresses[1], addresses[2]);
        }
        state.interrupt_status = interrupt;
        for queue in &mut state.queues {
            (queue.next_available, queue.next_used) = (positions[0], positions[1]);
        }
        let _ = d.transport.restore(&state);
        d.offer(TX, &[readable(OUT, 44)]);
        for queue in 0..3 {
            d.kick(queue);
        }
        d.transport.ready(0, EventSet::IN);
    }
}
