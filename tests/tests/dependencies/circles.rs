//! Files that use each other in a circle lie in one folder, in every crate: a folder can then be read, and moved,
//! without another one that needs it back.
//!
//! `x.rs` counts as a file of the folder `x/` too. To open a circle, usually a type moves to a file of its own,
//! below both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use e2e::{cargo, place};
use serde_json::json;

use super::modules::{Uses, uses};

/// Folders whose files may form a circle together, with the reason.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "access-manager/src/nix",
    "the evaluator: values hold closures and native functions, and evaluating these gives values",
)];

/// The sets of at least two files, each of which uses every other one, directly or through others.
fn circles(uses: &Uses) -> Vec<BTreeSet<PathBuf>> {
    let reached = |from: &PathBuf| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(file) = todo.pop() {
            todo.extend(uses[file].keys().filter(|next| seen.insert((*next).clone())));
        }
        seen
    };
    let reach: Vec<(&PathBuf, BTreeSet<PathBuf>)> = uses.keys().map(|file| (file, reached(file))).collect();
    let circles: BTreeSet<BTreeSet<PathBuf>> = reach
        .iter()
        .filter(|(file, seen)| seen.contains(*file))
        .map(|(file, seen)| {
            let back = |(other, sees): &&(&PathBuf, BTreeSet<PathBuf>)| {
                seen.contains(*other) && sees.contains(*file)
            };
            reach.iter().filter(back).map(|(other, _)| (*other).clone()).collect()
        })
        .collect();
    circles.into_iter().collect()
}

fn spans_folders(circle: &BTreeSet<PathBuf>) -> bool {
    let is_in =
        |file: &Path, folder: &Path| file.parent() == Some(folder) || file.with_extension("") == folder;
    let mut folders = circle.iter().filter_map(|file| file.parent());
    !folders.any(|folder| circle.iter().all(|file| is_in(file, folder)))
}

/// The uses inside a circle, one on each line.
fn arrows(circle: &BTreeSet<PathBuf>, uses: &Uses, root: &Path) -> String {
    let short = |file: &Path| file.strip_prefix(root).unwrap_or(file).display().to_string();
    let of_circle =
        circle.iter().flat_map(|file| uses[file].iter().map(move |(used, name)| (file, used, name)));
    of_circle
        .filter(|(_, used, _)| circle.contains(*used))
        .map(|(file, used, name)| format!("  {} uses {} (`{name}`)\n", short(file), short(used)))
        .collect()
}

/// The root files of all libraries and programs of the workspace.
fn roots() -> Vec<PathBuf> {
    let metadata = cargo::metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().expect("packages");
    let targets = packages.iter().flat_map(|package| package["targets"].as_array().expect("targets"));
    targets
        .filter(|target| target["kind"] == json!(["lib"]) || target["kind"] == json!(["bin"]))
        .map(|target| PathBuf::from(target["src_path"].as_str().expect("a path")))
        .collect()
}

#[test]
fn no_circle_of_files_spans_folders() {
    let project = place::project().canonicalize().expect("the checkout");
    let (mut wrong, mut needed, mut files) = (Vec::new(), BTreeSet::new(), 0);
    for root in roots() {
        let uses = uses(&root);
        files += uses.len();
        for circle in circles(&uses).into_iter().filter(spans_folders) {
            let is_inside = |folder: &str| circle.iter().all(|file| file.starts_with(project.join(folder)));
            match EXCEPTIONS.iter().find(|(folder, _)| is_inside(folder)) {
                Some((folder, _)) => drop(needed.insert(*folder)),
                None => wrong.push(arrows(&circle, &uses, &project)),
            }
        }
    }
    assert!(files > 300, "only {files} source files read");
    assert!(wrong.is_empty(), "files use each other in a circle, across folders:\n{}", wrong.join("\n"));
    for (folder, reason) in EXCEPTIONS {
        assert!(
            needed.contains(folder),
            "{folder} has no such circle any more ({reason}): remove its exception"
        );
    }
}

/// Writes a crate of these files, and returns its circles that span folders.
fn found(files: &[(&str, &str)]) -> Vec<BTreeSet<PathBuf>> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        let file = folder.path().join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, text).expect("a file");
    }
    let all = circles(&uses(&folder.path().join("lib.rs")));
    let relative = |file: &PathBuf| file.strip_prefix(folder.path()).expect("below").to_owned();
    all.iter()
        .filter(|circle| spans_folders(circle))
        .map(|circle| circle.iter().map(relative).collect())
        .collect()
}

#[test]
fn a_circle_across_folders_is_found_through_imports_paths_and_re_exports() {
    let circle = |names: &[&str]| vec![names.iter().map(PathBuf::from).collect::<BTreeSet<_>>()];
    let root = ("lib.rs", "mod desk;\nmod transfer;\npub use transfer::Opened;\n");
    let transfer =
        ("transfer.rs", "mod opened;\npub(super) use opened::Opened as Object;\npub use opened::*;\n");
    for desk in [
        "use crate::Opened;\npub struct Desk;",
        "use super::{desk as other, transfer::{self, Object}};\npub struct Desk;",
        "use crate::transfer;\npub struct Desk(transfer::Object);",
        "pub fn desk() { drop(crate::transfer::Opened) }",
    ] {
        for opened in
            ["pub struct Opened(crate::desk::Desk);", "use super::super::*;\npub struct Opened(desk::Desk);"]
        {
            let files = [root, transfer, ("desk.rs", desk), ("transfer/opened.rs", opened)];
            assert_eq!(found(&files), circle(&["desk.rs", "transfer/opened.rs"]), "{desk}\n{opened}");
        }
    }
}

#[test]
fn a_circle_in_one_folder_and_names_in_tests_and_comments_are_allowed() {
    let opened = "use super::T;\npub struct Opened(T);\n// crate::desk::Desk\n#[cfg(test)]\nmod tests { use crate::desk::Desk; }";
    let files = [
        ("lib.rs", "mod desk;\nmod transfer;\n"),
        ("desk.rs", "use crate::transfer::Opened;\npub struct Desk;"),
        ("transfer.rs", "mod opened;\npub use opened::Opened;\npub struct T(Opened);"),
        ("transfer/opened.rs", opened),
    ];
    assert_eq!(found(&files), Vec::new());
}

/// A name that nobody defines is looked for in each module once, however they import each other.
#[test]
fn modules_that_import_all_names_of_each_other_are_read() {
    let files = [
        ("lib.rs", "mod desk;\nmod logs;\nmod transfer;\nuse desk::*;\nuse logs::*;\nuse transfer::*;"),
        (
            "desk.rs",
            "use super::*;\nuse crate::logs::*;\nuse crate::transfer::*;\npub fn desk() { Nowhere::new() }",
        ),
        ("logs.rs", "use super::*;\nuse crate::desk::*;\nuse crate::transfer::*;"),
        ("transfer.rs", "mod opened;\nuse super::*;\nuse crate::desk::*;\nuse crate::logs::*;"),
        ("transfer/opened.rs", "use super::*;\npub fn open() { Nowhere::new() }"),
    ];
    assert_eq!(found(&files), Vec::new());
}
