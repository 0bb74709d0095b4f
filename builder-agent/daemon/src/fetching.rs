//! Substitution as clients see it: which questions lead to it, and what is shown while it runs.
//!
//! Activities are those of Nix's own daemon (`PathSubstitutionGoal` and `copyStorePath`), so that progress bars look as
//! they do there.
//! Not here: where paths come from, and what makes them trustworthy (`substitute`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::{Missing, SubstitutablePathInfo};
use nix_derivation::{DerivedPath, StorePath};
use tokio::sync::mpsc;
use wire::worker::{ActivityKind, LogEvent, ResultKind, Verbosity};

use super::audience::Audience;
use super::context::Ids;
use super::transfer::{RequestError, over};
use super::{Session, ask};
use substitute::{Event, Fetched};

/// Events on their way before a download waits for the client.
const EVENTS_AHEAD: usize = 256;
/// Warnings shown for one request. A cache that is down would give one for every path.
const MAX_WARNINGS: usize = 5;

impl Session {
    /// Whether paths and outputs called `name` may be fetched for this client.
    pub(super) fn may_fetch(&self, name: &str, derivation_allows: bool) -> bool {
        self.agent.substituters.may(name, self.settings.use_substitutes && derivation_allows)
    }

    /// The whole of `EnsurePath`: valid already, or fetched now.
    pub(super) async fn ensure<A: Audience>(
        &self,
        audience: &mut A,
        path: StorePath,
    ) -> Result<(), RequestError> {
        if self.view().is_valid(&path) {
            return Ok(());
        }
        if !self.may_fetch(path.name(), true) {
            return ask::info(&self.view(), &path).map(|_| ());
        }
        let ends = self.fetch(audience, vec![path.clone()]).await?;
        match ends.get(&path) {
            Some(Err(why)) => Err(RequestError::Refused(why.to_string())),
            _ => Ok(()),
        }
    }

    /// The valid ones of `paths`, after fetching what of the others can be fetched if `substitute` is set.
    pub(super) async fn valid_paths<A: Audience>(
        &self,
        audience: &mut A,
        paths: Vec<StorePath>,
        substitute: bool,
    ) -> Result<Vec<StorePath>, RequestError> {
        if substitute {
            let view = self.view();
            let missing: Vec<StorePath> = paths
                .iter()
                .filter(|path| !view.is_valid(path) && self.may_fetch(path.name(), true))
                .cloned()
                .collect();
            if !missing.is_empty() {
                self.fetch(audience, missing).await?;
            }
        }
        Ok(self.view().query_valid(&paths))
    }

    /// What could be fetched. `mass`: the client asks about everything it has; then only sources that do not mind.
    pub(super) async fn substitutable<A: Audience>(
        &self,
        audience: &mut A,
        paths: Vec<StorePath>,
        mass: bool,
    ) -> Result<Vec<SubstitutablePathInfo>, RequestError> {
        let paths: Vec<StorePath> =
            paths.into_iter().filter(|path| self.may_fetch(path.name(), true)).collect();
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let (substituters, member) = (&self.agent.substituters, self.views.owner());
        let budget = &self.desk.budget;
        let ask = |events| async move { substituters.offers(member, budget, &paths, mass, &events).await };
        let (offers, _memory) = self.told(audience, ask).await?.map_err(over)?;
        let info = |offer: &Arc<substitute::Offer>| SubstitutablePathInfo {
            path: offer.info.path.clone(),
            deriver: offer.info.deriver.clone(),
            references: offer.info.references.clone(),
            download_size: offer.download_size(),
            nar_size: offer.info.nar_size,
        };
        Ok(offers.values().map(info).collect())
    }

    /// What building the targets would mean.
    pub(super) async fn missing<A: Audience>(
        &self,
        audience: &mut A,
        targets: Vec<DerivedPath>,
    ) -> Result<Missing, RequestError> {
        let (_, mut nothing) = mpsc::channel(1);
        let view = &self.view();
        let looking = ask::missing(&self.desk, &self.agent, view, targets.clone());
        let mut missing = audience.run(looking, &mut nothing).await??;
        if !self.agent.substituters.any() {
            return Ok(missing);
        }
        let ask = |events| async move {
            let fetch_plan = self.fetch_plan(&targets, &events).await?;
            let wanted: Vec<StorePath> = fetch_plan.fetch.into_iter().collect();
            Ok::<_, RequestError>((fetch_plan.build, self.offered(&wanted, &events).await?))
        };
        let (build, walk) = self.told(audience, ask).await??;
        missing.will_build.retain(|drv| build.contains(drv));
        missing.unknown.retain(|path| !walk.offers.contains_key(path));
        (missing.download_size, missing.nar_size) = (walk.download_size(), walk.nar_size());
        missing.will_substitute = walk.offers.into_keys().collect();
        Ok(missing)
    }

    /// Fetches and shows it.
    pub(super) async fn fetch<A: Audience>(
        &self,
        audience: &mut A,
        paths: Vec<StorePath>,
    ) -> Result<Fetched, RequestError> {
        let (substituters, member) = (&self.agent.substituters, self.views.owner());
        let budget = &self.desk.budget;
        let fetch = |events| async move { substituters.fetch(member, budget, &paths, &events).await };
        self.told(audience, fetch).await?.map_err(over)
    }

    /// Does work that asks caches. The client sees what happens meanwhile; hanging up ends it. The work must let go of
    /// the sender in the end.
    pub(super) async fn told<A: Audience, F>(
        &self,
        audience: &mut A,
        work: impl FnOnce(mpsc::Sender<Event>) -> F,
    ) -> Result<F::Output, RequestError>
    where
        F: Future<Output: Send> + Send,
    {
        let (to_client, mut shown) = mpsc::channel(EVENTS_AHEAD);
        let (events, happened) = mpsc::channel(EVENTS_AHEAD);
        let (work, tell) = (work(events), tell(happened, to_client, &self.ids, &self.agent.config.name));
        Ok(audience.run(async { tokio::join!(work, tell).0 }, &mut shown).await?)
    }
}

/// Turns what happens into what clients show, until nothing happens any more.
pub(super) async fn tell(
    mut from: mpsc::Receiver<Event>,
    to: mpsc::Sender<LogEvent>,
    ids: &Ids,
    machine: &str,
) {
    // Substitution and, inside, the copy.
    let mut running: BTreeMap<StorePath, (u64, u64)> = BTreeMap::new();
    let mut warned: BTreeSet<Arc<str>> = BTreeSet::new();
    while let Some(event) = from.recv().await {
        let mut show = Vec::new();
        match event {
            Event::Started { path, from, .. } => {
                let (outer, inner) = (ids.next(), ids.next());
                let full = path.to_absolute_path();
                show.push(LogEvent::StartActivity {
                    id: outer,
                    level: Verbosity::Error,
                    kind: ActivityKind::Substitute,
                    text: String::new(),
                    fields: vec![full.as_str().into(), from.as_str().into()],
                    parent: 0,
                });
                show.push(LogEvent::StartActivity {
                    id: inner,
                    level: Verbosity::Info,
                    kind: ActivityKind::CopyPath,
                    text: format!("copying path '{full}' from '{from}' to '{machine}'"),
                    fields: vec![full.as_str().into(), from.as_str().into(), machine.into()],
                    parent: outer,
                });
                running.insert(path, (outer, inner));
            }
            Event::Progress { path, received, size } => {
                if let Some((_, inner)) = running.get(&path) {
                    let fields = vec![received.into(), size.into(), 0.into(), 0.into()];
                    show.push(LogEvent::Result { id: *inner, kind: ResultKind::Progress, fields });
                }
            }
            Event::Ended { path } => {
                if let Some((outer, inner)) = running.remove(&path) {
                    show.extend([LogEvent::stop(inner), LogEvent::stop(outer)]);
                }
            }
            Event::Warning(line) => {
                if warned.len() < MAX_WARNINGS && warned.insert(line.clone()) {
                    show.push(LogEvent::message(format!("warning: {line}")));
                }
            }
        }
        for event in show {
            // Nobody looks any more; what was begun goes on until it is dropped.
            let _ = to.send(event).await;
        }
    }
}
