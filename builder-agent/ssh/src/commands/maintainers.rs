//! Commands that only maintainers can run. Who asks is looked up here, for all of them, in the roster of the moment.

use std::sync::Arc;

use daemon::{Agent, Caller};

use super::{audit, drain, gc, kick, sync};
use crate::records::{Event, Kind, Records};
use crate::terminal::{ExitStatus, Terminal};

/// One of these commands, parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Maintaining {
    Drain(drain::Arguments),
    Undrain(super::printing::Json),
    Kick(kick::Arguments),
    Audit(audit::Arguments),
    Sync(super::printing::Json),
    Gc(gc::Arguments),
}

/// What every one of these commands has at hand.
pub(super) struct Desk<'a> {
    pub agent: &'a Arc<Agent>,
    pub caller: &'a Caller,
    pub records: &'a Records,
}

impl Desk<'_> {
    /// Something that this maintainer did, for the audit.
    pub fn event(&self, kind: Kind) -> Event {
        Event::now(kind).by(&self.caller.member.name).on(self.caller.connection)
    }
}

/// Runs the command, or says who can.
pub(super) async fn run(command: Maintaining, terminal: Terminal<'_>, desk: Desk<'_>) -> ExitStatus {
    let stall = desk.agent.config.limits.client_stall;
    let is_maintainer = super::is_maintainer(&desk.agent.roster.borrow(), &desk.caller.member);
    if !is_maintainer {
        let why =
            "this command is for maintainers (`role = \"maintainer\"` in the roster); `help` lists yours";
        return terminal.fail(why, stall).await;
    }
    match command {
        Maintaining::Drain(arguments) => drain::begin(arguments, terminal, desk).await,
        Maintaining::Undrain(json) => drain::end(json, terminal, desk).await,
        Maintaining::Kick(arguments) => kick::run(arguments, terminal, desk).await,
        Maintaining::Audit(arguments) => audit::run(arguments, terminal, desk).await,
        Maintaining::Sync(json) => sync::run(json, terminal, desk).await,
        Maintaining::Gc(arguments) => gc::run(arguments, terminal, desk).await,
    }
}
