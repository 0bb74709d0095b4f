//! Objects that sessions read: each member has one copy of the metadata of an object, for any number of sessions.
//!
//! The metadata of a path with a million files takes a hundred MiB, and a slow client can keep it for a long time. It
//! is charged once, before it is read, and kept until the last reader ends. Members do not share copies, so the time of
//! a download does not tell one member what another one reads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix_derivation::StorePath;
use store::{NarError, NarReader, View};
use tokio::sync::OnceCell;

use super::request_error::{RequestError, bug, over};
use members::Views;
use shares::budget::{Budget, Charge};
use shares::threads::Workers;

/// All open objects of the box. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Opened(Arc<Mutex<HashMap<Key, Weak<Cell>>>>);

/// The member's identity, and the hash of the NAR.
type Key = (Arc<str>, [u8; 32]);
type Cell = OnceCell<Shared>;

/// An open object. Readers are made from this one, which is not used for reading.
#[derive(Debug)]
struct Shared {
    nar: NarReader,
    _charge: Charge,
}

/// Keeps the object open, and its memory charged, for one reader.
pub(super) struct Held(#[allow(dead_code)] Arc<Cell>);

impl Opened {
    fn cell(&self, key: Key) -> Arc<Cell> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = map.get(&key).and_then(Weak::upgrade) {
            return cell;
        }
        if map.len() == map.capacity() {
            map.retain(|_, cell| cell.strong_count() > 0);
        }
        let cell = Arc::new(Cell::new());
        map.insert(key, Arc::downgrade(&cell));
        cell
    }

    /// A reader of the NAR of a valid path. Opening may have waited, so the caller must call [`is_still`].
    pub(super) async fn open(
        &self,
        workers: &Workers,
        budget: &Budget,
        views: &Views,
        path: &StorePath,
    ) -> Result<(NarReader, Held), RequestError> {
        let failed = |error: NarError| RequestError::Refused(error.to_string());
        let hash = nar_hash(&views.now(), path)?;
        let cell = self.cell((budget.member().clone(), hash));
        let shared = cell.get_or_try_init(|| async {
            let (view, of) = (views.now(), path.clone());
            let measured = workers.contents(move || view.nar_metadata(&of)).await;
            let need = measured.map_err(bug)?.map_err(failed)?;
            let charge = budget.wait(need, "the list of files of this NAR").await.map_err(over)?;
            let (view, of) = (views.now(), path.clone());
            let nar = workers.contents(move || view.nar(&of)).await.map_err(bug)?.map_err(failed)?;
            // Other sessions that wait for this cell asked for the contents with this hash.
            if *nar.hash() == hash { Ok(Shared { nar, _charge: charge }) } else { Err(replaced(path)) }
        });
        let nar = shared.await?.nar.again();
        Ok((nar, Held(cell)))
    }
}

/// Fails if the path has other contents by now, or is not valid in this view.
pub(super) fn is_still(nar: &NarReader, view: &View, path: &StorePath) -> Result<(), RequestError> {
    if nar_hash(view, path)? == *nar.hash() { Ok(()) } else { Err(replaced(path)) }
}

fn nar_hash(view: &View, path: &StorePath) -> Result<[u8; 32], RequestError> {
    view.info(path).map(|info| info.nar_hash).ok_or_else(|| RequestError::not_valid(path))
}

/// The error for a claim that has just given way to a Verified path.
fn replaced(path: &StorePath) -> RequestError {
    let path = path.to_absolute_path();
    RequestError::Refused(format!("path '{path}' has just been replaced; ask for it again"))
}
