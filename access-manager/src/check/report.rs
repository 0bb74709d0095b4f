//! The report as text for terminals, as Markdown for a comment or a summary, as JSON for programs.
//!
//! In every sentence, the words of strangers stand in backticks and nowhere else. In Markdown that is a code span, in which
//! forges look for no mentions, links or HTML; the rest is escaped all the same.

use std::fmt::Write;

use serde_json::{Value, json};

use super::findings::{Finding, Severity};
use super::words;
use super::{Comparison, Report};
use crate::diag::quoted;

/// The version of the JSON report. Fields are added without a new number.
pub const SCHEMA: u64 = 1;
/// Longest Markdown. A comment on GitHub ends at 65,536 characters, and other text may stand around the report.
const MAX_MARKDOWN: usize = 48_000;
/// Longest list in it.
const MAX_ITEMS: usize = 60;

// --- text --------------------------------------------------------------------------------------------------------

/// For a terminal: mistakes with their lines, then what the change does, then the verdict.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let (old, new): (Vec<&Finding>, Vec<&Finding>) = report.findings.iter().partition(|finding| finding.old);
    for finding in &new {
        let _ = writeln!(out, "{}", text_of(finding));
    }
    if !old.is_empty() {
        out.push_str(if out.is_empty() { "" } else { "\n" });
        out.push_str("Not from this change, but still so:\n");
        for finding in old {
            let _ = writeln!(out, "{}", text_of(finding));
        }
    }
    if let Some(comparison) = &report.comparison {
        if !out.is_empty() {
            out.push('\n');
        }
        let _ = writeln!(out, "Compared with {}, this change", since(comparison));
        out.push_str(&problem(comparison).map(|problem| format!("  ({problem})\n")).unwrap_or_default());
        match comparison.changes.as_deref() {
            None => out.push_str("  is refused, so the box would keep the roster it has.\n"),
            Some([]) => out.push_str("  changes nobody's access.\n"),
            Some(changes) => {
                for change in changes {
                    let _ = writeln!(out, "  - {}", change.text);
                }
            }
        }
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&verdict(report));
    out.push('\n');
    out
}

fn text_of(finding: &Finding) -> String {
    if let Some(diagnostic) = &finding.diagnostic {
        return diagnostic.to_string();
    }
    let mut out = format!("{}: {}", finding.severity.name(), located(finding));
    if let Some(hint) = &finding.hint {
        let _ = write!(out, "\n    hint: {hint}");
    }
    out
}

fn located(finding: &Finding) -> String {
    match &finding.place {
        Some(place) => format!("{place}: {}", finding.text),
        None => finding.text.clone(),
    }
}

/// `1234567890ab (where this branch left `origin/main`)`.
fn since(comparison: &Comparison) -> String {
    let commit = comparison.commit.to_string();
    format!("{} (where this branch left {})", &commit[..12], quoted(&comparison.rev))
}

fn problem(comparison: &Comparison) -> Option<String> {
    let problem = comparison.problem.as_ref()?;
    Some(format!("there is nothing to compare with: {problem}; so every member is listed as new"))
}

fn verdict(report: &Report) -> String {
    let count = |severity| report.findings.iter().filter(|finding| finding.severity == severity).count();
    let some =
        |number: usize, word: &str| (number > 0).then(|| words::count(number, word, &format!("{word}s")));
    let found: Vec<String> = [
        report.members.and_then(|members| some(members, "member")),
        some(count(Severity::Error), "error"),
        some(count(Severity::Warning), "warning"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let word = if report.refused() { "refused" } else { "fine" };
    match found.is_empty() {
        true => format!("{}: {word}", quoted(&report.file)),
        false => format!("{}: {word} ({})", quoted(&report.file), found.join(", ")),
    }
}

// --- Markdown ----------------------------------------------------------------------------------------------------

/// For a comment: at most [`MAX_MARKDOWN`] bytes, whatever the roster contains.
pub fn markdown(report: &Report) -> String {
    let mut out = Bounded { text: format!("### Roster check: {}\n", escaped(&verdict(report))) };
    if let Some(comparison) = &report.comparison {
        out.part(&format!("What this change does, compared with {}", escaped(&since(comparison))));
        if let Some(problem) = problem(comparison) {
            out.text.push_str(&format!("{}.\n\n", escaped(&capital(&problem))));
        }
        match comparison.changes.as_deref() {
            None => out.text.push_str("The roster is refused, so the box would keep the one it has.\n"),
            Some([]) => out.text.push_str("It changes nobody's access.\n"),
            Some(changes) => {
                out.list(changes.iter().map(|change| format!("- {}\n", escaped(&capital(&change.text)))));
            }
        }
    }
    for (old, severity, title) in [
        (false, Severity::Error, "Errors"),
        (false, Severity::Warning, "Warnings"),
        (false, Severity::Note, "Notes"),
        // Notes that were there before are nothing that a reviewer of this change acts on.
        (true, Severity::Error, "Errors that were there before"),
        (true, Severity::Warning, "Warnings that were there before"),
    ] {
        let findings: Vec<&Finding> = report
            .findings
            .iter()
            .filter(|finding| finding.severity == severity && finding.old == old)
            .collect();
        if !findings.is_empty() {
            out.part(title);
            out.list(findings.into_iter().map(markdown_of));
        }
    }
    out.text
}

fn markdown_of(finding: &Finding) -> String {
    match &finding.diagnostic {
        Some(diagnostic) => fenced(&diagnostic.to_string()),
        None => {
            // A place is a stranger's file name, outside of backticks in text.
            let place = finding.place.as_ref().map(|place| format!("{}: ", code(&place.to_string())));
            let hint = finding.hint.as_ref().map(|hint| format!(" ({})", escaped(hint)));
            format!(
                "- {}{}{}\n",
                place.unwrap_or_default(),
                escaped(&capital(&finding.text)),
                hint.unwrap_or_default()
            )
        }
    }
}

struct Bounded {
    text: String,
}

impl Bounded {
    fn part(&mut self, title: &str) {
        self.text.push_str(&format!("\n**{title}**\n\n"));
    }

    /// As many of the items as there is room for, and how many there are besides.
    fn list(&mut self, items: impl ExactSizeIterator<Item = String>) {
        let all = items.len();
        for (number, item) in items.enumerate() {
            if number == MAX_ITEMS || self.text.len() + item.len() > MAX_MARKDOWN {
                self.text.push_str(&format!("- … and {} more\n", all - number));
                return;
            }
            self.text.push_str(&item);
        }
    }
}

/// A message of several lines as a code block, whose fence is longer than any in it.
fn fenced(message: &str) -> String {
    let longest = message.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    let lines: Vec<String> =
        message.lines().map(|line| line.chars().map(printable::character).collect()).collect();
    format!("{fence}text\n{}\n{fence}\n", lines.join("\n"))
}

/// One of our sentences: quotations become code spans, all else is escaped.
fn escaped(sentence: &str) -> String {
    let mut parts = sentence.split('`');
    let mut out = plain(parts.next().unwrap_or_default());
    loop {
        match (parts.next(), parts.next()) {
            (Some(quotation), Some(after)) => out.push_str(&format!("{}{}", code(quotation), plain(after))),
            // A quotation without an end is none.
            (Some(rest), None) => out.push_str(&plain(rest)),
            _ => return out,
        }
    }
}

/// Text in which Markdown and forges find nothing to act on.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(printable::character) {
        // All that Markdown may give a meaning, except what is frequent and has none within a line.
        if c.is_ascii_punctuation() && !",;:()'\"/=-".contains(c) {
            out.push('\\');
        }
        out.push(c);
        // To the forge an escaped `@name` or `#1` is one again: it looks for them after Markdown is done.
        if "@#!$%&~".contains(c) {
            out.push('\u{200b}');
        }
    }
    out.replace("://", ":\u{200b}//")
}

/// A code span. Without a backtick in it, one on each side is enough.
fn code(text: &str) -> String {
    let inner = printable::line(text).replace('`', "'");
    match inner.trim().is_empty() {
        true => "(nothing)".into(),
        false => format!("`{inner}`"),
    }
}

fn capital(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

// --- JSON --------------------------------------------------------------------------------------------------------

/// docs/reference/commands.md describes it.
pub fn json(report: &Report) -> String {
    let findings: Vec<Value> = report.findings.iter().map(json_of).collect();
    let base = report.comparison.as_ref().map(|comparison| {
        json!({ "rev": comparison.rev, "commit": comparison.commit.to_string(), "problem": comparison.problem })
    });
    let changes = report.comparison.as_ref().and_then(|comparison| comparison.changes.as_ref());
    let changes: Option<Vec<Value>> = changes.map(|changes| {
        let one = |change: &super::Change| {
            json!({ "effect": change.effect.name(), "kind": change.kind, "member": change.member, "text": change.text })
        };
        changes.iter().map(one).collect()
    });
    let report = json!({
        "schema": SCHEMA,
        "verdict": if report.refused() { "refused" } else { "fine" },
        "file": report.file,
        "members": report.members,
        "base": base,
        "changes": changes,
        "findings": findings,
    });
    format!("{report:#}\n")
}

fn json_of(finding: &Finding) -> Value {
    let place = finding.place.as_ref();
    json!({
        "severity": finding.severity.name(),
        "kind": finding.kind,
        "text": finding.text,
        "file": place.map(|place| &place.file),
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "hint": finding.hint,
        "message": finding.diagnostic.as_ref().map(|diagnostic| diagnostic.to_string()),
        "old": finding.old,
    })
}

#[cfg(test)]
#[path = "report_test.rs"]
mod report_test;
