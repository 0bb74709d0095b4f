//! Another program takes over from this one, in the same process: the runs that have started are paused and written down, and
//! go on there. `docs/design/restart.md` describes the whole.
//!
//! Runs that wait for a slot are not written down: their clients ask again. While this process waits for its runs to be
//! paused, nothing starts; nobody who holds a lock waits. Not here: who takes over, and when clients are told (the agent),
//! and how a sandbox is paused (crate `sandbox`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use members::{Member, Roster};
use sandbox::{Cancel, Moment, Paused, Received};
use serde::{Deserialize, Serialize};
use shares::budget::Budgets;
use store::{Closure, Store};
use tokio_util::sync::CancellationToken;

use super::Embedded;
use super::admit::{Asked, RunId};
use super::charges::{Owners, WrittenOwners};
use super::request::{Held, Request};
use super::run::{self, Account, Started};
use super::share::{self, RunKey, Running, Waiter};
use super::shared::{Shared, size_of};
use super::tickets::{Permit, WrittenPermit};
use crate::attempt::TakenOver;
use crate::limits::Origins;
use crate::reuse::Known;
use crate::written::{WrittenInputs, WrittenLimits, WrittenPrincipal, WrittenRecipe};
use crate::{BuildKey, Envelope, SandboxIdentity};

/// Pause between two looks at the runs that are still to be paused.
const GLANCE: Duration = Duration::from_millis(20);

/// All runs of a scheduler that go on elsewhere.
#[derive(Debug, Serialize, Deserialize)]
pub struct WrittenRuns {
    next_id: u64,
    runs: Vec<WrittenRun>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenRun {
    id: RunId,
    key: BuildKey,
    check: bool,
    accepted: Moment,
    begun: Moment,
    start_time: i64,
    waited: Duration,
    owner: WrittenRequest,
    /// Identity of the member whose slot it has.
    charged: String,
    owners: WrittenOwners,
    limits: WrittenLimits,
    permit: WrittenPermit,
    log: RawFd,
    paused: Paused,
}

/// The request that owns a run. What it asked for before the run was started, and was decided then, is not here.
#[derive(Debug, Serialize, Deserialize)]
struct WrittenRequest {
    /// Identity and name.
    member: (String, String),
    principal: WrittenPrincipal,
    recipe: WrittenRecipe,
    inputs: WrittenInputs,
    envelope: Envelope,
    /// Whether it counts as one of those that came one by one.
    alone: bool,
    /// Bytes that are charged to the memory of its member.
    memory: u64,
}

/// Why not all runs are paused. The text is for whoever wants to replace the agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} of the builds ({}) cannot be passed on at this moment: they are being started, send their outputs, or download; \
     nothing was changed, so try again later",
    .0.len(), .0.iter().map(|id| format!("build {id}")).collect::<Vec<_>>().join(", ")
)]
pub struct NotPaused(pub Vec<RunId>);

impl WrittenRuns {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The descriptors that belong to the runs.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let mut all: Vec<RawFd> =
            self.runs.iter().flat_map(|run| run.paused.descriptors().into_iter().chain([run.log])).collect();
        // Several namespace sandboxes share one.
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Takes the inputs of all runs from the store, before anything can remove them. `None` for those that are not there.
    pub fn hold_inputs(&mut self, store: &Store) -> BTreeMap<RunId, io::Result<Closure>> {
        let taken = self.runs.iter_mut().map(|run| {
            let inputs = std::mem::replace(&mut run.owner.inputs, WrittenInputs::none());
            (run.id, inputs.snapshot(store, &run.owner.member.0))
        });
        taken.collect()
    }
}

impl Embedded {
    /// Starts no runs from now on, and waits until every started one is paused or has ended. If that takes longer than
    /// `patience`, all go on as before.
    pub async fn pause(&self, patience: Duration) -> Result<(), NotPaused> {
        let shared = &self.shared;
        shared.queue.hold(true);
        let deadline = Instant::now() + patience;
        loop {
            let left = shared.not_paused();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.go_on();
                return Err(NotPaused(left));
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// The runs that have started, and have not ended.
    #[must_use]
    pub fn started(&self) -> BTreeSet<RunId> {
        let table = self.shared.running.lock();
        table.values().filter(|running| running.begun.borrow().is_some()).map(|running| running.id).collect()
    }

    /// From now on started runs go on when their clients leave.
    pub fn let_runs_stay(&self) {
        self.shared.running.let_runs_stay(true);
    }

    /// Nobody takes over: everything is as before [`Embedded::pause`]. Runs whose clients have left meanwhile go on.
    pub fn go_on(&self) {
        let shared = &self.shared;
        let written = std::mem::take(&mut *shared.written());
        written.iter().for_each(Cancel::go_on);
        shared.running.lock().values().for_each(|running| running.cancel.go_on());
        shared.running.let_runs_stay(false);
        shared.queue.hold(false);
    }

    /// All paused runs. They wait until [`Embedded::go_on`], whatever happens.
    pub fn write_down(&self) -> Result<WrittenRuns, NotPaused> {
        let shared = &self.shared;
        let table = shared.running.lock();
        let mut runs = Vec::new();
        let started = table.iter().filter(|(_, running)| running.begun.borrow().is_some());
        for (key, running) in started {
            // A run that was cancelled a moment ago has to end first.
            let paused = running.cancel.take_paused();
            shared.written().extend(paused.is_some().then(|| running.cancel.clone()));
            let written = paused.and_then(|paused| running.written(key.1, paused));
            runs.push(written.ok_or_else(|| NotPaused(vec![running.id]))?);
        }
        let others = shared.snapshots.runs().into_iter().filter(|id| runs.iter().all(|run| run.id != *id));
        match others.collect::<Vec<_>>() {
            others if others.is_empty() => {
                // Their clients have left, and want the build all the same.
                for left in
                    table.values().filter(|run| run.begun.borrow().is_none() && run.waiters.is_empty())
                {
                    left.is_not_passed_on();
                }
                Ok(WrittenRuns { next_id: shared.next_id.load(Ordering::Relaxed), runs })
            }
            others => Err(NotPaused(others)),
        }
    }
}

impl Shared {
    fn written(&self) -> MutexGuard<'_, Vec<Cancel>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks all started runs to pause. Returns those that have not yet; a run that was cancelled counts until its sandbox is
    /// gone.
    fn not_paused(&self) -> Vec<RunId> {
        let table = self.running.lock();
        let mut paused = Vec::new();
        let mut left: Vec<RunId> = Vec::new();
        for running in table.values() {
            if self.queue.kept_by(running.id).is_some() {
                continue;
            }
            running.cancel.ask_to_pause();
            let list = if running.cancel.is_paused() { &mut paused } else { &mut left };
            list.push(running.id);
        }
        drop(table);
        let with_sandbox = self.snapshots.runs().into_iter();
        left.extend(with_sandbox.filter(|id| !paused.contains(id)));
        left.sort_unstable();
        left.dedup();
        left
    }
}

impl Running {
    fn is_not_passed_on(&self) {
        let owner = self.owner.borrow();
        let request = owner.as_ref().map(|owner| &owner.request);
        let member = request.map(|request| request.member.name.to_string());
        let drv = request.map(|request| request.recipe.drv_path.to_absolute_path());
        tracing::warn!(build = self.id, member, drv, "a build that waits for a slot is not passed on");
    }

    /// `None` if the run has lost its owner, or is not started.
    fn written(&self, check: bool, paused: Paused) -> Option<WrittenRun> {
        let owner = self.owner.borrow().clone()?;
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let account = progress.as_ref()?;
        let begun = (*self.begun.borrow())?;
        Some(WrittenRun {
            id: self.id,
            key: self.recorded,
            check,
            accepted: Moment::of(self.accepted),
            begun: Moment::of(begun),
            start_time: account.start_time,
            waited: account.waited,
            owner: WrittenRequest::of(&owner),
            charged: account.charged.id.to_string(),
            owners: account.owners.written_down(),
            limits: (&account.permit.limits).into(),
            permit: account.permit.written_down(),
            log: self.log.file().as_raw_fd(),
            paused,
        })
    }
}

impl WrittenRequest {
    fn of(waiter: &Waiter) -> Self {
        let Waiter { request, held, .. } = waiter;
        Self {
            member: (request.member.id.to_string(), request.member.name.to_string()),
            principal: (&request.principal).into(),
            recipe: WrittenRecipe::of(&request.recipe),
            inputs: WrittenInputs::of(&request.inputs),
            envelope: request.envelope,
            alone: request.asked() == Asked::Alone,
            memory: held.memory.bytes(),
        }
    }
}

/// How many runs of an earlier program go on, and how many could not be taken over and have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    pub builds: usize,
    pub lost: usize,
}

/// What a scheduler needs to go on with the runs of an earlier program.
pub struct Heir<'a> {
    pub received: &'a mut Received,
    /// See [`WrittenRuns::hold_inputs`].
    pub inputs: BTreeMap<RunId, io::Result<Closure>>,
    pub budgets: &'a Budgets,
    pub identity: SandboxIdentity,
}

impl Embedded {
    /// Goes on with these runs. Those of members who have left the roster end, and so do those whose inputs or sandboxes are
    /// not there. Blocks, and needs the async runtime.
    pub fn take_over(&self, written: WrittenRuns, mut heir: Heir<'_>) -> Taken {
        let shared = &self.shared;
        shared.next_id.fetch_max(written.next_id, Ordering::Relaxed);
        let roster = shared.parts.roster.borrow().clone();
        let mut taken = Taken::default();
        for run in written.runs {
            let (id, drv) = (run.id, run.owner.recipe.drv_path().to_owned());
            // A bug with one of them must not cost the others.
            let taking = AssertUnwindSafe(|| self.take_one_over(run, &roster, &mut heir));
            let panicked = |_| Err(io::Error::other("taking it panicked; this is a bug"));
            match catch_unwind(taking).unwrap_or_else(panicked) {
                Ok(()) => taken.builds += 1,
                Err(error) => {
                    taken.lost += 1;
                    tracing::error!(build = id, drv, %error, "a build cannot be taken over; it has ended");
                }
            }
        }
        // Also for a change of the roster that came before this program followed it.
        let now = shared.parts.roster.borrow().clone();
        shared.running.retain(&|member| now.current(member).is_some());
        taken
    }

    fn take_one_over(&self, written: WrittenRun, roster: &Roster, heir: &mut Heir<'_>) -> io::Result<()> {
        let WrittenRun { id, key, check, accepted, begun, owner, charged, owners, .. } = written;
        // First of all: from here on the sandbox ends with whatever goes wrong.
        let (paused, log, source) = TakenOver::claim(written.paused, written.log, heir.received)?;
        let missing = || io::Error::other("its inputs were not looked for");
        let inputs = heir.inputs.remove(&id).unwrap_or_else(|| Err(missing()))?;
        let waiter = Arc::new(self.waiter(owner, (key, check), inputs, roster, heir.budgets)?);
        let request = &waiter.request;
        let shared = &self.shared;

        let charged = roster.by_id(&charged).cloned().unwrap_or_else(|| request.member.clone());
        let (alone, size) = (request.alone, size_of(&request.envelope));
        // The slot may be that of an earlier owner, whose key is not known any more.
        let whose = || match charged.id == request.member.id {
            true => shared.owner_of(request),
            false => shared.owner_now(&charged),
        };
        let turn = shared.queue.goes_on(id, whose, alone, size);
        let account = Account {
            start_time: written.start_time,
            waited: written.waited,
            owners: Owners::taken_over(owners),
            charged,
            permit: Permit::taken_over(written.permit, written.limits.into(), roster),
        };
        let started = Started { waiter: waiter.clone(), turn, account };

        // A client that asks again has the key of this version of the box.
        let asked = BuildKey::of(&request.recipe, &request.inputs, heir.identity, &request.envelope);
        let mut table = shared.running.lock();
        let listed = [(asked, check), (key, check)].into_iter().find(|key| !table.contains_key(key));
        let listed = listed.ok_or_else(|| io::Error::other("it is there already"))?;
        let (accepted, begun) = (accepted.instant(), Some(begun.instant()));
        let (run, running) = share::listed(id, (listed, key), accepted, begun, waiter.clone(), source);
        table.insert(listed, running);
        drop(table);
        tokio::spawn(run::go_on(shared.clone(), run, started, paused, log));
        Ok(())
    }

    /// The request that owns a run. A member who has left the roster is in it only until the run has ended, which is soon.
    fn waiter(
        &self,
        written: WrittenRequest,
        (key, check): RunKey,
        inputs: Closure,
        roster: &Roster,
        budgets: &Budgets,
    ) -> io::Result<Waiter> {
        let (id, name) = &written.member;
        let member = roster.by_id(id).cloned();
        let member =
            member.unwrap_or_else(|| Arc::new(Member { id: id.as_str().into(), ..Member::named(name) }));
        let budget = budgets.of(&member.id);
        let what = "this build";
        // The memory is taken, whatever the budget says by now.
        let memory = budget.charge(written.memory, what).or_else(|_| budget.charge(0, what));
        let request = Request {
            principal: written.principal.into(),
            recipe: Arc::new(written.recipe.read()?),
            inputs: inputs.info().clone(),
            envelope: written.envelope,
            key,
            known: Known::default(),
            check,
            before: 0,
            alone: written.alone,
            wall: None,
            silent: None,
            log: None,
            keep_running: true,
            priority: 0,
            tags: Vec::new(),
            paid: false,
            memory_set_by: Origins::default().memory,
            member,
        };
        let view = roster.view_of(&self.shared.parts.store, &request.member);
        let memory = memory.map_err(io::Error::other)?;
        let held = Arc::new(Held { view, inputs: Arc::new(inputs), memory });
        Ok(Waiter { request, held, cancelled: CancellationToken::new() })
    }
}
