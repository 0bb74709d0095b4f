//! A session of the serve protocol: clients use `ssh://` to reach the same store and the same builds as in a worker
//! session.
//!
//! The protocol can say that a build or an upload failed, and nothing else. So messages for people go to stderr, and if
//! a request that cannot fail in the protocol fails, the session ends, as with Nix's own server. Build logs go to
//! stderr, too, line by line and without decoration: `--builders` takes every line for a line of the log.
//! Not here: bytes (`wire::serve`), contents (`store`), running builders (`builds`).

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use ledger::Open;
use nix::{BuildMode, BuildResult, BuildStatus, PathInfo};
use nix_derivation::{DerivedPath, StorePath};
use store::{ImportError, Ingested, Provenance, View};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use wire::serve::{BuildOptions, Connection, ImportedInfo, Request, Response};
use wire::types::ClientSettings;
use wire::{PatientWriter, WireError};

use super::audience::{Audience, shown_on};
use super::desk::Desk;
use super::render::lines::Lines;
use super::request_error::{RequestError, import_failed};
use super::transfer::{self, BATCH, feed, unknown};
use super::{
    Caller, EndLogged, Reader, Running, Session, SessionError, Writer, ask, drained, garbage, in_words,
};
use crate::Agent;
use builds::events::Event;

/// Serves one channel until the client closes it. `stderr` is the second stream to the client.
///
/// `write`: whether the client asked for `--write`; without it, imports and builds are refused.
#[allow(clippy::too_many_arguments)] // the ends of one channel, and whose it is
pub fn serve_store<'a>(
    reader: Reader<'a>,
    writer: Writer<'a>,
    stderr: Writer<'a>,
    write: bool,
    agent: Arc<Agent>,
    caller: Caller,
) -> Running<'a, Result<(), SessionError>> {
    Box::pin(serve_session(reader, writer, stderr, write, agent, caller))
}

async fn serve_session(
    reader: Reader<'_>,
    writer: Writer<'_>,
    stderr: Writer<'_>,
    write: bool,
    agent: Arc<Agent>,
    caller: Caller,
) -> Result<(), SessionError> {
    let Caller { member, connection, options, .. } = caller;
    let mut stderr = PatientWriter::new(stderr, agent.config.limits.client_stall);
    let desk = Desk::of(&agent, &member);
    let admitted = desk.session().and_then(|charge| Ok((charge, desk.terms(&agent.config.limits)?)));
    let (_charge, terms) = match admitted {
        Ok(admitted) => admitted,
        Err(over) => {
            let _ = stderr.write_all(format!("error: {over}\n").as_bytes()).await;
            return Err(SessionError::Refused(over.to_string()));
        }
    };
    if let Some(why) = drained::closed(&agent, &options).filter(|_| write) {
        // Before the greeting, which can express no error: the client fails to connect, and shows this line.
        let _ = stderr.write_all(format!("error: {why}\n").as_bytes()).await;
        return Err(SessionError::Refused(why));
    }
    let conn = Connection::accept(reader, writer, terms).await.map_err(SessionError::Greeting)?;
    let protocol = conn.version().to_string();
    tracing::info!(connection, member = %member.name, protocol, write, "serve session started");
    let _end = EndLogged { connection, member: member.clone(), what: "serve session ended" };
    let write = write && member.may_write();
    let mut serving = Serving { conn, stderr, write, session: Session::open(agent, member, options) };
    let result = serving.answer_all().await;
    // Errors of these writes are ignored: the client may have closed the connection.
    let told = match &result {
        Ok(()) => None,
        Err(RequestError::Refused(message)) => Some(message.clone()),
        Err(RequestError::Wire(error)) if error.is_disconnect() => None,
        Err(RequestError::Wire(error)) => Some(in_words(error)),
    };
    if let Some(message) = told {
        let _ = serving.conn.flush().await;
        let _ = serving.tell(&message).await;
    }
    match result {
        Ok(()) => Ok(()),
        Err(RequestError::Refused(message)) => Err(SessionError::Refused(message)),
        Err(RequestError::Wire(error)) => Err(SessionError::Told(error)),
    }
}

struct Serving<R, W, E> {
    conn: Connection<R, W>,
    stderr: E,
    write: bool,
    session: Session,
}

impl<R, W, E> Serving<R, W, E>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    E: AsyncWrite + Unpin + Send,
{
    async fn answer_all(&mut self) -> Result<(), RequestError> {
        while let Some(request) = self.conn.next_request().await? {
            let _counted = self.session.counter.open(Open::Request);
            self.session.admit().map_err(RequestError::Refused)?;
            if let Some(op) = self.conn.pending()
                && op.info().writes
                && !self.write
            {
                let message = self.session.read_only(op.name()).unwrap_or_else(|| {
                    format!(
                        "{} is not possible in a session that only reads; run `nix-store --serve --write`",
                        op.name()
                    )
                });
                self.refuse(message).await?;
                continue;
            }
            match self.answer(request).await {
                Ok(Some(response)) => self.conn.reply(&response).await?,
                Ok(None) => {}
                Err(RequestError::Refused(message)) => self.refuse(message).await?,
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    /// The answer to one request; `None` if it has been sent already.
    async fn answer(&mut self, request: Request) -> Result<Option<Response>, RequestError> {
        let view = &self.session.view();
        Ok(Some(match request {
            // Questions that are answered from memory.
            Request::QueryValidPaths { lock, substitute, paths } => {
                if lock {
                    view.hold(&paths).map_err(garbage::failed)?;
                }
                let Self { conn, stderr, session, write } = self;
                let (audience, fetch) = (
                    &mut Listener { conn, stderr, machine: &session.agent.config.name },
                    substitute && *write,
                );
                Response::Paths(session.valid_paths(audience, paths, fetch).await?)
            }
            Request::QueryPathInfos { paths } => {
                let mut reply = self.conn.reply_infos().await?;
                for path in paths {
                    // A new view for each path, since a client may read slowly.
                    if let Some(info) = self.session.view().info(&path) {
                        reply.add(&info).await?;
                    }
                }
                reply.finish().await?;
                return Ok(None);
            }
            Request::QueryClosure { include_outputs, paths } => {
                let (session, asked) = (&self.session, &paths);
                let make = || closure(session, asked, include_outputs);
                let (paths, _charge) = ask::listed(&session.desk, make).await?;
                self.conn.reply(&Response::Paths(paths)).await?;
                return Ok(None);
            }

            // Contents.
            Request::DumpStorePath { path } => {
                self.dump(path).await?;
                return Ok(None);
            }
            Request::ExportPaths { paths } => {
                self.export(paths).await?;
                return Ok(None);
            }
            Request::AddToStoreNar { info } => {
                self.session.add_nar(self.conn.body(), info).await?;
                Response::Done
            }
            Request::ImportPaths => {
                self.import().await?;
                Response::Done
            }

            // Builds.
            Request::BuildPaths { paths, options } => {
                let (status, message) = self.build_paths(paths, options).await?;
                Response::Status(status, message)
            }
            Request::BuildDerivation { drv_path, derivation, options } => {
                self.session.settings = settings(options, self.session.wishes.effective.keep_going)?;
                let Self { conn, stderr, session, .. } = self;
                let audience = &mut Listener { conn, stderr, machine: &session.agent.config.name };
                let mode = BuildMode::Normal;
                Response::BuildResult(session.build_derivation(audience, drv_path, derivation, mode).await?)
            }
        }))
    }

    /// Refuses the request: with an answer where the protocol has one, else by ending the session.
    async fn refuse(&mut self, message: String) -> Result<(), RequestError> {
        use wire::serve::Answer;
        let Some(op) = self.conn.pending() else { return Err(RequestError::Refused(message)) };
        let response = match op.info().answer {
            Answer::Status => Response::Status(BuildStatus::MiscFailure, message),
            Answer::BuildResult => Response::BuildResult(BuildResult::new(BuildStatus::MiscFailure, message)),
            Answer::One => {
                // The message is sent now, and not after the rest of the upload.
                self.tell(&message).await?;
                Response::Refused
            }
            Answer::Paths | Answer::PathInfos | Answer::Nar | Answer::Export => {
                return Err(RequestError::Refused(message));
            }
        };
        Ok(self.conn.reply(&response).await?)
    }

    /// Sends an error message for the person at the client.
    async fn tell(&mut self, message: &str) -> Result<(), WireError> {
        self.stderr.write_all(format!("error: {message}\n").as_bytes()).await?;
        Ok(self.stderr.flush().await?)
    }

    async fn dump(&mut self, path: StorePath) -> Result<(), RequestError> {
        let mut chunks = transfer::read_nar(&self.session.desk, &self.session.views, path).await?;
        let mut reply = self.conn.reply_nar().await?;
        while let Some(chunk) = transfer::next_chunk(&mut chunks).await? {
            reply.write(&chunk).await?;
        }
        Ok(reply.finish().await?)
    }

    async fn export(&mut self, paths: Vec<StorePath>) -> Result<(), RequestError> {
        let Session { views, desk, .. } = &self.session;
        let sorted = references_first(&views.now(), paths)?;
        let mut reply = self.conn.reply_export().await?;
        for info in sorted {
            // A new view for each path: the client may have read the earlier ones slowly.
            let info = ask::info(&views.now(), &info.path)?;
            let mut chunks = transfer::read_nar(desk, views, info.path.clone()).await?;
            reply.begin().await?;
            while let Some(chunk) = transfer::next_chunk(&mut chunks).await? {
                reply.write(&chunk).await?;
            }
            reply.end(&info).await?;
        }
        Ok(reply.finish().await?)
    }

    /// Paths come with their references first, and become visible in batches, each all or nothing.
    async fn import(&mut self) -> Result<(), RequestError> {
        let Session { views, desk, .. } = &self.session;
        let mut batch = Vec::new();
        while self.conn.next_nar().await? {
            let view = views.now();
            let (taker, limit) = (view.clone(), desk.uploads.now());
            let ingested = feed(desk, self.conn.body(), move || unknown(&taker, limit)).await?;
            let ingested = ingested.map_err(import_failed)?;
            let info = imported(&ingested, self.conn.trailer().await?);
            // No part of an export stream can prove what the path is, so the path is a claim of this member.
            let provenance = Provenance::Claimed(view.member().clone());
            let staged = view.stage_built(ingested, info, provenance);
            batch.push(staged.map_err(|error| import_failed(ImportError::Register(error)))?);
            if batch.len() >= BATCH {
                transfer::register(desk, views, std::mem::take(&mut batch)).await?;
            }
        }
        transfer::register(desk, views, batch).await.map(|_| ())
    }

    async fn build_paths(
        &mut self,
        paths: Vec<DerivedPath>,
        options: BuildOptions,
    ) -> Result<(BuildStatus, String), RequestError> {
        self.session.settings = settings(options, self.session.wishes.effective.keep_going)?;
        let Self { conn, stderr, session, .. } = self;
        let audience = &mut Listener { conn, stderr, machine: &session.agent.config.name };
        let results = session.build_paths_with_results(audience, paths, BuildMode::Normal).await?;
        let failed: Vec<BuildResult> =
            results.into_iter().map(|(_, result)| result).filter(|r| !r.status.is_success()).collect();
        let Some(first) = failed.first() else { return Ok((BuildStatus::Built, String::new())) };
        let status = first.status;
        Ok((status, super::building::all_messages(failed)))
    }
}

/// A client of the serve protocol that waits for builds: log on stderr, hang-up on the connection.
struct Listener<'a, R, W, E> {
    conn: &'a mut Connection<R, W>,
    stderr: &'a mut E,
    /// The name of the box.
    machine: &'a str,
}

impl<R, W, E> Audience for Listener<'_, R, W, E>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
    E: AsyncWrite + Unpin + Send,
{
    async fn run<F>(&mut self, work: F, events: &mut mpsc::Receiver<Event>) -> Result<F::Output, WireError>
    where
        F: Future + Send,
        F::Output: Send,
    {
        let work = shown_on(self.stderr, Lines::new(self.machine, false), work, events);
        self.conn.run(work).await?
    }
}

/// The settings of a worker session with the same meaning. (Nix: `getBuildSettings` in `opServe`.)
fn settings(options: BuildOptions, keep_going: bool) -> Result<ClientSettings, RequestError> {
    if options.nr_repeats > 0 {
        return Err(RequestError::Refused(
            "the client wants every build repeated, which no version of Nix does any more; set `repeat = 0`"
                .into(),
        ));
    }
    let overrides = [("timeout", options.build_timeout), ("max-log-size", options.max_log_size)];
    Ok(ClientSettings {
        keep_failed: options.keep_failed,
        // The protocol does not have this one.
        keep_going,
        max_silent_time: options.max_silent_time,
        verbose_build: true,
        // As in Nix's own server: a client that asks for a build here has asked the caches before.
        use_substitutes: false,
        overrides: overrides.into_iter().map(|(name, n)| (name.to_owned(), n.to_string())).collect(),
        ..ClientSettings::default()
    })
}

/// `paths` and all paths they refer to; with outputs, also the valid outputs of all derivations among them.
async fn closure(
    session: &Session,
    paths: &[StorePath],
    include_outputs: bool,
) -> Result<Vec<StorePath>, RequestError> {
    let view = &session.view();
    let of = |paths: &[StorePath]| view.closure(paths).map_err(|e| RequestError::Refused(e.to_string()));
    let mut closure = of(paths)?;
    let mut new: Vec<StorePath> = closure.iter().cloned().collect();
    while include_outputs && !new.is_empty() {
        let mut outputs = Vec::new();
        for drv in new.iter().filter(|path| path.is_derivation()) {
            let paths =
                ask::outputs(&session.desk, &session.agent, view, drv.clone()).await?.into_values().flatten();
            outputs.extend(paths.filter(|path| view.is_valid(path)));
        }
        new = of(&outputs)?.into_iter().filter(|path| !closure.contains(path)).collect();
        closure.extend(new.iter().cloned());
    }
    Ok(closure.into_iter().collect())
}

/// Path infos of `paths`, each after those that it refers to.
fn references_first(view: &View, paths: Vec<StorePath>) -> Result<Vec<Arc<PathInfo>>, RequestError> {
    // Shared with the store, because copies for a long list would take many times the memory of the request.
    let mut infos: BTreeMap<StorePath, Arc<PathInfo>> = BTreeMap::new();
    for path in paths {
        let info = ask::info(view, &path)?;
        infos.insert(path, info);
    }
    // The only cycles of references are those of a path to itself, so this ends.
    let mut sorted = Vec::new();
    let mut visited = BTreeSet::new();
    let mut stack: Vec<(StorePath, bool)> = infos.keys().rev().map(|path| (path.clone(), false)).collect();
    while let Some((path, after)) = stack.pop() {
        if after {
            sorted.push(path);
        } else if visited.insert(path.clone()) {
            stack.push((path.clone(), true));
            let references = infos[&path].references.iter();
            stack.extend(references.filter(|r| infos.contains_key(r)).map(|r| (r.clone(), false)));
        }
    }
    Ok(sorted.into_iter().filter_map(|path| infos.remove(&path)).collect())
}

fn imported(ingested: &Ingested, told: ImportedInfo) -> PathInfo {
    PathInfo {
        path: told.path,
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: told.references,
        deriver: told.deriver,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}
