//! `work.git`: the repository that git fetches into. Only the holder of the mirror's lock touches it.
//!
//! - **Objects are in packs only**, however few arrive, so that readers need few files. Packs are joined so that each is at least
//!   twice as large as all smaller ones together: their number is the logarithm of the size, and an object is copied about as
//!   often. A list of all objects over all packs, and a graph of all commits, save readers of many packs their time.
//! - **A crash leaves a repository that works**: git writes a file under another name and renames it, and writes a branch after
//!   the objects below it. What a killed git has left, such as locks, is removed by the next attempt ([`Work::tidy`]), which may do that because it
//!   alone has the mirror's lock.
//! - **A repository that is broken nevertheless** is made anew ([`Work::is_sound`]). Readers keep the old one until then.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::Settings;
use crate::git::{Git, GitError, Limits};
use crate::names::{Seed, protocol};
use crate::shown::{SHOWN, ShowError, remove};

/// The name of the folder.
const WORK: &str = "work.git";
/// Where a bundle is stored until it has been read.
const BUNDLE: &str = "seed.bundle";
/// All branches and tags, also if upstream has rewritten them. Nothing else: no pull requests, no notes, no `refs/replace`.
const REFSPECS: [&str; 2] = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"];
/// Branches that are preferred if nobody says which one is checked out.
const USUAL: [&str; 2] = ["refs/heads/main", "refs/heads/master"];

/// The whole configuration. Written before each attempt, so that nothing can stay in it.
const CONFIG: &str = "\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\thooksPath = /dev/null
\tfsmonitor = false
\t# Files from this size on are written as they come, and are not in memory.
\tbigFileThreshold = 32m
[transfer]
\tfsckObjects = true
\tunpackLimit = 1
[fetch]
\tfsckObjects = true
\tunpackLimit = 1
\twriteCommitGraph = false
\trecurseSubmodules = false
[fetch \"fsck\"]
\t# Old histories have these. They look odd, and harm nobody.
\tzeroPaddedFilemode = warn
\tbadTimezone = warn
\tmissingSpaceBeforeDate = warn
[submodule]
\trecurse = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[pack]
\tthreads = 2
\twindowMemory = 256m
\twriteReverseIndex = true
[repack]
\twriteBitmaps = false
[http]
\t# What a server may name is what the operator has written, and nothing inside of the network.
\tfollowRedirects = false
\tlowSpeedLimit = 1
\tlowSpeedTime = 300
";

pub(crate) struct Work<'a> {
    settings: &'a Settings,
    mirror: &'a Path,
    path: PathBuf,
    lock: &'a File,
}

/// An attempt at the repository of a mirror.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Show(#[from] ShowError),
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no branch in it")]
    NoBranch,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> WorkError + 'a {
    move |source| WorkError::File { what, path: path.to_owned(), source }
}

impl<'a> Work<'a> {
    pub(crate) fn new(settings: &'a Settings, mirror: &'a Path, lock: &'a File) -> Self {
        Self { settings, mirror, path: mirror.join(WORK), lock }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn git(&self) -> Git<'_> {
        Git {
            repository: &self.path,
            folder: self.mirror,
            lock: self.lock,
            certificates: self.settings.certificates.as_deref(),
        }
    }

    /// Packing anew needs the old packs and the new ones at the same time, and no more.
    fn packing(&self) -> Limits {
        let time = self.settings.patience.packing;
        Limits { time, quiet: time, bytes: u64::MAX }
    }

    fn fetching(&self, first: bool) -> Limits {
        let patience = self.settings.patience;
        let time = if first { patience.first } else { patience.later };
        Limits { time, quiet: patience.quiet, bytes: self.settings.max_bytes }
    }

    /// Asks git about the repository; the answer is text.
    fn ask(&self, arguments: &[&str]) -> Result<String, WorkError> {
        let answer = self.git().run(arguments, "", Limits::of_a_look())?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Makes the repository, or what is missing of it, and removes what an interrupted attempt has left.
    pub(crate) fn prepare(&self) -> Result<(), WorkError> {
        // Whatever is there in place of a folder has not been made by us.
        for folder in ["", "refs/heads", "refs/tags", "objects/info", "objects/pack"] {
            let path = self.path.join(folder);
            if path.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) {
                remove(&path)?;
            }
            std::fs::create_dir_all(&path).map_err(failed("make", &path))?;
        }
        let config = self.path.join("config");
        atomic_file::write(&config, CONFIG.as_bytes(), 0o644).map_err(failed("write", &config))?;
        self.tidy()?;
        let head = self.path.join("HEAD");
        if !std::fs::read_to_string(&head).is_ok_and(|text| text.starts_with("ref: refs/heads/")) {
            let text = format!("ref: {}\n", USUAL[0]);
            atomic_file::write(&head, text.as_bytes(), 0o644).map_err(failed("write", &head))?;
        }
        Ok(())
    }

    /// Removes locks, incomplete files and packs without an index. Branches that are no branches are of a power cut.
    fn tidy(&self) -> Result<(), WorkError> {
        remove(&self.mirror.join(BUNDLE))?;
        remove(&self.mirror.join(format!("{BUNDLE}.temp")))?;
        for folder in ["hooks", "objects/info/alternates", "info"] {
            remove(&self.path.join(folder))?;
        }
        self.tidy_folder(&self.path)?;
        let packs = self.path.join("objects/pack");
        for name in names(&packs)? {
            let half = [".pack", ".rev"].iter().find_map(|end| name.strip_suffix(end));
            if half.is_some_and(|stem| !packs.join(format!("{stem}.idx")).exists()) {
                remove(&packs.join(&name))?;
            }
        }
        Ok(())
    }

    fn tidy_folder(&self, folder: &Path) -> Result<(), WorkError> {
        let of_branches = folder.starts_with(self.path.join("refs"));
        for name in names(folder)? {
            let path = folder.join(&name);
            let meta = path.symlink_metadata().map_err(failed("look at", &path))?;
            let left = name.ends_with(".lock")
                || name.ends_with(".keep")
                || ["tmp_", ".tmp-", ".config."].iter().any(|start| name.starts_with(start));
            if meta.is_dir() {
                self.tidy_folder(&path)?;
            } else if left || !meta.is_file() || (of_branches && meta.len() < 40) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&self) -> Result<(), WorkError> {
        Ok(remove(&self.path)?)
    }

    /// Whether every branch and tag names an object that is there. If git cannot even say so, the repository is not to blame.
    pub(crate) fn is_sound(&self) -> bool {
        let asked = self.ask(&["for-each-ref", "--format=%(objecttype)"]);
        !matches!(asked, Err(WorkError::Git(GitError::Failed { .. })))
    }

    pub(crate) fn is_empty(&self) -> Result<bool, WorkError> {
        Ok(self.ask(&["for-each-ref", "--count=1"])?.is_empty())
    }

    /// Asks upstream which branch is checked out, and whether it is there at all.
    pub(crate) fn reach(&self, url: &str) -> Result<String, WorkError> {
        let limits = Limits { quiet: self.settings.patience.quiet, ..Limits::of_a_look() };
        let answer = self.git().run(&["ls-remote", "--symref", "--", url, "HEAD"], protocol(url), limits)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Fetches all branches and tags; those that `url` does not have disappear.
    pub(crate) fn fetch(&self, url: &str, first: bool) -> Result<(), WorkError> {
        let mut arguments = vec!["fetch", "--progress", "--prune", "--no-tags", "--no-write-fetch-head"];
        arguments.extend(["--no-auto-maintenance", "--no-recurse-submodules", "--", url]);
        arguments.extend(REFSPECS);
        self.git().run(&arguments, protocol(url), self.fetching(first))?;
        Ok(())
    }

    /// Fetches what the seed has.
    pub(crate) fn fetch_seed(&self, seed: &Seed) -> Result<String, WorkError> {
        let bundle = self.mirror.join(BUNDLE);
        let local = format!("file://{}", bundle.display());
        let url = match (seed.is_bundle(), seed.url().strip_prefix("file://")) {
            (false, _) => seed.url(),
            // git knows a bundle by its path only.
            (true, Some(path)) => path,
            (true, None) => {
                self.download(seed.url(), &bundle)?;
                local.trim_start_matches("file://")
            }
        };
        let protocol = if seed.is_bundle() { "file" } else { protocol(seed.url()) };
        let head =
            self.git().run(&["ls-remote", "--symref", "--", url, "HEAD"], protocol, Limits::of_a_look());
        let head = String::from_utf8_lossy(&head?).into_owned();
        let mut arguments = vec!["fetch", "--progress", "--no-tags", "--no-write-fetch-head"];
        arguments.extend(["--no-auto-maintenance", "--no-recurse-submodules", "--", url]);
        arguments.extend(REFSPECS);
        let limits = self.fetching(true);
        // A bundle and the pack made of it are there at the same time.
        let limits = Limits { bytes: limits.bytes.saturating_mul(2), ..limits };
        let fetched = self.git().run(&arguments, protocol, limits);
        remove(&bundle)?;
        fetched?;
        Ok(head)
    }

    /// Stores what `url` names in a file, with git's own client for HTTP (gitremote-helpers(7), `get`).
    fn download(&self, url: &str, to: &Path) -> Result<(), WorkError> {
        let order = format!("get {url} {}\n\n", to.display());
        let failed = |error| failed("write to", &self.mirror.join(BUNDLE))(error);
        let (reader, mut writer) = io::pipe().map_err(failed)?;
        // It is shorter than the buffer of a pipe.
        writer.write_all(order.as_bytes()).map_err(failed)?;
        drop(writer);
        let helper = format!("remote-{}", protocol(url));
        self.git().run_with(
            &[&helper, url, url],
            protocol(url),
            self.download_limits(),
            Stdio::from(reader),
        )?;
        Ok(())
    }

    /// A download says nothing about its progress; git itself ends one that stands still.
    fn download_limits(&self) -> Limits {
        let limits = self.fetching(true);
        Limits { quiet: limits.time, ..limits }
    }

    /// Makes the branch that `said` (an answer of [`Self::reach`]) means the one that a clone checks out, if it is there.
    pub(crate) fn choose_head(&self, said: &str) -> Result<(), WorkError> {
        let of_head = |line: &str| line.strip_suffix("\tHEAD").map(str::to_owned);
        let lines: Vec<String> = said.lines().filter_map(of_head).collect();
        let named = lines.iter().find_map(|line| line.strip_prefix("ref: ")).map(str::to_owned);
        let commit = lines.iter().find(|line| !line.starts_with("ref: "));
        let all = |extra: &[&str]| -> Result<Vec<String>, WorkError> {
            let arguments = [&["for-each-ref", "--format=%(refname)"], extra, &["refs/heads"]].concat();
            Ok(self.ask(&arguments)?.lines().map(str::to_owned).collect())
        };
        let heads = all(&[])?;
        let mut wanted: Vec<String> = named.into_iter().collect();
        if let Some(commit) = commit.filter(|commit| commit.bytes().all(|b| b.is_ascii_hexdigit())) {
            // A bundle says which commit, and not which branch. Without the commit nothing points at it.
            let mut there = all(&["--points-at", commit]).unwrap_or_default();
            there.sort_by_key(|name| !USUAL.contains(&name.as_str()));
            wanted.extend(there);
        }
        let now = self.head()?;
        wanted.extend(now.strip_prefix("ref: ").map(|rest| rest.trim_end().to_owned()));
        wanted.extend(USUAL.map(str::to_owned));
        wanted.extend(heads.first().cloned());
        let head = wanted.iter().find(|name| heads.contains(name)).ok_or(WorkError::NoBranch)?;
        self.ask(&["symbolic-ref", "HEAD", head])?;
        Ok(())
    }

    /// The contents of `HEAD`.
    pub(crate) fn head(&self) -> Result<String, WorkError> {
        let path = self.path.join("HEAD");
        std::fs::read_to_string(&path).map_err(failed("read", &path))
    }

    /// The commit of `HEAD`, and its date.
    pub(crate) fn tip(&self) -> Result<(String, u64), WorkError> {
        let text = self.ask(&["log", "-1", "--format=%H %ct", "HEAD", "--"])?;
        let (commit, date) = text.trim().split_once(' ').ok_or(WorkError::NoBranch)?;
        Ok((commit.to_owned(), date.parse().unwrap_or_default()))
    }

    /// Brings branches and packs into the form that readers get.
    pub(crate) fn pack(&self) -> Result<(), WorkError> {
        self.ask(&["pack-refs", "--all", "--prune"])?;
        let pack = self.path.join("objects/pack");
        let packs = |folder: &Path| -> Result<BTreeSet<String>, WorkError> {
            Ok(names(folder)?.into_iter().filter(|name| name.ends_with(".pack")).collect())
        };
        let now = packs(&pack)?;
        // What readers have was packed before.
        let as_shown = packs(&self.mirror.join(SHOWN).join("objects/pack")).is_ok_and(|shown| shown == now);
        if (now.len() < 2 || as_shown) && !self.has_loose_objects()? {
            return Ok(());
        }
        let repack = ["repack", "--geometric=2", "-d", "-q", "--write-midx"];
        self.git().run(&repack, "", self.packing())?;
        Ok(())
    }

    /// Writes the graph of commits. Readers do without one that is old.
    pub(crate) fn graph(&self) -> Result<(), WorkError> {
        let graph = ["commit-graph", "write", "--reachable", "--split", "--no-progress"];
        self.git().run(&graph, "", self.packing())?;
        Ok(())
    }

    /// One pack of all that branches and tags lead to; the rest goes.
    pub(crate) fn pack_all(&self) -> Result<(), WorkError> {
        self.git().run(&["repack", "-a", "-d", "-q"], "", self.packing())?;
        // It may name commits that are gone now.
        remove(&self.path.join("objects/info/commit-graphs"))?;
        self.graph()
    }

    fn has_loose_objects(&self) -> Result<bool, WorkError> {
        let folders = names(&self.path.join("objects"))?;
        Ok(folders.iter().any(|name| name.len() == 2))
    }
}

/// Names in a folder that are text; there are no others in a repository.
fn names(folder: &Path) -> Result<Vec<String>, WorkError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))? {
        names.extend(entry.map_err(failed("list", folder))?.file_name().into_string());
    }
    Ok(names)
}
