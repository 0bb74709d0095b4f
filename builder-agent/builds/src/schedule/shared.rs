//! The data that all runs share, and the current limits from the roster and the configuration.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use sandbox::Limits;
use store::View;

use super::Parts;
use super::admit::{Group, Owner, Size, Terms};
use super::place::{Place, Snapshots};
use super::queue::Queue;
use super::request::Request;
use super::share::{Table, Waiter};
use crate::{Envelope, Failure, monthly};
use members::Member;
use settings::Config;

pub(super) struct Shared {
    pub parts: Parts,
    pub place: Arc<dyn Place>,
    pub snapshots: Snapshots,
    pub queue: Arc<Queue>,
    pub running: Table,
    pub next_id: AtomicU64,
}

impl Shared {
    /// The member's current entry in the roster; `None` once they have left.
    pub fn current(&self, member: &Member) -> Option<Arc<Member>> {
        self.parts.roster.borrow().current(member).cloned()
    }

    /// The member who asks, with the current entry if there is still one.
    fn requester(&self, request: &Request) -> Arc<Member> {
        self.current(&request.member).unwrap_or_else(|| request.member.clone())
    }

    /// The member as the owner of runs, with current terms. Who has left the roster is in no group: an old entry would
    /// bring back the old slots of a group for its other members.
    pub fn owner_now(&self, member: &Member) -> Owner {
        match self.current(member) {
            Some(now) => self.owner(&now),
            None => Owner { groups: Vec::new(), ..self.owner(member) },
        }
    }

    /// A member with a current entry as the owner of runs. The roster names no weights, and a request does not say with
    /// which key its member logged in.
    pub fn owner(&self, member: &Member) -> Owner {
        let most = self.parts.config.limits.max_jobs_per_member;
        let slots = member.limits.max_jobs.map_or(most, |own| own as usize).clamp(1, most);
        let limited = |group: &Arc<members::Group>| {
            let slots = group.limits.max_jobs? as usize;
            Some(Group { name: group.name.as_str().into(), slots })
        };
        let groups = member.groups.iter().filter_map(limited).collect();
        Owner { groups, ..Owner::member(&member.id, Terms::slots(slots)) }
    }

    /// The current view of the member who asked. The request may have waited, and then built, for hours.
    pub fn view_of(&self, waiter: &Waiter) -> View {
        self.parts
            .roster
            .borrow()
            .view_of(&self.parts.store, &waiter.request.member)
            .holding_as(&waiter.held.view)
    }

    /// The refusal of a run that this request would start now, if its member has used up the month's processor time.
    pub fn month_is_over(&self, request: &Request) -> Option<Failure> {
        let member = self.requester(request);
        monthly::refusal(&self.parts.ledger, &self.parts.config, &member, &request.recipe.drv_path)
    }

    /// The limits of a build of this request if it starts now.
    pub fn limits(&self, request: &Request) -> Limits {
        let now = self.requester(request);
        limits(&self.parts.config, &now, request)
    }
}

/// What a build in this envelope takes of the box.
pub(super) fn size_of(envelope: &Envelope) -> Size {
    Size { vcpus: envelope.vcpus.into(), memory_mib: envelope.memory_mib }
}

/// The request's envelope, and the tightest of the box's, the member's and the client's limits that can only end a build.
fn limits(config: &Config, member: &Member, request: &Request) -> Limits {
    let (of_box, own, size) = (&config.limits, &member.limits, request.envelope);
    let tighter =
        |ceiling: Duration, asked: Option<Duration>| asked.map_or(ceiling, |asked| asked.min(ceiling));
    let wall = tighter(of_box.max_build, own.max_build_seconds.map(Duration::from_secs));
    Limits {
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        wall: Some(tighter(wall, request.wall)),
        silent: Some(tighter(of_box.max_silent, request.silent)),
        log_bytes: of_box.max_log_bytes.min(request.log.unwrap_or(u64::MAX)),
        output_bytes: of_box.max_output_bytes,
        processes: size.processes,
    }
}
