//! Licences and duplicates of all linked crates, checked against `deny.toml`: the checks of cargo-deny, for
//! machines without it. And the layers of the store, and circles of files in any crate (`circles`).
//!
//! Reads only those parts of `deny.toml` that this project uses, and fails if it has others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use e2e::{cargo, place};
use serde_json::Value;

#[path = "dependencies/circles.rs"]
mod circles;
#[path = "dependencies/modules.rs"]
mod modules;
#[path = "dependencies/tokens.rs"]
mod tokens;

struct Package {
    name: String,
    version: String,
    licence: Option<String>,
    source: Option<String>,
}

fn deny() -> toml::Table {
    let path = place::project().join("deny.toml");
    std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        .parse()
        .expect("deny.toml is TOML")
}

/// The packages that are compiled for the target in deny.toml.
fn packages() -> Vec<Package> {
    let deny = deny();
    let target = deny["graph"]["targets"][0].as_str().expect("a target").to_owned();
    let metadata = cargo::metadata(&["--filter-platform", &target]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let used: BTreeSet<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .filter_map(|node| node["id"].as_str())
        .collect();
    metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)))
        .map(|package| Package {
            name: text(&package["name"]).expect("a name"),
            version: text(&package["version"]).expect("a version"),
            licence: text(&package["license"]),
            source: text(&package["source"]),
        })
        .collect()
}

#[test]
fn every_licence_is_one_we_allow() {
    let deny = deny();
    let allowed: BTreeSet<&str> = deny["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|name| name.as_str())
        .collect();
    let refused: Vec<String> = packages()
        .iter()
        .filter(|package| !package.licence.as_deref().is_some_and(|licence| permits(licence, &allowed)))
        .map(|package| {
            format!("{} {}: {}", package.name, package.version, package.licence.as_deref().unwrap_or("none"))
        })
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn every_duplicate_has_a_reason_and_every_reason_a_duplicate() {
    let deny = deny();
    let excused: BTreeSet<&str> = deny["bans"]["skip"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|entry| entry["name"].as_str())
        .collect();
    let packages = packages();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    versions.retain(|_, all| all.len() > 1);
    let twice: BTreeSet<&str> = versions.keys().copied().collect();
    let unexcused: Vec<_> =
        twice.difference(&excused).map(|name| format!("{name} {:?}", versions[name])).collect();
    assert!(unexcused.is_empty(), "several versions, and no reason in deny.toml:\n{}", unexcused.join("\n"));
    let stale: Vec<_> = excused.difference(&twice).collect();
    assert!(stale.is_empty(), "no longer duplicated, so remove from deny.toml: {stale:?}");
}

#[test]
fn everything_comes_from_the_registry_or_this_workspace() {
    let elsewhere: Vec<String> = packages()
        .iter()
        .filter(|package| package.source.as_deref().is_some_and(|source| !source.starts_with("registry+")))
        .map(|package| format!("{} {}: {:?}", package.name, package.version, package.source))
        .collect();
    assert!(elsewhere.is_empty(), "from elsewhere:\n{}", elsewhere.join("\n"));
}

/// Without a complete lock file, each build would use the versions that are newest on its day. The fuzz
/// targets are a workspace of their own, which changes with the crates that it links and is easily forgotten.
#[test]
fn every_crate_has_its_version_in_a_lock_file() {
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
            .args(["x86_64-unknown-linux-gnu", "--manifest-path", manifest])
            .current_dir(place::project())
            .output()
            .expect("cargo runs");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words}\nhint: cargo update --workspace --manifest-path {manifest}, and commit the lock file"
        );
    }
}

/// Whether an SPDX expression can be satisfied with allowed licences only. The old `A/B` means `A OR B`.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    any_of(&mut rest, allowed) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut good = all_of(words, allowed);
    while take(words, "OR") {
        // Not `||` alone: `all_of` must always consume its words.
        let other = all_of(words, allowed);
        good = good || other;
    }
    good
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    let mut good = one(words, allowed);
    while take(words, "AND") {
        let other = one(words, allowed);
        good = good && other;
    }
    good
}

fn one(words: &mut &[&str], allowed: &BTreeSet<&str>) -> bool {
    if take(words, "(") {
        let good = any_of(words, allowed);
        return take(words, ")") && good;
    }
    let Some((name, rest)) = words.split_first() else { return false };
    *words = rest;
    if take(words, "WITH") {
        let Some((exception, rest)) = words.split_first() else { return false };
        *words = rest;
        return allowed.contains(format!("{name} WITH {exception}").as_str());
    }
    allowed.contains(name)
}

fn take(words: &mut &[&str], word: &str) -> bool {
    match words.split_first() {
        Some((first, rest)) if *first == word => {
            *words = rest;
            true
        }
        _ => false,
    }
}

#[test]
fn licence_expressions_are_read_as_written() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
    for good in
        ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "ISC AND (MIT OR GPL-3.0)", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(permits(good, &allowed), "{good}");
    }
    for bad in
        ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "(MIT", "MIT MIT", "", "ISC AND (GPL-3.0 OR AGPL-3.0)"]
    {
        assert!(!permits(bad, &allowed), "{bad}");
    }
}

/// The modules of the store, from the lowest layer to the highest, with the other modules that each may use.
/// A module without a row belongs to its parent.
const STORE_LAYERS: [(&str, &[&str]); 13] = [
    ("types", &[]),
    ("format::nar", &[]),
    ("format::object", &["format::nar"]),
    ("format::git", &["format::object"]),
    ("signing", &["types"]),
    ("long_work", &[]),
    ("config", &["signing", "long_work"]),
    ("error", &["types", "format::nar"]),
    ("objects", &["types", "error", "format::nar", "format::object", "format::git"]),
    ("index", &["types", "error", "config", "long_work"]),
    ("upkeep", &["types", "error", "config", "long_work", "objects", "index"]),
    (
        "views",
        &["types", "error", "config", "signing", "long_work", "format::object", "objects", "index", "upkeep"],
    ),
    ("store", &["types", "error", "config", "upkeep", "views"]),
];

/// The row of a path like `index::memory::Memory`.
fn layer(path: &str) -> Option<&'static str> {
    let of = |name: &&str| path == *name || path.starts_with(&format!("{name}::"));
    STORE_LAYERS.iter().map(|(name, _)| *name).find(of)
}

/// `index/memory.rs` is `index::memory`.
fn module(file: &Path) -> String {
    let file = file.with_extension("");
    file.iter().filter_map(|part| part.to_str()).collect::<Vec<_>>().join("::")
}

/// All paths from the crate's root that a source text names after `crate::` or `super::`, up to their first
/// two names. Comments and unit tests do not count.
fn named(text: &str, module: &str) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let parent = module.rsplit_once("::").map_or(String::new(), |(parent, _)| format!("{parent}::"));
    let mut found = BTreeSet::new();
    for (start, root) in [("crate::", ""), ("super::", parent.as_str())] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
            match rest.strip_prefix('{') {
                // A list: its part before the inner lists is sufficient.
                Some(list) => {
                    let list = list.split(['}', ';']).next().unwrap_or_default();
                    found.extend(list.split(',').map(|name| format!("{root}{}", name.trim())));
                }
                None => drop(found.insert(format!("{root}{}", rest[..end].trim_end_matches(':')))),
            }
        }
    }
    found
}

#[test]
fn the_stores_modules_use_only_those_of_lower_layers() {
    let source = place::project().join("builder-agent/store/src");
    let mut folders = vec![source.clone()];
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let file = path.strip_prefix(&source).expect("below the source");
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let module = module(file);
            // The crate's root only lists modules, and a test file may use all of them.
            if module == "lib" || module.ends_with("_test") || module == "format" {
                continue;
            }
            let own = layer(&module).unwrap_or_else(|| panic!("{module} has no layer"));
            let text = std::fs::read_to_string(&path).expect("a source file");
            for target in named(&text, &module).iter().filter_map(|path| layer(path)).filter(|to| *to != own)
            {
                let (_, may) = STORE_LAYERS.iter().find(|(name, _)| *name == own).expect("found above");
                if !may.contains(&target) {
                    wrong.push(format!("{} uses {target}", file.display()));
                }
                used.insert((own, target));
            }
        }
    }
    assert!(wrong.is_empty(), "of the store, and it may not:\n{}", wrong.join("\n"));
    let rows = STORE_LAYERS.iter().flat_map(|(name, may)| may.iter().map(|to| (*name, *to)));
    let idle: Vec<_> = rows.filter(|arrow| !used.contains(arrow)).collect();
    assert!(idle.is_empty(), "allowed, and not needed any more: {idle:?}");
    // Each row names rows above it only, so there is no circle.
    for (i, (name, may)) in STORE_LAYERS.iter().enumerate() {
        let lower: Vec<&str> = STORE_LAYERS[..i].iter().map(|(name, _)| *name).collect();
        assert!(may.iter().all(|to| lower.contains(to)), "{name} is allowed something that is not lower");
    }
}

/// The fuzz targets are a workspace of their own, which is rarely compiled, so nothing else notices when a
/// parser moves.
#[test]
fn every_file_that_a_fuzz_target_includes_exists() {
    let targets = place::project().join("fuzz/fuzz_targets");
    let mut included = 0;
    for entry in std::fs::read_dir(&targets).expect("the fuzz targets") {
        let target = entry.expect("a file").path();
        let text = std::fs::read_to_string(&target).expect("a fuzz target");
        for path in text.lines().filter_map(|line| line.strip_prefix("#[path = \"")?.strip_suffix("\"]")) {
            assert!(
                targets.join(path).exists(),
                "{} includes {path}, which does not exist",
                target.display()
            );
            included += 1;
        }
    }
    assert!(included > 0, "no target includes anything: remove this test");
}

/// The module `x` is in `x.rs`, and its parts are in the folder `x`. Only tests share a `common/mod.rs`:
/// cargo takes that file for a module and not for a test of its own.
#[test]
fn module_files_have_one_style() {
    let mut folders: Vec<_> =
        ["builder-agent", "access-manager", "image", "tests"].map(|name| place::project().join(name)).into();
    let (mut files, mut odd) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        let is_of_tests = folder.parent().is_some_and(|parent| parent.ends_with("tests"));
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                files += 1;
                if path.file_stem() == folder.file_name() || path.ends_with("mod.rs") && !is_of_tests {
                    odd.push(path);
                }
            }
        }
    }
    assert!(files > 300, "only {files} source files found");
    assert!(odd.is_empty(), "modules in another style: {odd:#?}");
}
