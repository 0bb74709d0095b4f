//! Sessions that clients open while the box is drained.
//!
//! `nix build --builders` takes the next machine, or builds on its own, only if the connection to this one fails; once a
//! session is open, a refused build is a failed build. Nothing tells a builder's session from one that copies, before it is
//! open. So all of them are refused with the reason, but for those that say that they know: they copy, fetch results and
//! join builds, and only a build that would have to be started is refused (`builds::drain`).

use crate::{Agent, SessionOptions};

/// The environment variable of a session that is opened all the same.
pub(crate) const VARIABLE: &str = "BARNRAISER_WHILE_DRAINED";

/// Why a session with these options is not opened now.
pub(crate) fn closed(agent: &Agent, options: &SessionOptions) -> Option<String> {
    let drained = agent.realiser.scheduler.drained().filter(|_| !options.while_drained())?;
    Some(format!(
        "{}: {drained}; build elsewhere, or try again later. What is here can be fetched with \
         NIX_SSHOPTS='-o SetEnv={VARIABLE}=1'",
        agent.config.name
    ))
}
