//! Commands that deployment tools run on the machine that builds, besides copying.
//!
//! For example, `nixos-rebuild --build-host` copies a derivation to the box, has it realised, and copies the result
//! back. The newer nixos-rebuild (nixpkgs, nixos-rebuild-ng: nix.py) asks for a temporary folder first and reads a link
//! in it at the end, so that the result is a root meanwhile. None of these are files here: a link is a named root of
//! the member, and a temporary folder is a prefix of such names.
//! Not here: which words a client may write (`ssh::commands`), running builders (`builds`).

use std::collections::BTreeSet;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use nix::{BuildMode, BuildStatus, Missing};
use nix_derivation::{DerivedPath, StorePath};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use wire::types::ClientSettings;
use wire::{PatientWriter, WireError};

use super::audience::{Audience, shown_on};
use super::desk::Desk;
use super::render::lines::Lines;
use super::request_error::{RequestError, bug};
use super::{Caller, EndLogged, Running, Session, Writer};
use crate::Agent;
use builds::events::Event;

/// A command of a deployment tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostCommand {
    /// `nix-store --realise`, and `nix build` of a derivation: builds and prints the paths of the outputs.
    Realise(Realise),
    /// `mktemp -d`: prints a new, unique name that begins with `prefix`.
    MakeFolder { prefix: String },
    /// `readlink -f`: prints the store path behind a root.
    ReadLink { link: String },
    /// `rm -rf`: forgets the roots whose names begin with this folder.
    RemoveFolder { folder: String },
    /// `uname -m`: prints the processor architecture of builds.
    Machine,
    /// `pkill` of a build whose client was interrupted. That build ended when the connection closed, so this does
    /// nothing.
    Interrupt,
}

/// Arguments of [`HostCommand::Realise`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Realise {
    pub targets: Vec<DerivedPath>,
    pub mode: BuildMode,
    pub settings: ClientSettings,
    /// Name of a root to make; it is printed instead of the path (Nix: `realisePath` in nix-store.cc).
    pub root: Option<String>,
    /// Whether anything is printed.
    pub print: bool,
    /// Whether to print what would be built and fetched, without doing it.
    pub dry_run: bool,
}

/// Runs one command and returns its exit status. `hung_up` is ready when the client has closed the connection; the end
/// of the client's input may come earlier and does not count.
pub fn run_host_command<'a>(
    command: HostCommand,
    stdout: Writer<'a>,
    stderr: Writer<'a>,
    hung_up: Running<'a, ()>,
    agent: Arc<Agent>,
    caller: Caller,
) -> Running<'a, u32> {
    Box::pin(command_session(command, stdout, stderr, hung_up, agent, caller))
}

async fn command_session(
    command: HostCommand,
    stdout: Writer<'_>,
    stderr: Writer<'_>,
    hung_up: Running<'_, ()>,
    agent: Arc<Agent>,
    caller: Caller,
) -> u32 {
    let Caller { member, connection, options, .. } = caller;
    tracing::info!(connection, member = %member.name, ?command, "command started");
    let _end = EndLogged { connection, member: member.clone(), what: "command ended" };
    let stall = agent.config.limits.client_stall;
    let mut stdout = PatientWriter::new(stdout, stall);
    let mut stderr = PatientWriter::new(stderr, stall);
    let _charge = match Desk::of(&agent, &member).session() {
        Ok(charge) => charge,
        Err(over) => {
            let _ = stderr.write_all(format!("error: {over}\n").as_bytes()).await;
            return 1;
        }
    };
    let mut session = Session::open(agent.clone(), member, options);
    let mut terminal = Terminal { stderr: &mut stderr, hung_up, machine: &agent.config.name };
    let done = match session.follow_roster() {
        Ok(()) => session.host_command(command, &mut terminal).await,
        Err(gone) => Err(RequestError::Refused(gone)),
    };
    drop(terminal);
    let (lines, status) = match done {
        Ok(done) => done,
        Err(RequestError::Refused(message)) => {
            let _ = stderr.write_all(format!("error: {message}\n").as_bytes()).await;
            (Vec::new(), 1)
        }
        // The connection is closed, so no message can be sent.
        Err(RequestError::Wire(_)) => return 1,
    };
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    let written = stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok();
    if written { status } else { 1 }
}

/// The person or script that uses an ssh client.
struct Terminal<'a, E> {
    stderr: &'a mut E,
    hung_up: Running<'a, ()>,
    /// The name of the box.
    machine: &'a str,
}

impl<E: AsyncWrite + Unpin + Send> Audience for Terminal<'_, E> {
    async fn run<F>(&mut self, work: F, events: &mut mpsc::Receiver<Event>) -> Result<F::Output, WireError>
    where
        F: Future + Send,
        F::Output: Send,
    {
        let work = shown_on(self.stderr, Lines::new(self.machine, true), work, events);
        unless_hung_up(&mut self.hung_up, work).await
    }
}

impl<E: AsyncWrite + Unpin + Send> Terminal<'_, E> {
    /// Shows a message.
    async fn say(&mut self, text: &str) -> Result<(), WireError> {
        let written = async {
            self.stderr.write_all(format!("{text}\n").as_bytes()).await?;
            Ok(self.stderr.flush().await?)
        };
        unless_hung_up(&mut self.hung_up, written).await
    }
}

async fn unless_hung_up<T>(
    hung_up: &mut Running<'_, ()>,
    work: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    tokio::select! {
        biased;
        done = work => done,
        () = hung_up.as_mut() => Err(WireError::Truncated { op: "a command", field: "its output's reader" }),
    }
}

impl Session {
    /// The text to print, and the exit status.
    async fn host_command(
        mut self,
        command: HostCommand,
        terminal: &mut Terminal<'_, impl AsyncWrite + Unpin + Send>,
    ) -> Result<(Vec<String>, u32), RequestError> {
        let line = match command {
            HostCommand::Realise(realise) => {
                self.settings = realise.settings.clone();
                self.settings.keep_going |= self.wishes.effective.keep_going;
                return self.realise(realise, terminal).await;
            }
            HostCommand::MakeFolder { prefix } => {
                let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
                format!("{prefix}{random:016x}")
            }
            HostCommand::ReadLink { link } => self.read_link(&link)?,
            HostCommand::RemoveFolder { folder } => {
                let inside = format!("{}/", folder.trim_end_matches('/'));
                let view = self.view();
                let removed = self.desk.workers.commit(move || {
                    let names = view.roots().into_keys().filter(|name| name.starts_with(&inside));
                    names.map(|name| view.remove_root(&name)).collect::<Result<Vec<_>, _>>()
                });
                removed.await.map_err(bug)?.map_err(|error| RequestError::Refused(error.to_string()))?;
                return Ok((Vec::new(), 0));
            }
            HostCommand::Machine => {
                let system = self.agent.config.systems.first().map_or("", String::as_str);
                system.split('-').next().unwrap_or_default().to_owned()
            }
            HostCommand::Interrupt => return Ok((Vec::new(), 0)),
        };
        Ok((vec![line], 0))
    }

    /// The store path of a root. A store path is returned as it is.
    fn read_link(&self, link: &str) -> Result<String, RequestError> {
        let view = self.view();
        let own = StorePath::from_absolute_path(link.as_bytes()).ok().filter(|path| view.is_valid(path));
        let path = own.or_else(|| view.roots().remove(link)).ok_or_else(|| {
            RequestError::Refused(format!(
                "'{link}' is neither a valid store path nor a root of yours; there are no other files here"
            ))
        })?;
        Ok(path.to_absolute_path())
    }

    async fn realise(
        &self,
        realise: Realise,
        terminal: &mut Terminal<'_, impl AsyncWrite + Unpin + Send>,
    ) -> Result<(Vec<String>, u32), RequestError> {
        let Realise { targets, mode, root, print, .. } = realise;
        if realise.dry_run {
            let missing = self.missing(terminal, targets).await?;
            let text = what_would_happen(&missing);
            if !text.is_empty() {
                terminal.say(&text).await?;
            }
            return Ok((Vec::new(), 0));
        }
        let results = self.build_paths_with_results(terminal, targets, mode).await?;
        let failed: Vec<_> = results.iter().filter(|(_, r)| !r.status.is_success()).collect();
        if let Some((_, first)) = failed.first() {
            let status = exit_status(first.status);
            let message = super::building::all_messages(failed.into_iter().map(|(_, r)| r.clone()).collect());
            terminal.say(&format!("error: {message}")).await?;
            return Ok((Vec::new(), status));
        }
        let mut lines = BTreeSet::new();
        for (number, (target, result)) in results.iter().enumerate() {
            let outputs: Vec<(&str, StorePath)> = match target {
                DerivedPath::Opaque(path) => vec![("out", path.clone())],
                DerivedPath::Built { .. } => {
                    let built = result.built_outputs.iter();
                    built.map(|(name, output)| (name.as_str(), output.path.clone())).collect()
                }
            };
            for (output, path) in outputs {
                let Some(root) = &root else {
                    lines.insert(path.to_absolute_path());
                    continue;
                };
                let mut name = root.clone();
                if number > 0 {
                    name.push_str(&format!("-{}", number + 1));
                }
                if output != "out" {
                    name.push_str(&format!("-{output}"));
                }
                let (view, made) = (self.view(), name.clone());
                let added = self.desk.workers.commit(move || view.add_root(&made, &path)).await;
                let added = added.map_err(bug)?;
                added.map_err(|error| RequestError::Refused(error.to_string()))?;
                lines.insert(name);
            }
        }
        Ok((if print { lines.into_iter().collect() } else { Vec::new() }, 0))
    }
}

/// One line for each path, under a line for each kind.
fn what_would_happen(missing: &Missing) -> String {
    let mut text = String::new();
    for (what, paths) in [
        ("derivations will be built", &missing.will_build),
        ("paths will be fetched", &missing.will_substitute),
        ("paths are missing, and no substituter has them", &missing.unknown),
    ] {
        if !paths.is_empty() {
            text.push_str(&format!("these {} {what}:\n", paths.len()));
            text.extend(paths.iter().map(|path| format!("  {}\n", path.to_absolute_path())));
        }
    }
    text.trim_end().to_owned()
}

/// The exit status that `nix-store --realise` documents for this result.
fn exit_status(status: BuildStatus) -> u32 {
    match status {
        BuildStatus::TimedOut => 101,
        BuildStatus::OutputRejected => 102,
        BuildStatus::NotDeterministic => 104,
        BuildStatus::PermanentFailure
        | BuildStatus::TransientFailure
        | BuildStatus::CachedFailure
        | BuildStatus::DependencyFailed
        | BuildStatus::LogLimitExceeded => 100,
        _ => 1,
    }
}
