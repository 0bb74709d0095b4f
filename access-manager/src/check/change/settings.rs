//! Sentences about settings of members and groups.

use std::collections::BTreeSet;

use ::roster::Member;
use ::roster::settings::{Kind, Layer, SETTINGS, Setting, Value};
use ::roster::words::quoted;

use super::{Effect, Told, Whom};

impl Told {
    /// Of keys that stay, come or go: a key without settings is one with none.
    pub(super) fn key_settings(&mut self, before: &Member, after: &Member) {
        let none = Layer::default();
        let keys: BTreeSet<&String> = before.key_settings.keys().chain(after.key_settings.keys()).collect();
        for key in keys {
            let of = |member: &Member| member.key_settings.get(key).unwrap_or(&none).clone();
            self.settings(Whom::Key(&after.name, key), &of(before), &of(after));
        }
    }

    pub(super) fn settings(&mut self, whom: Whom, before: &Layer, after: &Layer) {
        let (name, kind, who) = match whom {
            Whom::Member(name) => (name, "changes-setting", quoted(name)),
            Whom::Key(name, key) => {
                (name, "changes-key-setting", format!("the key {} of {}", quoted(key), quoted(name)))
            }
            Whom::Group(name) => {
                (name, "changes-group-setting", format!("each member of the group {}", quoted(name)))
            }
        };
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
            Kind::Most { .. } if *number == 0 => "none".into(),
            Kind::Most { unit, .. } => format!("{number} {unit}"),
            _ => number.to_string(),
        },
        Value::Words(words) if !words.is_empty() => {
            words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
        }
        value => {
            debug_assert!(value.clone().check(setting).is_ok());
            format!("`{value}`")
        }
    }
}
