//! What may be run over ssh: one table, and a refusal for everything else.
//!
//! There is no shell on the other side. A request is split into words the way a client's shell quoting needs it, and
//! compared with the table. Nothing in a request is ever executed.

use nix_derivation::StorePath;

use super::host_command::{self, shown};
use crate::daemon::HostCommand;

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
    /// What `nixos-rebuild` runs on the machine that builds.
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

/// What an `exec` request asks for.
///
/// Nix (src/libstore/ssh-store.cc) runs its `remote-program` setting, by default `nix-daemon`, then `--stdio`, and
/// `--store <url>` when its `remote-store` setting is not empty; newer versions quote every word for a shell. For
/// `ssh://` (legacy-ssh-store.cc) the program is `nix-store` and the option `--serve --write`.
pub fn parse(request: &[u8]) -> Command {
    if request.len() > MAX_REQUEST {
        return Command::Refused(format!("a command longer than {MAX_REQUEST} bytes; {POSSIBLE}"));
    }
    let text = String::from_utf8_lossy(request);
    let Some(words) = words(&text) else {
        return Command::Refused(format!("cannot make out `{}`; {POSSIBLE}", shown(&text)));
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match host_command::parse(&words) {
        Some(Ok(command)) => return Command::Host(command),
        Some(Err(why)) => return Command::Refused(format!("cannot run `{}`: {why}", shown(&text))),
        None => {}
    }
    match words.as_slice() {
        [program, rest @ ..] if base(program) == "nix-daemon" => match rest {
            ["--stdio"] | ["--stdio", "--store", "" | "auto" | "daemon"] => {
                Command::Store(StoreSession::Worker)
            }
            ["--stdio", "--store", store] => other_store(store),
            _ => Command::Refused(format!("cannot run `{}`; {POSSIBLE}", shown(&text))),
        },
        ["signing-key"] => Command::SigningKey,
        ["log", path] => match store_path(path) {
            Some(path) => Command::Log(path),
            None => Command::Refused(format!(
                "`{}` is not a store path; try `log /nix/store/<hash>-<name>.drv`, or an output path",
                shown(path)
            )),
        },
        [program, rest @ ..] if base(program) == "nix-store" => match without_store(rest) {
            Ok(["--serve", "--write"] | ["--write", "--serve"]) => {
                Command::Store(StoreSession::Serve { write: true })
            }
            Ok(["--serve"]) => Command::Store(StoreSession::Serve { write: false }),
            Ok(_) => Command::Refused(format!("cannot run `{}`; {POSSIBLE}", shown(&text))),
            Err(store) => other_store(store),
        },
        _ => Command::Refused(format!("cannot run `{}`; {POSSIBLE}", shown(&text))),
    }
}

/// A store path, with or without its folder, and with what people leave behind it (`/nix/store/x/bin/y`, `x^out`).
fn store_path(text: &str) -> Option<StorePath> {
    let name = text.strip_prefix("/nix/store/").unwrap_or(text);
    let name = name.split(['/', '^', '!']).next().unwrap_or(name);
    StorePath::from_basename(name.as_bytes()).ok()
}

/// The words without a `--store` at the end that names the store there is; else the store that was asked for.
fn without_store<'a>(words: &'a [&'a str]) -> Result<&'a [&'a str], &'a str> {
    match words {
        [before @ .., "--store", "" | "auto" | "daemon"] => Ok(before),
        [.., "--store", store] => Err(store),
        _ => Ok(words),
    }
}

fn other_store(store: &str) -> Command {
    Command::Refused(format!(
        "this box has one store, `--store {}` cannot be chosen; leave `remote-store` unset",
        shown(store)
    ))
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
mod tests {
    use super::*;

    #[test]
    fn the_ways_stock_clients_ask_for_the_worker_protocol_are_accepted() {
        for request in [
            "nix-daemon --stdio",
            "'nix-daemon' '--stdio'",
            "\"nix-daemon\" --stdio",
            "nix-daemon  --stdio ",
            "nix-daemon --stdio --store ''",
            "'nix-daemon' '--stdio' '--store' 'auto'",
            "/nix/var/nix/profiles/default/bin/nix-daemon --stdio",
        ] {
            assert_eq!(parse(request.as_bytes()), Command::Store(StoreSession::Worker), "{request}");
        }
    }

    #[test]
    fn the_signing_key_is_asked_for_by_one_word() {
        for request in ["signing-key", " 'signing-key' "] {
            assert_eq!(parse(request.as_bytes()), Command::SigningKey, "{request}");
        }
        assert!(matches!(parse(b"signing-key --secret"), Command::Refused(_)));
    }

    #[test]
    fn the_ways_stock_clients_ask_for_the_serve_protocol_are_accepted() {
        for request in [
            "nix-store --serve --write",
            "'nix-store' '--serve' '--write'",
            "nix-store --serve --write --store auto",
            "nix-store --serve --write --store ''",
            "/run/current-system/sw/bin/nix-store --serve --write",
        ] {
            let serve = Command::Store(StoreSession::Serve { write: true });
            assert_eq!(parse(request.as_bytes()), serve, "{request}");
        }
        let reading = Command::Store(StoreSession::Serve { write: false });
        assert_eq!(parse(b"nix-store --serve"), reading);
    }

    #[test]
    fn a_log_is_asked_for_by_any_spelling_of_a_store_path_and_nothing_else() {
        let name = "ib3sh3pcz10wsmavxvkdbayhqivbghlq-hello.drv";
        for path in [name.to_owned(), format!("/nix/store/{name}"), format!("'/nix/store/{name}^out'")] {
            let Command::Log(path) = parse(format!("log {path}").as_bytes()) else {
                panic!("refused: {path}")
            };
            assert_eq!(path.to_basename(), name);
        }
        for request in ["log", "log ../../etc/passwd", "log --help", &format!("log {name} {name}")] {
            assert!(matches!(parse(request.as_bytes()), Command::Refused(_)), "{request}");
        }
    }

    #[test]
    fn the_ways_nixos_rebuild_says_where_commands_are_change_nothing() {
        for prefix in ["", "env PATH=/nix/store/x-nix/bin:$PATH ", "env -i PATH=${PATH-} "] {
            let request = format!("{prefix}uname -m");
            assert_eq!(parse(request.as_bytes()), Command::Host(HostCommand::Machine), "{request}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_is_possible() {
        for request in [
            "",
            "ls",
            "nix-daemon",
            "nix-daemon --stdio; rm -rf /",
            "nix-daemon --stdio && id",
            "nix-daemon $(id) --stdio",
            "nix-daemon $PATH --stdio",
            "nix-env -p /nix/var/nix/profiles/system --set /nix/store/x",
            "env PATH=$HOME uname -m",
            "uname -a",
            "nix-daemon '--stdio",
            "nix-daemon --stdio --store ssh://elsewhere",
            "nix-daemon --stdio --option sandbox false",
            "nix-store --serve --write --force",
            "nix-store",
            "nix-store --serve --write --store ssh://elsewhere",
            "bash -c 'nix-daemon --stdio'",
        ] {
            let Command::Refused(line) = parse(request.as_bytes()) else { panic!("accepted: {request}") };
            assert!(line.contains("ssh-ng") || line.contains("remote-store"), "{line}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn refusals_repeat_little_of_the_request_and_no_control_characters() {
        let Command::Refused(line) = parse(format!("a\u{1b}[2J{}", "b".repeat(4000)).as_bytes()) else {
            panic!("accepted")
        };
        assert!(line.len() < 400 && !line.contains('\u{1b}'), "{line}");
        assert!(matches!(parse(&vec![b'a'; MAX_REQUEST + 1]), Command::Refused(_)));
    }
}
