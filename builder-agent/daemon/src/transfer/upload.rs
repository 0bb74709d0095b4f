//! An upload of many paths: received, taken in and registered at the same time, each by its own thread.
//!
//! Small paths are handed to the store many at a time. While it takes in one handful the next one arrives, and while a
//! batch is made durable the batch behind it is taken in. No thread waits for the client.
//! What waits in memory is bounded: two handfuls of [`CHUNK`], and what is known of a batch that is not yet registered.

use nix::PathInfo;
use store::{ImportError, Staged};
use tokio::io::AsyncRead;

use super::chunks::{self, CHUNK, WHOLE};
use super::sinks::announced;
use super::{BATCH, Desk, RequestError, Views, bug, import_failed, over};
use shares::budget::Charge;
use shares::threads::Task;

/// What one path counts beside its contents, and each of its references and signatures: about what they take in memory.
const PATH_WEIGHT: usize = 512;
const PART_WEIGHT: usize = 128;

/// References of a batch, in bytes of memory; then it is registered, however few paths it has.
const MOST_KNOWN: u64 = 1 << 20;

/// The state of one upload. Dropping it keeps what was registered and forgets the rest.
pub(super) struct Upload {
    views: Views,
    desk: Desk,
    /// Received, for the next handful.
    small: Vec<(PathInfo, Vec<u8>)>,
    weight: usize,
    staging: Option<Task<Result<Vec<Staged>, ImportError>>>,
    batch: Vec<Staged>,
    registering: Option<Task<Result<(), ImportError>>>,
    /// What is known of the paths that are not registered yet, and of those that are just being registered.
    known: u64,
    leaving: u64,
    charge: Charge,
}

/// What an upload is charged for, beside large paths: one handful that arrives, one that is taken in, and about as much
/// for what is known of two batches.
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

    /// Takes the next path. Its references have come before it.
    pub(super) async fn add<B: AsyncRead + Unpin>(
        &mut self,
        info: PathInfo,
        body: B,
    ) -> Result<(), RequestError> {
        let parts = info.references.len() + info.signatures.len();
        self.known += (PART_WEIGHT * parts) as u64;
        self.charge.set(UPLOAD_BYTES + self.known + self.leaving).map_err(over)?;
        if info.nar_size > WHOLE as u64 {
            self.hand_over().await?;
            self.staged().await?;
            let view = self.views.now();
            let staged = chunks::feed(&self.desk, body, move || announced(view, info)).await?;
            self.batch.push(staged.map_err(import_failed)?);
            return self.register_if(BATCH).await;
        }
        let nar = chunks::whole(body, info.nar_size as usize).await?;
        self.weight += PATH_WEIGHT + PART_WEIGHT * parts + nar.len();
        self.small.push((info, nar));
        if self.weight >= CHUNK { self.hand_over().await } else { Ok(()) }
    }

    /// Ends when everything is registered.
    pub(super) async fn finish(mut self) -> Result<(), RequestError> {
        self.hand_over().await?;
        self.staged().await?;
        self.register_if(1).await?;
        self.registered().await
    }

    /// Gives the small paths to the store once it is done with those before.
    async fn hand_over(&mut self) -> Result<(), RequestError> {
        self.staged().await?;
        if self.small.is_empty() {
            return Ok(());
        }
        self.weight = 0;
        let (small, view) = (std::mem::take(&mut self.small), self.views.now());
        self.staging = Some(self.desk.workers.contents(move || {
            let stage = |(info, nar): (PathInfo, Vec<u8>)| view.stage(info, &mut nar.as_slice());
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

    /// Starts to register what there is, if it is this much. Batches become visible one after the other, since later
    /// ones refer to earlier ones. A client decides how long that takes: each goes by the shares of its own moment.
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
