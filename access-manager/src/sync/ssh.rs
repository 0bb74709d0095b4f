//! Repositories over ssh: the server must show a host key of the `known_hosts` file, and gets a signature of our own key.
//!
//! Neither `~/.ssh` nor an agent is used, and a host that is not known is refused: a box has no user who could confirm
//! its key. The connection itself is the git library's (libssh2). Not here: when ssh is used (`transport`).

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use git2::{CertificateCheckStatus, Cred, RemoteCallbacks};
use ssh_key::known_hosts::{Entry, HostPatterns, KnownHosts, Marker};
use ssh_key::{HashAlg, PublicKey};
use wildmatch::WildMatch;

use super::{SyncError, local};
use crate::bounded;

/// Port of ssh. Another one is part of a host's name in the file.
const PORT: u16 = 22;
/// The user name that forges expect.
const USER: &str = "git";
/// Largest `known_hosts`.
const MAX_FILE: u64 = 4 << 20;

/// How to reach a repository over ssh.
#[derive(Clone, Debug, Default)]
pub struct Ssh {
    /// In the format of sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
    pub known_hosts: Option<PathBuf>,
    /// A private key without passphrase.
    pub key: Option<PathBuf>,
}

/// A server of the file.
#[derive(Debug)]
pub(super) struct Server {
    /// As the file has it: `host`, or `[host]:port`.
    name: String,
    keys: Vec<PublicKey>,
    key: PathBuf,
    /// The library does not always pass on the reason of a refusal.
    refused: Rc<RefCell<Option<String>>>,
}

impl Server {
    /// Looks up the server of `repo`, which is an address for ssh.
    pub fn find(repo: &str, ssh: &Ssh) -> Result<Server, SyncError> {
        let (Some(file), Some(key)) = (&ssh.known_hosts, &ssh.key) else {
            return Err(SyncError::NoHostKey { repo: repo.to_owned() });
        };
        let name = host_of(repo).ok_or_else(|| SyncError::NoHostKey { repo: repo.to_owned() })?;
        let hint = "make it with: ssh-keyscan HOST; and compare the keys with those that the host publishes";
        let text =
            bounded::text(file, MAX_FILE).map_err(|e| local("read the known hosts in", file, &e, hint))?;
        let keys = keys_of(&name, &text).map_err(|e| local("use the known hosts in", file, &e, hint))?;
        // The library's own message names neither the file nor the reason.
        std::fs::File::open(key).map_err(|e| {
            local("read the ssh key", key, &e, "it needs no passphrase, and this user must read it")
        })?;
        Ok(Server { name, keys, key: key.clone(), refused: Rc::default() })
    }

    /// The reason why this side refused the connection.
    pub fn refused(&self) -> Option<String> {
        self.refused.borrow().clone()
    }

    pub fn set(&self, callbacks: &mut RemoteCallbacks<'static>) {
        let (name, keys, refused) = (self.name.clone(), self.keys.clone(), self.refused.clone());
        callbacks.certificate_check(move |shown, _| match shown.as_hostkey() {
            None => Ok(CertificateCheckStatus::CertificatePassthrough),
            Some(shown) => match check(shown.hostkey(), &keys, &name) {
                Ok(()) => Ok(CertificateCheckStatus::CertificateOk),
                Err(why) => Err(refuse(&refused, why)),
            },
        });
        let (key, refused) = (self.key.clone(), self.refused.clone());
        let mut tried = false;
        callbacks.credentials(move |_, user, kinds| {
            let user = user.unwrap_or(USER);
            if kinds.is_username() {
                return Cred::username(user);
            }
            // The library asks again after each refusal.
            if !kinds.is_ssh_key() || std::mem::replace(&mut tried, true) {
                let why = format!("the server does not accept the key {} for the user {user}", key.display());
                return Err(refuse(&refused, why));
            }
            Cred::ssh_key(user, None, &key, None)
        });
    }
}

/// For a repository that is not reached over ssh: the library takes some addresses for ones of ssh that we do not.
pub(super) fn refuse_all(callbacks: &mut RemoteCallbacks<'_>) {
    callbacks.certificate_check(|shown, _| match shown.as_hostkey() {
        None => Ok(CertificateCheckStatus::CertificatePassthrough),
        Some(_) => Err(git2::Error::from_str("this is not an address for ssh; write ssh://USER@HOST/PATH")),
    });
}

fn refuse(reason: &RefCell<Option<String>>, why: String) -> git2::Error {
    *reason.borrow_mut() = Some(why.clone());
    git2::Error::from_str(&why)
}

fn check(shown: Option<&[u8]>, keys: &[PublicKey], name: &str) -> Result<(), String> {
    let shown = shown.and_then(|bytes| PublicKey::from_bytes(bytes).ok());
    let shown = shown.ok_or_else(|| format!("{name} shows a host key of an unknown kind"))?;
    if keys.iter().any(|key| key.key_data() == shown.key_data()) {
        return Ok(());
    }
    let known: Vec<String> = keys.iter().map(describe).collect();
    Err(format!(
        "{name} shows the host key {}, which is not in the known hosts; known are {}",
        describe(&shown),
        known.join(", ")
    ))
}

fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

/// The name of the host as a `known_hosts` file has it.
fn host_of(repo: &str) -> Option<String> {
    let (host, port) = match repo.split_once("://") {
        Some((_, rest)) => {
            let place = rest.split('/').next()?;
            let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
            match place.strip_prefix('[') {
                Some(inside) => {
                    let (host, rest) = inside.split_once(']')?;
                    (host, rest.strip_prefix(':'))
                }
                None => match place.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (place, None),
                },
            }
        }
        None => {
            let place = repo.split_once(':')?.0;
            (place.rsplit_once('@').map_or(place, |(_, host)| host), None)
        }
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    let host = host.to_ascii_lowercase();
    match (host.is_empty(), port) {
        (true, _) => None,
        (false, PORT) => Some(host),
        (false, port) => Some(format!("[{host}]:{port}")),
    }
}

/// The keys of this host in the text of a `known_hosts` file.
pub fn keys_of(name: &str, text: &str) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    let mut hashed = 0;
    for entry in KnownHosts::new(text) {
        let entry: Entry = entry.map_err(|e| e.to_string())?;
        match entry.host_patterns() {
            HostPatterns::HashedName { .. } => hashed += 1,
            HostPatterns::Patterns(patterns) if matches(patterns, name) => match entry.marker() {
                None => keys.push(entry.public_key().clone()),
                Some(Marker::Revoked) => return Err(format!("a key of {name} is marked as revoked")),
                Some(Marker::CertAuthority) => return Err("`@cert-authority` is not supported".into()),
            },
            HostPatterns::Patterns(_) => {}
        }
    }
    match (keys.is_empty(), hashed) {
        (false, _) => Ok(keys),
        (true, 0) => Err(format!("it has no key of {name}")),
        (true, _) => Err(format!(
            "it has no key of {name} by name; {hashed} lines have hashed names, which are not supported"
        )),
    }
}

fn matches(patterns: &[String], name: &str) -> bool {
    let fits = |pattern: &str| WildMatch::new(&pattern.to_ascii_lowercase()).matches(name);
    let (not, yes): (Vec<&String>, Vec<&String>) =
        patterns.iter().partition(|pattern| pattern.starts_with('!'));
    yes.iter().any(|pattern| fits(pattern)) && !not.iter().any(|pattern| fits(&pattern[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_keys::{A, B};

    #[test]
    fn an_address_names_the_host_as_known_hosts_do() {
        for (repo, name) in [
            ("ssh://git@Example.org/r.git", Some("example.org")),
            ("ssh://example.org:2222/r", Some("[example.org]:2222")),
            ("ssh://git@[::1]:2222/r", Some("[::1]:2222")),
            ("ssh://git@[::1]/r", Some("::1")),
            ("git@example.org:a/r.git", Some("example.org")),
            ("example.org:r", Some("example.org")),
            ("ssh://git@/r", None),
            ("ssh://example.org:x/r", None),
        ] {
            assert_eq!(host_of(repo).as_deref(), name, "{repo}");
        }
    }

    #[test]
    fn only_the_keys_of_this_very_host_count() {
        let text = format!(
            "# forges\nexample.org,!evil.example.org,*.example.org {A}\n[example.org]:2222 {B}\n\
             |1|ZGQ5MjMzMzYzNzM4MzkzMDM0MzU=|ZGQ5MjMzMzYzNzM4MzkzMDM0MzU= {B}\n"
        );
        let keys =
            |name| keys_of(name, &text).map(|keys| keys.iter().map(|k| k.to_string()).collect::<Vec<_>>());
        assert_eq!(keys("example.org").map(|k| k.len()), Ok(1));
        assert_eq!(keys("git.example.org").expect("one"), [A]);
        assert_eq!(keys("[example.org]:2222").expect("one"), [B]);
        assert!(keys("evil.example.org").expect_err("none").contains("hashed names"));
        assert!(keys_of("a", &format!("@revoked a {A}\na {B}\n")).expect_err("none").contains("revoked"));
        assert!(keys_of("a", &format!("@cert-authority a {A}\n")).is_err() && keys_of("a", "a b").is_err());
    }

    #[test]
    fn a_host_key_that_is_not_known_is_refused_with_both() {
        let (a, b) = (PublicKey::from_openssh(A).expect("a key"), PublicKey::from_openssh(B).expect("a key"));
        let bytes = a.to_bytes().expect("encoded");
        assert_eq!(check(Some(&bytes), &[b.clone(), a], "h"), Ok(()));
        let why = check(Some(&bytes), std::slice::from_ref(&b), "h").expect_err("another");
        assert!(
            why.contains("h shows the host key ssh-ed25519 SHA256:") && why.contains(&describe(&b)),
            "{why}"
        );
        assert!(check(None, &[b], "h").is_err());
    }
}
