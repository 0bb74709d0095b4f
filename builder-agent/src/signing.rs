//! The box's signing key: made once, then kept. What it signs is decided in `store`: Verified paths, and nothing else.
//!
//! The file has Nix's form, `name:base64`, so `nix key convert-secret-to-public` and friends work on it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use store::signing::{KeyError, SecretKey};

#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    #[error("cannot {action} the signing key {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: std::io::Error },
    #[error(
        "the signing key {} is of no use: {cause}\nhint: move it away to have a new one made; members must then trust that one",
        path.display()
    )]
    Format { path: PathBuf, cause: KeyError },
    /// Anyone on the machine could sign in this box's name.
    #[error("the signing key {} can be read by others (mode {mode:o})\nhint: chmod 600 it, and replace it if others had access", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("cannot make a signing key called {name:?}: {cause}\nhint: set `signing-key-name`")]
    Make { name: String, cause: KeyError },
}

/// Reads the key, or makes one called `name` when there is no file. A crash while making it leaves either no
/// key or a whole one.
pub fn load_or_create(path: &Path, name: &str) -> Result<SecretKey, SigningKeyError> {
    let io = |action| move |cause| SigningKeyError::Io { action, path: path.to_owned(), cause };
    match fs::read_to_string(path) {
        Ok(text) => {
            let mode = fs::metadata(path).map_err(io("read"))?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(SigningKeyError::Open { path: path.to_owned(), mode });
            }
            text.trim().parse().map_err(|cause| SigningKeyError::Format { path: path.to_owned(), cause })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(path, name),
        Err(cause) => Err(SigningKeyError::Io { action: "read", path: path.to_owned(), cause }),
    }
}

fn create(path: &Path, name: &str) -> Result<SecretKey, SigningKeyError> {
    let io = |action| move |cause| SigningKeyError::Io { action, path: path.to_owned(), cause };
    let key =
        SecretKey::generate(name).map_err(|cause| SigningKeyError::Make { name: name.to_owned(), cause })?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(io("make the folder of"))?;
    let temp = path.with_extension("new");
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("replace")(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(io("create"))?;
    // No newline: that is how `nix key generate-secret` prints it.
    file.write_all(key.to_secret_text().as_bytes()).and_then(|()| file.sync_all()).map_err(io("write"))?;
    fs::rename(&temp, path).map_err(io("put in place"))?;
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(io("write"))?;
    tracing::info!(path = %path.display(), key = %key.public(), "signing key made");
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_with_mode_600_and_then_kept_whatever_the_name() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
        let path = dir.path().join("keys/signing-key");
        let first = load_or_create(&path, "box.example.org-1").expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let second = load_or_create(&path, "other-2").expect("read");
        assert_eq!(first.public(), second.public());
        assert!(second.public().to_string().starts_with("box.example.org-1:"));
    }

    #[test]
    fn a_key_open_to_others_or_broken_is_refused_and_kept() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
        let path = dir.path().join("signing-key");
        load_or_create(&path, "box-1").expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(load_or_create(&path, "box-1"), Err(SigningKeyError::Open { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(&path, "box-1:AAAA").expect("write");
        assert!(matches!(load_or_create(&path, "box-1"), Err(SigningKeyError::Format { .. })));
        assert_eq!(fs::read(&path).expect("kept"), b"box-1:AAAA");
    }

    #[test]
    fn a_name_that_cannot_be_a_keys_is_refused() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
        let made = load_or_create(&dir.path().join("signing-key"), "my box");
        assert!(matches!(made, Err(SigningKeyError::Make { .. })));
    }
}
