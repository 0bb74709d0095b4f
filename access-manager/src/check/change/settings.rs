//! Sentences about settings of members, of their keys, and of groups.

use std::collections::{BTreeMap, BTreeSet};

use ::roster::settings::{Kind, Layer, SETTINGS, Setting, Value};
use ::roster::words::quoted;

use super::{Effect, Told};

impl Told {
    /// Of keys that stay, come or go: a key without settings is one with none.
    pub(super) fn key_settings(
        &mut self,
        name: &str,
        before: &BTreeMap<String, Layer>,
        after: &BTreeMap<String, Layer>,
    ) {
        let none = Layer::default();
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for key in keys {
            let of = |settings: &BTreeMap<String, Layer>| settings.get(key).unwrap_or(&none).clone();
            let who = format!("the key {} of {}", quoted(key), quoted(name));
            self.settings((name, "changes-key-setting", &who), &of(before), &of(after));
        }
    }

    pub(super) fn member_settings(&mut self, name: &str, before: &Layer, after: &Layer) {
        self.settings((name, "changes-setting", &quoted(name)), before, after);
    }

    pub(super) fn group_settings(&mut self, name: &str, before: &Layer, after: &Layer) {
        let who = format!("each member of the group {}", quoted(name));
        self.settings((name, "changes-group-setting", &who), before, after);
    }

    /// `who`: the end of "sets … of".
    fn settings(&mut self, (name, kind, who): (&str, &'static str, &str), before: &Layer, after: &Layer) {
        for setting in SETTINGS {
            let what = quoted(setting.name);
            let text = match (before.get(setting.id), after.get(setting.id)) {
                (one, Some(other)) if one != Some(other) => {
                    let was = one.map_or("not set".to_owned(), |one| shown(setting, one));
                    format!(
                        "sets {what} of {who} to {} (before: {was}): {}",
                        shown(setting, other),
                        setting.help
                    )
                }
                (Some(one), None) => format!(
                    "no longer sets {what} of {who}, which was {}: an earlier level decides",
                    shown(setting, one)
                ),
                _ => continue,
            };
            self.say(Effect::Changes, kind, name, text);
        }
    }
}

fn shown(setting: &Setting, value: &Value) -> String {
    match value {
        Value::Number(number) => match setting.kind {
            Kind::Most { .. } | Kind::Amount { .. } if *number == 0 => "none".into(),
            Kind::Most { unit, .. } | Kind::Amount { unit, .. } => format!("{number} {unit}"),
            _ => number.to_string(),
        },
        Value::Words(words) if !words.is_empty() => {
            words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
        }
        value => format!("`{value}`"),
    }
}
