//! What epoll waits for is what the devices ask for.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::kvm::devices::blk::Blk;
use crate::kvm::devices::console::{Console, Ring};
use crate::kvm::devices::mmio::Transport;
use crate::kvm::devices::restore_error::RestoreError;
use crate::kvm::devices::rng::Rng;
use crate::kvm::devices::state::DeviceState;
use crate::kvm::devices::testing::{Count, Driver, readable, writable};
use crate::kvm::devices::{Device, Used};
use crate::kvm::memory::Closure;
use crate::process::memory_file;

/// A device that wants what the test says, and keeps descriptors until they are released.
#[derive(Clone, Default)]
struct Wanting {
    wanted: Arc<Mutex<Vec<Watched>>>,
    ended: Arc<Mutex<Vec<UnixStream>>>,
}

impl Device for Wanting {
    fn kind(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[16]
    }

    fn config(&self) -> &[u8] {
        &[]
    }

    fn kicked(&mut self, _index: usize, _queues: &mut [Queue], _memory: &GuestMemoryMmap) -> Used {
        Ok(false)
    }

    fn watch(&self) -> Vec<Watched> {
        self.wanted.lock().unwrap().clone()
    }

    fn release(&mut self) {
        self.ended.lock().unwrap().clear();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

fn bus(transport: Transport) -> Arc<Bus> {
    let console = Console::new(Ring::new(memory_file("console").unwrap()), Box::new(Count::default()));
    Bus::new(console, vec![transport])
}

#[test]
fn each_descriptor_of_a_device_is_waited_for_with_its_own_events() {
    let device = Wanting::default();
    let mut driver = Driver::new(Box::new(device.clone()));
    driver.start();
    let mut events = Events::new(bus(driver.transport), Vec::new()).unwrap();
    let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
    for (_, far) in &pairs {
        (&mut &*far).write_all(b"readable").unwrap();
    }
    let [one, two] = [0, 1].map(|index: usize| pairs[index].0.as_raw_fd());
    let (none, input, output) = (EventSet::empty(), EventSet::IN, EventSet::OUT);
    let steps = [
        (vec![(one, input), (two, input)], vec![input, input]),
        (vec![(two, input), (one, output)], vec![input, output]),
        (vec![(one, output), (two, none)], vec![output]),
        (vec![(two, input | output)], vec![input | output]),
        (vec![], vec![]),
        (vec![(one, none), (two, none)], vec![]),
        (vec![(one, input), (two, output)], vec![input, output]),
    ];
    for (now, expected) in steps {
        let now: Vec<_> = now.into_iter().map(|(fd, events)| Watched { fd, id: fd as u32, events }).collect();
        *device.wanted.lock().unwrap() = now.clone();
        events.watch(0).unwrap();
        let mut ready = vec![EpollEvent::default(); 8];
        let count = events.epoll.wait(0, &mut ready).unwrap();
        let mut got: Vec<_> = ready[..count].iter().map(|event| event.events()).collect();
        let mut expected: Vec<_> = expected.iter().map(EventSet::bits).collect();
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected, "{now:?}");
        let ids = ready[..count].iter().map(|event| event.data() ^ WATCHED);
        assert!(ids.into_iter().all(|id| now.iter().any(|watched| u64::from(watched.id) == id)));
    }
}

#[test]
fn a_device_that_stops_in_the_middle_goes_on_without_another_notification() {
    let mut d = Driver::new(Box::new(Blk::new(Arc::new(Closure::reserve(4 << 20).unwrap()))));
    d.start();
    let (request, data, status) = (0x2_0000, 0x4_0000, 0x3_0000);
    d.memory.write_slice(&[0; 16], GuestAddress(request)).unwrap();
    for _ in 0..5 {
        // Half a turn.
        d.offer(0, &[readable(request, 16), writable(data, 512 << 10), writable(status, 1)]);
    }
    let stub = Transport::new(Box::new(Rng), d.memory.clone(), Box::new(Count::default()));
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    event.write(1).unwrap();
    let kicks = vec![Kick { event, device: 0, queue: 0 }];
    let mut events = Events::new(bus(std::mem::replace(&mut d.transport, stub)), kicks).unwrap();
    let mut ready = vec![EpollEvent::default(); 8];
    for (served, is_more) in [(2, true), (2, true), (1, false)] {
        events.turn(&mut ready).unwrap();
        assert_eq!((d.used(0).len(), events.unfinished.is_empty()), (served, !is_more));
    }
}

/// Otherwise the event thread would turn round and round for a descriptor that is closed here, and open elsewhere; or take out
/// another one that got the same number.
#[test]
fn a_descriptor_is_out_of_epoll_before_it_is_closed() {
    let device = Wanting::default();
    let mut driver = Driver::new(Box::new(device.clone()));
    driver.start();
    let mut events = Events::new(bus(driver.transport), Vec::new()).unwrap();
    let mut ready = vec![EpollEvent::default(); 8];
    let mut watched = |stream: &UnixStream, id| {
        let fd = stream.as_raw_fd();
        *device.wanted.lock().unwrap() = vec![Watched { fd, id, events: EventSet::HANG_UP }];
        events.watch(0).unwrap();
        let count = events.epoll.wait(0, &mut ready).unwrap();
        ready[..count].iter().map(|event| event.data() ^ WATCHED).collect::<Vec<_>>()
    };
    let (agent, old) = UnixStream::pair().unwrap();
    // As the agent has it, until it has heard that the stream was plugged in.
    let _copy = old.try_clone().unwrap();
    assert_eq!(watched(&old, 1), [0; 0]);
    drop(agent);
    assert_eq!(watched(&old, 1), [1]);
    let (number, (agent, new)) = (old.as_raw_fd(), UnixStream::pair().unwrap());
    device.ended.lock().unwrap().push(old);
    assert_eq!(watched(&new, 2), [0; 0]);
    drop(agent);
    assert_eq!(watched(&new, 2), [2]);
    // The number of the first one comes back, with another id.
    let (agent, third) = UnixStream::pair().unwrap();
    assert!([&agent, &third].iter().any(|stream| stream.as_raw_fd() == number), "it was closed");
    let (far, near) = if third.as_raw_fd() == number { (agent, third) } else { (third, agent) };
    assert_eq!(watched(&near, 3), [0; 0]);
    drop(far);
    assert_eq!(watched(&near, 3), [3]);
}
