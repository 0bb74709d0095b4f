//! Who may log in: reads `roster.json` and follows its changes while the agent runs.
//!
//! `access-manager` writes the file and has checked every entry. The agent still parses it with bounds (by the crate
//! `roster`, as the access manager does), since a disk error or a hand edit can put anything into it. A member whose
//! entry has a mistake is left out; if a file does not load, the roster before it stays.
//! Who a name means is kept apart from the name ([`identity`]). Holders of tickets are added to each roster
//! ([`bearers`]). Not here: where the file comes from, which member a login is for (`ssh::login`), and what a session may
//! do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::roster::{BAKED_IN, Day, FileError, Key, LeftOut, MAX_FILE, person};
use russh::keys::ssh_key::public::KeyData;
use tokio::sync::watch;

use followed::Version;
use identity::Listed;

pub use ::roster::settings;
pub use ::roster::{Group, MemberLimits, Role, Status, date};
pub use bearers::{Bearer, with_tickets};
pub use checks::Checks;
pub use identity::Identities;
pub use limits::{Effective, SetBy};
use settings::Layer;
pub use views::Views;

mod bearers;
mod checks;
mod followed;
mod identity;
mod limits;
mod views;

#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    pub name: Arc<str>,
    /// The owner of this member's claims, logs and results: two people who use one name in turn have two. See
    /// [`identity`].
    pub id: Arc<str>,
    /// A maintainer gets in when the roster is too old for others ([`Checks`]), and sees the usage and the builds of every
    /// member.
    pub role: Role,
    pub limits: MemberLimits,
    /// What the roster says on the level of the member.
    pub settings: Layer,
    /// The same for single keys and authorities, by fingerprint.
    pub key_settings: BTreeMap<String, Layer>,
    /// The groups of this member, in order of name. A group's limits count for all its members together.
    pub groups: Vec<Arc<Group>>,
    /// The members whose paths this member wants to see, and to whom this member's paths may be shown.
    pub share_with: BTreeSet<Arc<str>>,
    /// Set for the holder of a ticket, who is in no roster file.
    pub ticket: Option<Bearer>,
}

impl Member {
    /// A member with nothing of their own: the box's limits, no group.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            id: name.into(),
            role: Role::Member,
            limits: MemberLimits::default(),
            settings: Layer::default(),
            key_settings: BTreeMap::new(),
            groups: Vec::new(),
            share_with: BTreeSet::new(),
            ticket: None,
        }
    }
}

/// A member, and one key or certificate authority of theirs.
#[derive(Debug, Clone)]
pub struct Holder {
    pub member: Arc<Member>,
    pub key: Arc<Key>,
}

/// One accepted roster, without members past their expiry date.
#[derive(Debug, Default, Clone)]
pub struct Roster {
    pub source: String,
    pub commit: Option<String>,
    /// When this agent began to use it, in seconds since 1970.
    pub loaded: u64,
    /// The holders of each key. Several members can have one key; the ssh user name then says which one logs in.
    keys: Arc<HashMap<KeyData, Vec<Holder>>>,
    /// The holders of each certificate authority, likewise.
    authorities: Arc<HashMap<KeyData, Vec<Holder>>>,
    by_name: Arc<BTreeMap<Arc<str>, Arc<Member>>>,
    /// The holders of live tickets, by identity.
    bearers: BTreeMap<Arc<str>, Arc<Member>>,
    /// The members with a mistake in their entry, and the mistake.
    pub left_out: Vec<LeftOut>,
}

impl Roster {
    /// The members with this key.
    pub fn holders(&self, key: &KeyData) -> &[Holder] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// The members for whom this authority signs certificates.
    pub fn holders_of_authority(&self, key: &KeyData) -> &[Holder] {
        self.authorities.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn has_authorities(&self) -> bool {
        !self.authorities.is_empty()
    }

    /// Whether this member has a certificate authority.
    pub fn has_authority(&self, name: &str) -> bool {
        self.authorities.values().flatten().any(|holder| &*holder.member.name == name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn by_name(&self, name: &str) -> Option<&Arc<Member>> {
        self.by_name.get(name)
    }

    /// The member, or the holder of a ticket, with this identity.
    pub fn by_id(&self, id: &str) -> Option<&Arc<Member>> {
        if let Some(bearer) = self.bearers.get(id) {
            return Some(bearer);
        }
        let name = id.split(identity::MARK).next().unwrap_or(id);
        self.by_name.get(name).filter(|member| &*member.id == id)
    }

    /// The same member in this roster, with current limits; `None` if they have left.
    ///
    /// A member from an earlier look-up is only an identity: every permission and every limit must be read from the
    /// result of this function.
    pub fn current(&self, member: &Member) -> Option<&Arc<Member>> {
        match member.ticket {
            Some(_) => self.bearers.get(&member.id),
            None => self.by_name.get(&member.name).filter(|now| now.id == member.id),
        }
    }

    /// The identities of the members who share with `member` and with whom `member` shares.
    pub fn ids_sharing_with(&self, member: &Member) -> Vec<Arc<str>> {
        // What the holder of a ticket uploads must not appear in the view of its maker.
        if self.current(member).is_none() || member.ticket.is_some() {
            return Vec::new();
        }
        let others = self.sharing_with(&member.name);
        others.iter().filter_map(|name| self.by_name.get(name)).map(|other| other.id.clone()).collect()
    }

    /// The view of `member` by this roster: it includes the claims of members with mutual shares. Paths that are
    /// registered through this view are not collected while it lives. The maker of a ticket pays for its holder.
    pub fn view_of(&self, store: &store::Store, member: &Member) -> store::View {
        let others: Vec<store::Member> =
            self.ids_sharing_with(member).iter().map(|id| store::Member::new(id)).collect();
        // The limits of now; whoever has left keeps those of then.
        let payer = self.current(member).map_or(member, |now| now).payer();
        let mib = |mib: u64| mib.saturating_mul(1 << 20);
        let together = payer.groups.iter().filter_map(|group| {
            let bytes = mib(group.limits.max_store_mib?);
            let members = self.members_of(group).map(|member| store::Member::new(&member.id));
            Some(store::Quota::of_group(&group.name, bytes, members.collect()))
        });
        let view = store.view_sharing(&store::Member::new(&member.id), &others);
        view.charged_to(&store::Member::new(&payer.id))
            .limited_to(payer.limits.max_store_mib.map(mib), together.collect())
            .holding()
    }

    /// Tells the store who pays for the holders of tickets, also for what they have from earlier sessions.
    pub fn tell_payers(&self, store: &store::Store) {
        for bearer in self.bearers.values() {
            store.pays_for(&store::Member::new(&bearer.payer().id), &store::Member::new(&bearer.id));
        }
    }

    /// The members who share with `name` and with whom `name` shares, in order; none if `name` is not in the roster.
    pub fn sharing_with(&self, name: &str) -> Vec<Arc<str>> {
        let Some(member) = self.by_name.get(name) else { return Vec::new() };
        let mutual = |other: &&Arc<str>| {
            self.by_name.get(*other).is_some_and(|other| other.share_with.contains(&member.name))
        };
        member.share_with.iter().filter(mutual).cloned().collect()
    }

    /// The keys and certificate authorities of this member.
    pub fn keys_of(&self, member: &Member) -> Vec<&Arc<Key>> {
        let holders = self.keys.values().chain(self.authorities.values()).flatten();
        holders.filter(|holder| holder.member.id == member.id).map(|holder| &holder.key).collect()
    }

    /// The keys and certificate authorities of all members.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<Key>> {
        self.keys.values().chain(self.authorities.values()).flatten().map(|holder| &holder.key)
    }

    /// The groups that have members, in order of name.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        let groups: BTreeMap<&str, &Arc<Group>> = self
            .by_name
            .values()
            .flat_map(|member| &member.groups)
            .map(|group| (group.name.as_str(), group))
            .collect();
        groups.into_values()
    }

    /// The members of a group of this roster, in order of name.
    pub fn members_of(&self, group: &Arc<Group>) -> impl Iterator<Item = &Arc<Member>> {
        let is_in = |member: &&Arc<Member>| member.groups.iter().any(|its| Arc::ptr_eq(its, group));
        self.by_name.values().filter(is_in)
    }

    /// All members, in order of name.
    pub fn everybody(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.by_name.values()
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Whether this roster came with the image because the real one could not be fetched.
    pub fn is_baked_in(&self) -> bool {
        self.source == BAKED_IN
    }
}

/// What is different in `now`, in a few words: who came, who left, and who has another role or is another person. `None`:
/// nothing of that.
pub fn differences(before: &Roster, now: &Roster) -> Option<String> {
    let mut words = Vec::new();
    for member in now.everybody() {
        match before.by_name(&member.name) {
            None => words.push(format!("+{} ({})", member.name, member.role.name())),
            Some(old) if old.id != member.id => words.push(format!("{} is another person", member.name)),
            Some(old) if old.role != member.role => {
                words.push(format!("{} is {} now", member.name, member.role.name()));
            }
            Some(_) => {}
        }
    }
    let left = before.everybody().filter(|member| !now.contains(&member.name));
    words.extend(left.map(|member| format!("-{}", member.name)));
    (!words.is_empty()).then(|| words.join(", "))
}

#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    #[error("cannot read the roster {}: {cause}", path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("the roster {} is refused: {cause}", path.display())]
    File { path: PathBuf, cause: FileError },
}

/// The roster in `bytes` as of `today`. `identify` gives the identity of each name; a name without one is left out.
fn parse(
    bytes: &[u8],
    today: Day,
    identify: impl FnOnce(&Listed) -> BTreeMap<Arc<str>, Arc<str>>,
) -> Result<Roster, FileError> {
    let read = ::roster::read(bytes)?;
    let ids = identify(&listed(&read));
    // Held by each member of the group.
    let groups: HashMap<String, Arc<Group>> =
        read.groups.into_iter().map(|group| (group.name.clone(), Arc::new(group))).collect();
    let (mut by_key, mut by_authority, mut by_name) = (HashMap::new(), HashMap::new(), BTreeMap::new());
    let mut roster = Roster {
        source: read.source,
        commit: read.commit,
        loaded: date::now(),
        left_out: read.errors,
        ..Roster::default()
    };
    for (entry, keys) in read.members {
        let Some(id) = ids.get(entry.name.as_str()) else {
            let why = "the identity of this member cannot be recorded at the moment; see the errors before this one";
            roster.left_out.push(LeftOut::new(&entry.name, why));
            continue;
        };
        if entry.expired(today).is_some() {
            continue;
        }
        let name: Arc<str> = entry.name.as_str().into();
        let member = Arc::new(Member {
            name: name.clone(),
            id: id.clone(),
            role: entry.role,
            limits: entry.limits,
            settings: entry.settings,
            key_settings: entry.key_settings,
            groups: entry.groups.iter().filter_map(|name| groups.get(name)).cloned().collect(),
            share_with: entry.share_with.iter().map(|other| other.as_str().into()).collect(),
            ticket: None,
        });
        for key in keys {
            let place: &mut HashMap<KeyData, Vec<Holder>> = match key.authority {
                None => &mut by_key,
                Some(_) => &mut by_authority,
            };
            let holder = Holder { member: member.clone(), key: Arc::new(key) };
            place.entry(holder.key.data.clone()).or_default().push(holder);
        }
        by_name.insert(name, member);
    }
    (roster.keys, roster.authorities) = (Arc::new(by_key), Arc::new(by_authority));
    roster.by_name = Arc::new(by_name);
    Ok(roster)
}

/// All names of the file: a member who has expired, or whose entry has a mistake, has not left.
fn listed(read: &::roster::Read) -> Listed {
    let named = |left: &LeftOut| ::roster::name::check(&left.name).is_ok();
    let mut listed: Listed =
        read.errors.iter().filter(|left| named(left)).map(|left| (left.name.as_str().into(), None)).collect();
    let members: Vec<(&str, &[Key])> =
        read.members.iter().map(|(member, keys)| (member.name.as_str(), keys.as_slice())).collect();
    let personal = person::personal_keys(&members).into_iter();
    listed.extend(personal.map(|(name, keys)| (name.into(), Some(keys))));
    listed
}

/// Names as identities, for a caller that keeps no identities.
fn by_name(listed: &Listed) -> BTreeMap<Arc<str>, Arc<str>> {
    listed.keys().map(|name| (name.clone(), name.clone())).collect()
}

/// Reads a roster file once; names are identities.
pub fn load(path: &Path) -> Result<Roster, RosterError> {
    load_with(path, by_name)
}

fn load_with(
    path: &Path,
    identify: impl FnOnce(&Listed) -> BTreeMap<Arc<str>, Arc<str>>,
) -> Result<Roster, RosterError> {
    let read = |cause| RosterError::Read { path: path.to_owned(), cause };
    let bytes = followed::read(path, MAX_FILE).map_err(read)?;
    parse(&bytes, Day::today(), identify).map_err(|cause| RosterError::File { path: path.to_owned(), cause })
}

/// Loads the roster and keeps following the file. The receiver always holds the last good roster; before the first
/// good one it holds an empty roster, with which nobody can log in.
pub fn follow(path: PathBuf, identities: Arc<Identities>) -> watch::Receiver<Arc<Roster>> {
    let (sender, receiver) = watch::channel(Arc::new(Roster::default()));
    let seen = Version::of(&path);
    publish(&path, &identities, &sender);
    tokio::spawn(async move {
        // Members whose new identity could not be written yet still have to be let in.
        let is_due = || identities.is_unsaved();
        let publish = || publish(&path, &identities, &sender);
        followed::each_change(&path, seen, sender.closed(), is_due, publish).await;
    });
    receiver
}

fn publish(path: &Path, identities: &Identities, sender: &watch::Sender<Arc<Roster>>) {
    match load_with(path, |listed| identities.assign(listed)) {
        Ok(roster) => {
            tracing::info!(
                members = roster.len(),
                keys = roster.keys.len(),
                authorities = roster.authorities.len(),
                left_out = roster.left_out.len(),
                source = roster.source,
                commit = roster.commit,
                "roster loaded"
            );
            for LeftOut { name, error } in &roster.left_out {
                tracing::error!(member = name, error, "left out of the roster; the other members can log in");
            }
            sender.send_replace(Arc::new(roster));
        }
        Err(error) => {
            let kept = sender.borrow().len();
            tracing::error!(%error, members_kept = kept, "roster not loaded; the previous one stays in force");
        }
    }
}

#[cfg(test)]
#[path = "roster_test.rs"]
mod roster_test;
