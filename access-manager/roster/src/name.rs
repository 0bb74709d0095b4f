//! Names of members, of groups, and of the boxes that one roster serves. They appear in logs, file names, prompts and
//! `ssh` command lines: letters, digits, `_`, `.` and `-` do no harm there. `~` is not allowed: the agent uses it to tell
//! apart people with the same name.

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

/// Longest name of a box: a host name (RFC 1035).
const MAX_HOST: usize = 253;

/// `Err` says what the name of a box may be.
pub fn check_host(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    match !name.is_empty()
        && name.len() <= MAX_HOST
        && name.chars().all(fine)
        && !name.starts_with(['.', '-'])
    {
        true => Ok(()),
        false => Err(format!("1 to {MAX_HOST} letters, digits, `_`, `.` or `-`, such as \"box\"")),
    }
}
