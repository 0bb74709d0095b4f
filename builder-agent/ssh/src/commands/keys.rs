//! `keys list`: the keys with which the member can log in. The roster is in git, so keys change there.

use daemon::Agent;
use members::Member;
use roster::Key;
use serde::Serialize;

#[derive(Debug, PartialEq, Eq, clap::Parser)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
enum Action {
    /// List your keys
    List {
        /// Print one JSON array on one line
        #[arg(long)]
        json: bool,
    },
}

#[derive(Serialize)]
struct Listed {
    fingerprint: String,
    kind: &'static str,
    comment: String,
    /// Whether the key signs certificates, and does not log in itself.
    authority: bool,
    /// The addresses from which the key may be used; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The last moment at which the key lets its holder in.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl Listed {
    fn of(key: &Key) -> Self {
        Self {
            fingerprint: key.fingerprint(),
            kind: key.kind(),
            comment: key.comment.clone(),
            authority: key.authority.is_some(),
            from: key.from.as_ref().map(|from| from.text().to_owned()),
            until: key.until.map(|until| until.to_string()),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}  {}", self.fingerprint, self.kind);
        if !self.comment.is_empty() {
            text.push_str(&format!("  {}", printable::line(&self.comment)));
        }
        if self.authority {
            text.push_str("  (certificate authority)");
        }
        if let Some(from) = &self.from {
            text.push_str(&format!("  (from {from} only)"));
        }
        if let Some(until) = &self.until {
            text.push_str(&format!("  (until {until})"));
        }
        text + "\n"
    }
}

/// The output of the command.
pub(super) fn text(arguments: &Arguments, agent: &Agent, member: &Member) -> String {
    let Action::List { json } = arguments.action;
    let mut listed: Vec<Listed> =
        agent.roster.borrow().keys_of(member).iter().map(|key| Listed::of(key)).collect();
    listed.sort_by(|one, other| one.fingerprint.cmp(&other.fingerprint));
    match json {
        true => super::json_line(&listed),
        false => listed.iter().map(Listed::text).collect(),
    }
}
