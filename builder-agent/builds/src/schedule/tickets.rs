//! Runs of holders of tickets: a use is spent when a run starts, and given back if the box was at fault.
//!
//! The ticket of the member for whom a run starts pays for the whole run, also if the run gets another owner meanwhile: else
//! a holder could start a run with one ticket, and take it over with another. Joining a run, and a result that exists, cost
//! nothing; so does a run that is started again with more memory, which gives the use back if the box was at fault. Not here: what a ticket has left (`tickets`), and whose share
//! its runs are in (`shared`).

use std::time::Duration;

use ::tickets::{NotSpent, Spent, SpentBefore};
use nix::BuildStatus;
use nix_derivation::StorePath;
use sandbox::Moment;
use serde::{Deserialize, Serialize};

use super::request::Request;
use super::shared::Shared;
use crate::Failure;
use crate::failure::{Cause, Limit};
use crate::limits::RunLimits;
use members::Roster;

/// The permission for a run that starts.
pub(super) struct Permit {
    pub limits: RunLimits,
    spent: Option<Spent>,
    /// Whether the time limit of the run is that of a ticket.
    tight: bool,
}

impl Shared {
    /// The refusal of a run that this request would start now, if its member acts with a ticket that has nothing left.
    pub fn ticket_is_over(&self, request: &Request) -> Option<Failure> {
        let ticket = &request.member.ticket.as_ref()?.ticket;
        let over = if request.paid { ticket.over_again() } else { ticket.over() }?;
        Some(refused(&request.recipe.drv_path, &over.to_string()))
    }

    /// Asked again when the turn of a run comes, because other builds of the member may have ended while it waited.
    pub async fn permit(&self, request: &Request) -> Result<Permit, Failure> {
        if let Some(failure) = self.month_is_over(request) {
            return Err(failure);
        }
        let mut limits = self.limits(request);
        let Some(bearer) = &request.member.ticket else {
            return Ok(Permit { limits, spent: None, tight: false });
        };
        let (ticket, longest) = (bearer.ticket.clone(), limits.of_sandbox.wall.unwrap_or(Duration::MAX));
        let paid = request.paid;
        let spending = self.parts.threads.of(&bearer.maker.id).commit(move || match paid {
            true => ticket.spend_time(longest),
            false => ticket.spend(longest),
        });
        let drv = request.recipe.drv_path.to_absolute_path();
        let spent = match spending.await {
            Ok(Ok(spent)) => spent,
            Ok(Err(NotSpent::Over(over))) => {
                return Err(refused(&request.recipe.drv_path, &over.to_string()));
            }
            Ok(Err(error @ NotSpent::File(_))) => {
                tracing::error!(%error, "a use of a ticket cannot be written down");
                return Err(Failure::transient(format!("'{drv}' is not built: {error}; try again later")));
            }
            Err(lost) => {
                return Err(Failure::transient(format!("'{drv}' is not built because of the box: {lost}")));
            }
        };
        let tighter = spent.limit_below(limits.of_sandbox.wall);
        limits.of_sandbox.wall = tighter.or(limits.of_sandbox.wall);
        Ok(Permit { limits, spent: Some(spent), tight: tighter.is_some() })
    }
}

/// The permission of a run that another program goes on with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenPermit {
    /// The identity of the ticket's holder, who need not own the run any more.
    holder: Option<String>,
    /// When the use of the ticket was spent, the ticket's limit, and what the use has reserved.
    spent: Option<(Moment, Option<Duration>, Duration)>,
    tight: bool,
}

impl Permit {
    pub fn written_down(&self) -> WrittenPermit {
        let holder = self.spent.as_ref().map(|spent| spent.holder().to_string());
        let spent = self.spent.as_ref().map(Spent::before);
        let spent = spent.map(|spent| (Moment::of(spent.since), spent.limit, spent.reserved));
        WrittenPermit { holder, spent, tight: self.tight }
    }

    /// The ticket that paid goes on paying, whoever owns the run by now. One that has ended needs no account any more.
    pub fn taken_over(written: WrittenPermit, limits: RunLimits, roster: &Roster) -> Self {
        let holder = written.holder.and_then(|holder| roster.by_id(&holder));
        let spent = written.spent.zip(holder.and_then(|holder| holder.ticket.as_ref()));
        let spent = spent.map(|((since, limit, reserved), bearer)| {
            bearer.ticket.spent_before(SpentBefore { since: since.instant(), limit, reserved })
        });
        Self { limits, tight: written.tight && spent.is_some(), spent }
    }

    /// The run has ended. Says so in the words of the ticket if it was the ticket's limit that ended it.
    pub fn end<T>(self, drv: &StorePath, cpu: Duration, result: Result<T, Failure>) -> Result<T, Failure> {
        let Some(mut spent) = self.spent else { return result };
        spent.took(cpu);
        let Err(failure) = &result else { return result };
        match failure.cause {
            Cause::Box | Cause::Sandbox => spent.give_back(),
            Cause::Limit(Limit::Wall) if self.tight => {
                spent.take_all();
                let seconds = self.limits.of_sandbox.wall.unwrap_or_default().as_secs();
                let message = format!(
                    "building of '{}' timed out after {seconds} seconds, which was all that was left for it: {}",
                    drv.to_absolute_path(),
                    spent.over()
                );
                let failure = Failure::new(BuildStatus::TimedOut, message);
                return Err(failure.because(Cause::Limit(Limit::Ticket)));
            }
            _ => {}
        }
        result
    }
}

fn refused(drv: &StorePath, why: &str) -> Failure {
    let message = format!("'{}' is not built: {why}", drv.to_absolute_path());
    Failure::transient(message).because(Cause::Limit(Limit::Ticket))
}
