//! `help`: the commands that a person has a reason to type, from the table.

use super::{COMMANDS, For};

/// One line for each command of the table that is not for tools alone.
pub(super) fn text() -> String {
    let rows = || COMMANDS.iter().filter(|row| row.readers != For::Tools);
    let width = rows().map(|row| row.call().len()).max().unwrap_or_default();
    rows().map(|row| format!("{:width$}  {}\n", row.call(), row.help)).collect()
}
