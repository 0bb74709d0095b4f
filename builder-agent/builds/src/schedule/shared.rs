//! The data that all runs share, and the current limits from the roster and the configuration.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandbox::{Cancel, Limits};
use store::View;

use super::Parts;
use super::admit::{Group, Level, Owner, Size, Terms};
use super::place::{Place, Snapshots};
use super::queue::Queue;
use super::request::Request;
use super::share::{Table, Waiter};
use crate::drain::Drain;
use crate::limits::{Origins, RunLimits};
use crate::{Envelope, Failure, monthly};
use members::{Effective, Member, SetBy};
use settings::Config;

pub(super) struct Shared {
    pub parts: Parts,
    pub place: Arc<dyn Place>,
    pub snapshots: Snapshots,
    pub queue: Arc<Queue>,
    pub drain: Drain,
    pub running: Table,
    /// Of the runs that were written down. A run that is cancelled after that is in no table, and waits all the same.
    pub written: Mutex<Vec<Cancel>>,
    pub next_id: AtomicU64,
}

impl Shared {
    /// The member's current entry in the roster; `None` once they have left.
    pub fn current(&self, member: &Member) -> Option<Arc<Member>> {
        self.parts.roster.borrow().current(member).cloned()
    }

    /// The member who asks, with the current entry if there is still one.
    pub fn requester(&self, request: &Request) -> Arc<Member> {
        self.current(&request.member).unwrap_or_else(|| request.member.clone())
    }

    /// Who owns the run of this request: its member, with current terms, and the key of its session. Keys have no terms of
    /// their own, and share what their member gets.
    pub fn owner_of(&self, request: &Request) -> Owner {
        let mut owner = self.owner_now(&request.member);
        if let (Some(part), None) = (&request.principal.with, &request.member.ticket) {
            owner.key.name = part.name.clone();
        }
        owner
    }

    /// The member as the owner of runs, with current terms. Who has left the roster is in no group: an old entry would
    /// bring back the old slots of a group for its other members.
    pub fn owner_now(&self, member: &Member) -> Owner {
        let payer = self.current(member.payer());
        match (self.current(member), payer) {
            (Some(now), _) => self.owner(&now),
            // A ticket that has ended: its maker has the maker's terms all the same.
            (None, Some(payer)) => Owner { key: self.owner(member).key, ..self.owner(&payer) },
            (None, None) => Owner { groups: Vec::new(), ..self.owner(member) },
        }
    }

    /// A member with a current entry as the owner of runs. The roster names no weights. A ticket is a key of its maker: its
    /// runs are in the maker's share and slots.
    pub fn owner(&self, member: &Member) -> Owner {
        let ticket = member.ticket.as_ref();
        let key = ticket.map(|bearer| {
            let jobs = bearer.ticket.terms.jobs().map_or(usize::MAX, |jobs| jobs as usize);
            Level::new(&member.id, Terms::slots(jobs))
        });
        let member = member.payer();
        let most = self.parts.config.limits.max_jobs_per_member;
        let slots = member.limits.max_jobs.map_or(most, |own| own as usize).clamp(1, most);
        let limited = |group: &Arc<members::Group>| {
            let limits = &group.limits;
            let slots = limits.max_jobs.map_or(usize::MAX, |jobs| jobs as usize);
            let vcpus = limits.max_cpus.map_or(u32::MAX, u32::from);
            let most = Size { vcpus, memory_mib: limits.max_memory_mib.unwrap_or(u32::MAX) };
            let is_limited = slots != usize::MAX || most != Size::ALL;
            is_limited.then(|| Group { name: group.name.as_str().into(), slots, most })
        };
        let groups = member.groups.iter().filter_map(limited).collect();
        // In slots of the box, whatever the roster says of the number: else one large build could be all that the member may
        // not have as small ones.
        let most = size_of(&Envelope::of_box(&self.parts.config)).times(most);
        let terms = Terms { most, ..Terms::slots(slots) };
        let owner = Owner { groups, ..Owner::member(&member.id, terms) };
        Owner { key: key.unwrap_or_else(|| owner.key.clone()), ..owner }
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
        // Both from one roster: the sum of a group is that of its members in the same one.
        let roster = self.parts.roster.borrow().clone();
        let member = roster.current(&request.member).unwrap_or(&request.member);
        let (ledger, config) = (&self.parts.ledger, &self.parts.config);
        monthly::refusal(ledger, config, &roster, member, &request.recipe.drv_path)
    }

    /// The limits of a build of this request if it starts now.
    pub fn limits(&self, request: &Request) -> RunLimits {
        let now = self.requester(request);
        limits(&self.parts.config, &now, request)
    }
}

/// What a build in this envelope takes of the box.
pub(super) fn size_of(envelope: &Envelope) -> Size {
    Size { vcpus: envelope.vcpus.into(), memory_mib: envelope.memory_mib }
}

/// The request's envelope, and the tightest of the box's, the member's and the client's limits that can only end a build.
fn limits(config: &Config, member: &Member, request: &Request) -> RunLimits {
    let (of_box, own, size) = (&config.limits, &member.limits, request.envelope);
    let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    // One of the levels of settings is the box.
    let below = |asked: Option<Duration>, of_box: Duration| asked.filter(|asked| *asked < of_box);
    let wall = Effective::of_box("limits.max-build-seconds", of_box.max_build)
        .and(seconds(own.max_build_seconds), SetBy::Member("max-build-seconds"))
        .and(below(request.wall, of_box.max_build), SetBy::Client("timeout"));
    let silent = Effective::of_box("limits.max-silent-seconds", of_box.max_silent)
        .and(seconds(own.max_silent_seconds), SetBy::Member("max-silent-seconds"))
        .and(below(request.silent, of_box.max_silent), SetBy::Client("max-silent-time"));
    let log = Effective::of_box("limits.max-log-mib", of_box.max_log_bytes)
        .and(request.log, SetBy::Client("max-log-size"));
    let output = Effective::of_box("limits.max-output-mib", of_box.max_output_bytes)
        .and(own.max_output_mib.map(|mib| mib << 20), SetBy::Member("max-output-mib"));
    RunLimits {
        of_sandbox: Limits {
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            wall: Some(wall.value),
            silent: Some(silent.value),
            log_bytes: log.value,
            output_bytes: output.value,
            processes: size.processes,
        },
        set_by: Origins {
            memory: request.memory_set_by.clone(),
            wall: wall.set_by,
            silent: silent.set_by,
            log: log.set_by,
            output: output.set_by,
        },
    }
}
