//! Obtains the newest available versions.
//!
//! When the mirror lacks a file, the lists are fetched once more (they may be older than the archive's last
//! change); then apt is told to exclude that version and plans again, so that the chosen versions always fit
//! together. A version is excluded with all packages of the same source, because such packages depend on each
//! other in the same version.

use super::download::Missing;
use super::plan::{self, Listed};
use super::{Archive, ArchiveError};
use crate::tool::{self, ToolError};
use std::cmp::Ordering;
use std::process::Command;

/// Most plans of apt. An archive has two or three versions of a package; if more rounds are needed, the
/// mirror lacks a large part, and a person should look at it.
const ROUNDS: usize = 12;

/// A request for packages.
pub struct Wish<'a> {
    /// The purpose, for messages.
    pub what: &'a str,
    /// Names, or apt's patterns (`?essential`).
    pub packages: &'a [&'a str],
    /// Chooses the packages to download. apt plans with all their dependencies, so that versions agree.
    pub keep: &'a dyn Fn(&str) -> bool,
}

impl Archive {
    /// Downloads the newest available versions that fit together, in the order in which apt would install
    /// them.
    pub fn obtain(&mut self, wish: &Wish) -> Result<Vec<Listed>, ArchiveError> {
        for _ in 0..ROUNDS {
            let files = match self.plan(wish) {
                Ok(files) => files,
                // An older list may lack the package or one of its new dependencies.
                Err(ArchiveError::NothingLeft { .. }) if !self.refreshed => {
                    self.refresh()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let missing = self.download(wish.what, &files)?;
            if missing.is_empty() {
                return Ok(files);
            }
            self.tell(wish.what, &missing);
            if !self.refreshed {
                self.refresh()?;
                continue;
            }
            for Missing { file, .. } in missing {
                self.leave_out(&file)?;
                self.lacking.push(file.uri);
            }
            self.write_pins()?;
        }
        Err(self.nothing_left(wish.packages.join(" "), "too many versions are not there".into()))
    }

    /// Downloads the upstream archive of a source package, of the newest version whose archive is available.
    /// The files that are needed only to rebuild the package as Debian does (.dsc, .debian.tar) are not
    /// downloaded.
    pub fn obtain_upstream(&mut self, source: &str) -> Result<Listed, ArchiveError> {
        let mut reason = "the lists name no upstream archive of it".to_owned();
        loop {
            for version in self.source_versions(source)? {
                let printed = tool::output(
                    self.command("apt-get")
                        .args(["-qq", "source", "--print-uris", "--only-source"])
                        .arg(format!("{source}={version}")),
                    "look up a source package",
                )?;
                let mut files = plan::parse(&String::from_utf8_lossy(&printed));
                files.retain(|file| is_upstream_archive(&file.name));
                // Debian's revisions share one upstream archive, so a missing archive is missing for all of
                // them.
                files.retain(|file| !self.lacking.contains(&file.uri));
                let Some(file) = files.pop() else { continue };
                let Some(missing) = self.download(source, std::slice::from_ref(&file))?.pop() else {
                    return Ok(file);
                };
                reason = missing.reason.clone();
                self.tell(source, &[missing]);
                if !self.refreshed {
                    break;
                }
                self.lacking.push(file.uri);
            }
            if self.refreshed {
                return Err(self.nothing_left(source.to_owned(), reason));
            }
            self.refresh()?;
        }
    }

    /// apt's downloads for a system without any package.
    fn plan(&self, wish: &Wish) -> Result<Vec<Listed>, ArchiveError> {
        let mut command = self.command("apt-get");
        command.args(["-qq", "-y", "--print-uris", "install"]).args(wish.packages);
        let printed = match tool::output(&mut command, "plan which packages to download") {
            Ok(printed) => printed,
            Err(ToolError::Failed { stderr, .. }) => {
                return Err(self.nothing_left(wish.packages.join(" "), stderr));
            }
            Err(other) => return Err(other.into()),
        };
        let mut files = plan::parse(&String::from_utf8_lossy(&printed));
        files.retain(|file| (wish.keep)(file.package()));
        Ok(files)
    }

    /// The versions of a source package in the lists, newest first.
    fn source_versions(&self, source: &str) -> Result<Vec<String>, ArchiveError> {
        let shown = match tool::output(
            self.command("apt-cache").args(["showsrc", "--only-source", source]),
            "look up a source package",
        ) {
            Ok(shown) => shown,
            // The lists have no version.
            Err(ToolError::Failed { .. }) => return Ok(Vec::new()),
            Err(other) => return Err(other.into()),
        };
        let text = String::from_utf8_lossy(&shown);
        let mut versions: Vec<String> =
            text.lines().filter_map(|line| Some(line.strip_prefix("Version: ")?.to_owned())).collect();
        versions.sort_by(|one, other| newer_first(one, other));
        versions.dedup();
        Ok(versions)
    }

    /// Excludes this version of the package and all packages of the same source version.
    fn leave_out(&mut self, file: &Listed) -> Result<(), ArchiveError> {
        let (package, version) = (file.package(), file.version());
        let shown = tool::output(
            self.command("apt-cache").arg("show").arg(format!("{package}={version}")),
            "look up a package",
        )?;
        let source = String::from_utf8_lossy(&shown)
            .lines()
            .find_map(|line| line.strip_prefix("Source: ")?.split(' ').next().map(str::to_owned))
            .unwrap_or_else(|| package.to_owned());
        for name in [package.to_owned(), format!("src:{source}")] {
            self.pins.push(format!("Package: {name}\nPin: version {version}\nPin-Priority: -1\n\n"));
        }
        Ok(())
    }

    fn tell(&self, what: &str, missing: &[Missing]) {
        for Missing { file, reason } in missing {
            let next =
                if self.refreshed { "trying the next version" } else { "fetching the package lists anew" };
            eprintln!("{what}: {} is not to be had ({reason}); {next}", file.uri);
        }
    }

    fn nothing_left(&self, wanted: String, reason: String) -> ArchiveError {
        ArchiveError::NothingLeft { place: self.place(), wanted, lacking: self.lacking.clone(), reason }
    }
}

/// Whether the name is `NAME_VERSION.orig.tar.COMPRESSION`, and not that of a signature or of an additional
/// component.
fn is_upstream_archive(name: &str) -> bool {
    name.split_once(".orig.tar.").is_some_and(|(_, compression)| !compression.contains('.'))
}

/// dpkg's order of versions: a string comparison would not know `~` and epochs.
fn newer_first(one: &str, other: &str) -> Ordering {
    if one == other {
        return Ordering::Equal;
    }
    let newer = Command::new("dpkg").args(["--compare-versions", one, "gt", other]).status();
    if newer.is_ok_and(|status| status.success()) { Ordering::Less } else { Ordering::Greater }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_archive_is_told_from_what_lies_beside_it() {
        assert!(is_upstream_archive("zlib_1.3.1.orig.tar.gz"));
        for other in
            ["zlib_1.3.1.orig.tar.gz.asc", "zlib_1.3.1.orig-doc.tar.gz", "zlib_1.3.1-1.debian.tar.xz"]
        {
            assert!(!is_upstream_archive(other), "{other}");
        }
    }

    #[test]
    fn versions_are_in_dpkgs_order() {
        let mut versions = ["1.0~rc1", "1.0-1", "1:0.1", "1.0-1+deb13u1"];
        versions.sort_by(|one, other| newer_first(one, other));
        assert_eq!(versions, ["1:0.1", "1.0-1+deb13u1", "1.0-1", "1.0~rc1"]);
    }
}
