//! The process: moves frames between the two sockets, and tells the agent what the guard reports.
//!
//! One thread and `poll`. Each direction holds one frame at most that its target has no room for, and reads no other
//! before that one is gone: who does not read is sent nothing, and the other direction goes on. Frames never wait for
//! the agent: what it does not read in time is lost, and counted.
//! System calls after the start: `ppoll`, `recvfrom`, `sendto`, `clock_gettime` (where the kernel has it not mapped),
//! `close` at the end; and those of an allocator, of a panic and of the end of a process. No descriptor is opened or
//! changed, and nothing random is needed.
//! Not here: what passes (`guard`).

mod stream;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::events::Event;
use crate::frames::MAX_FRAME;
use crate::guard::{Guard, Side, Verdict};
use crate::policy::Policy;
use stream::Stream;

/// Length in front of each frame in the stream of the user-mode network.
const PREFIX: usize = 4;
/// Frames of one direction before the other has its turn.
const TURN: usize = 64;
/// Text for the agent that it has not read yet. Ten thousand lines may be lost rather than frames wait.
const MAX_TEXT: usize = 256 << 10;
/// Time at the end for the agent to read the last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Moves frames until the guest's socket or the agent's ends. `guest` is a SOCK_SEQPACKET socket with a frame in each
/// message, `network` a SOCK_STREAM socket with the length of each frame before it (32 bits, big endian), `control` gets
/// events as lines of JSON; the last one is the total. If `control` is shut down for writing at its other side, the
/// relay ends, too, and the total is still written.
///
/// An error is trouble of the network's: it ended, or its stream makes no sense. The total has been written then.
pub fn run(guest: OwnedFd, network: OwnedFd, control: UnixStream, policy: Policy) -> io::Result<()> {
    let mut relay = Relay {
        guard: Guard::new(policy),
        guest,
        network: Stream::new(network),
        control,
        from_guest: Box::new([0; PREFIX + MAX_FRAME + 1]),
        to_network: None,
        text: Vec::new(),
        agent_listens: true,
    };
    let result = relay.work();
    relay.guard.finish(Instant::now());
    relay.last_words();
    result
}

struct Relay {
    guard: Guard,
    guest: OwnedFd,
    network: Stream,
    control: UnixStream,
    /// Room for the prefix, a frame, and one byte more, by which a longer frame is noticed.
    from_guest: Box<[u8; PREFIX + MAX_FRAME + 1]>,
    /// Length of the frame in `from_guest` that passes, but for which the network has no room yet.
    to_network: Option<usize>,
    text: Vec<u8>,
    agent_listens: bool,
}

/// Why a direction stopped.
#[derive(PartialEq, Eq)]
enum Pause {
    /// Its source has nothing now.
    Empty,
    /// Its target has no room now.
    Full,
    /// It had its turn.
    Turn,
    /// Its source has ended, for good.
    Ended,
}

impl Relay {
    fn work(&mut self) -> io::Result<()> {
        let (mut guest_is_full, mut network_is_full) = (false, false);
        loop {
            let now = Instant::now();
            let wait = self.guard.wait(now);
            let reads = wait.is_zero();
            let flags = |reads: bool, writes: bool| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, reads);
                flags.set(PollFlags::OUT, writes);
                flags
            };
            let has_work = self.has_work(Side::Network) && !network_is_full
                || self.has_work(Side::Guest) && !guest_is_full
                || self.network.has_frames() && !guest_is_full && reads;
            let mut polled = [
                PollFd::new(&self.guest, flags(reads && !network_is_full, guest_is_full)),
                PollFd::new(&self.network.fd, flags(reads && !guest_is_full, network_is_full)),
                PollFd::new(&self.control, flags(true, !self.text.is_empty())),
            ];
            let timeout = match (has_work, reads, self.guard.next_tick()) {
                (true, ..) => Some(Duration::ZERO),
                (false, false, _) => Some(wait),
                (false, true, Some(tick)) => Some(tick.saturating_duration_since(now)),
                (false, true, None) => None,
            };
            let timeout = timeout.map(|timeout| Timespec {
                tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: timeout.subsec_nanos().into(),
            });
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [guest, network, control] = polled.map(|fd| fd.revents());
            let gone = PollFlags::HUP | PollFlags::ERR;
            if control.intersects(gone | PollFlags::IN) && self.agent_is_gone() {
                return Ok(());
            }
            // What is still on its way between the two does not matter to anybody any more.
            if guest.intersects(gone) {
                return Ok(());
            }
            if network.intersects(gone) {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the user-mode network ended"));
            }
            self.guard.tick(Instant::now());
            match self.guest_to_network()? {
                Pause::Ended => return Ok(()),
                pause => network_is_full = pause == Pause::Full,
            }
            // Last, so that the guest soon has the answers to its frames.
            match self.network_to_guest()? {
                Pause::Ended => return Ok(()),
                pause => guest_is_full = pause == Pause::Full,
            }
            self.tell();
        }
    }

    /// Whether there is a frame that was not sent to this side yet.
    fn has_work(&mut self, side: Side) -> bool {
        let passing = match side {
            Side::Guest => self.network.passing().is_some(),
            Side::Network => self.to_network.is_some(),
        };
        passing || !self.guard.outgoing(side).is_empty()
    }

    /// Whether frames may be read now, by the pace.
    fn may_read(&self) -> bool {
        self.guard.wait(Instant::now()).is_zero()
    }

    fn guest_to_network(&mut self) -> io::Result<Pause> {
        for _ in 0..TURN {
            while let Some(frame) = self.guard.outgoing(Side::Network).front() {
                if !self.network.send(frame)? {
                    return Ok(Pause::Full);
                }
                self.guard.outgoing(Side::Network).pop_front();
            }
            if let Some(length) = self.to_network {
                if !self.network.send_with_prefix(&self.from_guest[..PREFIX + length])? {
                    return Ok(Pause::Full);
                }
                self.to_network = None;
            }
            if !self.may_read() {
                return Ok(Pause::Empty);
            }
            let room = &mut self.from_guest[PREFIX..];
            let length = match receive(self.guest.as_fd(), room) {
                Received::Bytes(length) => length,
                Received::Nothing => return Ok(Pause::Empty),
                Received::Ended => return Ok(Pause::Ended),
            };
            let frame = &self.from_guest[PREFIX..PREFIX + length];
            if self.guard.from_guest(frame, Instant::now()) == Verdict::Pass {
                // A frame that passes is no longer than `MAX_FRAME`.
                let prefix = u32::try_from(length).unwrap_or(0).to_be_bytes();
                self.from_guest[..PREFIX].copy_from_slice(&prefix);
                self.to_network = Some(length);
            }
        }
        Ok(Pause::Turn)
    }

    fn network_to_guest(&mut self) -> io::Result<Pause> {
        for _ in 0..TURN {
            while let Some(frame) = self.guard.outgoing(Side::Guest).front() {
                match send_message(self.guest.as_fd(), frame) {
                    Sent::All => drop(self.guard.outgoing(Side::Guest).pop_front()),
                    Sent::NoRoom => return Ok(Pause::Full),
                    Sent::Ended => return Ok(Pause::Ended),
                }
            }
            let Some(frame) = self.network.passing() else {
                if !self.may_read() {
                    return Ok(Pause::Empty);
                }
                let Some(frame) = self.network.frame(&mut self.guard)? else { return Ok(Pause::Empty) };
                let verdict = self.guard.from_network(frame, Instant::now());
                self.network.decided(verdict);
                continue;
            };
            match send_message(self.guest.as_fd(), frame) {
                Sent::All => self.network.decided(Verdict::Drop),
                Sent::NoRoom => return Ok(Pause::Full),
                Sent::Ended => return Ok(Pause::Ended),
            }
        }
        Ok(Pause::Turn)
    }

    /// The agent has nothing to say but that it has ended.
    fn agent_is_gone(&mut self) -> bool {
        let mut ignored = [0; 256];
        matches!(receive(self.control.as_fd(), &mut ignored), Received::Ended)
    }

    /// Gives the agent what it reads, and loses what does not fit.
    fn tell(&mut self) {
        while let Some(event) = self.guard.take_event() {
            if self.text.len() < MAX_TEXT && self.agent_listens {
                self.write(&event);
            } else {
                self.guard.lose_event();
            }
        }
        self.flush();
    }

    fn write(&mut self, event: &Event) {
        // Plain numbers and strings: this cannot fail, and a vector takes everything.
        if serde_json::to_writer(&mut self.text, event).is_ok() {
            self.text.push(b'\n');
        }
    }

    fn flush(&mut self) {
        while !self.text.is_empty() && self.agent_listens {
            match send(&self.control, &self.text, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.text.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.agent_listens = false,
            }
        }
    }

    /// Writes the last events, whatever their number, if the agent reads them in time.
    fn last_words(&mut self) {
        while let Some(event) = self.guard.take_event() {
            self.write(&event);
        }
        let end = Instant::now() + LAST_WORDS;
        loop {
            self.flush();
            let left = end.saturating_duration_since(Instant::now());
            if self.text.is_empty() || !self.agent_listens || left.is_zero() {
                return;
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let mut polled = [PollFd::new(&self.control, PollFlags::OUT)];
            if matches!(poll(&mut polled, Some(&timeout)), Err(error) if error != Errno::INTR) {
                return;
            }
        }
    }
}

enum Received {
    Bytes(usize),
    Nothing,
    Ended,
}

/// Any failure but "nothing yet" is the end.
fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Received {
    loop {
        match recv(fd, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Received::Ended,
            Ok((length, _)) => return Received::Bytes(length),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Received::Nothing,
            Err(_) => return Received::Ended,
        }
    }
}

enum Sent {
    All,
    NoRoom,
    Ended,
}

fn send_message(fd: BorrowedFd<'_>, frame: &[u8]) -> Sent {
    loop {
        match send(fd, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => return Sent::All,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => return Sent::NoRoom,
            Err(_) => return Sent::Ended,
        }
    }
}
