//! The settings of a session, as a request follows them: which level said what, the values, and those of one derivation.
//!
//! A derivation may say more than its session (`settings-from-drv-env`). Its variables are in the build key anyway, so
//! they shape no other build. Not here: the table of settings and the rules of levels (`roster::settings`).

use std::sync::Arc;

use members::Member;
use members::settings::{Effective, Id, Layers, Level, Variables, is_setting};
use serde_json::Value;
use substitute::{OwnCaches, Patterns};

use crate::{Failure, Recipe};

/// The settings of a session. They change with the roster; a request keeps those of its beginning.
#[derive(Debug, Clone)]
pub struct Wishes {
    layers: Layers,
    pub effective: Arc<Effective>,
    always: Patterns,
    never: Patterns,
    own: OwnCaches,
}

impl Wishes {
    #[must_use]
    pub fn of(layers: Layers) -> Self {
        let effective = layers.resolve().effective();
        Self {
            always: Patterns::new(&effective.always_substitute),
            never: Patterns::new(&effective.never_substitute),
            own: OwnCaches {
                urls: effective.substituters.clone(),
                keys: effective.trusted_public_keys.clone(),
            },
            effective: Arc::new(effective),
            layers,
        }
    }

    /// Whether what has this name may be fetched for this member, who has the session. `asked`: whether client and
    /// derivation both allow it; names in `always-substitute` do not need that. Who may only read causes no download.
    #[must_use]
    pub fn may_fetch(&self, member: &Member, name: &str, asked: bool) -> bool {
        member.may_write() && !self.never.matches(name) && (asked || self.always.matches(name))
    }

    /// The caches and keys of the member's own.
    #[must_use]
    pub fn own_caches(&self) -> &OwnCaches {
        &self.own
    }

    /// The names that the session never fetches.
    #[must_use]
    pub fn never(&self) -> &Patterns {
        &self.never
    }

    /// The values for a build of this derivation. Fails if one of its variables is meant to be a setting and is not.
    pub fn for_build(&self, recipe: &Recipe) -> Result<Arc<Effective>, Failure> {
        // Without `allow-override` an earlier level has locked this one.
        if !(self.effective.settings_from_drv_env && self.effective.allow_override) {
            return Ok(self.effective.clone());
        }
        let variables = variables(recipe);
        if let Some(wrong) = variables.wrong() {
            return Err(Failure::rejected(format!(
                "'{}' is not built: {wrong}\nhint: its variables are settings because `settings-from-drv-env` is `true`",
                recipe.drv_path.to_absolute_path()
            )));
        }
        let layer = variables.layer();
        if layer.is_empty() {
            return Ok(self.effective.clone());
        }
        Ok(Arc::new(self.layers.clone().with(Level::Derivation, "", &layer).resolve().effective()))
    }

    /// The refusal of a build, if the session runs none.
    #[must_use]
    pub fn refusal(&self, recipe: &Recipe) -> Option<Failure> {
        if self.effective.allow_builds {
            return None;
        }
        let resolved = self.layers.resolve();
        Some(Failure::rejected(format!(
            "'{}' is not built: the setting `allow-builds` is `false` in {}\n\
             hint: `ssh box settings --explain allow-builds` says where it is set",
            recipe.drv_path.to_absolute_path(),
            resolved.get(Id::AllowBuilds).level.words()
        )))
    }
}

/// The settings among the variables, or among the structured attributes, of a derivation.
fn variables(recipe: &Recipe) -> Variables {
    let mut variables = Variables::default();
    for (name, value) in &recipe.env {
        if let Ok(name) = str::from_utf8(name) {
            variables.take(Level::Derivation, name, value);
        }
    }
    if let Some(attributes) = &recipe.structured {
        for (name, value) in attributes.of(is_setting) {
            variables.take(Level::Derivation, name, text(value).as_bytes());
        }
    }
    variables
}

/// A structured attribute as Nix writes it into a variable: a list with spaces, `true` as 1 and `false` as nothing.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => if *flag { "1" } else { "" }.to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "wishes_test.rs"]
mod wishes_test;
