//! The messages between the agent and a VMM process, over the socket that is the process' stdin.
//!
//! To the VMM: a length, a [`Config`] as JSON, then file descriptors in batches, each with one byte. The VMM trusts
//! the agent. Back: one [`Report`] per line. The agent does not trust the VMM, which a guest may have taken over:
//! lines are bounded, and their contents are used for messages and numbers only.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::jail;

/// Descriptors per message. Linux: SCM_MAX_FD is 253.
pub const BATCH: usize = 128;
/// The agent's own configuration; a closure of 100,000 segments takes 4 MiB.
pub const CONFIG_MAX: u32 = 16 << 20;
/// Most bytes of all reports of a VMM. Two reports of a few hundred bytes are expected.
const REPORTS_MAX: usize = 16 << 10;

/// The parts of a VM, independent of the program that will run in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Behind virtio-mmio transports, in the order of their addresses. The console is always there.
    pub devices: Vec<DeviceKind>,
}

impl Shape {
    pub(super) fn has_network_card(&self) -> bool {
        self.devices.contains(&DeviceKind::Net)
    }

    pub(super) fn has_disk(&self) -> bool {
        self.devices.contains(&DeviceKind::Disk)
    }

    fn has_stream(&self) -> bool {
        self.devices.contains(&DeviceKind::Vsock)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The guest's stream to the agent, and those that the agent plugs into a home.
    Vsock,
    /// The closure, as a device of this kind.
    Closure(ClosureDevice),
    /// A disk to which the agent adds images while the VM runs, over a socket for what is added (`additions`).
    Disk,
    Rng,
    /// The network card. Its frames come and go through a socket of their own.
    Net,
}

/// The kind of device with the closure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClosureDevice {
    /// virtio-pmem: mapped into the guest, read without exits and without copies.
    #[default]
    Pmem,
    /// virtio-blk: for guest kernels without virtio-pmem.
    Blk,
}

/// What the guest begins with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The kernel.
    Boot,
    /// Likewise, and its memory is a file. It is written down when the agent sends one byte.
    Template,
    /// Where a template of the same shape stood still, with these parts of its memory (offset and length in the file) and zeros
    /// in all others. It is about to write to the pages in `written`.
    Copy { memory: Vec<(u64, u64)>, written: Vec<(u64, u64)> },
}

impl Origin {
    fn has_memory(&self) -> bool {
        *self != Origin::Boot
    }

    fn has_snapshot(&self) -> bool {
        matches!(self, Origin::Copy { .. })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    pub shape: Shape,
    pub origin: Origin,
    /// The guest kernel's command line.
    pub cmdline: String,
    /// The closure: offset and length of each segment, in the order of the descriptors.
    pub segments: Vec<(u64, u64)>,
    /// The uid of the VMM; none if the agent is not root and cannot choose.
    pub uid: Option<u32>,
    /// Steps of the jail that the operator accepts to be without.
    pub allow_missing: Vec<jail::Step>,
    /// Enter the jail, report it and end: there is no VM to run.
    pub only_jail: bool,
}

/// The descriptors of a VM, apart from its closure's.
pub struct Files<Fd> {
    pub kvm: Fd,
    pub kernel: Fd,
    pub initrd: Fd,
    pub console: Fd,
    /// The memory of a template: there if and only if the VM is one, or a copy of one.
    pub memory: Option<Fd>,
    /// The snapshot of a template: there if and only if the VM is a copy.
    pub snapshot: Option<Fd>,
    /// There if and only if the shape has a device for it.
    pub stream: Option<Fd>,
    /// The socket of the network card: there if and only if the shape has one.
    pub net: Option<Fd>,
    /// The socket for what the agent adds while the VM runs: there if and only if the shape has a growing disk.
    pub additions: Option<Fd>,
}

/// A message from the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// The jail is complete, the guest is loaded, the vCPUs run.
    Started {
        jail: jail::Report,
        /// Address ranges of this process that are guest RAM or closure: not the VMM's own memory.
        guest: Vec<(u64, u64)>,
        /// Microseconds from the start of the process until: descriptors received, jailed, loaded, started.
        micros: [u64; 4],
    },
    Stopped {
        why: String,
    },
    /// The VM could not be set up.
    Failed {
        why: String,
    },
}

/// Sends the configuration and the descriptors from the agent to the VMM.
pub fn send(
    socket: &UnixStream,
    config: &Config,
    files: &Files<BorrowedFd<'_>>,
    segments: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if files.net.is_some() != config.shape.has_network_card() {
        return Err(io::Error::other("a network card and its socket come together"));
    }
    if files.additions.is_some() != config.shape.has_disk() {
        return Err(io::Error::other("a growing disk and the socket for what is added come together"));
    }
    if files.stream.is_some() != config.shape.has_stream() {
        return Err(io::Error::other("a vsock and its stream come together"));
    }
    let given = (files.memory.is_some(), files.snapshot.is_some());
    if given != (config.origin.has_memory(), config.origin.has_snapshot()) {
        return Err(io::Error::other("a template and its memory come together, and a copy and both files"));
    }
    send_json(socket, config)?;
    let mut all = vec![files.kvm, files.kernel, files.initrd, files.console];
    all.extend(files.memory);
    all.extend(files.snapshot);
    all.extend(files.stream);
    all.extend(files.net);
    all.extend(files.additions);
    send_batch(socket, &all)?;
    for batch in segments.chunks(BATCH) {
        send_batch(socket, batch)?;
    }
    Ok(())
}

/// A length, and the message as JSON.
pub fn send_json(mut socket: impl Write, message: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let len = u32::try_from(json.len()).ok().filter(|len| *len <= CONFIG_MAX);
    let len =
        len.ok_or_else(|| io::Error::other(format!("a message of {} bytes is too large", json.len())))?;
    socket.write_all(&len.to_le_bytes())?;
    socket.write_all(&json)
}

pub fn receive_json<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<T> {
    receive_json_within(socket, CONFIG_MAX)
}

/// From a sender who may send any length: at most `longest` bytes.
pub fn receive_json_within<T: DeserializeOwned>(socket: impl Read, longest: u32) -> io::Result<T> {
    Ok(serde_json::from_slice(&receive_message(socket, longest)?)?)
}

/// The JSON of such a message.
pub fn receive_message(mut socket: impl Read, longest: u32) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > longest {
        return Err(io::Error::other("oversized message"));
    }
    let mut json = vec![0; len as usize];
    socket.read_exact(&mut json)?;
    Ok(json)
}

/// One byte with descriptors.
pub fn send_batch(socket: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives them in the VMM. [`Segments`] receives the closure one batch at a time, so that not all files are
/// open at once.
pub fn receive(socket: &UnixStream) -> io::Result<(Config, Files<OwnedFd>)> {
    let config: Config = receive_json(socket)?;
    let (has_net, has_disk) = (config.shape.has_network_card(), config.shape.has_disk());
    let has_stream = config.shape.has_stream();
    let (has_memory, has_snapshot) = (config.origin.has_memory(), config.origin.has_snapshot());
    let files = receive_batch(socket)?;
    let optional = [has_memory, has_snapshot, has_stream, has_net, has_disk];
    let expected = 4 + optional.map(usize::from).iter().sum::<usize>();
    if files.len() != expected {
        return Err(io::Error::other(format!("expected {expected} descriptors, got {}", files.len())));
    }
    let mut files = files.into_iter();
    let mut next = || files.next().ok_or_else(|| io::Error::other("they were counted above"));
    let (kvm, kernel, initrd, console) = (next()?, next()?, next()?, next()?);
    let memory = has_memory.then(&mut next).transpose()?;
    let snapshot = has_snapshot.then(&mut next).transpose()?;
    let stream = has_stream.then(&mut next).transpose()?;
    let net = has_net.then(&mut next).transpose()?;
    let additions = has_disk.then(&mut next).transpose()?;
    Ok((config, Files { kvm, kernel, initrd, console, memory, snapshot, stream, net, additions }))
}

/// The files of `count` segments, in batches.
pub struct Segments<'a> {
    pub socket: &'a UnixStream,
    pub left: usize,
}

impl Iterator for Segments<'_> {
    type Item = io::Result<Vec<File>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let batch = receive_batch(self.socket).and_then(|fds| {
            self.left = self
                .left
                .checked_sub(fds.len())
                .filter(|_| !fds.is_empty())
                .ok_or_else(|| io::Error::other("wrong number of segment descriptors"))?;
            Ok(fds.into_iter().map(File::from).collect())
        });
        if batch.is_err() {
            self.left = 0;
        }
        Some(batch)
    }
}

pub fn receive_batch(socket: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let message = rustix::io::retry_on_intr(|| {
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("this process may not open enough files"));
    }
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    Ok(fds)
}

/// Sends a report to the agent. Errors are ignored: if the agent is gone, this process is killed.
pub fn report(mut socket: &UnixStream, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        let _ = socket.write_all(&line);
    }
}

/// Collects the reports of a VMM as they arrive.
#[derive(Default)]
pub struct Reports {
    buffer: Vec<u8>,
    total: usize,
}

impl Reports {
    /// The reports of a VMM that another program has read before, as that one says.
    pub fn taken_over(begun: Vec<u8>, total: usize) -> Reports {
        Reports { buffer: begun, total }
    }

    /// For [`Reports::taken_over`].
    pub fn written_down(&self) -> (Vec<u8>, usize) {
        (self.buffer.clone(), self.total)
    }

    /// Reads once from `socket`; returns the complete reports. An empty read means that the VMM is gone.
    pub fn read(&mut self, mut socket: &UnixStream) -> io::Result<Option<Vec<Report>>> {
        let mut chunk = [0; 4096];
        let n = socket.read(&mut chunk)?;
        if n == 0 {
            return Ok(None);
        }
        self.total += n;
        if self.total > REPORTS_MAX {
            return Err(io::Error::other("the VMM says more than it may"));
        }
        self.buffer.extend_from_slice(&chunk[..n]);
        let mut reports = Vec::new();
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            reports.push(serde_json::from_slice(&line)?);
        }
        Ok(Some(reports))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

    use super::*;

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    /// Of a small VM without a closure.
    fn config(devices: Vec<DeviceKind>, origin: Origin) -> Config {
        Config {
            shape: Shape { vcpus: 1, memory_mib: 512, devices },
            origin,
            cmdline: String::new(),
            uid: None,
            allow_missing: Vec::new(),
            only_jail: false,
            segments: Vec::new(),
        }
    }

    #[test]
    fn a_closure_of_many_segments_arrives_in_order() {
        let (agent, vmm) = UnixStream::pair().unwrap();
        let count = 3 * BATCH + 1;
        let config = Config {
            shape: Shape {
                vcpus: 2,
                memory_mib: 512,
                devices: vec![DeviceKind::Vsock, DeviceKind::Closure(ClosureDevice::Blk), DeviceKind::Rng],
            },
            cmdline: "quiet".into(),
            uid: Some(7),
            allow_missing: vec![jail::Step::Landlock],
            only_jail: false,
            origin: Origin::Boot,
            segments: (0..count as u64).map(|i| (i * 4096, 4096)).collect(),
        };
        let sent = config.clone();
        let sender = std::thread::spawn(move || {
            let file = null();
            let fd = file.as_fd();
            let files = Files {
                kvm: fd,
                kernel: fd,
                initrd: fd,
                console: fd,
                memory: None,
                snapshot: None,
                stream: Some(fd),
                net: None,
                additions: None,
            };
            send(&agent, &sent, &files, &vec![fd; count]).unwrap();
        });
        let (received, _files) = receive(&vmm).unwrap();
        assert_eq!(received.segments, config.segments);
        assert_eq!(received.shape, config.shape);
        let files = Segments { socket: &vmm, left: count }.map(|b| b.unwrap().len()).sum::<usize>();
        assert_eq!(files, count);
        sender.join().unwrap();
    }

    #[test]
    fn a_device_and_its_sockets_come_together_or_not_at_all() {
        let null = null();
        let fd = null.as_fd();
        // Different kinds of files, so that none is taken for another.
        let kind = |fd: OwnedFd| {
            let kind = File::from(fd).metadata().unwrap().file_type();
            [kind.is_socket(), kind.is_fifo(), kind.is_dir(), kind.is_char_device()].map(u8::from)
        };
        let (stream, _other) = UnixStream::pair().unwrap();
        let (pipe, _writer) = std::io::pipe().unwrap();
        let devices = [DeviceKind::Vsock, DeviceKind::Net, DeviceKind::Disk];
        let directory = File::open("/").unwrap();
        for shown in 0..8 {
            for given in 0..8 {
                let (agent, vmm) = UnixStream::pair().unwrap();
                let chosen = (0..3).filter(|bit| shown >> bit & 1 == 1).map(|bit: usize| devices[bit]);
                let config = config(chosen.collect(), Origin::Boot);
                let files = Files {
                    kvm: fd,
                    kernel: fd,
                    initrd: fd,
                    console: fd,
                    memory: None,
                    snapshot: None,
                    stream: (given & 1 == 1).then_some(stream.as_fd()),
                    net: (given & 2 == 2).then_some(pipe.as_fd()),
                    additions: (given & 4 == 4).then_some(directory.as_fd()),
                };
                let sent = send(&agent, &config, &files, &[]);
                assert_eq!(sent.is_ok(), shown == given, "{shown} {given}");
                if sent.is_err() {
                    continue;
                }
                let (_, files) = receive(&vmm).unwrap();
                for other in [files.kvm, files.kernel, files.initrd, files.console] {
                    assert_eq!(kind(other), [0, 0, 0, 1]);
                }
                assert_eq!(files.stream.map(kind), (shown & 1 == 1).then_some([1, 0, 0, 0]));
                assert_eq!(files.net.map(kind), (shown & 2 == 2).then_some([0, 1, 0, 0]));
                assert_eq!(files.additions.map(kind), (shown & 4 == 4).then_some([0, 0, 1, 0]));
            }
        }
    }

    #[test]
    fn a_template_has_its_memory_and_a_copy_its_snapshot_too() {
        let (memory, _other) = UnixStream::pair().unwrap();
        let (snapshot, _writer) = std::io::pipe().unwrap();
        let parts = vec![(0, 4096), (8192, 4096)];
        let copy = Origin::Copy { memory: parts, written: vec![(8192, 4096)] };
        for (shown, origin) in [Origin::Boot, Origin::Template, copy].into_iter().enumerate() {
            for given in 0..3 {
                let (agent, vmm) = UnixStream::pair().unwrap();
                let config = config(Vec::new(), origin.clone());
                let null = null();
                let fd = null.as_fd();
                let files = Files {
                    kvm: fd,
                    kernel: fd,
                    initrd: fd,
                    console: fd,
                    memory: (given >= 1).then_some(memory.as_fd()),
                    snapshot: (given == 2).then_some(snapshot.as_fd()),
                    stream: None,
                    net: None,
                    additions: None,
                };
                assert_eq!(send(&agent, &config, &files, &[]).is_ok(), shown == given, "{shown} {given}");
                if shown == given {
                    let (received, files) = receive(&vmm).unwrap();
                    assert_eq!(received.origin, origin);
                    let is_socket = |fd: OwnedFd| File::from(fd).metadata().unwrap().file_type().is_socket();
                    assert_eq!(files.memory.map(is_socket), (given >= 1).then_some(true));
                    assert_eq!(files.snapshot.map(is_socket), (given == 2).then_some(false));
                }
            }
        }
    }

    #[test]
    fn a_talkative_vmm_is_cut_off() {
        let (mut vmm, agent) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while vmm.write_all(&[b'x'; 4096]).is_ok() {});
        let mut reports = Reports::default();
        let error = loop {
            match reports.read(&agent) {
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        assert!(error.to_string().contains("more than it may"));
        assert!(reports.buffer.len() <= REPORTS_MAX);
        drop(agent);
        writer.join().unwrap();
    }

    #[test]
    fn reports_split_anywhere_are_put_together() {
        let (vmm, agent) = UnixStream::pair().unwrap();
        let mut reports = Reports::default();
        report(&vmm, &Report::Stopped { why: "a".into() });
        (&vmm).write_all(br#"{"event":"failed","#).unwrap();
        assert_eq!(reports.read(&agent).unwrap().unwrap(), [Report::Stopped { why: "a".into() }]);
        (&vmm).write_all(b"\"why\":\"b\"}\n").unwrap();
        assert_eq!(reports.read(&agent).unwrap().unwrap(), [Report::Failed { why: "b".into() }]);
        drop(vmm);
        assert_eq!(reports.read(&agent).unwrap(), None);
    }
}
