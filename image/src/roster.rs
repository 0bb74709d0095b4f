//! The roster in a release, for boots without network: read and written by the crate that the agent reads it with.

use ::roster::{BAKED_IN, FileError, LeftOut, Roster};

use crate::tool::{self, ToolError};
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    #[error("cannot read the roster {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// Without a usable roster nobody could log in to the box, and this would show only after a boot.
    #[error("{origin} is not a roster: {why}\nhint:  `access-manager eval users.nix --json` makes one")]
    Malformed { origin: String, why: String },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Reads an existing roster.json.
pub fn read(path: &Path) -> Result<Vec<u8>, RosterError> {
    let bytes = std::fs::read(path).map_err(|source| RosterError::Read { path: path.into(), source })?;
    check(&bytes, &path.display().to_string())
}

/// Evaluates a `users.nix` with access-manager. `host`: leaves out the members of other boxes.
pub fn evaluate(access_manager: &Path, users: &Path, host: Option<&str>) -> Result<Vec<u8>, RosterError> {
    let mut command = Command::new(access_manager);
    command.arg("eval").arg(users).arg("--json");
    if let Some(host) = host {
        command.args(["--host", host]);
    }
    let json = tool::output(&mut command, "evaluate the roster's users.nix")?;
    check(&json, &users.display().to_string())
}

/// Accepts what an agent accepts, and marks it as part of the image: the box must not treat it as fresh.
fn check(bytes: &[u8], origin: &str) -> Result<Vec<u8>, RosterError> {
    let malformed =
        |error: FileError| RosterError::Malformed { origin: origin.into(), why: error.to_string() };
    let mut roster = Roster::from(::roster::read(bytes).map_err(malformed)?);
    for LeftOut { name, error } in &roster.errors {
        tracing::warn!(member = name, error, "left out of the roster in the image");
    }
    roster.source = BAKED_IN.to_owned();
    Ok(roster.to_json().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baked_roster_says_that_it_is_baked_in() {
        for text in [
            r#"{"schema":1,"commit":null,"source":"https://x","members":[]}"#,
            r#"{"schema":2,"commit":null,"source":"https://x","members":[],"groups":[{"name":"ci","limits":{"max-jobs":2}}]}"#,
        ] {
            let before: serde_json::Value = serde_json::from_str(text).unwrap();
            let baked: serde_json::Value =
                serde_json::from_slice(&check(text.as_bytes(), "test").unwrap()).unwrap();
            assert_eq!(baked["source"], "baked-in");
            assert_eq!((&baked["schema"], &baked["groups"]), (&before["schema"], &before["groups"]));
        }
    }

    #[test]
    fn what_is_no_roster_is_refused_at_build_time() {
        for (text, word) in
            [("{", "EOF"), (r#"{"schema":99,"members":[]}"#, "schema 99"), (r#"{"schema":1}"#, "members")]
        {
            let error = check(text.as_bytes(), "users.nix").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("users.nix"), "{error}");
        }
    }
}
