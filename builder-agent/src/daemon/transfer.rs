//! Contents in and out: between the session, which is async, and the store, which blocks.
//!
//! A few chunks travel ahead in either direction, never more: a slow disk slows the sender, and a slow client the disk.

use std::collections::BTreeSet;
use std::io::{self, Read};

use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{ImportError, Staged, View};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;
use wire::WireError;
use wire::types::PathInfo;
use wire::worker::Connection;

use super::{Session, convert};

/// Size of a chunk, and how many travel ahead.
const CHUNK: usize = 64 * 1024;
const CHUNKS_AHEAD: usize = 8;
/// Paths of one upload that become visible together. Each commit costs a few disk flushes; a batch shares them.
pub(super) const BATCH: usize = 256;

/// Why a request got no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The client is told, and may go on.
    Refused(String),
    /// The connection is of no use any more.
    Wire(WireError),
}

impl From<WireError> for Trouble {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// Runs blocking work on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.map_err(|panic| {
        tracing::error!(%panic, "a request panicked; this is a bug of the box");
        Trouble::Refused("the request failed because of a bug of the box".into())
    })
}

/// The client is told all; the box's log gets what is the box's own trouble.
pub(super) fn import_failed(error: ImportError) -> Trouble {
    if !error.is_callers_fault() {
        tracing::error!(%error, "the store cannot take an upload");
    }
    Trouble::Refused(error.to_string())
}

/// What travels from the connection to the store.
enum Piece {
    Bytes(Vec<u8>),
    /// Without this the sender is gone, and what came is not the whole.
    End,
}

/// The store's end: a blocking reader.
struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for PieceReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => (self.current, self.at) = (bytes, 0),
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload was cut short")),
            }
        }
        let n = buf.len().min(self.current.len() - self.at);
        buf[..n].copy_from_slice(&self.current[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Gives everything in `body` to `work`. If `work` ends early the rest of the body stays unread.
pub(super) async fn feed<B, T>(
    mut body: B,
    work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
) -> Result<T, Trouble>
where
    B: AsyncRead + Unpin,
    T: Send + 'static,
{
    let (sender, pieces) = mpsc::channel(CHUNKS_AHEAD);
    let task = tokio::task::spawn_blocking(move || {
        work(&mut PieceReader { pieces, current: Vec::new(), at: 0, ended: false })
    });
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let got = body.read_buf(&mut chunk).await.map_err(WireError::from)?;
        let piece = if got == 0 { Piece::End } else { Piece::Bytes(chunk) };
        if sender.send(piece).await.is_err() || got == 0 {
            break;
        }
    }
    task.await.map_err(|panic| {
        tracing::error!(%panic, "an upload panicked; this is a bug of the box");
        Trouble::Refused("the upload failed because of a bug of the box".into())
    })
}

impl Session {
    pub(super) async fn add_to_store<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        name: String,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: BTreeSet<StorePath>,
    ) -> Result<PathInfo, Trouble>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let view = self.view.clone();
        let work = move |dump: &mut dyn Read| view.add_ca(&name, method, algorithm, &references, dump);
        let added = feed(conn.body(), work).await?.map_err(import_failed)?;
        Ok(convert::to_wire(&added))
    }

    pub(super) async fn add_text(
        &self,
        name: String,
        text: Vec<u8>,
        references: BTreeSet<StorePath>,
    ) -> Result<PathInfo, Trouble> {
        let view = self.view.clone();
        let work = move || {
            view.add_ca(
                &name,
                ContentAddressMethod::Text,
                HashAlgorithm::Sha256,
                &references,
                &mut text.as_slice(),
            )
        };
        let added = blocking(work).await?.map_err(import_failed)?;
        Ok(convert::to_wire(&added))
    }

    pub(super) async fn add_nar<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        info: PathInfo,
    ) -> Result<(), Trouble>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let view = self.view.clone();
        let work = move |nar: &mut dyn Read| view.import(convert::from_wire(info), nar);
        feed(conn.body(), work).await?.map_err(import_failed)?;
        Ok(())
    }

    /// Paths come with their references first, and become visible in batches, each all or nothing.
    pub(super) async fn add_many<R, W>(&self, conn: &mut Connection<R, W>) -> Result<(), Trouble>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut batch = Vec::new();
        while let Some(info) = conn.next_item().await? {
            let view = self.view.clone();
            let work = move |nar: &mut dyn Read| view.stage(convert::from_wire(info), nar);
            batch.push(feed(conn.body(), work).await?.map_err(import_failed)?);
            if batch.len() >= BATCH {
                register(&self.view, std::mem::take(&mut batch)).await?;
            }
        }
        register(&self.view, batch).await
    }

    pub(super) async fn send_nar<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        path: StorePath,
    ) -> Result<(), Trouble>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut chunks = read_nar(&self.view, path).await?;
        let mut reply = conn.reply_nar().await?;
        while let Some(chunk) = next_chunk(&mut chunks).await? {
            reply.write(&chunk).await?;
        }
        Ok(reply.finish().await?)
    }
}

/// Reads a path's NAR ahead of its client. The last chunk is empty.
pub(super) async fn read_nar(
    view: &View,
    path: StorePath,
) -> Result<mpsc::Receiver<io::Result<Vec<u8>>>, Trouble> {
    let view = view.clone();
    let opened = blocking(move || view.nar(&path)).await?;
    let mut nar = opened.map_err(|error| Trouble::Refused(error.to_string()))?;
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    // Ends by itself when the receiver is dropped.
    tokio::task::spawn_blocking(move || {
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = nar.read(&mut chunk).map(|n| {
                chunk.truncate(n);
                chunk
            });
            let last = read.as_ref().map_or(true, Vec::is_empty);
            if sender.blocking_send(read).is_err() || last {
                return;
            }
        }
    });
    Ok(chunks)
}

/// The next chunk of [`read_nar`]; `None` after the last. No failure can be told to the client any more.
pub(super) async fn next_chunk(
    chunks: &mut mpsc::Receiver<io::Result<Vec<u8>>>,
) -> Result<Option<Vec<u8>>, Trouble> {
    match chunks.recv().await {
        Some(Ok(chunk)) => Ok((!chunk.is_empty()).then_some(chunk)),
        Some(Err(error)) => {
            tracing::error!(%error, "cannot read an object");
            Err(Trouble::Wire(WireError::Io(error)))
        }
        None => {
            let error = io::Error::other("the reader of an object stopped; this is a bug");
            Err(Trouble::Wire(WireError::Io(error)))
        }
    }
}

pub(super) async fn register(view: &View, batch: Vec<Staged>) -> Result<(), Trouble> {
    if batch.is_empty() {
        return Ok(());
    }
    let view = view.clone();
    let registered = blocking(move || view.register_many(batch)).await?;
    registered.map(|_| ()).map_err(|error| import_failed(ImportError::Register(error)))
}
