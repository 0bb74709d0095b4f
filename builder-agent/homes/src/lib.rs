//! Homes: a throw-away machine for each member who works on the box by hand.
//!
//! A home starts when its member comes in ([`Homes::enter`]) and is shared by all their sessions. It ends some time after the
//! last of them (`life`), with everything in it. Inside runs OpenSSH's sshd: each connection of the front door gets an ssh
//! connection to one of its own ([`inside`]), so that one that stalls holds no other. Nix in the home talks to the agent,
//! through a socket that sshd forwards; whatever this Nix learns to be valid appears in the home's store ([`shown`]).
//! `docs/design/home.md` has the whole story. Not here: how the machine is made (`sandbox`), who may come in and what their
//! client asked for (`ssh`), and the answers to Nix (`daemon`).

mod dotfiles;
mod home;
pub mod inside;
mod keys;
mod life;
mod machines;
mod shown;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ledger::{Ledger, Principal};
use members::{Member, Roster};
use shares::threads::Threads;
use store::Store;
use tokio::sync::{Notify, watch};

pub use dotfiles::Dotfiles;
pub use home::Home;
pub use inside::{Inside, Opened, Outside, Reply, Stream};
use life::{Place, State};
pub use machines::{Control, CpuMeter, Machine, Machines, Micro, Started};

/// What a home is made with, decided by the limits and settings of its member when it starts.
#[derive(Debug, Clone)]
pub struct Terms {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// From the end of the last session to the end of the home.
    pub ttl: Duration,
    /// Where a new home fetches the member's dotfiles from.
    pub dotfiles: Option<String>,
    /// Who is charged for it.
    pub principal: Principal,
}

/// Serves the connections of Nix in homes. One call for each; it must not block.
pub type NixDoor = Arc<dyn Fn(Arc<Home>, Stream) + Send + Sync>;

/// Folders for the root directory of a home, each with its name. It may take a while.
pub type Beside = Arc<dyn Fn() -> Vec<(String, sandbox::Image)> + Send + Sync>;

/// Why the home of this member has to end although it is used, if it has to: asked after each charge. It must not block.
pub type MayStay = Arc<dyn Fn(&Member) -> Result<(), String> + Send + Sync>;

/// What homes need of the box.
pub struct Parts {
    /// `None`: the box has no homes, for this reason.
    pub machines: Result<Arc<dyn Machines>, String>,
    pub settings: settings::Homes,
    /// Shown to members as the name of the machine.
    pub name: String,
    pub network: bool,
    pub may_stay: MayStay,
    /// The box's certificates, which homes have too.
    pub certificates: Option<std::path::PathBuf>,
    /// What homes show beside their store, as it is when one is opened.
    pub beside: Beside,
    /// The names of git repositories among them: root's, but git in homes reads them.
    pub repositories: Vec<String>,
    pub store: Store,
    pub roster: watch::Receiver<Arc<Roster>>,
    pub ledger: Ledger,
    pub threads: Threads,
    /// How often the time of a home is charged.
    pub charge_every: Duration,
    /// How long sessions wait for dotfiles.
    pub dotfiles_patience: Duration,
}

/// For a machine to end.
const GOING: Duration = Duration::from_secs(30);

/// For [`Parts::charge_every`].
pub const CHARGE_EVERY: Duration = Duration::from_secs(60);

/// For [`Parts::dotfiles_patience`]. A person waits no longer for a shell.
pub const DOTFILES_PATIENCE: Duration = Duration::from_secs(45);

/// All homes of the box. Clones share them.
#[derive(Clone)]
pub struct Homes(Arc<Inner>);

struct Inner {
    parts: Parts,
    open: Mutex<Open>,
    /// Notified when a home has gone.
    gone: Notify,
}

#[derive(Default)]
struct Open {
    /// By the member's identity.
    places: HashMap<Arc<str>, Arc<Place>>,
    /// Machines that are started, run, or are being ended.
    alive: usize,
    /// No more homes start: the agent ends.
    closed: bool,
}

/// Why somebody has no home now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HomeError {
    #[error("there are no homes on this box: {0}")]
    NoHomes(String),
    #[error(
        "the box has {0} homes open, which is the limit (the box's `homes.max`); try again later, or build with `--store` or \
         `--builders`, which need no home"
    )]
    Full(usize),
    #[error("the box is shutting down")]
    Closing,
    #[error("your home could not be started: {0}")]
    NotStarted(String),
    #[error("your home has just ended ({0}); come again for a new one")]
    Ended(String),
    #[error(
        "{0} connections lead into your home already, which is the limit (the box's `homes.sessions`); close one and try again"
    )]
    Crowded(usize),
    #[error("your home does not answer: {0}")]
    Silent(String),
}

/// One home, for a list.
#[derive(Debug, Clone)]
pub struct Listed {
    pub member: Arc<Member>,
    /// Seconds since 1970.
    pub since: u64,
    /// Connections that lead into it.
    pub visits: usize,
    pub vcpus: u8,
    pub memory_mib: u32,
}

impl Homes {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner { parts, open: Mutex::default(), gone: Notify::new() }))
    }

    /// Why the box has no homes at all; `None` if it has.
    #[must_use]
    pub fn none_because(&self) -> Option<&str> {
        match &self.0.parts.machines {
            Err(why) => Some(why),
            Ok(_) if self.0.parts.settings.max == 0 => Some("`homes.max` is 0"),
            Ok(_) => None,
        }
    }

    /// The member's home, which is started if there is none. It stays as long as the visit is kept, and for a time after that.
    /// `nix` serves the connections of its Nix.
    pub async fn enter(
        &self,
        member: &Arc<Member>,
        terms: &Terms,
        nix: &NixDoor,
    ) -> Result<Visit, HomeError> {
        let mut visit = self.0.visit(member, terms, nix)?;
        let mut state = visit.place.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, State::Starting)).await;
        match settled.map(|state| state.clone()) {
            Ok(State::Open(home)) => {
                visit.home = Some(home);
                Ok(visit)
            }
            Ok(State::Failed(why)) => Err(HomeError::NotStarted(why.to_string())),
            Ok(State::Ended(why)) => Err(HomeError::Ended(why.to_string())),
            Ok(State::Starting) | Err(_) => Err(HomeError::Closing),
        }
    }

    /// The homes of this moment, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        self.0.lock().places.values().map(|place| place.listed()).collect()
    }

    /// The member's home, if there is one.
    #[must_use]
    pub fn of(&self, member: &Member) -> Option<Listed> {
        self.0.lock().places.get(&member.id).map(|place| place.listed())
    }

    /// Ends the home of this member, if there is one; its sessions end with it. True if there was one. Returns when it has
    /// gone, so that there is room for the next one.
    pub async fn end(&self, member: &Member, why: &str) -> bool {
        let place = self.0.lock().places.get(&member.id).cloned();
        let Some(place) = place else { return false };
        place.end(why);
        let mut gone = place.gone.subscribe();
        // If it takes longer, the member is told that it is thrown away all the same.
        let _ = tokio::time::timeout(GOING, gone.wait_for(|gone| *gone)).await;
        true
    }

    /// Ends all homes, and starts no more. Returns when they have gone.
    pub async fn close(&self, why: &str) {
        loop {
            let gone = self.0.gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            {
                let mut open = self.0.lock();
                open.closed = true;
                if open.alive == 0 {
                    return;
                }
                open.places.values().for_each(|place| place.end(why));
            }
            gone.await;
        }
    }

    /// How many the box can have at a time.
    #[must_use]
    pub fn most(&self) -> usize {
        self.0.parts.settings.max
    }

    /// Starts homes again after [`Homes::close`].
    pub fn reopen(&self) {
        self.0.lock().closed = false;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more visit to the member's place, and a new place if there is none.
    fn visit(
        self: &Arc<Self>,
        member: &Arc<Member>,
        terms: &Terms,
        nix: &NixDoor,
    ) -> Result<Visit, HomeError> {
        let machines = match &self.parts.machines {
            Ok(machines) => machines.clone(),
            Err(why) => return Err(HomeError::NoHomes(why.clone())),
        };
        let settings = &self.parts.settings;
        let mut open = self.lock();
        if open.closed {
            return Err(HomeError::Closing);
        }
        if let Some(place) = open.places.get(&member.id) {
            if place.visits() >= settings.sessions {
                return Err(HomeError::Crowded(settings.sessions));
            }
            return Ok(Visit::to(self, place));
        }
        if open.alive >= settings.max {
            return Err(HomeError::Full(settings.max));
        }
        open.alive += 1;
        let place = Place::new(member, terms);
        let visit = Visit::to(self, &place);
        open.places.insert(member.id.clone(), place.clone());
        drop(open);
        let alive = Alive { homes: self.clone(), place };
        tokio::spawn(life::live(alive, machines, nix.clone()));
        Ok(visit)
    }
}

/// Counts a machine until it has gone.
struct Alive {
    homes: Arc<Inner>,
    place: Arc<Place>,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.homes.lock().alive -= 1;
        self.place.gone.send_replace(true);
        self.homes.gone.notify_waiters();
    }
}

/// Somebody in a home. The home stays as long as there is one.
pub struct Visit {
    homes: Arc<Inner>,
    place: Arc<Place>,
    home: Option<Arc<Home>>,
}

impl Visit {
    /// The caller has the lock of the homes.
    fn to(homes: &Arc<Inner>, place: &Arc<Place>) -> Self {
        place.come();
        Self { homes: homes.clone(), place: place.clone(), home: None }
    }

    /// An ssh connection into the home, for one connection of the front door. `outside` gets what is opened from inside.
    pub async fn connect(&self, outside: Arc<dyn Outside>) -> Result<Inside, HomeError> {
        match &self.home {
            Some(home) => home.connect(outside).await,
            None => Err(HomeError::Closing),
        }
    }

    /// The member's dotfiles, if there are any and the home has not fetched them yet.
    #[must_use]
    pub fn dotfiles(&self) -> Option<&Arc<Dotfiles>> {
        self.home.as_ref().and_then(|home| home.dotfiles.as_ref()).filter(|dotfiles| !dotfiles.are_settled())
    }

    /// Resolves when the home ends, with the reason.
    pub async fn ended(&self) -> Arc<str> {
        let mut state = self.place.state.subscribe();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_) | State::Failed(_))).await;
        match ended.map(|state| state.clone()) {
            Ok(State::Ended(why) | State::Failed(why)) => why,
            _ => "it was closed".into(),
        }
    }

    /// When the home goes if this was the last visit and it ended now, in seconds since 1970.
    #[must_use]
    pub fn goes_at(&self) -> u64 {
        ::roster::date::now() + self.place.terms.ttl.as_secs()
    }

    /// What it was made with.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.place.terms
    }

    /// Whether others are in the home.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.place.visits() > 1
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // Under the lock, as in `life`: a home that ends for want of visits has none.
        let _open = self.homes.lock();
        self.place.go();
    }
}
