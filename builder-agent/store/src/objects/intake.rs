//! Uploads that are pushed piece by piece, so that no thread waits here for more bytes.
//!
//! A thread that *reads* an upload would wait for the client, for as long as the client likes. Instead the
//! caller pushes: each [`Intake::push`] does its work and returns, and between two calls there is only this
//! value, which any thread may own.

use std::collections::BTreeSet;
use std::io::{self, BufRead};

use super::Objects;
use super::ingest::{Ingest, Ingested, Limits};
use super::room::{Allowance, Leave};
use super::temporary::Temporary;
use crate::error::{FileError, ImportError};
use crate::format::object::ObjectWriter;

/// The form of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntakeKind {
    /// A NAR.
    Nar,
    /// The bytes of one file that is not executable.
    File,
}

/// An upload in progress. If it is dropped, nothing stays behind.
pub struct Intake(Kind);

enum Kind {
    Nar(Box<Ingest>),
    File(FlatFile),
}

struct FlatFile {
    writer: ObjectWriter,
    temporary: Temporary,
    size: u64,
    limit: u64,
    allowance: Allowance,
    /// The name of the upload in messages.
    name: String,
}

impl Intake {
    pub(crate) fn new(
        objects: &dyn Objects,
        limits: Limits,
        kind: IntakeKind,
        name: &str,
    ) -> Result<Self, ImportError> {
        Ok(Self(match kind {
            IntakeKind::Nar => Kind::Nar(Box::new(Ingest::new(objects, limits, &[])?)),
            IntakeKind::File => {
                let allowance = Allowance::open(limits.room, limits.writer);
                let (file, temporary) = objects.create()?;
                Kind::File(FlatFile {
                    writer: ObjectWriter::flat(file),
                    temporary,
                    size: 0,
                    limit: limits.max_nar_bytes,
                    allowance,
                    name: name.to_owned(),
                })
            }
        }))
    }

    /// There is room for so much more. Without it, [`Intake::push`] asks for room, and may have to wait for it.
    pub fn allow(&mut self, leave: Leave) {
        match &mut self.0 {
            Kind::Nar(ingest) => ingest.allow(leave),
            Kind::File(file) => file.allowance.give(leave),
        }
    }

    /// Takes the beginning of `bytes` that belongs to the upload. False: the upload is complete, and the
    /// remaining bytes are something else. After an error the caller can only drop it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool, ImportError> {
        match &mut self.0 {
            Kind::Nar(ingest) => {
                ingest.take(bytes)?;
                Ok(ingest.surely_left() > 0)
            }
            Kind::File(file) => {
                file.push(bytes)?;
                Ok(true)
            }
        }
    }

    /// About how many bytes of memory this takes now.
    #[must_use]
    pub fn memory(&self) -> u64 {
        match &self.0 {
            Kind::Nar(ingest) => ingest.memory(),
            Kind::File(file) => file.writer.memory(),
        }
    }

    /// Ends the upload. The object is complete, and no view shows it yet.
    pub fn finish(self) -> Result<Ingested, ImportError> {
        match self.0 {
            Kind::Nar(ingest) => ingest.finish(),
            Kind::File(FlatFile { writer, temporary, .. }) => {
                let (written, nar_hash, nar_size) =
                    writer.finish_flat().map_err(|e| FileError::new("write object", temporary.path(), e))?;
                Ok(Ingested::new(written, temporary, nar_hash, nar_size, BTreeSet::new()))
            }
        }
    }

    /// Takes in all of `from`, for callers that have the whole upload at hand.
    pub(crate) fn read_all(&mut self, name: &str, from: &mut dyn BufRead) -> Result<(), ImportError> {
        loop {
            let piece = match from.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(piece) => piece,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ImportError::Source { name: name.to_owned(), source }),
            };
            let n = piece.len();
            self.push(piece)?;
            from.consume(n);
        }
    }
}

impl FlatFile {
    fn push(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            return Err(ImportError::TooLarge { name: self.name.clone(), limit: self.limit });
        }
        let failed = |e| FileError::new("write object", self.temporary.path(), e);
        self.allowance.take(bytes.len()).map_err(failed)?;
        Ok(self.writer.flat_data(bytes).map_err(failed)?)
    }
}
