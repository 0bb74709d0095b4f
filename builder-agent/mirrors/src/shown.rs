//! `shown`: the folder of a mirror that readers see. It is replaced as a whole, so its branches and packs are of one moment.
//!
//! The folder is made of hard links to files of `work.git` that git never changes in place, while nothing else writes there: all
//! that its branches name is in its packs. Then it changes places with the one before, in one step of the kernel. A crash leaves
//! the old one or the new one, and at most a folder that the next attempt removes.
//!
//! The old folder is removed at once. Who has opened a file of it keeps that, with all its contents; and who was about to open
//! one sees that the folder has been replaced, and begins again (`snapshot`).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

/// The name of the folder.
pub(crate) const SHOWN: &str = "shown";
const NEXT: &str = "shown.new";
/// git takes a folder for a repository only if it has these.
const EMPTY_FOLDERS: [&str; 3] = ["refs", "objects/info", "objects/pack"];

#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ShowError + 'a {
    move |source| ShowError::File { what, path: path.to_owned(), source }
}

/// Files of a mirror that readers need, by their paths: number of the inode, and size.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Files(BTreeMap<String, (u64, u64)>);

impl Files {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.values().map(|(_, bytes)| bytes).sum()
    }

    pub(crate) fn packs(&self) -> u64 {
        self.0.keys().filter(|path| path.ends_with(".pack")).count() as u64
    }
}

/// Whether a file in a folder of a repository is one that readers need. Everything else stays unseen: configuration, hooks,
/// alternates, and what git is about to write.
pub(crate) fn is_read(folder: &str, name: &str) -> bool {
    let of_hash = |start: &str, ends: &[&str]| {
        ends.iter().any(|end| {
            let hash = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
            hash.is_some_and(|hash| {
                matches!(hash.len(), 40 | 64) && hash.bytes().all(|b| b.is_ascii_hexdigit())
            })
        })
    };
    match folder {
        "" => name == "packed-refs",
        "objects/pack" => name == "multi-pack-index" || of_hash("pack-", &[".pack", ".idx", ".rev"]),
        "objects/info" => name == "commit-graph",
        "objects/info/commit-graphs" => name == "commit-graph-chain" || of_hash("graph-", &[".graph"]),
        _ => false,
    }
}

/// The folders with such files.
pub(crate) const FOLDERS: [&str; 4] = ["", "objects/pack", "objects/info", "objects/info/commit-graphs"];

/// All files below `repository` that readers need.
fn files(repository: &Path) -> Result<Files, ShowError> {
    let mut found = Files::default();
    for folder in FOLDERS {
        let path = repository.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("list", &path)(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed("list", &path))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if !is_read(folder, &name) {
                continue;
            }
            let meta = entry.metadata().map_err(failed("look at", &entry.path()))?;
            let at = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            // git writes this one anew even if nothing has changed; its contents are compared.
            let inode = if at == "packed-refs" { 0 } else { meta.ino() };
            found.0.insert(at, (inode, meta.len()));
        }
    }
    // An index without its pack, or the reverse, is of an interrupted git.
    let packs: Vec<String> =
        found.0.keys().filter_map(|path| path.strip_suffix(".pack").map(str::to_owned)).collect();
    let whole =
        |stem: &str| packs.iter().any(|pack| pack == stem) && found.0.contains_key(&format!("{stem}.idx"));
    let halves: Vec<String> = found
        .0
        .keys()
        .filter(|path| {
            [".pack", ".idx", ".rev"]
                .iter()
                .any(|end| path.strip_suffix(end).is_some_and(|stem| !whole(stem)))
        })
        .cloned()
        .collect();
    for half in halves {
        found.0.remove(&half);
    }
    Ok(found)
}

/// Shows the state of the repository `work`, whose branches are all in `packed-refs`. `head` is the contents of `HEAD`. Returns
/// the files, and whether readers see something new.
pub(crate) fn show(mirror: &Path, work: &Path, head: &str) -> Result<(Files, bool), ShowError> {
    let files = files(work)?;
    let (shown, next) = (mirror.join(SHOWN), mirror.join(NEXT));
    let same = |shown: &Path| {
        self::files(shown).is_ok_and(|old| old == files)
            && std::fs::read(shown.join("HEAD")).is_ok_and(|old| old == head.as_bytes())
            && std::fs::read(shown.join("packed-refs")).ok() == std::fs::read(work.join("packed-refs")).ok()
            && EMPTY_FOLDERS.iter().all(|folder| shown.join(folder).is_dir())
    };
    if same(&shown) {
        return Ok((files, false));
    }
    remove(&next)?;
    for folder in EMPTY_FOLDERS.iter().chain(&FOLDERS) {
        let path = next.join(folder);
        std::fs::create_dir_all(&path).map_err(failed("make", &path))?;
    }
    for path in files.0.keys() {
        let to = next.join(path);
        std::fs::hard_link(work.join(path), &to).map_err(failed("make the link", &to))?;
    }
    for (name, contents) in [("HEAD", head), ("config", crate::snapshot::CONFIG)] {
        let path = next.join(name);
        std::fs::write(&path, contents).map_err(failed("write", &path))?;
    }
    let opened = std::fs::File::open(&next).map_err(failed("open", &next))?;
    syncfs(&opened).map_err(|error| failed("flush", &next)(error.into()))?;

    let flags = if shown.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, &next, CWD, &shown, flags).map_err(|error| failed("replace", &shown)(error.into()))?;
    remove(&next)?;
    Ok((files, true))
}

/// Removes a folder or file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), ShowError> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// What an interrupted attempt has left.
pub(crate) fn tidy(mirror: &Path) -> Result<(), ShowError> {
    remove(&mirror.join(NEXT))
}
