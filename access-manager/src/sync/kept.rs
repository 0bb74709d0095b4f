//! What a synchronisation leaves for the next one, also across a reboot where the disk survives one: the last accepted
//! commit, the roster that was made of it, and the status.
//!
//! ```text
//! KEEP/accepted.json        {"commit": …, "url": …, "branch": …, "committed": …, "accepted": …}
//! KEEP/roster.json          the roster of that commit: in force until the repository can be read
//! KEEP/roster-status.json   a copy of the file beside `roster.json`
//! ```
//! The roster is written before `accepted.json`, and both before the agent's file. A crash between two of them leaves a
//! roster that is newer than what descent is compared with, never an older one.
//! Not here: whether a commit is accepted (`sync`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::roster::status::{Accepted, MAX_STATUS};
use ::roster::{MAX_FILE, Status, date};
use git2::Oid;
use serde::{Deserialize, Serialize};

use super::{Options, SyncError, local};
use crate::bounded;
use crate::roster::{BAKED_IN, Roster};

/// Of the files that are written: the agent reads them as another user, and nothing in them is secret.
const MODE: u32 = 0o644;
/// Interval between two writes of an unchanged status to the kept files: a disk should not be written to each time that
/// nothing has happened. After a reboot the last check counts as this much older at most.
const STATUS_EVERY: u64 = 600;

/// `accepted.json`. The two times are missing in files of older versions.
#[derive(Serialize, Deserialize)]
struct File {
    commit: String,
    url: String,
    branch: String,
    #[serde(default)]
    committed: u64,
    #[serde(default)]
    accepted: u64,
}

/// A roster that took the place of a missing `roster.json`.
#[derive(Debug, PartialEq, Eq)]
pub enum Substitute {
    /// The last accepted one.
    Kept { commit: String },
    /// That of the image.
    BakedIn,
}

/// The last accepted commit.
pub(super) fn accepted(keep: &Path) -> Result<Option<(Oid, Accepted)>, SyncError> {
    let path = keep.join("accepted.json");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(local("read", &path, &e, "the directory must be readable")),
    };
    // Not treated as "nothing accepted yet": that would accept any history.
    let parsed = serde_json::from_str::<File>(&text).map_err(|e| e.to_string()).and_then(|file| {
        let oid = Oid::from_str(&file.commit).map_err(|e| e.message().to_owned())?;
        Ok((oid, Accepted { commit: oid.to_string(), committed: file.committed, accepted: file.accepted }))
    });
    parsed.map(Some).map_err(|e| {
        local("understand", &path, &e, "if it was damaged, check the branch by hand, then delete this file")
    })
}

/// Remembers `roster` as the one of the accepted commit.
pub(super) fn accept(options: &Options, accepted: &Accepted, roster: &Roster) -> Result<(), SyncError> {
    write(&options.keep_dir.join("roster.json"), &roster.to_json())?;
    let file = File {
        commit: accepted.commit.clone(),
        url: options.repo.clone(),
        branch: options.branch.clone(),
        committed: accepted.committed,
        accepted: accepted.accepted,
    };
    let text = serde_json::to_string_pretty(&file).expect("text and numbers");
    write(&options.keep_dir.join("accepted.json"), &format!("{text}\n")).map(|_| ())
}

/// Makes sure that there is a roster for the agent before anything that can hang: the last accepted one. After a reboot
/// without network this is what is in force, and not the roster of the image.
pub(super) fn restore(options: &Options) -> Result<Option<Substitute>, SyncError> {
    let status = Status::path_beside(&options.out);
    let kept = status_at(&kept_status(options));
    if !status.exists()
        && let Some(kept) = kept
    {
        write(&status, &kept.to_json())?;
    }
    if roster_at(&options.out).is_ok() {
        return Ok(None);
    }
    let Ok(roster) = roster_at(&options.keep_dir.join("roster.json")) else { return Ok(None) };
    write(&options.out, &roster.to_json())?;
    Ok(Some(Substitute::Kept { commit: roster.commit.unwrap_or_default() }))
}

/// Puts the baked-in roster in place if there is none, no other was ever accepted, and the options allow it.
pub fn fall_back(options: &Options) -> Result<Option<Substitute>, SyncError> {
    let Some(fallback) = &options.fallback else { return Ok(None) };
    if roster_at(&options.out).is_ok() {
        return Ok(None);
    }
    // A member who was removed since the image was built must not come back because the kept roster was lost.
    if accepted(&options.keep_dir)?.is_some() {
        let why = "another roster was accepted before, and it is not here";
        return Err(local(
            "use the baked-in roster",
            fallback,
            &why,
            "nobody gets in until the repository can be read; deleting accepted.json allows the baked-in roster",
        ));
    }
    let mut roster = roster_at(fallback).map_err(|cause| {
        let hint = "it must be a roster.json as `access-manager eval --json` prints";
        local("use the baked-in roster", fallback, &cause, hint)
    })?;
    roster.source = BAKED_IN.into();
    write(&options.out, &roster.to_json())?;
    Ok(Some(Substitute::BakedIn))
}

/// Notes how a synchronisation ended, for the agent and for the next boot.
pub(super) fn note(options: &Options, change: impl FnOnce(&mut Status, u64)) -> Result<(), SyncError> {
    let (path, now) = (Status::path_beside(&options.out), date::now());
    let mut status = status_at(&path).unwrap_or_default();
    change(&mut status, now);
    write(&path, &status.to_json())?;
    let kept = kept_status(options);
    let due = status_at(&kept).is_none_or(|old| {
        let commit = |status: &Status| status.problem.as_ref().map(|problem| problem.commit.clone());
        let recent = |old: u64, new: u64| new.abs_diff(old) < STATUS_EVERY;
        old.accepted != status.accepted
            || commit(&old) != commit(&status)
            || !recent(old.checked.unwrap_or(0), status.checked.unwrap_or(0))
    });
    if due { write(&kept, &status.to_json()).map(|_| ()) } else { Ok(()) }
}

/// Writes a file unless it has these contents already. Returns whether it wrote.
pub(super) fn write(path: &Path, text: &str) -> Result<bool, SyncError> {
    if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    atomic_file::write(path, text.as_bytes(), MODE)
        .map_err(|e| local("write", path, &e, "its directory must exist and be writable"))?;
    Ok(true)
}

fn kept_status(options: &Options) -> PathBuf {
    Status::path_beside(&options.keep_dir.join("roster.json"))
}

fn roster_at(path: &Path) -> Result<Roster, String> {
    let text = bounded::start(path, MAX_FILE).map_err(|e| e.to_string())?;
    ::roster::read(&text).map(Roster::from).map_err(|e| e.to_string())
}

/// A status that cannot be read is as good as none: it says nothing that would be taken for a check.
fn status_at(path: &Path) -> Option<Status> {
    Status::read(&bounded::start(path, MAX_STATUS).ok()?).ok()
}
