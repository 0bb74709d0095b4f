//! `ticket`: a member makes tickets for friends, and looks at them and revokes them. Maintainers can do the last two with
//! everybody's.
//!
//! A token is shown when its ticket is made, and never again unless its maker asked for that; it is in no log.
//! Not here: logging in with a ticket (`ticket_login`), and what is left of one (`tickets`).

use std::sync::Arc;
use std::time::Duration;

use ::roster::{date, keys};
use daemon::Agent;
use members::{Member, Roster};
use russh::keys::PublicKey;
use serde_json::json;
use settings::Reached;
use tickets::{New, Terms, Ticket};

use super::{Command, Row, Wrong, arguments, json_line, units};
use crate::terminal::{ExitStatus, Screen, Terminal};
use instructions::Instructions;
pub(super) use summary::Summary;

mod instructions;
mod summary;

/// Longest wait until a ticket that was made or revoked is known to all parts of the box. It takes a moment; a login
/// before that would be refused.
const KNOWN: Duration = Duration::from_secs(10);
/// A ticket lasts so long if its maker does not say, or as long as the box allows.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
enum Action {
    /// Make a ticket, and print its token with the configuration for its holder
    Create(Create),
    /// List your tickets: live ones, and those that ended in the last week
    List {
        /// Those of all members; for maintainers
        #[arg(long)]
        all: bool,
        /// Print one JSON array on one line
        #[arg(long)]
        json: bool,
    },
    /// Show what a ticket allows, and what was used of it
    Inspect(One),
    /// Print the token of a ticket that was made with --revealable
    Reveal {
        /// The name or the id in `ticket list`
        ticket: String,
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
    /// End a ticket, with the builds that wait or run for it
    Revoke(One),
}

#[derive(Debug, PartialEq, Eq, clap::Args)]
struct One {
    /// The name or the id in `ticket list`
    ticket: String,
    /// Of the tickets of all members; for maintainers
    #[arg(long)]
    all: bool,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, PartialEq, Eq, clap::Args)]
struct Create {
    /// A name that tells your tickets apart; the holder and maintainers see it
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: String,
    /// How long the ticket lasts, such as 30m, 2h or 7d; a day if you do not say
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires: Option<Duration>,
    /// How many builds may be started with it; or `unlimited`
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = uses)]
    uses: Uses,
    /// How long all its builds together may take
    #[arg(long, value_name = "TIME", value_parser = time)]
    max_build_time: Option<Duration>,
    /// How much its holder may send, such as 500M or 20G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_upload: Option<u64>,
    /// How many of its builds may run at the same time; 1 if there is a --max-build-time, of which each then gets a part
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_jobs: Option<u32>,
    /// What its holder may do; to build includes to read
    #[arg(long, value_enum, value_delimiter = ',', default_value = "build", value_name = "SCOPE")]
    scope: Vec<Scope>,
    /// An ssh public key that the holder has to prove besides the token
    #[arg(long, value_name = "KEY", num_args = 1..=3)]
    bind_key: Vec<String>,
    /// Keep the token, so that you can see it again; otherwise only its hash is kept
    #[arg(long)]
    revealable: bool,
    /// The address under which the holder reaches the box, if it is not the one that the maintainers have configured
    #[arg(long, value_name = "HOST[:PORT]")]
    host: Option<Reached>,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scope {
    Build,
    Read,
}

/// A number of builds. A type of its own, because clap takes an `Option` for an argument that may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Uses(Option<u64>);

/// A ticket that lasts no time, and one that may take or send nothing, are mistakes.
fn time(text: &str) -> Result<Duration, &'static str> {
    units::parse_duration(text).and_then(|time| {
        if time.is_zero() { Err("zero; write how long, such as 30m or 2h") } else { Ok(time) }
    })
}

fn size(text: &str) -> Result<u64, &'static str> {
    units::parse_size(text)
        .and_then(|size| if size == 0 { Err("zero; use `--scope read`") } else { Ok(size) })
}

fn uses(text: &str) -> Result<Uses, &'static str> {
    if text == "unlimited" {
        return Ok(Uses(None));
    }
    let count = text.parse().ok().filter(|count| (1..=1_000_000).contains(count));
    count.map(|count| Uses(Some(count))).ok_or("write a number from 1 to 1000000, or `unlimited`")
}

fn name(text: &str) -> Result<String, String> {
    let wrong = |why| format!("{why}; a name is {}", ::roster::name::expected());
    ::roster::name::check(text).map(|()| text.to_owned()).map_err(wrong)
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Ticket)
}

pub(super) async fn run(
    arguments: Arguments,
    terminal: Terminal<'_>,
    agent: Arc<Agent>,
    member: Arc<Member>,
) -> ExitStatus {
    let stall = agent.config.limits.client_stall;
    let answer = match arguments.action {
        Action::Create(create) => make(create, &agent, &member).await,
        Action::List { all, json } => list(all, json, &agent, &member, terminal.screen),
        Action::Inspect(One { ticket, all, json }) => find(&agent, &member, &ticket, all).map(|ticket| {
            let summary = Summary::of(&ticket, &agent.roster.borrow());
            if json { json_line(&summary) } else { summary.long() }
        }),
        Action::Reveal { ticket, json } => reveal(&ticket, json, &agent, &member),
        Action::Revoke(One { ticket, all, json }) => match find(&agent, &member, &ticket, all) {
            Ok(ticket) => revoke(ticket, json, &agent, &member).await,
            Err(why) => Err(why),
        },
    };
    match answer {
        Ok(text) => terminal.print(&text, stall).await,
        Err(why) => terminal.fail(&why, stall).await,
    }
}

async fn make(create: Create, agent: &Arc<Agent>, member: &Arc<Member>) -> Result<String, String> {
    let limits = &agent.config.limits;
    if limits.max_tickets_per_member == 0 {
        return Err("members make no tickets on this box (limits.max-tickets-per-member is 0)".to_owned());
    }
    let life = create.expires.unwrap_or_else(|| A_DAY.min(limits.max_ticket_life));
    if life > limits.max_ticket_life {
        return Err(format!(
            "a ticket may last for {} at most (limits.max-ticket-seconds); choose a shorter `--expires`",
            units::exact(limits.max_ticket_life.as_secs())
        ));
    }
    let bind_key = (!create.bind_key.is_empty()).then(|| key(&create.bind_key.join(" "))).transpose()?;
    let scope = match create.scope.contains(&Scope::Build) {
        true => tickets::Scope::Build,
        false => tickets::Scope::Read,
    };
    let terms = Terms {
        expires: date::now().saturating_add(life.as_secs()),
        uses: create.uses.0,
        max_build_seconds: create.max_build_time.map(|time| time.as_secs()),
        max_upload_bytes: create.max_upload,
        max_jobs: create.max_jobs,
        scope,
        bind_key,
    };
    let new = New {
        name: create.name,
        maker: member.id.clone(),
        terms,
        revealable: create.revealable,
        most: limits.max_tickets_per_member,
    };
    let tickets = agent.tickets.clone();
    let making = agent.threads.of(&member.id).commit(move || tickets.make(new));
    let made = making.await.map_err(|lost| format!("the ticket was not made because of the box: {lost}"))?;
    let (ticket, token) = made.map_err(|why| why.to_string())?;
    tracing::info!(member = %member.name, ticket = %ticket.id, name = %ticket.name, "ticket made");
    until(agent, |roster| roster.by_id(&ticket.id).is_some()).await;
    let summary = Summary::of(&ticket, &agent.roster.borrow());
    let instructions = Instructions::of(agent, create.host, &ticket, &token);
    Ok(match create.json {
        true => json_line(&json!({ "ticket": summary, "token": token, "login": instructions })),
        false => format!("{}\n{}", summary.long(), instructions.text(create.revealable)),
    })
}

/// Waits until the roster that everybody goes by says so.
async fn until(agent: &Agent, is_known: impl Fn(&Roster) -> bool) {
    let mut roster = agent.roster.clone();
    // Too late, or the end of the process: the answer is right all the same.
    let _ = tokio::time::timeout(KNOWN, roster.wait_for(|roster| is_known(roster))).await;
}

/// A public key as the tickets keep it.
fn key(text: &str) -> Result<String, String> {
    let wrong =
        |why: &str| format!("`--bind-key` {why}; write the line of a file such as ~/.ssh/id_ed25519.pub");
    let key = PublicKey::from_openssh(text).map_err(|_| wrong("is not an ssh public key"))?;
    keys::acceptable(key.key_data()).map_err(|_| wrong("is of a kind that is not accepted here"))?;
    keys::text(key.key_data()).map_err(|_| wrong("cannot be written"))
}

fn list(all: bool, json: bool, agent: &Agent, member: &Member, screen: Screen) -> Result<String, String> {
    let roster = agent.roster.borrow().clone();
    super::may_say_all(all, &roster, member, "tickets")?;
    let listed = agent.tickets.list(|ticket| all || ticket.maker == member.id);
    let summaries: Vec<Summary> = listed.iter().map(|ticket| Summary::of(ticket, &roster)).collect();
    Ok(match json {
        true => json_line(&summaries),
        false if summaries.is_empty() => "no ticket is live, and none ended in the last week\n".to_owned(),
        false => summary::table(&summaries, all).text(screen),
    })
}

/// The ticket with this id, or the newest with this name; a live one first.
fn find(agent: &Agent, member: &Member, named: &str, all: bool) -> Result<Arc<Ticket>, String> {
    super::may_say_all(all, &agent.roster.borrow(), member, "tickets")?;
    let fits = |ticket: &Ticket| summary::id(ticket) == named || *ticket.name == *named;
    let found = agent.tickets.list(|ticket| (all || ticket.maker == member.id) && fits(ticket));
    let several = all && found.iter().filter(|ticket| ticket.is_live() && *ticket.name == *named).count() > 1;
    if several {
        let ids: Vec<&str> = found.iter().map(|ticket| summary::id(ticket)).collect();
        return Err(format!("several tickets have that name; choose one of the ids {}", ids.join(" ")));
    }
    let newest = found.into_iter().max_by_key(|ticket| (ticket.is_live(), ticket.created));
    newest.ok_or_else(|| {
        let named = printable::start(named, 40);
        let whose = if all { "there is" } else { "you have" };
        format!("{whose} no ticket `{named}`; `ticket list` has the names and ids")
    })
}

fn reveal(named: &str, json: bool, agent: &Agent, member: &Member) -> Result<String, String> {
    let ticket = find(agent, member, named, false)?;
    let token = ticket.token().ok_or_else(|| {
        format!(
            "the token of `{}` was not kept: it was made without `--revealable`; make another ticket",
            ticket.name
        )
    })?;
    tracing::info!(member = %member.name, ticket = %ticket.id, "token of a ticket revealed");
    Ok(match json {
        true => json_line(&json!({ "id": summary::id(&ticket), "name": &*ticket.name, "token": token })),
        false => format!("{token}\n"),
    })
}

async fn revoke(
    ticket: Arc<Ticket>,
    json: bool,
    agent: &Agent,
    member: &Arc<Member>,
) -> Result<String, String> {
    if !ticket.is_live() {
        return Err(format!(
            "the ticket `{}` has ended already: it is {}",
            ticket.name,
            ticket.state().name()
        ));
    }
    let (tickets, revoked) = (agent.tickets.clone(), ticket.clone());
    let revoking = agent.threads.of(&member.id).commit(move || tickets.revoke(&revoked)).await;
    tracing::info!(member = %member.name, ticket = %ticket.id, name = %ticket.name, "ticket revoked");
    let kept = revoking.map_err(|lost| lost.to_string()).and_then(|kept| kept);
    until(agent, |roster| roster.by_id(&ticket.id).is_none()).await;
    kept.map_err(|error| {
        tracing::error!(ticket = %ticket.id, error, "a revocation cannot be written down");
        format!("the ticket is revoked, but the box cannot write that down, so it could be live again after a restart: {error}")
    })?;
    Ok(match json {
        true => json_line(&json!({ "id": summary::id(&ticket), "name": &*ticket.name })),
        false => format!("ticket {} revoked; its sessions and builds end\n", ticket.name),
    })
}
