//! Rust source text as tokens, as far as its paths need them: names, `::` and other signs.
//!
//! Comments, literals and attributes are dropped, and so is code for tests (`#[cfg(test)]`) and for processors that
//! the project does not run on yet (`#[cfg(not(target_arch = …))]`).
//! Not here: what the tokens mean (`modules`).

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    Name(String),
    /// `::`
    Path,
    Sign(char),
}

impl Token {
    pub fn is(&self, sign: char) -> bool {
        *self == Self::Sign(sign)
    }

    pub fn name(&self) -> Option<&str> {
        if let Self::Name(name) = self { Some(name) } else { None }
    }
}

/// The tokens of the program, without its tests.
pub fn program(source: &str) -> Vec<Token> {
    let all = tokens(source);
    let (mut kept, mut rest) = (Vec::new(), &all[..]);
    while let Some((first, after)) = rest.split_first() {
        if let Some(length) = attribute(rest) {
            let has = |word: &str| rest[..length].iter().any(|token| token.name() == Some(word));
            let is_of_tests = has("test") && !has("not");
            let is_of_others = has("target_arch") && has("not");
            let is_left_out = has("cfg") && (is_of_tests || is_of_others);
            rest = &rest[length..];
            if is_left_out {
                rest = &rest[item(rest)..];
            }
        } else {
            kept.push(first.clone());
            rest = after;
        }
    }
    kept
}

/// The length of the attribute at the beginning, `#[…]` or `#![…]`, if there is one.
fn attribute(code: &[Token]) -> Option<usize> {
    let open = if code.get(1)?.is('!') { 2 } else { 1 };
    (code[0].is('#') && code.get(open)?.is('[')).then(|| open + block(&code[open..]))
}

/// The length of the block at the beginning: from a bracket to the one that closes it.
pub fn block(code: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in code.iter().enumerate() {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// The length of the item at the beginning, with its attributes: it ends with a block or a semicolon.
fn item(code: &[Token]) -> usize {
    let mut at = 0;
    while let Some(token) = code.get(at) {
        match token {
            Token::Sign(';') => return at + 1,
            Token::Sign('{') => return at + block(&code[at..]),
            Token::Sign('(' | '[') => at += block(&code[at..]),
            _ => at += 1,
        }
    }
    at
}

fn tokens(source: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if rest.starts_with("b'") {
            1 + quote(&rest[1..])
        } else if first == '\'' {
            quote(rest)
        } else if rest.starts_with("::") {
            found.push(Token::Path);
            2
        } else if is_of_name(first) {
            // `r#type` is the name `type`.
            let start = if rest.starts_with("r#") { 2 } else { 0 };
            let length = rest[start..].find(|c| !is_of_name(c)).map_or(rest.len(), |end| start + end);
            found.push(Token::Name(rest[start..length].to_owned()));
            length
        } else {
            if !first.is_whitespace() {
                found.push(Token::Sign(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    found
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The length of a block comment, which can contain others.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal of any kind: `"…"`, `b"…"`, `c"…"`, `r#"…"#`.
fn string(text: &str) -> Option<usize> {
    let prefix = text.find(|c| !matches!(c, 'b' | 'c' | 'r'))?;
    if prefix > 2 {
        return None;
    }
    let is_raw = text[..prefix].contains('r');
    let hashes = text[prefix..].len() - text[prefix..].trim_start_matches('#').len();
    let body = text[prefix + hashes..].strip_prefix('"')?;
    if hashes > 0 && !is_raw {
        return None;
    }
    let end = if is_raw {
        body.find(&format!("\"{}", "#".repeat(hashes)))?
    } else {
        let mut escaped = false;
        body.find(|c| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        })?
    };
    Some(prefix + hashes + 1 + end + 1 + hashes)
}

/// The length of a character literal; of a lifetime only the length of its quote.
fn quote(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            let escaped = chars.next().map_or(text.len(), |(at, c)| at + c.len_utf8());
            text[escaped..].find('\'').map_or(text.len(), |end| escaped + end + 1)
        }
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

#[test]
fn comments_literals_attributes_and_tests_have_no_names() {
    let source = r##"
        // one::two
        /* three /* four */ five */
        let a = "six \" seven"; let b = r#"eight " nine"#; let c = b'x'; let d = '\''; let e: &'static str;
        #[derive(Ten)] struct Eleven;
        #[cfg(test)] #[allow(twelve)] mod thirteen { fn f() -> [u8; 2] { [0, 0] } }
        #[cfg(not(test))] use a::r#type;
    "##;
    let code = program(source);
    let names: Vec<&str> = code.iter().filter_map(Token::name).collect();
    let let_ = ["let", "a", "let", "b", "let", "c", "let", "d", "let", "e", "static", "str"];
    assert_eq!(names, [&let_[..], &["struct", "Eleven", "use", "a", "type"]].concat());
}
