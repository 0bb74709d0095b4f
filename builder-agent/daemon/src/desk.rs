//! The resources of one session: its member's threads and budget, and the objects that it reads.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use super::agent::Agent;
use super::opened::Opened;
use super::upload_limit::UploadLimits;
use members::Member;
use settings::Limits;
use shares::budget::{Budget, Charge, OverBudget};
use shares::pace::Pace;
use shares::threads::Workers;
use store::{ImportError, Leave, Store};

/// Memory of a session without requests: the data that waits for it in its channel (`ssh`), the buffers of its
/// connection in both directions, and its tasks.
pub const SESSION_BYTES: u64 = 640 << 10;

/// The resources that all requests of one session share.
#[derive(Clone, Debug)]
pub(super) struct Desk {
    pub workers: Workers,
    pub budget: Budget,
    pub opened: Opened,
    pub uploads: UploadLimits,
    /// Slows uploads down when the store is nearly full.
    pub pace: Pace,
    pub room: Room,
}

/// Asks the store for room for an upload of one member.
#[derive(Clone)]
pub(super) struct Room(Arc<dyn Fn(u64, u64) -> Asking + Send + Sync>);

type Asking = Pin<Box<dyn Future<Output = Result<Leave, ImportError>> + Send>>;

impl Room {
    /// `payer`: an identity.
    pub fn of(store: &Store, payer: &str) -> Self {
        let (store, payer) = (store.clone(), store::Member::new(payer));
        Self::asking(move |bytes, objects| Box::pin(store.room_for(&payer, bytes, objects)))
    }

    pub fn asking(ask: impl Fn(u64, u64) -> Asking + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// Waits, without a thread, until there is room for so many bytes in so many objects.
    pub async fn wait(&self, bytes: u64, objects: usize) -> Result<Leave, ImportError> {
        (self.0)(bytes, objects as u64).await
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Room")
    }
}

impl Desk {
    /// The holder of a ticket has a part of what its maker has.
    pub fn of(agent: &Agent, member: &Arc<Member>) -> Self {
        let (roster, of_box) = (agent.roster.clone(), agent.config.limits.max_nar_bytes);
        let payer = &member.payer().id;
        Self {
            workers: agent.threads.of(payer),
            budget: agent.budgets.of(payer),
            opened: agent.opened.clone(),
            uploads: UploadLimits::new(member.clone(), roster, of_box),
            pace: agent.paces.of(payer),
            room: Room::of(&agent.store, payer),
        }
    }

    /// The charge for a new session.
    pub fn session(&self) -> Result<Charge, OverBudget> {
        self.budget.charge(SESSION_BYTES, "a session")
    }

    /// The limits for a connection of this member.
    pub fn terms(&self, limits: &Limits) -> Result<wire::Terms, OverBudget> {
        let arguments = Arguments(Mutex::new(self.budget.charge(0, "this request")?));
        Ok(wire::Terms {
            max_body_bytes: limits.max_nar_bytes,
            stall: Some(limits.client_stall),
            meter: Some(Arc::new(arguments)),
        })
    }
}

/// The charge for the arguments of the current request.
#[derive(Debug)]
struct Arguments(Mutex<Charge>);

impl wire::Meter for Arguments {
    fn takes(&self, bytes: u64) -> Result<(), String> {
        let mut charge = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        charge.set(bytes).map_err(|over| over.to_string())
    }
}
