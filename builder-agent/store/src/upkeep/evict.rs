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
use crate::index::memory::{Entry, Memory};
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
    /// Needs of one member beyond this many bytes do not count; `None`: all needs count.
    pub(crate) most_needed: Option<u64>,
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
        let needed = Needed::of_all(memory, &needs, wish.most_needed.unwrap_or(u64::MAX));
        let rows = Rows::unneeded(memory, &needed, None);
        let (taken, evicted) = choose(memory, &rows, &wish);
        let (plan, gone) = planned(memory, &rows, &taken, mark);
        Ok((plan, (evicted, gone)))
    })?;
    upkeep.look_at(gone);
    Ok(evicted)
}

/// The rows that are taken so far, by number, and what that frees.
#[derive(Default)]
struct Taken {
    rows: HashSet<usize>,
    evicted: Evicted,
    /// Number of rows that each object loses.
    lost: HashMap<[u8; 32], usize>,
}

impl Taken {
    fn is_enough(&self, wish: &Wish) -> bool {
        wish.is_met_by(&self.evicted) || self.rows.len() >= MOST_ROWS
    }

    fn add(&mut self, memory: &Memory, rows: &Rows<'_>, new: Vec<usize>) {
        for n in new {
            let entry = rows.rows[n].entry;
            self.rows.insert(n);
            self.evicted.paths += 1;
            let lost = self.lost.entry(entry.info.nar_hash).or_default();
            *lost += 1;
            if *lost == memory.paths_with(&entry.info.nar_hash) {
                self.evicted.objects += 1;
                self.evicted.bytes += entry.size;
            }
        }
    }
}

/// First rows of members who are charged for more than the average, as long as they are, so that a member who brings much
/// pushes out their own paths; then all.
fn choose(memory: &Memory, rows: &Rows<'_>, wish: &Wish) -> (HashSet<usize>, Evicted) {
    let mut taken = Taken::default();
    let mut charges: HashMap<_, u64> =
        memory.charges().into_iter().map(|(member, charged)| (member, charged.bytes)).collect();
    let average = charges.values().sum::<u64>() / (charges.len() as u64).max(1);
    let order = rows.oldest_first();
    for &n in &order {
        if taken.is_enough(wish) {
            break;
        }
        // What nobody is charged for and only its former payer has used (`slim`) has no age.
        let has_too_much = |n: &usize| match rows.rows[*n].payer() {
            None => rows.ages[*n] == 0,
            Some(payer) => charges.get(payer).is_some_and(|charged| *charged > average),
        };
        // First the cheap question.
        let new = has_too_much(&n).then(|| rows.with_referrers(n, &taken.rows)).flatten();
        if let Some(new) = new.filter(|new| new.iter().all(has_too_much)) {
            for row in new.iter().map(|n| &rows.rows[*n]) {
                let charged = row.payer().and_then(|payer| charges.get_mut(payer));
                charged.into_iter().for_each(|charged| *charged = charged.saturating_sub(row.entry.size));
            }
            taken.add(memory, rows, new);
        }
    }
    for n in order {
        if taken.is_enough(wish) {
            break;
        }
        let new = rows.with_referrers(n, &taken.rows);
        taken.add(memory, rows, new.unwrap_or_default());
    }
    (taken.rows, taken.evicted)
}

/// The plan that drops these rows, and realisations that lead to them. It is made anew if one of them was held or leased since
/// `mark`.
fn planned(memory: &Memory, rows: &Rows<'_>, taken: &HashSet<usize>, mark: Mark) -> (Plan, Vec<Doomed>) {
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

/// Drops the realisations whose paths go.
fn realisations(
    memory: &Memory,
    verified: &HashSet<StorePath>,
    claims: &HashMap<Member, HashSet<StorePath>>,
) -> Vec<Change> {
    let goes = |path: &StorePath| verified.contains(path);
    let of_all = memory.verified().realisations().iter().filter(|(_, realisation)| goes(&realisation.path));
    let mut changes: Vec<Change> =
        of_all.map(|(id, _)| Change::DropRealisation { id: id.clone(), member: None }).collect();
    for (member, layer) in memory.claims() {
        let own = claims.get(member);
        let gone = |path: &StorePath| match own.is_some_and(|own| own.contains(path)) {
            true => goes(path) || !memory.is_verified(path),
            false => goes(path) && layer.entry(path).is_none(),
        };
        let of_one = layer.realisations().iter().filter(|(_, realisation)| gone(&realisation.path));
        let drop = |id: &_| Change::DropRealisation { id: Clone::clone(id), member: Some(member.clone()) };
        changes.extend(of_one.map(|(id, _)| drop(id)));
    }
    changes
}

/// How a member gets below a limit.
pub(crate) struct Slimming {
    /// Drops dead claims of the member, and releases Verified paths that the member has brought and does not need.
    pub(crate) plan: Plan,
    pub(crate) gone: Vec<Doomed>,
    /// Bytes that the member is charged less.
    pub(crate) bytes: u64,
}

/// The plan by which `member` is charged at least `bytes` less, or as much less as is possible, the least recently used
/// first. Depends on what the member has and needs, and on Verified paths.
///
/// A Verified path is not removed: others may use it. It is charged to the box from now on. One that only its payer has
/// used counts as the oldest, so it is among the first to go when the box needs room.
pub(crate) fn slim(memory: &Memory, holds: &Holds, member: &Member, bytes: u64) -> Slimming {
    let mark = holds.mark();
    let needs: Needs = holds.needs_of(member);
    let needed = Needed::of_one(memory, &needs);
    let rows = Rows::unneeded(memory, &needed, Some(member));
    let paid = memory.paid_by(member);
    let paid = paid.filter(|entry| !needed.verified.contains(&entry.info.path));
    let mut paid: Vec<_> = paid.map(|entry| (entry.used.at(), entry)).collect();
    paid.sort_unstable_by_key(|(used, entry)| std::cmp::Reverse((*used, &entry.info.path)));
    let (mut taken, mut less, mut releases) = (HashSet::new(), 0, Vec::new());
    for n in rows.oldest_first() {
        while less < bytes
            && let Some((used, entry)) = paid.pop_if(|(used, _)| *used <= rows.ages[n])
        {
            less += entry.size;
            releases.push(release(used, entry));
        }
        if less >= bytes || taken.len() >= MOST_ROWS {
            break;
        }
        let new = rows.with_referrers(n, &taken).unwrap_or_default();
        less += new.iter().map(|n| rows.rows[*n].entry.size).sum::<u64>();
        taken.extend(new);
    }
    while less < bytes
        && let Some((used, entry)) = paid.pop()
    {
        less += entry.size;
        releases.push(release(used, entry));
    }
    let (mut plan, gone) = planned(memory, &rows, &taken, mark);
    plan.changes.extend(releases);
    Slimming { plan, gone, bytes: less }
}

fn release(used: u64, entry: &Entry) -> Change {
    let used = if entry.used.is_by_others() { used } else { 0 };
    Change::Charge { path: entry.info.path.clone(), payer: None, used: used.min(now()) }
}
