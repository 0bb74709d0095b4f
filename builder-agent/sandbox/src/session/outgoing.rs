//! Sends a description, and the contents of the files in it, to the guest.

use std::borrow::Cow;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::vec;

use guest::protocol::{self, Bytes, GuestLimits, MAX_DATA, Tag};

use crate::backend::Inputs;
use crate::error::SandboxError;
use crate::job::Job;

/// Frames, made one at a time: files may be large and are not copied together.
pub(super) struct Outgoing<'a> {
    frame: Vec<u8>,
    written: usize,
    files: vec::IntoIter<Cow<'a, [u8]>>,
    /// The file that is on its way, and how much of it is.
    file: Cow<'a, [u8]>,
    sent: usize,
}

impl<'a> Outgoing<'a> {
    /// A frame, and then these files.
    pub(super) fn new(frame: Vec<u8>, files: Vec<Cow<'a, [u8]>>) -> Outgoing<'a> {
        Outgoing { frame, written: 0, files: files.into_iter(), file: Cow::default(), sent: 0 }
    }

    /// A job, the files for /build, then those for /etc.
    pub(super) fn job(
        job: &'a Job,
        network: Option<protocol::Network>,
    ) -> Result<Outgoing<'a>, SandboxError> {
        let message = protocol::Job {
            system: job.system.clone(),
            builder: Bytes(job.builder.clone()),
            args: job.args.iter().cloned().map(Bytes).collect(),
            env: job.env.iter().map(|(name, value)| (Bytes(name.clone()), Bytes(value.clone()))).collect(),
            files: job.files.iter().map(|(name, contents)| (name.clone(), contents.len() as u64)).collect(),
            outputs: job.outputs.clone(),
            etc: job.etc.iter().map(|(name, contents)| (name.clone(), contents.len() as u64)).collect(),
            closure: matches!(&job.inputs, Inputs::Image(image) if !image.segments.is_empty()),
            random_order: job.random_order,
            network,
            limits: GuestLimits { processes: job.limits.processes, memory_mib: job.limits.memory_mib },
        };
        let frame = protocol::json_frame(Tag::Job, &message)
            .map_err(|e| SandboxError::CannotStart { why: e.to_string() })?;
        let files = job.files.iter().chain(&job.etc).map(|(_, contents)| contents.into()).collect();
        Ok(Outgoing::new(frame, files))
    }

    /// Makes the next frame when the last one is written; false at the end.
    pub(super) fn has_more(&mut self) -> bool {
        while self.written == self.frame.len() {
            if self.sent == self.file.len() {
                let Some(file) = self.files.next() else { return false };
                (self.file, self.sent) = (file, 0);
                continue;
            }
            let piece = &self.file[self.sent..];
            let piece = &piece[..piece.len().min(MAX_DATA)];
            self.frame.clear();
            self.frame.extend_from_slice(&protocol::header(Tag::FileData, piece.len()));
            self.frame.extend_from_slice(piece);
            self.sent += piece.len();
            self.written = 0;
        }
        true
    }

    /// Writes once; returns the number of bytes written, and whether there are more.
    pub(super) fn write_some(&mut self, stream: &mut UnixStream) -> io::Result<(usize, bool)> {
        let n = stream.write(&self.frame[self.written..])?;
        self.written += n;
        Ok((n, self.has_more()))
    }
}
