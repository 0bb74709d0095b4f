//! A ticket for people: what it allows, and what was used of it. Never its token.

use ::roster::date;
use members::Roster;
use serde::Serialize;
use tickets::{PREFIX, Scope, State, Ticket, Used};

use crate::commands::table::{Kind, Table};
use crate::commands::units;

/// One ticket, for text and JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    id: String,
    name: String,
    /// The member who made it; of one who has left, the identity.
    maker: String,
    /// `live`, `expired`, `revoked`, or `suspended` while its maker is not in the roster.
    state: &'static str,
    created: String,
    expires: String,
    scope: Scope,
    used: u64,
    /// `null`: unlimited.
    uses: Option<u64>,
    build_seconds: u64,
    cpu_seconds: u64,
    max_build_seconds: Option<u64>,
    upload_bytes: u64,
    max_upload_bytes: Option<u64>,
    max_jobs: Option<u32>,
    bind_key: Option<String>,
    revealable: bool,
}

/// The part of the identity that people type.
pub(super) fn id(ticket: &Ticket) -> &str {
    ticket.id.strip_prefix(PREFIX).unwrap_or(&ticket.id)
}

impl Summary {
    pub fn of(ticket: &Ticket, roster: &Roster) -> Self {
        let Used { uses: used, build_millis, cpu_millis, upload_bytes, .. } = ticket.used();
        let maker = roster.by_id(&ticket.maker);
        let state = match ticket.state() {
            State::Live if maker.is_none() => "suspended",
            state => state.name(),
        };
        let terms = ticket.terms.clone();
        Self {
            id: id(ticket).to_owned(),
            name: ticket.name.to_string(),
            maker: maker.map_or(&ticket.maker, |maker| &maker.name).to_string(),
            state,
            created: date::shown(ticket.created),
            expires: date::shown(terms.expires),
            scope: terms.scope,
            used,
            uses: terms.uses,
            build_seconds: build_millis / 1000,
            cpu_seconds: cpu_millis / 1000,
            max_build_seconds: terms.max_build_seconds,
            upload_bytes,
            max_upload_bytes: terms.max_upload_bytes,
            max_jobs: terms.jobs(),
            bind_key: terms.bind_key,
            revealable: ticket.token().is_some(),
        }
    }

    fn of_uses(&self) -> String {
        let uses = self.uses.map_or("unlimited".to_owned(), |uses| uses.to_string());
        format!("{} of {uses}", self.used)
    }

    /// One line for each fact.
    pub fn long(&self) -> String {
        let of = |used: String, most: Option<String>| match most {
            Some(most) => format!("{used} of {most}"),
            None => format!("{used}, no limit of its own"),
        };
        let scope = match self.scope {
            Scope::Read => "read",
            Scope::Build => "build, read",
        };
        let mut lines = vec![
            ("ticket", self.name.clone()),
            ("id", self.id.clone()),
            ("made by", self.maker.clone()),
            ("state", self.state.to_owned()),
            ("expires", self.expires.clone()),
            ("scope", scope.to_owned()),
            ("builds started", self.of_uses()),
            ("build time", of(units::exact(self.build_seconds), self.max_build_seconds.map(units::exact))),
            ("processor time", units::exact(self.cpu_seconds)),
            ("sent", of(units::bytes(self.upload_bytes), self.max_upload_bytes.map(units::bytes))),
        ];
        lines.extend(self.max_jobs.map(|jobs| ("builds at once", jobs.to_string())));
        lines.extend(self.bind_key.clone().map(|key| ("bound to", key)));
        if self.revealable {
            lines.push(("token", "kept; `ticket reveal` prints it".to_owned()));
        }
        lines.into_iter().map(|(name, value)| format!("{name:<18}  {value}\n")).collect()
    }
}

/// A table of tickets. `all`: with their makers.
pub fn table(summaries: &[Summary], all: bool) -> Table {
    let makers = all.then_some(("made by", Kind::Text));
    let others = [("state", Kind::State), ("expires", Kind::Text), ("builds", Kind::Text)];
    let columns = [("id", Kind::Text), ("ticket", Kind::Text)].into_iter().chain(makers).chain(others);
    let mut table = Table::new(columns.collect());
    for summary in summaries {
        let Summary { id, name, maker, state, expires, .. } = summary;
        let maker = all.then(|| maker.clone());
        let others = [(*state).to_owned(), expires.clone(), summary.of_uses()];
        table.row([id.clone(), name.clone()].into_iter().chain(maker).chain(others).collect());
    }
    table
}
