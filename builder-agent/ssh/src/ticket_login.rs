//! Logins with a ticket: `User ticket`, and the token in one of two ways that stock OpenSSH has.
//!
//! - As the answer to the one prompt of keyboard-interactive.
//! - In the ssh environment of a channel, which a client can send only after the authentication. So the authentication
//!   succeeds without anything (keyboard-interactive with no prompt, or with an empty answer), and the connection waits for
//!   its token. It is a stranger's meanwhile: in the gate's places, with the deadline for logins, with the penalties, and
//!   with one channel that takes a token and no data. So it gives a stranger nothing that a connection before the
//!   authentication does not.
//!
//! A wrong token costs as much as a key that is not in the roster. The holder of a token whose ticket cannot be used is no
//! stranger: they are told why, without a penalty.
//! Not here: what a ticket allows (`tickets`), and the places of strangers (`gate`).

use std::sync::Arc;

use ::roster::keys;
use members::Member;
use russh::keys::PublicKey;
use russh::server::{Auth, Response, Session};
use russh::{Disconnect, MethodKind, MethodSet};
use tickets::Ticket;

use super::about_stranger;
use super::commands::shown;
use super::gate::Ending;
use super::handler::Handler;
use super::login::{Credential, Login, Refusal};
use super::ticket_words::{DEVICE, USER, VARIABLE};

/// Wrong tokens in one connection. OpenSSH asks three times too.
const MAX_GUESSES: u32 = 3;

/// What happened on a connection on the way to a login with a ticket.
#[derive(Default)]
pub(super) struct Door {
    guesses: u32,
    /// The authentication has succeeded, and the token has to come in the environment.
    pub waits: bool,
    /// A key to which a ticket is bound, and which the client has proved to hold.
    proven: Option<PublicKey>,
}

/// What became of a token.
enum Presented {
    /// The ssh library is to be told this.
    In(Auth),
    /// It is no ticket's.
    Wrong,
    /// It is a ticket's, with which nobody can log in now.
    Refused(Refusal),
}

/// The key, as the tickets name it.
fn named(key: &PublicKey) -> Option<String> {
    keys::text(key.key_data()).ok()
}

fn methods(kinds: &[MethodKind]) -> Auth {
    Auth::Reject { proceed_with_methods: Some(MethodSet::from(kinds)), partial_success: false }
}

/// The answer to a command on a connection that waits for its token.
pub(super) fn missing() -> String {
    format!(
        "this login needs a ticket: set {VARIABLE} with `SetEnv`, or answer the prompt; without a ticket, log in with a key \
         of the roster"
    )
}

impl Handler {
    /// The methods that this user can try. Only who comes for a ticket is asked for one: OpenSSH would ask any other
    /// person without a good key.
    pub(super) fn possible_methods(user: &str) -> Auth {
        match user {
            USER => methods(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive]),
            _ => Auth::reject(),
        }
    }

    /// Whether a live ticket is bound to this key, so that its proof is of use.
    pub(super) fn is_bound(&self, user: &str, key: &PublicKey) -> bool {
        user == USER && named(key).is_some_and(|key| self.server.agent.tickets.is_bound(&key))
    }

    /// The client holds a key to which a ticket is bound: the token is still missing.
    pub(super) fn proved_bound(&mut self, key: &PublicKey) -> Auth {
        self.door.proven = Some(key.clone());
        let next = MethodSet::from([MethodKind::KeyboardInteractive].as_slice());
        Auth::Reject { proceed_with_methods: Some(next), partial_success: true }
    }

    /// A step of keyboard-interactive.
    pub(super) fn ask_for_ticket(
        &mut self,
        user: &str,
        submethods: &str,
        response: Option<Response<'_>>,
    ) -> Auth {
        if user != USER {
            return Auth::reject();
        }
        if self.door.guesses >= MAX_GUESSES {
            return methods(&[MethodKind::PublicKey]);
        }
        let answer = response.map(|mut answers| answers.next().unwrap_or_default());
        let by_environment = submethods.split(',').any(|device| device.trim() == DEVICE);
        match answer {
            None if !by_environment => Auth::Partial {
                name: "".into(),
                instructions: "".into(),
                prompts: [("Ticket: ".into(), false)].as_slice().to_vec().into(),
            },
            // OpenSSH without a terminal, and without SSH_ASKPASS, answers nothing.
            Some(answer) if !answer.is_empty() => {
                match self.present(user, &String::from_utf8_lossy(&answer)) {
                    Presented::In(auth) => auth,
                    Presented::Wrong => Auth::reject(),
                    // Sent later, where the person reads it.
                    Presented::Refused(refusal) => {
                        self.refusal = Some(refusal);
                        Auth::Accept
                    }
                }
            }
            _ => {
                self.door.waits = true;
                Auth::Accept
            }
        }
    }

    /// A variable of the environment, on a connection that waits for its token.
    pub(super) fn take_from_environment(
        &mut self,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if name != VARIABLE {
            return Ok(());
        }
        let why = match self.present(USER, value) {
            Presented::In(Auth::Accept) => match &self.slot {
                Some(Err(why)) => why.clone(),
                _ => {
                    self.door.waits = false;
                    return Ok(());
                }
            },
            // It had to make room for another connection just now.
            Presented::In(_) => "the login came too late; try again".to_owned(),
            Presented::Wrong => {
                format!("{VARIABLE} is no ticket of this box; ask whom you have it from for another one")
            }
            Presented::Refused(refusal) => refusal.to_string(),
        };
        session.disconnect(Disconnect::NoMoreAuthMethodsAvailable, &why, "")
    }

    fn present(&mut self, user: &str, token: &str) -> Presented {
        let Some(ticket) = self.server.agent.tickets.by_token(token) else {
            self.door.guesses += 1;
            self.visit.offered();
            let (server, id, peer) = (&self.server, self.id, self.peer);
            let user = shown(user);
            about_stranger!(server, info, connection = id, %peer, user, "login denied: no ticket has this token");
            self.note_refused(|| format!("user {user}: no ticket has this token"));
            return Presented::Wrong;
        };
        // Who has the token was given it by a member.
        self.visit.ends(Ending::Known);
        match self.by_ticket(user, &ticket) {
            Ok((who, login)) => {
                let roster = self.server.agent.roster.borrow().clone();
                Presented::In(self.log_in(who, login, None, &roster))
            }
            Err(refusal) => {
                let (server, id, peer, ticket) = (&self.server, self.id, self.peer, &ticket.id);
                about_stranger!(server, info, connection = id, %peer, %ticket, reason = %refusal, "login with a ticket denied");
                self.note_refused(|| format!("{ticket}: {refusal}"));
                Presented::Refused(refusal)
            }
        }
    }

    fn by_ticket(&self, user: &str, ticket: &Arc<Ticket>) -> Result<(Arc<Member>, Login), Refusal> {
        let agent = &self.server.agent;
        if let Some(key) = &ticket.terms.bind_key
            && self.door.proven.as_ref().and_then(named).as_ref() != Some(key)
        {
            let name = &ticket.name;
            return Err(Refusal::Unfit(format!(
                "the ticket `{name}` is bound to an ssh key, which this client has not proved to hold; use it with \
                 `PreferredAuthentications publickey,keyboard-interactive` and that key as `IdentityFile`"
            )));
        }
        let roster = agent.roster.borrow().clone();
        let Some(member) = roster.by_id(&ticket.id) else {
            let why = match ticket.state() {
                tickets::State::Live => "is of no use while the member who made it is not in the roster",
                tickets::State::Expired => "has expired",
                tickets::State::Revoked => "was revoked",
            };
            return Err(Refusal::Unfit(format!("the ticket `{}` {why}", ticket.name)));
        };
        if let Some(why) = agent.checks.closed_to(member) {
            return Err(Refusal::Closed(why));
        }
        let login = Login {
            user: user.to_owned(),
            peer: self.peer.ip(),
            credential: Credential::Ticket(ticket.id.clone()),
            at: ::roster::date::now(),
        };
        Ok((member.clone(), login))
    }
}
