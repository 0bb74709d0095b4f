//! Names and addresses of mirrors, as an operator writes them: `NAME=URL`.

use std::fmt;
use std::str::FromStr;

/// Longest name: it is a folder here and, with `.git`, in a home.
const MAX_NAME: usize = 64;
/// Longest URL.
const MAX_URL: usize = 2048;

/// A mirror: its name, and the repository that it follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    name: String,
    url: String,
}

/// Where the first objects of a mirror come from: a repository or, if the URL ends with `.bundle`, a git bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    name: String,
    url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEntry {
    #[error("`{0}` is not `NAME=URL`")]
    Shape(String),
    #[error(
        "`{0}` cannot be the name of a mirror: it must begin with a letter or digit, have at most 64 letters, digits, `.`, `-` \
         and `_`, and not end with `.git`"
    )]
    Name(String),
    #[error("`{url}` must begin with one of {}", .accepted.join(", "))]
    Scheme { url: String, accepted: &'static [&'static str] },
    /// Such a text in a command line of git or ssh could mean something else.
    #[error("`{0}` must be one word without control characters, and name a host or a path")]
    Url(String),
    /// It would be shown to everybody who sees the status.
    #[error("a URL of a mirror must not contain a password")]
    Password,
}

/// git itself follows others, too, such as `ext::`, which runs a command.
const UPSTREAM: &[&str] = &["https://", "ssh://", "git://", "file://"];
/// A seed needs not be authentic: git checks all objects, and the branches are upstream's as soon as that was reached.
const OF_SEEDS: &[&str] = &["https://", "http://", "ssh://", "git://", "file://"];

impl Repository {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Seed {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn is_bundle(&self) -> bool {
        self.url.ends_with(".bundle")
    }
}

/// The protocol of a URL, as git names it.
pub(crate) fn protocol(url: &str) -> &str {
    url.split_once("://").map_or("none", |(protocol, _)| protocol)
}

/// Whether this can be the name of a mirror.
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(plain)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !name.ends_with(".git")
}

fn parse(text: &str, accepted: &'static [&'static str]) -> Result<(String, String), BadEntry> {
    // For messages.
    let shown = |text: &str| printable::start(text, 100);
    let (name, url) = text.split_once('=').ok_or_else(|| BadEntry::Shape(shown(text)))?;
    if !is_name(name) {
        return Err(BadEntry::Name(shown(name)));
    }
    let scheme = accepted.iter().find(|scheme| url.starts_with(**scheme));
    let Some(scheme) = scheme else { return Err(BadEntry::Scheme { url: shown(url), accepted }) };
    let rest = &url[scheme.len()..];
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if url.len() > MAX_URL || url.contains(odd) || rest.is_empty() || rest.starts_with('-') {
        return Err(BadEntry::Url(shown(url)));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return Err(BadEntry::Password);
    }
    Ok((name.to_owned(), url.to_owned()))
}

impl FromStr for Repository {
    type Err = BadEntry;

    fn from_str(text: &str) -> Result<Self, BadEntry> {
        parse(text, UPSTREAM).map(|(name, url)| Self { name, url })
    }
}

impl FromStr for Seed {
    type Err = BadEntry;

    fn from_str(text: &str) -> Result<Self, BadEntry> {
        parse(text, OF_SEEDS).map(|(name, url)| Self { name, url })
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_name_and_an_address_that_git_reads_as_such() {
        for good in [
            "nixpkgs=https://git.example.org/NixOS/nixpkgs",
            "a.b-c_1=ssh://git@git.example.org:2222/x.git",
            "x=git://192.0.2.1/x",
            "x=file:///srv/x=y.git",
        ] {
            let repository: Repository = good.parse().expect(good);
            assert_eq!(repository.to_string(), good);
        }
        for bad in [
            "",
            "nixpkgs",
            "=https://git.example.org/x",
            "../x=https://git.example.org/x",
            ".x=https://git.example.org/x",
            "a/b=https://git.example.org/x",
            "x.git=https://git.example.org/x",
            "x=http://git.example.org/x",
            "x=ext::sh -c reboot",
            "x=--upload-pack=reboot",
            "x=/srv/x.git",
            "x=ssh://-oProxyCommand=reboot/x",
            "x=https://",
            "x=https://git.example.org/a b",
            "x=https://git.example.org/\nx",
            "x=https://user:secret@git.example.org/x",
        ] {
            assert!(bad.parse::<Repository>().is_err(), "{bad}");
        }
        let seed: Seed = "nixpkgs=http://boot.example.org:8480/nixpkgs.bundle".parse().expect("a seed");
        assert!(seed.is_bundle());
        assert_eq!(protocol(seed.url()), "http");
    }

    #[test]
    fn a_refused_url_with_a_password_is_not_repeated() {
        let error = "x=https://user:secret@git.example.org/x".parse::<Repository>().expect_err("refused");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
