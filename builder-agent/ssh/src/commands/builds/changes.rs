//! What has changed between two looks at the builds, one line for each change.

use std::collections::BTreeMap;

use ::roster::date;
use builds::Listed;
use serde::Serialize;

use super::line::Line;
use crate::commands::units;
use crate::commands::watching::Look;
use crate::terminal::ExitStatus;

/// One change. Fields are added, never renamed.
#[derive(Serialize)]
struct Change<'a> {
    /// In seconds since 1970.
    time: u64,
    /// `waiting`, `running`, `built`, `failed`, or `ended` for a build that was cancelled or left.
    event: &'static str,
    #[serde(flatten)]
    line: &'a Line,
}

impl Change<'_> {
    /// Texts and numbers, which cannot fail.
    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    fn text(&self) -> String {
        let Line { id, drv, member, seconds, .. } = self.line;
        let time = date::shown(self.time);
        format!("{time}  {id:>6}  {:<7}  {:>12}  {member}  {drv}\n", self.event, units::seconds(*seconds))
    }
}

/// The builds of the last look.
pub(super) struct Changes {
    /// Only this build.
    only: Option<u64>,
    before: BTreeMap<u64, Listed>,
}

impl Changes {
    pub fn of(only: Option<u64>) -> Self {
        Self { only, before: BTreeMap::new() }
    }

    /// What has changed since the last look. The first look lists everything.
    pub fn next(&mut self, builds: Vec<Listed>, json: bool) -> Look {
        let wanted = builds.into_iter().filter(|build| self.only.is_none_or(|only| only == build.id));
        let now: BTreeMap<u64, Listed> = wanted.map(|build| (build.id, build)).collect();
        let (mut text, mut status) = (String::new(), None);
        let mut tell = |event, build: &Listed| {
            let change = Change { time: date::now(), event, line: &Line::of(build) };
            text.push_str(&if json { change.json() } else { change.text() });
        };
        for (id, build) in &self.before {
            if !now.contains_key(id) {
                let outcome = build.outcome.borrow();
                let ended = outcome.as_ref().map(|outcome| match &outcome.result {
                    Ok(_) => "built",
                    Err(failure) if failure.is_cancelled() => "ended",
                    Err(_) => "failed",
                });
                let ended = ended.unwrap_or("ended");
                status = Some(if ended == "built" { ExitStatus::DONE } else { ExitStatus::FAILED });
                tell(ended, build);
            }
        }
        for (id, build) in &now {
            let was = self.before.get(id).map(|before| before.running.is_some());
            if was != Some(build.running.is_some()) {
                tell(if build.running.is_some() { "running" } else { "waiting" }, build);
            }
        }
        self.before = now;
        match status.filter(|_| self.only.is_some()) {
            Some(status) => Look::Last(text, status),
            None if text.is_empty() => Look::Same,
            None => Look::New(text),
        }
    }
}
