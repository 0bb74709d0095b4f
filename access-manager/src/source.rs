//! The source of the roster's files: a working directory, or a commit in git without a checkout.
//!
//! Paths here are relative to the top of the repository, normalised, with `/` between names; `""` is the top. The
//! repository is hostile: [`resolve`] itself follows symbolic links, one name at a time, so that no link leads out of
//! the repository. A working directory belongs to the person who runs the command, so there is no defence against
//! changes to it meanwhile. A git tree cannot change.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::bounded;

/// Most symbolic links that are followed for one path: the kernel's own limit (`MAXSYMLINKS`, path_resolution(7)).
const MAX_LINKS: usize = 40;
/// Longest path, as in `PATH_MAX`.
const MAX_PATH: usize = 4096;
/// Most entries of a directory that is listed; a directory of keys has one per member.
const MAX_ENTRIES: usize = 20_000;
/// Most entries of directories that are kept: some MiB. Beyond, a directory is read anew.
const MAX_KNOWN: usize = 100_000;

/// The kind of a name in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    File,
    Directory,
    /// The link's target, as it is written.
    Symlink(String),
    /// Another kind, in words: "a git submodule".
    Other(&'static str),
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file is larger than the limit. Reading it anyway would let a pull request fill the memory.
    #[error("it is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the directory has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{}", .0.message())]
    Git(#[from] git2::Error),
}

/// The files of one repository. None of the three functions follows a symbolic link in the last name of `path`.
pub trait Source {
    /// The kind of `path`; `None` if it does not exist.
    fn look(&self, path: &str) -> Result<Option<Node>, SourceError>;
    /// The contents of a regular file of at most `limit` bytes.
    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError>;
    /// The names in a directory.
    fn list(&self, path: &str) -> Result<Vec<(String, Node)>, SourceError>;
}

/// The reason why a path cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("it leaves the repository")]
    Escapes,
    #[error("the symbolic link {link:?} leads out of the repository, to {target:?}")]
    LinkEscapes { link: String, target: String },
    #[error("it goes through more than {MAX_LINKS} symbolic links")]
    TooManyLinks,
    #[error("it is longer than {MAX_PATH} bytes")]
    TooLong,
    #[error("{0}")]
    Source(#[from] SourceError),
}

/// Resolves `relative` against the directory `dir`. As in Nix, the text alone is normalised; links are not followed.
pub fn join(dir: &str, relative: &str) -> Result<String, ResolveError> {
    if dir.len() + relative.len() > MAX_PATH {
        return Err(ResolveError::TooLong);
    }
    let mut names: Vec<&str> = dir.split('/').filter(|n| !n.is_empty()).collect();
    for name in relative.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop().ok_or(ResolveError::Escapes)?;
            }
            name => names.push(name),
        }
    }
    Ok(names.join("/"))
}

/// The directory part of a path.
pub fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |i| &path[..i])
}

/// Follows symbolic links, inside the repository only. Returns the real path and its kind, which is never a link.
pub fn resolve(source: &dyn Source, path: &str) -> Result<Option<(String, Node)>, ResolveError> {
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut done = String::new();
    let mut links = 0;
    let mut node = Node::Directory;
    while let Some(name) = todo.pop() {
        if name.is_empty() || name == "." {
            continue;
        }
        if node != Node::Directory {
            return Ok(None);
        }
        if name == ".." {
            if done.is_empty() {
                return Err(ResolveError::Escapes);
            }
            done.truncate(done.rfind('/').unwrap_or(0));
            continue;
        }
        let next = if done.is_empty() { name } else { format!("{done}/{name}") };
        if next.len() > MAX_PATH {
            return Err(ResolveError::TooLong);
        }
        match source.look(&next)? {
            None => return Ok(None),
            Some(Node::Symlink(target)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ResolveError::TooManyLinks);
                }
                if target.len() > MAX_PATH {
                    return Err(ResolveError::TooLong);
                }
                if target.starts_with('/') || join(&done, &target).is_err() {
                    return Err(ResolveError::LinkEscapes { link: next, target });
                }
                // `done` is the link's directory already; the names of its target come next.
                todo.extend(target.split('/').rev().map(str::to_owned));
            }
            Some(found) => {
                done = next;
                node = found;
            }
        }
    }
    Ok(Some((done, node)))
}

/// Files as they are on disk, with uncommitted changes.
pub struct WorkDir {
    root: PathBuf,
}

impl WorkDir {
    /// `root` is the top of the repository; nothing above it can be named.
    pub fn new(root: &Path) -> std::io::Result<WorkDir> {
        Ok(WorkDir { root: root.canonicalize()? })
    }

    fn node(meta: &std::fs::Metadata, path: &Path) -> std::io::Result<Node> {
        let kind = meta.file_type();
        Ok(if kind.is_file() {
            Node::File
        } else if kind.is_dir() {
            Node::Directory
        } else if kind.is_symlink() {
            match path.read_link()?.into_os_string().into_string() {
                Ok(target) => Node::Symlink(target),
                Err(_) => Node::Other("a symbolic link whose target is not UTF-8"),
            }
        } else {
            Node::Other("neither a file nor a directory")
        })
    }
}

impl Source for WorkDir {
    fn look(&self, path: &str) -> Result<Option<Node>, SourceError> {
        // git's own directory is not part of the repository's contents; a commit does not have it either.
        if path == ".git" || path.starts_with(".git/") {
            return Ok(None);
        }
        let full = self.root.join(path);
        match full.symlink_metadata() {
            Ok(meta) => Ok(Some(Self::node(&meta, &full)?)),
            Err(e)
                if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                Ok(None)
            }
            Err(e) => Err(e.into()),
        }
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        let bytes = bounded::start(&self.root.join(path), limit)?;
        if bytes.len() as u64 > limit {
            return Err(SourceError::TooLarge { limit });
        }
        Ok(bytes)
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Node)>, SourceError> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(self.root.join(path))? {
            let entry = entry?;
            if path.is_empty() && entry.file_name() == ".git" {
                continue;
            }
            if out.len() == MAX_ENTRIES {
                return Err(SourceError::TooManyEntries);
            }
            if let Ok(name) = entry.file_name().into_string() {
                out.push((name, Self::node(&entry.metadata()?, &entry.path())?));
            }
        }
        Ok(out)
    }
}

/// The files of one commit, read from the object database.
pub struct GitTree {
    repository: git2::Repository,
    tree: git2::Oid,
    known: RefCell<Known>,
}

/// Directories that were looked into, by path. The library reads a directory anew for each name in it, which takes a
/// minute for ten thousand key files.
#[derive(Default)]
struct Known {
    directories: HashMap<String, Entries>,
    /// The number of entries of all of them.
    entries: usize,
}

impl Known {
    /// A directory that is too large alone is not kept: then the library looks for each name in it.
    fn keep(&mut self, dir: &str, tree: &git2::Tree<'_>) {
        if tree.len() > MAX_KNOWN {
            return;
        }
        if self.entries + tree.len() > MAX_KNOWN {
            *self = Known::default();
        }
        let entries = tree.iter().map(|entry| (entry.name_bytes().to_vec(), (entry.filemode(), entry.id())));
        self.entries += tree.len();
        self.directories.insert(dir.to_owned(), entries.collect());
    }
}

/// The mode and the object of each name in a directory.
type Entries = HashMap<Vec<u8>, (i32, git2::Oid)>;

impl GitTree {
    pub fn new(repository: git2::Repository, commit: git2::Oid) -> Result<GitTree, git2::Error> {
        let tree = repository.find_commit(commit)?.tree_id();
        Ok(GitTree { repository, tree, known: RefCell::default() })
    }

    /// The directory; `None` if there is none at this path.
    fn directory(&self, dir: &str) -> Result<Option<git2::Tree<'_>>, SourceError> {
        let top = self.repository.find_tree(self.tree)?;
        if dir.is_empty() {
            return Ok(Some(top));
        }
        match top.get_path(Path::new(dir)) {
            Ok(entry) if entry.kind() == Some(git2::ObjectType::Tree) => {
                Ok(Some(self.repository.find_tree(entry.id())?))
            }
            Ok(_) => Ok(None),
            Err(e) if e.code() == git2::ErrorCode::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The object of a name in a directory.
    fn entry(&self, path: &str) -> Result<Option<(i32, git2::Oid)>, SourceError> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if let Some(known) = self.known.borrow().directories.get(dir) {
            return Ok(known.get(name.as_bytes()).copied());
        }
        let Some(tree) = self.directory(dir)? else { return Ok(None) };
        let found = tree.get_name_bytes(name.as_bytes()).map(|entry| (entry.filemode(), entry.id()));
        self.known.borrow_mut().keep(dir, &tree);
        Ok(found)
    }

    fn node(&self, (mode, id): (i32, git2::Oid)) -> Result<Node, SourceError> {
        Ok(match mode {
            0o120000 => match String::from_utf8(self.blob(id, MAX_PATH as u64)?) {
                Ok(target) => Node::Symlink(target),
                Err(_) => Node::Other("a symbolic link whose target is not UTF-8"),
            },
            0o160000 => Node::Other("a git submodule"),
            0o040000 => Node::Directory,
            _ => Node::File,
        })
    }

    fn blob(&self, id: git2::Oid, limit: u64) -> Result<Vec<u8>, SourceError> {
        // The header has the size, so a large object is never unpacked into memory.
        let (size, _) = self.repository.odb()?.read_header(id)?;
        if size as u64 > limit {
            return Err(SourceError::TooLarge { limit });
        }
        Ok(self.repository.find_blob(id)?.content().to_vec())
    }
}

impl Source for GitTree {
    fn look(&self, path: &str) -> Result<Option<Node>, SourceError> {
        if path.is_empty() {
            return Ok(Some(Node::Directory));
        }
        self.entry(path)?.map(|entry| self.node(entry)).transpose()
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        match self.entry(path)? {
            Some((_, id)) => self.blob(id, limit),
            None => Err(std::io::Error::from(std::io::ErrorKind::NotFound).into()),
        }
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Node)>, SourceError> {
        let not_found = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let tree = self.directory(path)?.ok_or_else(not_found)?;
        if tree.len() > MAX_ENTRIES {
            return Err(SourceError::TooManyEntries);
        }
        let mut out = Vec::new();
        for entry in &tree {
            if let Ok(name) = std::str::from_utf8(entry.name_bytes()) {
                out.push((name.to_owned(), self.node((entry.filemode(), entry.id()))?));
            }
        }
        // The order of git; equal commits give equal errors.
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }
}

/// A repository in memory: for tests and fuzzing.
#[derive(Default)]
pub struct Memory(pub std::collections::BTreeMap<String, Vec<u8>>);

impl Memory {
    pub fn with(files: &[(&str, &str)]) -> Memory {
        Memory(files.iter().map(|(n, t)| ((*n).to_owned(), t.as_bytes().to_vec())).collect())
    }
}

impl Source for Memory {
    fn look(&self, path: &str) -> Result<Option<Node>, SourceError> {
        if self.0.contains_key(path) {
            return Ok(Some(Node::File));
        }
        let below = format!("{path}/");
        let directory = path.is_empty() || self.0.keys().any(|k| k.starts_with(&below));
        Ok(directory.then_some(Node::Directory))
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        match self.0.get(path) {
            Some(bytes) if bytes.len() as u64 <= limit => Ok(bytes.clone()),
            Some(_) => Err(SourceError::TooLarge { limit }),
            None => Err(std::io::Error::from(std::io::ErrorKind::NotFound).into()),
        }
    }

    fn list(&self, path: &str) -> Result<Vec<(String, Node)>, SourceError> {
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names = std::collections::BTreeMap::new();
        for key in self.0.keys().filter_map(|k| k.strip_prefix(&below)) {
            match key.split_once('/') {
                Some((dir, _)) => names.insert(dir.to_owned(), Node::Directory),
                None => names.insert(key.to_owned(), Node::File),
            };
        }
        Ok(names.into_iter().collect())
    }
}

/// Files of another source, some of them replaced.
pub struct Overlay<'a, S> {
    under: &'a S,
    replaced: std::collections::BTreeMap<String, String>,
}

impl<'a, S: Source> Overlay<'a, S> {
    pub fn new(under: &'a S, replaced: std::collections::BTreeMap<String, String>) -> Self {
        Overlay { under, replaced }
    }
}

impl<S: Source> Source for Overlay<'_, S> {
    fn look(&self, path: &str) -> Result<Option<Node>, SourceError> {
        match self.replaced.contains_key(path) {
            true => Ok(Some(Node::File)),
            false => self.under.look(path),
        }
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        match self.replaced.get(path) {
            Some(text) if text.len() as u64 <= limit => Ok(text.clone().into_bytes()),
            Some(_) => Err(SourceError::TooLarge { limit }),
            None => self.under.read(path, limit),
        }
    }

    /// Replaced files exist already.
    fn list(&self, path: &str) -> Result<Vec<(String, Node)>, SourceError> {
        self.under.list(path)
    }
}

#[cfg(test)]
#[path = "source_test.rs"]
mod source_test;
