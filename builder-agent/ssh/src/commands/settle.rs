//! What the settings of a session allow before its command begins.
//!
//! OpenSSH shows nothing when a server refuses a variable. So a wrong one refuses the command, and one that does not
//! count is told on stderr. Not here: what settings do to builds (`builds::realise`).

use daemon::{Agent, Caller};
use members::settings::{Id, Level, Resolved};

use super::Command;

/// The settings of this session.
pub(super) fn resolved(agent: &Agent, caller: &Caller) -> Resolved {
    daemon::layers(&agent.config, &caller.member, &caller.options).resolve()
}

/// What a session is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose<'a> {
    Command(&'a Command),
    /// The box's own shell.
    Shell,
    /// The member's home, which they have.
    Home,
}

/// The variables of the client that do not count, a line each. `Err` is the line for what the session may not do.
pub(crate) fn admit(purpose: Purpose<'_>, agent: &Agent, caller: &Caller) -> Result<Vec<String>, String> {
    if let Purpose::Command(command) = purpose {
        command.open_to(&caller.member)?;
    }
    let resolved = resolved(agent, caller);
    let effective = resolved.effective();
    if effective.allow_override
        && effective.settings_from_ssh_env
        && let Some(wrong) = caller.options.wrong()
    {
        return Err(format!("{wrong}; remove it from `SetEnv` of your ssh configuration"));
    }
    let for_people = match purpose {
        Purpose::Command(Command::Store(_) | Command::Host(_)) | Purpose::Home => false,
        Purpose::Shell
        | Purpose::Command(
            Command::Shell
            | Command::Print(_)
            | Command::Status(_)
            | Command::Who(_)
            | Command::Maintaining(_)
            | Command::Log(_)
            | Command::Builds(_)
            | Command::Usage(_)
            | Command::Home(_)
            | Command::Keys(_)
            | Command::Ticket(_)
            | Command::Settings(_),
        ) => true,
    };
    if for_people && !effective.allow_shell {
        return Err(format!(
            "commands for people are refused: the setting `allow-shell` is `false` in {}; stores are served",
            resolved.get(Id::AllowShell).level.words()
        ));
    }
    let in_vain = resolved.in_vain(Level::Ssh).map(|(setting, vote)| {
        let why = vote.why_not().unwrap_or_default();
        format!("the setting `{}` of your ssh environment does not count: {why}", setting.name)
    });
    Ok(in_vain.collect())
}
