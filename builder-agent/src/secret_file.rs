//! Files that hold secrets: created once, completely or not at all, and readable only by the agent.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The reason why there is no secret. The callers add its name.
#[derive(Debug)]
pub enum SecretFileError {
    Io {
        action: &'static str,
        cause: io::Error,
    },
    /// The file's mode lets other users read it.
    Open {
        mode: u32,
    },
}

fn io(action: &'static str) -> impl Fn(io::Error) -> SecretFileError {
    move |cause| SecretFileError::Io { action, cause }
}

/// The contents of the file; `None` if there is no file.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, SecretFileError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("read")(error)),
    };
    let mode = fs::metadata(path).map_err(io("read"))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Open { mode });
    }
    Ok(Some(text))
}

/// Creates the file and its folder. A crash leaves no file or a complete one.
pub fn create(path: &Path, secret: &[u8]) -> Result<(), SecretFileError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(io("make the folder of"))?;
    atomic_file::write(path, secret, 0o600).map_err(io("write"))
}
