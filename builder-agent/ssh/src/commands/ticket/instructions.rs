//! What the holder of a new ticket needs: an ssh configuration with the token, and the command lines of Nix.

use daemon::Agent;
use serde::Serialize;
use settings::Reached;
use tickets::{Scope, Ticket};

use crate::alias::alias;
use crate::ticket_words::{DEVICE, USER, VARIABLE};

/// The values, for `--json`, and for the text.
#[derive(Debug, Serialize)]
pub(super) struct Instructions {
    /// The name of the box in the holder's ssh configuration.
    alias: String,
    host: String,
    port: u16,
    user: &'static str,
    /// `type base64`.
    host_key: String,
    /// The variable of the ssh environment for the token.
    variable: &'static str,
    /// The value of `KbdInteractiveDevices` with which ssh asks for nothing.
    device: &'static str,
    signing_key: String,
    #[serde(skip)]
    token: String,
    #[serde(skip)]
    system: String,
    #[serde(skip)]
    scope: Scope,
    #[serde(skip)]
    bound: bool,
}

impl Instructions {
    pub fn of(agent: &Agent, host: Option<Reached>, ticket: &Ticket, token: &str) -> Self {
        let config = &agent.config;
        let Reached { host, port } = host.unwrap_or_else(|| config.reached());
        Self {
            // Not the name of the box: the holder may be a member, too, with an entry of their own.
            alias: format!("{}-ticket", alias(&config.name)),
            host,
            port,
            user: USER,
            host_key: agent.host_key.clone(),
            variable: VARIABLE,
            device: DEVICE,
            signing_key: agent.signing_key.to_string(),
            token: token.to_owned(),
            system: config.systems.first().cloned().unwrap_or_default(),
            scope: ticket.terms.scope,
            bound: ticket.terms.bind_key.is_some(),
        }
    }

    /// For the maker, to pass on.
    pub fn text(&self, revealable: bool) -> String {
        let Self { alias, host, port, user, host_key, variable, device, signing_key, token, system, .. } =
            self;
        let once = match revealable {
            true => "# The token; `ticket reveal` prints it again.",
            false => "# The token, which is shown only now: the box keeps its hash.",
        };
        let methods = match self.bound {
            true => {
                "  # The key to which the ticket is bound:\n  IdentityFile ~/.ssh/id_ed25519\n  IdentitiesOnly yes\n  \
                 PreferredAuthentications publickey,keyboard-interactive\n"
            }
            false => "  PreferredAuthentications keyboard-interactive\n",
        };
        let build = match self.scope {
            Scope::Read => String::new(),
            Scope::Build => format!(
                "# Build on the box, or let Nix build there and fetch the results:
#   nix build --eval-store auto --store ssh-ng://{alias} …
#   nix build --max-jobs 0 --builders 'ssh-ng://{alias} {system}' …
"
            ),
        };
        format!(
            "{once}
{token}

# For the holder: ~/.ssh/config, or /root/.ssh/config if the Nix daemon is to use it. The file holds the token.
# Without the lines SetEnv and KbdInteractiveDevices, ssh asks for the token.
Host {alias}
  HostName {host}
  Port {port}
  User {user}
  HostKeyAlias {alias}
{methods}  KbdInteractiveDevices {device}
  SetEnv {variable}={token}

# ~/.ssh/known_hosts (without the `# `):
# {alias} {host_key}

{build}# What the box has signed is signed with
#   {signing_key}
"
        )
    }
}
