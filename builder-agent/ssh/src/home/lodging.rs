//! One connection of the front door, and its ssh connection into the home.
//!
//! It is made when the client first asks for something that only a home has, and lasts as long as the client's connection. The
//! home stays for as long, too. What the home opens towards the client (its ssh agent, forwarded ports) gets through only
//! if the client has asked for it on this connection.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use daemon::{Agent, Caller};
use homes::{HomeError, Inside, Opened, Outside, Reply, Visit};
use russh::Channel;
use russh::client::Msg;
use russh::server;
use shares::budget::Budget;
use tokio::sync::Semaphore;

use super::{carry, nix_door, terms};

/// More waiting bytes than this make the client slow down.
const MANY: usize = 1 << 20;

/// Bytes of the client that wait for the home, over all channels of a connection.
///
/// The ssh library gives the client more room for a channel's data as soon as it has received some, and cannot send while
/// it waits for a channel to take data. So data is always taken, and when much of it waits, the client gets room for a few
/// bytes at a time only ([`Handler::adjust_window`](russh::server::Handler::adjust_window)).
#[derive(Debug, Default, Clone)]
pub(crate) struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    pub fn more(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn fewer(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub fn is_much(&self) -> bool {
        self.0.load(Ordering::Relaxed) > MANY
    }
}

/// What a channel needs to take data of the client: it is counted for the connection, and its memory charged to the member.
#[derive(Clone)]
pub(crate) struct Inlet {
    pub waiting: Waiting,
    pub budget: Budget,
}

/// The way of one connection into the home; empty until it is used.
pub(crate) struct Lodging {
    link: tokio::sync::Mutex<Option<Arc<Link>>>,
    pub waiting: Waiting,
    /// Permits for channels of the connection.
    free: Arc<Semaphore>,
}

/// An ssh connection into the home.
pub(crate) struct Link {
    pub inside: Inside,
    pub visit: Visit,
    pub allowed: Arc<Allowed>,
}

impl AsRef<Inside> for Link {
    fn as_ref(&self) -> &Inside {
        &self.inside
    }
}

/// What the home may open towards the client.
#[derive(Default)]
pub(crate) struct Allowed(Mutex<Lists>);

#[derive(Default)]
struct Lists {
    agent: bool,
    /// Addresses and ports, as the client has named them.
    ports: HashSet<(String, u32)>,
    sockets: HashSet<String>,
}

impl Allowed {
    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn agent(&self) {
        self.lock().agent = true;
    }

    pub fn port(&self, address: &str, port: u32) {
        self.lock().ports.insert((address.to_owned(), port));
    }

    /// True if it was allowed.
    pub fn no_port(&self, address: &str, port: u32) -> bool {
        self.lock().ports.remove(&(address.to_owned(), port))
    }

    pub fn socket(&self, path: &str) {
        self.lock().sockets.insert(path.to_owned());
    }

    pub fn no_socket(&self, path: &str) -> bool {
        self.lock().sockets.remove(path)
    }

    fn has(&self, what: &Opened) -> bool {
        let lists = self.lock();
        match what {
            Opened::Agent => lists.agent,
            Opened::Forwarded { address, port, .. } => lists.ports.contains(&(address.clone(), *port)),
            Opened::Socket { path } => lists.sockets.contains(path),
        }
    }
}

impl Lodging {
    pub fn new(free: Arc<Semaphore>) -> Self {
        Self { link: tokio::sync::Mutex::default(), waiting: Waiting::default(), free }
    }

    pub fn inlet(&self, agent: &Agent, caller: &Caller) -> Inlet {
        let budget = agent.budgets.of(&caller.member.payer().id);
        Inlet { waiting: self.waiting.clone(), budget }
    }

    /// The connection into the home, which is made, with the home, if there is none. `Err` is a line for the client.
    pub async fn link(
        &self,
        agent: &Arc<Agent>,
        caller: &Caller,
        client: &server::Handle,
    ) -> Result<Arc<Link>, String> {
        let mut link = self.link.lock().await;
        if let Some(link) = &*link
            && !link.inside.is_closed()
        {
            return Ok(link.clone());
        }
        let terms = terms(agent, caller)?;
        let nix = nix_door(agent);
        let enter = || agent.homes.enter(&caller.member, &terms, &nix);
        let visit = match enter().await {
            // It ended between the two.
            Err(HomeError::Ended(_)) => enter().await,
            visit => visit,
        };
        let visit = visit.map_err(|error| error.to_string())?;
        let allowed = Arc::<Allowed>::default();
        let outside = Client {
            handle: client.clone(),
            allowed: allowed.clone(),
            inlet: self.inlet(agent, caller),
            free: self.free.clone(),
        };
        let inside = visit.connect(Arc::new(outside)).await.map_err(|error| error.to_string())?;
        let made = Arc::new(Link { inside, visit, allowed });
        *link = Some(made.clone());
        Ok(made)
    }

    /// The connection into the home, if there is one.
    pub async fn made(&self) -> Option<Arc<Link>> {
        self.link.lock().await.clone()
    }
}

/// The client, as the home sees it.
struct Client {
    handle: server::Handle,
    allowed: Arc<Allowed>,
    inlet: Inlet,
    free: Arc<Semaphore>,
}

impl Outside for Client {
    fn opened(&self, what: Opened, channel: Channel<Msg>, reply: Reply) {
        // Dropping the reply refuses. A home can ask for any number of channels.
        let Some(permit) =
            self.allowed.has(&what).then(|| self.free.clone().try_acquire_owned().ok()).flatten()
        else {
            return;
        };
        let (client, inlet) = (self.handle.clone(), self.inlet.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let opened = match what {
                Opened::Agent => client.channel_open_agent().await,
                Opened::Forwarded { address, port, originator: (from, from_port) } => {
                    client.channel_open_forwarded_tcpip(address, port, from, from_port).await
                }
                Opened::Socket { path } => client.channel_open_forwarded_streamlocal(path).await,
            };
            if let Ok(theirs) = opened {
                reply.accept().await;
                carry::both(theirs, channel, &inlet).await;
            }
        });
    }
}
