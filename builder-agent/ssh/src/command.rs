//! What may be run over ssh: one table, and a refusal for everything else.
//!
//! There is no shell on the other side. A request is split into words the way a client's shell quoting needs it, and
//! compared with the table. Nothing in a request is ever executed.

use nix_derivation::StorePath;

use super::host_command::{self, shown};
use super::nix_command::{self, Asked};
use daemon::HostCommand;

/// Longest request we look at. A stock client's is about 30 bytes.
pub const MAX_REQUEST: usize = 4096;

/// What a session channel turned out to be for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// `signing-key`: the public half of the key that signs Verified paths.
    SigningKey,
    /// `log <path>`: the log of a build, by its derivation or by one of its outputs.
    Log(StorePath),
    /// One of Nix's protocols on a member's view.
    Store(StoreSession),
    /// What deployment tools run on the machine that builds.
    Host(HostCommand),
    /// Everything else, with the line that tells the person what would have worked.
    Refused(String),
}

/// Which of Nix's protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreSession {
    /// `nix-daemon --stdio`: the worker protocol.
    Worker,
    /// `nix-store --serve`, which only reads, or with `--write`.
    Serve { write: bool },
}

/// Said to everyone who asks for anything else.
const POSSIBLE: &str = "this box answers `nix-daemon --stdio` (for stores and builders named ssh-ng://), \
     `nix-store --serve --write` (for those named ssh://), \
     `log <derivation or output path>` and `signing-key`";

/// What an `exec` request asks for. Which tools send which words is the table of `command_test.rs`.
pub fn parse(request: &[u8]) -> Command {
    if request.len() > MAX_REQUEST {
        return Command::Refused(format!("a command longer than {MAX_REQUEST} bytes; {POSSIBLE}"));
    }
    let text = String::from_utf8_lossy(request);
    let Some(words) = words(&text) else {
        return Command::Refused(format!("cannot parse `{}`; {POSSIBLE}", shown(&text)));
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let other = || Command::Refused(format!("cannot run `{}`; {POSSIBLE}", shown(&text)));
    let refused = |why: String| Command::Refused(format!("cannot run `{}`: {why}", shown(&text)));
    let Some([program, rest @ ..]) = host_command::without_prefixes(&words) else { return other() };
    let asked = match base(program) {
        "nix-daemon" => nix_command::nix_daemon(rest),
        "nix-store" => nix_command::nix_store(rest),
        "nix" => nix_command::nix(rest),
        "signing-key" if rest.is_empty() => return Command::SigningKey,
        "log" if rest.len() == 1 => return log(rest[0]),
        program => match host_command::parse(program, rest) {
            Some(Ok(command)) => return Command::Host(command),
            Some(Err(why)) => Err(why),
            None => Ok(Asked::Other),
        },
    };
    match asked {
        Ok(Asked::Session(kind)) => Command::Store(kind),
        Ok(Asked::Realise(realise)) => Command::Host(HostCommand::Realise(realise)),
        Ok(Asked::Other) => other(),
        Err(why) => refused(why),
    }
}

fn log(path: &str) -> Command {
    match store_path(path) {
        Some(path) => Command::Log(path),
        None => Command::Refused(format!(
            "`{}` is not a store path; try `log /nix/store/<hash>-<name>.drv`, or an output path",
            shown(path)
        )),
    }
}

/// A store path, with or without its folder, and with what people leave behind it (`/nix/store/x/bin/y`, `x^out`).
fn store_path(text: &str) -> Option<StorePath> {
    let name = text.strip_prefix("/nix/store/").unwrap_or(text);
    let name = name.split(['/', '^', '!']).next().unwrap_or(name);
    StorePath::from_basename(name.as_bytes()).ok()
}

/// The answer to a login without a command.
pub fn no_shell() -> String {
    format!("there is no shell yet; {POSSIBLE}")
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
            // What nixos-rebuild writes before a command, in both of its spellings. Kept as it is: nothing is looked up.
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
#[path = "command_test.rs"]
mod command_test;
