//! Why a request's run has not started yet, for the client who waits.
//!
//! A run that another member started waits for a slot of that member, whose limits and groups are nobody else's
//! business. Not here: when a run starts (`admit`), and how often a client is told (`realise::follow`).

use std::sync::Arc;

use super::admit::{Full, RunId};
use super::{Attached, Shared};
use members::Member;

/// What a run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// As many builds run as the box has slots.
    Box { slots: usize },
    /// The member has as many running builds as the box allows one member.
    Member { slots: usize },
    /// The member has as many running builds as the roster allows them.
    Own { slots: usize },
    /// The members of this group have as many running builds as the roster allows them together.
    Group { name: Arc<str>, slots: usize },
    /// The running builds of this group have the processors or the memory that the roster allows them together.
    Size { name: Arc<str> },
    /// The member's running builds have the processors or the memory that the box allows one member.
    OwnSize { slots: usize },
    /// The running builds of all members take the processors or the memory that this run needs, or a larger run is next.
    Room,
    /// The run is another member's.
    Slot,
}

/// One request's wait for the start of its run.
pub struct Wait {
    shared: Arc<Shared>,
    run: RunId,
    member: Arc<Member>,
}

impl Attached {
    /// `member`: who made this request.
    pub fn wait(&self, member: &Arc<Member>) -> Wait {
        Wait { shared: self.hold.shared.clone(), run: self.hold.id, member: member.clone() }
    }
}

impl Wait {
    /// What the run waits for at this moment; `None` if it waits no more.
    pub fn why(&self) -> Option<Why> {
        let (full, charged) = self.shared.queue.kept_by(self.run)?;
        let limits = &self.shared.parts.config.limits;
        let of_box = Why::Box { slots: limits.max_jobs };
        match &full {
            Full::Box => return Some(of_box),
            Full::Room => return Some(Why::Room),
            _ => {}
        }
        if charged != self.member.id {
            return Some(Why::Slot);
        }
        let member = self.shared.current(&self.member).unwrap_or_else(|| self.member.clone());
        let most = limits.max_jobs_per_member;
        let own = member.limits.max_jobs.map(|own| own as usize).filter(|own| *own < most);
        Some(match full {
            Full::Group(name) => {
                let group = member.groups.iter().find(|group| *group.name == *name);
                let slots = group.and_then(|group| group.limits.max_jobs).unwrap_or_default() as usize;
                Why::Group { name, slots }
            }
            Full::Size(name) => Why::Size { name },
            // One member may have all slots.
            Full::Member if own.is_none() && most >= limits.max_jobs => of_box,
            Full::MemberSize if most >= limits.max_jobs => Why::Room,
            Full::MemberSize => Why::OwnSize { slots: most },
            Full::Key | Full::Member | Full::Box | Full::Room => {
                own.map_or(Why::Member { slots: most }, |slots| Why::Own { slots })
            }
        })
    }
}
