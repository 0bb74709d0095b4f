//! Requests that move contents: uploads into the store, NARs out of it.
//!
//! Not here: how contents get from one side to the other (`chunks`), and many paths in one request (`upload`).

use std::collections::BTreeSet;

use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{ImportError, Staged, View};
use tokio::io::{AsyncRead, AsyncWrite};
use wire::WireError;
use wire::types::PathInfo;
use wire::worker::Connection;

use super::Session;
use crate::convert;

mod chunks;
mod upload;

pub(super) use chunks::{feed, next_chunk, read_nar};

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
    tokio::task::spawn_blocking(work).await.map_err(bug)
}

/// A panic in work for one request; the others do not notice.
fn bug(panic: tokio::task::JoinError) -> Trouble {
    tracing::error!(%panic, "a request panicked; this is a bug of the box");
    Trouble::Refused("the request failed because of a bug of the box".into())
}

/// The client is told all; the box's log gets what is the box's own trouble.
pub(super) fn import_failed(error: ImportError) -> Trouble {
    if !error.is_callers_fault() {
        tracing::error!(%error, "the store cannot take an upload");
    }
    Trouble::Refused(error.to_string())
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
        let work =
            move |dump: &mut dyn std::io::BufRead| view.add_ca(&name, method, algorithm, &references, dump);
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
        let work = move |nar: &mut dyn std::io::BufRead| view.import(convert::from_wire(info), nar);
        feed(conn.body(), work).await?.map_err(import_failed)?;
        Ok(())
    }

    /// Paths come with their references first, and become visible in batches, each all or nothing.
    pub(super) async fn add_many<R, W>(&self, conn: &mut Connection<R, W>) -> Result<(), Trouble>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut upload = upload::Upload::new(self.view.clone());
        while let Some(info) = conn.next_item().await? {
            upload.add(info, conn.body()).await?;
        }
        upload.finish().await
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

pub(super) async fn register(view: &View, batch: Vec<Staged>) -> Result<(), Trouble> {
    if batch.is_empty() {
        return Ok(());
    }
    let view = view.clone();
    let registered = blocking(move || view.register_many(batch)).await?;
    registered.map(|_| ()).map_err(|error| import_failed(ImportError::Register(error)))
}
