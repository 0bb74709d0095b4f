//! A roster of any shape, rewritten into the recommended one without changing who gets in.
//!
//! The new text is evaluated like any roster and compared with the old one; without equality there is no result. So a
//! mistake here can refuse an import and cannot let anybody in. Comments of the Nix code are not carried over.
//!
//! ```text
//! import/text.rs   the new users.nix
//! ```
//! Not here: writing files (`commands/import.rs`).

mod text;

use std::collections::BTreeMap;

use ::roster::Day;
use ::roster::words::quoted;

use crate::check::change::{self, Side};
use crate::diag::Diagnostic;
use crate::nix::Limits;
use crate::roster::{Evaluated, Mistake, Warning, evaluate};
use crate::source::{self, Memory, Node, Overlay, Source};

/// Differences in one message. The first ones say what is wrong.
const MAX_DIFFERENCES: usize = 10;

/// Where the key files of the new roster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFiles {
    /// Where they were: the new text replaces the old file.
    InPlace,
    /// Copied to `keys/NAME.pub` beside the new file.
    Copied,
}

/// The new roster.
#[derive(Clone, Debug)]
pub struct Imported {
    pub text: String,
    /// Key files by their paths beside the new file, as they were.
    pub files: BTreeMap<String, String>,
    pub members: usize,
    /// What the old roster had and the new one has not.
    pub warnings: Vec<Warning>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{0}")]
    Refused(Box<Diagnostic>),
    /// Rosters of that size need key files, which the old one had as text or as code.
    #[error(
        "the new roster cannot be read, so nothing is written\n   cause: {0}\n    hint: keep keys in files"
    )]
    Unreadable(Box<Diagnostic>),
    /// Their owners would be missing in the new roster.
    #[error("{}", .0.iter().map(|mistake| mistake.diagnostic.to_string()).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
    #[error("cannot copy the key file {file}\n   cause: {cause}")]
    KeyFile { file: String, cause: String },
    /// A mistake of this program, which must not become one of the roster.
    #[error(
        "the new roster would not be the same, so nothing is written; this is a bug of access-manager\n   cause: {}",
        .0.join("\n          ")
    )]
    Differs(Vec<String>),
}

/// Rewrites `file` of `source`.
pub fn import<S: Source + Sync>(source: &S, file: &str, keys: KeyFiles) -> Result<Imported, ImportError> {
    let limits = Limits::default();
    let old = Overlay::new(source, BTreeMap::new());
    let before = evaluate(old, file, limits).map_err(ImportError::Refused)?;
    if !before.mistakes.is_empty() {
        return Err(ImportError::Mistakes(before.mistakes));
    }
    let (files, names) = match keys {
        KeyFiles::InPlace => (BTreeMap::new(), BTreeMap::new()),
        KeyFiles::Copied => copies(source, &before)?,
    };
    let dir = source::parent(file);
    let text = match keys {
        KeyFiles::InPlace => text::roster(&before, &|_, path| crate::nix_text::path(dir, path)),
        KeyFiles::Copied => text::roster(&before, &|member, path| {
            let copy = names.get(&(member.to_owned(), path.to_owned()));
            crate::nix_text::path("", copy.map_or(path, String::as_str))
        }),
    };
    let after = match keys {
        KeyFiles::InPlace => {
            let new = BTreeMap::from([(file.to_owned(), text.clone())]);
            evaluate(Overlay::new(source, new), file, limits)
        }
        KeyFiles::Copied => {
            let mut new = Memory::with(&[("users.nix", &text)]);
            new.0.extend(files.iter().map(|(path, text)| (path.clone(), text.clone().into_bytes())));
            evaluate(new, "users.nix", limits)
        }
    };
    let after = after.map_err(ImportError::Unreadable)?;
    let differences = differences(&before, &after);
    match differences.is_empty() {
        true => Ok(Imported { text, files, members: after.members.len(), warnings: before.warnings }),
        false => Err(ImportError::Differs(differences)),
    }
}

/// Copies by member and old path.
type Names = BTreeMap<(String, String), String>;

/// The key files of all members, each under the name of its owner.
fn copies(source: &dyn Source, roster: &Evaluated) -> Result<(BTreeMap<String, String>, Names), ImportError> {
    let (mut files, mut names) = (BTreeMap::new(), Names::new());
    for member in &roster.members {
        let paths = roster.about.get(&member.name).into_iter().flat_map(|about| &about.key_sources);
        for path in paths.filter(|source| source.keys > 0).filter_map(|source| source.file.as_ref()) {
            let owner = (member.name.clone(), path.clone());
            if names.contains_key(&owner) {
                continue;
            }
            let mut copy = format!("keys/{}.pub", member.name);
            let mut number = 1;
            // Letter case does not tell files apart everywhere.
            while files.keys().any(|file: &String| file.eq_ignore_ascii_case(&copy)) {
                number += 1;
                copy = format!("keys/{}-{number}.pub", member.name);
            }
            files.insert(copy.clone(), read_key_file(source, path)?);
            names.insert(owner, copy);
        }
    }
    Ok((files, names))
}

fn read_key_file(source: &dyn Source, path: &str) -> Result<String, ImportError> {
    let cannot = |cause: String| ImportError::KeyFile { file: quoted(path), cause };
    let limit = Limits::default().data_file;
    let real = match source::resolve(source, path).map_err(|e| cannot(e.to_string()))? {
        Some((real, Node::File)) => real,
        _ => return Err(cannot("it is no file any more".into())),
    };
    let bytes = source.read(&real, limit).map_err(|e| cannot(e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| cannot(e.to_string()))
}

/// Every difference between two rosters, in words; comments of the Nix code and names of files do not count.
fn differences(before: &Evaluated, after: &Evaluated) -> Vec<String> {
    let mut told: Vec<String> = after.mistakes.iter().map(|mistake| mistake.diagnostic.line()).collect();
    // On this day no date has passed, so two different dates make a difference.
    let day = Day::at(0);
    told.extend(
        change::changes(&Side::of(before), &Side::of(after), day).into_iter().map(|change| change.text),
    );
    if told.is_empty() {
        let names = before.members.iter().chain(&after.members).map(|member| member.name.as_str());
        let differs = |name: &&str| facts(before, name) != facts(after, name);
        told.extend(names.filter(differs).map(|name| format!("{} is not the same", quoted(name))));
        if (&before.groups, &before.hosts) != (&after.groups, &after.hosts) {
            told.push("the groups or the boxes are not the same".into());
        }
    }
    told.truncate(MAX_DIFFERENCES);
    told
}

/// All that a roster says of one member, except in which file.
fn facts(roster: &Evaluated, name: &str) -> Option<String> {
    let at = roster
        .members
        .binary_search_by(|member| member.name.to_lowercase().cmp(&name.to_lowercase()))
        .ok()?;
    let mut member = roster.members[at].clone();
    // A comment that was cut at its longest may end in a space, which no line can end in.
    member.keys.iter_mut().for_each(|key| key.truncate(key.trim_end().len()));
    let about = roster.about.get(name)?;
    Some(format!("{member:?} {:?} {:?} {:?}", about.hosts, about.vouched_by, about.own_limits))
}

#[cfg(test)]
#[path = "import_test.rs"]
mod import_test;
