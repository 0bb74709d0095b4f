//! Machines: the description of one, the trait of backends that start them, and the handle of one that runs.
//!
//! A description has a size and the files that the machine can see. It does not contain the purpose: a session has that,
//! and talks to the machine over its streams. So one backend serves every kind of session.
//! Not here: how a backend starts a machine (`kvm`, `namespace`), and the protocol on the streams (`session`).

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use egress::Event;
use guest::protocol;

use crate::cancel::Cancel;
use crate::cpu_meter::CpuMeter;
use crate::error::SandboxError;
use crate::paused::PausedMachine;
use crate::plugs::Plugs;
use crate::usage::Usage;

/// The description of a machine to start.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Names the machine in logs; the machine does not see it.
    pub id: &'a str,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub inputs: &'a Inputs,
    /// Whether it has a network, under the policy of the backend. Without, it has a loopback interface and no other.
    pub network: bool,
    /// A machine that lives on, in which a member works: images and streams are plugged in while it runs.
    pub home: bool,
}

/// The closure, in the form the backend can show to a builder.
#[derive(Debug, Clone)]
pub enum Inputs {
    /// For kvm: one EROFS image whose root lists exactly the closure.
    Image(Image),
    /// For namespace: absolute store path to a read-only host tree.
    Trees(Vec<(String, PathBuf)>),
}

/// Segments that, concatenated, are one EROFS image.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub segments: Vec<Segment>,
}

/// Files with offsets and lengths, as the store composes them.
impl From<Vec<(Arc<File>, u64, u64)>> for Image {
    fn from(segments: Vec<(Arc<File>, u64, u64)>) -> Image {
        let segment = |(file, offset, len)| Segment { file, offset, len };
        Image { segments: segments.into_iter().map(segment).collect() }
    }
}

/// A part of a file. Offset and length are multiples of 4096.
#[derive(Debug, Clone)]
pub struct Segment {
    pub file: Arc<File>,
    pub offset: u64,
    pub len: u64,
}

/// Starts machines.
pub trait Backend: Send + Sync {
    /// The name in logs.
    fn name(&self) -> &'static str;

    /// Starts a machine. Returns when it runs, long before a program in it answers. On error nothing of the
    /// machine is left.
    fn start(&self, machine: Machine<'_>, cancel: &Cancel) -> Result<Started, SandboxError>;
}

/// A machine that runs.
pub struct Started {
    pub far_end: Box<dyn FarEnd>,
    pub streams: Streams,
    /// What the guest is told about its network, if it has one.
    pub network: Option<protocol::Network>,
    /// For what is plugged into a home.
    pub plugs: Option<Plugs>,
}

/// Byte streams between the agent and the programs in the machine.
pub struct Streams {
    /// Connects the guest program with the session.
    pub guest: UnixStream,
}

/// The machine seen from outside. Dropping it ends the machine.
pub trait FarEnd: Send {
    /// The machine's last output besides the streams (console, stderr), limited in length. Called once, if a
    /// stream ended early.
    fn last_words(&mut self) -> String;

    /// Whether the machine ended because it had no memory left. `last_words` are its own.
    fn ran_out_of_memory(&self, _last_words: &str) -> bool {
        false
    }

    /// What the machine's network has connected, and refused, since the last call. Never waits.
    fn network_events(&mut self) -> Vec<Event> {
        Vec::new()
    }

    /// Polls readable when there are more of them.
    fn network_stream(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// To read its processor time while it runs.
    fn cpu_meter(&self) -> Option<CpuMeter> {
        None
    }

    /// The machine for another program that takes over from this one; `None` if it has to end with this one.
    fn written_down(&self) -> Option<PausedMachine> {
        None
    }

    /// Kills everything in the machine, waits for its end, and reports its usage, in which the session fills in the
    /// bytes of its stream. Later calls report the same. There may be more events of its network then.
    fn end(&mut self) -> Usage;
}
