//! Makes a template: boots a VM, writes it down, and runs one copy of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use guest::order::{Event, Order};
use guest::protocol::Decoder;
use rustix::event::PollFlags;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fcntl_add_seals, memfd_create};

use super::templates::{Key, Template};
use super::{Launcher, Running, StartedVm, Work, cannot, handover, written};
use crate::backend::{FarEnd, Image};
use crate::cancel::Cancel;
use crate::cpu_meter::CpuMeter;
use crate::error::SandboxError;
use crate::job::{Host, Job, OutputSink};
use crate::session::build::{InMachine, run_in};
use crate::session::stream::wait;

/// From the start of the VM to its hello, as for builds.
const HELLO_PATIENCE: Duration = Duration::from_secs(180);
/// From the request to the snapshot.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(30);
/// After its hello a guest has a little left to do, such as freeing memory of its boot. It is written down when it did nothing for
/// so long, or after [`SETTLE_MOST`].
const SETTLE: Duration = Duration::from_millis(250);
const SETTLE_MOST: Duration = Duration::from_secs(10);
/// So little processor time within [`SETTLE`] is nothing.
const IDLE: Duration = Duration::from_millis(10);

/// Parts of a template's memory begin and end at multiples of this. Smaller ones would be more mappings in each copy, larger ones
/// more memory that the template holds for nothing.
const PART: u64 = 256 << 10;

pub fn template(launcher: &Launcher, key: &Key, cancel: &Cancel) -> Result<Template, SandboxError> {
    let bytes = u64::from(key.shape.memory_mib) << 20;
    let memory = memory_file("template", bytes).map_err(cannot("create the memory of a template"))?;
    let empty = Image::default();
    let StartedVm { running, mut streams, .. } =
        launcher.start(&key.shape, &empty, "template", Work::Template(&memory), cancel)?;
    hello(&running, &mut streams.guest, cancel)?;
    settle(&running, cancel)?;
    let snapshot = written_down(&running.vmm.control)
        .and_then(|json| file_of("snapshot", &json))
        .map_err(cannot("write a template down"))?;
    drop((running, streams));

    let parts = sealed(&memory).map_err(cannot("seal the memory of a template"))?;
    let memory = read_only(&memory).map_err(cannot("open the memory of a template for reading"))?;
    let mut template = Template { key: key.clone(), memory, parts, written: Vec::new(), snapshot };
    template.written = first_copy(launcher, &template, cancel)?;
    Ok(template)
}

/// Runs a builder that does nothing in a copy: nobody is to find out with a build that the template does not work. Returns the
/// pages that the copy has written to when the builder runs.
fn first_copy(
    launcher: &Launcher,
    template: &Template,
    cancel: &Cancel,
) -> Result<Vec<(u64, u64)>, SandboxError> {
    let work = Work::Copy { of: template, alone: true };
    let began = Instant::now();
    let StartedVm { mut running, streams, .. } =
        launcher.start(&template.key.shape, &Image::default(), "the first copy", work, cancel)?;
    let mut witness = Witness {
        pid: running.vmm.pid(),
        ram: running.vmm.ram(template.key.shape.memory_mib),
        template,
        written: Ok(Vec::new()),
    };
    let machine = InMachine { streams, network: None, started: began.elapsed() };
    let job = Job::shell("echo", HELLO_PATIENCE);
    run_in(&mut running, machine, &job, &mut witness, cancel).result?;
    // Without them each copy takes a little longer.
    Ok(witness.written.unwrap_or_else(|error| {
        tracing::debug!(%error, "the pages that copies of a template write to are not known");
        Vec::new()
    }))
}

/// Looks at the pages of a copy when its builder says something.
struct Witness<'a> {
    pid: u32,
    ram: Vec<(u64, u64)>,
    template: &'a Template,
    written: io::Result<Vec<(u64, u64)>>,
}

impl Host for Witness<'_> {
    fn log(&mut self, _bytes: &[u8]) {
        self.written = written::pages(self.pid, &self.ram, &self.template.parts);
    }

    fn output(&mut self, _name: &str) -> io::Result<Box<dyn OutputSink>> {
        Err(io::Error::other("this builder has no outputs"))
    }
}

/// Waits for the guest's hello. The error has the end of its console.
fn hello(running: &Running, stream: &mut UnixStream, cancel: &Cancel) -> Result<(), SandboxError> {
    wait_for_hello(stream, cancel).map_err(|error| match error {
        SandboxError::Unavailable { why } => {
            SandboxError::Unavailable { why: format!("{why}; its console: {}", running.console()) }
        }
        other => other,
    })
}

/// Reads the guest's first frame.
fn wait_for_hello(stream: &mut UnixStream, cancel: &Cancel) -> Result<(), SandboxError> {
    let cancelled = cancel.event().map_err(cannot("create an eventfd"))?;
    let deadline = Instant::now() + HELLO_PATIENCE;
    let (mut decoder, mut order) = (Decoder::new(), Order::new([]));
    let mut buffer = [0; 4096];
    loop {
        if cancel.is_cancelled() {
            return Err(SandboxError::Cancelled);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let silent = |why: &str| SandboxError::Unavailable { why: format!("the guest of a template {why}") };
        if left.is_zero() {
            return Err(silent("did not say hello in time"));
        }
        let ready = wait(stream, &[&cancelled], None, false, Some(left))?;
        if !ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            continue;
        }
        let n = stream.read(&mut buffer).map_err(cannot("read what a template says"))?;
        if n == 0 {
            return Err(silent("hung up"));
        }
        if let Some(frame) = decoder.next(&mut &buffer[..n]).map_err(cannot("understand a template"))? {
            return match order.accept(frame).map_err(cannot("understand a template"))? {
                Event::Hello(_) => Ok(()),
                other => Err(silent(&format!("said {other:?} first"))),
            };
        }
    }
}

/// Waits until the VM does nothing.
fn settle(running: &Running, cancel: &Cancel) -> Result<(), SandboxError> {
    let meter = running.cpu_meter();
    let used = || meter.as_ref().and_then(CpuMeter::used);
    let deadline = Instant::now() + SETTLE_MOST;
    let mut before = used();
    loop {
        if cancel.wait(SETTLE) {
            return Err(SandboxError::Cancelled);
        }
        let now = used();
        let is_idle = now.zip(before).is_some_and(|(now, before)| now.saturating_sub(before) <= IDLE);
        if is_idle || Instant::now() > deadline {
            return Ok(());
        }
        before = now;
    }
}

/// Has the VMM write its VM down, after which it ends.
fn written_down(mut control: &UnixStream) -> io::Result<Vec<u8>> {
    control.set_read_timeout(Some(SNAPSHOT_PATIENCE))?;
    control.write_all(&[0])?;
    handover::receive_message(control, handover::CONFIG_MAX)
}

fn memory_file(name: &str, bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(bytes)?;
    Ok(file)
}

fn file_of(name: &str, contents: &[u8]) -> io::Result<File> {
    let mut file = memory_file(name, 0)?;
    file.write_all(contents)?;
    seal(&file)?;
    read_only(&file)
}

/// From now on nobody can change the file.
fn seal(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?)
}

/// The same file, opened for reading alone.
fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Makes the file one that nobody can change, and says which parts of it have contents.
fn sealed(memory: &File) -> io::Result<Vec<(u64, u64)>> {
    let size = memory.metadata()?.len();
    let mut parts: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while let Some(start) = seek(memory, SeekFrom::Data(at))? {
        let end = seek(memory, SeekFrom::Hole(start))?.unwrap_or(size);
        let from = (start / PART * PART).max(at);
        let to = end.next_multiple_of(PART).min(size);
        match parts.last_mut() {
            Some((last, len)) if *last + *len == from => *len = to - *last,
            _ => parts.push((from, to - from)),
        }
        at = to;
    }
    for (offset, len) in &parts {
        // Otherwise a copy that touches a hole would make a page for all.
        fallocate(memory, FallocateFlags::empty(), *offset, *len)?;
    }
    seal(memory)?;
    Ok(parts)
}

/// `None`: nothing of the kind follows.
fn seek(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_memory_of_a_template_has_all_that_was_written_in_its_parts_and_changes_no_more() {
        let size = 8 * PART;
        let memory = memory_file("test", size).unwrap();
        let written = [(PART + 5, 1), (3 * PART - 1, 2), (size - 1, 1)];
        for (at, len) in written {
            memory.write_all_at(&vec![b'x'; len], at).unwrap();
        }
        let parts = sealed(&memory).unwrap();
        assert_eq!(parts, [(PART, 3 * PART), (7 * PART, PART)]);
        assert!(memory.write_all_at(b"y", PART).is_err(), "it was sealed");
        assert!(memory.set_len(size / 2).is_err() && memory.set_len(size * 2).is_err());
        assert_eq!(sealed(&memory_file("empty", size).unwrap()).unwrap(), []);
    }

    #[test]
    fn a_snapshot_is_read_from_its_start_by_everybody_and_changed_by_nobody() {
        let file = file_of("test", b"{}").unwrap();
        let read = |mut file: &File| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read(&file), "{}");
        assert!(file.write_all_at(b"x", 0).is_err());
    }
}
