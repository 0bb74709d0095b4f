//! The box's ssh identity: made once, then kept.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};

#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error("cannot {action} the host key {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: std::io::Error },
    #[error(
        "the host key {} is not an unencrypted OpenSSH private key: {cause}\nhint: move it away to have a new one made; clients will then warn about a changed key",
        path.display()
    )]
    Format { path: PathBuf, cause: russh::keys::ssh_key::Error },
    /// Anyone on the machine could pretend to be this box.
    #[error("the host key {} can be read by others (mode {mode:o})\nhint: chmod 600 it, and replace it if others had access", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("cannot make a host key: {cause}")]
    Make { cause: russh::keys::ssh_key::Error },
}

/// Reads the key, or makes an ed25519 key when there is no file. A crash while making it leaves either no key
/// or a whole one.
pub fn load_or_create(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let io = |action| move |cause| HostKeyError::Io { action, path: path.to_owned(), cause };
    match fs::read(path) {
        Ok(text) => {
            let mode = fs::metadata(path).map_err(io("read"))?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(HostKeyError::Open { path: path.to_owned(), mode });
            }
            PrivateKey::from_openssh(text)
                .map_err(|cause| HostKeyError::Format { path: path.to_owned(), cause })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(path),
        Err(cause) => Err(HostKeyError::Io { action: "read", path: path.to_owned(), cause }),
    }
}

fn create(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let io = |action| move |cause| HostKeyError::Io { action, path: path.to_owned(), cause };
    let make = |cause| HostKeyError::Make { cause };
    let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(make)?;
    key.set_comment("barnraiser");
    let text = key.to_openssh(LineEnding::LF).map_err(make)?;

    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(io("make the folder of"))?;
    let temp = path.with_extension("new");
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("replace")(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(io("create"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io("write"))?;
    fs::rename(&temp, path).map_err(io("put in place"))?;
    File::open(folder).and_then(|dir| dir.sync_all()).map_err(io("write"))?;
    tracing::info!(path = %path.display(), "host key made");
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_with_mode_600_and_then_kept() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
        let path = dir.path().join("keys/host");
        let first = load_or_create(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let second = load_or_create(&path).expect("read");
        assert_eq!(first.public_key().key_data(), second.public_key().key_data());
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
        let path = dir.path().join("host");
        load_or_create(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(load_or_create(&path), Err(HostKeyError::Open { mode: 0o644, .. })));
    }

    #[test]
    fn a_broken_key_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
        let path = dir.path().join("host");
        fs::write(&path, "broken").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(matches!(load_or_create(&path), Err(HostKeyError::Format { .. })));
        assert_eq!(fs::read(&path).expect("kept"), b"broken");
    }
}
