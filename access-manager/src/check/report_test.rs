use super::*;
use crate::check::change::{Change, Effect};
use crate::nix::Limits;
use crate::roster::inspect;
use crate::source::Memory;
use crate::test_keys::*;

/// What a stranger may write into comments, names of files and attributes.
const HOSTILE: &[&str] = &[
    "@everyone",
    "#1 !2 &3 $4 %5 ~6",
    "` @everyone `",
    "``` \n# title",
    "<img src=x onerror=alert(1)>",
    "[link](https://evil.example) ![image](https://evil.example/x.png)",
    "https://evil.example www.evil.example",
    "\u{1b}[2J\u{202e}",
    "\n\n::add-mask::x\n##[error]x",
    "| a | b |",
    "--> <!-- </details>",
];

fn report_of(findings: Vec<Finding>, changes: Vec<Change>) -> Report {
    let comparison = Comparison {
        rev: "origin/main".into(),
        commit: git2::Oid::from_str(&"1".repeat(40)).expect("an id"),
        problem: None,
        changes: Some(changes),
    };
    Report { file: "users.nix".into(), members: Some(3), findings, comparison: Some(comparison) }
}

fn change(text: String) -> Change {
    Change { effect: Effect::Grants, kind: "adds-key", member: "a".into(), text }
}

fn findings(users: &str, files: &[(&str, &str)]) -> Vec<Finding> {
    let mut all = vec![("users.nix", users)];
    all.extend_from_slice(files);
    match inspect(Memory::with(&all), "users.nix", Limits::default(), &[]) {
        Ok((evaluated, inspected)) => crate::check::findings::all(&evaluated, &inspected, &[], 0),
        Err(diagnostic) => vec![Finding::mistake(*diagnostic)],
    }
}

/// Markdown without its code blocks and code spans: where a forge looks for something to act on.
fn active(markdown: &str) -> String {
    let mut out = String::new();
    let mut fence: Option<String> = None;
    for line in markdown.lines() {
        let ticks: String = line.chars().take_while(|c| *c == '`').collect();
        match &fence {
            Some(open) if ticks.len() >= open.len() && line == ticks => fence = None,
            Some(_) => {}
            None if ticks.len() >= 3 => fence = Some(ticks),
            None => {
                // A span begins and ends with one backtick; ours hold none.
                out.extend(line.split('`').step_by(2));
                assert!(line.matches('`').count() % 2 == 0, "an open span: {line}");
                out.push('\n');
            }
        }
    }
    assert!(fence.is_none(), "an open code block: {markdown}");
    out
}

fn assert_harmless(report: &Report) {
    let markdown = markdown(report);
    let active = active(&markdown);
    for bad in ["evil", "everyone", "onerror", "<", "](", "://", "add-mask", "##["] {
        assert!(!active.contains(bad), "{bad} in\n{active}\nof\n{markdown}");
    }
    for text in [&markdown, &text(report)] {
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        assert!(
            text.lines().all(|line| !line.trim_start().starts_with("::") && !line.contains("\n##[")),
            "{text}"
        );
    }
    let json: Value = serde_json::from_str(&json(report)).expect("JSON");
    assert_eq!(json["schema"], SCHEMA);
}

#[test]
fn what_strangers_write_stays_text_in_every_format() {
    for hostile in HOSTILE {
        let comment = hostile.replace('\n', " ").replace("${", "");
        let nix = comment.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
        let file = format!("keys/{}.pub", hostile.replace('/', "∕"));
        for (users, files) in [
            // An unknown attribute, a mistake of a key, a file that nobody names, a message of the roster's own.
            (format!("{{ a.keys = \"{A}\"; b.\"{nix}\" = 1; }}"), vec![]),
            (format!("{{ a.keys = \"{A} {nix}\"; b.keys = \"{nix} x\"; }}"), vec![]),
            (format!("{{ a.keys = ./keys/a; }} # {comment}"), vec![("keys/a", A), (file.as_str(), "x")]),
            (format!("throw \"{nix}\""), vec![]),
            (format!("{{ a.keys = \"{A}\"; \"{nix}\" = {{ }}; }}"), vec![]),
            (format!("{{ a.keys = \"{A}\" # {comment}\n"), vec![]),
            (format!("import (./. + \"/{nix}.nix\")"), vec![]),
        ] {
            let told = findings(&users, &files);
            let text = format!("adds a key to `a`: {}", quoted(hostile));
            assert_harmless(&report_of(told, vec![change(text)]));
        }
    }
}

#[test]
fn markdown_is_bounded_and_says_how_much_is_left_out() {
    let users: String = (0..500).map(|i| format!("m{i} = {{ {} = 1; }};\n", "x".repeat(200))).collect();
    let told = findings(&format!("{{ a.keys = \"{A}\";\n{users} }}"), &[]);
    assert_eq!(told.len(), 500);
    let changes = (0..5000).map(|i| change(format!("adds a key to {}", quoted(&i.to_string())))).collect();
    let report = report_of(told, changes);
    let markdown = markdown(&report);
    assert!(markdown.len() < MAX_MARKDOWN + 1000, "{}", markdown.len());
    assert!(markdown.contains("- … and 4940 more\n"), "{markdown}");
    assert!(text(&report).contains("adds a key to `4999`"), "a terminal has room");
}

#[test]
fn the_three_formats_of_one_report() {
    let told = findings(&format!("{{ b.keys = \"{A}\"; a.keys = \"{B}\"; c.key = 1; }}"), &[]);
    let mut report = report_of(told, vec![change("grants `b` 1 key".into())]);
    report.members = Some(2);
    let lines = text(&report);
    assert!(lines.starts_with("error: `c` has an unknown attribute `key`\n --> users.nix:1:"), "{lines}");
    assert!(
        lines.ends_with(
            "
warning: users.nix:1:3: `b` is not in alphabetical order: it belongs after `a`

Compared with 111111111111 (where this branch left `origin/main`), this change
  - grants `b` 1 key

`users.nix`: refused (2 members, 1 error, 1 warning)
"
        ),
        "{lines}"
    );
    let markdown = markdown(&report);
    assert!(
        markdown.starts_with(
            "### Roster check: `users.nix`: refused (2 members, 1 error, 1 warning)

**What this change does, compared with 111111111111 (where this branch left `origin/main`)**

- Grants `b` 1 key

**Errors**

```text
error: `c` has an unknown attribute `key`
"
        ),
        "{markdown}"
    );
    assert!(
        markdown.ends_with(
            "**Warnings**\n\n- `users.nix:1:3`: `b` is not in alphabetical order: it belongs after `a`\n"
        ),
        "{markdown}"
    );
    let json: Value = serde_json::from_str(&json(&report)).expect("JSON");
    assert_eq!(json["verdict"], "refused");
    assert_eq!(
        json["changes"][0],
        json!({"effect": "grants", "kind": "adds-key", "member": "a", "text": "grants `b` 1 key"})
    );
    assert_eq!(json["findings"][0]["kind"], "roster");
    assert_eq!(json["findings"][1]["line"], 1);
}

#[test]
fn what_was_there_before_is_told_apart() {
    let mut told = findings(&format!("{{ b.keys = \"{A}\"; a.keys = \"{B}\"; }}"), &[]);
    told[0].old = true;
    let report = report_of(told, vec![]);
    assert!(
        text(&report).starts_with("Not from this change, but still so:\nwarning: users.nix:1:3: `b` is not")
    );
    assert!(markdown(&report).contains("**Warnings that were there before**"));
    assert!(markdown(&report).contains("It changes nobody's access."));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(300))]

    /// Pieces of what forges and terminals act on, in any order, as a comment, a name, an attribute, a file and a message.
    #[test]
    fn no_mixture_of_what_forges_act_on_is_acted_on(
        pieces in proptest::collection::vec(
            proptest::sample::select(vec![
                "`", "``", "```", "\n", " ", "@everyone", "evil", "://", "https://evil.example", "<b onerror>", "](", "[", "!",
                "\\", "#", "\u{1b}", "\u{202e}", "\u{85}", "\u{2028}", "::", "##[", "|", "~~~", "<!--", "$", "\"", "'", "&lt;",
            ]),
            1..12,
        )
    ) {
        let text = pieces.concat();
        let nix = text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
        let file = format!("keys/{}.pub", text.replace('/', "_"));
        let comment = text.replace(['\n', '\u{85}', '\u{2028}'], " ");
        let users = format!(
            "{{ a.keys = ./keys/a; \"{nix}\" = {{ }}; b.\"{nix}\" = 1; c.keys = \"{nix}\"; d.keys = throw \"{nix}\"; \
             e.keys = ./. + \"/{nix}\"; f.limits.\"{nix}\" = 1; g.role = \"{nix}\"; }} # {comment}\n"
        );
        let told = findings(&users, &[("keys/a", A), (file.as_str(), B)]);
        proptest::prop_assert!(told.len() > 5, "{told:?}");
        assert_harmless(&report_of(told, vec![change(format!("adds a key to `a`: {}", quoted(&text)))]));
    }
}
