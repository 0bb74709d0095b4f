//! The arrows between this project's crates: `docs/design/architecture.md` draws them, and `cargo metadata`
//! must agree.
//!
//! If a crate needs an arrow that is not drawn, usually a type has to move. If the arrow is right, draw it
//! first.

use std::collections::{BTreeMap, BTreeSet};

use e2e::{cargo, place};
use serde_json::Value;

const START: &str = "<!-- arrows: start -->";
const END: &str = "<!-- arrows: end -->";

/// The dependencies of each member of the workspace on others, without tests and examples.
fn linked() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = cargo::metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().expect("packages");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    packages
        .iter()
        .map(|package| {
            let of_workspace = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .filter(|dependency| dependency["path"].is_string() && dependency["kind"].is_null())
                .map(|dependency| text(&dependency["name"]));
            (text(&package["name"]), of_workspace.collect())
        })
        .collect()
}

/// The page's list, in its order: "`crate` → `other`, `another`", or "`crate` → nothing".
fn drawn() -> Vec<(String, BTreeSet<String>)> {
    let page = place::project().join("docs/design/architecture.md");
    let page = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let (_, rest) = page.split_once(START).expect("the page has a start mark");
    let (list, _) = rest.split_once(END).expect("the page has an end mark");
    list.lines()
        .filter(|line| line.contains('→'))
        .map(|line| {
            let (from, to) = line.split_once('→').expect("an arrow");
            let names = |part: &str| -> Vec<String> {
                part.split('`').skip(1).step_by(2).map(str::to_owned).collect()
            };
            let from = names(from);
            assert_eq!(from.len(), 1, "one crate in front of the arrow: {line}");
            (from[0].clone(), names(to).into_iter().collect())
        })
        .collect()
}

#[test]
fn crates_use_what_the_architecture_page_says_and_nothing_else() {
    let (linked, list) = (linked(), drawn());
    let drawn: BTreeMap<String, BTreeSet<String>> = list.iter().cloned().collect();
    assert_eq!(drawn.len(), list.len(), "a crate has two lines");
    let differ: Vec<String> = linked
        .keys()
        .chain(drawn.keys())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter(|name| linked.get(*name) != drawn.get(*name))
        .map(|name| format!("{name}: Cargo.toml has {:?}, the page {:?}", linked.get(name), drawn.get(name)))
        .collect();
    assert!(differ.is_empty(), "docs/design/architecture.md and Cargo.toml disagree:\n{}", differ.join("\n"));
}

/// The list is ordered: no crate comes before one that it uses.
#[test]
fn the_list_is_in_order_so_there_is_no_circle() {
    let mut above: BTreeSet<String> = BTreeSet::new();
    for (name, uses) in drawn() {
        above.insert(name.clone());
        for used in uses {
            assert!(!above.contains(&used), "`{name}` uses `{used}`, which is above it");
        }
    }
}
