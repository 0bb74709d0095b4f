//! The store as a session's member may see it, at each moment.
//!
//! A share can be withdrawn while a request waits: for the rest of an upload, for a client that reads slowly, for a
//! build or a download. So a request takes a new view after each wait.

use std::sync::Arc;

use store::View;
use tokio::sync::watch;

use crate::Agent;
use members::{Member, Roster};

/// Makes views of one member. Clones hold the same temporary roots.
#[derive(Clone)]
pub(super) struct Views {
    agent: Arc<Agent>,
    member: Arc<Member>,
    /// Says whether there was another roster since `view` was made.
    roster: watch::Receiver<Arc<Roster>>,
    view: View,
}

impl Views {
    pub fn open(agent: &Arc<Agent>, member: &Arc<Member>) -> Self {
        let mut roster = agent.roster.clone();
        let view = agent.view_of(member, &roster.borrow_and_update());
        Self { agent: agent.clone(), member: member.clone(), roster, view }
    }

    /// A view with the shares of the current roster. A member who has left the roster shares with nobody.
    pub fn now(&self) -> View {
        // An error is a roster that nobody follows any more: the process is ending.
        if !self.roster.has_changed().unwrap_or(false) {
            return self.view.clone();
        }
        self.agent.view_of(&self.member, &self.roster.borrow()).holding_as(&self.view)
    }

    /// Whose they are, as the store knows them.
    pub fn owner(&self) -> &store::Member {
        self.view.member()
    }

    /// How many paths they keep from being collected.
    pub fn held(&self) -> usize {
        self.view.held()
    }

    /// Makes the current roster the one that later calls of [`Views::now`] compare with, so that they need no new view.
    pub fn follow(&mut self) {
        let view = self.agent.view_of(&self.member, &self.roster.borrow_and_update());
        self.view = view.holding_as(&self.view);
    }
}
