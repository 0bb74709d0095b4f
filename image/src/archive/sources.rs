//! The sources of packages: the mirrors in this machine's apt configuration, with the box's suite in place of the
//! machine's.
//!
//! This file contains no host name of an archive; the machine's owner has configured apt.

use super::ArchiveError;
use crate::tool;
use std::path::Path;
use std::process::Command;

/// The kind of packages in the lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Packages,
    /// Source packages. They have lists of their own, because few commands need them and they are large.
    Sources,
}

impl Kind {
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Kind::Packages => "",
            Kind::Sources => "-sources",
        }
    }
}

pub(super) struct Sites {
    pub mirror: String,
    pub security: Option<String>,
    /// Set for a custom mirror: it has the suite itself, and perhaps nothing else.
    only_the_suite: bool,
}

/// The sites of `mirror`, or of apt's configuration.
pub(super) fn sites(mirror: Option<&str>) -> Result<Sites, ArchiveError> {
    if let Some(mirror) = mirror {
        return Ok(Sites { mirror: mirror.to_owned(), security: None, only_the_suite: true });
    }
    let targets = tool::output(
        Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(CREATED_BY) $(SITE) $(RELEASE) $(COMPONENT)",
        ]),
        "ask apt for its mirror",
    )?;
    sites_from(&String::from_utf8_lossy(&targets)).ok_or(ArchiveError::NoMirror)
}

/// Reads lines of "Packages <site> <suite> main". The first site with a plain suite is the mirror, the first
/// with a `-security` suite has the security updates; suites of other projects have other names.
fn sites_from(targets: &str) -> Option<Sites> {
    const RELEASES: [&str; 10] = [
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "oldoldstable",
        "oldstable",
        "stable",
        "testing",
        "unstable",
    ];
    let mut mirror = None;
    let mut security = None;
    for line in targets.lines() {
        let ["Packages", site, suite, "main"] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let suite = suite.trim_end_matches('/');
        match suite.strip_suffix("-security") {
            Some(name) if RELEASES.contains(&name) => security = security.or(Some(site)),
            None if RELEASES.contains(&suite) => mirror = mirror.or(Some(site)),
            _ => {}
        }
    }
    Some(Sites { mirror: mirror?.to_owned(), security: security.map(str::to_owned), only_the_suite: false })
}

/// The text of `sources.list`.
pub(super) fn lines(sites: &Sites, kind: Kind, suite: &str, keyring: &Path) -> String {
    let word = match kind {
        Kind::Packages => "deb",
        Kind::Sources => "deb-src",
    };
    let line =
        |site: &str, suite: &str| format!("{word} [signed-by={}] {site} {suite} main\n", keyring.display());
    let mut lines = line(&sites.mirror, suite);
    // An unreleased suite has no separate updates.
    if sites.only_the_suite || ["sid", "forky"].contains(&suite) {
        return lines;
    }
    lines += &line(&sites.mirror, &format!("{suite}-updates"));
    if let Some(security) = &sites.security {
        lines += &line(security, &format!("{suite}-security"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirrors_are_kept_and_its_release_replaced() {
        let targets = "Packages http://tools.example/apt nodistro main\n\
            Packages http://mirror.example/debian bookworm main\n\
            Translations http://mirror.example/debian bookworm main\n\
            Packages http://mirror.example/debian bookworm-updates main\n\
            Packages http://mirror.example/debian-security bookworm-security main\n";
        let keyring = Path::new(super::super::KEYRING);
        let sources = lines(&sites_from(targets).unwrap(), Kind::Packages, "trixie", keyring);
        let lines: Vec<&str> = sources.lines().map(|line| line.split("] ").nth(1).unwrap()).collect();
        assert_eq!(
            lines,
            [
                "http://mirror.example/debian trixie main",
                "http://mirror.example/debian trixie-updates main",
                "http://mirror.example/debian-security trixie-security main"
            ]
        );
        assert!(sources.lines().all(|line| line.starts_with("deb [signed-by=/usr/share/keyrings/debian-")));
    }

    #[test]
    fn a_host_without_debian_sources_is_told_to_name_a_mirror() {
        assert!(sites_from("Packages http://tools.example/apt nodistro main\n").is_none());
    }
}
