//! What epoll waits for is what the devices ask for.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::*;
use crate::kvm::devices::console::{Console, Ring};
use crate::kvm::devices::restore_error::RestoreError;
use crate::kvm::devices::state::DeviceState;
use crate::kvm::devices::testing::{Count, Driver};
use crate::kvm::devices::{Device, Used};
use crate::process::memory_file;

/// A device that wants what the test says.
struct Wanting(Arc<Mutex<Vec<Watched>>>);

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
        self.0.lock().unwrap().clone()
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[test]
fn each_descriptor_of_a_device_is_waited_for_with_its_own_events() {
    let wanted = Arc::new(Mutex::new(Vec::new()));
    let mut driver = Driver::new(Box::new(Wanting(wanted.clone())));
    driver.start();
    let console = Console::new(Ring::new(memory_file("console").unwrap()), Box::new(Count::default()));
    let bus = Bus::new(console, vec![driver.transport]);
    let mut events = Events::new(bus, Vec::new()).unwrap();
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
        *wanted.lock().unwrap() = now.clone();
        events.watch(0).unwrap();
        let mut ready = vec![EpollEvent::default(); 8];
        let count = events.epoll.wait(0, &mut ready).unwrap();
        let mut got: Vec<_> = ready[..count].iter().map(|event| event.events()).collect();
        let mut expected: Vec<_> = expected.iter().map(EventSet::bits).collect();
        got.sort_unstable();
        expected.sort_unstable();
        assert_eq!(got, expected, "{now:?}");
        assert!(ready[..count].iter().all(|event| event.data() == WATCHED));
    }
}
