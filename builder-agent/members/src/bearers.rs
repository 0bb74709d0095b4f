//! Holders of tickets as members of each roster.
//!
//! A holder is a [`Member`] with an identity of their own, who shares with nobody and has no role, and the limits of the
//! ticket's maker as they are now. So all that follows the roster (connections, sessions, builds) ends with a ticket as it
//! ends with a member: when the ticket expires or is revoked, and while its maker is not in the roster.
//! Not here: how much of a ticket was used (`tickets`), and how its holder logs in (`ssh`).

use std::sync::Arc;
use std::time::Duration;

use ::roster::{Role, date};
use tickets::{Ticket, Tickets};
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::{Member, Roster};

/// Interval between looks for tickets that have expired.
const POLL: Duration = Duration::from_secs(1);
/// Interval between writes of what was used.
const FLUSH: Duration = Duration::from_secs(5);
/// Everybody who follows the roster does some work for each change of it. So a member who makes and revokes tickets in a
/// loop causes at most one change in this time.
const BETWEEN_CHANGES: Duration = Duration::from_millis(100);

/// The ticket of a [`Member`], and who pays for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    pub ticket: Arc<Ticket>,
    pub maker: Arc<Member>,
}

impl Member {
    /// The member whose share, limits and account this one uses: the maker of the ticket, or the member.
    #[must_use]
    pub fn payer(&self) -> &Member {
        self.ticket.as_ref().map_or(self, |bearer| &bearer.maker)
    }

    /// Whether this member may upload and build, or only read.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.ticket.as_ref().is_none_or(|bearer| bearer.ticket.terms.scope == tickets::Scope::Build)
    }

    /// What to say when the member is not in the roster any more.
    #[must_use]
    pub fn left(&self) -> String {
        let Some(Bearer { ticket, maker }) = &self.ticket else {
            return format!("{} is no longer in the roster", self.name);
        };
        let (name, maker) = (&ticket.name, &maker.name);
        match ticket.state() {
            tickets::State::Expired => {
                format!("the ticket `{name}` has expired; ask {maker} for another one")
            }
            tickets::State::Revoked => format!("the ticket `{name}` was revoked; ask {maker}"),
            tickets::State::Live => {
                format!("the ticket `{name}` is of no use while {maker}, who made it, is not in the roster")
            }
        }
    }

    fn bearer(ticket: Arc<Ticket>, maker: &Arc<Member>) -> Self {
        let mut limits = maker.limits.clone();
        limits.max_jobs = limits.max_jobs.into_iter().chain(ticket.terms.jobs()).min();
        Self {
            name: format!("{} (ticket of {})", ticket.name, maker.name).into(),
            id: ticket.id.clone(),
            role: Role::Member,
            limits,
            settings: maker.settings.clone(),
            key_settings: Default::default(),
            groups: maker.groups.clone(),
            share_with: Default::default(),
            ticket: Some(Bearer { ticket, maker: maker.clone() }),
        }
    }
}

impl Roster {
    /// This roster with the holders of the tickets whose makers are in it.
    fn with_bearers(&self, live: Vec<Arc<Ticket>>) -> Self {
        let bearer = |ticket: Arc<Ticket>| {
            let maker = self.by_id(&ticket.maker)?;
            Some((ticket.id.clone(), Arc::new(Member::bearer(ticket, maker))))
        };
        Self { bearers: live.into_iter().filter_map(bearer).collect(), ..self.clone() }
    }
}

/// The rosters of `listed`, with the holders of the tickets that are live at each moment.
#[must_use]
pub fn with_tickets(
    mut listed: watch::Receiver<Arc<Roster>>,
    tickets: Tickets,
) -> watch::Receiver<Arc<Roster>> {
    let mut changes = tickets.changes();
    let mut next_end = None;
    let first = combined(&mut listed, &mut changes, &tickets, &mut next_end);
    let (sender, receiver) = watch::channel(first);
    let (alive, ended) = oneshot::channel();
    tokio::spawn(flush_every_few_seconds(tickets.clone(), ended));
    tokio::spawn(async move {
        let _alive: oneshot::Sender<()> = alive;
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let changed = tokio::select! {
                changed = listed.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                _ = changes.changed() => {
                    tokio::time::sleep(BETWEEN_CHANGES).await;
                    true
                }
                () = sender.closed() => return,
                _ = ticks.tick() => next_end.is_some_and(|end| date::now() >= end),
            };
            if changed {
                sender.send_replace(combined(&mut listed, &mut changes, &tickets, &mut next_end));
            }
        }
    });
    receiver
}

/// The roster of this moment. `next_end`: when the next of its tickets expires.
fn combined(
    listed: &mut watch::Receiver<Arc<Roster>>,
    changes: &mut watch::Receiver<u64>,
    tickets: &Tickets,
    next_end: &mut Option<u64>,
) -> Arc<Roster> {
    // Marked as seen first: a change that comes meanwhile leads to another roster.
    changes.mark_unchanged();
    let listed = listed.borrow_and_update().clone();
    let live = tickets.live();
    *next_end = live.iter().map(|ticket| ticket.terms.expires).min();
    if live.is_empty() { listed } else { Arc::new(listed.with_bearers(live)) }
}

/// A task of its own: a disk that hangs must not keep a change of the roster back.
async fn flush_every_few_seconds(tickets: Tickets, mut ended: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(FLUSH) => flush(&tickets).await,
            _ = &mut ended => return,
        }
    }
}

async fn flush(tickets: &Tickets) {
    let tickets = tickets.clone();
    match tokio::task::spawn_blocking(move || tickets.flush()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(error, "what was used of tickets cannot be written; it is tried again")
        }
        Err(error) => tracing::error!(%error, "writing what was used of tickets was lost"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tickets::{New, Scope, Terms};

    use super::*;

    fn roster(ids: &[(&str, &str)]) -> Arc<Roster> {
        let member = |(name, id): &(&str, &str)| {
            let member = Member {
                id: (*id).into(),
                role: Role::Maintainer,
                share_with: [Arc::from("bob")].into(),
                ..Member::named(name)
            };
            (member.name.clone(), Arc::new(member))
        };
        let by_name: BTreeMap<_, _> = ids.iter().map(member).collect();
        Arc::new(Roster { by_name: Arc::new(by_name), ..Roster::default() })
    }

    fn ticket(tickets: &Tickets, expires: u64) -> Arc<Ticket> {
        let terms = Terms {
            expires,
            uses: None,
            max_build_seconds: None,
            max_upload_bytes: None,
            max_jobs: Some(2),
            scope: Scope::Build,
            bind_key: None,
        };
        let name = format!("friend-{expires}");
        let new = New { name, maker: "alice".into(), terms, revealable: false, most: 9 };
        tickets.make(new).expect("made").0
    }

    /// Waits for the roster in which this is so.
    async fn until(roster: &mut watch::Receiver<Arc<Roster>>, is_so: impl Fn(&Roster) -> bool) {
        let waiting = roster.wait_for(|roster| is_so(roster));
        drop(
            tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time").expect("followed"),
        );
    }

    #[tokio::test]
    async fn a_holder_is_in_the_roster_while_ticket_and_maker_are() {
        let tickets = Tickets::in_memory();
        let (sender, listed) = watch::channel(roster(&[("alice", "alice"), ("bob", "bob")]));
        let mut followed = with_tickets(listed, tickets.clone());
        let first = ticket(&tickets, date::now() + 3600);
        let id = first.id.clone();
        until(&mut followed, |roster| roster.by_id(&id).is_some()).await;
        let now = followed.borrow().clone();
        let holder = now.by_id(&id).expect("found above");
        assert_eq!(
            (holder.role, holder.limits.max_jobs, &*holder.payer().id),
            (Role::Member, Some(2), "alice")
        );
        assert!(now.current(holder).is_some() && now.ids_sharing_with(holder).is_empty());
        // By name nobody is a holder: members are.
        assert!(!now.contains(&holder.name) && !now.contains("friend"));

        // Another person under the name of the maker is another maker.
        sender.send_replace(roster(&[("alice", "alice~2"), ("bob", "bob")]));
        until(&mut followed, |roster| roster.by_id("alice~2").is_some()).await;
        assert!(followed.borrow().by_id(&id).is_none() && followed.borrow().current(holder).is_none());
        sender.send_replace(roster(&[("alice", "alice")]));
        until(&mut followed, |roster| roster.by_id(&id).is_some()).await;

        tickets.revoke(&first).expect("revoked");
        until(&mut followed, |roster| roster.by_id(&id).is_none()).await;
        assert!(holder.left().contains("was revoked"), "{}", holder.left());
        let short = ticket(&tickets, date::now() + 2);
        until(&mut followed, |roster| roster.by_id(&short.id).is_some()).await;
        until(&mut followed, |roster| roster.by_id(&short.id).is_none()).await;
        assert_eq!(short.state(), tickets::State::Expired);
    }
}
