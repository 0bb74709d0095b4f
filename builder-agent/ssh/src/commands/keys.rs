//! `keys`: the keys with which the member can log in, and what to propose for other ones.
//!
//! The roster is in git, so keys change there: `keys set` reads keys, checks them as `access-manager check` does, and prints
//! the change and where it goes. It changes nothing. Not here: the rules for keys (`roster::keys`).

use std::collections::BTreeSet;
use std::time::Duration;

use daemon::{Agent, Reader};
use members::{Member, Roster};
use roster::{Key, MAX_KEYS, nix_text};
use serde::Serialize;
use tokio::io::AsyncReadExt;

use super::{Command, Row, Wrong, arguments, json_line};
use crate::terminal::{ExitStatus, Terminal, fail, print};

/// Most bytes that `keys set` reads: far more than the largest number of usual keys.
const MAX_BYTES: usize = 64 << 10;

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
    /// Read public keys from the input, and print the change of the roster that makes them yours; nothing is changed here
    Set {
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, Command::Keys)
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
        text
    }
}

/// What `keys set` prints.
#[derive(Serialize)]
struct Proposal {
    /// Always false: the roster is in git.
    changed: bool,
    keys: Vec<Proposed>,
    /// Keys of the member that are not among them.
    removed: Vec<Listed>,
    notes: Vec<String>,
    /// The contents of a key file.
    file: String,
    /// The member's keys in `users.nix`.
    nix: String,
    /// Where the roster comes from; absent if it came with the box.
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
}

#[derive(Serialize)]
struct Proposed {
    #[serde(flatten)]
    key: Listed,
    /// Whether the member has it already.
    known: bool,
}

impl Proposal {
    /// The change from the member's keys in this roster to `keys`.
    fn of(keys: &[Key], roster: &Roster, member: &Member) -> Self {
        let own = roster.keys_of(member);
        let known = |key: &Key| own.iter().any(|other| other.key == key.key);
        let kept = |key: &Key| keys.iter().any(|other| other.key == key.key);
        let mut removed: Vec<Listed> =
            own.iter().filter(|key| !kept(key)).map(|key| Listed::of(key)).collect();
        removed.sort_by(|one, other| one.fingerprint.cmp(&other.fingerprint));
        let mut notes = Vec::new();
        for key in keys {
            let holders = roster.holders(&key.data).iter().chain(roster.holders_of_authority(&key.data));
            if holders.into_iter().any(|holder| holder.member.id != member.id) {
                let fingerprint = key.fingerprint();
                notes.push(format!(
                    "another member has the key {fingerprint}; with it, the ssh user name says who logs in"
                ));
            }
        }
        if !own.is_empty() && !keys.iter().any(known) {
            notes.push(
                "none of your present keys is kept, so the box takes this name for another person, who has none of your \
                 paths and settings; keep one of them for as long as it takes to log in once with a new one"
                    .to_owned(),
            );
        }
        let lines: Vec<String> = keys.iter().map(Key::line).collect();
        let entries: String = lines.iter().map(|line| format!("    {}\n", nix_text::string(line))).collect();
        let baked = roster.source == roster::BAKED_IN || roster.source.is_empty();
        Self {
            changed: false,
            keys: keys.iter().map(|key| Proposed { key: Listed::of(key), known: known(key) }).collect(),
            removed,
            notes,
            file: lines.iter().map(|line| format!("{line}\n")).collect(),
            nix: format!("{}.keys = [\n{entries}  ];", attribute(&member.name)),
            repository: (!baked).then(|| roster.source.clone()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::from(
            "Nothing has been changed: keys are in the roster, which is in git. These would be yours:\n\n",
        );
        for Proposed { key, known } in &self.keys {
            let state = if *known { "has" } else { "new" };
            text.push_str(&format!("  {state}      {}\n", key.text()));
        }
        for key in &self.removed {
            text.push_str(&format!("  removed  {}\n", key.text()));
        }
        for note in &self.notes {
            text.push_str(&format!("\nnote: {note}\n"));
        }
        text.push_str("\nIf your keys have a file of their own, its new contents are:\n\n");
        text.push_str(&printable::lines(&self.file));
        text.push_str(&format!(
            "\nIf they are in users.nix, your entry has:\n\n  {}\n",
            printable::lines(&self.nix)
        ));
        let place = self
            .repository
            .as_ref()
            .map_or("the repository of the roster; a maintainer knows where it is".into(), |url| {
                printable::line(url)
            });
        text.push_str(&format!("\nPropose one of the two as a pull request to {place}\n"));
        text
    }
}

pub(super) async fn run(
    arguments: Arguments,
    terminal: Terminal<'_>,
    agent: &Agent,
    member: &Member,
) -> ExitStatus {
    let stall = agent.config.limits.client_stall;
    let json = match arguments.action {
        Action::List { json } => return terminal.print(&list(json, agent, member), stall).await,
        Action::Set { json } => json,
    };
    let screen = terminal.screen;
    // There Ctrl-D is a byte like any other, and what is typed is not shown.
    if screen.is_terminal() {
        let why = "the keys come from the input; run `ssh box keys set < FILE` without a terminal (`-T`)";
        return terminal.fail(why, stall).await;
    }
    let (stdin, stdout, stderr) = terminal.with_stdin();
    let keys = match read(stdin, stall).await.and_then(|text| check(&text)) {
        Ok(keys) => keys,
        Err(why) => return fail(stderr, screen, &why, stall).await,
    };
    let proposal = Proposal::of(&keys, &agent.roster.borrow().clone(), member);
    let text = if json { json_line(&proposal) } else { proposal.text() };
    print(stdout, screen, &text, stall).await
}

fn list(json: bool, agent: &Agent, member: &Member) -> String {
    let mut listed: Vec<Listed> =
        agent.roster.borrow().keys_of(member).iter().map(|key| Listed::of(key)).collect();
    listed.sort_by(|one, other| one.fingerprint.cmp(&other.fingerprint));
    match json {
        true => json_line(&listed),
        false => listed.iter().map(|key| key.text() + "\n").collect(),
    }
}

/// The name of an attribute in the Nix language. A name begins with a letter or a digit.
fn attribute(name: &str) -> String {
    match name.starts_with(|c: char| c.is_ascii_digit()) || name.contains('.') {
        true => nix_text::string(name),
        false => name.to_owned(),
    }
}

/// All that the client sends. `stall`: the time for it, which is no more than the longest piece that one wait allows.
async fn read(stdin: Reader<'_>, stall: Duration) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut limited = stdin.take(MAX_BYTES as u64 + 1);
    match tokio::time::timeout(stall, limited.read_to_end(&mut bytes)).await {
        Ok(read) => read.map_err(|error| format!("the keys cannot be read: {error}"))?,
        Err(_) => return Err(format!("the keys did not arrive within {} seconds", stall.as_secs())),
    };
    if bytes.len() > MAX_BYTES {
        return Err(format!("more than {MAX_BYTES} bytes of keys; send the lines of your .pub files only"));
    }
    String::from_utf8(bytes)
        .map_err(|_| "the input is not text; send the lines of your .pub files".to_owned())
}

/// The keys in this text, by the rules of the roster. `Err` says what is wrong with which line.
fn check(text: &str) -> Result<Vec<Key>, String> {
    let (mut keys, mut seen) = (Vec::new(), BTreeSet::new());
    for (at, key) in roster::keys::parse(text) {
        let line = text[..at].matches('\n').count() + 1;
        let key = key.map_err(|error| {
            let (title, expected, hint) = error.explain();
            format!("line {line}: {title}; expected: {expected}; {hint}")
        })?;
        if !seen.insert(key.key.clone()) {
            return Err(format!("line {line}: the key {} is there twice", key.fingerprint()));
        }
        if keys.len() >= MAX_KEYS {
            return Err(format!("line {line}: a member has at most {MAX_KEYS} keys"));
        }
        keys.push(key);
    }
    match keys.is_empty() {
        true => {
            Err("there is no key in the input; run `ssh box keys set < ~/.ssh/id_ed25519.pub`".to_owned())
        }
        false => Ok(keys),
    }
}
