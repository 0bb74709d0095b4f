//! The file of webhook secrets: one in a line, so that a secret can be replaced while both count. It is read anew for each
//! request.

use std::path::Path;

use crate::bounded;

/// A shorter secret could be guessed from one request that was seen on the line.
const SHORTEST: usize = 16;
/// Most secrets; each costs a hash over every request.
const MOST: usize = 8;
/// Largest file.
const MAX_FILE: u64 = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("cannot read it: {0}")]
    Read(#[from] std::io::Error),
    #[error("it has {0} secrets; one to {MOST} are accepted, each in a line")]
    Number(usize),
    #[error("the secret in line {0} is shorter than {SHORTEST} bytes")]
    Short(usize),
}

/// The secrets in the file.
pub fn read(path: &Path) -> Result<Vec<String>, SecretsError> {
    let text = bounded::text(path, MAX_FILE)?;
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    let lines: Vec<(usize, &str)> = lines.collect();
    if lines.is_empty() || lines.len() > MOST {
        return Err(SecretsError::Number(lines.len()));
    }
    match lines.iter().find(|(_, line)| line.len() < SHORTEST) {
        Some((number, _)) => Err(SecretsError::Short(number + 1)),
        None => Ok(lines.into_iter().map(|(_, line)| line.to_owned()).collect()),
    }
}
