//! An upload of many paths: receiving, staging and registering happen at the same time, each on its own thread.
//!
//! Small paths are given to the store in groups. While the store stages one group the next one arrives, and while a
//! batch is made durable the next batch is staged. No thread waits for the client.
//! Waiting data is bounded: two groups of [`CHUNK`], and the path infos of a batch that is not yet registered.

use nix::PathInfo;
use store::{ImportError, Staged};
use tokio::io::AsyncRead;

use super::BATCH;
use super::chunks::{self, CHUNK, WHOLE};
use super::sinks::announced;
use crate::desk::Desk;
use crate::request_error::{RequestError, bug, import_failed, over};
use members::Views;
use shares::budget::Charge;
use shares::threads::Task;

/// Approximate memory of a path besides its contents, and of each of its references and signatures.
const PATH_WEIGHT: usize = 512;
const PART_WEIGHT: usize = 128;

/// Limit on the memory for the references of a batch; at this limit the batch is registered, even with few paths.
const MOST_KNOWN: u64 = 1 << 20;

/// The state of one upload. Dropping it keeps the registered paths and drops the others.
pub(super) struct Upload {
    views: Views,
    desk: Desk,
    /// Received paths of the next group.
    small: Vec<(PathInfo, Vec<u8>)>,
    weight: usize,
    staging: Option<Task<Result<Vec<Staged>, ImportError>>>,
    batch: Vec<Staged>,
    registering: Option<Task<Result<(), ImportError>>>,
    /// Memory of the path infos that are not registered yet, and of those that are being registered.
    known: u64,
    leaving: u64,
    charge: Charge,
}

/// The charge of an upload, besides large paths: one group that arrives, one that is staged, and about as much for the
/// path infos of two batches.
const UPLOAD_BYTES: u64 = 3 * CHUNK as u64;

impl Upload {
    pub(super) async fn begin(views: Views, desk: Desk) -> Result<Self, RequestError> {
        let charge = desk.budget.wait(UPLOAD_BYTES, "an upload of many paths").await.map_err(over)?;
        Ok(Self {
            known: 0,
            leaving: 0,
            charge,
            views,
            desk,
            small: Vec::new(),
            weight: 0,
            staging: None,
            batch: Vec::new(),
            registering: None,
        })
    }

    /// Takes the next path. Its references must come before it.
    pub(super) async fn add<B: AsyncRead + Unpin>(
        &mut self,
        info: PathInfo,
        body: B,
    ) -> Result<(), RequestError> {
        let limit = self.desk.uploads.now();
        limit.check(&info.path, info.nar_size).map_err(import_failed)?;
        let parts = info.references.len() + info.signatures.len();
        self.known += (PART_WEIGHT * parts) as u64;
        self.charge.set(UPLOAD_BYTES + self.known + self.leaving).map_err(over)?;
        if info.nar_size > WHOLE as u64 {
            self.hand_over().await?;
            self.staged().await?;
            let view = self.views.now();
            let staged = chunks::feed(&self.desk, body, move || announced(view, info, limit)).await?;
            self.batch.push(staged.map_err(import_failed)?);
            return self.register_if(BATCH).await;
        }
        let nar = chunks::whole(body, info.nar_size as usize).await?;
        self.weight += PATH_WEIGHT + PART_WEIGHT * parts + nar.len();
        self.small.push((info, nar));
        if self.weight >= CHUNK { self.hand_over().await } else { Ok(()) }
    }

    /// Ends when all paths are registered.
    pub(super) async fn finish(mut self) -> Result<(), RequestError> {
        self.hand_over().await?;
        self.staged().await?;
        self.register_if(1).await?;
        self.registered().await
    }

    /// Gives the small paths to the store when it has staged those before.
    async fn hand_over(&mut self) -> Result<(), RequestError> {
        self.staged().await?;
        if self.small.is_empty() {
            return Ok(());
        }
        self.desk.pace.step_each(self.small.iter().map(|(_, nar)| nar.len())).await;
        let bytes = self.small.iter().map(|(_, nar)| nar.len() as u64).sum();
        let mut leave = self.desk.room.wait(bytes, self.small.len()).await.map_err(import_failed)?;
        self.weight = 0;
        let (small, view) = (std::mem::take(&mut self.small), self.views.now());
        self.staging = Some(self.desk.workers.contents(move || {
            let stage = |(info, nar): (PathInfo, Vec<u8>)| {
                let part = leave.part(nar.len() as u64);
                view.stage_with(info, &mut nar.as_slice(), part)
            };
            small.into_iter().map(stage).collect()
        }));
        Ok(())
    }

    async fn staged(&mut self) -> Result<(), RequestError> {
        if let Some(staging) = self.staging.take() {
            self.batch.extend(staging.await.map_err(bug)?.map_err(import_failed)?);
        }
        self.register_if(BATCH).await
    }

    /// Starts to register the batch if it has at least `least` paths. Batches become visible one after the other, since
    /// later ones refer to earlier ones. The client decides how long that takes, so each batch uses a new view, with
    /// the shares of that moment.
    async fn register_if(&mut self, least: usize) -> Result<(), RequestError> {
        if self.batch.len() < least && self.known < MOST_KNOWN || self.batch.is_empty() {
            return Ok(());
        }
        self.registered().await?;
        self.leaving = std::mem::take(&mut self.known);
        let (batch, views) = (std::mem::take(&mut self.batch), self.views.clone());
        self.registering = Some(
            self.desk
                .workers
                .commit(move || views.now().register_many(batch).map(|_| ()).map_err(ImportError::Register)),
        );
        Ok(())
    }

    async fn registered(&mut self) -> Result<(), RequestError> {
        match self.registering.take() {
            Some(registering) => registering.await.map_err(bug)?.map_err(import_failed),
            None => Ok(()),
        }
    }
}
