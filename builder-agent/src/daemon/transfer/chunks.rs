//! Contents on their way between a connection, which is async, and the store, which blocks.
//!
//! They travel in large chunks, a few ahead and never more: a slow disk slows the sender, and a slow client the disk.
//! Chunks are used again, since memory that is fresh from the kernel costs more than what is done with it here.

use std::io::{self, BufRead, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use nix_derivation::StorePath;
use store::{NarReader, View};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wire::WireError;

use super::{Trouble, blocking, bug};

/// Size of a chunk. Large enough that handing one over is nothing beside hashing it.
pub(in crate::daemon) const CHUNK: usize = 256 * 1024;
/// How many wait for the store. With the two at work at either end, an upload holds about 1 MiB.
const CHUNKS_AHEAD: usize = 2;
/// An upload up to this size is received as a whole, and then given to the store in one step.
pub(in crate::daemon) const WHOLE: usize = 64 * 1024;

/// A NAR up to this size is read where it is asked for, without a thread: it is a few blocks of one file.
const AT_ONCE: u64 = 32 * 1024;

/// Chunks to use again.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Pool {
    fn take(&self) -> Chunk {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = used.unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice());
        Chunk { bytes, len: 0, pool: Some(self.clone()) }
    }
}

/// Up to [`CHUNK`] bytes of contents.
pub(in crate::daemon) struct Chunk {
    bytes: Box<[u8]>,
    len: usize,
    /// Where the memory goes afterwards.
    pool: Option<Pool>,
}

impl Chunk {
    /// One that is not part of a stream.
    fn single(size: usize) -> Self {
        Self { bytes: vec![0; size].into_boxed_slice(), len: 0, pool: None }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(&mut self.bytes));
        }
    }
}

/// Reads until the chunk is full or the body ends.
async fn fill<B: AsyncRead + Unpin>(body: &mut B, chunk: &mut Chunk) -> Result<(), WireError> {
    while chunk.len < chunk.bytes.len() {
        match body.read(&mut chunk.bytes[chunk.len..]).await? {
            0 => break,
            got => chunk.len += got,
        }
    }
    Ok(())
}

/// What travels from the connection to the store.
enum Piece {
    Bytes(Chunk),
    /// Without this the sender is gone, and what came is not the whole.
    End,
}

/// The store's end: a blocking reader.
struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Chunk,
    at: usize,
    ended: bool,
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.current.len() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(chunk)) => (self.current, self.at) = (chunk, 0),
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload was cut short")),
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}

impl Read for PieceReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let n = buf.len().min(ready.len());
        buf[..n].copy_from_slice(&ready[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// Gives everything in `body` to `work`. If `work` ends early the rest of the body stays unread.
pub(in crate::daemon) async fn feed<B, T>(
    mut body: B,
    work: impl FnOnce(&mut dyn BufRead) -> T + Send + 'static,
) -> Result<T, Trouble>
where
    B: AsyncRead + Unpin,
    T: Send + 'static,
{
    let mut first = Chunk::single(WHOLE);
    fill(&mut body, &mut first).await?;
    if first.len < WHOLE {
        return blocking(move || work(&mut &*first)).await;
    }
    let (sender, pieces) = mpsc::channel(CHUNKS_AHEAD);
    let task = tokio::task::spawn_blocking(move || {
        work(&mut PieceReader { pieces, current: first, at: 0, ended: false })
    });
    let pool = Pool::default();
    loop {
        let mut chunk = pool.take();
        fill(&mut body, &mut chunk).await?;
        let last = chunk.len < chunk.bytes.len();
        if chunk.len > 0 && sender.send(Piece::Bytes(chunk)).await.is_err() {
            break;
        }
        if last {
            let _ = sender.send(Piece::End).await;
            break;
        }
    }
    task.await.map_err(bug)
}

/// All of a body whose size was announced and is at most [`WHOLE`].
pub(in crate::daemon) async fn whole<B: AsyncRead + Unpin>(
    mut body: B,
    size: usize,
) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::with_capacity(size.min(WHOLE));
    body.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// A path's NAR, read one chunk ahead of its client. No thread waits for the client: each chunk is work of its own.
pub(in crate::daemon) struct NarChunks {
    next: Next,
    pool: Pool,
}

/// A chunk, and what is left to read behind it. An error of the store cannot be told to the client any more.
type ReadAhead = io::Result<(Chunk, Option<NarReader>)>;

enum Next {
    Ready(ReadAhead),
    Reading(JoinHandle<ReadAhead>),
    End,
}

fn read(mut nar: NarReader, mut chunk: Chunk) -> ReadAhead {
    while chunk.len < chunk.bytes.len() {
        match nar.read(&mut chunk.bytes[chunk.len..])? {
            0 => return Ok((chunk, None)),
            n => chunk.len += n,
        }
    }
    Ok((chunk, Some(nar)))
}

/// Opens a path's NAR, and reads the beginning.
pub(in crate::daemon) async fn read_nar(view: &View, path: StorePath) -> Result<NarChunks, Trouble> {
    let pool = Pool::default();
    // Until something was read, the client can be told of a failure.
    let failed = |error: store::NarError| Trouble::Refused(error.to_string());
    if view.info(&path).is_some_and(|info| info.nar_size <= AT_ONCE) {
        // Three short reads of one file. A thread of their own would cost several times what they do.
        let nar = view.nar(&path).map_err(failed)?;
        // One byte more than it has, to notice its end.
        let chunk = Chunk::single(usize::try_from(nar.size()).unwrap_or(CHUNK).min(CHUNK) + 1);
        return Ok(NarChunks { next: Next::Ready(read(nar, chunk)), pool });
    }
    let (view, chunks) = (view.clone(), pool.clone());
    let opened = blocking(move || view.nar(&path).map(|nar| read(nar, chunks.take())));
    Ok(NarChunks { next: Next::Ready(opened.await?.map_err(failed)?), pool })
}

/// The next chunk; `None` after the last.
pub(in crate::daemon) async fn next_chunk(chunks: &mut NarChunks) -> Result<Option<Chunk>, Trouble> {
    let ahead = match std::mem::replace(&mut chunks.next, Next::End) {
        Next::Ready(ahead) => ahead,
        Next::Reading(reading) => reading.await.map_err(bug)?,
        Next::End => return Ok(None),
    };
    let (chunk, rest) = ahead.map_err(|error| {
        tracing::error!(%error, "cannot read an object");
        Trouble::Wire(WireError::Io(error))
    })?;
    if let Some(nar) = rest {
        let empty = chunks.pool.take();
        chunks.next = Next::Reading(tokio::task::spawn_blocking(move || read(nar, empty)));
    }
    Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
}

#[cfg(test)]
#[path = "chunks_test.rs"]
mod chunks_test;
