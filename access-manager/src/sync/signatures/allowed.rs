//! The file of allowed signers: ssh-keygen(1), ALLOWED SIGNERS.
//!
//! The operator writes it, or it is part of an image. A line that is not understood refuses the whole file: leaving it out
//! could only be noticed by the commits that are refused. Certificate authorities are not supported, and say so.

use roster::date::Moment;
use roster::keys::{self, KEY_TYPES};
use roster::words::quoted;
use ssh_key::public::KeyData;
use wildmatch::WildMatch;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Signer {
    /// For people; any signer may sign for any author, as with `git verify-commit`.
    pub principals: String,
    pub key: KeyData,
    /// Patterns; `None` allows all.
    namespaces: Option<Vec<String>>,
    after: Option<Moment>,
    before: Option<Moment>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct AllowedError {
    pub line: usize,
    pub why: String,
}

impl Signer {
    /// Whether the signer's options allow a signature of this time. `Err` continues "whose".
    pub fn may_sign(&self, namespace: &str, at: u64) -> Result<(), String> {
        if let Some(patterns) = &self.namespaces
            && !patterns.iter().any(|pattern| WildMatch::new(pattern).matches(namespace))
        {
            return Err(format!("namespaces are {}, without {namespace}", quoted(&patterns.join(","))));
        }
        if let Some(after) = self.after.filter(|after| at < after.0) {
            return Err(format!("valid-after {after} is later than the commit"));
        }
        match self.before.filter(|before| at >= before.0) {
            Some(before) => Err(format!("valid-before {before} is earlier than the commit")),
            None => Ok(()),
        }
    }
}

/// All signers of the file.
pub fn parse(text: &str) -> Result<Vec<Signer>, AllowedError> {
    let mut signers = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        signers.push(signer(line).map_err(|why| AllowedError { line: number + 1, why })?);
    }
    Ok(signers)
}

fn signer(line: &str) -> Result<Signer, String> {
    let (principals, rest) = field(line)?;
    let principals = principals.trim_matches('"').to_owned();
    if principals.is_empty() || KEY_TYPES.contains(&principals.as_str()) {
        return Err("there is no name in front of the key".into());
    }
    if rest.is_empty() {
        return Err("there is no key after the name".into());
    }
    let (mut namespaces, mut after, mut before) = (None, None, None);
    let mut key = rest;
    if !is_key(rest) {
        let (options, after_options) = field(rest)?;
        key = after_options;
        for option in options_of(options) {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name.to_ascii_lowercase(), Some(value)),
                None => (option.to_ascii_lowercase(), None),
            };
            match name.as_str() {
                "namespaces" => once(&mut namespaces, &name, value, patterns)?,
                "valid-after" => once(&mut after, &name, value, moment)?,
                "valid-before" => once(&mut before, &name, value, moment)?,
                "cert-authority" => {
                    return Err("`cert-authority` is not supported: list the keys of the signers".into());
                }
                _ => return Err(format!("{} is not an option of a signer", quoted(option))),
            }
        }
    }
    if !is_key(key) {
        return Err(format!("{} is not a key with its type", quoted(key)));
    }
    let key = keys::parse_line(key).map_err(|error| error.explain().0)?.data;
    Ok(Signer { principals, key, namespaces, after, before })
}

fn is_key(text: &str) -> bool {
    text.split_whitespace().next().is_some_and(|word| KEY_TYPES.contains(&word))
}

/// The first field and what follows it. A field may have blanks between quotes.
fn field(text: &str) -> Result<(&str, &str), String> {
    let mut quoted = false;
    for (i, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => return Ok((&text[..i], text[i..].trim_start())),
            _ => {}
        }
    }
    match quoted {
        true => Err("a quote is not closed".into()),
        false => Ok((text, "")),
    }
}

/// The options of a field: commas separate them, except between quotes.
fn options_of(field: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    field.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

fn once<T>(
    place: &mut Option<T>,
    name: &str,
    value: Option<&str>,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<(), String> {
    if place.is_some() {
        return Err(format!("`{name}` is there twice"));
    }
    let inside = value.and_then(|value| value.strip_prefix('"')?.strip_suffix('"'));
    let inside = inside.ok_or_else(|| format!("`{name}` needs a value in quotes"))?;
    *place = Some(read(inside)?);
    Ok(())
}

fn patterns(text: &str) -> Result<Vec<String>, String> {
    let patterns: Vec<String> = text.split(',').map(|pattern| pattern.trim().to_owned()).collect();
    match patterns.iter().find(|pattern| pattern.is_empty() || pattern.starts_with('!')) {
        Some(pattern) => Err(format!("{} is not a namespace or a pattern of namespaces", quoted(pattern))),
        None => Ok(patterns),
    }
}

/// ssh-keygen reads a time without `Z` in the machine's time zone; a box's time zone is UTC.
fn moment(text: &str) -> Result<Moment, String> {
    Moment::parse(text).ok_or_else(|| format!("{} is not a time such as 20270131Z", quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_keys::{A, B};

    fn one(line: &str) -> Signer {
        let mut signers = parse(line).expect(line);
        assert_eq!(signers.len(), 1);
        signers.remove(0)
    }

    #[test]
    fn a_signer_may_sign_what_the_options_say_and_at_their_times() {
        let free = one(&format!("alice@example.org {A} a comment"));
        assert_eq!((free.principals.as_str(), free.may_sign("git", 5)), ("alice@example.org", Ok(())));
        let bound = one(&format!(
            "\"bob,bob b@x\" namespaces=\"file,g?t\",valid-after=\"20200101Z\",Valid-Before=\"202101010000Z\" {B}"
        ));
        assert_eq!(bound.principals, "bob,bob b@x");
        for (namespace, at, may) in [
            ("git", 1_577_836_800, true),
            ("git", 1_577_836_799, false),
            ("git", 1_609_459_199, true),
            ("git", 1_609_459_200, false),
            ("ssh", 1_577_836_800, false),
        ] {
            assert_eq!(bound.may_sign(namespace, at).is_ok(), may, "{namespace} {at}");
        }
        assert_eq!(parse(&format!("# nobody\n\n* {A}\r\n\t* {B}\n")).map(|signers| signers.len()), Ok(2));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (line, says) in [
            (format!("alice cert-authority {A}"), "list the keys"),
            (format!("alice namespaces=git {A}"), "value in quotes"),
            (format!("alice namespaces=\"!git\" {A}"), "not a namespace"),
            (format!("alice namespaces=\"git\",namespaces=\"x\" {A}"), "twice"),
            (format!("alice valid-after=\"tomorrow\" {A}"), "not a time"),
            (format!("alice verify-required {A}"), "not an option"),
            (format!("alice \"open {A}"), "not closed"),
            (A.to_owned(), "no name in front"),
            ("alice".to_owned(), "no key after the name"),
            ("alice ssh-ed25519 AAAA".to_owned(), ""),
        ] {
            let error = parse(&format!("* {B}\n{line}")).expect_err(&line);
            assert!(error.line == 2 && error.why.contains(says), "{line}: {error}");
        }
    }
}
