//! The roster in a release, for boots without network. Only its outermost structure is checked here.

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

/// Evaluates a `users.nix` with access-manager.
pub fn evaluate(access_manager: &Path, users: &Path) -> Result<Vec<u8>, RosterError> {
    let json = tool::output(
        Command::new(access_manager).arg("eval").arg(users).arg("--json"),
        "evaluate the roster's users.nix",
    )?;
    check(&json, &users.display().to_string())
}

/// Accepts `{"schema": 1, "members": [...]}` and marks it as part of the image: the box must not treat it as
/// fresh.
fn check(bytes: &[u8], origin: &str) -> Result<Vec<u8>, RosterError> {
    let malformed = |why: String| RosterError::Malformed { origin: origin.into(), why };
    let mut roster: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    if roster["schema"] != 1 {
        return Err(malformed(format!("its schema is {}, not 1", roster["schema"])));
    }
    if !roster["members"].is_array() {
        return Err(malformed("it has no list of members".into()));
    }
    roster["source"] = "baked-in".into();
    let mut text = serde_json::to_vec_pretty(&roster).expect("it was JSON before");
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_baked_roster_says_that_it_is_baked_in() {
        let roster =
            check(br#"{"schema":1,"commit":null,"source":"https://x","members":[]}"#, "test").unwrap();
        let roster: serde_json::Value = serde_json::from_slice(&roster).unwrap();
        assert_eq!(roster["source"], "baked-in");
    }

    #[test]
    fn what_is_no_roster_is_refused_at_build_time() {
        for (text, word) in
            [("{", "EOF"), (r#"{"schema":2,"members":[]}"#, "schema is 2"), (r#"{"schema":1}"#, "members")]
        {
            let error = check(text.as_bytes(), "users.nix").unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("users.nix"), "{error}");
        }
    }
}
