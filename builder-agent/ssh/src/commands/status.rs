//! `status`: the name of the box, its roster, and the members who are left out of that roster because of a mistake.
//!
//! Every member may read it: rosters are public, and a member who is left out cannot log in to ask. With `--json` the
//! answer is one object on one line; fields are added, never renamed.

use daemon::Agent;
use serde::Serialize;

#[derive(Serialize)]
struct Status {
    name: String,
    version: &'static str,
    systems: Vec<String>,
    sandbox: &'static str,
    /// The reason why the box is weaker than it could be.
    #[serde(skip_serializing_if = "Option::is_none")]
    weaker: Option<String>,
    signing_key: String,
    roster: Roster,
}

#[derive(Serialize)]
struct Roster {
    source: String,
    commit: Option<String>,
    members: usize,
    left_out: Vec<roster::LeftOut>,
}

impl Status {
    fn of(agent: &Agent) -> Self {
        let config = &agent.config;
        let now = agent.roster.borrow();
        Self {
            name: config.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            systems: config.systems.clone(),
            sandbox: config.sandbox.backend.name(),
            weaker: builds::backend::weaker(&config.sandbox),
            signing_key: agent.signing_key.to_string(),
            roster: Roster {
                source: now.source.clone(),
                commit: now.commit.clone(),
                members: now.len(),
                left_out: now.left_out.clone(),
            },
        }
    }

    fn text(&self) -> String {
        let Roster { source, commit, members, left_out } = &self.roster;
        let commit = commit.as_ref().map(|commit| format!(", commit {commit}")).unwrap_or_default();
        let mut text = format!(
            "box          {}, barnraiser {}\n\
             builds       {}, in sandboxes of kind {}\n\
             signing key  {}\n\
             roster       {source}{commit}, {members} {}\n",
            self.name,
            self.version,
            self.systems.join(" "),
            self.sandbox,
            self.signing_key,
            if *members == 1 { "member" } else { "members" },
        );
        if let Some(weaker) = &self.weaker {
            text.push_str(&format!("warning      {weaker}\n"));
        }
        for roster::LeftOut { name, error } in left_out {
            text.push_str(&format!("left out     {name}: {error}\n"));
        }
        text
    }
}

/// The output of the command.
pub(super) fn text(agent: &Agent, json: bool) -> String {
    let status = Status::of(agent);
    match json {
        true => super::json_line(&status),
        false => status.text(),
    }
}
