//! What one level says: some settings with their values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::Error;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::table::{Id, Level, SETTINGS, Setting, find};
use super::value::Value;

/// Settings of one level, each of which has been checked. A copy shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer(Arc<BTreeMap<Id, Value>>);

impl Layer {
    pub fn get(&self, id: Id) -> Option<&Value> {
        self.0.get(&id)
    }

    /// `Err` names the setting and says what it expects.
    pub fn set(&mut self, setting: &Setting, value: Value) -> Result<(), String> {
        let value = value.check(setting)?;
        Arc::make_mut(&mut self.0).insert(setting.id, value);
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Setting, &Value)> {
        self.0.iter().map(|(id, value)| (&SETTINGS[*id as usize], value))
    }

    /// These values, and those of `others` where there is none.
    #[must_use]
    pub fn or(&self, others: &Layer) -> Layer {
        let mut all = others.clone();
        if !self.is_empty() {
            let all = Arc::make_mut(&mut all.0);
            all.extend(self.0.iter().map(|(id, value)| (*id, value.clone())));
        }
        all
    }

    /// `Err` names a setting that this level may not set.
    pub fn check(&self, level: Level) -> Result<(), String> {
        match self.iter().find(|(setting, _)| !setting.may_be_on(level)) {
            Some((setting, _)) => Err(too_late(setting, level)),
            None => Ok(()),
        }
    }
}

/// The refusal of a setting on a level that may not set it.
pub(super) fn too_late(setting: &Setting, level: Level) -> String {
    format!(
        "the setting `{}` cannot be set by {}, only on the levels {}",
        setting.name,
        level.words(),
        setting.levels().join(", ")
    )
}

impl Serialize for Layer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (setting, value) in self.iter() {
            map.serialize_entry(setting.name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Layer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Layer, D::Error> {
        let mut layer = Layer::default();
        for (name, json) in BTreeMap::<String, serde_json::Value>::deserialize(deserializer)? {
            let setting = find(&name).map_err(|unknown| D::Error::custom(unknown.in_full()))?;
            let value = Value::from_json(setting, &json).map_err(D::Error::custom)?;
            layer.set(setting, value).map_err(D::Error::custom)?;
        }
        Ok(layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let text = r#"{"keep-going":false,"never-substitute":["a*"],"timeout":600}"#;
        let layer: Layer = serde_json::from_str(text).expect("settings");
        assert_eq!(layer.get(Id::Timeout), Some(&Value::Number(600)));
        assert_eq!(serde_json::to_string(&layer).expect("JSON"), text);
    }

    #[test]
    fn an_unknown_or_ill_typed_setting_is_refused_by_name() {
        for (text, why) in [
            (r#"{"keep-goin":true}"#, "there is no setting `keep-goin`; did you mean `keep-going`?"),
            (r#"{"cache-build-failures":true}"#, "the setting `cache-build-failures` has no effect"),
            (r#"{"timeout":-1}"#, "the setting `timeout` must be a whole number"),
            (r#"{"timeout":1.5}"#, "the setting `timeout` must be"),
            (r#"{"timeout":"5"}"#, "the setting `timeout` must be"),
            (r#"{"keep-going":1}"#, "the setting `keep-going` must be `true` or `false`"),
            (r#"{"never-substitute":[1]}"#, "the setting `never-substitute` must be a list"),
            (r#"{"never-substitute":"a"}"#, "the setting `never-substitute` must be a list"),
        ] {
            let error = serde_json::from_str::<Layer>(text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_level_may_set_what_the_table_says() {
        let layer: Layer = serde_json::from_str(r#"{"allow-shell":false}"#).expect("settings");
        assert_eq!(layer.check(Level::Member), Ok(()));
        let why = layer.check(Level::Ssh).expect_err("too late");
        assert_eq!(
            why,
            "the setting `allow-shell` cannot be set by the ssh environment, only on the levels system, group, member, key"
        );
    }
}
