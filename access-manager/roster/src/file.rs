//! `roster.json`: its shape, how it is written, and how it is read when parts of it are wrong.
//!
//! A reader that meets a field it does not know leaves that member out: the field may take something away.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::group::{Group, Groups};
use crate::settings::{Layer, Level};
use crate::words::quoted;
use crate::{
    Day, Key, MAX_GROUPS, MAX_GROUPS_OF_MEMBER, MAX_KEYS, MAX_MEMBERS, MAX_SHARES, MemberLimits, keys, name,
};

/// The schema of a roster without groups; a number that is not known means another meaning, so it is refused.
pub const SCHEMA: u64 = 1;
/// The schema of a roster with groups. An agent that knows no groups refuses it by this number and keeps the roster
/// that it has; it must not let members in without the limits that they share.
pub const SCHEMA_WITH_GROUPS: u64 = 2;
/// What `source` says when the roster came with the image.
pub const BAKED_IN: &str = "baked-in";
/// Ten thousand members with three RSA keys each fit in a tenth of this.
pub const MAX_FILE: u64 = 64 << 20;
/// Longest error about one member that is passed on; it ends up in logs and terminals.
const MAX_ERROR: usize = 400;

/// `roster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Roster {
    pub schema: u64,
    /// The commit it was read from: 40 hexadecimal digits.
    pub commit: Option<String>,
    /// The repository's url, or [`BAKED_IN`].
    pub source: String,
    pub members: Vec<Member>,
    /// Sorted by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Who is left out, and why. The others get in regardless.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<LeftOut>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    pub name: String,
    /// `[options] type base64 comment`, at least one. [`crate::keys`] reads them.
    pub keys: Vec<String>,
    #[serde(default)]
    pub role: Role,
    #[serde(default, deserialize_with = "or_default")]
    pub limits: MemberLimits,
    #[serde(default, skip_serializing_if = "Layer::is_empty")]
    pub settings: Layer,
    /// By the fingerprint of one of `keys`, `SHA256:…`.
    #[serde(default, rename = "key-settings", skip_serializing_if = "BTreeMap::is_empty")]
    pub key_settings: BTreeMap<String, Layer>,
    /// The groups whose limits this member shares. Sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Members who may see this one's own store paths, if they list this one too. Sorted.
    #[serde(default, rename = "share-with", skip_serializing_if = "Vec::is_empty")]
    pub share_with: Vec<String>,
    /// The last day (UTC) on which the member gets in.
    #[serde(default)]
    pub expires: Option<Day>,
}

impl Member {
    /// The last day of the member's access, if it has passed.
    pub fn expired(&self, today: Day) -> Option<Day> {
        self.expires.filter(|last| !last.lets_in(today))
    }
}

/// What a member may do besides building. A maintainer gets in when the roster is too old for others; there is no command
/// that only maintainers may use yet. The agent logs the role with each login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    #[default]
    Member,
    Maintainer,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Maintainer => "maintainer",
        }
    }
}

/// A member who is not let in because of a mistake in their own entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The member's name, or `entry 3` where not even that is known.
    pub name: String,
    /// One line.
    pub error: String,
}

impl LeftOut {
    pub fn new(name: &str, error: &str) -> LeftOut {
        let one_line = |text: &str| text.chars().map(printable::character).take(MAX_ERROR).collect();
        LeftOut { name: one_line(name), error: one_line(error) }
    }
}

/// A roster as it was read: whoever is in `members` is in order.
#[derive(Clone, Debug, Default)]
pub struct Read {
    pub commit: Option<String>,
    pub source: String,
    /// Each with their keys, parsed. Every group that one of them names is in `groups`.
    pub members: Vec<(Member, Vec<Key>)>,
    pub groups: Vec<Group>,
    /// Whom the writer left out, then whom this reader does.
    pub errors: Vec<LeftOut>,
}

/// Why no part of the file counts.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("it is not what `access-manager sync` writes: {0}")]
    Shape(serde_json::Error),
    #[error(
        "it has schema {0}, and only {SCHEMA} and {SCHEMA_WITH_GROUPS} are known here\nhint: update the agent and \
         access-manager together"
    )]
    Schema(u64),
    #[error("it has {0} members, at most {MAX_MEMBERS} are accepted")]
    TooMany(usize),
    #[error("it has {0} groups, at most {MAX_GROUPS} are accepted")]
    TooManyGroups(usize),
}

impl Roster {
    /// `members` and `groups` are sorted by name, and each group that a member names is among `groups`.
    pub fn new(
        (commit, source): (Option<String>, String),
        members: Vec<Member>,
        groups: Vec<Group>,
        errors: Vec<LeftOut>,
    ) -> Roster {
        let schema = if groups.is_empty() { SCHEMA } else { SCHEMA_WITH_GROUPS };
        Roster { schema, commit, source, members, groups, errors }
    }

    /// The file's text. Members are sorted, so that equal rosters have equal bytes.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a roster has only text and numbers");
        text.push('\n');
        text
    }
}

impl From<Read> for Roster {
    fn from(read: Read) -> Roster {
        let members = read.members.into_iter().map(|(member, _)| member).collect();
        Roster::new((read.commit, read.source), members, read.groups, read.errors)
    }
}

/// Reads `roster.json`. A member whose entry is wrong is left out, and `errors` says so.
pub fn read(bytes: &[u8]) -> Result<Read, FileError> {
    /// Looked at first, so that a newer format is named as such and not as a syntax error.
    #[derive(Deserialize)]
    struct Version {
        schema: u64,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File<'a> {
        #[serde(rename = "schema")]
        _schema: u64,
        #[serde(default)]
        commit: Option<String>,
        #[serde(default)]
        source: String,
        #[serde(borrow)]
        members: Vec<&'a RawValue>,
        #[serde(default, borrow)]
        groups: Vec<&'a RawValue>,
        #[serde(default)]
        errors: Vec<LeftOut>,
    }
    if bytes.len() as u64 > MAX_FILE {
        return Err(FileError::TooLarge);
    }
    let version: Version = serde_json::from_slice(bytes).map_err(FileError::Shape)?;
    if ![SCHEMA, SCHEMA_WITH_GROUPS].contains(&version.schema) {
        return Err(FileError::Schema(version.schema));
    }
    let file: File = serde_json::from_slice(bytes).map_err(FileError::Shape)?;
    let count = file.members.len().max(file.errors.len());
    if count > MAX_MEMBERS {
        return Err(FileError::TooMany(count));
    }
    if file.groups.len() > MAX_GROUPS {
        return Err(FileError::TooManyGroups(file.groups.len()));
    }
    let groups = Groups::read(&file.groups);
    let mut read = Read {
        commit: file.commit,
        source: file.source,
        errors: file.errors.iter().map(|left| LeftOut::new(&left.name, &left.error)).collect(),
        ..Read::default()
    };
    for (number, entry) in file.members.iter().enumerate() {
        match member(entry, &groups) {
            Ok(member) => read.members.push(member),
            Err(error) => read.errors.push(LeftOut::new(&who(entry, number), &error)),
        }
    }
    leave_out_namesakes(&mut read);
    read.groups = groups.groups;
    // The writer's and ours together: what we write must be read again.
    read.errors.truncate(MAX_MEMBERS);
    Ok(read)
}

/// One entry on its own.
fn member(entry: &RawValue, groups: &Groups) -> Result<(Member, Vec<Key>), String> {
    let member: Member = serde_json::from_str(entry.get()).map_err(|e| e.to_string())?;
    name::check(&member.name)
        .map_err(|found| format!("{found} where a name was expected: {}", name::expected()))?;
    member.limits.check()?;
    member.settings.check(Level::Member)?;
    if member.keys.is_empty() {
        return Err("no keys".into());
    }
    if member.keys.len() > MAX_KEYS {
        return Err(format!("{} keys, at most {MAX_KEYS} are accepted", member.keys.len()));
    }
    if member.share_with.len() > MAX_SHARES {
        return Err(format!(
            "{} names in `share-with`, at most {MAX_SHARES} are accepted",
            member.share_with.len()
        ));
    }
    if member.groups.len() > MAX_GROUPS_OF_MEMBER {
        return Err(format!("{} groups, at most {MAX_GROUPS_OF_MEMBER} are accepted", member.groups.len()));
    }
    groups.check(&member.groups)?;
    let keys = member
        .keys
        .iter()
        .map(|line| keys::parse_line(line.trim()).map_err(|error| error.explain().0))
        .collect::<Result<Vec<Key>, _>>()?;
    check_key_settings(&member, &keys)?;
    Ok((member, keys))
}

fn check_key_settings(member: &Member, keys: &[Key]) -> Result<(), String> {
    if member.key_settings.is_empty() {
        return Ok(());
    }
    let known: BTreeSet<String> = keys.iter().map(Key::fingerprint).collect();
    for (fingerprint, settings) in &member.key_settings {
        if !known.contains(fingerprint) {
            return Err(format!("`key-settings` has {}, which is none of the keys", quoted(fingerprint)));
        }
        settings.check(Level::Key)?;
    }
    Ok(())
}

/// Whose entry it is, if that much can be read.
fn who(entry: &RawValue, number: usize) -> String {
    #[derive(Deserialize)]
    struct Name {
        name: String,
    }
    match serde_json::from_str::<Name>(entry.get()) {
        Ok(Name { name }) if name::check(&name).is_ok() => name,
        _ => format!("entry {}", number + 1),
    }
}

/// Two entries of one name: nobody can say which of them is meant, so neither counts. Names that differ in letter case
/// alone are the same to people and to file systems.
fn leave_out_namesakes(read: &mut Read) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (member, _) in &read.members {
        *seen.entry(member.name.to_lowercase()).or_default() += 1;
    }
    let twice: BTreeSet<String> =
        seen.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();
    if twice.is_empty() {
        return;
    }
    let (out, kept) = read
        .members
        .drain(..)
        .partition(|(member, _): &(Member, _)| twice.contains(&member.name.to_lowercase()));
    read.members = kept;
    let out: Vec<(Member, Vec<Key>)> = out;
    read.errors.extend(out.iter().map(|(member, _)| {
        LeftOut::new(&member.name, &format!("there are two members named {}", quoted(&member.name)))
    }));
}

/// `null` is as good as nothing.
pub(crate) fn or_default<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<MemberLimits, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
#[path = "file_test.rs"]
mod file_test;
