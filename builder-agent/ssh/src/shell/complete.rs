//! Completion: the words that can follow in a line of the shell.
//!
//! The words of a command are described in one place, its help, so they are read from there: subcommands from the list
//! under `Commands:`, options from the one under `Options:`. Numbers and names come from the shell, which knows them.

use crate::commands::{self, For};

/// Words that the shell itself understands.
pub(super) const LEAVE: &[&str] = &["exit", "quit", "logout"];

/// What can be done about the word before the cursor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// This text goes on from the cursor.
    Insert(String),
    /// Several words are possible, and they have nothing more in common.
    Choose(Vec<String>),
    Nothing,
}

/// Completes the last word of the line before the cursor. `values` has what can follow a command with these words, besides
/// subcommands and options.
pub(super) fn complete(
    before: &str,
    maintainer: bool,
    values: impl FnOnce(&str, &[&str]) -> Vec<String>,
) -> Completion {
    let (earlier, word) = before.rsplit_once(' ').unwrap_or(("", before));
    let earlier: Vec<&str> = earlier.split(' ').filter(|word| !word.is_empty()).collect();
    let mut possible = match earlier.split_first() {
        None => names(maintainer),
        Some((name, rest)) => match values(name, rest) {
            values if !values.is_empty() && !word.starts_with('-') => values,
            _ if rest.last().is_some_and(|last| last.starts_with("--")) && !word.starts_with('-') => {
                let (option, before) = rest.split_last().unwrap_or((&"", &[]));
                match values_of(name, before, option) {
                    // A flag, or an option with a value of the client's own choice.
                    values if values.is_empty() => of_command(name, rest, false),
                    values => values,
                }
            }
            _ => of_command(name, rest, word.starts_with('-')),
        },
    };
    possible.retain(|candidate| candidate.starts_with(word));
    possible.sort();
    possible.dedup();
    match possible.as_slice() {
        [] => Completion::Nothing,
        [only] => Completion::Insert(format!("{} ", &only[word.len()..])),
        several => match common(several) {
            prefix if prefix.len() > word.len() => Completion::Insert(prefix[word.len()..].to_owned()),
            _ => Completion::Choose(possible),
        },
    }
}

fn names(maintainer: bool) -> Vec<String> {
    let typed = |row: &&commands::Row| match row.readers {
        For::People => true,
        For::Maintainers => maintainer,
        For::Stores | For::Tools => false,
    };
    let rows = commands::COMMANDS.iter().filter(typed).map(|row| row.name);
    rows.chain(["exit"]).map(str::to_owned).collect()
}

/// The subcommands or options after these words.
fn of_command(name: &str, words: &[&str], option: bool) -> Vec<String> {
    let Some(help) = commands::help_of(name, words) else { return Vec::new() };
    let subcommands = section(&help, "Commands:");
    match option || subcommands.is_empty() {
        true => section(&help, "Options:"),
        false => subcommands,
    }
}

/// The values that the help lists for this option of a command; none if they can be anything.
fn values_of(name: &str, words: &[&str], option: &str) -> Vec<String> {
    let Some(help) = commands::help_of(name, words) else { return Vec::new() };
    let is_option = |line: &str| line.starts_with('-') && !line.starts_with("- ");
    let about = |line: &str| is_option(line) && line.split([' ', ',']).any(|word| word == option);
    // Up to the next option: what belongs to this one can go on in the next lines.
    let lines = help.lines().map(str::trim).skip_while(|line| !about(line)).enumerate();
    let lines: Vec<&str> =
        lines.take_while(|(at, line)| *at == 0 || !is_option(line)).map(|(_, line)| line).collect();
    // Values with a meaning of their own have a line each, others are in brackets.
    let each = |line: &&str| Some(line.strip_prefix("- ")?.split(':').next()?.to_owned());
    let listed: Vec<String> = lines.iter().filter_map(each).collect();
    if !listed.is_empty() {
        return listed;
    }
    let text = lines.join(" ");
    let listed = text.split_once("[possible values: ").and_then(|(_, rest)| rest.split_once(']'));
    listed.map(|(values, _)| values.split(", ").map(str::to_owned).collect()).unwrap_or_default()
}

/// The first words of the entries in this section of a help text; for an option, its long form.
fn section(help: &str, title: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != title).skip(1);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with(' '));
    // Entries are indented by less than their descriptions.
    let entries = lines.filter(|line| line.len() - line.trim_start().len() <= 6);
    let word = |line: &str| {
        let mut words = line.split_whitespace().map(|word| word.trim_end_matches(','));
        let long = words.clone().find(|word| word.starts_with("--"));
        long.or_else(|| words.next()).map(str::to_owned)
    };
    entries.filter_map(word).collect()
}

/// The longest common start.
fn common(words: &[String]) -> &str {
    let first = words.first().map_or("", String::as_str);
    let shared =
        |other: &String| first.char_indices().zip(other.chars()).take_while(|((_, a), b)| a == b).count();
    let count = words.iter().map(shared).min().unwrap_or_default();
    let end = first.char_indices().nth(count).map_or(first.len(), |(at, _)| at);
    &first[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str, _: &[&str]) -> Vec<String> {
        Vec::new()
    }

    fn inserted(before: &str) -> String {
        match complete(before, true, none) {
            Completion::Insert(text) => text,
            other => panic!("{before}: {other:?}"),
        }
    }

    fn choices(before: &str) -> Vec<String> {
        match complete(before, true, none) {
            Completion::Choose(words) => words,
            other => panic!("{before}: {other:?}"),
        }
    }

    #[test]
    fn commands_subcommands_and_options_are_completed() {
        assert_eq!(
            (inserted("sta"), inserted("bui"), inserted("builds li")),
            ("tus ".into(), "lds ".into(), "st ".into())
        );
        assert_eq!(inserted("status --w"), "atch ");
        assert_eq!(inserted("builds watch --js"), "on ");
        assert_eq!(inserted("whoami "), "--");
        assert_eq!(choices("builds "), ["cancel", "list", "log", "show", "watch"]);
        assert!(choices("usage --").contains(&"--month".to_owned()));
        assert!(choices("").contains(&"exit".to_owned()));
        assert_eq!(complete("nix-d", true, none), Completion::Nothing);
        assert_eq!(complete("no-such-command x", true, none), Completion::Nothing);
    }

    #[test]
    fn the_values_of_an_option_are_those_that_its_help_lists() {
        assert_eq!(inserted("client-config --format mach"), "ines ");
        assert!(choices("client-config --format nix").contains(&"nix-darwin".to_owned()));
        assert_eq!(choices("ticket create --scope "), ["build", "read"]);
    }

    #[test]
    fn commands_of_maintainers_are_offered_to_maintainers() {
        assert_eq!(complete("undr", true, none), Completion::Insert("ain ".into()));
        assert_eq!(complete("undr", false, none), Completion::Nothing);
    }

    #[test]
    fn values_take_the_place_of_what_the_help_lists_but_not_of_options() {
        let values = |name: &str, words: &[&str]| match (name, words) {
            ("builds", ["show"]) => vec!["17".to_owned(), "181".to_owned()],
            _ => Vec::new(),
        };
        let said = |before| complete(before, false, values);
        assert_eq!(said("builds show 17"), Completion::Insert(" ".into()));
        assert_eq!(said("builds show "), Completion::Insert("1".into()));
        assert_eq!(said("builds show --j"), Completion::Insert("son ".into()));
        assert_eq!(said("builds sho"), Completion::Insert("w ".into()));
    }
}
