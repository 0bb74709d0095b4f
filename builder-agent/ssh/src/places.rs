//! Places of members: connections after the login, and sessions, counted for each member and for each group of the roster.
//!
//! A session is a channel whose command runs. A channel without a command is counted in its connection only (`handler`):
//! so a client that has reached the limit can still be told so, in answer to its command.
//! The limits are those of the roster at the moment when a place is asked for. Nothing that is open is closed when they
//! fall. Not here: places of strangers (`gate`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use members::{Effective, Group, Member, MemberLimits, Roster, SetBy};
use settings::Limits;

/// What takes a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connection,
    Session,
}

/// All places of one box that are taken.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// By the member's name. A member without places has no entry.
    taken: Mutex<HashMap<Arc<str>, Taken>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    connections: usize,
    sessions: usize,
}

/// One place. Dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    kind: Kind,
    name: Arc<str>,
}

impl Kind {
    pub fn words(self) -> &'static str {
        match self {
            Self::Connection => "connections",
            Self::Session => "sessions",
        }
    }

    /// The name of the limit in `roster.json`.
    pub fn limit(self) -> &'static str {
        match self {
            Self::Connection => "max-connections",
            Self::Session => "max-sessions",
        }
    }

    fn in_roster(self, limits: &MemberLimits) -> Option<usize> {
        let limit = match self {
            Self::Connection => limits.max_connections,
            Self::Session => limits.max_sessions,
        };
        limit.map(|limit| limit as usize)
    }

    /// How many one member can have.
    pub fn most(self, of_box: &Limits, own: &MemberLimits) -> Effective<usize> {
        let of_box = match self {
            Self::Connection => {
                Effective::of_box("limits.max-connections-per-member", of_box.max_connections_per_member)
            }
            Self::Session => {
                Effective::of_box("limits.max-sessions-per-member", of_box.max_sessions_per_member)
            }
        };
        of_box.and(self.in_roster(own), SetBy::Member(self.limit()))
    }
}

impl Taken {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Connection => &mut self.connections,
            Kind::Session => &mut self.sessions,
        }
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for `member`, who is from `roster`, or the message about the limit that is reached.
    pub fn take(
        self: &Arc<Self>,
        kind: Kind,
        of_box: &Limits,
        roster: &Roster,
        member: &Member,
    ) -> Result<Place, String> {
        let mut taken = self.lock();
        let most = kind.most(of_box, &member.limits);
        let own = taken.get_mut(&member.name).map_or(0, |taken| *taken.of(kind));
        if own >= most.value {
            return Err(refusal("you have", own, kind, &most.set_by));
        }
        for group in &member.groups {
            let Some(most) = kind.in_roster(&group.limits) else { continue };
            let together = together(&mut taken, kind, roster, group);
            if together >= most {
                let who = format!("the members of the group '{}' together have", group.name);
                let set_by = SetBy::Group { limit: kind.limit(), group: group.name.clone() };
                return Err(refusal(&who, together, kind, &set_by));
            }
        }
        *taken.entry(member.name.clone()).or_default().of(kind) += 1;
        Ok(Place { places: self.clone(), kind, name: member.name.clone() })
    }
}

/// The places of those who are members of this group now. There are no more entries than open connections.
fn together(taken: &mut HashMap<Arc<str>, Taken>, kind: Kind, roster: &Roster, group: &Arc<Group>) -> usize {
    let is_in = |name: &str| {
        roster.by_name(name).is_some_and(|member| member.groups.iter().any(|its| Arc::ptr_eq(its, group)))
    };
    taken.iter_mut().filter(|(name, _)| is_in(name)).map(|(_, taken)| *taken.of(kind)).sum()
}

fn refusal(who: &str, count: usize, kind: Kind, set_by: &SetBy) -> String {
    format!(
        "{who} {count} {} open already, which is the limit ({set_by}); close one and try again, or {}",
        kind.words(),
        set_by.ask()
    )
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        let Some(own) = taken.get_mut(&self.name) else { return };
        *own.of(self.kind) -= 1;
        if own.connections == 0 && own.sessions == 0 {
            taken.remove(&self.name);
        }
    }
}
