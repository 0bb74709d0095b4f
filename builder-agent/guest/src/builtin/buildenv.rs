//! `builtin:buildenv`: makes a tree of links to packages, for `nix-env` and `nix profile`.
//!
//! Source: Nix, src/libstore/builtins/buildenv.cc. If packages have the same directory, it is created and
//! filled from both; if they have the same file, the one with the smaller priority number is used, and equal
//! priorities are an error.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Outcome, attribute, failed, text};

/// First priority of propagated packages, after all packages that the user chose.
const PROPAGATED: i64 = 1000;
/// Not linked: these files have no use in an environment, or always collide.
const LEFT_OUT: [&str; 7] = [
    "/propagated-build-inputs",
    "/nix-support",
    "/perllocal.pod",
    "/info/dir",
    "/log",
    "/manifest.nix",
    "/manifest.json",
];

struct Package {
    path: PathBuf,
    active: bool,
    priority: i64,
}

#[derive(Default)]
struct Links {
    /// Priority of each link.
    priorities: HashMap<PathBuf, i64>,
}

pub fn run(out: &Path) -> Outcome {
    fs::create_dir_all(out).map_err(failed("create", out))?;
    let mut packages = packages(&text("derivations")?)?;
    packages.sort_by(|a, b| (a.priority, &a.path).cmp(&(b.priority, &b.path)));
    let mut links = Links::default();
    let mut done = BTreeSet::new();
    let mut postponed = BTreeSet::new();
    for package in packages.into_iter().filter(|package| package.active) {
        links.add(&package.path, package.priority, out, &mut done, &mut postponed)?;
    }
    let mut priority = PROPAGATED;
    while !postponed.is_empty() {
        for package in std::mem::take(&mut postponed) {
            links.add(&package, priority, out, &mut done, &mut postponed)?;
            priority += 1;
        }
    }
    let manifest = out.join("manifest.nix");
    symlink(attribute("manifest")?, &manifest).map_err(failed("create", &manifest))
}

/// Parses groups of words: whether the package is active, its priority, the number of its outputs, and the
/// outputs.
fn packages(words: &str) -> Result<Vec<Package>, String> {
    let mut packages = Vec::new();
    let mut words = words.split_ascii_whitespace();
    while let Some(active) = words.next() {
        let mut next = || words.next().ok_or("attribute 'derivations' ends in the middle of a package");
        let number = |word: &str| {
            word.parse::<i64>().map_err(|_| format!("'{word}' in attribute 'derivations' is not a number"))
        };
        let priority = number(next()?)?;
        for _ in 0..number(next()?)? {
            packages.push(Package { path: next()?.into(), active: active != "false", priority });
        }
    }
    Ok(packages)
}

impl Links {
    fn add(
        &mut self,
        package: &Path,
        priority: i64,
        out: &Path,
        done: &mut BTreeSet<PathBuf>,
        postponed: &mut BTreeSet<PathBuf>,
    ) -> Outcome {
        if !done.insert(package.to_owned()) {
            return Ok(());
        }
        self.link_all(package, out, priority)?;
        let list = package.join("nix-support/propagated-user-env-packages");
        match fs::read_to_string(&list) {
            Ok(text) => {
                let more = text.split([' ', '\n']).filter(|word| !word.is_empty()).map(PathBuf::from);
                postponed.extend(more.filter(|path| !done.contains(path)));
                Ok(())
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(e) => Err(failed("read", &list)(e)),
        }
    }

    /// Links the entries of `from` into the directory `to`.
    fn link_all(&mut self, from: &Path, to: &Path, priority: i64) -> Outcome {
        let entries = match fs::read_dir(from) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                eprintln!(
                    "warning: not including '{}' in the user environment because it's not a directory",
                    from.display()
                );
                return Ok(());
            }
            Err(e) => return Err(failed("read", from)(e)),
        };
        let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<BTreeSet<_>>>();
        for name in names.map_err(failed("read", from))? {
            if !name.as_encoded_bytes().starts_with(b".") {
                self.link(&from.join(&name), &to.join(&name), priority)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path, priority: i64) -> Outcome {
        let found = match fs::metadata(from) {
            Ok(found) => found,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                eprintln!("warning: skipping dangling symlink '{}'", to.display());
                return Ok(());
            }
            Err(e) => return Err(failed("examine", from)(e)),
        };
        let whole = from.as_os_str().as_encoded_bytes();
        if LEFT_OUT.iter().any(|end| whole.ends_with(end.as_bytes())) {
            return Ok(());
        }
        let there = match fs::symlink_metadata(to) {
            Ok(there) => Some(there.file_type()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(failed("examine", to)(e)),
        };
        match there {
            Some(kind) if found.is_dir() && kind.is_dir() => return self.link_all(from, to, priority),
            Some(kind) if found.is_dir() && kind.is_symlink() => {
                // So far a link to one package's directory: replace it by a directory with the contents of
                // both.
                let before = fs::canonicalize(to).map_err(failed("resolve", to))?;
                if !before.is_dir() {
                    return Err(format!(
                        "collision between '{}' and non-directory '{}'",
                        from.display(),
                        before.display()
                    ));
                }
                fs::remove_file(to).map_err(failed("remove", to))?;
                fs::create_dir(to).map_err(failed("create", to))?;
                let priority_before = self.priorities.get(to).copied().unwrap_or(0);
                self.link_all(&before, to, priority_before)?;
                return self.link_all(from, to, priority);
            }
            Some(kind) if kind.is_symlink() => {
                let before = self.priorities.get(to).copied().unwrap_or(0);
                if before == priority {
                    return Err(conflict(to, from, priority));
                }
                if before < priority {
                    return Ok(());
                }
                fs::remove_file(to).map_err(failed("remove", to))?;
            }
            Some(kind) if kind.is_dir() => {
                return Err(format!(
                    "collision between non-directory '{}' and directory '{}'",
                    from.display(),
                    to.display()
                ));
            }
            _ => {}
        }
        symlink(from, to).map_err(failed("create", to))?;
        self.priorities.insert(to.to_owned(), priority);
        Ok(())
    }
}

/// Source of the text: Nix, `BuildEnvFileConflictError`.
fn conflict(to: &Path, from: &Path, priority: i64) -> String {
    let before = fs::read_link(to).unwrap_or_else(|_| to.to_owned());
    format!(
        "Unable to build profile. There is a conflict for the following files:\n\n  {}\n  {}\n\n\
         Both have the priority {priority}; give one of the packages another (a smaller number wins).",
        before.display(),
        from.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_groups_of_words_and_half_of_one_is_refused() {
        let read = |text: &str| {
            let list = packages(text)?;
            Ok::<_, String>(
                list.iter()
                    .map(|p| format!("{} {} {}", p.path.display(), p.active, p.priority))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            read("true 5 2 /a /b\nfalse -1 1 /c").expect("fine"),
            ["/a true 5", "/b true 5", "/c false -1"]
        );
        for bad in ["true", "true 5", "true x 1 /a", "true 5 2 /a", "true 5 9223372036854775807 /a"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
