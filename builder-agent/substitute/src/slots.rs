//! Slots for work that somebody else's server can make long: so many for the whole box, and of these so many for each who
//! pays. They belong to the payer, not to a session or its settings, however many of these a member has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All slots for one kind of work.
pub struct Slots {
    of_box: Arc<Semaphore>,
    /// Most of one payer.
    most: usize,
    payers: Mutex<HashMap<Arc<str>, Weak<Semaphore>>>,
}

/// The slots that one payer may have.
#[derive(Clone)]
pub struct Share {
    of_payer: Arc<Semaphore>,
    of_box: Arc<Semaphore>,
}

/// A slot, until it is dropped.
pub struct Slot {
    _of_payer: OwnedSemaphorePermit,
    _of_box: OwnedSemaphorePermit,
}

impl Slots {
    /// `all`: how many there are. `most`: how many of them one payer may have.
    pub fn new(all: usize, most: usize) -> Self {
        Self { of_box: Arc::new(Semaphore::new(all)), most, payers: Mutex::default() }
    }

    /// The share of this payer. Everybody who has it at the same time has the same one.
    pub fn of(&self, payer: &Arc<str>) -> Share {
        let mut payers = self.payers.lock().unwrap_or_else(PoisonError::into_inner);
        let of_payer = match payers.get(payer).and_then(Weak::upgrade) {
            Some(known) => known,
            None => {
                payers.retain(|_, share| share.strong_count() > 0);
                let share = Arc::new(Semaphore::new(self.most));
                payers.insert(payer.clone(), Arc::downgrade(&share));
                share
            }
        };
        Share { of_payer, of_box: self.of_box.clone() }
    }
}

impl Share {
    /// Waits for a slot. Who waits for one of the box has one of the payer's: so a payer has few places in the box's queue,
    /// and the others wait for a part of the work of each payer, and for no long queue.
    pub async fn take(&self) -> Option<Slot> {
        // Nobody closes them.
        let of_payer = self.of_payer.clone().acquire_owned().await.ok()?;
        let of_box = self.of_box.clone().acquire_owned().await.ok()?;
        Some(Slot { _of_payer: of_payer, _of_box: of_box })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Whether a slot is free now.
    async fn free(share: &Share) -> Option<Slot> {
        tokio::time::timeout(Duration::from_millis(20), share.take()).await.ok().flatten()
    }

    #[tokio::test]
    async fn a_payer_has_few_slots_through_however_many_shares_and_the_box_has_an_end_too() {
        let slots = Slots::new(5, 2);
        let payers = ["alice", "bob", "carol"].map(Arc::<str>::from);
        let mut taken = Vec::new();
        for payer in &payers[..2] {
            for _ in 0..4 {
                // The share is dropped, and made again, while its slots are in use.
                taken.extend(free(&slots.of(payer)).await);
            }
        }
        assert_eq!(taken.len(), 4, "two of each");
        let carol = slots.of(&payers[2]);
        taken.extend(free(&carol).await);
        assert!(taken.len() == 5 && free(&carol).await.is_none(), "those of the box are taken");
        taken.remove(0);
        assert!(free(&carol).await.is_some() && free(&slots.of(&payers[1])).await.is_none());
    }
}
