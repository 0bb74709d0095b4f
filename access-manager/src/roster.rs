//! The roster: members, their keys and limits, and `roster.json`.
//!
//! The shape of the file is the agreement with the agent; it ignores fields it does not know and refuses a schema it
//! does not know. Not here: how a Nix value becomes members (`read`) and how commits are accepted ([`crate::sync`]).

mod limits;
mod modules;
mod read;
mod sharing;
mod table;

use serde::{Deserialize, Serialize};

pub use limits::MemberLimits;
pub use read::{Evaluated, evaluate};
pub use table::table;

/// The only schema there is.
pub const SCHEMA: u64 = 1;
/// What `source` says when the roster came with the image.
pub const BAKED_IN: &str = "baked-in";

/// `roster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    pub schema: u64,
    /// The commit it was read from: 40 hexadecimal digits.
    pub commit: Option<String>,
    /// The repository's url, or [`BAKED_IN`].
    pub source: String,
    pub members: Vec<Member>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    /// `type base64 comment`, at least one.
    pub keys: Vec<String>,
    pub role: Role,
    #[serde(default)]
    pub limits: MemberLimits,
    /// Members who may see this one's own store paths, if they list this one too. Sorted.
    #[serde(default, rename = "share-with", skip_serializing_if = "Vec::is_empty")]
    pub share_with: Vec<String>,
    /// First day (UTC) on which the member no longer gets in: `YYYY-MM-DD`.
    pub expires: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Member,
    Maintainer,
}

impl Roster {
    /// The file's text. Members are sorted, so that equal rosters have equal bytes.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a roster has only text and numbers");
        text.push('\n');
        text
    }

    /// Reads `roster.json`, as a fallback or to see whether there is one.
    pub fn from_json(text: &str) -> Result<Roster, String> {
        let roster: Roster = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if roster.schema != SCHEMA {
            return Err(format!("it has schema {}, and only {SCHEMA} is known here", roster.schema));
        }
        Ok(roster)
    }
}
