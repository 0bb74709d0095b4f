//! The data that all runs share, and the current limits from the roster and the configuration.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use sandbox::Limits;
use store::View;

use super::Parts;
use super::admit::{Owner, Size, Terms};
use super::place::{Place, Snapshots};
use super::queue::Queue;
use super::request::Request;
use super::share::{Table, Waiter};
use crate::Envelope;
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

    /// The member as the owner of runs, with current terms. The roster names no groups and no weights yet, and a request
    /// does not say with which key its member logged in.
    pub fn owner_now(&self, member: &Arc<Member>) -> Owner {
        let now = self.current(member).unwrap_or_else(|| member.clone());
        Owner::member(&member.id, self.terms(&now))
    }

    pub fn terms(&self, member: &Member) -> Terms {
        let most = self.parts.config.limits.max_jobs_per_member;
        Terms::slots(member.limits.max_jobs.map_or(most, |own| own as usize).clamp(1, most))
    }

    /// The current view of the member who asked. The request may have waited, and then built, for hours.
    pub fn view_of(&self, waiter: &Waiter) -> View {
        self.parts
            .roster
            .borrow()
            .view_of(&self.parts.store, &waiter.request.member)
            .holding_as(&waiter.held.view)
    }

    /// The limits of a build of this request if it starts now.
    pub fn limits(&self, request: &Request) -> Limits {
        let now = self.current(&request.member).unwrap_or_else(|| request.member.clone());
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
