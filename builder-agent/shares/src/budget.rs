//! Memory that requests take in the agent: each member has a budget, which is charged where memory is taken.
//!
//! A limit on one request multiplies with sessions and connections; a budget does not. All data that a client can make
//! large (arguments, lists, the tree of an upload, contents read for an answer) is charged to its member before it is
//! kept, or as it grows, and released when its [`Charge`] is dropped. A request over the budget waits
//! ([`Budget::wait`]), if the charged work ends by itself, or is refused ([`Budget::charge`]) with the limit, its value
//! and what the member can do.
//!
//! The box has a total besides the members' own limits. When the total is used up, members who hold little still get
//! memory ([`SPARE`]), so that several members together cannot keep another one out.
//! Not here: memory of builds (their sandboxes have it), and buffers of a fixed size that every connection has (`ssh`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Memory that a member may hold even if the box's total is used up: a few sessions and their requests.
pub const SPARE: u64 = 16 << 20;
/// Longest wait of a request over the budget for other charges of its member to end. Then it is refused.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key of a member's limit, for messages.
const OF_MEMBER: &str = "limits.max-session-memory-per-member-mib";
/// The key of the box's limit.
const OF_BOX: &str = "limits.max-session-memory-mib";

/// All budgets of the box. Clones share them.
#[derive(Clone, Debug)]
pub struct Budgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    of_box: u64,
    of_member: u64,
    used: Mutex<Used>,
    /// Notified on every release.
    released: Notify,
}

#[derive(Debug, Default)]
struct Used {
    whole: u64,
    /// Members who hold nothing are not listed.
    members: HashMap<Arc<str>, u64>,
}

/// The reason why memory was refused. The text is for the member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// Granting it would let one member's sessions leave no memory for all others.
    #[error(
        "{what} needs {} MiB of the box's memory, and your sessions hold {} of the {} MiB that one member may have \
         (the box's `{OF_MEMBER}`); send less at once, or open fewer sessions",
        mib(*.bytes), mib(*.held), mib(*.limit)
    )]
    Member { what: &'static str, bytes: u64, held: u64, limit: u64 },
    /// Granting it would make the box run out of memory, and then the kernel chooses a process to kill.
    #[error(
        "{what} needs {} MiB of the box's memory, and all sessions together hold {} of {} MiB (the box's `{OF_BOX}`); \
         try again later, or send less at once",
        mib(*.bytes), mib(*.held), mib(*.limit)
    )]
    Box { what: &'static str, bytes: u64, held: u64, limit: u64 },
}

/// Rounded up, so that no message says 0 MiB.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl Budgets {
    /// `of_box`: limit in bytes for all members together; `of_member`: for each of them.
    #[must_use]
    pub fn new(of_box: u64, of_member: u64) -> Self {
        Self(Arc::new(Inner { of_box, of_member, used: Mutex::default(), released: Notify::new() }))
    }

    /// The budget of this member, however many connections ask for it.
    #[must_use]
    pub fn of(&self, member: &Arc<str>) -> Budget {
        Budget { all: self.0.clone(), member: member.clone() }
    }
}

impl Inner {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One member's budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget {
    all: Arc<Inner>,
    member: Arc<str>,
}

impl Budget {
    /// Charges `bytes` for `what` (the beginning of a sentence), or returns the reason against it.
    pub fn charge(&self, bytes: u64, what: &'static str) -> Result<Charge, OverBudget> {
        let mut charge = Charge { budget: self.clone(), bytes: 0, what };
        charge.set(bytes)?;
        Ok(charge)
    }

    /// As [`Budget::charge`], but waits until other charges of this member, or of the box, are released. Only for work
    /// whose predecessors end by themselves. The caller must hold nothing that others need.
    pub async fn wait(&self, bytes: u64, what: &'static str) -> Result<Charge, OverBudget> {
        self.wait_for(PATIENCE, bytes, what).await
    }

    async fn wait_for(
        &self,
        patience: Duration,
        bytes: u64,
        what: &'static str,
    ) -> Result<Charge, OverBudget> {
        let deadline = Instant::now() + patience;
        loop {
            let mut released = std::pin::pin!(self.all.released.notified());
            released.as_mut().enable();
            let over = match self.charge(bytes, what) {
                Ok(charge) => return Ok(charge),
                Err(over) => over,
            };
            // Waiting cannot help a charge above the member's limit.
            if bytes > self.all.of_member || timeout_at(deadline, released).await.is_err() {
                return Err(over);
            }
        }
    }

    /// The member whose budget this is.
    #[must_use]
    pub fn member(&self) -> &Arc<str> {
        &self.member
    }

    /// Bytes that this member holds.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.all.used().members.get(&self.member).copied().unwrap_or(0)
    }
}

/// Memory that is charged to a member until this is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: u64,
    what: &'static str,
}

impl Charge {
    /// Changes the charge to `bytes`. On an error it stays as it was.
    pub fn set(&mut self, bytes: u64) -> Result<(), OverBudget> {
        let Budget { all, member } = &self.budget;
        if bytes == self.bytes {
            return Ok(());
        }
        let mut used = all.used();
        let held = used.members.get(member).copied().unwrap_or(0);
        let (mine, whole) = (held - self.bytes + bytes, used.whole - self.bytes + bytes);
        let (what, grows) = (self.what, bytes > self.bytes);
        if grows && mine > all.of_member {
            return Err(OverBudget::Member { what, bytes, held, limit: all.of_member });
        }
        if grows && whole > all.of_box && mine > SPARE {
            return Err(OverBudget::Box { what, bytes, held: used.whole, limit: all.of_box });
        }
        used.whole = whole;
        match mine {
            0 => {
                used.members.remove(member);
            }
            mine => {
                used.members.insert(member.clone(), mine);
            }
        }
        drop(used);
        self.bytes = bytes;
        if !grows {
            all.released.notify_waiters();
        }
        Ok(())
    }

    /// Increases the charge.
    pub fn grow(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.set(self.bytes.saturating_add(bytes))
    }

    /// The size of the charge.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Reducing a charge cannot fail.
        let _ = self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn member(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn a_member_holds_no_more_than_its_limit_however_often_it_asks() {
        let alice = Budgets::new(1000 * MIB, 100 * MIB).of(&member("alice"));
        let held: Vec<Charge> = (0..10).map(|_| alice.charge(10 * MIB, "a list").expect("fits")).collect();
        let over = alice.charge(1, "a list").expect_err("the limit").to_string();
        assert_eq!(
            over,
            "a list needs 1 MiB of the box's memory, and your sessions hold 100 of the 100 MiB that one member may have \
             (the box's `limits.max-session-memory-per-member-mib`); send less at once, or open fewer sessions"
        );
        drop(held);
        assert_eq!(alice.held(), 0);
        alice.charge(100 * MIB, "a list").expect("everything was given back");
    }

    #[test]
    fn what_grows_beyond_the_limit_keeps_what_it_has() {
        let alice = Budgets::new(1000 * MIB, 100 * MIB).of(&member("alice"));
        let mut charge = alice.charge(90 * MIB, "an upload").expect("fits");
        charge.grow(11 * MIB).expect_err("the limit");
        assert_eq!((charge.bytes(), alice.held()), (90 * MIB, 90 * MIB));
        charge.set(5 * MIB).expect("less is always possible");
        assert_eq!(alice.held(), 5 * MIB);
    }

    #[test]
    fn members_who_use_up_the_box_cannot_keep_out_who_holds_little() {
        let budgets = Budgets::new(100 * MIB, 60 * MIB);
        let (one, two) = (budgets.of(&member("one")), budgets.of(&member("two")));
        let _held = (one.charge(60 * MIB, "x").expect("fits"), two.charge(40 * MIB, "x").expect("fits"));
        let over = two.charge(MIB, "x").expect_err("the box is full");
        assert!(matches!(over, OverBudget::Box { .. }) && over.to_string().contains(OF_BOX), "{over}");
        let third = budgets.of(&member("third"));
        let _small = third.charge(SPARE, "x").expect("what everybody may have");
        third.charge(1, "x").expect_err("and no more");
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_something_is_given_back_and_is_told_in_the_end() {
        let alice = Budgets::new(1000 * MIB, 100 * MIB).of(&member("alice"));
        let held = alice.charge(90 * MIB, "x").expect("fits");
        let waiting = tokio::spawn({
            let alice = alice.clone();
            async move { alice.wait(50 * MIB, "x").await.map(|charge| charge.bytes()) }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.await.expect("no panic"), Ok(50 * MIB));
        let _held = alice.charge(90 * MIB, "x").expect("fits");
        let short = Duration::from_millis(50);
        alice.wait_for(short, 50 * MIB, "x").await.expect_err("nothing is given back");
        alice.wait(101 * MIB, "x").await.expect_err("it can never fit");
    }
}
