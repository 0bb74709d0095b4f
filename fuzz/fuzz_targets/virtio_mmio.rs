#![no_main]
//! Any register accesses and any queue memory against every device behind the virtio-mmio transport.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use sandbox::kvm::devices::blk::Blk;
use sandbox::kvm::devices::mmio::{Transport, register, status};
use sandbox::kvm::devices::net::{FRAME_MAX, Net};
use sandbox::kvm::devices::pmem::Pmem;
use sandbox::kvm::devices::rng::Rng;
use sandbox::kvm::devices::vsock::Vsock;
use sandbox::kvm::devices::{Device, Interrupt};
use sandbox::kvm::growing::Growing;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

struct Nobody;

impl Interrupt for Nobody {
    fn trigger(&self) {}
}

const RAM: usize = 64 << 10;

/// A growing disk with two pages of images, and a third one that is not shown.
fn disk() -> Arc<Growing> {
    let file = File::from(memfd_create("image", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_len(4096).expect("a page");
    let (disk, mut grower) = Growing::reserve().expect("addresses");
    for index in 0..3 {
        if index == 2 {
            grower.show();
        }
        grower.map(index, &file, (0, 4096)).expect("a mapping");
    }
    disk
}

fn set(transport: &mut Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

/// As a well-behaved driver would, so that the fuzzer's queue memory is looked at.
fn start(transport: &mut Transport) {
    set(transport, register::STATUS, status::ACKNOWLEDGE);
    set(transport, register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    set(transport, register::DRIVER_FEATURES_SELECT, 1);
    set(transport, register::DRIVER_FEATURES, 1);
    let negotiated = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    set(transport, register::STATUS, negotiated);
    for queue in 0..transport.queue_count() as u32 {
        set(transport, register::QUEUE_SELECT, queue);
        set(transport, register::QUEUE_SIZE, 16);
        set(transport, register::QUEUE_DESC_LOW, queue * 0x1000);
        set(transport, register::QUEUE_DRIVER_LOW, queue * 0x1000 + 0x400);
        set(transport, register::QUEUE_DEVICE_LOW, queue * 0x1000 + 0x800);
        set(transport, register::QUEUE_READY, 1);
    }
    set(transport, register::STATUS, negotiated | status::DRIVER_OK);
}

fuzz_target!(|data: &[u8]| {
    let Some(([kind, accesses], rest)) = data.split_first_chunk::<2>() else { return };
    let (agent, ours) = UnixStream::pair().expect("a pair of sockets");
    let (sshd, second) = UnixStream::pair().expect("a pair of sockets");
    for stream in [&agent, &ours, &sshd, &second] {
        stream.set_nonblocking(true).expect("a non-blocking socket");
    }
    let (socket, network) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a pair of sockets");
    // Frames for the guest, and messages that are none.
    for len in [1, 13, 14, 60, FRAME_MAX, FRAME_MAX + 1, 14, 14] {
        send(&network, &[0xaa; FRAME_MAX + 1][..len], SendFlags::DONTWAIT).expect("an empty socket");
    }
    let device: Box<dyn Device> = match kind % 5 {
        0 => Box::new(Vsock::new(1024, ours)),
        1 => Box::new(Pmem::new(1 << 32, 2 << 20)),
        2 => Box::new(Net::new(socket)),
        3 => Box::new(Blk::new(disk())),
        _ => Box::new(Rng),
    };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).expect("a little memory");
    let mut transport = Transport::new(device, memory.clone(), Box::new(Nobody));
    if kind & 0x80 == 0 {
        start(&mut transport);
    }
    // Refused by all devices but one, and by that one if it has no driver.
    let is_plugged = transport.plug(1025, second).is_ok();
    assert_eq!(is_plugged, kind % 5 == 0 && kind & 0x80 == 0);
    // Offset, length and direction, value: six bytes each. Then queue memory.
    let (steps, queues) = rest.split_at(rest.len().min(usize::from(*accesses) * 6));
    let queues = &queues[..queues.len().min(RAM)];
    memory.write_slice(queues, GuestAddress(0)).expect("it was cut to fit");
    for queue in 0..transport.queue_count() {
        transport.kick(queue);
    }
    for step in steps.chunks_exact(6) {
        let offset = u64::from(step[0]) << (step[1] >> 6);
        let len = usize::from(step[1] & 0xf);
        if step[1] & 0x10 == 0 {
            let bytes = [step[2], step[3], step[4], step[5], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            transport.write(offset, &bytes[..len]);
        } else {
            transport.read(offset, &mut vec![0; len]);
        }
        if step[1] & 0x20 != 0 {
            let events = EventSet::IN | EventSet::OUT;
            let given_up = if step[1] & 0xc0 == 0xc0 { EventSet::HANG_UP } else { EventSet::empty() };
            transport.ready(u32::from(step[0] & 1), events | given_up);
            transport.release();
        }
        if let Some(queue) = transport.unfinished() {
            transport.kick(queue);
        }
        if len == 15 {
            // Whatever the driver did, the device can be saved and restored.
            let state = transport.save();
            transport.restore(&state).expect("its own state");
        }
        while let Ok((_, len)) = recv(&network, &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            if len == 0 {
                // The device is one without a network, and its socket is closed.
                break;
            }
            assert!((14..=FRAME_MAX).contains(&len), "a message of {len} bytes");
        }
    }
});
