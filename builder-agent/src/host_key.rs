//! The box's ssh identity: made once, then kept.

use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};

use crate::secret_file::{self, SecretFileError};

#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error("cannot {action} the host key {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: std::io::Error },
    #[error(
        "the host key {} is not an unencrypted OpenSSH private key: {cause}\nhint: move it away to have a new one made; clients will then warn about a changed key",
        path.display()
    )]
    Format { path: PathBuf, cause: russh::keys::ssh_key::Error },
    /// Other users of the machine could pretend to be this box.
    #[error("the host key {} can be read by others (mode {mode:o})\nhint: chmod 600 it, and replace it if others had access", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("cannot make a host key: {cause}")]
    Make { cause: russh::keys::ssh_key::Error },
}

/// Reads the key, or creates an ed25519 key if there is no file. A crash while creating it leaves either no key or a
/// complete one.
pub fn load_or_create(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let owned = || path.to_owned();
    let failed = |error| match error {
        SecretFileError::Io { action, cause } => HostKeyError::Io { action, path: owned(), cause },
        SecretFileError::Open { mode } => HostKeyError::Open { path: owned(), mode },
    };
    if let Some(text) = secret_file::read(path).map_err(failed)? {
        return PrivateKey::from_openssh(text).map_err(|cause| HostKeyError::Format { path: owned(), cause });
    }
    let make = |cause| HostKeyError::Make { cause };
    let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).map_err(make)?;
    key.set_comment("barnraiser");
    let text = key.to_openssh(LineEnding::LF).map_err(make)?;
    secret_file::create(path, text.as_bytes()).map_err(failed)?;
    tracing::info!(path = %path.display(), "host key made");
    Ok(key)
}

/// The public half, `type base64`.
pub fn public(key: &PrivateKey) -> String {
    let public = key.public_key().to_openssh().unwrap_or_default();
    public.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
