//! Requests that move contents: uploads into the store, NARs out of it.
//!
//! Not here: how contents get from one side to the other (`chunks`), and many paths in one request (`upload`).

use std::collections::BTreeSet;
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{ImportError, RegisterError, Staged};
use tokio::io::{AsyncRead, AsyncWrite};
use wire::worker::Connection;

use super::Session;
use super::desk::Desk;
use super::request_error::{RequestError, UploadError, bug, import_failed};
use members::Views;

mod chunks;
mod sinks;
mod upload;

pub(super) use chunks::{Sink, feed, next_chunk, read_nar};
pub(super) use sinks::unknown;

use chunks::{WHOLE, at_once, feed_and_commit};
use sinks::{Address, addressed, announced};

/// Paths of one upload that become visible together. Each commit is a transaction and a turn in the queue for the index;
/// a batch shares them.
pub(super) const BATCH: usize = 256;

impl Session {
    pub(super) async fn add_to_store<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        name: String,
        method: ContentAddressMethod,
        algorithm: HashAlgorithm,
        references: BTreeSet<StorePath>,
    ) -> Result<PathInfo, RequestError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let (view, what) = (self.view(), Address { name, method, algorithm, references });
        let limit = self.desk.uploads.now();
        let open = move || addressed(view, what, limit);
        let added =
            feed_and_commit(&self.desk, conn.body(), open, one_visible(self.views.clone()), None).await?;
        added.map(|info| PathInfo::clone(&info)).map_err(import_failed)
    }

    pub(super) async fn add_text(
        &self,
        name: String,
        text: Vec<u8>,
        references: BTreeSet<StorePath>,
    ) -> Result<PathInfo, RequestError> {
        let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
        let (view, what) = (self.view(), Address { name, method, algorithm, references });
        let visible = one_visible(self.views.clone());
        let (is_small, limit) = (text.len() < WHOLE, self.desk.uploads.now());
        let leave = self.desk.room.wait(text.len() as u64, 1).await.map_err(import_failed)?;
        let work = move || at_once(|| addressed(view, what, limit), leave, &text).and_then(visible);
        let added = match is_small {
            true => self.desk.workers.commit_short(work).await,
            false => self.desk.workers.commit(work).await,
        };
        added.map_err(bug)?.map(|info| PathInfo::clone(&info)).map_err(import_failed)
    }

    /// Receives a NAR whose path info came first.
    pub(super) async fn add_nar<B: AsyncRead + Unpin>(
        &self,
        body: B,
        info: PathInfo,
    ) -> Result<(), RequestError> {
        let view = self.view();
        let (size, limit) = (Some(info.nar_size).filter(|size| *size > 0), self.desk.uploads.now());
        limit.check(&info.path, info.nar_size).map_err(import_failed)?;
        let open = move || announced(view, info, limit);
        let visible = one_visible(self.views.clone());
        let added = feed_and_commit(&self.desk, body, open, visible, size).await?;
        added.map(|_| ()).map_err(import_failed)
    }

    /// Paths come with their references first, and become visible in batches, each all or nothing.
    pub(super) async fn add_many<R, W>(&self, conn: &mut Connection<R, W>) -> Result<(), RequestError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut upload = upload::Upload::begin(self.views.clone(), self.desk.clone()).await?;
        while let Some(info) = conn.next_item().await? {
            upload.add(info, conn.body()).await?;
        }
        upload.finish().await
    }

    pub(super) async fn send_nar<R, W>(
        &self,
        conn: &mut Connection<R, W>,
        path: StorePath,
    ) -> Result<(), RequestError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let mut chunks = read_nar(&self.desk, &self.views, path).await?;
        let mut reply = conn.reply_nar().await?;
        while let Some(chunk) = next_chunk(&mut chunks).await? {
            reply.write(&chunk).await?;
        }
        Ok(reply.finish().await?)
    }
}

/// Makes one received path visible. It uses a new view: references must be visible in that, not in the view from the
/// start of the upload.
fn one_visible(views: Views) -> impl FnOnce(Staged) -> Result<Arc<PathInfo>, UploadError> + Send + 'static {
    move |staged| {
        let mut infos = views.now().register_many(vec![staged]).map_err(ImportError::Register)?;
        Ok(infos.pop().expect("one path in, one info out"))
    }
}

/// Makes all paths of a batch visible, or none.
pub(super) async fn register(desk: &Desk, views: &Views, batch: Vec<Staged>) -> Result<(), RequestError> {
    if batch.is_empty() {
        return Ok(());
    }
    let views = views.clone();
    let registered = desk.workers.commit(move || views.now().register_many(batch)).await.map_err(bug)?;
    registered.map(|_| ()).map_err(|error: RegisterError| import_failed(ImportError::Register(error)))
}
