//! Decides which member a login is for, from the roster, the ssh user name, the key or certificate, the peer's address
//! and the time, and from nothing else.
//!
//! The ssh library proves that the client holds the private key; everything else about a certificate is checked here,
//! as sshd checks one by a `cert-authority` line (OpenSSH: `auth2-pubkeyfile.c`, `sshkey_cert_check_authority`).
//!
//! **The user name.** A key of one member means that member, with any user name. If several members are possible, the
//! user name decides. The box has to accept a certificate's key before it sees the certificate (see [`Offers`]), so a
//! member with a certificate who also offers other keys first must log in under their own name.
//! Not here: counting tries and connections (`ssh`).

use std::net::IpAddr;
use std::sync::Arc;

use ::roster::addresses::Addresses;
use ::roster::{date, keys};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use members::{Holder, Member, Roster};

/// Limit on the offers remembered per connection, to recognise the second offer of a key. If a client offers more keys,
/// its certificate is refused unless it gives the member's user name.
const MAX_OFFERS: usize = 64;

/// A key or certificate that a client proved to hold.
#[derive(Debug, Clone)]
pub enum Credential {
    Key(PublicKey),
    Certificate(Box<Certificate>),
    /// The identity of the holder of a ticket, who sent its token and, where it is bound to a key, proved that too.
    Ticket(Arc<str>),
}

/// A complete login. It can be decided again later, to see whether the roster still allows it.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub peer: IpAddr,
    pub credential: Credential,
    /// Unix seconds. The end of a certificate, or of an `expiry-time`, does not end a session, as with sshd: people
    /// have certificates for five minutes and builds for an hour.
    pub at: u64,
}

/// The reason why a login is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key is not in the roster.
    Unknown,
    /// Several members have the key, and the user name is none of theirs.
    Ambiguous(Vec<String>),
    /// The key is in the roster, but a condition of its line is not met.
    Unfit(String),
    /// The member is in the roster, but the roster is too old (`members::Checks`).
    Closed(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Unknown => f.write_str("key not in the roster"),
            Refusal::Ambiguous(names) => {
                let (first, names) = (&names[0], names.join(" and "));
                write!(
                    f,
                    "this key belongs to {names}; say which one with the ssh user name, as in {first}@host"
                )
            }
            Refusal::Unfit(why) | Refusal::Closed(why) => f.write_str(why),
        }
    }
}

impl Login {
    /// The fingerprint of the line of the roster that lets the client in: of its key, or of the authority that has signed
    /// its certificate. `None`: a ticket does.
    pub fn fingerprint(&self) -> Option<String> {
        let key = match &self.credential {
            Credential::Key(key) => key.key_data(),
            Credential::Certificate(certificate) => certificate.signature_key(),
            Credential::Ticket(_) => return None,
        };
        Some(key.fingerprint(HashAlg::Sha256).to_string())
    }

    /// The member whom this login is for, by `roster`.
    pub fn decide(&self, roster: &Roster) -> Result<Arc<Member>, Refusal> {
        match &self.credential {
            Credential::Key(key) => self.by_key(roster, key),
            Credential::Certificate(certificate) => self.by_certificate(roster, certificate),
            Credential::Ticket(id) => {
                let ended = || Refusal::Unfit("the ticket has ended".to_owned());
                roster.by_id(id).cloned().ok_or_else(ended)
            }
        }
    }

    fn by_key(&self, roster: &Roster, key: &PublicKey) -> Result<Arc<Member>, Refusal> {
        let holders = roster.holders(key.key_data());
        if holders.is_empty() {
            return Err(Refusal::Unknown);
        }
        self.choose(holders, |_| Ok(()))
    }

    fn by_certificate(&self, roster: &Roster, certificate: &Certificate) -> Result<Arc<Member>, Refusal> {
        let holders = roster.holders_of_authority(certificate.signature_key());
        if holders.is_empty() {
            return Err(Refusal::Unfit("the certificate is signed by no authority of the roster".into()));
        }
        check(certificate, self.peer, self.at)
            .map_err(|why| Refusal::Unfit(format!("the certificate {why}")))?;
        self.choose(holders, |holder| {
            let named = certificate.valid_principals();
            let wanted = holder.key.authority.as_ref().and_then(|authority| authority.principals.as_deref());
            let fits = match wanted {
                Some(wanted) => wanted.iter().any(|name| named.contains(name)),
                None => named.iter().any(|name| **name == *holder.member.name),
            };
            match fits {
                true => Ok(()),
                false => Err("the certificate lists no principal that the roster asks for".to_owned()),
            }
        })
    }

    /// The only holder whose conditions are met; if there are several, the one with this user name.
    fn choose(
        &self,
        holders: &[Holder],
        more: impl Fn(&Holder) -> Result<(), String>,
    ) -> Result<Arc<Member>, Refusal> {
        let mut fit: Vec<&Arc<Member>> = Vec::new();
        let mut unfit = None;
        for holder in holders {
            match holder.key.conditions(self.peer, self.at).and_then(|()| more(holder)) {
                Ok(()) if fit.iter().all(|other| other.name != holder.member.name) => {
                    fit.push(&holder.member)
                }
                Ok(()) => {}
                Err(why) => unfit = unfit.or(Some(why)),
            }
        }
        match &fit[..] {
            [] => Err(Refusal::Unfit(unfit.unwrap_or_default())),
            [only] => Ok((*only).clone()),
            several => match several.iter().find(|member| *member.name == *self.user) {
                Some(meant) => Ok((*meant).clone()),
                None => {
                    Err(Refusal::Ambiguous(several.iter().map(|member| member.name.to_string()).collect()))
                }
            },
        }
    }
}

/// The checks that sshd makes for a certificate of any authority. `Err` is the end of a sentence.
fn check(certificate: &Certificate, peer: IpAddr, at: u64) -> Result<(), String> {
    if certificate.cert_type() != CertType::User {
        return Err("is for a host, not for a user".into());
    }
    // As sshd since OpenSSH 8.2: SHA-1 signatures can be forged at a known cost.
    if is_sha1(&certificate.signature().algorithm()) {
        return Err("is signed with SHA-1".into());
    }
    if certificate.verify_signature().is_err() {
        return Err("has a wrong signature".into());
    }
    keys::acceptable(certificate.public_key())
        .map_err(|_| "is for a kind of key that is not accepted".to_owned())?;
    if at < certificate.valid_after() {
        return Err("is not valid yet".into());
    }
    if at >= certificate.valid_before() {
        return Err("has expired".into());
    }
    // OpenSSH before 10.3 let an empty list mean everybody.
    if certificate.valid_principals().is_empty() {
        return Err("lists no principals".into());
    }
    for (option, value) in certificate.critical_options().iter() {
        match option.as_str() {
            "source-address" => match Addresses::from_certificate(value) {
                Ok(addresses) if addresses.allow(peer) => {}
                Ok(addresses) => return Err(format!("may be used from {} only", addresses.text())),
                Err(why) => return Err(format!("has a source-address that is not understood: {why}")),
            },
            "force-command" => return Err("is for one command only, which cannot be enforced here".into()),
            other => {
                let other = ::roster::words::quoted(other);
                return Err(format!("has the critical option {other}, which cannot be enforced here"));
            }
        }
    }
    Ok(())
}

/// `ssh-rsa`, which names no hash, is RSA with SHA-1.
fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None })
}

/// The keys that a client offered on one connection, before it proved any.
///
/// The ssh library reports the offer of a certificate as an offer of the key inside of it, and does not say which it
/// was. If every unknown key were accepted, clients would sign (and ask for a touch) in vain with each key they have.
/// So an unknown key is accepted only where a certificate is likely: if the user name is that of a member with a
/// certificate authority, and when the same key is offered a second time, which clients do with a key and its
/// certificate.
#[derive(Default)]
pub struct Offers {
    /// Fingerprints.
    seen: Vec<[u8; 32]>,
}

impl Offers {
    /// Whether to let the client sign with `key`, or the reason against it.
    pub fn consider(
        &mut self,
        roster: &Roster,
        user: &str,
        peer: IpAddr,
        (key, algorithm): (&PublicKey, &Algorithm),
    ) -> Result<(), Refusal> {
        if is_sha1(algorithm) {
            return Err(Refusal::Unfit("signatures with SHA-1 are not accepted".into()));
        }
        let login =
            Login { user: user.to_owned(), peer, credential: Credential::Key(key.clone()), at: date::now() };
        match login.decide(roster) {
            // The client may prove its key: then it gets a message that says what to do.
            Ok(_) | Err(Refusal::Ambiguous(_)) => Ok(()),
            Err(refusal) if !roster.has_authorities() => Err(refusal),
            Err(refusal) => {
                let fingerprint = key.fingerprint(HashAlg::Sha256).sha256().unwrap_or_default();
                if self.seen.contains(&fingerprint) || roster.has_authority(user) {
                    return Ok(());
                }
                if self.seen.len() < MAX_OFFERS {
                    self.seen.push(fingerprint);
                }
                Err(refusal)
            }
        }
    }
}

#[cfg(test)]
#[path = "login_test.rs"]
mod login_test;
