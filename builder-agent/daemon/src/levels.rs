//! The levels of settings of one session: the box, the roster with the key of the login, and the variables that the
//! client sent.
//!
//! Not here: the table and the rules (`roster::settings`), what a setting does (`builds`, `ssh`).

use ledger::Principal;
use members::Member;
use members::settings::{Layer, Layers, Level, Variables};
use settings::Config;

use crate::drained;

/// What is known of a client outside of the protocols: the key of its login, and the environment variables that it sends
/// for its ssh channel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionOptions {
    variables: Variables,
    /// The fingerprint.
    key: Option<String>,
    /// Sessions are opened also while the box is drained.
    while_drained: bool,
}

impl SessionOptions {
    /// Takes one variable; false if it is not meant to be a setting. A wrong one is taken too, and remembered.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        if name == drained::VARIABLE {
            self.while_drained = matches!(value, "1" | "true" | "yes");
            return true;
        }
        self.variables.take(Level::Ssh, name, value.as_bytes())
    }

    pub(crate) fn while_drained(&self) -> bool {
        self.while_drained
    }

    /// The fingerprint of the key of the login; with a certificate, that of its authority.
    #[must_use]
    pub fn logged_in_with(self, fingerprint: Option<String>) -> Self {
        Self { key: fingerprint, ..self }
    }

    /// The first variable that is no setting, or has no such value, as a sentence.
    #[must_use]
    pub fn wrong(&self) -> Option<&str> {
        self.variables.wrong()
    }

    /// Who is charged for what this member does in the session.
    #[must_use]
    pub fn principal(&self, member: &Member) -> Principal {
        principal(member, self.key.as_deref())
    }

    fn layer(&self) -> Layer {
        self.variables.layer()
    }
}

/// Who is charged for what this member does: the member with the key of this fingerprint, or the ticket of who made it.
#[must_use]
pub fn principal(member: &Member, key: Option<&str>) -> Principal {
    let payer = Principal::of(&member.payer().id);
    match (&member.ticket, key) {
        (Some(_), _) => payer.with_ticket(&member.id),
        (None, Some(key)) => payer.with_key(key),
        (None, None) => payer,
    }
}

/// What all levels but the derivation say. `member` is as in the current roster.
#[must_use]
pub fn layers(config: &Config, member: &Member, options: &SessionOptions) -> Layers {
    let system = Layers::default().with(Level::System, "", &config.settings);
    let groups = member
        .groups
        .iter()
        .fold(system, |layers, group| layers.with(Level::Group, &group.name, &group.settings));
    let of_key = options.key.as_ref().and_then(|key| member.key_settings.get(key));
    let roster = groups.with(Level::Member, "", &member.settings);
    let all = roster.with(Level::Key, "", of_key.unwrap_or(&Layer::default()));
    all.with(Level::Ssh, "", &options.layer()).of_holder(member.ticket.is_some())
}
