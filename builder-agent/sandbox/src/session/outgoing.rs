//! Sends the job to the guest.

use std::io::{self, Write};
use std::iter::Chain;
use std::os::unix::net::UnixStream;
use std::slice::Iter;

use guest::protocol::{self, Bytes, GuestLimits, MAX_DATA, Tag};

use crate::backend::Inputs;
use crate::error::SandboxError;
use crate::job::Job;

/// Name and contents.
type NamedFile = (String, Vec<u8>);

/// The job as frames, made one at a time: files may be large and are not copied together.
pub(super) struct Outgoing<'a> {
    frame: Vec<u8>,
    written: usize,
    /// For /build, then for /etc.
    files: Chain<Iter<'a, NamedFile>, Iter<'a, NamedFile>>,
    rest: &'a [u8],
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(
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
        Ok(Outgoing { frame, written: 0, files: job.files.iter().chain(&job.etc), rest: &[] })
    }

    /// Makes the next frame when the last one is written; false at the end.
    pub(super) fn has_more(&mut self) -> bool {
        while self.written == self.frame.len() {
            if self.rest.is_empty() {
                match self.files.next() {
                    Some((_, contents)) => self.rest = contents,
                    None => return false,
                }
                continue;
            }
            let (piece, rest) = self.rest.split_at(self.rest.len().min(MAX_DATA));
            self.frame.clear();
            self.frame.extend_from_slice(&protocol::header(Tag::FileData, piece.len()));
            self.frame.extend_from_slice(piece);
            self.rest = rest;
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
