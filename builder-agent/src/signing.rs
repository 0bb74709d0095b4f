//! The box's signing key: created once, then kept. The `store` decides what is signed: Verified paths, and nothing
//! else.
//!
//! The file has Nix's form, `name:base64`, so `nix key convert-secret-to-public` and friends work on it.

use std::path::{Path, PathBuf};

use store::signing::{KeyError, PublicKey, SecretKey, TrustedKeys};

use crate::secret_file::{self, SecretFileError};

#[derive(Debug, thiserror::Error)]
pub enum SigningKeyError {
    #[error("cannot {action} the signing key {}: {cause}", path.display())]
    Io { action: &'static str, path: PathBuf, cause: std::io::Error },
    #[error(
        "the signing key {} cannot be used: {cause}\nhint: move it away to have a new one made; members \
         must then trust that one",
        path.display()
    )]
    Format { path: PathBuf, cause: KeyError },
    /// Other users of the machine could sign as this box.
    #[error("the signing key {} can be read by others (mode {mode:o})\nhint: chmod 600 it, and replace it if others had access", path.display())]
    Open { path: PathBuf, mode: u32 },
    /// Keys are distinguished by name, so one of the two would have no effect.
    #[error(
        "`trusted-public-keys` has another key called {name}, which is the name of this box's own\nhint: give this box a \
         name of its own with `signing-key-name`, and move {} away to have a key of that name made", path.display()
    )]
    SameName { name: String, path: PathBuf },
    #[error("cannot make a signing key called {name:?}: {cause}\nhint: set `signing-key-name`")]
    Make { name: String, cause: KeyError },
}

/// Reads the key, or creates one called `name` if there is no file. A crash while creating it leaves either no key or a
/// complete one.
pub fn load_or_create(path: &Path, name: &str) -> Result<SecretKey, SigningKeyError> {
    let owned = || path.to_owned();
    let failed = |error| match error {
        SecretFileError::Io { action, cause } => SigningKeyError::Io { action, path: owned(), cause },
        SecretFileError::Open { mode } => SigningKeyError::Open { path: owned(), mode },
    };
    if let Some(text) = secret_file::read(path).map_err(failed)? {
        let text = String::from_utf8_lossy(&text);
        return text.trim().parse().map_err(|cause| SigningKeyError::Format { path: owned(), cause });
    }
    let key =
        SecretKey::generate(name).map_err(|cause| SigningKeyError::Make { name: name.to_owned(), cause })?;
    // Without a newline, as `nix key generate-secret` prints it.
    secret_file::create(path, key.to_secret_text().as_bytes()).map_err(failed)?;
    tracing::info!(path = %path.display(), key = %key.public(), "signing key made");
    Ok(key)
}

/// The keys that make a path Verified: the configured ones, and the box's own. A path that this box signed before it
/// lost its store is as trustworthy as one that it would sign now.
pub fn trusted(config: &settings::Config, own: &PublicKey) -> Result<TrustedKeys, SigningKeyError> {
    let others = &config.trusted_public_keys;
    if others.iter().any(|other| other.name() == own.name() && other != own) {
        let (name, path) = (own.name().to_owned(), config.signing_key.clone());
        return Err(SigningKeyError::SameName { name, path });
    }
    Ok(TrustedKeys::new(others.iter().cloned().chain([own.clone()])))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
