//! What a machine is made with: a disk that takes images, and the stream of one sshd.

use std::os::unix::net::UnixStream;

use guest::protocol::SSH_PORTS;

use super::control::Attachments;
use crate::backend::Image;
use crate::disk::Disk;
use crate::error::SandboxError;

pub(super) struct AtStart {
    disk: Disk,
    /// At the first port, until somebody has it.
    ssh: Option<UnixStream>,
}

impl AtStart {
    pub fn new(disk: Disk, ssh: UnixStream) -> AtStart {
        AtStart { disk, ssh: Some(ssh) }
    }
}

impl Attachments for AtStart {
    fn add(&mut self, image: &Image) -> Result<u64, SandboxError> {
        self.disk.add(image)
    }

    fn open(&mut self, port: u32) -> Result<UnixStream, SandboxError> {
        let has = port == *SSH_PORTS.start();
        let none = || SandboxError::Unavailable {
            why: "this machine was made with one stream for an sshd, and it is in use".to_owned(),
        };
        self.ssh.take_if(|_| has).ok_or_else(none)
    }
}
