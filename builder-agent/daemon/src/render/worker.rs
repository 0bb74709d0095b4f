//! Renders events for the worker protocol: as activities, like those of Nix's own daemon (`PathSubstitutionGoal`,
//! `copyStorePath`, `DerivationGoal`), so that progress bars look the same.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use builds::events::{BuildCounts, BuildNumber, Event};
use nix_derivation::StorePath;
use wire::worker::{ActivityKind, Field, LogEvent, ResultKind, Verbosity};

use super::Warnings;

/// Activity ids. Clients show them among their own ids, which are made of process id and counter (Nix: `nextId` in
/// logging.cc), so the ids of a session start at a random number.
#[derive(Debug, Clone)]
pub(crate) struct Ids(Arc<AtomicU64>);

impl Ids {
    pub(crate) fn new() -> Self {
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        // The top bit is zero, because some clients print ids as signed numbers.
        Self(Arc::new(AtomicU64::new((random >> 1) & !0xffff_ffff | 1)))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// Renders the events of one request.
pub(crate) struct Renderer<'a> {
    ids: &'a Ids,
    /// The name of the box.
    machine: &'a str,
    /// The activity that counts builds.
    counts: u64,
    builds: BTreeMap<BuildNumber, u64>,
    /// The ids of the substitution and of the copy inside it.
    fetches: BTreeMap<StorePath, (u64, u64)>,
    warnings: Warnings,
}

impl<'a> Renderer<'a> {
    pub(crate) fn new(ids: &'a Ids, machine: &'a str) -> Self {
        Self {
            ids,
            machine,
            counts: 0,
            builds: BTreeMap::new(),
            fetches: BTreeMap::new(),
            warnings: Warnings::default(),
        }
    }

    /// Renders this event and appends the result to `to`.
    pub(crate) fn render(&mut self, event: Event, to: &mut Vec<LogEvent>) {
        match event {
            Event::BuildsStarted => {
                self.counts = self.ids.next();
                let (level, kind) = (Verbosity::Debug, ActivityKind::Builds);
                to.push(start(self.counts, level, kind, String::new(), Vec::new()));
            }
            Event::BuildsProgress(BuildCounts { done, expected, running, failed }) => {
                to.push(progress(self.counts, [done, expected, running, failed]));
            }
            Event::BuildsEnded => to.push(LogEvent::stop(self.counts)),
            Event::Started { number, drv, kind } => {
                let id = self.ids.next();
                self.builds.insert(number, id);
                // As in a stock daemon: an empty machine name means the machine that reports the build.
                let fields = vec![drv.to_absolute_path().into(), "".into(), 1.into(), 1.into()];
                let text = super::started(kind, &drv);
                to.push(start(id, Verbosity::Info, ActivityKind::Build, text, fields));
            }
            // Not an activity of the kind `actBuildWaiting`: Nix shows those on terminals only (`progress-bar.cc`).
            Event::Waiting { drv, why } => to.push(LogEvent::message(super::waiting(&why, &drv))),
            Event::Line { number, text } => to.push(LogEvent::build_line(self.build(number), text)),
            Event::Phase { number, name } => to.push(LogEvent::phase(self.build(number), &name)),
            Event::Stopped { number } => {
                to.push(LogEvent::stop(self.build(number)));
                self.builds.remove(&number);
            }
            Event::Reused { drv } => {
                let drv = drv.to_absolute_path();
                let text = format!("using the earlier result on '{}' for '{drv}'", self.machine);
                self.point(ActivityKind::Unknown, text, Vec::new(), to);
            }
            Event::Resolved { from, to: resolved } => {
                let (from, resolved) = (from.to_absolute_path(), resolved.to_absolute_path());
                let text = format!("resolved derivation: '{from}' -> '{resolved}'");
                self.point(ActivityKind::BuildWaiting, text, vec![from.into(), resolved.into()], to);
            }
            Event::LimitOfOthers { drv } => to.push(LogEvent::message(super::limit_of_others(&drv))),
            Event::StartsAgain { drv, why } => to.push(LogEvent::message(super::starts_again(why, &drv))),
            Event::KeepFailedRefused => {
                to.push(LogEvent::message(super::keep_failed_refused(self.machine)));
            }
            Event::DependencyFailed { message } => {
                to.push(LogEvent::message(super::dependency_failed(&message)));
            }
            Event::Fetch(event) => self.fetch(event, to),
        }
    }

    fn fetch(&mut self, event: substitute::Event, to: &mut Vec<LogEvent>) {
        match event {
            substitute::Event::Started { path, from, .. } => {
                let (outer, inner) = (self.ids.next(), self.ids.next());
                let (full, machine) = (path.to_absolute_path(), self.machine);
                let fields = vec![full.as_str().into(), from.as_str().into()];
                to.push(start(outer, Verbosity::Error, ActivityKind::Substitute, String::new(), fields));
                to.push(LogEvent::StartActivity {
                    id: inner,
                    level: Verbosity::Info,
                    kind: ActivityKind::CopyPath,
                    text: format!("copying path '{full}' from '{from}' to '{machine}'"),
                    fields: vec![full.into(), from.into(), machine.into()],
                    parent: outer,
                });
                self.fetches.insert(path, (outer, inner));
            }
            substitute::Event::Progress { path, received, size } => {
                if let Some((_, inner)) = self.fetches.get(&path) {
                    to.push(progress(*inner, [received, size, 0, 0]));
                }
            }
            substitute::Event::Ended { path } => {
                if let Some((outer, inner)) = self.fetches.remove(&path) {
                    to.extend([LogEvent::stop(inner), LogEvent::stop(outer)]);
                }
            }
            substitute::Event::Warning(warning) => {
                to.extend(self.warnings.show(warning).map(LogEvent::message));
            }
        }
    }

    /// An activity that ends at once.
    fn point(&self, kind: ActivityKind, text: String, fields: Vec<Field>, to: &mut Vec<LogEvent>) {
        let id = self.ids.next();
        to.extend([start(id, Verbosity::Info, kind, text, fields), LogEvent::stop(id)]);
    }

    /// The activity of a build; 0, which means none, if it has not started.
    fn build(&self, number: BuildNumber) -> u64 {
        self.builds.get(&number).copied().unwrap_or(0)
    }
}

fn start(id: u64, level: Verbosity, kind: ActivityKind, text: String, fields: Vec<Field>) -> LogEvent {
    LogEvent::StartActivity { id, level, kind, text, fields, parent: 0 }
}

fn progress(id: u64, numbers: [u64; 4]) -> LogEvent {
    let fields = numbers.into_iter().map(Field::Int).collect();
    LogEvent::Result { id, kind: ResultKind::Progress, fields }
}

#[cfg(test)]
mod tests {
    use builds::events::BuildKind;

    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::from_parts([1; 20], name).expect("a path")
    }

    /// The events, rendered as those of one request of a new session.
    fn rendered(events: Vec<Event>) -> Vec<LogEvent> {
        let ids = Ids(Arc::new(AtomicU64::new(1)));
        let mut renderer = Renderer::new(&ids, "box");
        let mut to = Vec::new();
        events.into_iter().for_each(|event| renderer.render(event, &mut to));
        to
    }

    #[test]
    fn lines_belong_to_the_activity_of_their_build() {
        let (one, two) = (BuildNumber(7), BuildNumber(8));
        let kind = BuildKind::Building;
        let rendered = rendered(vec![
            Event::Started { number: one, drv: path("a.drv"), kind },
            Event::Started { number: two, drv: path("b.drv"), kind },
            Event::Line { number: one, text: b"x".to_vec() },
            Event::Phase { number: two, name: "buildPhase".into() },
            Event::Stopped { number: one },
        ]);
        let (a, b) = (path("a.drv").to_absolute_path(), path("b.drv").to_absolute_path());
        assert_eq!(
            rendered,
            [
                LogEvent::start_build(1, &a),
                LogEvent::start_build(2, &b),
                LogEvent::build_line(1, "x"),
                LogEvent::phase(2, "buildPhase"),
                LogEvent::stop(1)
            ]
        );
    }

    #[test]
    fn a_download_is_a_copy_inside_of_a_substitution() {
        let path = path("x");
        let rendered = rendered(vec![
            substitute::Event::Started { path: path.clone(), from: "cache".into(), size: 9 }.into(),
            substitute::Event::Progress { path: path.clone(), received: 3, size: 9 }.into(),
            substitute::Event::Ended { path }.into(),
        ]);
        let parents: Vec<_> = rendered
            .iter()
            .filter_map(|event| match event {
                LogEvent::StartActivity { id, kind, parent, .. } => Some((*id, *kind, *parent)),
                _ => None,
            })
            .collect();
        assert_eq!(parents, [(1, ActivityKind::Substitute, 0), (2, ActivityKind::CopyPath, 1)]);
        assert_eq!(rendered[2..], [progress(2, [3, 9, 0, 0]), LogEvent::stop(2), LogEvent::stop(1)]);
    }

    #[test]
    fn a_warning_is_shown_once_and_only_a_few_are() {
        let warning = |n: usize| substitute::Event::Warning(format!("w{n}").into()).into();
        let shown = rendered((0..20).map(|n| warning(n / 2)).collect());
        let expected: Vec<LogEvent> = (0..5).map(|n| LogEvent::message(format!("warning: w{n}"))).collect();
        assert_eq!(shown, expected);
    }
}
