//! A worker-protocol session: one client's requests, answered from its member's view. (`serve_protocol` is its sibling.)
//!
//! `wire` has parsed and bounded every request before it arrives here. A request that fails is answered with an error
//! and the session goes on; only broken framing ends it. Every operation is in the one `match` of
//! [`Session::answer`]; what is not supported says so by name.
//! Not here: bytes (`wire`), contents (`store`), running builders (`build`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use nix::PathInfo;
use nix_derivation::StorePath;
use store::View;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use wire::WireError;
use wire::types::ClientSettings;
use wire::worker::{Connection, Failure, LogEvent, Request, Response, ServerInfo};

use members::{Member, Roster};
use shares::budget::Charge;

mod agent;
mod ask;
mod audience;
mod client_settings;
mod context;
mod desk;
mod fetching;
mod floating;
mod garbage;
mod host_command;
mod logs;
mod one;
mod prefetch;
mod realise;
mod serve_protocol;
mod studied;
mod transfer;
mod views;

pub use agent::Agent;
pub use host_command::{HostCommand, Realise, run_host_command};
pub use serve_protocol::serve_store;

pub use transfer::Opened;

use desk::Desk;
use transfer::RequestError;
use views::Views;

/// What `nix store info` shows.
const VERSION: &str = concat!("barnraiser-", env!("CARGO_PKG_VERSION"));

/// What a path takes that a session keeps from being collected.
const HELD_BYTES: u64 = 256;

/// State of one session.
struct Session {
    agent: Arc<Agent>,
    member: Arc<Member>,
    views: Views,
    /// Where its work is done.
    desk: Desk,
    /// Who shares with the member can change between two requests.
    roster: watch::Receiver<Arc<Roster>>,
    /// What the client last sent with `SetOptions`.
    settings: ClientSettings,
    /// What the connection asked for besides.
    options: SessionOptions,
    /// For the paths that this session keeps from being collected.
    held: Option<Charge>,
    /// High half of this session's activity ids, see [`context::Ids`].
    ids: context::Ids,
}

/// Who is at the other end of a channel.
pub struct Caller {
    pub member: Arc<Member>,
    /// Names the ssh connection in logs.
    pub connection: u64,
    pub options: SessionOptions,
}

/// What a client can say only around the protocol: in environment variables of its ssh channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Off with `BARNRAISER_REUSE_FAILURES=0`: builds that failed before are tried again.
    pub reuse_failures: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { reuse_failures: true }
    }
}

impl SessionOptions {
    /// Takes in one variable; false if it means nothing here.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        if name != builds::reuse::RETRY_VARIABLE {
            return false;
        }
        self.reuse_failures = !matches!(value, "0" | "false" | "no");
        true
    }
}

/// Why a session ended before its client hung up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No greeting, so no protocol in which to say so: only a person who reads stderr can be told.
    #[error(transparent)]
    Greeting(WireError),
    /// The client has been told, unless it is gone.
    #[error(transparent)]
    Told(WireError),
    /// The same, where a protocol has no other way to refuse a request than to end.
    #[error("{0}")]
    Refused(String),
}

/// One direction of a channel. Not a type parameter: everything behind it would be compiled again for each kind of
/// channel, in each program that has one.
pub type Reader<'a> = Box<dyn AsyncRead + Unpin + Send + 'a>;
/// The other direction.
pub type Writer<'a> = Box<dyn AsyncWrite + Unpin + Send + 'a>;
/// A session that goes on while this is polled, and ends with its builds and half-done uploads when it is dropped.
pub type Running<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Serves one channel until the client hangs up.
pub fn serve<'a>(
    reader: Reader<'a>,
    writer: Writer<'a>,
    agent: Arc<Agent>,
    caller: Caller,
) -> Running<'a, Result<(), SessionError>> {
    Box::pin(worker_session(reader, writer, agent, caller))
}

async fn worker_session(
    reader: Reader<'_>,
    writer: Writer<'_>,
    agent: Arc<Agent>,
    caller: Caller,
) -> Result<(), SessionError> {
    let Caller { member, connection, options } = caller;
    let desk = Desk::of(&agent, &member.id);
    let _charge = desk.session().map_err(|over| SessionError::Refused(over.to_string()))?;
    let mut info = ServerInfo::new(VERSION);
    info.terms = desk.terms(&agent.config.limits).map_err(|over| SessionError::Refused(over.to_string()))?;
    let mut conn = Connection::accept(reader, writer, info).await.map_err(|error| match error {
        // The one refusal that has a place in the greeting.
        WireError::TooOld { .. } => SessionError::Told(error),
        _ => SessionError::Greeting(error),
    })?;
    let version = conn.protocol().version.to_string();
    tracing::info!(connection, member = %member.name, protocol = version, "worker session started");
    let _end = EndLogged { connection, member: member.clone(), what: "worker session ended" };
    let mut session = Session::open(agent, member, options);
    let result = session.answer_all(&mut conn).await;
    if let Err(error) = &result {
        // Best effort: the client may be gone.
        let _ = conn.refuse(error, in_words(error)).await;
    }
    result.map_err(SessionError::Told)
}

/// What a client reads of an error that ends its connection. `wire` knows the limit and not where it is set.
fn in_words(error: &WireError) -> String {
    match error {
        WireError::NothingSent { .. } => {
            format!("{error} (the box's `limits.client-stall-seconds`)")
        }
        error => error.to_string(),
    }
}

/// Logs the end of a session, also of one that is dropped because its connection is gone.
struct EndLogged {
    connection: u64,
    member: Arc<Member>,
    what: &'static str,
}

impl Drop for EndLogged {
    fn drop(&mut self) {
        tracing::info!(connection = self.connection, member = %self.member.name, "{}", self.what);
    }
}

impl Session {
    fn open(agent: Arc<Agent>, member: Arc<Member>, options: SessionOptions) -> Self {
        let mut roster = agent.roster.clone();
        let now = roster.borrow_and_update().clone();
        let current = now.current(&member).cloned();
        if current.is_none() {
            // The first request will find out.
            roster.mark_changed();
        }
        let member = current.unwrap_or(member);
        let views = Views::open(&agent, &member);
        // Nix sends no settings through `ssh-ng://`; then those of the box hold, and it fetches what it can.
        let keep_going = agent.config.keep_going;
        let settings = ClientSettings { use_substitutes: true, keep_going, ..ClientSettings::default() };
        let desk = Desk::of(&agent, &member.id);
        let held = desk.budget.charge(0, "the list of paths that a session needs").ok();
        Self { agent, member, views, desk, roster, settings, options, held, ids: context::Ids::new() }
    }

    /// Before each request: whether the member is one still, and has memory for what the session holds by now.
    fn admit(&mut self) -> Result<(), String> {
        if let Some(held) = &mut self.held {
            held.set(self.views.held() as u64 * HELD_BYTES).map_err(|over| over.to_string())?;
        }
        self.follow_roster()
    }

    async fn answer_all<R, W>(&mut self, conn: &mut Connection<R, W>) -> Result<(), WireError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        while let Some(request) = conn.next_request().await? {
            if let Err(gone) = self.admit() {
                conn.fail(&Failure::new(gone)).await?;
                return Ok(());
            }
            match self.answer(conn, request).await {
                Ok(Some(response)) => match ask::charged(&self.desk, &response) {
                    Ok(_charge) => conn.reply(&response).await?,
                    Err(over) => conn.fail(&Failure::new(over.to_string())).await?,
                },
                Ok(None) => {}
                Err(RequestError::Refused(message)) => conn.fail(&Failure::new(message)).await?,
                Err(RequestError::Wire(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// The store as the member may see it at this moment. For one step: whatever waits takes another one afterwards.
    fn view(&self) -> View {
        self.views.now()
    }

    /// Looks up who the member is by now. Who has left the roster gets no further, with what to tell them.
    fn follow_roster(&mut self) -> Result<(), String> {
        // An error is a roster that nobody follows any more: the process is ending.
        if !self.roster.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let now = self.roster.borrow_and_update().clone();
        let Some(member) = now.current(&self.member) else {
            self.roster.mark_changed();
            return Err(format!("{} is no longer in the roster", self.member.name));
        };
        self.member = member.clone();
        self.views.follow();
        Ok(())
    }

    /// Answers with a list that may be long.
    async fn reply_listed<R, W, F>(
        &self,
        conn: &mut Connection<R, W>,
        make: impl Fn() -> F,
    ) -> Result<Option<Response>, RequestError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
        F: Future<Output = Result<Vec<StorePath>, RequestError>>,
    {
        let (paths, _charge) = ask::listed(&self.desk, make).await?;
        conn.reply(&Response::Paths(paths)).await?;
        Ok(None)
    }

    /// The answer to one request; `None` if it has been sent already.
    async fn answer<R, W>(
        &mut self,
        conn: &mut Connection<R, W>,
        request: Request,
    ) -> Result<Option<Response>, RequestError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let view = &self.view();
        Ok(Some(match request {
            // Questions, answered from memory.
            Request::IsValidPath { path } => Response::Bool(view.is_valid(&path)),
            Request::QueryValidPaths { paths, substitute } => {
                Response::Paths(self.valid_paths(conn, paths, substitute).await?)
            }
            Request::QueryPathInfo { path } => {
                Response::PathInfo(view.info(&path).map(|info| PathInfo::clone(&info)))
            }
            Request::QueryPathFromHashPart { hash_part } => {
                Response::MaybePath(hash_part.and_then(|part| view.by_hash_part(&part)))
            }
            Request::QueryReferences { path } => {
                Response::Paths(ask::info(view, &path)?.references.iter().cloned().collect())
            }
            Request::QueryReferrers { path } => {
                let (views, path) = (&self.views, &path);
                let make = || async move {
                    let view = views.now();
                    ask::info(&view, path)?;
                    Ok(view.referrers(path).into_iter().collect())
                };
                return self.reply_listed(conn, make).await;
            }
            Request::QueryDeriver { path } => Response::MaybePath(ask::info(view, &path)?.deriver.clone()),
            Request::QueryValidDerivers { path } => {
                Response::Paths(view.valid_derivers(&path).into_iter().collect())
            }
            Request::QueryAllValidPaths => {
                let views = &self.views;
                let make = || async move { Ok(views.now().all_valid().into_iter().collect()) };
                return self.reply_listed(conn, make).await;
            }
            Request::EnsurePath { path } => {
                self.ensure(conn, path).await?;
                Response::Done
            }

            // Questions that read a derivation.
            Request::QueryDerivationOutputs { path } => Response::Paths(
                ask::outputs(&self.desk, &self.agent, view, path).await?.into_values().flatten().collect(),
            ),
            Request::QueryDerivationOutputNames { path } => Response::Names(
                ask::outputs(&self.desk, &self.agent, view, path).await?.into_keys().collect(),
            ),
            Request::QueryDerivationOutputMap { path } => {
                Response::OutputMap(ask::outputs(&self.desk, &self.agent, view, path).await?)
            }
            Request::QueryMissing { targets } => Response::Missing(self.missing(conn, targets).await?),

            // Questions that caches are asked for.
            Request::QuerySubstitutablePaths { paths } => {
                let infos = self.substitutable(conn, paths, true).await?;
                Response::Paths(infos.into_iter().map(|info| info.path).collect())
            }
            Request::QuerySubstitutablePathInfo { path } => {
                Response::Substitutable(self.substitutable(conn, vec![path], false).await?)
            }
            Request::QuerySubstitutablePathInfos { paths } => {
                let paths = paths.into_keys().collect();
                Response::Substitutable(self.substitutable(conn, paths, false).await?)
            }
            Request::QueryRealisation { id } => {
                Response::Realisation(ask::realisation(&self.desk, &self.agent, view, id).await?)
            }

            // Contents.
            Request::AddToStore { name, method, algorithm, references, .. } => {
                Response::Added(self.add_to_store(conn, name, method, algorithm, references).await?)
            }
            Request::AddTextToStore { name, text, references } => {
                Response::Added(self.add_text(name, text, references).await?)
            }
            Request::AddToStoreNar { info, .. } => {
                self.add_nar(conn.body(), info).await?;
                Response::Done
            }
            Request::AddMultipleToStore { .. } => {
                self.add_many(conn).await?;
                Response::Done
            }
            Request::NarFromPath { path } => {
                self.send_nar(conn, path).await?;
                return Ok(None);
            }

            Request::RegisterDrvOutput { realisation } => {
                ask::register(&self.desk, &self.agent, view, realisation).await?;
                Response::Done
            }

            // Builds.
            Request::SetOptions(settings) => {
                for warning in client_settings::warnings(&settings) {
                    conn.log(&LogEvent::message(warning)).await?;
                }
                self.settings = client_settings::kept(settings);
                Response::Done
            }
            Request::BuildPaths { paths, mode } => {
                self.build_paths(conn, paths, mode).await?;
                Response::Done
            }
            Request::BuildPathsWithResults { paths, mode } => {
                Response::BuildResults(self.build_paths_with_results(conn, paths, mode).await?)
            }
            Request::BuildDerivation { drv_path, derivation, mode } => {
                Response::BuildResult(self.build_derivation(conn, drv_path, derivation, mode).await?)
            }

            // Garbage and what is not.
            Request::AddTempRoot { path } => {
                view.hold([&path]).map_err(garbage::failed)?;
                Response::Done
            }
            // A link on the client's disk: nobody here can see whether it is still there, so it holds nothing for
            // longer than this session, which holds what it uploads anyway.
            Request::AddIndirectRoot { .. } | Request::SyncWithGc => Response::Done,
            Request::FindRoots => Response::Roots(view.roots().into_iter().collect()),
            Request::AddPermRoot { path, gc_root } => {
                garbage::add_root(&self.desk, view, path, gc_root.clone()).await?;
                Response::GcRoot(gc_root)
            }
            Request::CollectGarbage(options) => {
                let collected = garbage::collect(&self.desk, view, options).await?;
                let paths = collected.paths.iter().map(StorePath::to_absolute_path).collect();
                Response::Garbage { paths, bytes_freed: collected.bytes_freed }
            }
            Request::AddSignatures { path, signatures } => {
                garbage::add_signatures(&self.desk, view, path, signatures).await?;
                Response::Done
            }

            // Refused by name.
            Request::OptimiseStore => {
                return refused("the store of this box needs no optimising; a client cannot start it".into());
            }
            Request::VerifyStore { .. } => {
                return refused("the box verifies its store itself; a client cannot start it".into());
            }
            Request::AddBuildLog { drv_path } => {
                self.add_log(conn, drv_path).await?;
                Response::Done
            }
        }))
    }
}

fn refused(message: String) -> Result<Option<Response>, RequestError> {
    Err(RequestError::Refused(message))
}
