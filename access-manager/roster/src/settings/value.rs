//! A value of a setting.

use serde::Serialize;

use super::table::{Kind, Setting};
use crate::words::quoted;

/// Words in one list. A roster of rules is shorter.
pub const MAX_WORDS: usize = 100;
/// Longest word, in bytes: the longest name of a store path (Nix: `StorePath::MaxPathLen`).
const MAX_WORD: usize = 211;

/// Words in one list of tags, and the longest of them in bytes. Each is in a line of the log.
pub const MAX_TAGS: usize = 20;
pub const MAX_TAG: usize = 40;

/// URLs in one list of caches, keys in one list, and the longest of either in bytes.
const MAX_CACHES: usize = 5;
const MAX_CACHE_KEYS: usize = 10;
const MAX_CACHE: usize = 256;

/// Longest address of a source, in bytes.
const MAX_SOURCE: usize = 512;
/// What the name of an archive ends with; `tar` finds out how it is compressed.
const ARCHIVES: [&str; 8] = [".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst", ".tzst"];

/// A value. Its JSON is a boolean, a number, a text or a list of texts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Value {
    Flag(bool),
    Number(i64),
    Text(String),
    Words(Vec<String>),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Flag(flag) => write!(f, "{flag}"),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) if text.is_empty() => f.write_str("none"),
            Value::Text(text) => f.write_str(text),
            Value::Words(words) if words.is_empty() => f.write_str("none"),
            Value::Words(words) => f.write_str(&words.join(" ")),
        }
    }
}

impl Value {
    /// `Err` says what the setting expects and what it got.
    pub fn check(self, setting: &Setting) -> Result<Value, String> {
        let wrong = |found: String| Err(wrong(setting, &found));
        match (&setting.kind, &self) {
            (Kind::Flag { .. }, Value::Flag(_)) => {}
            (
                Kind::Most { smallest, largest, .. } | Kind::Amount { smallest, largest, .. },
                Value::Number(number),
            ) if *number == 0 || (*smallest..=*largest).contains(number) => {}
            (Kind::Count { largest, .. }, Value::Number(number)) if (0..=*largest).contains(number) => {}
            (Kind::Rank { largest }, Value::Number(number))
                if number.unsigned_abs() <= largest.unsigned_abs() => {}
            (Kind::Source, Value::Text(text)) if text.is_empty() || is_source(text) => {}
            // A password must not be repeated.
            (Kind::Source, Value::Text(_)) => return wrong("the text that is there".into()),
            (Kind::Tags, Value::Words(words)) => {
                if words.len() > MAX_TAGS {
                    return wrong(format!("{} words, at most {MAX_TAGS} are accepted", words.len()));
                }
                if let Some(word) = words.iter().find(|word| !is_tag(word)) {
                    return wrong(format!(
                        "{}: a word has 1 to {MAX_TAG} letters, digits or one of `+-._=:/@`",
                        quoted(word)
                    ));
                }
            }
            (Kind::Caches, Value::Words(words)) => {
                if words.len() > MAX_CACHES {
                    return wrong(format!("{} URLs, at most {MAX_CACHES} are accepted", words.len()));
                }
                if let Some(word) = words.iter().find(|word| !is_cache(word)) {
                    return wrong(quoted(word));
                }
            }
            (Kind::CacheKeys, Value::Words(words)) => {
                if words.len() > MAX_CACHE_KEYS {
                    return wrong(format!("{} keys, at most {MAX_CACHE_KEYS} are accepted", words.len()));
                }
                if let Some(word) = words.iter().find(|word| !is_cache_key(word)) {
                    return wrong(quoted(word));
                }
            }
            (Kind::Globs, Value::Words(words)) => {
                if words.len() > MAX_WORDS {
                    return wrong(format!("{} names, at most {MAX_WORDS} are accepted", words.len()));
                }
                if let Some(word) = words.iter().find(|word| !is_glob(word)) {
                    return wrong(format!("{}, which no store path can be called", quoted(word)));
                }
            }
            (_, value) => return wrong(quoted(&value.to_string())),
        }
        Ok(self)
    }

    /// A value in `roster.json`.
    pub fn from_json(setting: &Setting, json: &serde_json::Value) -> Result<Value, String> {
        let value = match json {
            serde_json::Value::Bool(flag) => Some(Value::Flag(*flag)),
            serde_json::Value::Number(number) => number.as_i64().map(Value::Number),
            serde_json::Value::String(text) if setting.kind == Kind::Source => {
                Some(Value::Text(text.clone()))
            }
            serde_json::Value::Array(items) if items.len() > MAX_WORDS => {
                return Err(wrong(setting, &format!("{} values", items.len())));
            }
            serde_json::Value::Array(items) => {
                let words = items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>();
                words.map(Value::Words)
            }
            _ => None,
        };
        value.ok_or_else(|| wrong(setting, &quoted(&json.to_string())))?.check(setting)
    }

    /// A value in a variable. A flag is written as Nix writes a boolean into a derivation, or as a word; the words of a
    /// list are separated by spaces or commas.
    pub fn from_text(setting: &Setting, text: &str) -> Result<Value, String> {
        let value = match setting.kind {
            Kind::Flag { .. } => match text {
                "true" | "1" | "yes" => Some(Value::Flag(true)),
                "false" | "0" | "no" | "" => Some(Value::Flag(false)),
                _ => None,
            },
            // Not what `i64` accepts besides: a plus.
            Kind::Most { .. } | Kind::Amount { .. } | Kind::Count { .. } | Kind::Rank { .. } => {
                text.parse().ok().filter(|_| !text.starts_with('+')).map(Value::Number)
            }
            Kind::Source => Some(Value::Text(text.to_owned())),
            Kind::Globs | Kind::Tags | Kind::Caches | Kind::CacheKeys => {
                let words = text.split([' ', '\t', '\n', ',']).filter(|word| !word.is_empty());
                Some(Value::Words(words.take(MAX_WORDS + 1).map(str::to_owned).collect()))
            }
        };
        value.ok_or_else(|| wrong(setting, &quoted(text)))?.check(setting)
    }
}

fn wrong(setting: &Setting, found: &str) -> String {
    format!("the setting `{}` must be {}, not {found}", setting.name, setting.expected())
}

/// Characters of names of store paths (Nix: `checkName`), and the two that stand for others.
fn is_glob(word: &str) -> bool {
    (1..=MAX_WORD).contains(&word.len())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=*".contains(&byte))
}

fn is_tag(word: &str) -> bool {
    (1..=MAX_TAG).contains(&word.len())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._=:/@".contains(&byte))
}

/// As far as it can be seen without a parser of URLs; the agent has one.
fn is_cache(word: &str) -> bool {
    let rest = word.strip_prefix("https://").or_else(|| word.strip_prefix("http://"));
    word.len() <= MAX_CACHE
        && rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('@'))
        && word.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'\\`<>".contains(&byte))
}

/// Whether the address of a source is that of an archive, and not of a git repository.
pub fn is_archive(source: &str) -> bool {
    let path = source.split(['?', '#']).next().unwrap_or_default();
    source.starts_with("https://") && ARCHIVES.iter().any(|ending| path.ends_with(ending))
}

/// An address that means the same to git, curl and a shell that has it between single quotes: a scheme that fetches and runs
/// nothing, a host that is no option, and characters that are not special. A password would be shown to whoever reads the roster.
fn is_source(text: &str) -> bool {
    let schemes = ["https://", "ssh://", "git://"];
    let Some(rest) = schemes.iter().find_map(|scheme| text.strip_prefix(scheme)) else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    text.len() <= MAX_SOURCE
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-._~:/?#[]@!&()*,;=%".contains(&byte))
        && !user.contains(':')
        && ![user, host].iter().any(|part| part.starts_with('-'))
        && host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && rest.len() > authority.len() + 1
}

/// A name, and the base64 of the 32 bytes of an ed25519 key.
fn is_cache_key(word: &str) -> bool {
    let Some((name, key)) = word.split_once(':') else { return false };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
    (1..=MAX_CACHE - 45).contains(&name.len())
        && name.bytes().all(is_name)
        && key.len() == 44
        && key.strip_suffix('=').is_some_and(|key| key.bytes().all(is_base64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::find;

    #[test]
    fn a_text_is_a_value_of_the_kind_of_its_setting_or_refused_by_name() {
        let read = |name: &str, text: &str| Value::from_text(find(name).expect(name), text);
        for (text, flag) in [("true", true), ("1", true), ("false", false), ("0", false), ("", false)] {
            assert_eq!(read("keep-going", text), Ok(Value::Flag(flag)), "{text:?}");
        }
        assert_eq!(read("timeout", "600"), Ok(Value::Number(600)));
        assert_eq!(read("priority", "-100"), Ok(Value::Number(-100)));
        assert_eq!(
            (read("max-mem", "64"), read("max-mem", "0")),
            (Ok(Value::Number(64)), Ok(Value::Number(0)))
        );
        assert_eq!(read("tags", "ci:nightly x/y"), Ok(Value::Words(vec!["ci:nightly".into(), "x/y".into()])));
        assert!(read("tags", &"a ".repeat(MAX_TAGS + 1)).is_err());
        let cache = "https://cache.example.org:8443/a?priority=1";
        assert_eq!(read("substituters", cache), Ok(Value::Words(vec![cache.into()])));
        let key = format!("cache.example.org-1:{}=", "A".repeat(43));
        assert_eq!(read("trusted-public-keys", &key), Ok(Value::Words(vec![key])));
        for source in [
            "",
            "https://git.example.org/me/dotfiles",
            "ssh://git@git.example.org:2222/~me/x.git",
            "git://[::1]/x",
        ] {
            assert_eq!(read("dotfiles", source), Ok(Value::Text(source.into())), "{source}");
            assert!(!is_archive(source), "{source}");
        }
        assert!(
            is_archive("https://example.org/dotfiles.tar.gz?x=1") && is_archive("https://example.org/x.tar")
        );
        let words = Value::Words(vec!["a*".into(), "b-?".into()]);
        assert_eq!(read("never-substitute", " a*, b-?\n"), Ok(words));
        for (name, text) in [
            ("keep-going", "maybe"),
            ("keep-going", "TRUE"),
            ("timeout", ""),
            ("timeout", "+5"),
            ("timeout", "5 min"),
            ("timeout", "-5"),
            ("max-mem", "63"),
            ("max-cpu", "256"),
            ("min-mem", "63"),
            ("max-build-restarts", "11"),
            ("max-build-restarts", "-1"),
            ("priority", "101"),
            ("priority", "-101"),
            ("priority", "-9223372036854775808"),
            ("priority", "high"),
            ("tags", "a\u{1b}[2J"),
            ("tags", "a\"b"),
            ("timeout", "99999999"),
            ("timeout", "99999999999999999999999"),
            ("substituters", "file:///etc"),
            ("substituters", "ssh-ng://box"),
            ("substituters", "https://me:secret@cache"),
            ("substituters", "https://a/\u{1b}[2J"),
            ("substituters", "https://a https://b https://c https://d https://e https://f"),
            ("trusted-public-keys", "cache-1"),
            ("trusted-public-keys", "cache-1:AAAA"),
            ("dotfiles", "git.example.org:me/dotfiles"),
            ("dotfiles", "http://git.example.org/me"),
            ("dotfiles", "file:///etc"),
            ("dotfiles", "ext::sh -c id"),
            ("dotfiles", "--upload-pack=id"),
            ("dotfiles", "ssh://-oProxyCommand=id/x"),
            ("dotfiles", "ssh://-l@git.example.org/x"),
            ("dotfiles", "https://me:secret@git.example.org/x"),
            ("dotfiles", "https://git.example.org"),
            ("dotfiles", "https://git.example.org/a b"),
            ("dotfiles", "https://git.example.org/';id;'"),
            ("dotfiles", "https://git.example.org/$(id)"),
            ("dotfiles", "https://git.example.org/\u{1b}[2J"),
            ("never-substitute", "a/b"),
            ("never-substitute", "\u{1b}[2J"),
        ] {
            let why = read(name, text).expect_err(text);
            assert!(why.starts_with(&format!("the setting `{name}` must be ")) && why.len() < 400, "{why}");
            assert!(!why.contains('\u{1b}') && !why.contains("secret@git"), "{why}");
        }
        let many = "a ".repeat(MAX_WORDS + 1);
        assert!(read("never-substitute", &many).is_err() && read("never-substitute", &many[2..]).is_ok());
        assert!(read("never-substitute", &"a".repeat(MAX_WORD + 1)).is_err());
        assert!(read("dotfiles", &format!("https://example.org/{}", "a".repeat(MAX_SOURCE))).is_err());
    }
}
