//! `manifest.json`: the contents of a release. Written last, so a folder with a manifest is a complete
//! release.
//!
//! Readers refuse unknown formats and ignore unknown fields. Not here: signatures.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Increased when an older reader would misunderstand a newer release.
pub const FORMAT: u32 = 1;
pub const FILE_NAME: &str = "manifest.json";
/// The files of a release, without the manifest.
pub const FILES: [&str; 3] = ["boot.ipxe", "initrd", "kernel"];
/// A real manifest has about 10 KiB; a much larger file is something else.
const MAX_MANIFEST: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    pub format: u32,
    /// Commit of the sources it was built from; absent outside of a git checkout.
    pub commit: Option<String>,
    /// The checkout had uncommitted changes.
    pub modified: bool,
    pub suite: String,
    pub architecture: String,
    /// `uname -r` on the box and in its micro-VMs.
    pub kernel_version: String,
    /// Hash over all inputs. Equal inputs give an equal release.
    pub inputs: String,
    /// File name -> hash and size.
    pub files: BTreeMap<String, Entry>,
    /// Debian package -> version.
    pub packages: BTreeMap<String, String>,
    /// The same of the root file system of homes; absent if the release has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub home_packages: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Lower-case hex.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error(
        "{dir} holds no release: {file}: {source}\nhint:  make one with `netboot-image build --out {dir}`"
    )]
    Unreadable { dir: PathBuf, file: String, source: std::io::Error },
    #[error("{path} is not a manifest: {source}")]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path} has format {found}, this program knows format {FORMAT}\nhint:  use the netboot-image that made the release"
    )]
    UnknownFormat { path: PathBuf, found: u32 },
    /// A box that boots parts of two releases fails far from the cause.
    #[error(
        "{path} is not the file the manifest names ({what} differs)\nhint:  build or copy the release again"
    )]
    Mismatch { path: PathBuf, what: &'static str },
}

/// A release whose files were all checked, with open files: replacing them on disk does not change it.
pub struct Release {
    pub manifest: Manifest,
    /// The exact bytes of the manifest's file.
    pub manifest_bytes: Vec<u8>,
    pub files: BTreeMap<String, File>,
}

/// Opens a release and checks every file against its manifest.
pub fn open(dir: &Path) -> Result<Release, ReleaseError> {
    let path = dir.join(FILE_NAME);
    let unreadable = |file: &str| {
        let (dir, file) = (dir.to_path_buf(), file.to_owned());
        move |source| ReleaseError::Unreadable { dir, file, source }
    };
    let mut manifest_bytes = Vec::new();
    let mut file = File::open(&path).map_err(unreadable(FILE_NAME))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, MAX_MANIFEST), &mut manifest_bytes)
        .map_err(unreadable(FILE_NAME))?;
    let malformed = |source| ReleaseError::Malformed { path: path.clone(), source };
    #[derive(Deserialize)]
    struct JustFormat {
        format: u32,
    }
    let JustFormat { format } = serde_json::from_slice(&manifest_bytes).map_err(malformed)?;
    if format != FORMAT {
        return Err(ReleaseError::UnknownFormat { path, found: format });
    }
    let manifest: Manifest = serde_json::from_slice(&manifest_bytes).map_err(malformed)?;
    let mut files = BTreeMap::new();
    for name in FILES {
        let path = dir.join(name);
        let mut file = File::open(&path).map_err(unreadable(name))?;
        let (sha256, size) = crate::files::digest(&mut file).map_err(unreadable(name))?;
        let mismatch = |what| ReleaseError::Mismatch { path: path.clone(), what };
        let entry = manifest.files.get(name).ok_or_else(|| mismatch("its absence from the manifest"))?;
        if entry.size != size {
            return Err(mismatch("size"));
        }
        if entry.sha256 != sha256 {
            return Err(mismatch("hash"));
        }
        files.insert(name.to_owned(), file);
    }
    Ok(Release { manifest, manifest_bytes, files })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_release_opens() {
        let dir = crate::testing::release();
        assert_eq!(open(dir.path()).unwrap().files.len(), FILES.len());
    }

    #[test]
    fn a_changed_file_is_refused_even_at_the_same_size() {
        let dir = crate::testing::release();
        std::fs::write(dir.path().join("kernel"), "KERNEL").unwrap();
        let error = open(dir.path()).err().unwrap();
        assert!(matches!(error, ReleaseError::Mismatch { what: "hash", .. }), "{error}");
    }

    #[test]
    fn a_truncated_file_is_refused() {
        let dir = crate::testing::release();
        std::fs::write(dir.path().join("initrd"), "i").unwrap();
        assert!(matches!(open(dir.path()), Err(ReleaseError::Mismatch { what: "size", .. })));
    }

    #[test]
    fn a_newer_format_is_refused_by_number() {
        let dir = crate::testing::release();
        std::fs::write(dir.path().join(FILE_NAME), r#"{"format": 2, "everything": "else"}"#).unwrap();
        assert!(matches!(open(dir.path()), Err(ReleaseError::UnknownFormat { found: 2, .. })));
    }

    #[test]
    fn an_empty_folder_tells_how_to_make_a_release() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path()).err().unwrap().to_string().contains("netboot-image build"));
    }
}
