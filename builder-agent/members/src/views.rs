//! The current view of one member.
//!
//! A share can be withdrawn while a request waits: for the rest of an upload, for a client that reads slowly, for a
//! build or a download. So a request takes a new view after each wait.

use std::sync::Arc;

use store::{Store, View};
use tokio::sync::watch;

use crate::{Member, Roster};

/// Makes views of one member. Clones share the temporary roots.
#[derive(Clone)]
pub struct Views {
    store: Store,
    member: Arc<Member>,
    /// Tells whether the roster has changed since `view` was made.
    roster: watch::Receiver<Arc<Roster>>,
    view: View,
}

impl Views {
    /// Views for a new session of `member`.
    #[must_use]
    pub fn open(store: &Store, roster: &watch::Receiver<Arc<Roster>>, member: &Arc<Member>) -> Self {
        let mut roster = roster.clone();
        let view = roster.borrow_and_update().view_of(store, member);
        Self { store: store.clone(), member: member.clone(), roster, view }
    }

    /// A view with the shares of the current roster. A member who has left the roster shares with nobody.
    #[must_use]
    pub fn now(&self) -> View {
        // An error means that the sender of the roster is gone: the process is ending.
        if !self.roster.has_changed().unwrap_or(false) {
            return self.view.clone();
        }
        self.roster.borrow().view_of(&self.store, &self.member).holding_as(&self.view)
    }

    /// The member of these views, as the store knows them.
    #[must_use]
    pub fn owner(&self) -> &store::Member {
        self.view.member()
    }

    /// Number of paths that these views keep from being collected.
    #[must_use]
    pub fn held(&self) -> usize {
        self.view.held()
    }

    /// Makes the current roster the one that later calls of [`Views::now`] compare with, so that they need no new view.
    pub fn follow(&mut self) {
        let view = self.roster.borrow_and_update().view_of(&self.store, &self.member);
        self.view = view.holding_as(&self.view);
    }
}
