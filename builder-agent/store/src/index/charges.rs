//! Who pays for what: the Verified paths that each payer is charged for, and the views for which somebody else pays.
//!
//! Kept by payer, so that a question about one payer looks at nothing of the others.
//! Not here: claims, which are in the layer of their member, and limits (`views::quota`).

use std::collections::{BTreeSet, HashMap, HashSet};

use nix_derivation::StorePath;

use super::memory::Entry;
use crate::types::Member;
use crate::types::charged::Charged;

fn of(entry: &Entry) -> Charged {
    Charged { bytes: entry.size, paths: 1, references: entry.info.references.len() as u64 }
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
    /// The payer of each view that does not pay for itself. Whoever opens the store says it, anew each time: it is not
    /// written down.
    payers: HashMap<Member, Member>,
    /// The same by payer.
    views: HashMap<Member, BTreeSet<Member>>,
}

impl Charges {
    /// `entry` is a new Verified row, with its payer.
    pub(crate) fn add(&mut self, entry: &Entry) {
        let Some(payer) = &entry.payer else { return };
        let paid = self.paid.entry(payer.clone()).or_default();
        if paid.paths.insert(entry.info.path.clone()) {
            paid.sum += of(entry);
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
            let Charged { bytes, paths, references } = of(entry);
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

    /// Who pays for the view of `member`.
    pub(crate) fn payer_of<'a>(&'a self, member: &'a Member) -> &'a Member {
        self.payers.get(member).unwrap_or(member)
    }

    /// The other views that `payer` pays for.
    pub(crate) fn other_views_of(&self, payer: &Member) -> impl Iterator<Item = &Member> {
        self.views.get(payer).into_iter().flatten()
    }

    /// From now on `payer` pays for the view of `member`, who pays for nobody.
    pub(crate) fn pay_for(&mut self, payer: &Member, member: &Member) {
        let before = match payer == member {
            true => self.payers.remove(member),
            false => self.payers.insert(member.clone(), payer.clone()),
        };
        if let Some(before) = before
            && let Some(views) = self.views.get_mut(&before)
        {
            views.remove(member);
            if views.is_empty() {
                self.views.remove(&before);
            }
        }
        if payer != member {
            self.views.entry(payer.clone()).or_default().insert(member.clone());
        }
    }

    /// All who are charged for a Verified path.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Member> {
        self.paid.keys()
    }
}
