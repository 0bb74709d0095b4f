//! `settings` of a member or of a group, and `keySettings`, by the table that the agent has too.

use std::collections::BTreeMap;

use ::roster::MAX_KEYS;
use ::roster::settings::{Layer, Level, MAX_WORDS, SETTINGS, Setting, Value as Setted, find};

use super::{R, Reader};
use crate::diag::{Class, Fault, Span, one_of, quoted};
use crate::nix::{ThunkId, Value};

impl Reader<'_, '_> {
    /// `of` is the member or the group.
    pub(super) fn settings(&mut self, value: Value, at: Span, of: &str, level: Level) -> R<Layer> {
        let Value::Attrs(map) = value else {
            return Err(Fault::new(
                Class::Roster,
                format!("`settings` of {} must be an attribute set", quoted(of)),
            )
            .at(at)
            .expected("a set such as `{ keep-going = false; }`")
            .found(value.kind()));
        };
        let mut layer = Layer::default();
        for (name, slot) in map.iter() {
            let setting = known(name, slot.span, level)?;
            let value = self.setting(setting, slot.thunk, slot.span)?;
            let blame = self.ev.blame(slot.thunk, slot.span);
            let wrong = |why: String| Fault::new(Class::Roster, why).at(blame).expected(setting.expected());
            layer.set(setting, value).map_err(wrong)?;
        }
        Ok(layer)
    }

    /// `{ "SHA256:…" = { … }; }`. Whether these are keys of the member is known when all attributes are.
    pub(super) fn key_settings(&mut self, value: Value, at: Span, of: &str) -> R<BTreeMap<String, Layer>> {
        let Value::Attrs(map) = value else {
            return Err(Fault::new(
                Class::Roster,
                format!("`keySettings` of {} must be an attribute set", quoted(of)),
            )
            .at(at)
            .expected("a set such as `{ \"SHA256:…\" = { allow-shell = false; }; }`, by fingerprints as of `ssh-keygen -l`")
            .found(value.kind()));
        };
        if map.len() > MAX_KEYS {
            return Err(Fault::new(
                Class::Limit,
                format!("`keySettings` of {} has too many keys", quoted(of)),
            )
            .at(at)
            .expected(format!("at most {MAX_KEYS}")));
        }
        let mut settings = BTreeMap::new();
        for (key, slot) in map.iter() {
            let value = self.ev.force(slot.thunk, slot.span)?;
            let layer = self.settings(value, slot.span, of, Level::Key)?;
            settings.insert(key.to_string(), layer);
        }
        Ok(settings)
    }

    fn setting(&mut self, setting: &Setting, id: ThunkId, at: Span) -> R<Setted> {
        let wrong = |at: Span, found: String| {
            Fault::new(Class::Roster, format!("the setting {} has no such value", quoted(setting.name)))
                .at(at)
                .expected(setting.expected())
                .found(found)
        };
        let value = self.ev.force(id, at)?;
        let at = self.ev.blame(id, at);
        Ok(match value {
            Value::Bool(flag) => Setted::Flag(flag),
            Value::Int(number) => Setted::Number(number),
            Value::List(items) if items.len() > MAX_WORDS => {
                return Err(wrong(at, format!("{} names, at most {MAX_WORDS} are accepted", items.len())));
            }
            Value::List(items) => {
                let mut words = Vec::with_capacity(items.len());
                for item in items.iter() {
                    match self.ev.force(*item, at)? {
                        Value::Str(word) => words.push(word.to_string()),
                        other => return Err(wrong(self.ev.blame(*item, at), other.kind().to_owned())),
                    }
                }
                Setted::Words(words)
            }
            other => return Err(wrong(at, other.kind().to_owned())),
        })
    }
}

fn known(name: &str, at: Span, level: Level) -> R<&'static Setting> {
    let names = || {
        let names = SETTINGS.iter().filter(|setting| setting.may_be_on(level)).map(|setting| setting.name);
        one_of(&names.collect::<Vec<_>>())
    };
    // `keepGoing`, as limits are written, is what people try too.
    let dashed: String = name
        .chars()
        .flat_map(|c| c.is_ascii_uppercase().then_some('-').into_iter().chain([c.to_ascii_lowercase()]))
        .collect();
    let setting = find(name).map_err(|unknown| {
        let near = unknown.near.or_else(|| find(&dashed).ok().map(|setting| setting.name));
        let fault = Fault::new(Class::Roster, unknown.to_string()).at(at).expected(names());
        fault.found(quoted(name)).did_you_mean(near)
    })?;
    match setting.may_be_on(level) {
        true => Ok(setting),
        false => Err(Fault::new(Class::Roster, format!("the setting {} cannot be set here", quoted(name)))
            .at(at)
            .expected(names())),
    }
}
