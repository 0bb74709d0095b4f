//! The guest may access any register, in any size and order.

use super::super::net::Net;
use super::super::rng::Rng;
use super::super::testing::{Driver, RAM, base, readable, writable};
use super::*;

fn driver() -> Driver {
    Driver::new(Box::new(Rng))
}

#[test]
fn identity_is_what_linux_looks_for() {
    let d = driver();
    assert_eq!(d.get(register::MAGIC), 0x7472_6976);
    assert_eq!(d.get(register::VERSION), 2);
    assert_eq!(d.get(register::DEVICE_ID), 4);
    assert_eq!(d.get(register::STATUS), 0);
    assert_eq!(d.get(register::SHM_FIRST), u32::MAX);
}

#[test]
fn accesses_of_odd_size_or_place_read_zero_and_change_nothing() {
    let mut d = driver();
    d.negotiate();
    let before: Vec<u32> = (0..0x100).step_by(4).map(|at| d.get(at)).collect();
    for len in [0usize, 1, 2, 3, 5, 8, 16] {
        for offset in (0..0x110).chain([0xfff, u64::MAX - 1, u64::MAX]) {
            let mut data = vec![0xaa; len];
            d.transport.read(offset, &mut data);
            assert!(data.iter().all(|b| *b == 0), "read {len} at {offset:#x}");
            d.transport.write(offset, &vec![0xff; len]);
        }
    }
    for offset in [0x01, 0x31, 0x43, 0x71, 0x82, 0x1000] {
        d.transport.write(offset, &[0xff; 4]);
    }
    let after: Vec<u32> = (0..0x100).step_by(4).map(|at| d.get(at)).collect();
    assert_eq!(before, after);
}

#[test]
fn configuration_ends_where_it_ends() {
    let pmem = super::super::pmem::Pmem::new(0x1_0000_0000, 0x20_0000);
    let d = Driver::new(Box::new(pmem));
    let mut data = [0xaa; 32];
    d.transport.read(register::CONFIG + 8, &mut data);
    assert_eq!(u64::from_le_bytes(data[..8].try_into().unwrap()), 0x20_0000);
    assert_eq!(data[8..], [0; 24]);
    d.transport.read(u64::MAX, &mut data);
    assert_eq!(data, [0; 32]);
}

#[test]
fn status_bits_come_in_order_or_not_at_all() {
    use status::*;
    for first in [DRIVER, FEATURES_OK, DRIVER_OK, NEEDS_RESET, 1 << 16, u32::MAX] {
        let mut d = driver();
        d.set(register::STATUS, first);
        assert_eq!(d.get(register::STATUS), 0, "{first:#x}");
    }
    let mut d = driver();
    d.negotiate();
    let negotiated = d.get(register::STATUS);
    d.set(register::STATUS, ACKNOWLEDGE);
    assert_eq!(d.get(register::STATUS), negotiated, "bits cannot be taken back");
    d.set(register::STATUS, 0);
    assert_eq!(d.get(register::STATUS), 0, "except all of them");
}

#[test]
fn features_never_offered_are_refused() {
    let mut d = driver();
    d.add_status(status::ACKNOWLEDGE);
    d.add_status(status::DRIVER);
    d.set(register::DRIVER_FEATURES_SELECT, 1);
    d.set(register::DRIVER_FEATURES, 0b11);
    d.add_status(status::FEATURES_OK);
    assert_eq!(d.get(register::STATUS) & status::FEATURES_OK, 0);
    // Page 7 does not exist; the write must not change another page.
    d.set(register::DRIVER_FEATURES, 1);
    d.set(register::DRIVER_FEATURES_SELECT, 7);
    d.set(register::DRIVER_FEATURES, u32::MAX);
    d.add_status(status::FEATURES_OK);
    assert_ne!(d.get(register::STATUS) & status::FEATURES_OK, 0);
}

#[test]
fn a_driver_without_version_1_is_refused() {
    let mut d = driver();
    d.add_status(status::ACKNOWLEDGE);
    d.add_status(status::DRIVER);
    d.add_status(status::FEATURES_OK);
    assert_eq!(d.get(register::STATUS) & status::FEATURES_OK, 0);
}

#[test]
fn queues_outside_ram_never_reach_the_device() {
    for (low, high) in [(RAM as u32 - 16, 0), (0, 1), (!0xf, u32::MAX)] {
        let mut d = driver();
        d.negotiate();
        d.configure(0);
        d.set(register::QUEUE_READY, 0);
        d.set(register::QUEUE_DEVICE_LOW, low);
        d.set(register::QUEUE_DEVICE_HIGH, high);
        d.set(register::QUEUE_READY, 1);
        d.add_status(status::DRIVER_OK);
        assert_ne!(d.get(register::STATUS) & status::NEEDS_RESET, 0, "{low:#x} {high:#x}");
        d.kick(0);
        assert!(d.transport.watch().is_empty());
    }
}

#[test]
fn queue_registers_are_deaf_before_features_and_after_driver_ok() {
    let mut d = driver();
    d.configure(0);
    assert_eq!(d.get(register::QUEUE_READY), 0);
    d.start();
    d.set(register::QUEUE_READY, 0);
    assert_eq!(d.get(register::QUEUE_READY), 1);
}

/// The values that a device reads from its queues.
fn queues(d: &Driver) -> Vec<(bool, u16, u64, u64, u64)> {
    let seen = |q: &Queue| (q.ready(), q.size(), q.desc_table(), q.avail_ring(), q.used_ring());
    d.transport.queues.iter().map(seen).collect()
}

const VALUES: [u32; 9] = [0, 1, 2, 8, 0x4_0000, RAM as u32 - 16, 0x7fff_fff0, 0xffff_fff0, u32::MAX];

/// Writes every value to every register, for every queue, except registers that end or acknowledge something.
fn write_everywhere(d: &mut Driver) {
    for queue in [0, 1, u32::MAX] {
        d.set(register::QUEUE_SELECT, queue);
        for offset in (0..0x200).filter(|at| ![register::STATUS, register::QUEUE_SELECT].contains(at)) {
            for value in VALUES {
                d.set(offset, value);
            }
        }
    }
}

#[test]
fn size_and_addresses_of_a_queue_stay_as_they_were_when_the_device_was_started() {
    let mut d = driver();
    d.start();
    let before = queues(&d);
    write_everywhere(&mut d);
    // Status bits that are set already, that come too early, or that no driver may set.
    for status in VALUES.into_iter().chain([status::DRIVER_OK, status::FEATURES_OK]).filter(|s| *s != 0) {
        if status & status::FAILED == 0 {
            d.set(register::STATUS, status);
            d.add_status(status);
        }
    }
    write_everywhere(&mut d);
    assert_eq!(queues(&d), before);
    assert_eq!(d.transport.driver_features, FEATURE_VERSION_1);
    // The device uses exactly these addresses.
    d.offer(0, &[writable(0x8_0000, 64)]);
    d.kick(0);
    assert_eq!(d.used(0), [(0, 64)]);
}

#[test]
fn a_queue_that_is_ready_is_changed_by_nothing_but_the_end_of_being_ready() {
    let mut d = driver();
    d.negotiate();
    d.configure(0);
    let before = queues(&d);
    for offset in (register::QUEUE_SIZE..register::STATUS).chain(register::STATUS + 1..0x200) {
        if ![register::QUEUE_READY, register::QUEUE_SELECT].contains(&offset) {
            VALUES.into_iter().for_each(|value| d.set(offset, value));
        }
    }
    assert_eq!(queues(&d), before);
}

#[test]
fn a_device_that_has_failed_is_not_set_up_anew_but_after_a_reset() {
    let mut d = driver();
    d.start();
    d.add_status(status::FAILED);
    let before = queues(&d);
    write_everywhere(&mut d);
    assert_eq!(queues(&d), before);
    d.offer(0, &[writable(0x8_0000, 64)]);
    d.kick(0);
    assert!(d.used(0).is_empty());
}

#[test]
fn queues_that_do_not_exist_have_no_size_and_cannot_be_notified() {
    let mut d = driver();
    d.start();
    for queue in [1, 16, u32::MAX] {
        d.set(register::QUEUE_SELECT, queue);
        assert_eq!(d.get(register::QUEUE_SIZE_MAX), 0);
        assert_eq!(d.get(register::QUEUE_READY), 0);
        d.set(register::QUEUE_NOTIFY, queue);
    }
    assert_eq!(d.get(register::STATUS) & status::NEEDS_RESET, 0);
}

#[test]
fn an_interrupt_says_why_until_it_is_acknowledged() {
    let mut d = driver();
    d.start();
    d.offer(0, &[writable(0x8_0000, 64)]);
    d.kick(0);
    assert_eq!(d.interrupt.get(), 1);
    assert_eq!(d.get(register::INTERRUPT_STATUS), 1);
    d.set(register::INTERRUPT_ACK, u32::MAX);
    assert_eq!(d.get(register::INTERRUPT_STATUS), 0);
    assert_eq!(d.used(0), [(0, 64)]);
}

#[test]
fn a_reset_device_starts_again() {
    let mut d = driver();
    d.start();
    d.set(register::STATUS, 0);
    d.kick(0);
    assert_eq!(d.get(register::QUEUE_READY), 0);
    assert_eq!(d.interrupt.get(), 0);
    let mut again = Driver::new(Box::new(Rng));
    again.start();
    assert_ne!(again.get(register::STATUS) & status::DRIVER_OK, 0);
}

/// A hostile driver's descriptors. The device must return from each, and use only guest RAM.
mod hostile_queue {
    use super::*;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_loop_of_descriptors_ends() {
        let mut d = driver();
        d.start();
        d.descriptor(0, 0, writable(0x8_0000, 16), VRING_DESC_F_NEXT, 1);
        d.descriptor(0, 1, writable(0x8_1000, 16), VRING_DESC_F_NEXT, 0);
        d.offer_head(0, 0);
        d.kick(0);
        let used = d.used(0);
        assert_eq!(used.len(), 1);
        assert!(used[0].1 <= 4096);
    }

    #[test]
    fn a_buffer_outside_ram_is_given_back_unused() {
        let mut d = driver();
        d.start();
        for (address, len) in [(RAM, 64), (RAM - 8, 64), (u64::MAX - 4, 64), (u64::MAX, u32::MAX)] {
            d.offer(0, &[writable(address, len)]);
        }
        d.kick(0);
        assert_eq!(d.used(0).iter().map(|u| u.1).collect::<Vec<_>>(), [0; 4]);
    }

    #[test]
    fn a_request_for_4_gib_of_randomness_gets_a_page() {
        let mut d = driver();
        d.start();
        d.offer(0, &[writable(0x8_0000, u32::MAX)]);
        d.kick(0);
        assert_eq!(d.used(0), [(0, 4096)]);
    }

    #[test]
    fn a_head_outside_the_table_is_given_back_unused() {
        let mut d = driver();
        d.start();
        d.offer_head(0, u16::MAX);
        d.kick(0);
        // virtio-queue refuses to return an impossible index: the device stops.
        assert!(d.used(0).is_empty());
        assert_ne!(d.get(register::STATUS) & status::NEEDS_RESET, 0);
    }

    #[test]
    fn more_available_entries_than_the_queue_has_stop_the_device() {
        let mut d = driver();
        d.start();
        d.memory.write_obj(500u16, GuestAddress(base(0) + 0x1000 + 2)).unwrap();
        d.kick(0);
        assert_ne!(d.get(register::STATUS) & status::NEEDS_RESET, 0);
        assert!(d.used(0).is_empty());
    }

    #[test]
    fn an_indirect_table_inside_itself_ends() {
        let mut d = driver();
        d.start();
        d.descriptor(0, 0, readable(base(0), 16), VRING_DESC_F_INDIRECT, 0);
        d.offer_head(0, 0);
        d.kick(0);
        assert_eq!(d.used(0), [(0, 0)]);
    }

    #[test]
    fn buffers_that_lie_over_the_rings_harm_only_the_guest() {
        let mut d = driver();
        d.start();
        d.offer(0, &[writable(base(0), 4096)]);
        d.offer(0, &[writable(base(0) + 0x1000, 4096)]);
        d.kick(0);
        d.kick(0);
        assert!(d.interrupt.get() >= 1);
    }
}

/// Random register accesses and queue memory never cause a panic.
#[test]
fn random_drivers_do_not_stop_the_process() {
    use proptest::prelude::*;
    let access = (any::<bool>(), 0u64..0x110, any::<u32>(), 0usize..9);
    let strategy =
        (proptest::collection::vec(access, 0..200), proptest::collection::vec(any::<u8>(), 0..4096));
    proptest!(ProptestConfig::with_cases(128), |((accesses, memory) in strategy, is_card in any::<bool>())| {
        use vm_memory::{Bytes, GuestAddress};
        // The other end of the card's socket stays open, and has a frame for it.
        let (ours, far) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        ).unwrap();
        rustix::io::write(&far, &[1; 60]).unwrap();
        let mut d = if is_card { Driver::new(Box::new(Net::new(ours))) } else { driver() };
        d.start();
        let queue = if is_card { 1 } else { 0 };
        d.memory.write_slice(&memory, GuestAddress(base(queue))).unwrap();
        for (write, offset, value, len) in accesses {
            let bytes = u64::from(value).to_le_bytes();
            if write {
                d.transport.write(offset, &bytes[..len.min(8)]);
            } else {
                d.transport.read(offset, &mut vec![0; len]);
            }
            d.kick(0);
            d.kick(queue);
        }
    });
}
