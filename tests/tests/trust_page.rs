//! `docs/trust.md` names the test behind each step of its argument. A name without a test would be a promise.

use std::collections::BTreeSet;
use std::path::Path;

use e2e::place;

/// Words in backticks that look like the name of a test: long, with underscores, nothing else.
fn named(page: &str) -> BTreeSet<&str> {
    let words = page.split('`').skip(1).step_by(2);
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .filter(|word| word.matches('_').count() >= 4)
        .collect()
}

/// All text of Rust files below this folder.
fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}

#[test]
fn every_test_that_the_trust_page_names_exists() {
    let page = std::fs::read_to_string(place::project().join("docs/trust.md")).expect("docs/trust.md");
    let mut text = String::new();
    for dir in ["builder-agent", "access-manager", "tests"] {
        sources(&place::project().join(dir), &mut text);
    }
    let named = named(&page);
    assert!(named.len() > 30, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !text.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/trust.md names tests that do not exist: {missing:?}");
}

#[test]
fn every_attack_test_is_named_by_the_trust_page() {
    let page = std::fs::read_to_string(place::project().join("docs/trust.md")).expect("docs/trust.md");
    let mut text = String::new();
    sources(&place::project().join("tests/tests/attacks"), &mut text);
    let named = named(&page);
    let tests: Vec<&str> = text
        .split("#[tokio::test]\nasync fn ")
        .skip(1)
        .map(|rest| rest.split('(').next().expect("a name"))
        .collect();
    assert!(tests.len() > 8, "{tests:?}");
    let unnamed: Vec<&&str> = tests.iter().filter(|test| !named.contains(*test)).collect();
    assert!(unnamed.is_empty(), "docs/trust.md says nothing of {unnamed:?}");
}
