//! Commands that deployment tools run around a build on the machine that builds: a few words, parsed strictly.
//!
//! Not here: the Nix programs (`nix`), and what the commands do (`daemon::host_command`).

use daemon::HostCommand;

use super::{Command, Row, Wrong};

/// Longest name of a temporary folder.
const MAX_TEMPLATE: usize = 100;

/// Variables that tools set before a command. No command here reads them.
const VARIABLES: &[&str] = &["PATH=", "LOCALE_ARCHIVE=", "TMPDIR=", "NIXOS_INSTALL_BOOTLOADER="];
/// Options of `sudo` and `doas` without an argument, which tools use to avoid a prompt.
const SUDO_OPTIONS: &[&str] =
    &["-H", "--set-home", "-E", "--preserve-env", "-n", "--non-interactive", "-S", "--stdin", "--prompt="];

/// The words of the command itself, without the prefixes that set the user, the folder and the environment. `None` if a
/// prefix is not one of the known ones.
pub(super) fn without_prefixes<'a>(words: &'a [&'a str]) -> Option<&'a [&'a str]> {
    match words {
        ["sudo" | "doas", rest @ ..] => {
            let options =
                rest.iter().take_while(|word| SUDO_OPTIONS.contains(word) || is_variable(word)).count();
            let rest = &rest[options..];
            without_prefixes(rest.strip_prefix(&["--"]).unwrap_or(rest))
        }
        ["env", rest @ ..] => {
            let rest = rest.strip_prefix(&["-i"]).unwrap_or(rest);
            let variables = rest.iter().take_while(|word| is_variable(word)).count();
            (variables > 0).then(|| &rest[variables..])
        }
        _ => Some(words),
    }
}

fn is_variable(word: &str) -> bool {
    VARIABLES.iter().any(|variable| word.starts_with(variable))
}

/// The command of this program with these words, or the reason why there is none.
pub(super) fn parse(row: &Row, words: &[&str]) -> Result<Command, Wrong> {
    let command = match (row.name, words) {
        ("mktemp", ["-d"]) => make_folder("tmp.XXXXXXXXXX")?,
        ("mktemp", ["-d", "-t", template] | ["-t", "-d", template]) => make_folder(template)?,
        ("readlink", ["-f" | "-e", link]) => HostCommand::ReadLink { link: (*link).to_owned() },
        ("rm", ["-rf", folder]) if in_tmp(folder) => {
            HostCommand::RemoveFolder { folder: (*folder).to_owned() }
        }
        ("uname", ["-m"]) => HostCommand::Machine,
        ("pkill", ["--signal", "SIGINT", "--full", "--", _]) => HostCommand::Interrupt,
        _ => return Err(Wrong::Unknown),
    };
    Ok(Command::Host(command))
}

/// As `mktemp -t`: a name below `/tmp`, with other letters for each X at the end.
fn make_folder(template: &str) -> Result<HostCommand, String> {
    let prefix = template.trim_end_matches('X');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let sound = template.len() <= MAX_TEMPLATE
        && template.len() >= prefix.len() + 3
        && prefix.chars().all(plain)
        && !prefix.starts_with("..");
    match sound {
        true => Ok(HostCommand::MakeFolder { prefix: format!("/tmp/{prefix}") }),
        false => Err(format!("`{}` is no template of a folder's name", shown(template))),
    }
}

fn in_tmp(path: &str) -> bool {
    path.strip_prefix("/tmp/").is_some_and(|rest| !rest.is_empty())
}

/// The start of a peer's text, for use in our own messages.
pub(crate) fn shown(text: &str) -> String {
    printable::start(text, 100)
}
