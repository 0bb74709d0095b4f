//! The text of a file before it becomes a tree: bounds its nesting, and words syntax errors.

use rnix::{ParseError, SyntaxKind, SyntaxKind::*, TextRange};

use super::limits::MAX_NESTING;
use crate::diag::{Class, Fault, Span, quoted};

/// Refuses text nested so deeply that parsing it, or walking or dropping its tree, could exhaust the stack.
///
/// The parser bounds `let`, `if`, lambdas and the like itself, but not lists in lists, chains of operators, or
/// chains of arguments. The tokens give an upper bound of the tree's depth.
pub fn check_nesting(file: u32, text: &str) -> Result<(), Fault> {
    struct Level {
        list: bool,
        chain: u32,
    }
    let mut levels = vec![Level { list: false, chain: 0 }];
    let mut depth = 0u32;
    let mut at = 0usize;
    for (kind, token) in rnix::tokenize(text) {
        let span = Span { file, start: at as u32, end: (at + token.len()) as u32 };
        at += token.len();
        match kind {
            TOKEN_WHITESPACE | TOKEN_COMMENT | TOKEN_STRING_CONTENT | TOKEN_STRING_END | TOKEN_DOT
            | TOKEN_ASSIGN | TOKEN_INHERIT => continue,
            TOKEN_L_BRACE | TOKEN_L_PAREN | TOKEN_L_BRACK | TOKEN_INTERPOL_START => {
                levels.push(Level { list: kind == TOKEN_L_BRACK, chain: 0 });
                depth += 1;
            }
            TOKEN_R_BRACE | TOKEN_R_PAREN | TOKEN_R_BRACK | TOKEN_INTERPOL_END => {
                if levels.len() > 1 {
                    depth -= 1 + levels.pop().map_or(0, |l| l.chain);
                }
                // The expression in the brackets is itself an argument or element.
                bump(&mut levels, &mut depth, false, |l| (l.list, &mut l.chain));
            }
            TOKEN_SEMICOLON | TOKEN_COMMA => {
                if let Some(level) = levels.last_mut() {
                    depth -= level.chain;
                    level.chain = 0;
                }
            }
            TOKEN_IDENT | TOKEN_INTEGER | TOKEN_FLOAT | TOKEN_STRING_START | TOKEN_URI | TOKEN_PATH_ABS
            | TOKEN_PATH_REL | TOKEN_PATH_HOME | TOKEN_PATH_SEARCH | TOKEN_REC | TOKEN_ELLIPSIS => {
                bump(&mut levels, &mut depth, false, |l| (l.list, &mut l.chain));
            }
            _ => bump(&mut levels, &mut depth, true, |l| (l.list, &mut l.chain)),
        }
        if depth > MAX_NESTING {
            return Err(Fault::new(Class::Limit, "this is nested too deeply")
                .at(span)
                .expected(format!(
                    "at most {MAX_NESTING} brackets, operators and arguments inside each other"
                ))
                .hint("split the expression: use `;` separated attributes, or a list"));
        }
    }
    return Ok(());

    /// Makes the chain of operators or arguments at this level longer. Elements of a list are no chain.
    fn bump<L>(levels: &mut [L], depth: &mut u32, always: bool, parts: impl Fn(&mut L) -> (bool, &mut u32)) {
        if let Some(level) = levels.last_mut() {
            let (list, chain) = parts(level);
            if always || !list {
                *chain += 1;
                *depth += 1;
            }
        }
    }
}

/// The parser's first error, in words for a reader of the file.
pub fn syntax_fault(file: u32, text: &str, error: &ParseError) -> Fault {
    let end = text.trim_end().len() as u32;
    let eof = Span { file, start: end.saturating_sub(1), end };
    let span = |range: &TextRange| {
        let (start, stop) = (u32::from(range.start()), u32::from(range.end()));
        // The range covers all skipped text; the message points at its first word.
        let skipped = &text[start as usize..stop as usize];
        let lead = (skipped.len() - skipped.trim_start().len()) as u32;
        let word = skipped.split_whitespace().next().map_or(1, str::len) as u32;
        Span { file, start: start + lead, end: start + lead + word }
    };
    let fault = Fault::new(Class::Syntax, "this is not valid Nix");
    match error {
        ParseError::UnexpectedWanted(got, range, wanted) => {
            let at = span(range);
            let mut before = text[..at.start as usize].trim_end();
            if *got == TOKEN_ASSIGN {
                // `a = 1 \n b = 2;`: the parser took `b` for an argument of 1; the `;` belongs before it.
                before = before.trim_end_matches(|c: char| !c.is_whitespace()).trim_end();
            }
            let line = before.matches('\n').count() + 1;
            let fault = fault.at(at).expected(wanted_words(wanted)).found(found_word(*got, text, at));
            if wanted.contains(&TOKEN_SEMICOLON) {
                fault.hint(format!("a `;` is probably missing at the end of line {line}"))
            } else if *got == TOKEN_SEMICOLON && wanted.contains(&TOKEN_IDENT) {
                fault.hint("a value is missing before this `;`, or the `;` is one too many")
            } else {
                fault
            }
        }
        ParseError::UnexpectedEOFWanted(wanted) => fault
            .at(eof)
            .expected(wanted_words(wanted))
            .found("the end of the file")
            .hint("a bracket or a string that is opened earlier is never closed, or a `;` is missing"),
        ParseError::UnexpectedEOF => fault
            .at(eof)
            .expected("an expression or a closing bracket")
            .found("the end of the file")
            .hint("a bracket that is opened earlier is never closed, or the file is empty"),
        ParseError::UnexpectedExtra(range) => {
            let at = span(range);
            fault.at(at).expected("the end of the file").found(found_word(TOKEN_ERROR, text, at)).hint(
                "a file holds one expression: a bracket may be closed too early, or the surrounding `{ }` missing",
            )
        }
        ParseError::UnexpectedDoubleBind(range) => {
            fault.at(span(range)).expected("one name for the whole argument").found("a second `@`")
        }
        ParseError::DuplicatedArgs(range, name) => {
            fault.at(span(range)).expected("each argument once").found(format!("{} twice", quoted(name)))
        }
        ParseError::RecursionLimitExceeded => {
            Fault::new(Class::Limit, "this file is nested too deeply").at(eof).hint("split the expression")
        }
        ParseError::Unexpected(range) => {
            let at = span(range);
            fault.at(at).expected("an expression").found(found_word(TOKEN_ERROR, text, at))
        }
        other => fault.at(eof).found(other.to_string()),
    }
}

fn found_word(kind: SyntaxKind, text: &str, at: Span) -> String {
    let word = text.get(at.start as usize..at.end as usize).unwrap_or("");
    match (kind, word) {
        (_, "") => "nothing".into(),
        (TOKEN_STRING_START, _) => "the start of a string".into(),
        (_, word) => quoted(word),
    }
}

fn wanted_words(kinds: &[SyntaxKind]) -> String {
    // An expression can start in many ways; the parser lists some of them.
    if kinds.contains(&TOKEN_L_BRACK) && kinds.contains(&TOKEN_L_PAREN) {
        return "an expression".into();
    }
    let words: Vec<&str> = kinds.iter().map(|k| kind_word(*k)).collect();
    words.join(" or ")
}

fn kind_word(kind: SyntaxKind) -> &'static str {
    match kind {
        TOKEN_SEMICOLON => "`;`",
        TOKEN_ASSIGN => "`=`",
        TOKEN_COLON => "`:`",
        TOKEN_COMMA => "`,`",
        TOKEN_AT => "`@`",
        TOKEN_DOT => "`.`",
        TOKEN_ELLIPSIS => "`...`",
        TOKEN_L_BRACE => "`{`",
        TOKEN_R_BRACE => "`}`",
        TOKEN_L_BRACK => "`[`",
        TOKEN_R_BRACK => "`]`",
        TOKEN_L_PAREN => "`(`",
        TOKEN_R_PAREN => "`)`",
        TOKEN_IDENT => "a name",
        TOKEN_OR => "`or`",
        TOKEN_THEN => "`then`",
        TOKEN_ELSE => "`else`",
        TOKEN_IN => "`in`",
        TOKEN_INTERPOL_START => "`${`",
        TOKEN_INTERPOL_END => "`}`",
        TOKEN_STRING_START => "a string",
        TOKEN_STRING_END => "the end of the string",
        TOKEN_STRING_CONTENT => "text",
        _ => "something else",
    }
}
