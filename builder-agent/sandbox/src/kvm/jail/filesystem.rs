//! Landlock: no file, no TCP port, no abstract socket, no signal to others. In a kernel that has it.
//!
//! The root is empty already; this is the same wall built of other bricks.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};

use super::Report;

/// The newest rules we name; an older kernel enforces those it knows.
const NEWEST: ABI = ABI::V6;

pub fn deny_all(report: &mut Report) {
    match restrict() {
        Ok(RulesetStatus::FullyEnforced) => report.active("landlock"),
        Ok(RulesetStatus::PartiallyEnforced) => report.active("landlock (what this kernel knows of it)"),
        Ok(RulesetStatus::NotEnforced) => report.missing("landlock", "this kernel has none"),
        Err(e) => report.missing("landlock", e),
    }
}

fn restrict() -> Result<RulesetStatus, RulesetError> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}
