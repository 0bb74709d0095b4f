//! Fetches named packages and upstream sources as files with plain names, from which the examples are built.
//!
//! A version in a file's name would change the derivation that reads it, so names are `debs/NAME.deb` and
//! `sources/NAME.tar`. Not here: the list of them (`examples/packages.list`), and their use.

use crate::archive::{Archive, ArchiveError, Wish};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Downloads packages, in versions that fit together, into `out/debs`.
pub fn debs(archive: &mut Archive, packages: &[String], out: &Path) -> Result<(), FetchError> {
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    let named = |package: &str| names.contains(&package);
    let files = archive.obtain(&Wish { what: "packages", packages: &names, keep: &named })?;
    let files: Vec<(PathBuf, String)> =
        files.iter().map(|file| (archive.path(file), format!("{}.deb", file.package()))).collect();
    replace(&out.join("debs"), &files)
}

/// Downloads the upstream archives of source packages into `out/sources`.
pub fn sources(archive: &mut Archive, sources: &[String], out: &Path) -> Result<(), FetchError> {
    let mut files = Vec::new();
    for source in sources {
        let file = archive.obtain_upstream(source)?;
        files.push((archive.path(&file), format!("{source}.tar")));
    }
    replace(&out.join("sources"), &files)
}

/// Makes `dir` hold exactly these files. On error it holds the previous files or, if only the last step
/// failed, nothing.
fn replace(dir: &Path, files: &[(PathBuf, String)]) -> Result<(), FetchError> {
    let staging = dir.with_extension(format!("partial-{}", std::process::id()));
    std::fs::create_dir_all(&staging).map_err(failed("make", &staging))?;
    for (from, name) in files {
        let to = staging.join(name);
        drop(std::fs::remove_file(&to));
        std::fs::hard_link(from, &to)
            .or_else(|_| std::fs::copy(from, &to).map(drop))
            .map_err(failed("copy", from))?;
    }
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(failed("remove", dir))?;
    }
    std::fs::rename(&staging, dir).map_err(failed("move into place", dir))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FetchError + use<> {
    let path = path.to_path_buf();
    move |source| FetchError::File { action, path, source }
}
