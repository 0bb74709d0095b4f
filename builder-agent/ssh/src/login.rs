//! Whom a login is for: decided from the roster, the ssh user name, the key or certificate, the peer's address and the time,
//! and from nothing else.
//!
//! That the client holds the private key is proven by the ssh library; everything else about a certificate is judged here,
//! as sshd judges one by a `cert-authority` line (OpenSSH: `auth2-pubkeyfile.c`, `sshkey_cert_check_authority`).
//!
//! **The user name.** A key of one member means that member, whatever the user name. Where several members could be meant,
//! the user name says which. A certificate is asked for before we see it (see [`Offers`]), so who has one logs in under
//! their own name if they also offer other keys first.
//! Not here: counting tries and connections (`ssh`).

use std::net::IpAddr;
use std::sync::Arc;

use ::roster::addresses::Addresses;
use ::roster::{date, keys};
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate, HashAlg, PublicKey};

use members::{Holder, Member, Roster};

/// Offers remembered per connection, to know a second one of the same key. A client with more has its certificate refused
/// unless it says who it is.
const MAX_OFFERS: usize = 64;

/// What a client proved to hold.
#[derive(Debug, Clone)]
pub enum Credential {
    Key(PublicKey),
    Certificate(Box<Certificate>),
}

/// A login, complete: deciding it again later shows whether the roster still lets it in.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub peer: IpAddr,
    pub credential: Credential,
    /// Unix seconds. A certificate, or an `expiry-time`, that ends later does not end the session, as with sshd: people
    /// have certificates for five minutes and builds for an hour.
    pub at: u64,
}

/// Why nobody is logged in.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not a key of the roster.
    Unknown,
    /// A key of several members, and the user name is none of theirs.
    Ambiguous(Vec<String>),
    /// A key of the roster that does not fit here and now.
    Unfit(String),
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
            Refusal::Unfit(why) => f.write_str(why),
        }
    }
}

impl Login {
    /// Whom this login is for by `roster`.
    pub fn decide(&self, roster: &Roster) -> Result<Arc<Member>, Refusal> {
        match &self.credential {
            Credential::Key(key) => self.by_key(roster, key),
            Credential::Certificate(certificate) => self.by_certificate(roster, certificate),
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

    /// The one holder whose conditions are met, or the one of them that the user name says.
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

/// What sshd checks of a certificate, whoever its authority belongs to. `Err` finishes a sentence.
fn check(certificate: &Certificate, peer: IpAddr, at: u64) -> Result<(), String> {
    if certificate.cert_type() != CertType::User {
        return Err("is for a host, not for a user".into());
    }
    // As sshd does since OpenSSH 8.2: SHA-1 signatures can be forged for a price.
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
    // To OpenSSH before 10.3 it meant everybody.
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

/// What a client offered on one connection, before it proved anything.
///
/// An offer of a certificate reaches us as an offer of the key inside of it: the ssh library does not say which it was. To
/// accept every unknown key would have clients sign (and ask for a touch) in vain with each key they have. So one is
/// accepted only where a certificate is likely: from who says to be a member with a certificate authority, and when the
/// same key is offered a second time, which clients do with a key and its certificate.
#[derive(Default)]
pub struct Offers {
    /// Fingerprints.
    seen: Vec<[u8; 32]>,
}

impl Offers {
    /// Whether to let the client sign with `key`, and if not, why.
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
            // Worth a proof: who proves it is told what to do.
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
