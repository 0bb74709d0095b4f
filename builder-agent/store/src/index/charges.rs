//! The Verified paths that each payer is charged for.
//!
//! Kept by payer, so that a question about one payer looks at nothing of the others.
//! Not here: claims, which are in the layer of their member, and limits (`views::quota`).

use std::collections::{HashMap, HashSet};
use std::ops::AddAssign;

use nix_derivation::StorePath;

use super::memory::{Entry, Layer};
use crate::types::Member;

/// What somebody is charged for. An object that several paths have counts for each of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charged {
    /// Bytes of the files of objects; each object is a file.
    pub bytes: u64,
    /// Rows of paths.
    pub paths: u64,
    /// References of these rows.
    pub references: u64,
}

impl Charged {
    fn of(entry: &Entry) -> Self {
        Self { bytes: entry.size, paths: 1, references: entry.info.references.len() as u64 }
    }

    /// All rows of a layer.
    pub(crate) fn of_layer(layer: &Layer) -> Self {
        let (paths, references) = layer.size();
        Self { bytes: layer.bytes(), paths: paths as u64, references: references as u64 }
    }
}

impl AddAssign for Charged {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.paths += other.paths;
        self.references += other.references;
    }
}

/// The Verified paths of one payer.
#[derive(Default)]
struct Paid {
    paths: HashSet<StorePath>,
    sum: Charged,
}

/// The Verified paths of all payers.
#[derive(Default)]
pub(crate) struct Charges {
    paid: HashMap<Member, Paid>,
}

impl Charges {
    /// `entry` is a new Verified row, with its payer.
    pub(crate) fn add(&mut self, entry: &Entry) {
        let Some(payer) = &entry.payer else { return };
        let paid = self.paid.entry(payer.clone()).or_default();
        if paid.paths.insert(entry.info.path.clone()) {
            paid.sum += Charged::of(entry);
        }
    }

    /// Its payer does not pay for this Verified row any more.
    pub(crate) fn remove(&mut self, entry: &Entry) {
        let Some((payer, paid)) =
            entry.payer.as_ref().and_then(|payer| Some((payer, self.paid.get_mut(payer)?)))
        else {
            return;
        };
        if paid.paths.remove(&entry.info.path) {
            let Charged { bytes, paths, references } = Charged::of(entry);
            paid.sum.bytes -= bytes;
            paid.sum.paths -= paths;
            paid.sum.references -= references;
        }
        if paid.paths.is_empty() {
            self.paid.remove(payer);
        }
    }

    /// What `payer` is charged for.
    pub(crate) fn of(&self, payer: &Member) -> Charged {
        self.paid.get(payer).map(|paid| paid.sum).unwrap_or_default()
    }

    /// The Verified paths that `payer` is charged for, in no order.
    pub(crate) fn paths_of(&self, payer: &Member) -> impl Iterator<Item = &StorePath> {
        self.paid.get(payer).into_iter().flat_map(|paid| &paid.paths)
    }

    /// All who are charged for a Verified path.
    pub(crate) fn payers(&self) -> impl Iterator<Item = &Member> {
        self.paid.keys()
    }
}
