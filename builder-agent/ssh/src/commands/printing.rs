//! The commands that print what is known, and end.

use daemon::Agent;
use members::Member;
use nix_derivation::StorePath;
use serde::Serialize;

use super::{Command, Row, Wrong, arguments, client_config, help, store_path, whoami};

/// A command that only prints.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Print {
    /// The public half of the key that signs Verified paths.
    SigningKey(Json),
    WhoAmI(Json),
    ClientConfig(client_config::Arguments),
    /// The list of commands.
    Help(Json),
    /// The help of one command.
    Text(String),
}

/// The words of a command that has one option.
#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Json {
    /// Print JSON, on one line
    #[arg(long)]
    pub json: bool,
}

/// The words of `log`.
#[derive(Debug, clap::Parser)]
struct LogArguments {
    /// A derivation, or an output: /nix/store/HASH-NAME, HASH-NAME, or with a suffix such as /bin/x or ^out
    #[arg(value_parser = path_of_log)]
    path: StorePath,
}

fn path_of_log(text: &str) -> Result<StorePath, &'static str> {
    store_path(text).ok_or("not a store path; try `log /nix/store/<hash>-<name>.drv`, or an output path")
}

impl Print {
    /// The output.
    pub fn text(&self, agent: &Agent, member: &Member) -> String {
        match self {
            Self::SigningKey(Json { json: true }) => json_line(&agent.signing_key.to_string()),
            Self::SigningKey(Json { json: false }) => format!("{}\n", agent.signing_key),
            Self::WhoAmI(Json { json }) => whoami::text(agent, member, *json),
            Self::ClientConfig(arguments) => client_config::text(arguments, agent, member),
            Self::Help(Json { json }) => {
                help::text(*json, super::is_maintainer(&agent.roster.borrow(), member))
            }
            Self::Text(text) => text.clone(),
        }
    }
}

/// JSON of strings and numbers, which cannot fail.
pub(super) fn json_line(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

pub(super) fn signing_key(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |json| Command::Print(Print::SigningKey(json)))
}

pub(super) fn whoami(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |json| Command::Print(Print::WhoAmI(json)))
}

pub(super) fn client_config(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |arguments| Command::Print(Print::ClientConfig(arguments)))
}

pub(super) fn help(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |json| Command::Print(Print::Help(json)))
}

pub(super) fn log(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |LogArguments { path }| Command::Log(path))
}
