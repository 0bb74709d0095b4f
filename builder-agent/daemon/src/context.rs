//! What the builds of one request share, and how each of them ended.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::BuildStatus;
use nix_derivation::StorePath;
use tokio::sync::mpsc;
use wire::worker::LogEvent;

use super::desk::Desk;
use super::views::Views;
use crate::Agent;
use builds::Failure;
use members::Member;

/// Activity ids. Clients show them among their own, which are process id and counter (Nix: `nextId` in logging.cc), so
/// ours start at random.
#[derive(Debug, Clone)]
pub(super) struct Ids(Arc<AtomicU64>);

impl Ids {
    pub(super) fn new() -> Self {
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        // The top bit stays clear: some clients print ids as signed numbers.
        Self(Arc::new(AtomicU64::new((random >> 1) & !0xffff_ffff | 1)))
    }

    pub(super) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the builds of one request share.
#[derive(Clone)]
pub(super) struct Context {
    pub agent: Arc<Agent>,
    pub member: Arc<Member>,
    pub views: Views,
    pub desk: Desk,
    pub wall: Option<Duration>,
    pub silent: Option<Duration>,
    pub log: Option<u64>,
    /// Whether a failure of an earlier build may be told again.
    pub reuse_failures: bool,
    pub ids: Ids,
    pub events: mpsc::Sender<LogEvent>,
}

/// How one derivation ended.
pub(super) type Ended = Result<Done, Failure>;

#[derive(Debug, Clone)]
pub(super) struct Done {
    pub status: BuildStatus,
    /// Where each output is now.
    pub outputs: Arc<BTreeMap<String, StorePath>>,
    /// Names the realisations of these outputs, if the derivation did not say where they would be.
    pub drv_hash: Option<[u8; 32]>,
    /// Whether it is proven that exactly these outputs are what the derivation makes: it was built from a closure that
    /// was Verified when the build began. To ask the view later is too late, since a claim that was built from can
    /// have given way to a Verified path meanwhile.
    pub proven: bool,
    pub start_time: i64,
    pub stop_time: i64,
}

impl Done {
    pub(super) fn already(outputs: BTreeMap<String, StorePath>, proven: bool) -> Self {
        let (status, outputs) = (BuildStatus::AlreadyValid, Arc::new(outputs));
        Self { status, outputs, drv_hash: None, proven, start_time: 0, stop_time: 0 }
    }
}

impl Context {
    /// Waits while the client is slow. A closed channel means that nobody looks any more.
    pub(super) async fn show(&self, event: LogEvent) {
        let _ = self.events.send(event).await;
    }
}
