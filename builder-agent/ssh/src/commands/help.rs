//! `help`: the commands that people type, from the table.

use serde::Serialize;

use super::{COMMANDS, For, json_line};

#[derive(Serialize)]
struct Line {
    command: String,
    help: &'static str,
    /// Whether only maintainers can run it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    maintainers: bool,
}

/// One line for each command of the table, without those that only tools run, and without those of maintainers unless
/// the reader is one.
pub(super) fn text(json: bool, maintainer: bool) -> String {
    let shown = |readers: For| match readers {
        For::People | For::Stores => true,
        For::Maintainers => maintainer,
        For::Tools => false,
    };
    let rows = COMMANDS.iter().filter(|row| shown(row.readers));
    let line = |row: &super::Row| Line {
        command: row.call(),
        help: row.help,
        maintainers: row.readers == For::Maintainers,
    };
    let lines: Vec<Line> = rows.map(line).collect();
    if json {
        return json_line(&lines);
    }
    let width = lines.iter().map(|line| line.command.len()).max().unwrap_or_default();
    lines.iter().map(|Line { command, help, .. }| format!("{command:width$}  {help}\n")).collect()
}
