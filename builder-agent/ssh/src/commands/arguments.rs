//! The words of a command that people type, parsed by clap.

use clap::Parser;
use clap::error::ErrorKind;

use super::printing::Print;
use super::{Command, Row, Wrong};

/// Longest message about wrong words, in characters: the message itself, and some words of the client.
const MAX_MESSAGE: usize = 300;

/// Parses the words after the command's name, which has this row. `--help` becomes a command that prints the help.
pub(super) fn parse<A: Parser>(
    row: &Row,
    words: &[&str],
    command: impl FnOnce(A) -> Command,
) -> Result<Command, Wrong> {
    let name = row.name;
    let arguments = A::command()
        .name(name)
        .bin_name(format!("ssh box {name}"))
        .about(row.help)
        .color(clap::ColorChoice::Never)
        .disable_help_subcommand(true)
        // The width of the client's terminal is not known here.
        .term_width(100);
    let parsed = arguments
        .try_get_matches_from(std::iter::once(name).chain(words.iter().copied()))
        .and_then(|matches| A::from_arg_matches(&matches));
    match parsed {
        Ok(arguments) => Ok(command(arguments)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Ok(Command::Print(Print::Text(error.render().to_string())))
        }
        Err(error) => Err(Wrong::Words(format!("{}; see `ssh box {name} --help`", in_one_line(&error)))),
    }
}

/// The message without its usage and its prefix; a refusal is one line. The words in it come from the client.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.join(" ");
    printable::start(line.strip_prefix("error: ").unwrap_or(&line), MAX_MESSAGE)
}
