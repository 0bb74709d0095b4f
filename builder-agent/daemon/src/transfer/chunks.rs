//! Moves contents between a connection, which is async, and the store, which blocks.
//!
//! Contents move in large chunks, with a bounded number ahead: a slow disk slows the sender, and a slow client slows
//! the disk. Chunks are used again, since fresh memory from the kernel costs more than the work on it here.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use nix_derivation::StorePath;
use store::{ImportError, Leave, NarReader};
use tokio::io::{AsyncRead, AsyncReadExt};
use wire::WireError;

use crate::desk::Desk;
use crate::opened;
use crate::request_error::{RequestError, bug, over};
use members::Views;
use shares::budget::Charge;
use shares::threads::{Task, Workers};

/// Size of a chunk. Large enough that the cost of handing it over is small compared to hashing it.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Memory of an upload besides its tree: a chunk that arrives, one that the store reads, and the store's own buffer.
const UPLOAD_BYTES: u64 = 3 * CHUNK as u64;
/// Memory of a NAR that is being sent besides its object's metadata: a chunk that the client reads, the next one, and
/// buffers.
const READ_BYTES: u64 = 3 * CHUNK as u64;
/// An upload up to this size is received completely, and then given to the store in one step.
pub(crate) const WHOLE: usize = 64 * 1024;

/// A NAR up to this size is read on the calling thread: it is a few blocks of one file.
const AT_ONCE: u64 = 32 * 1024;

/// Chunks that can be used again.
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
pub(crate) struct Chunk {
    bytes: Box<[u8]>,
    len: usize,
    /// The pool that gets the memory back.
    pool: Option<Pool>,
}

impl Chunk {
    /// A chunk that is not part of a stream.
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

/// Reads until the chunk is full or the body ends. The future may be dropped and the call repeated: all bytes read so
/// far are in the chunk.
async fn fill<B: AsyncRead + Unpin>(body: &mut B, chunk: &mut Chunk) -> Result<(), WireError> {
    while chunk.len < chunk.bytes.len() {
        match body.read(&mut chunk.bytes[chunk.len..]).await? {
            0 => break,
            got => chunk.len += got,
        }
    }
    Ok(())
}

/// Receives a body, a chunk at a time, each on any free thread. While the next chunk arrives, only the session waits.
pub(crate) trait Sink: Sized + Send + 'static {
    /// The result when all of the body is there.
    type Done: Send + 'static;
    type Error: Send + 'static;
    /// Whether the body goes into the store.
    const TAKES_ROOM: bool;

    /// There is room in the store for so many more bytes. A sink for something else gets none ([`Sink::TAKES_ROOM`]).
    fn allow(&mut self, _: Leave) {}
    /// The error of a body for which the store has no room.
    fn no_room(error: ImportError) -> Self::Error;
    /// Takes the next bytes; false if it needs no more of the body.
    fn push(&mut self, bytes: &[u8]) -> Result<bool, Self::Error>;
    /// Bytes of memory that it holds.
    fn memory(&self) -> u64;
    /// Called when the body has ended, or when `push` has returned false.
    fn finish(self) -> Result<Self::Done, Self::Error>;
}

/// One step of a sink: the sink, and whether it needs more.
type Step<S> = Result<(S, bool), <S as Sink>::Error>;

/// Gives all of `body` to the sink that `open` makes. If the sink ends early, the rest of the body stays unread.
pub(crate) async fn feed<B, S>(
    desk: &Desk,
    mut body: B,
    open: impl FnOnce() -> Result<S, S::Error> + Send + 'static,
) -> Result<Result<S::Done, S::Error>, RequestError>
where
    B: AsyncRead + Unpin,
    S: Sink,
{
    let mut first = Chunk::single(WHOLE);
    fill(&mut body, &mut first).await?;
    let leave = match turn::<S>(desk, first.len).await {
        Ok(leave) => leave,
        Err(error) => return Ok(Err(error)),
    };
    match first.len < WHOLE {
        true => desk.workers.contents(move || at_once(open, leave, &first)).await.map_err(bug),
        false => stream(desk, body, (first, leave), open).await,
    }
}

/// [`feed`], and then a change of the store. A small body is received and committed in one step, mostly on the thread
/// that received it. `announced`: the size of the body, if it is known.
pub(crate) async fn feed_and_commit<B, S, T>(
    desk: &Desk,
    mut body: B,
    open: impl FnOnce() -> Result<S, S::Error> + Send + 'static,
    commit: impl FnOnce(S::Done) -> Result<T, S::Error> + Send + 'static,
    announced: Option<u64>,
) -> Result<Result<T, S::Error>, RequestError>
where
    B: AsyncRead + Unpin,
    S: Sink,
    T: Send + 'static,
{
    // The memory is cleared before it is used, so it is no larger than needed, with one more byte to notice the end.
    let size = announced.map_or(WHOLE as u64, |size| size.saturating_add(1)).min(WHOLE as u64);
    let mut first = Chunk::single(size as usize);
    fill(&mut body, &mut first).await?;
    let leave = match turn::<S>(desk, first.len).await {
        Ok(leave) => leave,
        Err(error) => return Ok(Err(error)),
    };
    if first.len < first.bytes.len() {
        let work = move || at_once(open, leave, &first).and_then(commit);
        return desk.workers.commit_short(work).await.map_err(bug);
    }
    match stream(desk, body, (first, leave), open).await? {
        Ok(done) => desk.workers.commit(move || commit(done)).await.map_err(bug),
        Err(error) => Ok(Err(error)),
    }
}

/// Waits until the next bytes of a body may go on: for the member's pace, and for room. Meanwhile no thread is held.
async fn turn<S: Sink>(desk: &Desk, bytes: usize) -> Result<Leave, S::Error> {
    desk.pace.step(bytes).await;
    match S::TAKES_ROOM {
        true => desk.room.wait(bytes as u64, 1).await.map_err(S::no_room),
        false => Ok(Leave::default()),
    }
}

/// Gives a complete body to a sink.
pub(crate) fn at_once<S: Sink>(
    open: impl FnOnce() -> Result<S, S::Error>,
    leave: Leave,
    whole: &[u8],
) -> Result<S::Done, S::Error> {
    let mut sink = open()?;
    sink.allow(leave);
    sink.push(whole)?;
    sink.finish()
}

/// Gives a body to a sink; `first` is its beginning, for which there is room.
async fn stream<B, S>(
    desk: &Desk,
    mut body: B,
    (first, leave): (Chunk, Leave),
    open: impl FnOnce() -> Result<S, S::Error> + Send + 'static,
) -> Result<Result<S::Done, S::Error>, RequestError>
where
    B: AsyncRead + Unpin,
    S: Sink,
{
    let mut charge = desk.budget.wait(UPLOAD_BYTES, "this upload").await.map_err(over)?;
    let pool = Pool::default();
    let mut taking = desk.workers.contents(move || -> Step<S> {
        let mut sink = open()?;
        sink.allow(leave);
        let more = sink.push(&first)?;
        Ok((sink, more))
    });
    loop {
        // The next chunk arrives while the store processes the one before.
        let mut chunk = pool.take();
        let mut taken: Option<(S, bool)> = None;
        loop {
            tokio::select! {
                biased;
                step = &mut taking, if taken.is_none() => match step.map_err(bug)? {
                    Err(error) => return Ok(Err(error)),
                    Ok((sink, true)) => taken = Some((sink, true)),
                    Ok((sink, false)) => return finish(desk, sink).await,
                },
                filled = fill(&mut body, &mut chunk) => {
                    filled?;
                    break;
                }
            }
        }
        let (mut sink, more) = match taken {
            Some(taken) => taken,
            None => match taking.await.map_err(bug)? {
                Err(error) => return Ok(Err(error)),
                Ok(taken) => taken,
            },
        };
        if !more || chunk.is_empty() {
            return finish(desk, sink).await;
        }
        charge.set(UPLOAD_BYTES + sink.memory()).map_err(over)?;
        let leave = match turn::<S>(desk, chunk.len).await {
            Ok(leave) => leave,
            Err(error) => return Ok(Err(error)),
        };
        taking = desk.workers.contents(move || {
            sink.allow(leave);
            let more = sink.push(&chunk)?;
            Ok((sink, more))
        });
    }
}

async fn finish<S: Sink>(desk: &Desk, sink: S) -> Result<Result<S::Done, S::Error>, RequestError> {
    desk.workers.contents(move || sink.finish()).await.map_err(bug)
}

/// All of a body whose size is known and at most [`WHOLE`].
pub(crate) async fn whole<B: AsyncRead + Unpin>(mut body: B, size: usize) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::with_capacity(size.min(WHOLE));
    body.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The NAR of a path, read one chunk ahead of the client. No thread waits for the client: each chunk is a separate
/// piece of work.
pub(crate) struct NarChunks {
    next: Next,
    pool: Pool,
    workers: Workers,
    /// Memory beyond the session's own buffers: the chunks, and the object's metadata until the client has all of it.
    _held: Option<(Charge, opened::Held)>,
}

/// A chunk, and the reader for the rest. An error of the store comes too late for a message to the client.
type ReadAhead = io::Result<(Chunk, Option<NarReader>)>;

enum Next {
    Ready(ReadAhead),
    Reading(Task<ReadAhead>),
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
pub(crate) async fn read_nar(desk: &Desk, views: &Views, path: StorePath) -> Result<NarChunks, RequestError> {
    let (pool, workers) = (Pool::default(), desk.workers.clone());
    // A failure before the first byte is sent can still be reported to the client.
    let failed = |error: store::NarError| RequestError::Refused(error.to_string());
    let view = views.now();
    if view.info(&path).is_some_and(|info| info.nar_size <= AT_ONCE) {
        // Three short reads of one file. A thread would cost several times as much.
        let nar = view.nar(&path).map_err(failed)?;
        // One byte more than the NAR has, to notice its end.
        let chunk = Chunk::single(usize::try_from(nar.size()).unwrap_or(CHUNK).min(CHUNK) + 1);
        return Ok(NarChunks { next: Next::Ready(read(nar, chunk)), pool, workers, _held: None });
    }
    let (nar, held) = desk.opened.open(&desk.workers, &desk.budget, views, &path).await?;
    let charge = desk.budget.wait(READ_BYTES, "this NAR").await.map_err(over)?;
    // The path is checked again, because this function waited for other work of this member.
    opened::is_still(&nar, &views.now(), &path)?;
    let empty = pool.take();
    let next = Next::Ready(workers.contents(move || read(nar, empty)).await.map_err(bug)?);
    Ok(NarChunks { next, pool, workers, _held: Some((charge, held)) })
}

/// The next chunk; `None` after the last.
pub(crate) async fn next_chunk(chunks: &mut NarChunks) -> Result<Option<Chunk>, RequestError> {
    let ahead = match std::mem::replace(&mut chunks.next, Next::End) {
        Next::Ready(ahead) => ahead,
        Next::Reading(reading) => reading.await.map_err(bug)?,
        Next::End => return Ok(None),
    };
    let (chunk, rest) = ahead.map_err(|error| {
        tracing::error!(%error, "cannot read an object");
        RequestError::Wire(WireError::Io(error))
    })?;
    if let Some(nar) = rest {
        let empty = chunks.pool.take();
        chunks.next = Next::Reading(chunks.workers.contents(move || read(nar, empty)));
    }
    Ok(Some(chunk).filter(|chunk| !chunk.is_empty()))
}

#[cfg(test)]
#[path = "chunks_test.rs"]
mod chunks_test;
