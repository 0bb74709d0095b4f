//! Sentences about settings of members and groups.

use ::roster::settings::{Layer, SETTINGS, Setting, Value};
use ::roster::words::quoted;

use super::{Effect, Told, Whom};

impl Told {
    pub(super) fn settings(&mut self, whom: Whom, before: &Layer, after: &Layer) {
        let (name, kind, who) = match whom {
            Whom::Member(name) => (name, "changes-setting", quoted(name)),
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
        Value::Number(0) => "none".into(),
        Value::Number(seconds) => format!("{seconds} s"),
        Value::Words(words) if !words.is_empty() => {
            words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
        }
        value => {
            debug_assert!(value.clone().check(setting).is_ok());
            format!("`{value}`")
        }
    }
}
