//! Downloads of paths into the store. Everybody who wants the same path meanwhile waits for the same download; it ends
//! when nobody waits any more.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix_derivation::StorePath;
use store::{Provenance, View};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::offer::{Offer, Place};
use super::slots::{Slot, Slots};
use super::source::{Kind, Source, SourceError};
use super::ssh_store::Piped;
use super::tally::{Account, ChargeBytes, Tally};
use super::unpack;
use shares::threads::Threads;

/// Most downloads at once from the caches of the box. Each needs a decoder and a thread.
const MAX_OF_BOX: usize = 16;
/// Most of these that one member has started: the others wait for the member's own. So another member waits for a part of
/// the downloads of each, and for no long queue.
const MAX_OF_BOX_EACH: usize = MAX_OF_BOX / 2;
/// The same for the caches that members name. These have their own number, since their servers may be slow on purpose.
const MAX_OF_MEMBERS: usize = 16;
const MAX_OF_MEMBERS_EACH: usize = MAX_OF_MEMBERS / 4;
/// Attempts for one path from one source after errors of the network or the server.
const ATTEMPTS: u32 = 3;
/// The pause before the second attempt; the pause before the third is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// The progress of a download.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Bytes of the NAR.
    pub received: u64,
    pub end: Option<Result<(), Arc<str>>>,
}

/// A download that runs, or waits for a slot. It ends when the last reference to it is dropped.
pub struct Download {
    pub state: watch::Receiver<State>,
    /// Takes the first turn, with which it begins; closed afterwards.
    turns: mpsc::Sender<Turn>,
    /// Whether it is from a cache that a member named.
    of_member: bool,
    task: AbortHandle,
    /// Cancels the thread that reads when it is dropped.
    _cancel: DropGuard,
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// With what a download begins: a slot of somebody who waits for it, and who therefore pays.
struct Turn {
    slot: Slot,
    into: Destination,
    charge: ChargeBytes,
}

/// Somebody who waits for a download, and for a slot for it if it has not begun.
pub struct Waiting {
    pub download: Arc<Download>,
    starter: AbortHandle,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.starter.abort();
    }
}

/// All downloads from the same caches.
pub struct Downloads {
    all: Mutex<HashMap<StorePath, Weak<Download>>>,
    places: Arc<Places>,
    threads: Threads,
}

/// The slots for the downloads of the whole box.
struct Places {
    of_box: Slots,
    of_members: Slots,
}

/// Where downloads go.
#[derive(Clone)]
pub struct Destination {
    pub view: View,
    /// Whether what is not Verified becomes a claim of the view's member.
    pub claims: bool,
}

impl Downloads {
    pub fn new(threads: Threads) -> Self {
        let of_box = Slots::new(MAX_OF_BOX, MAX_OF_BOX_EACH);
        let of_members = Slots::new(MAX_OF_MEMBERS, MAX_OF_MEMBERS_EACH);
        Self { all: Mutex::default(), places: Arc::new(Places { of_box, of_members }), threads }
    }

    /// Downloads from other caches, with the same slots.
    pub fn beside(&self) -> Self {
        Self { all: Mutex::default(), places: self.places.clone(), threads: self.threads.clone() }
    }

    /// Waits for the download of `offer`'s path, also for a slot: it begins with the first slot that one of those gets who
    /// wait for it, so nobody waits behind the other downloads of somebody else. Then it goes `into` that one's view, and
    /// `account` is charged for the bytes. The path's references must be valid already.
    pub fn start(
        &self,
        offer: &Arc<Offer>,
        source: &Arc<Source>,
        into: Destination,
        account: &Account,
    ) -> Waiting {
        let download = self.join(offer, source);
        let slots = if download.of_member { &self.places.of_members } else { &self.places.of_box };
        let (share, turns, charge) =
            (slots.of(&account.payer), download.turns.clone(), account.charge.clone());
        let starter = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = turns.closed() => {}
                // It fails if another one is first; then this slot is free again.
                Some(slot) = share.take() => drop(turns.try_send(Turn { slot, into, charge })),
            }
        });
        Waiting { download, starter: starter.abort_handle() }
    }

    /// The download of this path, if there is one, or a new one, which waits for its turn.
    fn join(&self, offer: &Arc<Offer>, source: &Arc<Source>) -> Arc<Download> {
        let path = &offer.info.path;
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = all.get(path).and_then(Weak::upgrade)
            && download.state.borrow().end.is_none()
        {
            return download;
        }
        all.retain(|_, download| download.strong_count() > 0);
        let (progress, state) = watch::channel(State::default());
        let (turns, mut first) = mpsc::channel(1);
        let cancelled = CancellationToken::new();
        let cancel = cancelled.clone().drop_guard();
        let of_member = source.of_member;
        let (offer, source, threads) = (offer.clone(), source.clone(), self.threads.clone());
        let task = tokio::spawn(async move {
            let Some(Turn { slot: _slot, into, charge }) = first.recv().await else { return };
            // The others who wait for it need no slot any more.
            drop(first);
            let end = attempts(&offer, &source, (&into, &threads, &charge), &progress, &cancelled).await;
            progress.send_modify(|state| state.end = Some(end.map_err(Arc::from)));
        });
        let task = task.abort_handle();
        let download = Arc::new(Download { state, turns, of_member, task, _cancel: cancel });
        all.insert(path.clone(), Arc::downgrade(&download));
        download
    }
}

async fn attempts(
    offer: &Arc<Offer>,
    source: &Arc<Source>,
    (into, threads, charge): (&Destination, &Threads, &ChargeBytes),
    progress: &watch::Sender<State>,
    cancelled: &CancellationToken,
) -> Result<(), String> {
    let mut attempt = 1;
    loop {
        if into.view.is_valid(&offer.info.path) {
            return Ok(());
        }
        let result = one(offer, source, (into, threads, charge), progress, cancelled).await;
        source.note(&result);
        match result {
            Ok(()) => return Ok(()),
            Err(SourceError::Trouble(_)) if attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
                progress.send_modify(|state| state.received = 0);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn one(
    offer: &Arc<Offer>,
    source: &Arc<Source>,
    (into, threads, charge): (&Destination, &Threads, &ChargeBytes),
    progress: &watch::Sender<State>,
    cancelled: &CancellationToken,
) -> Result<(), SourceError> {
    let runtime = Handle::current();
    let (offer, source, into) = (offer.clone(), source.clone(), into.clone());
    let (progress, cancel, charge) = (progress.clone(), cancelled.clone(), charge.clone());
    let failed = |why: String| {
        SourceError::Refused(format!(
            "cannot substitute '{}' from {}: {why}",
            offer.info.path.to_absolute_path(),
            source.name
        ))
    };
    match (&source.kind, &offer.place) {
        (Kind::Http(cache), Place::Http { url, compression, hash, size }) => {
            // If no size is announced: a compressed file is never much larger than its NAR.
            let most = size.unwrap_or(offer.info.nar_size.saturating_add(1 << 20));
            let body = cache.open(url, most).await.map_err(|error| match SourceError::from(error) {
                SourceError::Refused(why) => failed(why),
                other => other,
            })?;
            let body = body.blocking(runtime, cancel);
            let failure = body.failure();
            let (compression, hash, size) = (*compression, hash.clone(), *size);
            let what = offer.clone();
            let taken = blocking(threads, move || {
                let mut file = unpack::File::new(Tally::new(body, charge), hash.as_ref(), size);
                let staged = {
                    let unpacked = unpack::nar(&mut file, compression, what.info.nar_size);
                    let mut nar = BufReader::with_capacity(128 << 10, Counted { inner: unpacked, progress });
                    let staged =
                        into.view.stage(what.info.clone(), &mut nar).map_err(|error| error.to_string())?;
                    match nar.read(&mut [0]) {
                        Ok(0) => staged,
                        Ok(_) => return Err("something follows the NAR in its file".to_owned()),
                        Err(error) => return Err(error.to_string()),
                    }
                };
                file.finish().map_err(|error| error.to_string())?;
                register(&into, staged)
            })
            .await;
            taken.map_err(|why| match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(error) if error.is_passing() => SourceError::Trouble(error.to_string()),
                Some(error) => failed(error.to_string()),
                None => failed(why),
            })
        }
        (Kind::Ssh(store), Place::Ssh) => {
            let borrowed = store.open(&offer.info.path).await?;
            let (what, stall) = (offer.clone(), store.stall());
            let taken = blocking(threads, move || {
                let piped = Piped { borrowed, runtime, cancel, stall };
                // A read returns the bytes that have arrived, and the store reads no further when the NAR has ended.
                // So the thread never waits for bytes after the NAR.
                let mut limited = unpack::exactly(piped, what.info.nar_size);
                let staged = {
                    let tally = Tally::new(&mut limited, charge);
                    let mut nar = BufReader::with_capacity(128 << 10, Counted { inner: tally, progress });
                    into.view.stage(what.info.clone(), &mut nar).map_err(|error| error.to_string())?
                };
                let piped = limited.into_inner();
                register(&into, staged)?;
                Ok(piped.borrowed)
            })
            .await;
            store.give_back(taken.map_err(failed)?);
            Ok(())
        }
        _ => Err(failed("the offer is of another kind than its source; this is a bug of the box".into())),
    }
}

/// Registers the path if it is Verified, or may become a claim; otherwise returns an error.
fn register(into: &Destination, staged: store::Staged) -> Result<(), String> {
    if !into.claims && *staged.provenance() != Provenance::Verified {
        return Err("it has neither a valid trusted signature nor a matching content address".into());
    }
    // The deriver is only a claim of the cache, and could be kept for a member who does not exist.
    into.view.register_many(vec![staged.proven_only()]).map(|_| ()).map_err(|error| error.to_string())
}

/// Does `work` on a thread of its own, since it waits for the cache. Each has a [`Slot`], so there are few.
async fn blocking<T: Send + 'static>(
    threads: &Threads,
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    threads.alone("download", work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a download was lost");
        Err(format!("the download failed because of the box: {error}"))
    })
}

/// Reports the number of bytes that were read.
struct Counted<R> {
    inner: R,
    progress: watch::Sender<State>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.progress.send_modify(|state| state.received += n as u64);
        Ok(n)
    }
}
