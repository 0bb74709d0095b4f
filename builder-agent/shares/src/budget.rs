//! Memory that requests make the agent hold: each member has a budget, and it is charged where memory is taken.
//!
//! A limit on one request multiplies with sessions and connections; this one does not. Whatever a client can make large
//! (arguments, lists, the tree of an upload, what is read for an answer) is charged to its member before it is kept, or
//! as it grows, and released when its [`Charge`] is dropped. Who is over the budget waits ([`Budget::wait`]), if what
//! is held ends by itself, or is refused ([`Budget::charge`]) with the limit, its value and what to do.
//!
//! The box has a total beside the members' own limits. When that is used up, those go on who hold little themselves
//! ([`SPARE`]), so that several members together cannot keep another one out.
//! Not here: memory of builds (their sandboxes have it), and buffers of a fixed size that every connection has (`ssh`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// What a member may hold when the box as a whole has none left: a few sessions, and what they are doing.
pub const SPARE: u64 = 16 << 20;
/// How long who is over the budget waits for what they hold otherwise. Then they are told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key of a member's limit, for messages.
const OF_MEMBER: &str = "limits.max-session-memory-per-member-mib";
/// The key of the box's.
const OF_BOX: &str = "limits.max-session-memory-mib";

/// All budgets of the box. Clones share them.
#[derive(Clone, Debug)]
pub struct Budgets(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    of_box: u64,
    of_member: u64,
    used: Mutex<Used>,
    /// Told whenever something is released.
    released: Notify,
}

#[derive(Debug, Default)]
struct Used {
    whole: u64,
    /// Who holds nothing is not listed.
    members: HashMap<Arc<str>, u64>,
}

/// Why memory was not given. The text is for the member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// Going on would let one member's sessions push out everybody else's.
    #[error(
        "{what} needs {} MiB of the box's memory, and your sessions hold {} of the {} MiB that one member may have \
         (the box's `{OF_MEMBER}`); send less at once, or open fewer sessions",
        mib(*.bytes), mib(*.held), mib(*.limit)
    )]
    Member { what: &'static str, bytes: u64, held: u64, limit: u64 },
    /// Going on would let the kernel choose what to end.
    #[error(
        "{what} needs {} MiB of the box's memory, and all sessions together hold {} of {} MiB (the box's `{OF_BOX}`); \
         try again later, or send less at once",
        mib(*.bytes), mib(*.held), mib(*.limit)
    )]
    Box { what: &'static str, bytes: u64, held: u64, limit: u64 },
}

/// Rounded up: nobody is told that they need 0 MiB.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl Budgets {
    /// `of_box`: bytes that all members may hold together; `of_member`: each of them.
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
    /// Takes `bytes` for `what` (the beginning of a sentence), or says why not.
    pub fn charge(&self, bytes: u64, what: &'static str) -> Result<Charge, OverBudget> {
        let mut charge = Charge { budget: self.clone(), bytes: 0, what };
        charge.set(bytes)?;
        Ok(charge)
    }

    /// As [`Budget::charge`], after waiting for what this member, or the box, holds otherwise. For work whose
    /// predecessors end by themselves; whoever waits must hold nothing that others need.
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
            // What is more than the limit does not become less by waiting.
            if bytes > self.all.of_member || timeout_at(deadline, released).await.is_err() {
                return Err(over);
            }
        }
    }

    /// Whose it is.
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
    /// From now on it is this much. On an error it stays what it was.
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

    /// Adds to it.
    pub fn grow(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.set(self.bytes.saturating_add(bytes))
    }

    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Less is always possible.
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
