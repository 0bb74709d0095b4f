//! Landlock: no file, no TCP port, no abstract socket, no signal to others.
//!
//! The root is empty already. Landlock is a second mechanism for the same rule, in case the first one has a gap.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};

use super::{Report, Step};

/// The newest rules that we request. An older kernel enforces only those it knows; then the step is
/// incomplete.
const NEWEST: ABI = ABI::V6;

pub fn deny_all(report: &mut Report) {
    match restrict() {
        Ok(RulesetStatus::FullyEnforced) => report.active("landlock"),
        Ok(RulesetStatus::PartiallyEnforced) => {
            report.missing(Step::Landlock, "this kernel knows only a part of its rules, which is in force");
        }
        Ok(RulesetStatus::NotEnforced) => report.missing(Step::Landlock, "this kernel has none"),
        Err(e) => report.missing(Step::Landlock, e),
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
