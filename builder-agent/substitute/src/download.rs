//! Downloads of paths into the store. Everybody who wants the same path meanwhile waits for the same download; it ends
//! when nobody waits any more.

use std::collections::HashMap;
use std::io::{self, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use nix_derivation::StorePath;
use store::{Payer, Provenance, View};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::offer::{Offer, Place};
use super::source::{Kind, Source, SourceError};
use super::ssh_store::Piped;
use super::tally::{Account, ChargeBytes, Tally};
use super::unpack;
use shares::threads::Threads;

/// Most downloads at once for the caches of the box. Each needs a decoder and a thread.
pub const MAX_DOWNLOADS: usize = 16;
/// Most of these that one member has started, also waiting ones: the others wait for the member's own. So another member
/// waits for a part of the downloads of each, and for no long queue.
const MAX_OF_MEMBER: usize = MAX_DOWNLOADS / 2;
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

/// A running download. It ends when the last reference to it is dropped.
pub struct Download {
    pub state: watch::Receiver<State>,
    task: AbortHandle,
    /// Cancels the thread that reads when it is dropped.
    _cancel: DropGuard,
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All running downloads.
pub struct Downloads {
    running: Mutex<HashMap<StorePath, Weak<Download>>>,
    slots: Arc<Semaphore>,
    /// The slots of the members for whom something is downloaded.
    of_members: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
    /// The view of no member, which registers only Verified paths; or that of the member whose caches these are.
    into: Destination,
    threads: Threads,
}

/// Where downloads go.
#[derive(Clone)]
pub struct Destination {
    pub view: View,
    /// Whether what is not Verified becomes a claim of the view's member.
    pub claims: bool,
}

impl Downloads {
    /// `most`: how many go on at once.
    pub fn new(into: Destination, most: usize, threads: Threads) -> Self {
        let slots = Arc::new(Semaphore::new(most));
        Self { running: Mutex::default(), slots, of_members: Mutex::default(), into, threads }
    }

    /// The slots of this member.
    fn slots_of(&self, member: &Arc<str>) -> Arc<Semaphore> {
        let mut all = self.of_members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = all.get(member).and_then(Weak::upgrade) {
            return slots;
        }
        all.retain(|_, slots| slots.strong_count() > 0);
        let slots = Arc::new(Semaphore::new(MAX_OF_MEMBER));
        all.insert(member.clone(), Arc::downgrade(&slots));
        slots
    }

    /// Joins the download of `offer`'s path, or starts it; then `payer` is charged for the path, and `account` for its bytes
    /// and for a slot. The path's references must be valid already.
    pub fn start(
        &self,
        offer: &Arc<Offer>,
        source: &Arc<Source>,
        payer: Payer,
        account: &Account,
    ) -> Arc<Download> {
        let path = &offer.info.path;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(download) = running.get(path).and_then(Weak::upgrade)
            && download.state.borrow().end.is_none()
        {
            return download;
        }
        running.retain(|_, download| download.strong_count() > 0);
        let (progress, state) = watch::channel(State::default());
        let cancelled = CancellationToken::new();
        let cancel = cancelled.clone().drop_guard();
        let (offer, source) = (offer.clone(), source.clone());
        let (slots, threads) = (self.slots.clone(), self.threads.clone());
        let into = Destination { view: self.into.view.clone().paid_by(payer), ..self.into };
        let (own, charge) = (self.slots_of(&account.payer), account.charge.clone());
        let task = tokio::spawn(async move {
            // In this order: who waits for a slot of the box has one of the member's.
            let _own = own.acquire().await;
            let _slot = slots.acquire().await;
            let end = attempts(&offer, &source, (&into, &threads, &charge), &progress, &cancelled).await;
            progress.send_modify(|state| state.end = Some(end.map_err(Arc::from)));
        });
        let download = Arc::new(Download { state, task: task.abort_handle(), _cancel: cancel });
        running.insert(path.clone(), Arc::downgrade(&download));
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

/// Does `work` on a thread of its own, since it waits for the cache. [`MAX_DOWNLOADS`] bounds the number of threads.
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
