//! The arrows between this project's crates: `docs/design/architecture.md` draws them, `cargo metadata` says what they are.
//!
//! A crate that needs an arrow which is not drawn is a sign to move a type. Where the arrow is right, it is drawn first.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use e2e::place;
use serde_json::Value;

const START: &str = "<!-- arrows: start -->";
const END: &str = "<!-- arrows: end -->";

type Arrows = BTreeMap<String, BTreeSet<String>>;

/// What each member of the workspace links of the others, tests and examples left out.
fn linked() -> Arrows {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--no-deps"])
        .current_dir(place::project())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
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

/// The page's list: "`crate` → `other`, `another`", or "`crate` → nothing".
fn drawn() -> Arrows {
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
    let (linked, drawn) = (linked(), drawn());
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

/// Read from top to bottom, the list only points downwards: no crate above one that uses it.
#[test]
fn the_list_is_in_order_so_there_is_no_circle() {
    let page =
        std::fs::read_to_string(place::project().join("docs/design/architecture.md")).expect("the page");
    let (_, rest) = page.split_once(START).expect("a start mark");
    let (list, _) = rest.split_once(END).expect("an end mark");
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for line in list.lines().filter(|line| line.contains('→')) {
        let names: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
        above.insert(names[0]);
        for name in &names[1..] {
            assert!(!above.contains(name), "`{}` uses `{name}`, which is above it", names[0]);
        }
    }
}
