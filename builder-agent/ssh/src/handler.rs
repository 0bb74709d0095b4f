//! Answers to the ssh requests of one connection, in order: login, channels, and refused requests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ledger::{Meter, Open, Opened as Counted, Traffic};
use russh::keys::{Certificate, PublicKey};
use russh::server::{
    Auth, Handler as RusshHandler, Msg, PublicKeyOffer, Response, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelMsg, ChannelOpenFailure, Disconnect, Pty};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::commands::{self, Command, Purpose, shown};
use super::gate::{Ending, Visit};
use super::home;
use super::home::forward::{self, Towards};
use super::home::lodging::Lodging;
use super::home::session::{self, Asked, MAX_COMMAND, Wanted, What};
use super::login::{Credential, Login, Offers, Refusal};
use super::places::{self, Place};
use super::records::{Event, Kind, Records, Seat, SessionGuard};
use super::shell;
use super::terminal::{ExitStatus, STDERR, Screen, Terminal};
use super::ticket_login::{self, Door};
use super::{MemberSlot, Server, about_stranger};
use daemon::{Agent, Caller, SessionOptions};
use members::{Member, Roster};

/// Room that a client gets for a channel while much of its data waits for the home, in bytes.
const FEW: usize = 2;
/// For each of these: so that a client does not send thousands of tiny packets in a second.
const HOLD: Duration = Duration::from_millis(5);

/// Limit on the sessions that one connection may open in its life, finished ones included. The ssh library keeps about
/// a kilobyte for each channel that the box closed first, as long as the connection lives.
const MAX_SESSIONS_EVER: usize = 50_000;

/// The member of a connection, and the credential of its login.
pub(super) struct LoggedIn {
    pub member: Arc<Member>,
    login: Login,
    /// The connection's place in the list of connections.
    pub seat: Seat,
}

impl LoggedIn {
    pub fn still_in(&self, roster: &Roster) -> bool {
        self.current(roster).is_some()
    }

    /// The member in this roster, with current limits; `None` if this roster would refuse the login.
    pub fn current(&self, roster: &Roster) -> Option<Arc<Member>> {
        self.login.decide(roster).ok().filter(|member| member.id == self.member.id)
    }

    /// What to say when the roster has the member, or the credential, no more.
    pub fn gone(&self) -> String {
        match self.member.ticket {
            Some(_) => self.member.left(),
            None => format!("{} or this key is no longer in the roster", self.member.name),
        }
    }
}

pub(super) struct Handler {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    pub(super) server: Arc<Server>,
    pub(super) visit: Arc<Visit>,
    /// Tells the connection's task about the login.
    login: watch::Sender<Option<Arc<LoggedIn>>>,
    /// True when the box closes the connection.
    ended: CancellationToken,
    traffic: Arc<Traffic>,
    /// Charges the connection and its bytes to the member who logged in.
    meter: Option<(Meter, Counted)>,
    /// The result of the login: a place, or the reason why there is none.
    pub(super) slot: Option<Result<MemberSlot, String>>,
    offers: Offers,
    /// The reason why a login with a proven key is refused. It is sent as soon as the client reads messages.
    pub(super) refusal: Option<Refusal>,
    /// Channels that wait for a command. A channel runs one command.
    channels: HashMap<ChannelId, Waiting>,
    /// Permits for the sessions that may still be opened. Not a count of `channels`: the library does not report the
    /// closing of a channel that the box closed first.
    free: Arc<Semaphore>,
    opened: usize,
    /// What happened on the way to a login with a ticket.
    pub(super) door: Door,
    /// The connection's way into the member's home.
    lodging: Arc<Lodging>,
}

/// A channel that gets its command, its place in the connection, and its place among all sessions of the member. All end
/// with the command.
type Opened = (Channel<Msg>, (OwnedSemaphorePermit, Place));

/// A channel without a command yet, its place in the connection, and what the client set for it.
struct Waiting {
    channel: Channel<Msg>,
    permit: OwnedSemaphorePermit,
    options: SessionOptions,
    screen: Screen,
    /// For a session in the home.
    asked: Asked,
}

/// What a channel runs.
enum Task {
    Command(Command),
    /// The box's own shell on a terminal, or commands from a pipe.
    Shell,
    /// A session in the member's home.
    Home(What),
}

/// A channel that runs something, and for whom.
struct Running {
    opened: Opened,
    screen: Screen,
    asked: Asked,
    caller: Caller,
    agent: Arc<Agent>,
    records: Records,
    ended: CancellationToken,
}

impl Waiting {
    fn new(channel: Channel<Msg>, permit: OwnedSemaphorePermit) -> Self {
        Self {
            channel,
            permit,
            options: SessionOptions::default(),
            screen: Screen::default(),
            asked: Asked::default(),
        }
    }

    /// Takes out what the ssh library has put into the channel's buffer beside calling the handler. The buffer has few
    /// places, and no reader before the command: when it is full, the whole connection waits for ever.
    fn take_out(&mut self) -> Result<(), &'static str> {
        loop {
            let message = std::pin::pin!(self.channel.wait()).poll(&mut Context::from_waker(Waker::noop()));
            match message {
                Poll::Ready(Some(ChannelMsg::Data { .. })) => {
                    return Err("the client sent data before a command");
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) | Poll::Pending => return Ok(()),
            }
        }
    }
}

impl Handler {
    pub fn new(
        id: u64,
        peer: SocketAddr,
        server: Arc<Server>,
        visit: Arc<Visit>,
        login: watch::Sender<Option<Arc<LoggedIn>>>,
        (ended, traffic): (CancellationToken, Arc<Traffic>),
    ) -> Self {
        let free = Arc::new(Semaphore::new(server.agent.config.limits.max_sessions_per_connection));
        let lodging = Arc::new(Lodging::new(free.clone()));
        let (slot, offers, refusal, channels) = (None, Offers::default(), None, HashMap::new());
        let (meter, opened, door) = (None, 0, Door::default());
        Self {
            id,
            peer,
            server,
            visit,
            login,
            ended,
            traffic,
            meter,
            slot,
            offers,
            refusal,
            channels,
            free,
            opened,
            door,
            lodging,
        }
    }

    /// The channel for its one command, and its member by the current roster. Otherwise refuses the channel.
    fn take(&mut self, id: ChannelId, session: &mut Session) -> Result<Option<Running>, russh::Error> {
        let who = self.login.borrow().clone();
        let Some((who, true)) = who.map(|who| (who, self.channels.contains_key(&id))) else {
            session.channel_failure(id)?;
            return Ok(None);
        };
        let roster = self.server.agent.roster.borrow().clone();
        let Some(member) = who.current(&roster) else {
            self.refuse(id, &who.gone(), session)?;
            return Ok(None);
        };
        let place = match self.server.place(places::Kind::Session, &roster, member.payer()) {
            Ok(place) => place,
            Err(line) => {
                self.refuse(id, &line, session)?;
                return Ok(None);
            }
        };
        let (taken, fingerprint) = (self.channels.remove(&id), who.login.fingerprint());
        Ok(taken.map(|Waiting { channel, permit, options, screen, asked }| Running {
            opened: (channel, (permit, place)),
            screen,
            asked,
            caller: Caller::outside(member, self.id, options.logged_in_with(fingerprint)),
            agent: self.server.agent.clone(),
            records: self.server.records.clone(),
            ended: self.ended.clone(),
        }))
    }

    /// The client holds `key`; `credential` is the key or certificate that it sent.
    fn proven(&mut self, user: &str, credential: Credential, key: &PublicKey) -> Auth {
        let at = ::roster::date::now();
        let login = Login { user: user.to_owned(), peer: self.peer.ip(), credential, at };
        // Decided again, because the roster may have changed since the key was offered.
        let roster = self.server.agent.roster.borrow().clone();
        let decided = login.decide(&roster);
        match decided {
            Ok(member) => match self.server.agent.checks.closed_to(&member) {
                Some(why) => self.refuse_known(user, key, Refusal::Closed(why)),
                None => self.log_in(member, login, Some(key), &roster),
            },
            Err(refusal @ Refusal::Ambiguous(_)) => self.refuse_known(user, key, refusal),
            Err(refusal) => self.denied(user, key, &refusal),
        }
    }

    /// Refuses somebody whose key is a member's. The message is sent later, where the person reads it: a client tries the
    /// next key without showing why one was refused.
    fn refuse_known(&mut self, user: &str, key: &PublicKey, refusal: Refusal) -> Auth {
        self.visit.ends(Ending::Known);
        self.denied(user, key, &refusal);
        self.refusal = Some(refusal);
        Auth::Accept
    }

    /// Logs a proven member in, if there is room for one more of their connections. `key` is the proven one; none with a
    /// ticket.
    pub(super) fn log_in(
        &mut self,
        who: Arc<Member>,
        login: Login,
        key: Option<&PublicKey>,
        roster: &Roster,
    ) -> Auth {
        let fingerprint = key.map(|key| key.fingerprint(Default::default()).to_string());
        let ticket = who.ticket.as_ref().map(|_| &*who.id);
        let member = &who.name;
        // The client is no stranger, so its source gets no penalty from now on.
        self.visit.ends(Ending::Known);
        let slot = self.server.member_slot(roster, who.payer());
        if slot.is_ok() {
            if !self.visit.admit() {
                return Auth::reject();
            }
            let (role, user) = (who.role.name(), shown(&login.user));
            tracing::info!(connection = self.id, peer = %self.peer, %member, role, user, fingerprint, ticket, "logged in");
            let (ledger, principal) =
                (&self.server.agent.ledger, daemon::principal(&who, login.fingerprint().as_deref()));
            let counted = ledger.counter(&principal).open(Open::Connection);
            self.meter = Some((ledger.meter(principal, self.traffic.clone()), counted));
            let event = Event::now(Kind::Login).by(member).on(self.id).from(self.peer.ip());
            let with = fingerprint.or(ticket.map(|id| format!("ticket {id}"))).unwrap_or_default();
            self.server.records.audit.note(event.saying(&with));
            let seat = self.server.records.connections.add(self.id, who.clone(), self.peer.ip());
            self.login.send_replace(Some(Arc::new(LoggedIn { member: who, login, seat })));
        } else {
            tracing::info!(connection = self.id, peer = %self.peer, %member, fingerprint, ticket, "login refused: too many connections");
        }
        // A login over a limit succeeds, but only so that the client gets the message. The gate still counts it as a
        // stranger.
        self.slot = Some(slot);
        Auth::Accept
    }

    /// Runs a task on the channel, which gets no other one. `name` is for the list of connections.
    fn start(
        &mut self,
        id: ChannelId,
        task: Task,
        name: &'static str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if self.door.waits {
            return self.refuse(id, &ticket_login::missing(), session);
        }
        let Some(running) = self.take(id, session)? else { return Ok(()) };
        let purpose = match &task {
            Task::Command(command) => Purpose::Command(command),
            Task::Shell => Purpose::Shell,
            Task::Home(_) => Purpose::Home,
        };
        let warnings = match commands::admit(purpose, &running.agent, &running.caller) {
            Ok(warnings) => warnings,
            Err(line) => return self.refuse(id, &line, session),
        };
        session.channel_success(id)?;
        let principal = running.caller.options.principal(&running.caller.member);
        let counted = self.server.agent.ledger.counter(&principal).open(Open::Session);
        let listed = self.server.records.connections.session(self.id, name);
        match task {
            Task::Home(what) => {
                let way = (self.lodging.clone(), session.handle());
                tokio::spawn(run_in_home(what, running, (listed, counted), warnings, way));
            }
            task => drop(tokio::spawn(run(task, running, (listed, counted), warnings))),
        }
        Ok(())
    }

    /// The member at the other end, for something that is no session; `None` if nobody is logged in, or has no home.
    fn guest(&self) -> Option<Caller> {
        let who = self.login.borrow().clone()?;
        let member = who.current(&self.server.agent.roster.borrow())?;
        let options = SessionOptions::default().logged_in_with(who.login.fingerprint());
        let caller = Caller::outside(member, self.id, options);
        home::closed_to(&self.server.agent, &caller).is_none().then_some(caller)
    }

    /// Whether the member of this channel has a home, by the settings of the channel; `Err` says why not.
    fn has_home(&self, id: ChannelId) -> Result<(), String> {
        let waiting = self.channels.get(&id).map(|waiting| waiting.options.clone());
        let (Some(who), Some(options)) = (self.login.borrow().clone(), waiting) else {
            return Err("nobody is logged in".into());
        };
        let Some(member) = who.current(&self.server.agent.roster.borrow()) else { return Err(who.gone()) };
        let options = options.logged_in_with(who.login.fingerprint());
        let caller = Caller::outside(member, self.id, options);
        home::closed_to(&self.server.agent, &caller).map_or(Ok(()), Err)
    }

    /// Connects a channel to something that listens in the home.
    async fn connect_inside(
        &self,
        channel: Channel<Msg>,
        towards: Towards,
        reply: russh::server::ChannelOpenHandle,
        session: &mut Session,
    ) {
        let place = self.free.clone().try_acquire_owned();
        let (Some(caller), Ok(place), true) = (self.guest(), place, towards.is_inside()) else {
            tracing::info!(connection = self.id, ?towards, "a forwarded connection was refused");
            return reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        };
        let (lodging, ended) = (self.lodging.clone(), self.ended.clone());
        let door = (self.server.agent.clone(), caller, session.handle());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = forward::connect((channel, reply), towards, lodging, door) => {}
                () = ended.cancelled() => {}
            }
        });
    }

    /// The way into the home, made if there is none, for a request of the connection as a whole.
    async fn link(&self, client: russh::server::Handle) -> Option<Arc<home::lodging::Link>> {
        let caller = self.guest()?;
        let link = self.lodging.link(&self.server.agent, &caller, &client).await;
        let refused = |why: &String| tracing::info!(connection = self.id, why, "a forwarding was refused");
        link.inspect_err(refused).ok()
    }

    /// Notes a refused login for the audit, unless there are too many of them.
    pub(super) fn note_refused(&self, why: impl FnOnce() -> String) {
        let event = || Event::now(Kind::LoginRefused).on(self.id).from(self.peer.ip()).saying(&why());
        self.server.records.audit.note_stranger(event);
    }

    fn denied(&self, user: &str, key: &PublicKey, refusal: &Refusal) -> Auth {
        let (server, id, peer, fingerprint) =
            (&self.server, self.id, self.peer, key.fingerprint(Default::default()));
        let roster = server.agent.roster.borrow();
        let left_out_of_it = roster.left_out.iter().find(|left| left.name == user);
        // A stranger chooses the length and the contents of the user name.
        let user = shown(user);
        self.note_refused(|| format!("user {user}, {fingerprint}: {refusal}"));
        if let Some(left) = left_out_of_it {
            about_stranger!(server, info, connection = id, %peer, user, %fingerprint, error = left.error, "login denied: left out of the roster");
        } else if *refusal == Refusal::Unknown {
            about_stranger!(server, info, connection = id, %peer, user, %fingerprint, "login denied: key not in the roster");
        } else {
            about_stranger!(server, info, connection = id, %peer, user, %fingerprint, reason = %refusal, "login denied");
        }
        Auth::reject()
    }

    /// Checks a packet of a channel's data. The ssh library takes packets larger than the agreed size, and the data
    /// that waits for a session is limited by number of packets.
    fn packet(&self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        if self.login.borrow().is_none() {
            // A channel that waits for a ticket takes its environment and nothing else: what a stranger sends is not kept.
            return session.disconnect(Disconnect::ProtocolError, "data before the login", "");
        }
        if data.len() <= super::PACKET as usize {
            return Ok(());
        }
        tracing::info!(connection = self.id, channel = %id, bytes = data.len(), "a packet is too large");
        session.disconnect(Disconnect::ProtocolError, "a packet is larger than the channel allows", "")
    }

    /// One line on stderr, exit status 127, and the channel is closed.
    fn refuse(&mut self, id: ChannelId, line: &str, session: &mut Session) -> Result<(), russh::Error> {
        tracing::info!(connection = self.id, line, "command refused");
        self.channels.remove(&id);
        session.channel_success(id)?;
        // A client that asked for a terminal has its own in raw mode, where a newline does not return to the first
        // column.
        session.extended_data(id, STDERR, format!("{line}\r\n"))?;
        session.exit_status_request(id, ExitStatus::NOT_FOUND.0)?;
        session.eof(id)?;
        session.close(id)
    }
}

impl RusshHandler for Handler {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(Some((self.server.banner)(&self.server.agent)))
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        // Keys of members are public, so offering one proves nothing: each offer counts until one is proven.
        if self.visit.offered() as usize > self.server.agent.config.limits.max_auth_tries {
            return Ok(Auth::reject());
        }
        let roster = self.server.agent.roster.borrow().clone();
        let offered = (offer.public_key, offer.algorithm);
        match self.offers.consider(&roster, user, self.peer.ip(), offered) {
            Ok(()) => Ok(Auth::Accept),
            Err(_) if self.is_bound(user, offer.public_key) => Ok(Auth::Accept),
            Err(refusal) => Ok(self.denied(user, offer.public_key, &refusal)),
        }
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        Ok(Self::possible_methods(user))
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.ask_for_ticket(user, submethods, response))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let is_members = !self.server.agent.roster.borrow().holders(key.public_key.key_data()).is_empty();
        if !is_members && self.is_bound(user, key.public_key) {
            return Ok(self.proved_bound(key.public_key));
        }
        Ok(self.proven(user, Credential::Key(key.public_key.clone()), key.public_key))
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        let key = PublicKey::from(certificate.public_key().clone());
        Ok(self.proven(user, Credential::Certificate(Box::new(certificate.clone())), &key))
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        if let Some(refusal) = &self.refusal {
            return session.disconnect(Disconnect::NoMoreAuthMethodsAvailable, &refusal.to_string(), "");
        }
        if let Some(Err(why)) = &self.slot {
            session.disconnect(Disconnect::TooManyConnections, why, "")?;
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: russh::server::ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let free = self.free.clone().try_acquire_owned();
        let why = match free {
            // The one channel that brings a ticket.
            Ok(permit) if self.door.waits && self.opened == 0 => {
                self.opened += 1;
                self.channels.insert(channel.id(), Waiting::new(channel, permit));
                reply.accept().await;
                return Ok(());
            }
            _ if self.login.borrow().is_none() => "nobody is logged in",
            Ok(permit) if self.opened < MAX_SESSIONS_EVER => {
                self.opened += 1;
                self.channels.insert(channel.id(), Waiting::new(channel, permit));
                reply.accept().await;
                return Ok(());
            }
            Ok(_) => "this connection has had its number of sessions; open a new one",
            Err(_) => "limits.max-sessions-per-connection reached",
        };
        tracing::info!(connection = self.id, "channel refused: {why}");
        reply.reject(ChannelOpenFailure::ResourceShortage).await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let (command, line) = match commands::read(data) {
            Ok(Command::Shell) => return self.start(id, Task::Shell, "shell", session),
            Ok(command) => return self.start(id, Task::Command(command), commands::name(data), session),
            Err(commands::Unread::NoCommand(line)) if data.len() <= MAX_COMMAND => (data.to_vec(), line),
            Err(unread) => return self.refuse(id, &unread.line(), session),
        };
        match self.has_home(id) {
            Ok(()) => self.start(id, Task::Home(What::Command(command)), "home", session),
            // Where nobody has a home, nobody expects one.
            Err(_) if self.server.agent.homes.none_because().is_some() => self.refuse(id, &line, session),
            Err(why) => self.refuse(id, &format!("{line}; {why}"), session),
        }
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        if data.len() <= FEW && self.lodging.waiting.is_much() {
            // The client sends what it was given room for, at once: see `adjust_window`.
            tokio::time::sleep(HOLD).await;
        }
        self.packet(id, data, session)
    }

    fn adjust_window(&mut self, _id: ChannelId, _current: u32) -> u32 {
        match self.lodging.waiting.is_much() {
            true => FEW as u32,
            false => super::WINDOW,
        }
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        _code: u32,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.packet(id, data, session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        let on_terminal = self.channels.get(&id).is_some_and(|waiting| waiting.screen.is_terminal());
        match on_terminal && self.has_home(id).is_ok() {
            true => self.start(id, Task::Home(What::Shell), "home", session),
            false => self.start(id, Task::Shell, "shell", session),
        }
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match name == "sftp" && self.has_home(id).is_ok() {
            true => self.start(id, Task::Home(What::Subsystem(name.to_owned())), "home", session),
            false => session.channel_failure(id),
        }
    }

    async fn agent_request(&mut self, id: ChannelId, _session: &mut Session) -> Result<bool, Self::Error> {
        let may = self.has_home(id).is_ok();
        if let Some(waiting) = self.channels.get_mut(&id) {
            waiting.asked.agent |= may;
            // Nothing is refused here: the channel says so when it gets its command.
            let _ = waiting.take_out();
        }
        Ok(may)
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        originator_address: &str,
        originator_port: u32,
        reply: russh::server::ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let towards = Towards::Port {
            host: host_to_connect.to_owned(),
            port: port_to_connect,
            originator: (originator_address.to_owned(), originator_port),
        };
        self.connect_inside(channel, towards, reply, session).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: russh::server::ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.connect_inside(channel, Towards::Socket(socket_path.to_owned()), reply, session).await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(link) = self.link(session.handle()).await else { return Ok(false) };
        let listening = link.inside.tcpip_forward(address, *port);
        let Ok(listens) = link.inside.answers(listening).await else { return Ok(false) };
        // The sshd names its own port only if it chose one.
        if *port == 0 {
            *port = listens;
        }
        link.allowed.port(address, *port);
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        match self.lodging.made().await {
            Some(link) if link.allowed.no_port(address, port) => {
                let ending = link.inside.cancel_tcpip_forward(address, port);
                Ok(link.inside.answers(ending).await.is_ok())
            }
            _ => Ok(false),
        }
    }

    async fn streamlocal_forward(
        &mut self,
        socket_path: &str,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(link) = self.link(session.handle()).await else { return Ok(false) };
        link.allowed.socket(socket_path);
        Ok(link.inside.answers(link.inside.streamlocal_forward(socket_path)).await.is_ok())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        match self.lodging.made().await {
            Some(link) if link.allowed.no_socket(socket_path) => {
                let ending = link.inside.cancel_streamlocal_forward(socket_path);
                Ok(link.inside.answers(ending).await.is_ok())
            }
            _ => Ok(false),
        }
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(waiting) = self.channels.get_mut(&id) else { return session.channel_failure(id) };
        waiting.screen.open(term, columns);
        waiting.asked.terminal(term, [columns, rows, width, height], modes);
        match waiting.take_out() {
            Ok(()) => session.channel_success(id),
            Err(line) => self.refuse(id, line, session),
        }
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let waits = self.door.waits;
        let Some(waiting) = self.channels.get_mut(&id) else { return session.channel_failure(id) };
        // Also while the connection waits for its token: OpenSSH sends the variables in any order.
        let known = waiting.options.set(name, value) || waiting.screen.set(name, value) || waits;
        if !waits {
            waiting.asked.variable(name, value);
        }
        let taken_out = waiting.take_out();
        if waits {
            self.take_from_environment(name, value, session)?;
        }
        match taken_out {
            Ok(()) if known => session.channel_success(id),
            Ok(()) => session.channel_failure(id),
            Err(line) => self.refuse(id, line, session),
        }
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    // These are not overridden, because their defaults refuse: X11 channels, passwords.
}

/// Runs a task on its channel, then closes the channel with the exit status. When the connection ends, the task is dropped,
/// wherever it is.
async fn run(task: Task, running: Running, listed: (SessionGuard, Counted), warnings: Vec<String>) {
    let Running { opened: (mut channel, _place), screen, caller, agent, records, ended, .. } = running;
    let status = {
        let work = async {
            Terminal::of(&mut channel, screen).warn(&warnings, agent.config.limits.client_stall).await;
            match task {
                Task::Command(command) => {
                    command.run(Terminal::of(&mut channel, screen), agent, caller, &records).await
                }
                // A home has a function of its own, below.
                Task::Shell | Task::Home(_) => {
                    shell::run(&mut channel, screen, &agent, &caller, &records).await
                }
            }
        };
        tokio::select! {
            status = work => status,
            () = ended.cancelled() => return,
        }
    };
    drop(listed);
    let _ = channel.exit_status(status.0).await;
    let _ = channel.eof().await;
    let _ = channel.close().await;
}

/// Runs a session in the member's home. When the connection ends, it is dropped, wherever it is.
async fn run_in_home(
    what: What,
    running: Running,
    listed: (SessionGuard, Counted),
    warnings: Vec<String>,
    (lodging, client): (Arc<Lodging>, russh::server::Handle),
) {
    let Running { opened: (channel, _place), screen, asked, caller, agent, ended, .. } = running;
    let on_terminal = screen.is_terminal();
    let wanted = Wanted { channel, asked, what, lodging, client, on_terminal };
    tokio::select! {
        () = session::run(wanted, &agent, &caller, &warnings) => {}
        () = ended.cancelled() => {}
    }
    drop(listed);
}
