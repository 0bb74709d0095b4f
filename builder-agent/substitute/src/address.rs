//! Addresses of substituters in the configuration: those of Nix's store URLs that are useful for a box.

use std::path::PathBuf;
use std::str::FromStr;

use russh::keys::PublicKey;
use url::{Host, Url};

/// One entry of `substituters`.
#[derive(Debug, Clone)]
pub struct Address {
    /// The URL without parameters, as the name in messages.
    pub name: String,
    pub kind: AddressKind,
    /// `?priority=`, which replaces the cache's own priority.
    pub priority: Option<u32>,
    /// `?want-mass-query=`.
    pub want_mass_query: Option<bool>,
}

#[derive(Debug, Clone)]
pub enum AddressKind {
    /// The URL ends with a slash.
    Http(Url),
    Ssh(SshAddress),
}

/// Another machine's store, which is reached by ssh.
#[derive(Debug, Clone)]
pub struct SshAddress {
    pub user: String,
    pub host: Host<String>,
    pub port: u16,
    /// The machine must have this host key.
    pub host_key: PublicKey,
    /// The file of the key for the login, if it is not the box's own key.
    pub key: Option<PathBuf>,
}

/// The reason why an entry cannot be used. Completes "it must be …" in the configuration's errors.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("{entry:?} is not a URL: {cause}")]
    NotUrl { entry: String, cause: url::ParseError },
    #[error("{entry:?} is of a kind this box cannot fetch from; use http://, https:// or ssh-ng://")]
    Scheme { entry: String },
    #[error("{entry:?} has the parameter `{name}`, which means nothing here; accepted: {accepted}")]
    Parameter { entry: String, name: String, accepted: &'static str },
    #[error("{entry:?} has a bad `{name}`: {why}")]
    BadParameter { entry: String, name: &'static str, why: String },
    #[error(
        "{entry:?} does not say which machine it is; add ?base64-ssh-public-host-key= and what `base64 -w0 /etc/ssh/ssh_host_ed25519_key.pub` prints there"
    )]
    NoHostKey { entry: String },
}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads one entry.
    fn from_str(entry: &str) -> Result<Self, AddressError> {
        let owned = || entry.to_owned();
        let mut url = Url::parse(entry).map_err(|cause| AddressError::NotUrl { entry: owned(), cause })?;
        let (mut priority, mut want_mass_query, mut host_key, mut key) = (None, None, None, None);
        let ssh = url.scheme() == "ssh-ng";
        for (name, value) in url.query_pairs() {
            let bad = |name, why: String| AddressError::BadParameter { entry: owned(), name, why };
            match (&*name, ssh) {
                ("priority", _) => {
                    priority =
                        Some(value.parse().map_err(|_| bad("priority", "it must be a number".into()))?);
                }
                ("want-mass-query", _) => want_mass_query = Some(value == "true"),
                ("base64-ssh-public-host-key", true) => {
                    let read = host_key_of(&value);
                    host_key = Some(read.map_err(|why| bad("base64-ssh-public-host-key", why))?);
                }
                ("ssh-key", true) => {
                    let path = PathBuf::from(&*value);
                    if !path.is_absolute() {
                        return Err(bad("ssh-key", "it must be an absolute path".into()));
                    }
                    key = Some(path);
                }
                _ => {
                    let accepted = match ssh {
                        true => "priority, want-mass-query, base64-ssh-public-host-key, ssh-key",
                        false => "priority, want-mass-query",
                    };
                    return Err(AddressError::Parameter {
                        entry: owned(),
                        name: name.into_owned(),
                        accepted,
                    });
                }
            }
        }
        url.set_query(None);
        url.set_fragment(None);
        let name = url.as_str().trim_end_matches('/').to_owned();
        let kind = match url.scheme() {
            "http" | "https" => {
                if !url.path().ends_with('/') {
                    url.set_path(&format!("{}/", url.path()));
                }
                AddressKind::Http(url)
            }
            "ssh-ng" => {
                let host = url.host_str().filter(|host| !host.is_empty());
                let host =
                    host.ok_or(AddressError::NotUrl { entry: owned(), cause: url::ParseError::EmptyHost })?;
                // With an unknown scheme, the parser does not turn addresses in text form into addresses.
                let host =
                    Host::parse(host).map_err(|cause| AddressError::NotUrl { entry: owned(), cause })?;
                let user = match url.username() {
                    "" => "root",
                    user => user,
                };
                AddressKind::Ssh(SshAddress {
                    user: user.to_owned(),
                    host,
                    port: url.port().unwrap_or(22),
                    host_key: host_key.ok_or_else(|| AddressError::NoHostKey { entry: owned() })?,
                    key,
                })
            }
            _ => return Err(AddressError::Scheme { entry: owned() }),
        };
        Ok(Self { name, kind, priority, want_mass_query })
    }
}

/// Reads Nix's form of a host key: the base64 of a line of a `.pub` file.
fn host_key_of(value: &str) -> Result<PublicKey, String> {
    use base64::Engine;
    // The parser reads a `+` in a query as a space.
    let value = value.replace(' ', "+");
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let line = engine.decode(value.trim_end()).map_err(|e| format!("it is not base64: {e}"))?;
    let line = String::from_utf8(line).map_err(|_| "it is not a key line in base64".to_owned())?;
    PublicKey::from_openssh(line.trim())
        .map_err(|e| format!("it is not an OpenSSH public key in base64: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_users_write_is_read() {
        let http = Address::from_str("https://cache.example.org?priority=10").expect("good");
        assert_eq!((http.name.as_str(), http.priority), ("https://cache.example.org", Some(10)));
        let AddressKind::Http(url) = http.kind else { panic!("not http") };
        assert_eq!(url.join("x.narinfo").expect("joins").as_str(), "https://cache.example.org/x.narinfo");
        let below = Address::from_str("http://10.0.0.1:8080/a/b").expect("good");
        let AddressKind::Http(url) = below.kind else { panic!("not http") };
        assert_eq!(url.join("x.narinfo").expect("joins").as_str(), "http://10.0.0.1:8080/a/b/x.narinfo");
    }

    #[test]
    fn a_machine_behind_ssh_is_known_by_its_host_key() {
        use base64::Engine;
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let key = base64::engine::general_purpose::STANDARD.encode(line);
        let entry = format!("ssh-ng://nix@box.example.org:2222?base64-ssh-public-host-key={key}");
        let AddressKind::Ssh(ssh) = Address::from_str(&entry).expect("good").kind else { panic!("not ssh") };
        assert_eq!((ssh.user.as_str(), ssh.port), ("nix", 2222));
        let error = Address::from_str("ssh-ng://box").expect_err("no host key").to_string();
        assert!(error.contains("base64 -w0"), "{error}");
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (entry, said) in [
            ("/nix/cache", "not a URL"),
            ("file:///cache", "use http://, https:// or ssh-ng://"),
            ("s3://bucket", "use http://, https:// or ssh-ng://"),
            ("https://c?trusted=true", "`trusted`, which means nothing here"),
            ("https://c?priority=first", "must be a number"),
            ("ssh-ng://box?base64-ssh-public-host-key=AAAA", "not an OpenSSH public key"),
        ] {
            let error = Address::from_str(entry).expect_err(entry).to_string();
            assert!(error.contains(said), "{entry}: {error}");
        }
    }
}
