//! `help`: the commands that people type, from the table.

use serde::Serialize;

use super::{COMMANDS, For, json_line};

#[derive(Serialize)]
struct Line {
    command: String,
    help: &'static str,
}

/// One line for each command of the table, without those that only tools run.
pub(super) fn text(json: bool) -> String {
    let rows = COMMANDS.iter().filter(|row| row.readers != For::Tools);
    let lines: Vec<Line> = rows.map(|row| Line { command: row.call(), help: row.help }).collect();
    if json {
        return json_line(&lines);
    }
    let width = lines.iter().map(|line| line.command.len()).max().unwrap_or_default();
    lines.iter().map(|Line { command, help }| format!("{command:width$}  {help}\n")).collect()
}
