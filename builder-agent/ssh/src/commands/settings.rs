//! `settings`: the settings of this session, the level that each comes from, and for one setting what every level says.
//!
//! The ssh environment is that of the connection that asks, so `SetEnv` can be tried out with it. Derivations are not
//! known here.

use daemon::{Agent, Caller};
use members::settings::{Kind, Level, Setting, Settled, Value, Vote, find};
use serde::Serialize;

use super::{Command, Row, Wrong, arguments, json_line, settle};

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    /// What each level says about this setting, and why it counts or not
    #[arg(long, value_name = "NAME", value_parser = named)]
    explain: Option<&'static Setting>,
    /// Print JSON, on one line
    #[arg(long)]
    json: bool,
}

fn named(name: &str) -> Result<&'static Setting, String> {
    find(name).map_err(|unknown| unknown.in_full())
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Settings)
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'static str,
    value: &'a Value,
    /// The level that decided.
    level: &'static str,
}

#[derive(Serialize)]
struct Explained<'a> {
    #[serde(flatten)]
    line: Line<'a>,
    help: &'static str,
    /// The levels that may set it.
    allowed: Vec<&'static str>,
    said: Vec<Said<'a>>,
}

/// What one level says.
#[derive(Serialize)]
struct Said<'a> {
    level: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: &'a str,
    value: &'a Value,
    counts: bool,
    /// Why it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// The output of the command.
pub(super) fn text(arguments: &Arguments, agent: &Agent, caller: &Caller) -> String {
    let resolved = settle::resolved(agent, caller);
    match (arguments.explain, arguments.json) {
        (None, false) => {
            let line = |settled: &Settled| {
                let value = shown(settled.setting, &settled.value);
                format!("{:<22}  {value:<12}  {}\n", settled.setting.name, settled.level.name())
            };
            resolved.iter().map(line).collect()
        }
        (None, true) => json_line(&resolved.iter().map(line).collect::<Vec<_>>()),
        (Some(setting), false) => in_words(resolved.get(setting.id)),
        (Some(setting), true) => json_line(&explained(resolved.get(setting.id))),
    }
}

fn line(settled: &Settled) -> Line<'_> {
    Line { name: settled.setting.name, value: &settled.value, level: settled.level.name() }
}

fn explained(settled: &Settled) -> Explained<'_> {
    fn said(vote: &Vote) -> Said<'_> {
        let why = vote.why_not();
        Said { level: vote.level.name(), group: &vote.by, value: &vote.value, counts: why.is_none(), why }
    }
    Explained {
        line: line(settled),
        help: settled.setting.help,
        allowed: settled.setting.levels(),
        said: settled.votes.iter().map(said).collect(),
    }
}

fn in_words(settled: &Settled) -> String {
    let setting = settled.setting;
    let mut text = format!(
        "{} is {}, by {}\n{}\n\n",
        setting.name,
        shown(setting, &settled.value),
        settled.level.words(),
        setting.help
    );
    for vote in &settled.votes {
        let who = format!("{} {}", vote.level.name(), vote.by);
        let why = vote.why_not().unwrap_or_else(|| "counts".into());
        let key = match vote.level {
            Level::System => format!(" (`{}` in builder-agent.toml)", setting.key),
            _ => String::new(),
        };
        let value = shown(setting, &vote.value);
        text.push_str(&format!("{:<16}  {value:<12}  {why}{key}\n", who.trim_end()));
    }
    text.push_str(&format!("\nlevels that may set it: {}\n", setting.levels().join(", ")));
    text
}

fn shown(setting: &Setting, value: &Value) -> String {
    match (setting.kind, value) {
        (Kind::Most { .. } | Kind::Amount { .. }, Value::Number(0)) => "none".into(),
        (Kind::Most { unit, .. } | Kind::Amount { unit, .. }, value) => format!("{value} {unit}"),
        (_, value) => value.to_string(),
    }
}
