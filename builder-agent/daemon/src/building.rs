//! Requests that build, as calls of `builds`: what the client asked for, and the size of the answer.
//!
//! Not here: what is fetched or built, and in which order (`builds::realise`).

use std::sync::Arc;
use std::time::Duration;

use ledger::Resource;
use nix::derivation::BasicDerivation;
use nix::{BuildMode, BuildResult};
use nix_derivation::{DerivedPath, StorePath};
use tokio::sync::mpsc;
use wire::types::ClientSettings;

use super::Session;
use super::audience::Audience;
use super::request_error::{RequestError, over};
use builds::events::{Event, Reporter};
use builds::realise::{self, Context, Options};

/// Events that may wait for a client before the reader of a build's log, or a download, has to wait. Each can be a line
/// of 8 KiB.
const EVENTS_AHEAD: usize = 64;
/// Memory of a request that builds: log that waits to be sent, and a piece of log for each of a few builds.
const LOG_BYTES: u64 = 1 << 20;
/// Limit on the outputs that one answer names: a client may name the same derivation, with all its outputs, any number
/// of times. A NixOS system has some thousand.
const MAX_OUTPUTS_TOLD: usize = 200_000;
/// Failures repeated in one error message.
const MAX_FAILURES_SHOWN: usize = 20;

impl Session {
    pub(super) async fn build_paths(
        &self,
        audience: &mut impl Audience,
        targets: Vec<DerivedPath>,
        mode: BuildMode,
    ) -> Result<(), RequestError> {
        let results = self.build_paths_with_results(audience, targets, mode).await?;
        let results = results.into_iter().map(|(_, result)| result);
        let failed: Vec<BuildResult> = results.filter(|result| !result.status.is_success()).collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(RequestError::Refused(all_messages(failed))),
        }
    }

    pub(super) async fn build_paths_with_results(
        &self,
        audience: &mut impl Audience,
        targets: Vec<DerivedPath>,
        mode: BuildMode,
    ) -> Result<Vec<(DerivedPath, BuildResult)>, RequestError> {
        let check = is_check(mode)?;
        // Charged first, so that the request holds nothing else while it waits for memory.
        let _charge = self.desk.budget.wait(LOG_BYTES, "the log of this build").await.map_err(over)?;
        let (context, mut events) = self.context();
        let plan = audience.run(realise::plan(&context, &targets, check), &mut events).await??;
        let answered = targets.iter().map(|target| plan.outputs_of(target)).sum::<usize>();
        if answered > MAX_OUTPUTS_TOLD {
            return Err(RequestError::Refused(format!(
                "the targets have {answered} outputs together, and this box reports at \
                 most {MAX_OUTPUTS_TOLD} for one request; request them in parts"
            )));
        }
        let results = audience.run(realise::build(&context, Arc::new(plan)), &mut events).await?;
        // A client may name the same target any number of times, and its message is a page long.
        let told: u64 = targets.iter().map(|target| results.message_bytes(target)).sum();
        let _charge = self.desk.budget.wait(told, "this answer").await.map_err(over)?;
        Ok(targets
            .into_iter()
            .map(|target| {
                let result = results.of(&target);
                (target, result)
            })
            .collect())
    }

    pub(super) async fn build_derivation(
        &self,
        audience: &mut impl Audience,
        drv_path: StorePath,
        derivation: BasicDerivation,
        mode: BuildMode,
    ) -> Result<BuildResult, RequestError> {
        let check = is_check(mode)?;
        // Charged first, so that the request holds nothing else while it waits for memory.
        let _charge = self.desk.budget.wait(LOG_BYTES, "the log of this build").await.map_err(over)?;
        let (mut context, mut events) = self.context();
        context.alone = true;
        let work = realise::derivation(&context, drv_path, derivation, check);
        let ended = audience.run(work, &mut events).await??;
        Ok(realise::result_of(&ended, &[]))
    }

    /// Does work for a request. The client gets the events meanwhile; if it closes the connection, the work is dropped.
    pub(super) async fn with_progress<A: Audience, F, T>(
        &self,
        audience: &mut A,
        work: impl FnOnce(Context) -> F,
    ) -> Result<T, RequestError>
    where
        F: Future<Output = Result<T, builds::Failure>> + Send,
        T: Send,
    {
        let (context, mut events) = self.context();
        Ok(audience.run(work(context), &mut events).await??)
    }

    /// The context of a request of this client for `builds`, and the events of that request.
    pub(super) fn context(&self) -> (Context, mpsc::Receiver<Event>) {
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        let settings = &self.settings;
        let options = Options {
            wall: number(settings, &["timeout", "build-timeout"]).and_then(seconds),
            silent: seconds(settings.max_silent_time),
            log: number(settings, &["max-log-size", "build-max-log-size"]).filter(|bytes| *bytes > 0),
            // A client's word comes after all levels, so a level that locks later ones locks it too.
            keep_going: match self.wishes.effective.allow_override {
                true => settings.keep_going,
                false => self.wishes.effective.keep_going,
            },
            keep_failed: settings.keep_failed,
            use_substitutes: settings.use_substitutes,
            wishes: self.wishes.clone(),
        };
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let (ledger, principal) = (self.agent.ledger.clone(), self.principal.clone());
        let downloads = substitute::Account {
            payer: principal.member.clone(),
            charge: Arc::new(move |bytes| {
                ledger.charge(&principal, [(Resource::DownloadBytes, bytes)]);
            }),
        };
        let context = Context {
            realiser: self.agent.realiser.clone(),
            member: self.member.clone(),
            views: self.views.clone(),
            workers: self.desk.workers.clone(),
            budget: self.desk.budget.clone(),
            options,
            principal: self.principal.clone(),
            alone: false,
            downloads,
            reporter: Reporter::new(sender),
        };
        (context, events)
    }
}

/// The number in a setting that has no field of its own in `SetOptions` and comes by name, the new or the old one.
fn number(settings: &ClientSettings, names: &[&str]) -> Option<u64> {
    names.iter().find_map(|name| settings.overrides.get(*name)?.parse().ok())
}

/// One message from the messages of the failed targets.
pub(super) fn all_messages(failed: Vec<BuildResult>) -> String {
    let count = failed.len();
    let messages: Vec<String> =
        failed.into_iter().take(MAX_FAILURES_SHOWN).map(|result| result.error_msg).collect();
    match count {
        1 => messages.concat(),
        n => format!("{n} targets failed:\n{}", messages.join("\n")),
    }
}

/// Whether the targets are built only for comparison.
fn is_check(mode: BuildMode) -> Result<bool, RequestError> {
    match mode {
        BuildMode::Normal => Ok(false),
        BuildMode::Check => Ok(true),
        BuildMode::Repair => Err(RequestError::Refused(
            "--repair is refused: objects of this box are immutable and checked when they are read, so nothing can be \
             repaired in place; to build without it, leave it out"
                .into(),
        )),
    }
}
