//! Closures: finds all paths that have to be fetched for some paths, and fetches them, references first.
//!
//! A cache can describe its paths in any way, so the walk has limits, and it detects references that form a circle
//! instead of waiting for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use store::View;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::download::State;
use super::offer::Offer;
use super::{Account, Answer, Asker, Substituters};
use shares::budget::{Charge, OverBudget};

/// Most paths of one request. A large NixOS system has about 20,000.
const MAX_PATHS: usize = 100_000;
/// Most questions of one request at once.
const MAX_QUESTIONS: usize = 32;
/// Most downloads of one request at once, so that a large request leaves room for others.
const MAX_DOWNLOADS: usize = 8;
/// Memory of each path that a walk has reached, found or not: its places in lists, and the reason why it cannot be
/// fetched.
const SEEN_BYTES: u64 = 1024;
/// Memory of one more reference to a path, in [`Walk::needed_by`].
const NEEDED_BYTES: u64 = 192;
/// The thing that memory is charged for, in messages.
const WHAT: &str = "the list of what could be fetched";
/// Time between two reports about one download.
const REPORT: Duration = Duration::from_millis(200);

/// An event while paths are fetched. A caller with more kinds of events wraps these in its own enum (`E:
/// From<Event>`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `size`: bytes of NAR. `from`: the source's name.
    Started {
        path: StorePath,
        from: String,
        size: u64,
    },
    Progress {
        path: StorePath,
        received: u64,
        size: u64,
    },
    Ended {
        path: StorePath,
    },
    /// For a person: the reason why an offered path was not taken, or why a source could not be asked.
    Warning(Arc<str>),
}

/// The result for each path: it is valid, or the reason why it is not.
pub type Fetched = BTreeMap<StorePath, Result<(), Arc<str>>>;

/// The paths that would have to be fetched.
#[derive(Debug, Default)]
pub struct Walk {
    pub offers: BTreeMap<StorePath, Arc<Offer>>,
    /// Paths that cannot be fetched, with the reason.
    pub refused: BTreeMap<StorePath, Arc<str>>,
    /// Reasons other than that no source has a path.
    pub warnings: BTreeSet<Arc<str>>,
    /// For each path, the offered paths that refer to it.
    needed_by: BTreeMap<StorePath, Vec<StorePath>>,
    /// The charge for the memory of all these fields.
    memory: Option<Charge>,
}

impl Walk {
    /// Compressed bytes, as far as they are known.
    #[must_use]
    pub fn download_size(&self) -> u64 {
        self.offers.values().map(|offer| offer.download_size()).fold(0, u64::saturating_add)
    }

    #[must_use]
    pub fn nar_size(&self) -> u64 {
        self.offers.values().map(|offer| offer.info.nar_size).fold(0, u64::saturating_add)
    }

    fn offer(&mut self, offer: Arc<Offer>) {
        let path = &offer.info.path;
        for reference in offer.references() {
            self.needed_by.entry(reference.clone()).or_default().push(path.clone());
        }
        self.offers.insert(path.clone(), offer);
    }

    /// Removes every offered path that needs one of these refused paths, directly or not. Each path is visited once,
    /// so the time does not grow with the depth of a cache's references.
    fn settle(&mut self, mut lost: Vec<StorePath>) {
        while let Some(path) = lost.pop() {
            let Some(why) = self.refused.get(&path).cloned() else { continue };
            for user in self.needed_by.remove(&path).into_iter().flatten() {
                if self.offers.remove(&user).is_none() {
                    continue;
                }
                // All users get the reason of the first one; reasons are not nested.
                let text = match why.starts_with("a reference ") {
                    true => why.clone(),
                    false => {
                        format!("a reference of '{}' cannot be had: {why}", user.to_absolute_path()).into()
                    }
                };
                self.refused.insert(user.clone(), text);
                lost.push(user);
            }
        }
    }
}

impl Substituters {
    /// Finds all paths that would have to be fetched to make the closure of `paths` valid for the asker. The caches and the
    /// requester determine how many these are, so their memory is charged to the asker.
    pub async fn walk(&self, asker: &Asker<'_>, paths: &[StorePath]) -> Result<Walk, OverBudget> {
        let mut memory = asker.budget.charge(0, WHAT)?;
        let mut walk = Walk::default();
        walk.warnings.extend(self.objections().iter().cloned());
        let mut seen: BTreeSet<StorePath> = BTreeSet::new();
        let mut todo: Vec<StorePath> = Vec::new();
        let mut asked = JoinSet::new();
        let mut reach = |path: &StorePath, todo: &mut Vec<StorePath>| {
            if !seen.contains(path) && seen.len() < MAX_PATHS {
                seen.insert(path.clone());
                todo.push(path.clone());
            }
            seen.contains(path)
        };
        for path in paths {
            reach(path, &mut todo);
        }
        memory.grow(todo.len() as u64 * SEEN_BYTES)?;
        loop {
            while asked.len() < MAX_QUESTIONS
                && let Some(path) = todo.pop()
            {
                if self.view(asker.view).is_valid(&path) {
                    continue;
                }
                if asker.never.matches(path.name()) {
                    let name = path.to_absolute_path();
                    let why = format!("path '{name}' is never substituted for you (`never-substitute`)");
                    walk.warnings.insert(why.as_str().into());
                    walk.refused.insert(path, why.into());
                    continue;
                }
                let (this, member) = (self.clone(), asker.view.member().clone());
                asked.spawn(async move {
                    let answer = this.ask(&member, &path, false).await;
                    (path, answer)
                });
            }
            let Some(joined) = asked.join_next().await else { break };
            let Ok((path, answer)) = joined else { continue };
            match answer {
                Answer::Offer(offer) => {
                    let before = todo.len();
                    memory.grow(offer.memory() + offer.info.references.len() as u64 * NEEDED_BYTES)?;
                    let all = offer.references().all(|reference| reach(reference, &mut todo));
                    memory.grow((todo.len() - before) as u64 * SEEN_BYTES)?;
                    if all {
                        walk.offer(offer);
                    } else {
                        let why = format!("the closure has more than {MAX_PATHS} paths");
                        walk.refused.insert(path, why.into());
                    }
                }
                other => {
                    walk.warnings.extend(other.warning());
                    let why = other.reason(&path);
                    walk.refused.insert(path, why);
                }
            }
        }
        walk.settle(walk.refused.keys().cloned().collect());
        walk.memory = Some(memory);
        Ok(walk)
    }

    /// The offers for `paths`, without those for their references, and the charge for their memory. `mass`: only
    /// sources with `WantMassQuery` are asked. The caller has left out what the asker never fetches.
    pub async fn offers<E: From<Event>>(
        &self,
        asker: &Asker<'_>,
        paths: &[StorePath],
        mass: bool,
        events: &mpsc::Sender<E>,
    ) -> Result<(BTreeMap<StorePath, Arc<Offer>>, Charge), OverBudget> {
        let mut memory = asker.budget.charge(0, WHAT)?;
        let mut offers = BTreeMap::new();
        let mut todo = paths.iter();
        let mut asked = JoinSet::new();
        loop {
            while asked.len() < MAX_QUESTIONS
                && let Some(path) = todo.next()
            {
                let (this, member, path) = (self.clone(), asker.view.member().clone(), path.clone());
                asked.spawn(async move {
                    let answer = this.ask(&member, &path, mass).await;
                    (path, answer)
                });
            }
            match asked.join_next().await {
                Some(Ok((path, Answer::Offer(offer)))) => {
                    // Twice, since the offer is copied for the answer.
                    memory.grow(2 * offer.memory())?;
                    offers.insert(path, offer);
                }
                Some(Ok((_, other))) => warn(other.warning(), events).await,
                Some(Err(_)) => {}
                None => return Ok((offers, memory)),
            }
        }
    }

    /// Fetches the closure of `paths` for the asker, who pays for what is new here. The box does not evict the closure
    /// while the asker's session lasts. Dropping the future ends the downloads that nobody else waits for.
    pub async fn fetch<E: From<Event> + Send + 'static>(
        &self,
        asker: &Asker<'_>,
        paths: &[StorePath],
        events: &mpsc::Sender<E>,
    ) -> Result<Fetched, OverBudget> {
        let (view, mut walk) = (asker.view, self.walk(asker, paths).await?);
        warn(std::mem::take(&mut walk.warnings), events).await;
        if walk.nar_size() > 0
            && let Err(why) = self.make_room(asker, walk.nar_size()).await
        {
            warn([why.clone()], events).await;
            let all = std::mem::take(&mut walk.offers).into_keys();
            walk.refused.extend(all.map(|path| (path, why.clone())));
        }
        let mut waiting: BTreeMap<StorePath, BTreeSet<StorePath>> = BTreeMap::new();
        let mut ready = Vec::new();
        for (path, offer) in &walk.offers {
            let needs: BTreeSet<StorePath> = offer
                .references()
                .filter(|reference| walk.offers.contains_key(*reference))
                .cloned()
                .collect();
            // Those that are valid already have to stay until what refers to them is.
            offer.references().filter(|r| !walk.offers.contains_key(*r)).for_each(|r| drop(view.info(r)));
            match needs.is_empty() {
                true => ready.push(path.clone()),
                false => drop(waiting.insert(path.clone(), needs)),
            }
        }
        let mut running = JoinSet::new();
        loop {
            while running.len() < MAX_DOWNLOADS
                && let Some(path) = ready.pop()
            {
                let Some(offer) = walk.offers.get(&path) else { continue };
                running.spawn(watched(
                    self.clone(),
                    offer.clone(),
                    view.clone(),
                    asker.account.clone(),
                    events.clone(),
                ));
            }
            let Some(joined) = running.join_next().await else { break };
            let Ok((path, end)) = joined else { continue };
            if let Err(why) = end {
                self.forget(&path);
                warn([why.clone()], events).await;
                walk.refused.insert(path.clone(), why);
                walk.settle(vec![path]);
                continue;
            }
            drop(view.info(&path));
            for user in walk.needed_by.remove(&path).into_iter().flatten() {
                if let Some(needs) = waiting.get_mut(&user) {
                    needs.remove(&path);
                    if needs.is_empty() {
                        waiting.remove(&user);
                        ready.push(user);
                    }
                }
            }
        }
        Ok(paths
            .iter()
            .map(|path| {
                let end = match walk.refused.get(path) {
                    _ if self.view(view).is_valid(path) => Ok(()),
                    Some(why) => Err(why.clone()),
                    None => {
                        Err(format!("the references of '{}' go in a circle", path.to_absolute_path()).into())
                    }
                };
                (path.clone(), end)
            })
            .collect())
    }
}

/// Reports these warnings.
pub async fn warn<E: From<Event>>(warnings: impl IntoIterator<Item = Arc<str>>, events: &mpsc::Sender<E>) {
    for warning in warnings {
        let _ = events.send(Event::Warning(warning).into()).await;
    }
}

/// Waits for one download and reports it.
async fn watched<E: From<Event>>(
    all: Substituters,
    offer: Arc<Offer>,
    view: View,
    account: Account,
    events: mpsc::Sender<E>,
) -> (StorePath, Result<(), Arc<str>>) {
    let path = offer.info.path.clone();
    let size = offer.info.nar_size;
    let from = all.source(offer.source).name.clone();
    let _ = events.send(Event::Started { path: path.clone(), from, size }.into()).await;
    let waiting = all.start(&offer, &view, &account);
    let mut state = waiting.download.state.clone();
    let mut reported = Instant::now();
    let end = loop {
        let State { received, end } = state.borrow_and_update().clone();
        if let Some(end) = end {
            break end;
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let _ = events.send(Event::Progress { path: path.clone(), received, size }.into()).await;
        }
        if state.changed().await.is_err() {
            break Err("the download ended without a result; this is a bug of the box".into());
        }
    };
    if end.is_ok() {
        let _ = events.send(Event::Progress { path: path.clone(), received: size, size }.into()).await;
    }
    let _ = events.send(Event::Ended { path: path.clone() }.into()).await;
    (path, end)
}

#[cfg(test)]
mod tests {
    use nix::PathInfo;

    use super::super::offer::Place;
    use super::*;

    fn path(n: u32) -> StorePath {
        let mut digest = [0; 20];
        digest[..4].copy_from_slice(&n.to_be_bytes());
        StorePath::from_parts(digest, "x").expect("a path")
    }

    fn offer(n: u32, references: &[u32]) -> Arc<Offer> {
        let references = references.iter().map(|n| path(*n)).collect();
        let info = PathInfo {
            path: path(n),
            nar_hash: [0; 32],
            nar_size: 1,
            references,
            deriver: None,
            registration_time: 0,
            ultimate: false,
            signatures: Vec::new(),
            ca: None,
        };
        Arc::new(Offer { info, source: 0, place: Place::Ssh })
    }

    /// The depth is the limit of a walk: a search that visits every path once for each step would not end.
    #[test]
    fn what_needs_something_lost_is_lost_however_deep_it_is() {
        let mut walk = Walk::default();
        let deep = MAX_PATHS as u32;
        for n in 1..deep {
            walk.offer(offer(n, &[n, n - 1]));
        }
        walk.offer(offer(deep, &[deep + 1]));
        walk.refused.insert(path(0), "nobody has it".into());
        walk.settle(vec![path(0)]);
        assert_eq!(walk.offers.keys().collect::<Vec<_>>(), [&path(deep)]);
        let why = format!("a reference of '{}' cannot be had: nobody has it", path(1).to_absolute_path());
        assert!(walk.refused.iter().all(|(at, said)| *at == path(0) || **said == why));
    }
}
