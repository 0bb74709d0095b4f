//! Eviction: the box removes what was not used for the longest time, to make room.
//!
//! Verified paths and claims go by the same rule, in one commit:
//!
//! - A row stays if somebody needs it ([`needed`]): a root, a session, the inputs of a build, with all that these refer to.
//! - A row goes only with all rows, in every layer, that refer to its name, and a Verified path also with the claims that
//!   it hides. So no layer ever has a hole, and no name gets other contents by an eviction: it is not valid any more, in
//!   no view that showed these contents, and nothing that was built on them is there.
//! - Among the others the last use decides ([`rows`]), beginning with the rows of members who are charged for much.
//!
//! The rows are hidden before they are deleted, in the moment of a last look at what sessions hold. Results of builds go
//! with their objects, as at any deletion (`work`).
//! Not here: when, and how much (`room`); what one member may have (`views::quota`).

pub(crate) mod looks;
mod needed;
mod rows;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use nix_derivation::StorePath;

use super::work::Upkeep;
use crate::error::RegisterError;
use crate::index::account::now;
use crate::index::change::Change;
use crate::index::commit::{About, Drops, Plan, commit_repeatable};
use crate::index::holds::{Holds, Mark, Needs};
use crate::index::memory::{Entry, Layer, Memory};
use crate::objects::pins::Doomed;
use crate::objects::trees::Tree;
use crate::types::{Member, Provenance};
use needed::Needed;
use rows::{Row, Rows};

/// Most rows of one commit, for which all members wait. Another round takes the next ones.
const MOST_ROWS: usize = 20_000;

/// What an eviction should free.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    pub(crate) bytes: u64,
    /// Objects; each is a file.
    pub(crate) objects: u64,
    /// Bytes up to which the needs of all members together count, each up to an equal part; `None`: all needs count.
    pub(crate) for_needs: Option<u64>,
}

impl Wish {
    fn is_met_by(&self, evicted: &Evicted) -> bool {
        evicted.bytes >= self.bytes && evicted.objects >= self.objects
    }
}

/// What an eviction removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Paths; one that several members claimed counts for each of them.
    pub paths: u64,
    /// Objects that no path has any more, and bytes of their files. The files are removed soon after.
    pub objects: u64,
    pub bytes: u64,
}

impl Evicted {
    pub(crate) fn add(&mut self, other: Self) {
        self.paths += other.paths;
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// Evicts as much as `wish` says, or as is possible. The files go with the next pass of the housekeeper.
pub(crate) fn evict(upkeep: &Upkeep, wish: Wish) -> Result<Evicted, RegisterError> {
    let holds = Arc::clone(upkeep.index.holds());
    let about = About { everything: true, ..About::default() };
    let (evicted, gone) = commit_repeatable(&upkeep.index, about, move |memory| {
        let mark = holds.mark();
        let needs = holds.needs_of_all();
        let needed = Needed::of_all(memory, &needs, wish.for_needs);
        let rows = Rows::unneeded(memory, &needed, None);
        let (taken, evicted) = choose(memory, &rows, &wish);
        let (plan, gone) = planned(memory, &rows, &taken, mark);
        Ok((plan, (evicted, gone)))
    })?;
    upkeep.look_at(gone);
    Ok(evicted)
}

/// The rows that are taken so far, by number, and what that frees.
struct Taken {
    /// In the order in which they were taken.
    rows: Vec<usize>,
    is_taken: Vec<bool>,
    evicted: Evicted,
    /// Number of rows that each object loses.
    lost: HashMap<[u8; 32], usize>,
}

impl Taken {
    fn of(rows: &Rows<'_>) -> Self {
        let is_taken = vec![false; rows.rows.len()];
        Self { rows: Vec::new(), is_taken, evicted: Evicted::default(), lost: HashMap::new() }
    }

    fn is_enough(&self, wish: &Wish) -> bool {
        wish.is_met_by(&self.evicted) || self.rows.len() >= MOST_ROWS
    }

    /// Takes row `n` with all that has to go with it; returns the rows that are new.
    fn take(&mut self, memory: &Memory, rows: &Rows<'_>, n: usize) -> Vec<usize> {
        let new = rows.take_with_referrers(n, &mut self.is_taken);
        for entry in new.iter().map(|n| rows.rows[*n].entry) {
            self.evicted.paths += 1;
            let lost = self.lost.entry(entry.info.nar_hash).or_default();
            *lost += 1;
            if *lost == memory.paths_with(&entry.info.nar_hash) {
                self.evicted.objects += 1;
                self.evicted.bytes += entry.size;
            }
        }
        self.rows.extend(&new);
        new
    }
}

/// First rows of members who are charged for more than the average, as long as they are, so that a member who brings much
/// pushes out their own paths; then all.
fn choose(memory: &Memory, rows: &Rows<'_>, wish: &Wish) -> (Vec<usize>, Evicted) {
    let mut taken = Taken::of(rows);
    let mut much = Much::of(memory, rows);
    // Rows that do not go in the first part: those of others, and all that these refer to.
    let mut spared = vec![false; rows.rows.len()];
    rows.spread((0..rows.rows.len()).filter(|n| !much.has(rows, *n)).collect(), &mut spared);
    let order = rows.oldest_first();
    for &n in &order {
        if taken.is_enough(wish) {
            break;
        }
        if !spared[n] && !taken.is_taken[n] {
            let new = taken.take(memory, rows, n);
            rows.spread(much.took(rows, &new, &taken.is_taken), &mut spared);
        }
    }
    for n in order {
        if taken.is_enough(wish) {
            break;
        }
        if !taken.is_taken[n] {
            taken.take(memory, rows, n);
        }
    }
    (taken.rows, taken.evicted)
}

/// The payers who are charged for more than the average.
struct Much {
    average: u64,
    /// What each payer is charged for, without what was taken.
    charged: Vec<u64>,
    /// The rows of each payer.
    rows_of: Vec<Vec<usize>>,
    /// The payer of each row; `None`: the box.
    payers: Vec<Option<usize>>,
}

impl Much {
    fn of(memory: &Memory, rows: &Rows<'_>) -> Self {
        let charges = memory.charges();
        let average =
            charges.values().map(|charged| charged.bytes).sum::<u64>() / (charges.len() as u64).max(1);
        let numbers: HashMap<&Member, usize> =
            charges.keys().enumerate().map(|(n, payer)| (*payer, n)).collect();
        let mut rows_of = vec![Vec::new(); charges.len()];
        let mut payers = Vec::with_capacity(rows.rows.len());
        for (n, row) in rows.rows.iter().enumerate() {
            let payer = row.payer(memory).and_then(|payer| numbers.get(payer).copied());
            payer.into_iter().for_each(|payer| rows_of[payer].push(n));
            payers.push(payer);
        }
        Self { average, charged: charges.values().map(|charged| charged.bytes).collect(), rows_of, payers }
    }

    /// Whether the payer of row `n` has too much. What nobody is charged for and only its former payer has used ([`slim`])
    /// has no age.
    fn has(&self, rows: &Rows<'_>, n: usize) -> bool {
        self.payers[n].map_or(rows.ages[n] == 0, |payer| self.charged[payer] > self.average)
    }

    /// These rows were taken. Returns the other rows of those who have not too much any more.
    fn took(&mut self, rows: &Rows<'_>, new: &[usize], is_taken: &[bool]) -> Vec<usize> {
        let mut others = Vec::new();
        for n in new {
            let Some(payer) = self.payers[*n] else { continue };
            let had_too_much = self.charged[payer] > self.average;
            self.charged[payer] = self.charged[payer].saturating_sub(rows.rows[*n].entry.size);
            if had_too_much && self.charged[payer] <= self.average {
                others.extend(self.rows_of[payer].iter().copied().filter(|n| !is_taken[*n]));
            }
        }
        others
    }
}

/// The plan that drops these rows, and realisations that lead to them. It is made anew if one of them was held or leased since
/// `mark`.
fn planned(memory: &Memory, rows: &Rows<'_>, taken: &[usize], mark: Mark) -> (Plan, Vec<Doomed>) {
    let taken: Vec<&Row<'_>> = taken.iter().map(|n| &rows.rows[*n]).collect();
    let mut changes: Vec<Change> = taken.iter().map(|row| row.drop()).collect();
    let (mut verified, mut claims) = (HashSet::new(), HashMap::<Member, HashSet<StorePath>>::new());
    for row in &taken {
        let path = row.entry.info.path.clone();
        match row.layer {
            None => drop(verified.insert(path)),
            Some(member) => drop(claims.entry(member.clone()).or_default().insert(path)),
        }
    }
    changes.extend(realisations(memory, &verified, &claims));
    let gone = taken.iter().map(|row| {
        let provenance = row.layer.map_or(Provenance::Verified, |member| Provenance::Claimed(member.clone()));
        let hash = row.entry.info.nar_hash;
        (hash, [Tree::of(hash, &provenance)].into())
    });
    let gone = gone.collect();
    if changes.is_empty() {
        return (Plan::default(), gone);
    }
    let taken = move |holds: &Holds| {
        let is_going = |member: &Member, path: &StorePath| {
            verified.contains(path) || claims.get(member).is_some_and(|claims| claims.contains(path))
        };
        let held =
            |(member, paths): (&Member, &HashSet<StorePath>)| paths.iter().any(|p| holds.has(member, p));
        holds.taken_since(mark, is_going) || claims.iter().any(held)
    };
    (Plan { changes, drops: Some(Drops::Rows(Box::new(taken))), ..Plan::default() }, gone)
}

/// Drops the realisations whose paths go. Looks at no other realisations.
fn realisations(
    memory: &Memory,
    verified: &HashSet<StorePath>,
    claims: &HashMap<Member, HashSet<StorePath>>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut drop_of = |layer: &Layer, member: Option<&Member>, path: &StorePath| {
        let drop = |id: &_| Change::DropRealisation { id: Clone::clone(id), member: member.cloned() };
        changes.extend(layer.realisations_of(path).map(drop));
    };
    verified.iter().for_each(|path| drop_of(memory.verified(), None, path));
    if !verified.is_empty() {
        for (member, layer) in memory.claims() {
            let own = claims.get(member);
            // The member's own claim goes with the Verified path that hides it.
            let gone =
                |path: &&StorePath| layer.entry(path).is_none() || own.is_some_and(|own| own.contains(*path));
            match layer.realised().len() < verified.len() {
                true => {
                    let realised = layer.realised().filter(|path| verified.contains(*path));
                    realised.filter(gone).for_each(|path| drop_of(layer, Some(member), path));
                }
                false => verified.iter().filter(gone).for_each(|path| drop_of(layer, Some(member), path)),
            }
        }
    }
    for (member, paths) in claims {
        let Some(layer) = memory.claims_of(member) else { continue };
        let gone = paths.iter().filter(|path| !memory.is_verified(path));
        gone.for_each(|path| drop_of(layer, Some(member), path));
    }
    changes
}

/// How a member gets below a limit.
pub(crate) struct Slimming {
    /// Drops dead claims in the views that the member pays for, and releases Verified paths that were brought there and are
    /// not needed there.
    pub(crate) plan: Plan,
    pub(crate) gone: Vec<Doomed>,
    /// Bytes that the member is charged less with this plan, and with it and others after it.
    pub(crate) bytes: u64,
    pub(crate) possible: u64,
    /// Number of rows that this had to look at.
    pub(crate) looked_at: usize,
}

/// The plan by which `payer` is charged at least `bytes` less, or as much less as is possible, the least recently used
/// first. Depends on what the views of this payer have and need, and on Verified paths.
///
/// A Verified path is not removed: others may use it. It is charged to the box from now on. One that only its payer has
/// used counts as the oldest, so it is among the first to go when the box needs room.
pub(crate) fn slim(memory: &Memory, holds: &Holds, payer: &Member, bytes: u64) -> Slimming {
    let mark = holds.mark();
    let views: Vec<&Member> = memory.views_of(payer).collect();
    let needs: Vec<Needs> = views.iter().map(|member| holds.needs_of(member)).collect();
    let needed = Needed::of_some(memory, &needs);
    let rows = Rows::unneeded(memory, &needed, Some(&views));
    let looked_at = memory.charged_to(payer).paths as usize + needed.verified.len();
    let paid = views.iter().flat_map(|member| memory.paid_by(member));
    let paid = paid.filter(|entry| !needed.verified.contains(&entry.info.path));
    let mut paid: Vec<_> = paid.map(|entry| (entry.used.at(), entry)).collect();
    paid.sort_unstable_by_key(|(used, entry)| std::cmp::Reverse((*used, &entry.info.path)));
    let claimed = rows.rows.iter().map(|row| row.entry.size);
    let possible = claimed.chain(paid.iter().map(|(_, entry)| entry.size)).sum();
    let (mut taken, mut less, mut releases) = (Taken::of(&rows), 0, Vec::new());
    let mut claims = rows.oldest_first().into_iter().peekable();
    while less < bytes && taken.rows.len() + releases.len() < MOST_ROWS {
        let age = claims.peek().map(|n| rows.ages[*n]);
        if let Some((used, entry)) = paid.pop_if(|(used, _)| age.is_none_or(|age| *used <= age)) {
            less += entry.size;
            releases.push(release(used, entry));
        } else if let Some(n) = claims.next() {
            if !taken.is_taken[n] {
                let new = taken.take(memory, &rows, n);
                less += new.iter().map(|n| rows.rows[*n].entry.size).sum::<u64>();
            }
        } else {
            break;
        }
    }
    let (mut plan, gone) = planned(memory, &rows, &taken.rows, mark);
    plan.changes.extend(releases);
    Slimming { plan, gone, bytes: less, possible, looked_at }
}

fn release(used: u64, entry: &Entry) -> Change {
    let used = if entry.used.is_by_others() { used } else { 0 };
    Change::Charge { path: entry.info.path.clone(), payer: None, used: used.min(now()) }
}
