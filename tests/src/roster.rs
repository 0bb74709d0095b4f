//! `roster.json` as `access-manager` writes it, for tests that are not about `access-manager`.

use std::path::Path;

use serde_json::{Value, json};

use crate::keys::Key;

/// The members by name and key.
pub fn roster(members: &[(&str, &Key)]) -> Value {
    let members: Vec<Value> = members
        .iter()
        .map(|(name, key)| {
            json!({ "name": name, "keys": [key.public], "role": "member", "limits": {}, "expires": null })
        })
        .collect();
    json!({ "schema": 1, "commit": null, "source": "test", "members": members })
}

/// Replaces the roster file atomically.
pub fn write(path: &Path, roster: &Value) {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, roster.to_string()).expect("a roster");
    std::fs::rename(&temporary, path).expect("a roster in place");
}
