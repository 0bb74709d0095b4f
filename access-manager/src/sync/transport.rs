//! How the repository is reached, and whether what arrives is what its host sent.
//!
//! Somebody on the line of an unauthenticated transport can offer a history of their own that descends from the accepted
//! commit. So such a transport is refused unless commits must be signed. A server's certificate is checked by the library,
//! which follows no redirection from https to anything else.

use std::path::Path;

/// The kinds of addresses of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// A path, or `file://`.
    Local,
    Https,
    Ssh,
    /// Without a proof of which host answers.
    Open(&'static str),
    Unknown,
}

impl Transport {
    pub fn of(repo: &str) -> Transport {
        let Some((scheme, _)) = repo.split_once("://") else {
            // As git: a colon before any slash is a host, unless there is such a path.
            let host = repo.split('/').next().is_some_and(|first| first.contains(':'));
            return if host && !Path::new(repo).exists() { Transport::Ssh } else { Transport::Local };
        };
        match scheme.to_ascii_lowercase().as_str() {
            "file" => Transport::Local,
            "https" => Transport::Https,
            "ssh" | "git+ssh" | "ssh+git" => Transport::Ssh,
            "http" => Transport::Open("http"),
            "git" => Transport::Open("git"),
            _ => Transport::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Transport::{self, *};

    #[test]
    fn an_address_is_understood_as_git_does() {
        for (repo, transport) in [
            ("https://example.org/r", Https),
            ("HTTP://example.org/r", Open("http")),
            ("git://example.org/r", Open("git")),
            ("ssh://git@example.org/r", Ssh),
            ("git@example.org:r.git", Ssh),
            ("example.org:r/s.git", Ssh),
            ("./a:b", Local),
            ("/srv/roster", Local),
            ("roster", Local),
            ("file:///srv/roster", Local),
            ("ftp://example.org/r", Unknown),
        ] {
            assert_eq!(Transport::of(repo), transport, "{repo}");
        }
    }
}
