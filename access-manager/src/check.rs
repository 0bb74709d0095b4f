//! The check of a pull request: what is wrong with a roster, and what a change of it does.
//!
//! ```text
//! check/findings.rs   mistakes, warnings and notes about one state of the roster
//! check/change.rs     two states of the roster, as sentences for a reviewer; a pure function
//! check/vouching.rs   who vouches for whom, and who needs somebody to
//! check/words.rs      keys, limits and dates inside these sentences
//! check/report.rs     the report as text, Markdown or JSON
//! ```
//!
//! All sentences quote the words of strangers with [`crate::diag::quoted`] and contain them nowhere else, so that a
//! format can distinguish them from the words of this program. Not here: the command line (`commands/check.rs`).

pub mod change;
pub mod findings;
pub mod report;
mod vouching;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ::roster::Day;
use git2::{ErrorCode, Oid, Repository};

use crate::diag::{Diagnostic, quoted};
use crate::nix::Limits;
use crate::roster::{self, Evaluated};
use crate::source::{GitTree, Source, WorkDir};
use change::{Change, Side};
use findings::{Bound, Finding, Severity};

/// The input of a check.
#[derive(Clone, Debug)]
pub struct Options {
    /// Top of the repository.
    pub root: PathBuf,
    /// The roster's path in it.
    pub file: String,
    /// A branch, tag or commit. The change is what happened since it was left.
    pub base: Option<String>,
    /// The largest limits that one member may have here.
    pub bounds: Vec<Bound>,
    /// Whether every new member needs a member who vouches for them.
    pub require_vouch: bool,
    /// Seconds since 1970: which dates have passed.
    pub now: u64,
}

/// The result of a check.
#[derive(Debug)]
pub struct Report {
    pub file: String,
    /// Members that the roster lets in; `None` if the whole file is refused.
    pub members: Option<usize>,
    pub findings: Vec<Finding>,
    /// With a base only.
    pub comparison: Option<Comparison>,
}

/// The change since the base.
#[derive(Debug)]
pub struct Comparison {
    /// As it was asked for.
    pub rev: String,
    /// The commit at which the change began.
    pub commit: Oid,
    /// The reason why the roster of that commit cannot be compared, if so. Then the whole roster is new.
    pub problem: Option<String>,
    /// `None` if the roster as it is now is refused: nothing can be said about it.
    pub changes: Option<Vec<Change>>,
}

impl Report {
    pub fn refused(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// The reasons why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("cannot open {}\n   cause: {cause}", path.display())]
    Folder { path: PathBuf, cause: std::io::Error },
    #[error("cannot open the git repository at {}\n   cause: {cause}\n    hint: {hint}", path.display())]
    Repository { path: PathBuf, cause: String, hint: String },
    #[error("there is no commit {rev}\n   cause: {cause}\n    hint: {}", FETCH_ALL)]
    Base { rev: String, cause: String },
    #[error("the current commit cannot be read\n   cause: {0}\n    hint: commit something first")]
    Head(String),
    #[error("{rev} and the current commit have no common ancestor here\n    hint: {}", FETCH_ALL)]
    Unrelated { rev: String },
    #[error("cannot read commit {commit}\n   cause: {cause}\n    hint: {}", FETCH_ALL)]
    Commit { commit: Oid, cause: String },
}

const FETCH_ALL: &str = "in CI, check out the whole history (`fetch-depth: 0`, `GIT_DEPTH: 0`), and name the branch as \
                         `origin/main`";

/// Checks the files on disk, and compares them with the base. Changes nothing.
pub fn check(options: &Options) -> Result<Report, CheckError> {
    let base = options.base.as_ref().map(|rev| find_base(&options.root, rev)).transpose()?;
    let added = base.as_ref().map(|base| base.added_key_files(&options.file)).unwrap_or_default();
    let source = WorkDir::new(&options.root)
        .map_err(|cause| CheckError::Folder { path: options.root.clone(), cause })?;
    let (now, mut findings) = examine(source, options, &added);
    let comparison = match base {
        Some(base) => Some(compare(base, now.as_ref(), &mut findings, options)?),
        None => {
            findings.extend(now.iter().flat_map(|now| vouching::findings(now, None, options)));
            None
        }
    };
    let members = now.map(|evaluated| evaluated.members.len());
    findings.sort_by_key(|finding| (finding.severity, finding.old));
    Ok(Report { file: options.file.clone(), members, findings, comparison })
}

/// Evaluates one state of the roster. Without members, the findings say why.
fn examine<S: Source + Send>(
    source: S,
    options: &Options,
    more_key_files: &[String],
) -> (Option<Evaluated>, Vec<Finding>) {
    match roster::inspect(source, &options.file, Limits::default(), more_key_files) {
        Ok((evaluated, inspected)) => {
            let findings = findings::all(&evaluated, &inspected, &options.bounds, options.now);
            (Some(evaluated), findings)
        }
        Err(diagnostic) => (None, vec![Finding::mistake(*diagnostic)]),
    }
}

fn compare(
    base: Base,
    now: Option<&Evaluated>,
    findings: &mut Vec<Finding>,
    options: &Options,
) -> Result<Comparison, CheckError> {
    let Base { rev, commit, repository } = base;
    let tree = GitTree::new(repository, commit)
        .map_err(|e| CheckError::Commit { commit, cause: e.message().to_owned() })?;
    let exists = tree.look(&options.file).is_ok_and(|node| node.is_some());
    let (before, problem) = match exists {
        false => {
            findings.extend(now.iter().flat_map(|now| vouching::findings(now, None, options)));
            (None, Some(format!("there is no {} in it", quoted(&options.file))))
        }
        true => {
            let (before, old) = examine(tree, options, &[]);
            let old_vouching = before.iter().flat_map(|before| vouching::findings(before, None, options));
            let old: Vec<Finding> = old.into_iter().chain(old_vouching).collect();
            findings.extend(now.iter().flat_map(|now| vouching::findings(now, before.as_ref(), options)));
            let known: BTreeSet<&str> = old.iter().map(|finding| finding.text.as_str()).collect();
            for finding in findings.iter_mut() {
                finding.old = known.contains(finding.text.as_str());
            }
            let problem = before.is_none().then(|| first_line(&old));
            (before, problem)
        }
    };
    let changes = now.map(|now| {
        let nobody = Side::default();
        let before = before.as_ref().map_or(nobody, Side::of);
        change::changes(&before, &Side::of(now), Day::at(options.now))
    });
    Ok(Comparison { rev, commit, problem, changes })
}

fn first_line(findings: &[Finding]) -> String {
    let first = findings.first().map_or("it cannot be evaluated", |finding| finding.text.as_str());
    format!("its roster is refused: {first}")
}

struct Base {
    rev: String,
    commit: Oid,
    repository: Repository,
}

/// The last common ancestor of the current commit and `rev`.
fn find_base(root: &Path, rev: &str) -> Result<Base, CheckError> {
    let repository = Repository::open(root).map_err(|e| {
        let cause = e.message().to_owned();
        let hint = match cause.contains("not owned by current user") {
            true => format!("trust it: git config --global --add safe.directory {}", root.display()),
            false => "--base needs a git repository around the roster".to_owned(),
        };
        CheckError::Repository { path: root.to_owned(), cause, hint }
    })?;
    let unknown = |e: git2::Error| CheckError::Base { rev: quoted(rev), cause: e.message().to_owned() };
    let base =
        repository.revparse_single(rev).and_then(|object| object.peel_to_commit()).map_err(unknown)?.id();
    let head = repository.head().and_then(|head| head.peel_to_commit());
    let head = head.map_err(|e| CheckError::Head(e.message().to_owned()))?.id();
    let commit = match repository.merge_base(base, head) {
        Ok(commit) => commit,
        Err(e) if e.code() == ErrorCode::NotFound => return Err(CheckError::Unrelated { rev: quoted(rev) }),
        Err(e) => return Err(CheckError::Commit { commit: base, cause: e.message().to_owned() }),
    };
    Ok(Base { rev: rev.to_owned(), commit, repository })
}

impl Base {
    /// Files named `*.pub` beside and below the roster that the base does not have. Somebody may have added their key
    /// file and forgotten the entry, or put it into another folder than the entry says.
    fn added_key_files(&self, file: &str) -> Vec<String> {
        let folder = crate::source::parent(file);
        let Ok(index) = self.repository.index() else { return Vec::new() };
        let Ok(tree) = self.repository.find_commit(self.commit).and_then(|commit| commit.tree()) else {
            return Vec::new();
        };
        index
            .iter()
            .filter_map(|entry| String::from_utf8(entry.path).ok())
            .filter(|path| path.ends_with(".pub"))
            .filter(|path| {
                folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
            })
            .filter(|path| tree.get_path(Path::new(path)).is_err())
            .collect()
    }
}
