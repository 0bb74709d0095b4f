//! Structured attributes: `.attrs.json` and `.attrs.sh`, byte for byte as Nix writes them.
//!
//! The attributes are a client's JSON (`__json`). Nix parses it and writes it again: names are sorted, of equal names
//! the last one stays, numbers are written in Nix's own format ([`nix::numbers`]). Sources: Nix, `ParsedDerivation` and
//! `writeStructuredAttrsShell` (src/libstore/parsed-derivations.cc; derivation-options.cc and structured attributes
//! since 2.31).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use nix::numbers::Number;
use nix::placeholders::Placeholders;
use nix_derivation::StorePath;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::graphs::Graphs;

/// Limit on the values in one derivation's attributes, not counting names: each takes a hundred bytes when parsed. The
/// largest in nixpkgs have some thousands.
const MAX_VALUES: usize = 250_000;

/// Memory of one value besides its text.
const VALUE_BYTES: u64 = 128;

/// A derivation's `__json`.
#[derive(Debug)]
pub struct Attributes {
    raw: Vec<u8>,
    values: usize,
    /// Parsed at the first use: a plan holds thousands of derivations and reads the attributes of few.
    object: OnceLock<Map<String, Value>>,
}

impl Attributes {
    /// Fails on JSON that Nix does not accept, and on too many values.
    pub fn parse(raw: Vec<u8>) -> Result<Self, String> {
        let bad = |why: String| format!("its structured attributes (__json) are not valid: {why}");
        let values = count(&raw);
        if values > MAX_VALUES {
            return Err(bad(format!("they have more than {MAX_VALUES} values")));
        }
        serde_json::from_slice::<Checked>(&raw).map_err(|error| bad(error.to_string()))?;
        Ok(Self { raw, values, object: OnceLock::new() })
    }

    /// Memory of the attributes once they are parsed.
    #[must_use]
    pub fn memory(&self) -> u64 {
        2 * self.raw.len() as u64 + self.values as u64 * VALUE_BYTES
    }

    /// The text as the client sent it.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// One attribute.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.object().get(name)
    }

    /// The attributes whose names `wanted` accepts, in order of name.
    pub fn of(&self, wanted: fn(&str) -> bool) -> impl Iterator<Item = (&str, &Value)> {
        self.object().iter().filter(move |(name, _)| wanted(name)).map(|(name, value)| (name.as_str(), value))
    }

    fn object(&self) -> &Map<String, Value> {
        // `parse` has checked that the text is an object.
        self.object.get_or_init(|| serde_json::from_slice(&self.raw).unwrap_or_default())
    }
}

/// Checks that the text is an object, without keeping it.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Self;

    fn expecting(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        while members.next_entry::<Cow<'de, str>, Value>()?.is_some() {}
        Ok(Self)
    }
}

/// An upper bound of the number of values. The text may turn out not to be JSON.
fn count(json: &[u8]) -> usize {
    let (mut values, mut in_string, mut escaped) = (1, false, false);
    for byte in json {
        match (in_string, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, _, b'\\') => escaped = true,
            (_, _, b'"') => in_string = !in_string,
            (false, _, b',' | b'[' | b'{') => values += 1,
            _ => {}
        }
    }
    values
}

/// `.attrs.json` and `.attrs.sh`.
pub(super) struct Files {
    pub json: Vec<u8>,
    pub shell: Vec<u8>,
}

/// One attribute, in the form in which the builder gets it.
enum Attribute<'a> {
    Own(&'a Value),
    Outputs(&'a BTreeMap<String, StorePath>),
    /// JSON.
    Graph(&'a [u8]),
}

/// The two files for these attributes, graphs and output paths.
pub(super) fn files(
    attrs: &Attributes,
    graphs: &Graphs,
    outputs: &BTreeMap<String, StorePath>,
    placeholders: &Placeholders,
) -> Result<Files, String> {
    let mut all: BTreeMap<&str, Attribute<'_>> =
        attrs.object().iter().map(|(name, value)| (name.as_str(), Attribute::Own(value))).collect();
    all.insert("outputs", Attribute::Outputs(outputs));
    for (name, graph) in graphs {
        if name == "outputs" {
            return Err("a graph of 'exportReferencesGraph' cannot be called 'outputs'".into());
        }
        all.insert(name, Attribute::Graph(graph));
    }
    let mut json = Vec::new();
    object(&mut json, all.iter().map(|(name, attribute)| (*name, attribute)), |json, attribute| {
        match attribute {
            Attribute::Own(own) => return value(json, own),
            Attribute::Graph(graph) => json.extend_from_slice(graph),
            Attribute::Outputs(outputs) => {
                let outputs = outputs.iter().map(|(name, path)| (name.as_str(), path));
                object(json, outputs, |json, path| {
                    string(json, &path.to_absolute_path());
                    Ok(())
                })?;
            }
        }
        Ok(())
    })?;
    let mut shell = Vec::new();
    for (name, attribute) in all.iter().filter(|(name, _)| is_variable(name)) {
        let words = match attribute {
            Attribute::Own(own) => declared(own)?,
            // The shell file leaves out a list of objects; an empty list is an array.
            Attribute::Graph(graph) => (*graph == b"[]").then(|| ("-a ", "()".to_owned())),
            Attribute::Outputs(outputs) => {
                let one = |(name, path): (&String, &StorePath)| {
                    format!("[{}]={} ", quoted(name), quoted(&path.to_absolute_path()))
                };
                Some(("-A ", format!("({})", outputs.iter().map(one).collect::<String>())))
            }
        };
        if let Some((kind, words)) = words {
            shell.extend(format!("declare {kind}{name}={words}\n").bytes());
        }
    }
    Ok(Files { json: placeholders.filled(json), shell: placeholders.filled(shell) })
}

/// The kind of variable and its value; `None` for a value that bash cannot express.
fn declared(value: &Value) -> Result<Option<(&'static str, String)>, String> {
    Ok(match value {
        Value::Array(values) => {
            let words: Option<Vec<String>> = values.iter().map(simple).collect::<Result<_, _>>()?;
            words.map(|words| {
                ("-a ", format!("({})", words.into_iter().map(|word| word + " ").collect::<String>()))
            })
        }
        Value::Object(values) => {
            let one = |(name, value): (&String, &Value)| {
                simple(value).map(|word| word.map(|word| format!("[{}]={word} ", quoted(name))))
            };
            let words: Option<Vec<String>> = values.iter().map(one).collect::<Result<_, _>>()?;
            words.map(|words| ("-A ", format!("({})", words.concat())))
        }
        other => simple(other)?.map(|word| ("", word)),
    })
}

/// A value as one word for the shell.
fn simple(value: &Value) -> Result<Option<String>, String> {
    Ok(match value {
        Value::String(text) => Some(quoted(text)),
        Value::Number(text) => number(text)?.shell(),
        Value::Null => Some("''".into()),
        Value::Bool(true) => Some("1".into()),
        Value::Bool(false) => Some(String::new()),
        Value::Array(_) | Value::Object(_) => None,
    })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `[A-Za-z_][A-Za-z0-9_]*`
fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(plain) && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn number(number: &serde_json::Number) -> Result<Number, String> {
    Number::parse(number.as_str())
        .ok_or_else(|| format!("the number {number} in its structured attributes is out of range"))
}

fn value(json: &mut Vec<u8>, of: &Value) -> Result<(), String> {
    match of {
        Value::Null => json.extend(b"null"),
        Value::Bool(true) => json.extend(b"true"),
        Value::Bool(false) => json.extend(b"false"),
        Value::Number(text) => json.extend(number(text)?.json().bytes()),
        Value::String(text) => string(json, text),
        Value::Array(values) => {
            json.push(b'[');
            for (i, of) in values.iter().enumerate() {
                if i > 0 {
                    json.push(b',');
                }
                value(json, of)?;
            }
            json.push(b']');
        }
        Value::Object(values) => {
            object(json, values.iter().map(|(name, of)| (name.as_str(), of)), value)?;
        }
    }
    Ok(())
}

fn object<'a, T>(
    json: &mut Vec<u8>,
    members: impl Iterator<Item = (&'a str, T)>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), String>,
) -> Result<(), String> {
    json.push(b'{');
    for (i, (name, of)) in members.enumerate() {
        if i > 0 {
            json.push(b',');
        }
        string(json, name);
        json.push(b':');
        write(json, of)?;
    }
    json.push(b'}');
    Ok(())
}

/// Both libraries escape the same characters: quotes, backslashes and those below a space.
fn string(json: &mut Vec<u8>, text: &str) {
    json.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => json.extend(br#"\""#),
            b'\\' => json.extend(br"\\"),
            0x08 => json.extend(br"\b"),
            0x0c => json.extend(br"\f"),
            b'\n' => json.extend(br"\n"),
            b'\r' => json.extend(br"\r"),
            b'\t' => json.extend(br"\t"),
            0..0x20 => json.extend(format!("\\u{byte:04x}").bytes()),
            _ => json.push(byte),
        }
    }
    json.push(b'"');
}
