//! The life of the process: open everything, serve, close everything.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;
use rustix::process::{Resource, Rlimit};
use sandbox::{Backend, Received};
use ssh::Stop;
use store::{Closure, Durability, LongWork, Space, Store, StoreConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use builds::SandboxIdentity;
use builds::backend;
use builds::kept::KeptLogs;
use builds::realise::Realiser;
use builds::schedule::{Embedded, Heir, Parts, Taken, WrittenRuns};
use daemon::Agent;
use homes::{Beside, Homes, Machines, Micro};
use ledger::Ledger;
use members::{Checks, Identities, Roster};
use net::HttpClient;
use settings::Config;
use shares::budget::Budgets;
use shares::pace::Paces;

use crate::control::{Answer, Request};
use crate::logging::Log;
use crate::takeover::{Earlier, Leaving};
use crate::{control, departed, host_key, memory, signing, stay, store_meter};

use shares::threads::Threads;
use substitute::Substituters;
use tickets::Tickets;

/// Time for builds and sessions to end after a signal. Those that are left then are cut off, which is safe: the store
/// is consistent at every instant.
const GRACE: Duration = Duration::from_secs(10);

/// Time for which the process then waits for threads.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot open the store: {0}")]
    Store(#[from] store::OpenError),
    #[error(transparent)]
    HostKey(#[from] host_key::HostKeyError),
    #[error(transparent)]
    SigningKey(#[from] signing::SigningKeyError),
    #[error(transparent)]
    Listen(#[from] ssh::ListenError),
    #[error(transparent)]
    Backend(#[from] backend::BackendError),
    #[error("cannot make the folder {}: {cause}", path.display())]
    Folder { path: PathBuf, cause: std::io::Error },
    /// Going on could give a member the claims of another person.
    #[error("cannot read the identities from {}: {cause}", path.display())]
    Identities { path: PathBuf, cause: std::io::Error },
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

/// Serves until SIGTERM or SIGINT, or until another agent takes over. `earlier`: what an agent before this one has left.
pub fn run(config: Config, earlier: Option<Earlier>, log: &Log) -> Result<(), ServeError> {
    raise_file_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(ServeError::Runtime)?;
    runtime.spawn(log.report_losses());
    let threads = Threads::new();
    let result = runtime.block_on(serve(Arc::new(config), earlier, threads.clone()));
    // Threads that still block (for example, killing a sandbox) may delay the exit only briefly.
    threads.wait(FAREWELL);
    runtime.shutdown_timeout(FAREWELL);
    result
}

/// Raises the limit on open files. A connection takes two descriptors and a build several; many services start with a
/// limit of 1,024 and may raise it.
fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, current = limit.current, "cannot raise the limit of open files");
    }
}

async fn serve(config: Arc<Config>, earlier: Option<Earlier>, threads: Threads) -> Result<(), ServeError> {
    let key = host_key::load_or_create(&config.host_key)?;
    let fingerprint = key.public_key().fingerprint(Default::default());
    let public = host_key::public(&key);
    let asked = earlier.as_ref().map(Earlier::asked).transpose().map_err(ServeError::Runtime)?;
    let (agent, scheduler, open, taken) = open(config.clone(), public, earlier, threads).await?;
    // Kept besides the server's own, for a server after it and for an agent after this one.
    let into_std = |listener: tokio::net::TcpListener| listener.into_std();
    let listeners: Vec<TcpListener> = ssh::bind_again(&config.listen, open)?
        .into_iter()
        .map(into_std)
        .collect::<io::Result<_>>()
        .map_err(ServeError::Runtime)?;
    if let Some(weaker) = backend::weaker(&config.sandbox) {
        tracing::warn!("{weaker}");
    }
    for listener in &listeners {
        let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(address, name = config.name, host_key = %fingerprint, "listening");
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    let space =
        store_meter::charge_for_space(agent.store.clone(), agent.ledger.clone(), agent.tickets.clone());
    tokio::spawn(space);
    let mut requests = control::listen(&config.state_dir)
        .inspect_err(|error| tracing::error!(%error, "no other agent can take over from this one: there is no socket for its request"))
        .ok();
    let (mut server, mut stop) = start(&agent, &key, &listeners)?;
    if let Some(asked) = asked {
        asked.is_served(taken);
    }
    loop {
        let (request, connection) = tokio::select! {
            _ = terminate.recv() => break tracing::info!("SIGTERM: shutting down"),
            _ = interrupt.recv() => break tracing::info!("SIGINT: shutting down"),
            _ = &mut server => break tracing::error!("the ssh server ended by itself; this is a bug"),
            Some(request) = next(&mut requests) => request,
        };
        let leaving = Leaving { agent: &agent, scheduler: &scheduler, listeners: &listeners };
        let stays = tokio::select! {
            _ = terminate.recv() => break tracing::info!("SIGTERM: shutting down"),
            _ = interrupt.recv() => break tracing::info!("SIGINT: shutting down"),
            stays = leaving.make_room(&request, &connection, &mut server, |why| stop.because(why)) => stays,
        };
        tracing::error!(error = %stays, "no other agent has taken over; this one goes on");
        if server.is_finished() {
            (server, stop) = start(&agent, &key, &listeners)?;
        }
        control::answer(&connection, &Answer::Refused { why: stays.to_string() });
    }
    agent.realiser.scheduler.retain(&|_| false);
    stop.because("the box is shutting down");
    if tokio::time::timeout(GRACE, agent.homes.close("the box is shutting down")).await.is_err() {
        tracing::warn!("some homes did not end in time");
    }
    if !server.is_finished() && tokio::time::timeout(GRACE, server).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
    close(agent.store.clone()).await;
    let ledger = agent.ledger.clone();
    let _ = tokio::task::spawn_blocking(move || ledger.close()).await;
    let tickets = agent.tickets.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || tickets.flush()).await {
        tracing::error!(error, "what was used of tickets since the last write is lost");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The next request of another agent to take over.
async fn next(requests: &mut Option<mpsc::Receiver<(Request, UnixStream)>>) -> Option<(Request, UnixStream)> {
    match requests {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

/// Starts an ssh server with copies of these sockets.
fn start(
    agent: &Arc<Agent>,
    key: &PrivateKey,
    listeners: &[TcpListener],
) -> Result<(JoinHandle<()>, Stop), ServeError> {
    let copy = |listener: &TcpListener| tokio::net::TcpListener::from_std(listener.try_clone()?);
    let copies = listeners.iter().map(copy).collect::<io::Result<_>>().map_err(ServeError::Runtime)?;
    let stop = Stop::default();
    Ok((tokio::spawn(ssh::serve(agent.clone(), key.clone(), copies, stop.clone())), stop))
}

/// Opens everything behind the front door. Builds of an earlier agent go on from then on. Returns its sockets, too, and how many
/// of its builds go on.
async fn open(
    config: Arc<Config>,
    host_key: String,
    mut earlier: Option<Earlier>,
    threads: Threads,
) -> Result<(Arc<Agent>, Arc<Embedded>, Vec<TcpListener>, Taken), ServeError> {
    let logs = folder(&config, "logs")?;
    let signer = signing::load_or_create(&config.signing_key, &config.signing_key_name)?;
    let signing_key = signer.public();
    let trusted = Arc::new(signing::trusted(&config, &signing_key)?);
    let store_folder = folder(&config, "store")?;
    // A member's part, if the operator does not say it.
    let half = Space::at(&store_folder).ok().map(|space| space.total / 2);
    let settings = StoreConfig {
        max_nar_bytes: config.limits.max_nar_bytes,
        durability: config.durability,
        signer: Some(Arc::new(signer)),
        trusted: trusted.clone(),
        long_work: LongWork::new(shares::threads::hand_over),
        min_free: config.min_free,
        max_bytes_per_member: config.limits.max_store_bytes_per_member.or(half),
        ..StoreConfig::default()
    };
    let store = open_store(store_folder, settings).await?;
    // First of all: nothing may remove what the builds of an earlier agent see.
    let inputs = earlier.as_mut().map(|earlier| earlier.runs.hold_inputs(&store)).unwrap_or_default();
    // On a disk each commit may wait, also where the store does not notice.
    let threads = if store.is_in_memory() { threads.whose_commits_hand_over() } else { threads };
    let backend::Opened { builds: backend, machines } = {
        let homes = config.homes.image.exists().then_some(&config.homes);
        backend::open(&config.sandbox, &config.network, homes)?
    };
    let kept = Arc::new(KeptLogs::new(logs.join("kept"), config.limits.max_kept_log_bytes));
    let tickets = open_tickets(&config).await?;
    let roster = follow_roster(&config, &store, &kept, &tickets)?;
    let checks = Checks::follow(&config.roster, config.roster_max_age);
    let http = Arc::new(HttpClient::new(&config.fetch));
    let ledger = open_ledger(&config).await?;
    let parts = Parts {
        config: config.clone(),
        store: store.clone(),
        kept: kept.clone(),
        logs,
        roster: roster.clone(),
        threads: threads.clone(),
        ledger: ledger.clone(),
    };
    let embedded = Embedded::here(parts, backend, http.clone());
    let scheduler = embedded.clone();
    let terms = config.terms_of_substitution();
    let substituters =
        Substituters::new(&config.substitution, &terms, &store, trusted, &http, threads.clone());
    let realiser = Realiser {
        config: config.clone(),
        store: store.clone(),
        scheduler,
        kept,
        sandbox_identity: SandboxIdentity::of(&config.sandbox),
        substituters,
        drv_hashes: Default::default(),
    };
    let budgets = Budgets::new(config.limits.max_session_bytes, config.limits.max_session_bytes_per_member);
    let scarce = store.clone();
    let paces = Paces::new(move || scarce.pressure());
    let (open, taken) = match earlier {
        Some(Earlier { runs, listeners, received, .. }) => {
            let identity = realiser.sandbox_identity;
            (listeners, take_over(embedded.clone(), runs, received, inputs, &budgets, identity).await)
        }
        None => Default::default(),
    };
    let parts = homes::Parts {
        machines: machines_of_homes(&config, machines),
        settings: config.homes.clone(),
        name: config.name.clone(),
        network: config.network.builds,
        may_stay: stay::until_the_month_is_used_up(&config, &ledger, &roster),
        certificates: backend::network_certificates(&config),
        beside: repositories(&config),
        repositories: config.mirrors.repositories.iter().map(|of| format!("{}.git", of.name())).collect(),
        store: store.clone(),
        roster: roster.clone(),
        ledger: ledger.clone(),
        threads: threads.clone(),
        charge_every: homes::CHARGE_EVERY,
        dotfiles_patience: homes::DOTFILES_PATIENCE,
    };
    let homes = Homes::new(parts);
    memory::compare(&config, homes.none_because().is_none(), &store);
    if let Some(why) = homes.none_because() {
        tracing::info!(why, "this box has no homes");
    }
    let agent = Arc::new(Agent {
        homes,
        config,
        store,
        realiser: Arc::new(realiser),
        signing_key,
        host_key,
        roster,
        tickets,
        checks,
        threads,
        budgets,
        ledger,
        opened: Default::default(),
        paces,
    });
    Ok((agent, embedded, open, taken))
}

/// The mirrors that homes show, as they are when a home is opened.
fn repositories(config: &Arc<Config>) -> Beside {
    let config = config.clone();
    Arc::new(move || {
        let of = |name: &str| match mirrors::snapshot(&config.mirrors.folder(name)) {
            Ok(composed) => Some((format!("{name}.git"), composed.segments.into())),
            Err(error) => {
                tracing::warn!(name, %error, "a mirror cannot be shown");
                None
            }
        };
        config.mirrors.repositories.iter().filter_map(|repository| of(repository.name())).collect()
    })
}

/// What homes run in, or why there are none.
fn machines_of_homes(
    config: &Config,
    machines: Option<Arc<dyn Backend>>,
) -> Result<Arc<dyn Machines>, String> {
    let backend = machines.ok_or("`sandbox.backend` is \"namespace\", and homes need micro-VMs")?;
    let image = &config.homes.image;
    match std::fs::File::open(image) {
        Ok(_) => Ok(Arc::new(Micro(backend))),
        Err(error) => Err(format!("{} (`homes.image`) cannot be read: {error}", image.display())),
    }
}

async fn take_over(
    scheduler: Arc<Embedded>,
    runs: WrittenRuns,
    mut received: Received,
    inputs: BTreeMap<u64, io::Result<Closure>>,
    budgets: &Budgets,
    identity: SandboxIdentity,
) -> Taken {
    let (budgets, lost) = (budgets.clone(), runs.len());
    let taking = tokio::task::spawn_blocking(move || {
        let heir = Heir { received: &mut received, inputs, budgets: &budgets, identity };
        scheduler.take_over(runs, heir)
    });
    taking.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "taking builds over panicked; some are lost");
        Taken { builds: 0, lost }
    })
}

/// A folder of the agent's state.
fn folder(config: &Config, name: &str) -> Result<PathBuf, ServeError> {
    let path = config.state_dir.join(name);
    match std::fs::create_dir_all(&path) {
        Ok(()) => Ok(path),
        Err(cause) => Err(ServeError::Folder { path, cause }),
    }
}

async fn open_store(folder: PathBuf, settings: StoreConfig) -> Result<Store, ServeError> {
    let store = tokio::task::spawn_blocking(move || Store::open(&folder, settings))
        .await
        .map_err(|panic| ServeError::Runtime(std::io::Error::other(panic)))??;
    tracing::info!(recovery = ?store.recovery(), "store open");
    Ok(store)
}

/// The ledger, in the folder of the state, which exists by now.
async fn open_ledger(config: &Config) -> Result<Ledger, ServeError> {
    let flush = config.durability == Durability::Flush;
    let settings = ledger::Settings::new(config.state_dir.join("ledger.sqlite"), flush);
    let opened = tokio::task::spawn_blocking(move || Ledger::open(settings)).await;
    opened.map_err(|panic| ServeError::Runtime(std::io::Error::other(panic)))
}

/// The tickets of members, in the folder of the state.
async fn open_tickets(config: &Config) -> Result<Tickets, ServeError> {
    let (path, flush) = (config.state_dir.join("tickets.sqlite"), config.durability == Durability::Flush);
    let opened = tokio::task::spawn_blocking(move || Tickets::open(&path, flush)).await;
    opened.map_err(|panic| ServeError::Runtime(std::io::Error::other(panic)))
}

/// Reads the roster and follows its changes; what former members left is dropped from now on.
fn follow_roster(
    config: &Config,
    store: &Store,
    kept: &Arc<KeptLogs>,
    tickets: &Tickets,
) -> Result<watch::Receiver<Arc<Roster>>, ServeError> {
    let path = config.state_dir.join("identities.json");
    let identities =
        Identities::open(path.clone()).map_err(|cause| ServeError::Identities { path, cause })?;
    let identities = Arc::new(identities);
    let roster = members::follow(config.roster.clone(), identities.clone());
    let roster = members::with_tickets(roster, tickets.clone());
    roster.borrow().tell_payers(store);
    let gone = departed::Gone { identities, tickets: tickets.clone() };
    tokio::spawn(departed::drop_their_things(gone, store.clone(), kept.clone(), roster.clone()));
    Ok(roster)
}

/// Flushes the store, so that the next start has nothing to check. Threads that do not end in time still hold the store, so
/// it is not closed.
async fn close(store: Store) {
    match tokio::task::spawn_blocking(move || store.tidy()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the store could not be flushed; the next start checks it"),
        Err(panic) => tracing::error!(%panic, "flushing the store panicked; the next start checks it"),
    }
}
