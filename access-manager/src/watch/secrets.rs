//! The file of webhook secrets: one in a line, so that a secret can be replaced while both count. It is read anew for each
//! request.

use std::io::Read;
use std::path::Path;

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
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("it has {0} secrets; one to {MOST} are accepted, each in a line")]
    Number(usize),
    #[error("the secret in line {0} is shorter than {SHORTEST} bytes")]
    Short(usize),
}

/// The secrets in the file.
pub fn read(path: &Path) -> Result<Vec<String>, SecretsError> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(SecretsError::TooLarge);
    }
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
