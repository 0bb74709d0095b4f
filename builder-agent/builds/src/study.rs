//! Limits on reading the derivations of a request before any of them is built: how much is read, and for how long.
//!
//! Reading happens on the host, outside of any build's slot and time limit, and the client decides how much there is to
//! read. So there is a limit on the text read for one request and on the memory that it keeps, and reading stops when
//! the client has left.

use std::cell::{Cell, RefCell};

use nix_derivation::StorePath;
use sandbox::Cancel;

use super::Failure;
use shares::budget::{Budget, Charge, OverBudget};
use shares::threads::Workers;

/// Text of derivations parsed for one request, in bytes. A NixOS system with everything from source has 20,000 of 3 KiB
/// each, and each is parsed up to three times: for substitutes, for its hash, and for the plan.
pub const MAX_PARSED: u64 = 1 << 30;
/// Text of the derivations that one request keeps parsed until all of it is built, in bytes; four times that example.
pub const MAX_KEPT: u64 = 256 << 20;

/// Memory that a plan keeps for a derivation besides its contents: its place in maps, and its result.
pub const KEPT_BESIDE: u64 = 2048;

/// The use of the memory, for messages.
const WHAT: &str = "the plan of this request";

/// The remaining limits of one request. Not shared between threads: a study is done on one.
#[derive(Debug, Default)]
pub struct Study {
    cancel: Cancel,
    parsed: Cell<u64>,
    kept: Cell<u64>,
    /// Whether the member's memory budget had no room.
    over_budget: Cell<bool>,
    /// The charge for kept memory, if a member's budget is charged.
    memory: RefCell<Option<Charge>>,
    budget: Option<Budget>,
}

impl Study {
    /// A study that ends soon after `cancel` is set.
    #[must_use]
    pub fn new(cancel: Cancel) -> Self {
        Self { cancel, ..Self::default() }
    }

    /// A study whose memory is also charged to this budget.
    pub fn charged(cancel: Cancel, budget: &Budget) -> Result<Self, OverBudget> {
        let charge = budget.charge(0, WHAT)?;
        let (memory, budget) = (RefCell::new(Some(charge)), Some(budget.clone()));
        Ok(Self { memory, budget, ..Self::new(cancel) })
    }

    /// Hands over the charge to the owner of the kept data. Nothing is charged after this.
    pub fn memory(&self) -> Option<Charge> {
        self.memory.take()
    }

    /// Fails if nobody waits any more for the request that reads `drv`.
    pub fn go_on(&self, drv: &StorePath) -> Result<(), Failure> {
        if self.cancel.is_cancelled() { Err(Failure::cancelled(drv)) } else { Ok(()) }
    }

    /// The caller must call this before it parses that many bytes of the derivation at `drv`.
    pub fn parse(&self, drv: &StorePath, bytes: usize) -> Result<(), Failure> {
        self.go_on(drv)?;
        Self::charge(&self.parsed, bytes, MAX_PARSED, "have to be read")
    }

    /// Whether the study has ended: nobody waits, or a limit was reached.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let met = self.parsed.get() > MAX_PARSED || self.kept.get() > MAX_KEPT;
        met || self.over_budget.get() || self.cancel.is_cancelled()
    }

    /// Charges memory that is in use until the returned charge is dropped.
    pub fn room(&self, bytes: u64) -> Result<Option<Charge>, Failure> {
        let charge = self.budget.as_ref().map(|budget| budget.charge(bytes, WHAT));
        charge.transpose().map_err(|over| self.over(&over))
    }

    /// Charges memory that is in use as long as this study, or the plan made by it.
    pub fn note(&self, bytes: u64) -> Result<(), Failure> {
        match &mut *self.memory.borrow_mut() {
            Some(memory) => memory.grow(bytes).map_err(|over| self.over(&over)),
            None => Ok(()),
        }
    }

    /// The caller must call this before it keeps a derivation. `text`: bytes of its text; `memory`: bytes that it
    /// takes.
    pub fn keep(&self, text: usize, memory: u64) -> Result<(), Failure> {
        self.note(KEPT_BESIDE.saturating_add(memory))?;
        Self::charge(&self.kept, text, MAX_KEPT, "would have to be kept in memory")
    }

    /// A transient failure, since the derivations themselves have no fault.
    fn over(&self, why: &OverBudget) -> Failure {
        self.over_budget.set(true);
        Failure::transient(why.to_string())
    }

    fn charge(sum: &Cell<u64>, bytes: usize, limit: u64, what: &str) -> Result<(), Failure> {
        sum.set(sum.get().saturating_add(bytes as u64));
        if sum.get() <= limit {
            return Ok(());
        }
        Err(Failure::rejected(format!(
            "more than {} MiB of derivations {what} for this request, which is the limit of this box; build it in parts",
            limit >> 20
        )))
    }
}

/// Does `work`, which reads derivations, on its own thread, with its memory charged to `budget`. If the future is
/// dropped, the study ends soon.
pub async fn studied<T: Send + 'static>(
    workers: &Workers,
    budget: &Budget,
    work: impl FnOnce(&Study) -> T + Send + 'static,
) -> Result<T, Failure> {
    /// Cancels when it is dropped, since nobody waits then.
    struct Gone(Cancel);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }

    let cancel = Cancel::new();
    let _gone = Gone(cancel.clone());
    let study = Study::charged(cancel, budget).map_err(|over| Failure::transient(over.to_string()))?;
    workers.plan(move || work(&study)).await.map_err(|error| {
        tracing::error!(%error, "work for a request was lost");
        Failure::transient(format!("the request failed because of the box: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_ends_at_its_limit_and_when_nobody_waits() {
        let drv = StorePath::from_parts([1; 20], "x.drv").expect("a path");
        let cancel = Cancel::new();
        let study = Study::new(cancel.clone());
        let part = (MAX_KEPT / 4) as usize;
        for _ in 0..4 {
            study.keep(part, 0).expect("within the limit");
        }
        let refused = study.keep(1, 0).expect_err("over it").message;
        assert!(refused.contains("more than 256 MiB") && refused.contains("in parts"), "{refused}");
        study.parse(&drv, part).expect("within the other limit");
        assert!(study.parse(&drv, MAX_PARSED as usize).is_err());
        cancel.cancel();
        assert!(Study::new(cancel).parse(&drv, 1).expect_err("cancelled").is_cancelled());
    }
}
