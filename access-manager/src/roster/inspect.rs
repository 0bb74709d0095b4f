//! Facts that do not decide who gets in and still concern maintainers: where names are written, key files that nobody names,
//! groups that have a meaning on an ordinary machine.
//!
//! Only `access-manager check` asks for it. The box's own evaluation does without, so nothing here can keep anybody out.

use std::collections::{BTreeMap, BTreeSet};

use super::Member;
use crate::diag::{Place, Span};
use crate::nix::Evaluator;
use crate::source::{self, Node};
use crate::ssh_keys::{self, KeyError};

/// Attributes with which other lists give rights on the machine.
pub const RIGHTS: &[&str] = &["sudo", "wheel", "extraGroups", "isAdmin", "admin"];
/// The setting of Nix that names trusted users; also their group in [`Groups`].
pub const TRUSTED_USERS: &str = "trusted-users";

/// The setting of Nix that names who may use the daemon at all.
pub const ALLOWED_USERS: &str = "allowed-users";

/// Largest file that is looked at for a key; the evaluator's own bound for key files.
const MAX_KEY_FILE: u64 = 256 << 10;
/// Bytes read of files that nobody names. What comes after is not looked at.
const MAX_READ: usize = 64 << 20;

/// Names of users by the group they are in.
pub type Groups = BTreeMap<String, BTreeSet<String>>;

#[derive(Debug, Default)]
pub struct Inspected {
    /// Members whose names are written in a place of their own, by place. A computed name has none.
    pub places: Vec<(String, Place)>,
    /// Of users of a NixOS module.
    pub groups: Groups,
    pub unused: Vec<Unused>,
}

/// A key file that the roster did not read.
#[derive(Debug)]
pub struct Unused {
    pub path: String,
    /// It holds a private key.
    pub private: bool,
}

/// The place of each member's name, in the order of the files.
pub fn places<'a>(ev: &Evaluator, members: impl Iterator<Item = &'a (Span, Member)>) -> Vec<(String, Place)> {
    let mut by_place: BTreeMap<(u32, u32), Vec<(Span, &str)>> = BTreeMap::new();
    for (span, member) in members {
        by_place.entry((span.file, span.start)).or_default().push((*span, &member.name));
    }
    by_place
        .values()
        .filter_map(|names| match names[..] {
            [(span, name)] => Some((name.to_owned(), ev.place(span)?)),
            // One expression makes several names: it has one place, so their order cannot be seen there.
            _ => None,
        })
        .collect()
}

/// Files with a key that were not read: those in the folders of the files that were, and those of `more`.
pub fn unused_key_files(ev: &Evaluator, more: &[String]) -> Vec<Unused> {
    let is_code = |path: &str| path.ends_with(".nix");
    let folders: BTreeSet<&str> =
        ev.files_read().iter().filter(|path| !is_code(path)).map(|path| source::parent(path)).collect();
    let is_file = |path: &String| matches!(ev.source().look(path), Ok(Some(Node::File)));
    let mut candidates: BTreeSet<String> = more.iter().filter(|path| is_file(path)).cloned().collect();
    for folder in folders {
        // The folder was readable a moment ago; if it no longer is, there is nothing to say about it.
        for (name, node) in ev.source().list(folder).unwrap_or_default() {
            if node == Node::File && !is_code(&name) {
                candidates.insert(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    let mut left = MAX_READ;
    let mut unused = Vec::new();
    for path in candidates.into_iter().filter(|path| !ev.files_read().contains(path)) {
        let limit = MAX_KEY_FILE.min(left as u64);
        let text = ev.source().read(&path, limit).unwrap_or_default();
        left -= text.len();
        let first = ssh_keys::parse(&String::from_utf8_lossy(&text)).into_iter().map(|(_, key)| key).next();
        let private = matches!(first, Some(Err(KeyError::PrivateKey)));
        if private || path.ends_with(".pub") || matches!(first, Some(Ok(_))) {
            unused.push(Unused { path, private });
        }
    }
    unused
}
