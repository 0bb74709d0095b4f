//! Errors for people: what is wrong, where, the line itself, what was expected and found, and what to do.
//!
//! The quoted text comes from strangers and is printed to terminals and CI logs. So every quotation is bounded and has
//! no control characters, and a line that may hold a secret is not repeated.

use std::fmt;

pub use ::roster::words::{did_you_mean, one_of, quoted};

/// Widest part of a source line that is shown; a pasted RSA key alone is longer than this.
const MAX_LINE_SHOWN: usize = 120;

/// The class of a mistake. The classes are stable, for tests and for tools that sort messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The text is not Nix.
    Syntax,
    /// Nix, but a value has the wrong type or a function was called wrongly.
    Type,
    /// A name or an attribute that does not exist.
    Undefined,
    /// A value that depends on itself.
    Recursion,
    /// One of the evaluator's limits was reached.
    Limit,
    /// A feature of Nix that rosters may not use, or that this evaluator does not have.
    Unsupported,
    /// `throw`, `abort`, or a failed `assert` in the roster.
    Thrown,
    /// A file that is missing, unreadable or of the wrong kind.
    File,
    /// A path that leaves the repository.
    Outside,
    /// The value is not a roster: unknown attributes, bad names, bad limits, duplicates.
    Roster,
    /// An ssh key that is not acceptable.
    Key,
}

/// A position in a file, resolved for printing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Path inside the repository.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, unless it may hold a secret.
    text: Option<String>,
    /// The number of characters that the caret underlines.
    width: usize,
}

/// One refused roster. Its `Display` is the complete message, without a final newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub class: Class,
    pub title: String,
    pub at: Option<Place>,
    pub expected: Option<String>,
    pub found: Option<String>,
    pub hint: Option<String>,
    /// Other places that explain the mistake, such as the first of two duplicates.
    pub notes: Vec<(String, Option<Place>)>,
}

impl Class {
    /// The name of the class, for programs that sort messages.
    pub fn name(self) -> &'static str {
        match self {
            Class::Syntax => "syntax",
            Class::Type => "type",
            Class::Undefined => "undefined",
            Class::Recursion => "recursion",
            Class::Limit => "limit",
            Class::Unsupported => "unsupported",
            Class::Thrown => "thrown",
            Class::File => "file",
            Class::Outside => "outside",
            Class::Roster => "roster",
            Class::Key => "key",
        }
    }
}

/// `file:line:column`. The name of the file comes from a stranger too, so it is made printable.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = printable::line(&self.file);
        write!(f, "{file}:{}:{}", self.line, self.column)
    }
}

impl Diagnostic {
    /// The message in one line, for logs and `roster.json`: title, place, what to do.
    pub fn line(&self) -> String {
        let mut line = self.title.clone();
        if let Some(place) = &self.at {
            line.push_str(&format!(" ({place})"));
        }
        if let Some(hint) = &self.hint {
            line.push_str(&format!("; hint: {hint}"));
        }
        line
    }
}

impl std::error::Error for Diagnostic {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.title)?;
        let gutter = self.at.as_ref().map_or(0, |p| p.line.to_string().len());
        if let Some(place) = &self.at {
            write_place(f, place, gutter)?;
        }
        for (name, text) in [("expected", &self.expected), ("found", &self.found), ("hint", &self.hint)] {
            if let Some(text) = text {
                write!(f, "\n{:>9} {text}", format!("{name}:"))?;
            }
        }
        for (text, place) in &self.notes {
            write!(f, "\n{:>9} {text}", "note:")?;
            if let Some(place) = place {
                write!(f, " ({place})")?;
            }
        }
        Ok(())
    }
}

fn write_place(f: &mut fmt::Formatter<'_>, place: &Place, gutter: usize) -> fmt::Result {
    write!(f, "\n{:gutter$}--> {place}", "")?;
    let Some(text) = &place.text else {
        return write!(f, "\n{:gutter$} | (line not shown: it may hold a secret)", "");
    };
    // Only the part around the caret is shown: a line may be a megabyte long.
    let skip = (place.column - 1).saturating_sub(MAX_LINE_SHOWN / 2);
    let mut shown: String = text.chars().skip(skip).take(MAX_LINE_SHOWN).map(printable::character).collect();
    let cut_left = if skip > 0 { "…" } else { "" };
    if text.chars().count() > skip + MAX_LINE_SHOWN {
        shown.push('…');
    }
    let indent = place.column - 1 - skip + cut_left.chars().count();
    let room = (MAX_LINE_SHOWN + 1).saturating_sub(indent).max(1);
    let carets = "^".repeat(place.width.clamp(1, room));
    write!(f, "\n{:gutter$} |\n{} | {cut_left}{shown}", "", place.line)?;
    write!(f, "\n{:gutter$} | {:indent$}{carets}", "", "")
}

/// A range of bytes in one of the files read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub file: u32,
    pub start: u32,
    pub end: u32,
}

/// The files that were read so far. A [`Span`] names one by its number.
#[derive(Default)]
pub struct Files(Vec<(String, std::rc::Rc<str>)>);

impl Files {
    pub fn add(&mut self, name: &str, text: std::rc::Rc<str>) -> u32 {
        self.0.push((name.to_owned(), text));
        (self.0.len() - 1) as u32
    }

    pub fn text(&self, file: u32) -> &str {
        &self.0[file as usize].1
    }

    pub fn place(&self, span: Span, hide: bool) -> Option<Place> {
        let (file, text) = self.0.get(span.file as usize)?;
        let start = floor_char(text, span.start as usize);
        let end = floor_char(text, (span.end as usize).max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let line = text[..start].matches('\n').count() + 1;
        let width = text[start..end.min(line_end).max(start)].chars().count();
        Some(Place {
            file: file.clone(),
            line,
            column: text[line_start..start].chars().count() + 1,
            text: (!hide).then(|| text[line_start..line_end].trim_end_matches('\r').to_owned()),
            width,
        })
    }
}

fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A [`Diagnostic`] with positions that are not resolved yet. Boxed, since every `Result` of the evaluator has room
/// for one.
#[derive(Clone, Debug)]
pub struct Fault(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    class: Class,
    title: String,
    at: Option<Span>,
    expected: Option<String>,
    found: Option<String>,
    hint: Option<String>,
    notes: Vec<(String, Option<Span>)>,
    secret: bool,
}

impl Fault {
    pub fn new(class: Class, title: impl Into<String>) -> Fault {
        Fault(Box::new(Inner {
            class,
            title: title.into(),
            at: None,
            expected: None,
            found: None,
            hint: None,
            notes: Vec::new(),
            secret: false,
        }))
    }

    /// Sets the position, replacing one that was set before.
    pub fn at(mut self, span: Span) -> Fault {
        self.0.at = Some(span);
        self
    }

    pub fn expected(mut self, text: impl Into<String>) -> Fault {
        self.0.expected = Some(text.into());
        self
    }

    pub fn found(mut self, text: impl Into<String>) -> Fault {
        self.0.found = Some(text.into());
        self
    }

    pub fn hint(mut self, text: impl Into<String>) -> Fault {
        self.0.hint = Some(text.into());
        self
    }

    /// Hints at the name that was meant, in place of another hint; `None`: no known name is near the wrong one.
    pub fn did_you_mean(self, near: Option<&str>) -> Fault {
        match near {
            Some(near) => self.hint(format!("did you mean {}?", quoted(near))),
            None => self,
        }
    }

    pub fn note(mut self, text: impl Into<String>, span: Option<Span>) -> Fault {
        // A fault that passes through a deep recursion would otherwise collect a note per level.
        if self.0.notes.len() < 6 {
            self.0.notes.push((text.into(), span));
        }
        self
    }

    /// Leaves out the text of the line, since it may hold a secret.
    pub fn secret(mut self) -> Fault {
        self.0.secret = true;
        self
    }

    pub fn span(&self) -> Option<Span> {
        self.0.at
    }

    pub fn class(&self) -> Class {
        self.0.class
    }

    pub fn resolve(self, files: &Files, hidden_file: u32) -> Diagnostic {
        let shown = |span: Option<Span>, hide| {
            span.filter(|s| s.file != hidden_file).and_then(|s| files.place(s, hide))
        };
        let inner = *self.0;
        Diagnostic {
            class: inner.class,
            title: inner.title,
            at: shown(inner.at, inner.secret),
            expected: inner.expected,
            found: inner.found,
            hint: inner.hint,
            notes: inner.notes.into_iter().map(|(t, s)| (t, shown(s, inner.secret))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stays_under_its_word_on_a_line_of_any_length() {
        let mut files = Files::default();
        let text = format!("{}WORD{}", "x ".repeat(5000), " y".repeat(5000));
        let file = files.add("users.nix", text.into());
        let fault = Fault::new(Class::Type, "t").at(Span { file, start: 10_000, end: 10_004 });
        let shown = fault.resolve(&files, u32::MAX).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        let caret: String =
            lines[4].chars().zip(lines[3].chars()).filter(|(c, _)| *c == '^').map(|(_, c)| c).collect();
        assert_eq!(caret, "WORD", "{shown}");
        assert!(lines.iter().all(|l| l.chars().count() < 200));
    }
}
