//! Files with a limit.

use std::fs::File;
use std::io::{Error, Read};
use std::path::Path;

/// The text of a file of at most `limit` bytes.
pub fn text(path: &Path, limit: u64) -> Result<String, Error> {
    let bytes = start(path, limit)?;
    if bytes.len() as u64 > limit {
        return Err(Error::other(format!("it is larger than {limit} bytes")));
    }
    String::from_utf8(bytes).map_err(Error::other)
}

/// The contents of a file, and of a larger one the first `limit` bytes and one more, for a parser with that limit.
pub fn start(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_above_the_limit_is_refused_and_not_cut() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(text(&path, 4).unwrap(), "four");
        assert_eq!(text(&path, 3).unwrap_err().to_string(), "it is larger than 3 bytes");
        assert_eq!(start(&path, 2).unwrap(), b"fou");
    }
}
