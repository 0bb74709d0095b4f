//! `docs/design/trust.md` names the test behind each step of its argument, `docs/design/published-attacks.md`
//! the test of each attack, and `docs/design/front-door.md` those of each limit. Every named test must exist.

use std::collections::BTreeSet;
use std::path::Path;

use e2e::place;

/// Words in backticks that look like test names: long, with underscores, nothing else.
fn named(page: &str) -> BTreeSet<&str> {
    let words = page.split('`').skip(1).step_by(2);
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .filter(|word| word.matches('_').count() >= 4)
        .collect()
}

/// The text of all Rust files below this folder.
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

const LIMITS: &str = "docs/design/front-door.md";
const PAGES: [&str; 3] = ["docs/design/trust.md", "docs/design/published-attacks.md", LIMITS];

fn page(name: &str) -> String {
    std::fs::read_to_string(place::project().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_test_that_the_trust_page_names_exists() {
    let mut text = String::new();
    for dir in ["builder-agent", "access-manager", "tests"] {
        sources(&place::project().join(dir), &mut text);
    }
    for name in PAGES {
        let page = page(name);
        let named = named(&page);
        assert!(named.len() > 15, "{named:?}");
        let missing: Vec<&&str> =
            named.iter().filter(|test| !text.contains(&format!("fn {test}("))).collect();
        assert!(missing.is_empty(), "{name} names tests that do not exist: {missing:?}");
    }
}

/// The published attacks that the page must answer by name.
const PUBLISHED: [&str; 19] = [
    "CVE-2024-27297",
    "CVE-2024-38531",
    "CVE-2024-45593",
    "CVE-2025-46415",
    "CVE-2025-46416",
    "CVE-2025-52991",
    "CVE-2025-52992",
    "CVE-2025-52993",
    "CVE-2026-39860",
    "CVE-2026-44028",
    "CVE-2026-5747",
    "CVE-2026-1386",
    "CVE-2026-45782",
    "CVE-2023-6693",
    "CVE-2021-3748",
    "CVE-2024-43410",
    "CVE-2026-42189",
    "CVE-2026-46702",
    "CVE-2026-48108",
];

#[test]
fn every_published_attack_has_a_test_or_a_line_that_says_why_it_cannot_apply() {
    let page = page("docs/design/published-attacks.md");
    for attack in PUBLISHED {
        let row = page.lines().find(|line| line.starts_with("| ") && line.contains(attack));
        let row = row.unwrap_or_else(|| panic!("there is no row for {attack}"));
        assert!(!named(row).is_empty() || row.contains("annot "), "{row}");
    }
}

#[test]
fn every_limit_of_the_box_has_a_row_with_a_test_that_drives_it_to_its_end() {
    let (settings, page) = (page("docs/reference/settings.md"), page(LIMITS));
    let limits = settings.split("| `").filter_map(|row| row.split('`').next());
    let limits: BTreeSet<&str> = limits.filter(|key| key.starts_with("limits.")).collect();
    assert!(limits.len() > 20, "{limits:?}");
    let (_, table) = page.split_once("## Limits at their end").expect("the section");
    for limit in limits {
        let row = table.lines().find(|line| line.contains(&format!("`{limit}`")));
        let row = row.unwrap_or_else(|| panic!("there is no row for {limit}"));
        assert!(!named(row).is_empty(), "{row}");
    }
}

#[test]
fn every_attack_test_is_named_by_the_trust_page() {
    let pages = PAGES.map(page).concat();
    let mut text = String::new();
    sources(&place::project().join("tests/tests/attacks"), &mut text);
    let named = named(&pages);
    let tests: Vec<&str> = text
        .split("#[tokio::test]\nasync fn ")
        .skip(1)
        .map(|rest| rest.split('(').next().expect("a name"))
        .collect();
    assert!(tests.len() > 8, "{tests:?}");
    let unnamed: Vec<&&str> = tests.iter().filter(|test| !named.contains(*test)).collect();
    assert!(unnamed.is_empty(), "{PAGES:?} say nothing of {unnamed:?}");
}
