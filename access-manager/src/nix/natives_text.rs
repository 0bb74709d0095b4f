//! Built-in functions on strings, paths and files.

use std::rc::Rc;

use super::eval::{Evaluator, R, TOP, wrong_type};
use super::value::*;
use crate::diag::{Class, Fault, Span};
use crate::source::{self, Node};

pub(super) const NATIVES: &[Native] = &[
    Native { name: "toString", arity: 1, run: to_string },
    Native { name: "stringLength", arity: 1, run: string_length },
    Native { name: "substring", arity: 3, run: substring },
    Native { name: "concatStringsSep", arity: 2, run: concat_strings_sep },
    Native { name: "replaceStrings", arity: 3, run: replace_strings },
    Native { name: "hasContext", arity: 1, run: |ev, a, at| text(ev, a, at).map(|_| Value::Bool(false)) },
    Native { name: "unsafeDiscardStringContext", arity: 1, run: text },
    Native { name: "unsafeDiscardOutputDependency", arity: 1, run: text },
    Native { name: "toJSON", arity: 1, run: to_json },
    Native { name: "fromJSON", arity: 1, run: from_json },
    Native { name: "baseNameOf", arity: 1, run: base_name_of },
    Native { name: "dirOf", arity: 1, run: dir_of },
    Native { name: "pathExists", arity: 1, run: path_exists },
    Native { name: "readFile", arity: 1, run: read_file },
    Native { name: "readDir", arity: 1, run: read_dir },
    // Not builtins of Nix. nixpkgs' `lib` defines them with regular expressions, which are not available here.
    Native { name: "lib.splitString", arity: 2, run: split_string },
    Native { name: "lib.trim", arity: 1, run: trim },
    Native { name: "lib.hasInfix", arity: 2, run: has_infix },
    Native { name: "lib.toInt", arity: 1, run: to_int },
];

impl Evaluator<'_> {
    /// The text that `toString` returns.
    pub(super) fn stringify(&mut self, value: &Value, at: Span) -> R<Rc<str>> {
        Ok(match value {
            Value::Str(s) => s.clone(),
            Value::Null | Value::Bool(false) => "".into(),
            Value::Bool(true) => "1".into(),
            Value::Int(i) => i.to_string().into(),
            Value::Float(f) => format!("{f:.6}").into(),
            Value::Path(path) if path.is_empty() => TOP.into(),
            Value::Path(path) => format!("{TOP}/{path}").into(),
            Value::List(items) => {
                let mut out = String::new();
                for (i, item) in items.iter().enumerate() {
                    let value = self.force(*item, at)?;
                    out.push_str(&self.nested(at, |ev| ev.stringify(&value, at))?);
                    // As in Nix, there is no space after an empty list inside a list.
                    if i + 1 < items.len() && !matches!(&value, Value::List(l) if l.is_empty()) {
                        out.push(' ');
                    }
                }
                self.pay_text(out.len())?;
                out.into()
            }
            Value::Attrs(map) if map.contains_key("__toString") => self.call_to_string(value, at)?,
            other => {
                return Err(wrong_type("the argument of `toString`", "text, a number, or a list", other, at));
            }
        })
    }

    pub(super) fn call_to_string(&mut self, value: &Value, at: Span) -> R<Rc<str>> {
        let Value::Attrs(map) = value else { unreachable!("the caller found `__toString` in it") };
        let f = map["__toString"].thunk;
        let this = self.done(value.clone(), at)?;
        let text = self.call_thunk(f, &[this], at)?;
        self.nested(at, |ev| ev.interpolated(&text, at))
    }
}

fn text(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    Ok(Value::Str(ev.arg_string(a[0], at, "the argument")?))
}

fn to_string(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let value = ev.force(a[0], at)?;
    let blame = ev.blame(a[0], at);
    let text = ev.stringify(&value, blame)?;
    ev.pay_text(text.len())?;
    Ok(Value::Str(text))
}

fn string_length(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    Ok(Value::Int(ev.arg_string(a[0], at, "the argument of `stringLength`")?.len() as i64))
}

/// Counts bytes, as Nix does; an end inside of a character is refused.
fn substring(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let start = ev.arg_int(a[0], at, "the start")?;
    let length = ev.arg_int(a[1], at, "the length")?;
    let text = ev.arg_string(a[2], at, "the third argument of `substring`")?;
    let start = usize::try_from(start)
        .map_err(|_| Fault::new(Class::Type, "a substring cannot start before the string").at(at))?
        .min(text.len());
    let end = match usize::try_from(length) {
        Ok(length) => start.saturating_add(length).min(text.len()),
        // As in Nix, a negative length means the rest of the text.
        Err(_) => text.len(),
    };
    match text.get(start..end) {
        Some(part) => {
            ev.pay_text(part.len())?;
            Ok(Value::string(part))
        }
        None => Err(Fault::new(Class::Unsupported, "this substring would cut a character in two").at(at)),
    }
}

fn concat_strings_sep(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let separator = ev.arg_string(a[0], at, "the separator")?;
    let items = ev.arg_list(a[1], at, "the second argument of `concatStringsSep`")?;
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&separator);
        }
        let value = ev.force(*item, at)?;
        let blame = ev.blame(*item, at);
        let piece = ev.interpolated(&value, blame)?;
        // Each piece is charged before it is appended.
        ev.pay_text(piece.len() + separator.len())?;
        out.push_str(&piece);
    }
    Ok(Value::string(out))
}

/// At each place the first pattern that matches wins; an empty pattern matches everywhere (Nix: primops.cc,
/// replaceStrings).
fn replace_strings(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let mut lists = [Vec::new(), Vec::new()];
    for (side, out) in lists.iter_mut().enumerate() {
        for item in ev.arg_list(a[side], at, "the lists for `replaceStrings`")?.iter() {
            out.push(ev.arg_string(*item, at, "an element for `replaceStrings`")?);
        }
    }
    let [from, to] = lists;
    if from.len() != to.len() {
        return Err(Fault::new(Class::Type, "`replaceStrings` needs two lists of the same length").at(at));
    }
    let text = ev.arg_string(a[2], at, "the third argument of `replaceStrings`")?;
    let mut out = String::new();
    let mut rest = &*text;
    loop {
        ev.step(1 + from.len() as u64)?;
        let found = from.iter().position(|f| rest.starts_with(&**f));
        let skip = match found {
            Some(i) => {
                ev.pay_text(to[i].len())?;
                out.push_str(&to[i]);
                from[i].len()
            }
            None => 0,
        };
        if skip > 0 {
            rest = &rest[skip..];
            continue;
        }
        let Some(c) = rest.chars().next() else { break };
        out.push(c);
        rest = &rest[c.len_utf8()..];
        if rest.is_empty() && found.is_none() && !from.iter().any(|f| f.is_empty()) {
            break;
        }
    }
    ev.pay_text(out.len())?;
    Ok(Value::string(out))
}

fn to_json(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let value = ev.force(a[0], at)?;
    let text = ev.json(&value)?.to_string();
    ev.pay_text(text.len())?;
    Ok(Value::string(text))
}

fn from_json(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let text = ev.arg_string(a[0], at, "the argument of `fromJSON`")?;
    match serde_json::from_str(&text) {
        Ok(json) => ev.value_of_json(json, at),
        Err(e) => Err(Fault::new(Class::Type, "this text is not JSON").at(at).found(e.to_string())),
    }
}

fn base_name_of(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let text = match ev.force(a[0], at)? {
        Value::Str(s) | Value::Path(s) => s,
        other => {
            return Err(wrong_type(
                "the argument of `baseNameOf`",
                "a path or a string",
                &other,
                ev.blame(a[0], at),
            ));
        }
    };
    // Nix strips one trailing slash only.
    let text = text.strip_suffix('/').unwrap_or(&text);
    Ok(Value::string(text.rsplit('/').next().unwrap_or("")))
}

fn dir_of(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    match ev.force(a[0], at)? {
        Value::Path(path) if path.is_empty() => {
            Err(Fault::new(Class::Outside, "`dirOf` leaves the repository").at(at))
        }
        Value::Path(path) => Ok(Value::Path(source::parent(&path).into())),
        Value::Str(s) => Ok(Value::string(match s.rfind('/') {
            None => ".",
            Some(0) => "/",
            Some(i) => &s[..i],
        })),
        other => Err(wrong_type("the argument of `dirOf`", "a path or a string", &other, ev.blame(a[0], at))),
    }
}

fn path_exists(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let path = ev.arg_path(a[0], at, "the argument of `pathExists`")?;
    Ok(Value::Bool(ev.find(&path).map_err(|f| f.at(at))?.is_some()))
}

fn read_file(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let path = ev.arg_path(a[0], at, "the argument of `readFile`")?;
    let blame = ev.blame(a[0], at);
    Ok(Value::Str(ev.read_data(&path).map_err(|f| f.at(blame))?))
}

fn read_dir(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let path = ev.arg_path(a[0], at, "the argument of `readDir`")?;
    let real = match ev.find(&path).map_err(|f| f.at(at))? {
        Some((real, Node::Directory)) => real,
        _ => {
            return Err(Fault::new(
                Class::File,
                format!("there is no directory {}", crate::diag::quoted(&path)),
            )
            .at(at));
        }
    };
    let mut map = AttrMap::new();
    for (name, node) in ev.list(&real).map_err(|f| f.at(at))? {
        let kind = match node {
            Node::File => "regular",
            Node::Directory => "directory",
            Node::Symlink(_) => "symlink",
            Node::Other(_) => "unknown",
        };
        let thunk = ev.done(Value::string(kind), at)?;
        map.insert(name.into(), Slot { thunk, span: at });
    }
    Ok(Value::Attrs(Rc::new(map)))
}

fn split_string(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let separator = ev.arg_string(a[0], at, "the separator")?;
    let text = ev.arg_string(a[1], at, "the second argument of `splitString`")?;
    ev.pay_text(text.len())?;
    let pieces: Vec<&str> =
        if separator.is_empty() { vec![&*text] } else { text.split(&*separator).collect() };
    let mut out = Vec::with_capacity(pieces.len());
    for piece in pieces {
        out.push(ev.done(Value::string(piece), at)?);
    }
    Ok(Value::List(Rc::new(out)))
}

fn trim(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let text = ev.arg_string(a[0], at, "the text to trim")?;
    ev.pay_text(text.len())?;
    Ok(Value::string(text.trim_matches(|c| matches!(c, ' ' | '\t' | '\r' | '\n'))))
}

fn has_infix(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let infix = ev.arg_string(a[0], at, "the text to look for")?;
    let text = ev.arg_string(a[1], at, "the text to look in")?;
    ev.pay_text(text.len())?;
    Ok(Value::Bool(text.contains(&*infix)))
}

fn to_int(ev: &mut Evaluator, a: &[ThunkId], at: Span) -> R<Value> {
    let text = ev.arg_string(a[0], at, "the argument of `toInt`")?;
    match text.trim().parse() {
        Ok(i) => Ok(Value::Int(i)),
        Err(_) => {
            Err(Fault::new(Class::Type, format!("{} is not an integer", crate::diag::quoted(&text))).at(at))
        }
    }
}
