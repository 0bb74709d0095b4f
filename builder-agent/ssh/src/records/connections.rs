//! The connections of members at this moment: who, from where, and which commands they run.
//!
//! A command is known by its name alone. Its other words can name a path that only its member may know.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::roster::date;
use members::Member;
use tokio::sync::watch;

#[derive(Default)]
pub(crate) struct Connections {
    open: Mutex<BTreeMap<u64, Entry>>,
}

struct Entry {
    open: Open,
    /// Why the connection has to end.
    kick: watch::Sender<Option<Arc<str>>>,
    next_session: u64,
}

/// One connection of a member.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    /// The number of the connection in the log.
    pub id: u64,
    pub member: Arc<Member>,
    pub address: IpAddr,
    /// The login, in seconds since 1970.
    pub since: u64,
    /// The commands that run, by number.
    pub sessions: BTreeMap<u64, &'static str>,
}

/// The place of a connection in the list. Dropping it takes the connection out.
pub(crate) struct Seat {
    list: Arc<Connections>,
    id: u64,
    kicked: watch::Receiver<Option<Arc<str>>>,
}

/// A command that runs. Dropping it takes the command out of the list.
pub(crate) struct SessionGuard {
    list: Arc<Connections>,
    connection: u64,
    session: u64,
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member has logged in.
    pub fn add(self: &Arc<Self>, id: u64, member: Arc<Member>, address: IpAddr) -> Seat {
        let (kick, kicked) = watch::channel(None);
        let open = Open { id, member, address, since: date::now(), sessions: BTreeMap::new() };
        self.lock().insert(id, Entry { open, kick, next_session: 0 });
        Seat { list: self.clone(), id, kicked }
    }

    /// A command starts on this connection.
    pub fn session(self: &Arc<Self>, connection: u64, command: &'static str) -> SessionGuard {
        let mut session = 0;
        if let Some(entry) = self.lock().get_mut(&connection) {
            session = entry.next_session;
            entry.next_session += 1;
            entry.open.sessions.insert(session, command);
        }
        SessionGuard { list: self.clone(), connection, session }
    }

    /// The connections of the members for whom `of` is true, in the order of their logins.
    pub fn list(&self, of: impl Fn(&Member) -> bool) -> Vec<Open> {
        self.lock().values().map(|entry| &entry.open).filter(|open| of(&open.member)).cloned().collect()
    }

    /// Ends the connections for which `which` is true. Their clients get the reason. Returns the connections.
    pub fn kick(&self, why: &Arc<str>, which: impl Fn(&Open) -> bool) -> Vec<Open> {
        let open = self.lock();
        let kicked = open.values().filter(|entry| which(&entry.open));
        let end = |entry: &Entry| {
            entry.kick.send_replace(Some(why.clone()));
            entry.open.clone()
        };
        kicked.map(end).collect()
    }
}

impl Seat {
    /// Waits until the connection has to end, and says why.
    pub async fn kicked(&self) -> Arc<str> {
        let mut kicked = self.kicked.clone();
        let why = kicked.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match why {
            Some(why) => why,
            // The sender is in the list for as long as this seat.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.list.lock().remove(&self.id);
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(entry) = self.list.lock().get_mut(&self.connection) {
            entry.open.sessions.remove(&self.session);
        }
    }
}
