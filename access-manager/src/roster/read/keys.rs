//! The keys of one member: texts, key files, lists of both.

use ::roster::MAX_KEYS;

use super::{R, Reader, no_keys};
use crate::diag::{Class, Fault, Span, quoted};
use crate::nix::{ThunkId, Value};
use crate::roster::evaluated::KeySource;
use crate::ssh_keys::{self, Key};

/// The keys that were read, and where they were.
#[derive(Default)]
pub(super) struct Keys {
    pub keys: Vec<Key>,
    pub sources: Vec<KeySource>,
}

impl Keys {
    /// As in `roster.json`.
    pub fn lines(&self) -> Vec<String> {
        self.keys.iter().map(Key::line).collect()
    }
}

#[derive(Clone, Copy)]
pub(super) enum Accept {
    Both,
    Path,
    Text,
}

#[derive(Clone, Copy)]
enum Where {
    File(u32),
    Inline,
}

impl Reader<'_, '_> {
    pub(super) fn keys(
        &mut self,
        id: ThunkId,
        value: Value,
        at: Span,
        out: &mut Keys,
        member: &str,
    ) -> R<()> {
        match value {
            Value::List(items) => {
                items.iter().try_for_each(|item| self.key_value(*item, at, out, member, Accept::Both))
            }
            _ => self.key_value(id, at, out, member, Accept::Both),
        }
    }

    pub(super) fn key_value(
        &mut self,
        id: ThunkId,
        at: Span,
        out: &mut Keys,
        member: &str,
        accept: Accept,
    ) -> R<()> {
        let value = self.ev.force(id, at)?;
        let blame = self.ev.blame(id, at);
        let before = out.keys.len();
        let file = match &value {
            Value::Path(path) => Some(path.to_string()),
            _ => None,
        };
        self.one_value(&value, blame, out, member, accept)?;
        out.sources.push(KeySource { file, keys: out.keys.len() - before });
        Ok(())
    }

    fn one_value(
        &mut self,
        value: &Value,
        blame: Span,
        out: &mut Keys,
        member: &str,
        accept: Accept,
    ) -> R<()> {
        match (value, accept) {
            (Value::Path(path), Accept::Both | Accept::Path) => {
                let (file, text) = self.ev.read_for_positions(path).map_err(|f| f.at(blame))?;
                self.key_text(&text, Where::File(file), blame, out, member)?;
                if !text.lines().any(|l| !l.trim().is_empty() && !l.trim().starts_with('#')) {
                    return Err(Fault::new(
                        Class::Key,
                        format!("the key file {} holds no key", quoted(path)),
                    )
                    .at(blame)
                    .expected("at least one line such as `ssh-ed25519 AAAA… name`")
                    .found(if text.is_empty() {
                        "an empty file"
                    } else {
                        "only comments and blank lines"
                    }));
                }
                Ok(())
            }
            (Value::Str(text), Accept::Both | Accept::Text) => {
                if text.trim().is_empty() {
                    return Err(no_keys(member, blame).found("an empty string"));
                }
                self.key_text(text, Where::Inline, blame, out, member)
            }
            (other, _) => {
                Err(Fault::new(Class::Roster, format!("a key of {} has the wrong type", quoted(member)))
                    .at(blame)
                    .expected(match accept {
                        Accept::Both => "a path to a .pub file, a string with the key, or a list of these",
                        Accept::Path => "a path to a .pub file",
                        Accept::Text => "a string with the key",
                    })
                    .found(other.kind()))
            }
        }
    }

    fn key_text(&mut self, text: &str, place: Where, at: Span, out: &mut Keys, member: &str) -> R<()> {
        for (offset, key) in ssh_keys::parse(text) {
            let span = match place {
                Where::File(file) => {
                    let end = text[offset..].find('\n').map_or(text.len(), |i| offset + i);
                    Span { file, start: offset as u32, end: end as u32 }
                }
                Where::Inline => at,
            };
            let key = match key {
                Ok(key) => key,
                Err(error) => {
                    let (title, expected, hint) = error.explain();
                    let fault = Fault::new(Class::Key, title).at(span).expected(expected).hint(hint);
                    let fault = if error == ssh_keys::KeyError::PrivateKey { fault.secret() } else { fault };
                    return Err(match place {
                        Where::File(_) => fault.note(format!("it is a key of {}", quoted(member)), Some(at)),
                        Where::Inline => fault,
                    });
                }
            };
            if out.keys.len() >= MAX_KEYS {
                return Err(Fault::new(Class::Limit, format!("{} has too many keys", quoted(member)))
                    .at(span)
                    .expected(format!("at most {MAX_KEYS}")));
            }
            if out.keys.iter().any(|other| Key { comment: key.comment.clone(), ..other.clone() } == key) {
                self.warn(span, format!("{} lists the same key twice", quoted(member)));
            } else {
                out.keys.push(key);
            }
        }
        Ok(())
    }
}
