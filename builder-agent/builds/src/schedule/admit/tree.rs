//! The tree of owners: the box, below it members, and below them keys. Beside the tree: groups, which count the started
//! runs of their members.
//!
//! A free slot goes down from the box, at each level to the owner with the smallest usage per weight among those who can
//! give a run: to a member only if the member, each of the member's groups and the box have room for the member's next run.
//! The box keeps its room for a member who has been passed by for [`RESERVE`].
//! An owner who begins to wait with less usage than the *floor* of the level is lifted to it. The floor is [`CREDIT`]
//! below the smallest usage among those who could have got the last slot, and never falls. So nobody saves up more than
//! that, and an owner who has been forgotten comes back to the same place.
//!
//! Owners with equal usage go by who has waited longest since the last start. It follows that an owner who begins to wait
//! at the floor with nothing running is passed only by those in the same position who waited before, by one run each.
//! Not here: the slots of the box, and the runs themselves (`admit`).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::decay::{Decay, Moment, OCTAVES};
use super::line::{Class, Line};
use super::node::{Node, NodeId, Nodes, ROOT};
use super::owner::{Group, Owner, Size};
use super::usage::{self, CREDIT, SHORTEST};
use super::{Full, RunId};

/// Levels below the box.
const DEPTH: usize = 2;

/// Interval between looks for owners who can be forgotten.
const SWEEP: Duration = Duration::from_secs(3600);

/// Who would have been next is passed by for so long, because the box lacks room for the run; then nobody is, until the run
/// fits. It is short beside the time limit of a build, for which the others can keep the room, and long beside most builds.
pub const RESERVE: Duration = Duration::from_secs(600);

/// A key of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Leaf(NodeId);

/// What a started run is charged, from its key upwards.
#[derive(Debug)]
pub struct Charge {
    leaf: Leaf,
    size: Size,
    rates: [i128; DEPTH],
}

#[derive(Debug, Default)]
pub struct Tree {
    nodes: Nodes,
    members: HashMap<Arc<str>, NodeId>,
    keys: HashMap<(NodeId, Arc<str>), NodeId>,
    groups: HashMap<Arc<str>, NodeId>,
    /// Counts what comes and what starts.
    last: u64,
    clock: Option<Clock>,
}

#[derive(Debug)]
struct Clock {
    latest: Instant,
    decay: Decay,
    /// When owners were last forgotten.
    swept: Instant,
}

impl Tree {
    /// Returns `now`, or the latest moment there was. Once an hour, forgets the owners for whom that changes
    /// nothing.
    pub fn advance_to(&mut self, now: Instant) -> Instant {
        let clock =
            self.clock.get_or_insert_with(|| Clock { latest: now, decay: Decay::from(now), swept: now });
        clock.latest = clock.latest.max(now);
        let now = clock.latest;
        while let Some(passed) = clock.decay.rebase(now) {
            self.nodes.each(|node| {
                node.usage.rebase(passed);
                node.floor >>= OCTAVES;
            });
        }
        if now.saturating_duration_since(clock.swept) >= SWEEP {
            clock.swept = now;
            self.forget(now);
        }
        now
    }

    /// Limit on what all started runs take together.
    pub fn set_room(&mut self, most: Size) {
        self.nodes[ROOT].terms.most = most;
    }

    fn moment(&self, now: Instant) -> Moment {
        self.clock.as_ref().map_or_else(|| Decay::from(now), |clock| clock.decay).at(now)
    }

    /// The members who have runs here.
    pub fn members(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.iter().filter(|(_, id)| !self.nodes[**id].is_idle()).map(|(name, _)| name)
    }

    /// The key of this owner, with the owner's current terms and groups.
    pub fn leaf_of(&mut self, owner: &Owner, now: Instant) -> Leaf {
        let Self { nodes, members, keys, .. } = self;
        let new = || nodes.add(Node { parent: ROOT, ..Node::default() });
        let member = *members.entry(owner.member.name.clone()).or_insert_with(new);
        let line = Some(Line::default());
        let new = || nodes.add(Node { parent: member, line, ..Node::default() });
        let key = *keys.entry((member, owner.key.name.clone())).or_insert_with(new);
        self.set_terms(member, Some(key), owner, now);
        Leaf(key)
    }

    /// These are the terms and groups of this owner from now on. An owner who has no runs here brings nothing: the next run
    /// does.
    pub fn update(&mut self, owner: &Owner, now: Instant) {
        let known = |member: &NodeId| !self.nodes[*member].is_idle();
        let Some(member) = self.members.get(&owner.member.name).copied().filter(known) else { return };
        let key = self.keys.get(&(member, owner.key.name.clone())).copied();
        self.set_terms(member, key, owner, now);
    }

    fn set_terms(&mut self, member: NodeId, key: Option<NodeId>, owner: &Owner, now: Instant) {
        if let Some(key) = key {
            self.nodes[key].terms = owner.key.terms;
        }
        self.nodes[member].terms = owner.member.terms;
        self.set_groups(member, &owner.groups);
        self.refresh(key.unwrap_or(member), now);
    }

    /// The started runs of a member count in the groups that the member has now, whichever they were at the start.
    fn set_groups(&mut self, member: NodeId, groups: &[Group]) {
        let Node { started, taken, .. } = self.nodes[member];
        let mut ids = std::mem::take(&mut self.nodes[member].groups);
        for id in ids.drain(..) {
            let group = &mut self.nodes[id];
            group.started -= started;
            group.taken = group.taken.without(taken);
        }
        for Group { name, slots, most } in groups {
            let new = || self.nodes.add(Node::default());
            let id = *self.groups.entry(name.clone()).or_insert_with(new);
            let group = &mut self.nodes[id];
            (group.terms.slots, group.terms.most) = (*slots, *most);
            if !ids.contains(&id) {
                group.started += started;
                group.taken = group.taken.with(taken);
                ids.push(id);
            }
        }
        self.nodes[member].groups = ids;
    }

    /// Puts a run at the end of a line. Returns its number there.
    pub fn enqueue(&mut self, leaf: Leaf, run: (RunId, Size), class: Class, now: Instant) -> u64 {
        self.last += 1;
        let number = self.last;
        if let Some(line) = &mut self.nodes[leaf.0].line {
            line.push(number, run, class, now);
        }
        self.each(leaf, |node| {
            if node.queued == 0 {
                (node.since, node.class, node.passed) = (number, Class::default(), None);
            }
            node.queued += 1;
        });
        self.refresh(leaf.0, now);
        number
    }

    /// Takes a run out of its line.
    pub fn leave(&mut self, leaf: Leaf, class: Class, number: u64, now: Instant) {
        if let Some(line) = &mut self.nodes[leaf.0].line {
            line.remove(class, number);
        }
        self.each(leaf, |node| node.queued -= 1);
        self.refresh(leaf.0, now);
    }

    /// Whether a run of `from` that has started can become one of `to`: there is room on every level and in every group,
    /// and `to` has not used more. Otherwise a member could have all runs started at the front of the queue, and then
    /// charged to a friend who has nothing to build.
    pub fn can_take(&self, to: Leaf, from: Leaf, size: Size, now: Instant) -> bool {
        let (old, new): (Vec<_>, Vec<_>) = (self.path(from).collect(), self.path(to).collect());
        let (own, its) = (|id: &&NodeId| !old.contains(id), |id: &&NodeId| !new.contains(id));
        let moment = self.moment(now);
        let used = |id: NodeId| self.nodes[id].usage.at(moment).max(self.nodes[self.nodes[id].parent].floor);
        // The outermost level on which they differ, below the same owner.
        let (first, second) = (new.iter().rfind(own), old.iter().rfind(its));
        let is_ahead = first.zip(second).is_some_and(|(to, from)| used(*to) > used(*from));
        let groups = |of: Leaf| &self.nodes[self.nodes[of.0].parent].groups;
        let mut others = groups(to).iter().filter(|group| !groups(from).contains(group));
        !is_ahead
            && new.iter().filter(own).all(|id| self.nodes[*id].has_room_for(size))
            && others.all(|id| self.nodes[*id].has_room_for(size))
    }

    /// What has no room for a run of this key and size: the nearest to it. `None`: only the box can.
    pub fn full(&self, leaf: Leaf, size: Size) -> Option<Full> {
        let member = self.nodes[leaf.0].parent;
        let is_full = |id: NodeId| !self.nodes[id].has_room();
        if is_full(leaf.0) {
            return Some(Full::Key);
        }
        if is_full(member) {
            return Some(Full::Member);
        }
        if !self.nodes[member].has_room_for(size) {
            return Some(Full::MemberSize);
        }
        let mut groups = self.nodes[member].groups.iter();
        let group = *groups.find(|group| !self.nodes[**group].has_room_for(size))?;
        let (name, _) = self.groups.iter().find(|(_, id)| **id == group)?;
        Some(if is_full(group) { Full::Group(name.clone()) } else { Full::Size(name.clone()) })
    }

    /// The run that is to start now, which leaves its line.
    pub fn next(&mut self, now: Instant) -> Option<(Leaf, RunId)> {
        let moment = self.moment(now);
        // Who may start, and whether the box has room for it.
        let ready = self.nodes[ROOT].ready.iter().copied();
        let may: Vec<(NodeId, bool)> =
            ready.filter_map(|member| Some((member, self.fits(member, now)?))).collect();
        let (_, first) = self.best(ROOT, may.iter().map(|(member, _)| *member), moment)?;
        let fitting = || may.iter().filter(|(_, fits)| *fits).map(|(member, _)| *member);
        if !fitting().any(|member| member == first) {
            let since = *self.nodes[first].passed.get_or_insert(now);
            if now.saturating_duration_since(since) >= RESERVE {
                return None;
            }
        }
        let (least, member) = self.best(ROOT, fitting(), moment)?;
        self.raise_floor(ROOT, least, moment);
        let (class, least, key) = self.next_key(member, now)?;
        self.raise_floor(member, least, moment);
        (self.nodes[member].class, self.nodes[member].passed) = (class, None);
        let run = self.nodes[key].line.as_mut()?.pop(class)?;
        self.last += 1;
        let since = self.last;
        self.each(Leaf(key), |node| {
            node.queued -= 1;
            node.since = since;
        });
        self.refresh(key, now);
        Some((Leaf(key), run))
    }

    /// Whether the box has room for the next run of this member. `None`: the member, or one of the member's groups, has none.
    fn fits(&self, member: NodeId, now: Instant) -> Option<bool> {
        let own = &self.nodes[member];
        let limits = || std::iter::once(own).chain(own.groups.iter().map(|id| &self.nodes[*id]));
        // Slots first: which run is next takes longer to say.
        let size = if limits().all(Node::has_room) { self.next_size(member, now) } else { None }?;
        limits().all(|node| node.has_room_for(size)).then(|| self.nodes[ROOT].has_room_for(size))
    }

    /// The size of this member's next run.
    fn next_size(&self, member: NodeId, now: Instant) -> Option<Size> {
        let (class, _, key) = self.next_key(member, now)?;
        self.nodes[key].line.as_ref()?.first(class)
    }

    /// The class of this member's next run, the smallest usage among the keys that have one of this class, and the key to
    /// whom the slot goes.
    fn next_key(&self, member: NodeId, now: Instant) -> Option<(Class, i128, NodeId)> {
        let class = self.class_of_next(member, now);
        let keys = self.nodes[member].ready.iter().copied().filter(|key| self.nodes[*key].has(class));
        let (least, key) = self.best(member, keys, self.moment(now))?;
        Some((class, least, key))
    }

    /// Among these children: the smallest usage, and the one to whom the slot goes.
    fn best(
        &self,
        parent: NodeId,
        children: impl Iterator<Item = NodeId>,
        now: Moment,
    ) -> Option<(i128, NodeId)> {
        let floor = self.nodes[parent].floor;
        let (mut least, mut first) = (None, None);
        for id in children {
            let node = &self.nodes[id];
            let used = node.usage.at(now).max(floor);
            let rank = (used + node.usage.advance(now), node.since, id);
            least = Some(least.map_or(used, |least: i128| least.min(used)));
            first = Some(first.map_or(rank, |first: (i128, u64, NodeId)| first.min(rank)));
        }
        least.zip(first.map(|(_, _, id)| id))
    }

    /// `least`: the smallest usage among those who could have got the slot.
    fn raise_floor(&mut self, parent: NodeId, least: i128, now: Moment) {
        let floor = &mut self.nodes[parent].floor;
        *floor = (*floor).max(least - usage::of_a_slot(CREDIT, now));
    }

    /// Interactive before bulk; if bulk has waited for long, in turns.
    fn class_of_next(&self, member: NodeId, now: Instant) -> Class {
        let keys = || self.nodes[member].ready.iter().map(|id| &self.nodes[*id]);
        let its_turn = self.nodes[member].class == Class::Interactive;
        match keys().any(|key| key.has(Class::Interactive)) {
            true if its_turn && keys().any(|key| key.has_aged(now)) => Class::Bulk,
            true => Class::Interactive,
            false => Class::Bulk,
        }
    }

    /// Charges a run that starts, or gets this owner, to the key and the member, and counts it in the member's groups.
    /// `parts`: what `size` is of a slot.
    pub fn begin(&mut self, leaf: Leaf, size: Size, parts: u64, now: Instant) -> Charge {
        let moment = self.moment(now);
        let mut rates = [0; DEPTH];
        let path: Vec<NodeId> = self.path(leaf).collect();
        for (id, rate) in path.into_iter().zip(&mut rates) {
            let floor = self.nodes[self.nodes[id].parent].floor;
            let node = &mut self.nodes[id];
            *rate = usage::rate(parts, node.terms.divisor());
            node.usage.lift(floor, moment);
            node.usage.begin(*rate, moment);
            node.began(size);
        }
        self.each_group(leaf, |group| group.began(size));
        self.nodes[ROOT].began(size);
        self.refresh(leaf.0, now);
        Charge { leaf, size, rates }
    }

    /// Ends a charge. `ran` is for how long the run ran.
    pub fn stop(&mut self, charge: &Charge, ran: Duration, now: Instant) {
        let moment = self.moment(now);
        let missing = SHORTEST.saturating_sub(ran);
        let mut rates = charge.rates.iter();
        self.each(charge.leaf, |node| {
            node.usage.stop(*rates.next().unwrap_or(&0), missing, moment);
            node.ended(charge.size);
        });
        self.each_group(charge.leaf, |group| group.ended(charge.size));
        self.nodes[ROOT].ended(charge.size);
        self.refresh(charge.leaf.0, now);
    }

    /// From a key up to the last below the box.
    fn path(&self, leaf: Leaf) -> impl Iterator<Item = NodeId> {
        let above = |id: &NodeId| Some(self.nodes[*id].parent).filter(|parent| *parent != ROOT);
        std::iter::successors(Some(leaf.0), above)
    }

    fn each(&mut self, leaf: Leaf, mut change: impl FnMut(&mut Node)) {
        let mut id = leaf.0;
        while id != ROOT {
            change(&mut self.nodes[id]);
            id = self.nodes[id].parent;
        }
    }

    fn each_group(&mut self, leaf: Leaf, mut change: impl FnMut(&mut Node)) {
        let member = self.nodes[leaf.0].parent;
        let groups = std::mem::take(&mut self.nodes[member].groups);
        groups.iter().for_each(|id| change(&mut self.nodes[*id]));
        self.nodes[member].groups = groups;
    }

    /// Lists this node, and those above it, with their parents if they can give a run as far as slots of their own matter.
    /// A node that is listed now gets at least the floor's usage. While a group holds up a member, the floor can rise above
    /// the member's usage; then the floor counts, in `best` and `begin`.
    fn refresh(&mut self, mut id: NodeId, now: Instant) {
        while id != ROOT {
            let (can, parent) = (self.nodes[id].can_give(), self.nodes[id].parent);
            if !can {
                self.nodes[parent].ready.remove(&id);
            } else if self.nodes[parent].ready.insert(id) {
                let (floor, moment) = (self.nodes[parent].floor, self.moment(now));
                self.nodes[id].usage.lift(floor, moment);
            }
            id = parent;
        }
    }

    /// Forgets owners without runs who are at the floor, where they would come back, with all below them, and then groups
    /// without members. The others are a few hundred bytes for each name of the rosters of some weeks.
    fn forget(&mut self, now: Instant) {
        let moment = self.moment(now);
        let Self { nodes, members, keys, groups, .. } = self;
        let mut gone = BTreeSet::new();
        let mut stays = |id: NodeId| {
            let node = &nodes[id];
            let is_at_floor = node.is_idle() && node.usage.at(moment) <= nodes[node.parent].floor;
            !(is_at_floor || gone.contains(&node.parent)) || !gone.insert(id)
        };
        members.retain(|_, id| stays(*id));
        keys.retain(|_, id| stays(*id));
        let named: BTreeSet<NodeId> = members.values().flat_map(|id| &nodes[*id].groups).copied().collect();
        groups.retain(|_, id| named.contains(id) || !gone.insert(*id));
        nodes.remove(gone);
    }
}

#[cfg(test)]
impl Tree {
    /// Whether the usage of this member is remembered.
    pub fn is_known(&self, member: &str) -> bool {
        self.members.contains_key(member)
    }

    /// How many groups are remembered.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }
}
