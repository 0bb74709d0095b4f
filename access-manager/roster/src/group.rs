//! Groups: members who share limits, and have settings in common.
//!
//! A member whose group cannot be read is left out, as the group may take something away. Not here: who counts what a
//! group uses (the agent's scheduler).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::file::or_default;
use crate::settings::{Layer, Level};
use crate::words::quoted;
use crate::{MemberLimits, name};

/// A group. Its members name it ([`crate::Member::groups`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub name: String,
    /// For all members together: `max_jobs` counts the builds of all of them.
    #[serde(default, deserialize_with = "or_default")]
    pub limits: MemberLimits,
    /// For each member, below their own.
    #[serde(default, skip_serializing_if = "Layer::is_empty")]
    pub settings: Layer,
}

/// The groups of a file, and why others do not count.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub groups: Vec<Group>,
    broken: BTreeMap<String, String>,
}

impl Groups {
    /// Each entry on its own. Of two groups with one name neither counts.
    pub fn read(entries: &[&RawValue]) -> Groups {
        #[derive(Deserialize)]
        struct Name {
            name: String,
        }
        let mut read = Groups::default();
        let mut seen = BTreeSet::new();
        for entry in entries {
            // No member can name a group without a name.
            let Ok(Name { name }) = serde_json::from_str(entry.get()) else { continue };
            if !seen.insert(name.clone()) {
                read.groups.retain(|group| group.name != name);
                read.broken.insert(name, "there are two groups of this name".into());
                continue;
            }
            match group(entry) {
                Ok(group) => read.groups.push(group),
                Err(error) => {
                    read.broken.insert(name, error);
                }
            }
        }
        read
    }

    /// `Err` says which of the groups that a member names does not count.
    pub fn check(&self, names: &[String]) -> Result<(), String> {
        for name in names {
            if let Some(error) = self.broken.get(name) {
                return Err(format!("the group {} has a mistake: {error}", quoted(name)));
            }
            if !self.groups.iter().any(|group| group.name == *name) {
                return Err(format!("there is no group {}", quoted(name)));
            }
        }
        Ok(())
    }
}

fn group(entry: &RawValue) -> Result<Group, String> {
    let group: Group = serde_json::from_str(entry.get()).map_err(|e| e.to_string())?;
    name::check(&group.name).map_err(|found| format!("{found} in its name"))?;
    group.limits.check()?;
    group.settings.check(Level::Group)?;
    let single = group.limits.values().find(|(limit, _)| !limit.shared);
    if let Some((limit, _)) = single {
        return Err(format!("`{}` cannot be shared", limit.json));
    }
    Ok(group)
}
