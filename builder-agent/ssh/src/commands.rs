//! The commands that a member can run over ssh: one table. Everything else is refused.
//!
//! There is no shell on the other side. A request is split into words as a client's shell quotes them, its first word
//! is looked up in [`COMMANDS`], and the parser of that row reads the other words. No part of a request is ever
//! executed. Each file of this folder has one command, or one family of commands.

use std::sync::Arc;

use daemon::{Agent, Caller, HostCommand};
use members::{Member, Role, Roster};
use nix_derivation::StorePath;

use crate::records::Records;
use crate::terminal::{ExitStatus, Terminal};

mod arguments;
mod audit;
mod builds;
mod client_config;
mod drain;
mod gc;
mod help;
mod home;
mod host;
mod keys;
mod kick;
mod log;
mod maintainers;
mod nix;
mod printing;
mod settings;
mod settle;
mod status;
mod store_session;
mod sync;
mod table;
mod ticket;
mod units;
mod usage;
mod watching;
mod who;
mod whoami;

pub(crate) use host::shown;
use printing::{Print, json_line};
pub(crate) use settle::{Purpose, admit};
pub use store_session::StoreSession;
pub(crate) use watching::charge;

/// Longest request that is parsed. A stock client's is about 30 bytes.
pub const MAX_REQUEST: usize = 4096;

/// A parsed command, ready to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The shell of these commands.
    Shell,
    /// A command that only prints.
    Print(Print),
    /// The name of this box, its builds and its roster.
    Status(status::Arguments),
    /// The connections of this moment.
    Who(printing::Json),
    /// A command that only maintainers can run.
    Maintaining(maintainers::Maintaining),
    /// The log of a build, by its derivation or by one of its outputs.
    Log(StorePath),
    /// The member's builds at this moment.
    Builds(builds::Arguments),
    /// What members have used.
    Usage(usage::Arguments),
    /// The settings of this session.
    Settings(settings::Arguments),
    /// The home of the member.
    Home(home::Arguments),
    /// The keys of the member.
    Keys(keys::Arguments),
    /// The tickets that members make.
    Ticket(ticket::Arguments),
    /// A session of one of Nix's protocols with the member's view.
    Store(StoreSession),
    /// A command that deployment tools run on the machine that builds.
    Host(HostCommand),
}

impl Command {
    /// Runs the command for `caller`. Dropping the future ends it, with all work that it has begun.
    pub async fn run(
        self,
        terminal: Terminal<'_>,
        agent: Arc<Agent>,
        caller: Caller,
        records: &Records,
    ) -> ExitStatus {
        let stall = agent.config.limits.client_stall;
        match self {
            // The shell needs the whole channel: `handler` starts it.
            Self::Shell => terminal.fail("`shell` runs over ssh only", stall).await,
            Self::Log(path) => log::run(&path, terminal, &agent, &caller.member).await,
            Self::Status(arguments) => {
                status::run(arguments, terminal, &agent, &caller.member, records).await
            }
            Self::Who(json) => who::run(json, terminal, &agent, &caller.member, records).await,
            Self::Maintaining(command) => {
                let desk = maintainers::Desk { agent: &agent, caller: &caller, records };
                maintainers::run(command, terminal, desk).await
            }
            Self::Builds(arguments) => {
                builds::run(arguments, terminal, &agent, &caller.member, records).await
            }
            Self::Usage(arguments) => usage::run(arguments, terminal, agent, caller.member).await,
            Self::Settings(arguments) => {
                terminal.print(&settings::text(&arguments, &agent, &caller), stall).await
            }
            Self::Home(arguments) => home::run(arguments, terminal, &agent, &caller).await,
            Self::Keys(arguments) => keys::run(arguments, terminal, &agent, &caller.member).await,
            Self::Ticket(arguments) => ticket::run(arguments, terminal, agent, caller.member).await,
            Self::Store(kind) => store_session::run(kind, terminal, agent, caller).await,
            Self::Host(command) => {
                let (stdout, stderr, hung_up) = terminal.with_hung_up();
                ExitStatus(daemon::run_host_command(command, stdout, stderr, hung_up, agent, caller).await)
            }
            Self::Print(print) => terminal.print(&print.text(&agent, &caller.member), stall).await,
        }
    }
}

impl Command {
    /// Whether this member may run the command, or the line against it. The holder of a ticket has no keys and makes no
    /// tickets, and sees what the ticket has used and not what its maker has.
    pub fn open_to(&self, member: &Member) -> Result<(), String> {
        let Some(bearer) = &member.ticket else { return Ok(()) };
        let why = match self {
            Self::Print(Print::ClientConfig(_)) | Self::Home(_) | Self::Keys(_) | Self::Ticket(_) => {
                "is for members only"
            }
            Self::Usage(_) => "is for members only; `whoami` shows what this ticket has used",
            Self::Host(HostCommand::Machine | HostCommand::Interrupt) => return Ok(()),
            Self::Host(_) if !member.may_write() => {
                "is not possible with a ticket for reading only (`--scope read`)"
            }
            // Commands of maintainers ask for the role, which no holder has.
            Self::Shell
            | Self::Print(_)
            | Self::Status(_)
            | Self::Who(_)
            | Self::Maintaining(_)
            | Self::Settings(_)
            | Self::Log(_)
            | Self::Builds(_)
            | Self::Store(_)
            | Self::Host(_) => return Ok(()),
        };
        Err(format!(
            "this command {why}; you are here with the ticket `{}` of {}",
            bearer.ticket.name, bearer.maker.name
        ))
    }
}

/// Whether this member has the role by the roster of now, whatever it was at the login.
pub(crate) fn is_maintainer(roster: &Roster, member: &Member) -> bool {
    roster.current(member).is_some_and(|now| now.role == Role::Maintainer)
}

/// `Err` is the line for somebody who is no maintainer and says `--all`; without it the command is about `yours`.
pub(crate) fn may_say_all(all: bool, roster: &Roster, member: &Member, yours: &str) -> Result<(), String> {
    match all && !is_maintainer(roster, member) {
        true => Err(format!("`--all` is for maintainers; without it the command is about your {yours}")),
        false => Ok(()),
    }
}

/// The reason why a request is not a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// No command has this name.
    Unknown,
    /// The command exists, but its words are wrong for this reason.
    Words(String),
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Self::Words(why)
    }
}

/// The users of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// People type it.
    People,
    /// Maintainers type it; nobody else can run it.
    Maintainers,
    /// Nix sends it; people write it into configurations.
    Stores,
    /// Only deployment tools run it.
    Tools,
}

/// One command. Every member may run every command, but for those of maintainers; holders of tickets those of
/// [`Command::open_to`].
pub(crate) struct Row {
    pub name: &'static str,
    /// The words after the name.
    pub usage: &'static str,
    pub readers: For,
    /// One line.
    pub help: &'static str,
    parse: fn(&Row, &[&str]) -> Result<Command, Wrong>,
}

impl Row {
    /// The name with its words.
    fn call(&self) -> String {
        format!("{} {}", self.name, self.usage).trim_end().to_owned()
    }
}

const fn row(
    name: &'static str,
    usage: &'static str,
    readers: For,
    help: &'static str,
    parse: fn(&Row, &[&str]) -> Result<Command, Wrong>,
) -> Row {
    Row { name, usage, readers, help, parse }
}

/// All commands. The table in `commands_test.rs` lists the tools and the words that they send.
#[rustfmt::skip]
pub(crate) const COMMANDS: &[Row] = &[
    row("nix-daemon", "--stdio", For::Stores, "Nix's worker protocol, for stores and builders named ssh-ng://", |_, words| nix::nix_daemon(words)),
    row("nix-store", "--serve --write", For::Stores, "Nix's serve protocol, for stores and builders named ssh://", |_, words| nix::nix_store(words)),
    row("nix", "build 'DRV^*'", For::Tools, "builds a derivation that is here, and prints its outputs", |_, words| nix::nix(words)),
    row("status", "[--watch] [--json]", For::People, "which box this is, how many builds it has, which roster it goes by, and who is left out of it", status::parse),
    row("log", "PATH", For::People, "the log of a build, by its derivation or by one of its outputs", printing::log),
    row("builds", "list [--json]", For::People, "your builds that run or wait; `builds show`, `log`, `watch` and `cancel` take an ID", builds::parse),
    row("who", "[--json]", For::People, "your connections, and what runs on them; maintainers see every member's", who::parse),
    row("whoami", "[--json]", For::People, "who you are here, and the limits that hold for you", printing::whoami),
    row("usage", "[--month YYYY-MM] [--by PERIOD] [--per WHAT] [--format FORMAT]", For::People, "what you have used, by day or month, with each key, ticket or tag; maintainers see every member", usage::parse),
    row("settings", "[--explain NAME] [--json]", For::People, "your settings, and which level each comes from", settings::parse),
    row("ticket", "create --name NAME", For::People, "makes a ticket with which a friend builds here; also `list`, `inspect`, `reveal`, `revoke`", ticket::parse),
    row("home", "show [--json]", For::People, "your home on the box, a throw-away machine that `ssh box` opens on a terminal; `home end` throws it away", home::parse),
    row("keys", "list [--json]", For::People, "the keys with which you can log in; the roster is in git, so they change there: `keys set` prints what to propose", keys::parse),
    row("client-config", "[--format FORMAT]", For::People, "your configuration for this box, ready to paste", printing::client_config),
    row("signing-key", "[--json]", For::People, "the key for `trusted-public-keys`", printing::signing_key),
    row("shell", "", For::People, "a shell of these commands, also where `ssh box` opens your home", shell_words),
    row("help", "[--json]", For::People, "this list; `COMMAND --help` describes one command", printing::help),
    row("drain", "[--deadline DURATION] [--reason TEXT] [--json]", For::Maintainers, "starts no more builds; what runs goes on until it ends, or the deadline", drain::parse),
    row("undrain", "[--json]", For::Maintainers, "starts builds again", drain::parse_end),
    row("kick", "WHOM [--reason TEXT] [--json]", For::Maintainers, "ends the connections of a member, or one connection; they can log in again", kick::parse),
    row("sync", "[--json]", For::Maintainers, "fetches the roster now, and says what came of it", sync::parse),
    row("gc", "[--free SIZE] [--json]", For::Maintainers, "evicts what nobody needs from the store, now", gc::parse),
    row("audit", "[--last N] [--since DURATION] [--member NAME] [--json]", For::Maintainers, "logins, refused logins, changes of the roster, and what maintainers did", audit::parse),
    row("mktemp", "-d [-t TEMPLATE]", For::Tools, "prints a name for roots", host::parse),
    row("readlink", "-f ROOT", For::Tools, "prints the store path behind a root", host::parse),
    row("rm", "-rf /tmp/FOLDER", For::Tools, "forgets the roots in a folder", host::parse),
    row("uname", "-m", For::Tools, "the processor that builds run on", host::parse),
    row("pkill", "--signal SIGINT --full -- WORDS", For::Tools, "nothing: a build ends when its client hangs up", host::parse),
];

/// `shell` has no words.
#[derive(Debug, clap::Parser)]
struct NoWords {}

fn shell_words(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    arguments::parse(row, words, |_: NoWords| Command::Shell)
}

/// The part of a refusal that names the possible commands.
pub(crate) fn possible() -> String {
    let people = COMMANDS.iter().filter(|row| row.readers == For::People);
    let people: Vec<String> = people.map(|row| format!("`{}`", row.name)).collect();
    format!(
        "this box answers `nix-daemon --stdio` (for stores and builders named ssh-ng://), \
         `nix-store --serve --write` (for those named ssh://), {}",
        people.join(", ")
    )
}

/// The command of an `exec` request, or an error line that names the possible commands.
pub(crate) fn parse(request: &[u8]) -> Result<Command, String> {
    read(request).map_err(|unread| unread.line())
}

/// Why a request is not run, with its line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// It is none of the box's commands: in a home it can be one.
    NoCommand(String),
    /// It is one, with wrong words.
    Wrong(String),
}

impl Unread {
    pub fn line(self) -> String {
        match self {
            Self::NoCommand(line) | Self::Wrong(line) => line,
        }
    }
}

/// The command of an `exec` request.
pub(crate) fn read(request: &[u8]) -> Result<Command, Unread> {
    if request.len() > MAX_REQUEST {
        return Err(Unread::NoCommand(format!("a command longer than {MAX_REQUEST} bytes; {}", possible())));
    }
    let text = String::from_utf8_lossy(request);
    let Some(words) = words(&text) else {
        return Err(Unread::NoCommand(format!("cannot parse `{}`; {}", shown(&text), possible())));
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = match host::without_prefixes(&words) {
        Some([program, rest @ ..]) => {
            let row = COMMANDS.iter().find(|row| row.name == base(program));
            row.map_or(Err(Wrong::Unknown), |row| (row.parse)(row, rest))
        }
        _ => Err(Wrong::Unknown),
    };
    found.map_err(|wrong| match wrong {
        Wrong::Unknown => Unread::NoCommand(format!("cannot run `{}`; {}", shown(&text), possible())),
        Wrong::Words(why) => Unread::Wrong(format!("cannot run `{}`: {why}", shown(&text))),
    })
}

/// The name of the command in this request, for a list that others see; the other words are its member's own.
pub(crate) fn name(request: &[u8]) -> &'static str {
    let words = words(&String::from_utf8_lossy(request)).unwrap_or_default();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let program =
        host::without_prefixes(&words).and_then(|words| words.first()).map_or("", |word| base(word));
    COMMANDS.iter().find(|row| row.name == program).map_or("", |row| row.name)
}

/// Most subcommands below each other.
const DEEPEST: usize = 2;

/// The help of a command with these words after its name; `None` if there is no such command.
pub(crate) fn help_of(name: &str, words: &[&str]) -> Option<String> {
    let row = COMMANDS
        .iter()
        .find(|row| row.name == name && matches!(row.readers, For::People | For::Maintainers))?;
    // Words that are no subcommands (options, names) have no help of their own.
    let before = words.iter().take(DEEPEST).take_while(|word| !word.starts_with('-')).count();
    (0..=before).rev().find_map(|count| {
        let words: Vec<&str> = words[..count].iter().copied().chain(["--help"]).collect();
        match (row.parse)(row, &words) {
            Ok(Command::Print(Print::Text(help))) => Some(help),
            _ => None,
        }
    })
}

/// A store path, with or without its folder. Also accepts what people leave at its end (`/nix/store/x/bin/y`, `x^out`).
fn store_path(text: &str) -> Option<StorePath> {
    let name = text.strip_prefix("/nix/store/").unwrap_or(text);
    let name = name.split(['/', '^', '!']).next().unwrap_or(name);
    StorePath::from_basename(name.as_bytes()).ok()
}

/// The answer to a login that sends no command at all.
pub(crate) fn none() -> String {
    format!("no command was sent; {}", possible())
}

/// The last part of a path: some configurations write the program with its folder.
fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Splits like a POSIX shell, as far as quoting goes; `None` for an open quote or any other shell syntax.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => match chars.next()? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        '$' | '`' => return None,
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            // nixos-rebuild writes this variable before a command, in two spellings. It is kept as text: no variable is
            // looked up.
            '$' => {
                let known =
                    ["PATH", "{PATH-}"].into_iter().find(|known| chars.as_str().starts_with(known))?;
                chars = chars.as_str()[known.len()..].chars();
                word.get_or_insert_default().push_str("$PATH");
            }
            ';' | '&' | '|' | '<' | '>' | '`' | '(' | ')' | '#' => return None,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
#[path = "commands/commands_test.rs"]
mod commands_test;
