//! Contents on their way between a connection, which is async, and the store, which blocks.
//!
//! They travel in large chunks, a few ahead and never more: a slow disk slows the sender, and a slow client the disk.
//! Chunks are used again, since memory that is fresh from the kernel costs more than what is done with it here.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use nix_derivation::StorePath;
use store::NarReader;
use tokio::io::{AsyncRead, AsyncReadExt};
use wire::WireError;

use super::{Desk, RequestError, Views, bug, opened, over};
use shares::budget::Charge;
use shares::threads::{Task, Workers};

/// Size of a chunk. Large enough that handing one over is nothing beside hashing it.
pub(crate) const CHUNK: usize = 256 * 1024;
/// What an upload holds beside its tree: a chunk that arrives, one that is taken in, and the store's own buffer.
const UPLOAD_BYTES: u64 = 3 * CHUNK as u64;
/// What a NAR on its way out holds beside its object's metadata: a chunk at the client, one that is read, and buffers.
const READ_BYTES: u64 = 3 * CHUNK as u64;
/// An upload up to this size is received as a whole, and then given to the store in one step.
pub(crate) const WHOLE: usize = 64 * 1024;

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
pub(crate) struct Chunk {
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

/// Reads until the chunk is full or the body ends. May be dropped and called again: what was read is in the chunk.
async fn fill<B: AsyncRead + Unpin>(body: &mut B, chunk: &mut Chunk) -> Result<(), WireError> {
    while chunk.len < chunk.bytes.len() {
        match body.read(&mut chunk.bytes[chunk.len..]).await? {
            0 => break,
            got => chunk.len += got,
        }
    }
    Ok(())
}

/// What takes a body in, a chunk at a time, each on whichever thread is free. Between two chunks nothing waits but the
/// session.
pub(crate) trait Sink: Sized + Send + 'static {
    /// How the whole ends.
    type Done: Send + 'static;
    type Error: Send + 'static;

    /// Takes the next bytes; false if it needs no more of the body.
    fn push(&mut self, bytes: &[u8]) -> Result<bool, Self::Error>;
    /// What it keeps in memory.
    fn memory(&self) -> u64;
    /// The body has ended, or `push` has said that it is enough.
    fn finish(self) -> Result<Self::Done, Self::Error>;
}

/// One step of a sink: itself, and whether it takes more.
type Step<S> = Result<(S, bool), <S as Sink>::Error>;

/// Gives everything in `body` to the sink that `open` makes. If that ends early the rest of the body stays unread.
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
    match first.len < WHOLE {
        true => desk.workers.contents(move || at_once(open, &first)).await.map_err(bug),
        false => stream(desk, body, first, open).await,
    }
}

/// [`feed`], and what then changes the store. A small body is taken in and committed in one step, mostly on the thread that
/// received it. `announced`: how much will come, if that is known.
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
    // Memory is cleared before it is read into, so no more of it than needed; and one byte more, to notice the end.
    let size = announced.map_or(WHOLE as u64, |size| size.saturating_add(1)).min(WHOLE as u64);
    let mut first = Chunk::single(size as usize);
    fill(&mut body, &mut first).await?;
    if first.len < first.bytes.len() {
        return desk.workers.commit_short(move || at_once(open, &first).and_then(commit)).await.map_err(bug);
    }
    match stream(desk, body, first, open).await? {
        Ok(done) => desk.workers.commit(move || commit(done)).await.map_err(bug),
        Err(error) => Ok(Err(error)),
    }
}

/// Takes in a body of which nothing is missing.
pub(crate) fn at_once<S: Sink>(
    open: impl FnOnce() -> Result<S, S::Error>,
    whole: &[u8],
) -> Result<S::Done, S::Error> {
    let mut sink = open()?;
    sink.push(whole)?;
    sink.finish()
}

/// A body of which this is the beginning.
async fn stream<B, S>(
    desk: &Desk,
    mut body: B,
    first: Chunk,
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
        let more = sink.push(&first)?;
        Ok((sink, more))
    });
    loop {
        // The next chunk arrives while the store is at work on the one before.
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
        taking = desk.workers.contents(move || {
            let more = sink.push(&chunk)?;
            Ok((sink, more))
        });
    }
}

async fn finish<S: Sink>(desk: &Desk, sink: S) -> Result<Result<S::Done, S::Error>, RequestError> {
    desk.workers.contents(move || sink.finish()).await.map_err(bug)
}

/// All of a body whose size was announced and is at most [`WHOLE`].
pub(crate) async fn whole<B: AsyncRead + Unpin>(mut body: B, size: usize) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::with_capacity(size.min(WHOLE));
    body.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// A path's NAR, read one chunk ahead of its client. No thread waits for the client: each chunk is work of its own.
pub(crate) struct NarChunks {
    next: Next,
    pool: Pool,
    workers: Workers,
    /// What is larger than a session's own buffers: the chunks, and the object's metadata until the client has all of it.
    _held: Option<(Charge, opened::Held)>,
}

/// A chunk, and what is left to read behind it. An error of the store cannot be told to the client any more.
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
    // Until something was read, the client can be told of a failure.
    let failed = |error: store::NarError| RequestError::Refused(error.to_string());
    let view = views.now();
    if view.info(&path).is_some_and(|info| info.nar_size <= AT_ONCE) {
        // Three short reads of one file. A thread of their own would cost several times what they do.
        let nar = view.nar(&path).map_err(failed)?;
        // One byte more than it has, to notice its end.
        let chunk = Chunk::single(usize::try_from(nar.size()).unwrap_or(CHUNK).min(CHUNK) + 1);
        return Ok(NarChunks { next: Next::Ready(read(nar, chunk)), pool, workers, _held: None });
    }
    let (nar, held) = opened::open(desk, views, &path).await?;
    let charge = desk.budget.wait(READ_BYTES, "this NAR").await.map_err(over)?;
    // Those were waits for whatever else this member does.
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
