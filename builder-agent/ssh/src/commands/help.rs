//! `help`: the commands that people type, from the table.

use super::{COMMANDS, For};

/// One line for each command of the table, without those that only tools run.
pub(super) fn text() -> String {
    let rows = || COMMANDS.iter().filter(|row| row.readers != For::Tools);
    let width = rows().map(|row| row.call().len()).max().unwrap_or_default();
    rows().map(|row| format!("{:width$}  {}\n", row.call(), row.help)).collect()
}
