//! How long the sessions and builds of members went on after the roster had them no more.
//!
//! A removal has to end them within a minute. This says when it did: in the log, in the audit, and for the last removals in
//! `status` of maintainers. Not here: the ending itself (`connection`, `builds::schedule`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::roster::date;
use builds::Load;
use daemon::Agent;
use members::{Member, Roster};
use serde::Serialize;

use super::Records;
use super::audit::{Event, Kind};

/// Removals that are kept for `status`.
const KEPT: usize = 5;
/// Time between two looks, and between two after the promise is broken.
const GLANCE: Duration = Duration::from_millis(50);
const RARE_GLANCE: Duration = Duration::from_secs(1);
/// What has not ended by then has broken the promise, which is logged as an error.
const PROMISED: Duration = Duration::from_secs(60);

/// A member who is in the roster no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Removal {
    pub member: String,
    /// The commit of the roster that lacks the member.
    pub commit: Option<String>,
    /// When the agent began to use that roster, in seconds since 1970.
    pub removed: u64,
    /// When the last session and the last build of the member had ended.
    pub ended: Option<u64>,
}

#[derive(Default)]
pub(crate) struct Removals(Mutex<VecDeque<Removal>>);

impl Removals {
    /// The last removals, the oldest first.
    pub fn list(&self) -> Vec<Removal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn begin(&self, removal: Removal) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() == KEPT {
            list.pop_front();
        }
        list.push_back(removal);
    }

    /// The member is in the roster again, and what goes on is no leftover.
    fn is_back(&self, removal: &Removal) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|known| known.ended.is_some() || known != removal);
    }

    fn end(&self, removal: &Removal) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = list.iter_mut().find(|known| known.ended.is_none() && **known == *removal);
        if let Some(known) = known {
            known.ended = Some(date::now());
        }
    }
}

/// The members of `before` who are not in `now`, nor another identity of the same name.
pub(crate) fn left(before: &Roster, now: &Roster) -> Vec<Arc<Member>> {
    let is_gone = |member: &&Arc<Member>| member.ticket.is_none() && now.by_id(&member.id).is_none();
    before.everybody().filter(is_gone).cloned().collect()
}

/// Waits until nothing of these members goes on, and reports each. `roster` is the first one without them.
pub(crate) async fn follow(
    agent: Arc<Agent>,
    records: Records,
    mut left: Vec<Arc<Member>>,
    roster: Arc<Roster>,
) {
    let began = Instant::now();
    let removal = |member: &Member| Removal {
        member: member.name.to_string(),
        commit: roster.commit.clone(),
        removed: roster.loaded,
        ended: None,
    };
    left.iter().for_each(|member| records.removals.begin(removal(member)));
    let mut ended: Vec<Arc<str>> = Vec::new();
    let mut is_late = false;
    loop {
        let now = agent.roster.borrow().clone();
        // Who is back may have new sessions.
        left.retain(|member| {
            let is_gone = now.by_id(&member.id).is_none();
            if !is_gone {
                records.removals.is_back(&removal(member));
            }
            is_gone
        });
        // The holders of a member's tickets go with the member.
        let ids: HashSet<Arc<str>> = left.iter().map(|member| member.id.clone()).collect();
        let is_left = |who: &Member| ids.contains(&who.payer().id);
        let mut open = HashMap::<Arc<str>, usize>::new();
        for connection in records.connections.list(is_left) {
            *open.entry(connection.member.payer().id.clone()).or_default() += 1;
        }
        let builds_of = |of: &dyn Fn(&Member) -> bool| {
            let Load { running, waiting } = agent.realiser.scheduler.load(of);
            running + waiting
        };
        let some_build = builds_of(&is_left) > 0;
        let is_broken = began.elapsed() >= PROMISED;
        left.retain(|member| {
            let builds = if some_build { builds_of(&|who| who.payer().id == member.id) } else { 0 };
            let sessions = open.get(&member.id).copied().unwrap_or_default();
            let seconds = (began.elapsed().as_secs_f64() * 1e3).round() / 1e3;
            let (name, commit) = (&member.name, roster.commit.as_deref());
            if builds + sessions > 0 {
                if is_broken && !is_late {
                    tracing::error!(member = %name, commit, seconds, sessions, builds, "sessions and builds of a removed member go on");
                }
                return true;
            }
            tracing::info!(member = %name, commit, removed = date::shown(roster.loaded), seconds, "sessions and builds of a removed member have ended");
            records.removals.end(&removal(member));
            ended.push(member.name.clone());
            false
        });
        let is_time = left.is_empty() || (is_broken && !is_late);
        if is_time && !ended.is_empty() {
            // One event for all: a roster that loses thousands must not push out what maintainers did.
            let seconds = began.elapsed().as_secs();
            let text = format!("sessions and builds ended within {} s: {}", seconds + 1, ended.join(", "));
            records.audit.note(Event::now(Kind::Removed).saying(&text));
            ended.clear();
        }
        if left.is_empty() {
            return;
        }
        is_late = is_broken;
        tokio::time::sleep(if is_late { RARE_GLANCE } else { GLANCE }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_back_in_the_roster_is_no_removal_that_goes_on() {
        let removals = Removals::default();
        let removal =
            |member: &str, removed| Removal { member: member.into(), commit: None, removed, ended: None };
        let left = || {
            removals
                .list()
                .into_iter()
                .map(|of| (of.member, of.removed, of.ended.is_some()))
                .collect::<Vec<_>>()
        };
        removals.begin(removal("alice", 1));
        removals.begin(removal("bob", 1));
        removals.end(&removal("alice", 1));
        removals.begin(removal("alice", 2));
        removals.is_back(&removal("alice", 2));
        removals.is_back(&removal("bob", 2));
        assert_eq!(left(), [("alice".to_owned(), 1, true), ("bob".to_owned(), 1, false)]);
        removals.is_back(&removal("bob", 1));
        assert_eq!(left(), [("alice".to_owned(), 1, true)]);
    }
}
