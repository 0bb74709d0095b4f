//! A worker-protocol session: answers one client's requests from its member's view. (`serve_protocol` is its sibling.)
//!
//! `wire` parses and bounds every request before it arrives here. A failed request is answered with an error and the
//! session goes on; only broken framing ends it. Every operation is in the one `match` of [`Session::answer`];
//! operations that are not supported are refused by name.
//! Not here: bytes (`wire`), contents (`store`), running builders (`builds`).

use std::future::Future;
use std::sync::Arc;

use ledger::Open;
use nix::PathInfo;
use nix_derivation::StorePath;
use tokio::io::{AsyncRead, AsyncWrite};
use wire::WireError;
use wire::worker::{Connection, Failure, LogEvent, Request, Response, ServerInfo};

use super::appearing::Named;
use super::audience::WorkerClient;
use super::desk::Desk;
use super::request_error::RequestError;
use super::{Caller, EndLogged, Reader, Running, Session, SessionError, Writer, in_words};
use super::{ask, client_settings, drained, garbage};
use crate::Agent;

/// The version that `nix store info` shows.
const VERSION: &str = concat!("barnraiser-", env!("CARGO_PKG_VERSION"));

/// Serves one channel until the client closes it.
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
    let Caller { member, connection, options, home } = caller;
    let desk = Desk::of(&agent, &member);
    let _charge = desk.session().map_err(|over| SessionError::Refused(over.to_string()))?;
    let mut info = ServerInfo::new(VERSION);
    info.closed = drained::closed(&agent, &options);
    info.terms = desk.terms(&agent.config.limits).map_err(|over| SessionError::Refused(over.to_string()))?;
    let mut conn = Connection::accept(reader, writer, info).await.map_err(|error| match error {
        // The greeting can express only this refusal.
        WireError::TooOld { .. } | WireError::Closed { .. } => SessionError::Told(error),
        _ => SessionError::Greeting(error),
    })?;
    let version = conn.protocol().version.to_string();
    tracing::info!(connection, member = %member.name, protocol = version, "worker session started");
    let _end = EndLogged { connection, member: member.clone(), what: "worker session ended" };
    let mut session = Session { home, ..Session::open(agent, member, options) };
    let result = session.answer_all(&mut conn).await;
    if let Err(error) = &result {
        // An error is ignored: the client may have closed the connection.
        let _ = conn.refuse(error, in_words(error)).await;
    }
    result.map_err(SessionError::Told)
}

impl Session {
    async fn answer_all<R, W>(&mut self, conn: &mut Connection<R, W>) -> Result<(), WireError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        while let Some(request) = conn.next_request().await? {
            let _counted = self.counter.open(Open::Request);
            if let Err(gone) = self.admit() {
                conn.fail(&Failure::new(gone)).await?;
                return Ok(());
            }
            let named = self.home.as_ref().map(|_| Named::by(&request));
            let answered = match self.in_scope(&request) {
                Ok(()) => self.answer(conn, request).await,
                Err(why) => Err(RequestError::Refused(why)),
            };
            let answered = match (answered, named) {
                // An answer that has been sent already is about no path that the client then reads.
                (Ok(Some(response)), Some(named)) => {
                    self.appear(named, &response).await.map(|()| Some(response))
                }
                (answered, _) => answered,
            };
            match answered {
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

    /// The client, as one that waits for builds.
    fn client<'a, R, W>(&'a self, conn: &'a mut Connection<R, W>) -> WorkerClient<'a, R, W> {
        WorkerClient { conn, ids: &self.ids, machine: &self.agent.config.name }
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
            // Questions that are answered from memory.
            Request::IsValidPath { path } => Response::Bool(view.is_valid(&path)),
            Request::QueryValidPaths { paths, substitute } => {
                Response::Paths(self.valid_paths(&mut self.client(conn), paths, substitute).await?)
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
                self.ensure(&mut self.client(conn), path).await?;
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
            Request::QueryMissing { targets } => {
                Response::Missing(self.missing(&mut self.client(conn), targets).await?)
            }

            // Questions that are passed on to caches.
            Request::QuerySubstitutablePaths { paths } => {
                let infos = self.substitutable(&mut self.client(conn), paths, true).await?;
                Response::Paths(infos.into_iter().map(|info| info.path).collect())
            }
            Request::QuerySubstitutablePathInfo { path } => {
                Response::Substitutable(self.substitutable(&mut self.client(conn), vec![path], false).await?)
            }
            Request::QuerySubstitutablePathInfos { paths } => {
                let paths = paths.into_keys().collect();
                Response::Substitutable(self.substitutable(&mut self.client(conn), paths, false).await?)
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
                self.build_paths(&mut self.client(conn), paths, mode).await?;
                Response::Done
            }
            Request::BuildPathsWithResults { paths, mode } => Response::BuildResults(
                self.build_paths_with_results(&mut self.client(conn), paths, mode).await?,
            ),
            Request::BuildDerivation { drv_path, derivation, mode } => Response::BuildResult(
                self.build_derivation(&mut self.client(conn), drv_path, derivation, mode).await?,
            ),

            // Roots and garbage collection.
            Request::AddTempRoot { path } => {
                view.hold([&path]).map_err(garbage::failed)?;
                Response::Done
            }
            // The root is a link on the client's disk, and the agent cannot see whether it still exists. So it keeps no
            // path for longer than this session, which keeps its uploads anyway.
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

            // Operations that are refused by name.
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
