//! Names of members. They appear in logs, file names, prompts and `ssh` command lines: letters, digits, `_`, `.` and `-`
//! do no harm there. `~` is not allowed: the agent uses it to tell apart people with the same name.

use crate::words::quoted;

/// Longest member name, in bytes; Linux has the same limit for user names.
pub const MAX_NAME: usize = 32;

/// Describes the names that [`check`] accepts, for messages.
pub fn expected() -> String {
    format!("1 to {MAX_NAME} letters, digits, `_`, `.` or `-`, starting with a letter, a digit or `_`")
}

/// Checks a name. `Err` describes the mistake.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("an empty name".into());
    }
    if name.len() > MAX_NAME {
        return Err(format!("{} bytes", name.len()));
    }
    if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "_.-".contains(*c))) {
        return Err(quoted(&c.to_string()));
    }
    if name.starts_with(['.', '-']) {
        return Err(format!("{} at the start", quoted(&name[..1])));
    }
    Ok(())
}
