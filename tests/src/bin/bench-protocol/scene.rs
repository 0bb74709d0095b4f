//! The conditions of a measurement: the protocol, the file system of the server's store, and the line between
//! them.

use std::fmt;
use std::time::Duration;

use e2e::clients::Protocol;
use e2e::relay::Relay;

/// The file system of the server's store. (The client's store is always in memory.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// A tmpfs: a box that forgets everything.
    Memory,
    /// ext4 with a journal: a box that keeps its store.
    Disk,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scene {
    pub protocol: Protocol,
    pub ground: Ground,
    /// Zero means the loopback interface without a relay.
    pub round_trip: Duration,
    /// `?max-connections=`, if it is set.
    pub connections: Option<u32>,
}

/// The round trip across a continent.
const FAR: Duration = Duration::from_millis(50);
/// Number of connections that a client of the far box may open, where the scene allows several.
const CONNECTIONS: u32 = 8;

impl Scene {
    pub const NEAREST: Scene = Scene {
        protocol: Protocol::SshNg,
        ground: Ground::Memory,
        round_trip: Duration::ZERO,
        connections: None,
    };

    /// Both protocols with both kinds of store, without delay.
    pub fn near() -> Vec<Scene> {
        let mut all = Vec::new();
        for ground in [Ground::Memory, Ground::Disk] {
            for protocol in [Protocol::SshNg, Protocol::Ssh] {
                all.push(Scene { protocol, ground, ..Self::NEAREST });
            }
        }
        all
    }

    /// Both protocols over a long line, with one connection and with several.
    pub fn far() -> Vec<Scene> {
        let mut all = Vec::new();
        for protocol in [Protocol::SshNg, Protocol::Ssh] {
            for connections in [None, Some(CONNECTIONS)] {
                all.push(Scene { protocol, round_trip: FAR, connections, ..Self::NEAREST });
            }
        }
        all
    }

    pub fn is_far(&self) -> bool {
        !self.round_trip.is_zero()
    }

    /// The port that leads to a server's port in this scene.
    pub fn port(&self, server: u16) -> u16 {
        match self.is_far() {
            true => Relay::to(server, self.round_trip).port(),
            false => server,
        }
    }

    /// The value of `--store`, `--to` and `--from`.
    pub fn store(&self) -> String {
        let parameters = self.connections.map(|n| format!("?max-connections={n}")).unwrap_or_default();
        format!("{}://anyone@127.0.0.1{parameters}", self.protocol.scheme())
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.protocol.scheme())?;
        match self.ground {
            Ground::Memory => write!(f, " tmpfs")?,
            Ground::Disk => write!(f, " ext4")?,
        }
        if self.is_far() {
            write!(f, " {} ms", self.round_trip.as_millis())?;
        }
        match self.connections {
            Some(n) => write!(f, " max-connections={n}"),
            None => Ok(()),
        }
    }
}
