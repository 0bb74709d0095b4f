//! A session in a home: a shell, a command, or a subsystem, with or without a terminal.

use std::sync::Arc;
use std::time::Duration;

use daemon::{Agent, Caller};
use roster::date;
use russh::client::Msg as HomeMsg;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Pty, Sig};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::carry::{give, take};
use super::lodging::{Inlet, Link, Lodging};
use crate::commands;
use crate::terminal::{ExitStatus, STDERR};

/// Most variables, and bytes of them, that a client may set for a session.
const MAX_VARIABLES: usize = 64;
const MAX_VARIABLE_BYTES: usize = 16 << 10;
/// Most bytes of a command.
pub(crate) const MAX_COMMAND: usize = 128 << 10;
/// For a home that has ended to be told as the reason why a session has.
const REASON: Duration = Duration::from_millis(500);

/// What the client has asked for its channel before it said what to run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Asked {
    terminal: Option<Terminal>,
    variables: Vec<(String, String)>,
    /// Bytes of them.
    bytes: usize,
    pub agent: bool,
}

#[derive(Debug, Clone)]
struct Terminal {
    kind: String,
    /// Columns, rows, and the same in pixels.
    size: [u32; 4],
    modes: Vec<(Pty, u32)>,
}

impl Asked {
    pub fn terminal(&mut self, kind: &str, size: [u32; 4], modes: &[(Pty, u32)]) {
        // A name of a terminal is short (term(7)).
        let kind = kind.chars().take(64).collect();
        self.terminal = Some(Terminal { kind, size, modes: modes.iter().copied().take(256).collect() });
    }

    /// Notes a variable for the session, as far as there is room; the sshd of the home decides about it.
    pub fn variable(&mut self, name: &str, value: &str) {
        let bytes = self.bytes + name.len() + value.len();
        if self.variables.len() < MAX_VARIABLES && bytes <= MAX_VARIABLE_BYTES {
            self.bytes = bytes;
            self.variables.push((name.to_owned(), value.to_owned()));
        }
    }
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Shell,
    Command(Vec<u8>),
    Subsystem(String),
}

/// How a session ended.
pub(crate) enum End {
    Status(u32),
    Signal { signal: Sig, core_dumped: bool, message: String },
}

/// A channel of the client that wants a session in the home.
pub(crate) struct Wanted {
    pub channel: Channel<Msg>,
    pub asked: Asked,
    pub what: What,
    pub lodging: Arc<Lodging>,
    pub client: Handle,
    /// For people: they are told what happens.
    pub on_terminal: bool,
}

/// Runs until the session, or the home, has ended, then closes the channel.
pub(crate) async fn run(wanted: Wanted, agent: &Arc<Agent>, caller: &Caller, warnings: &[String]) {
    let Wanted { channel, asked, what, lodging, client, on_terminal } = wanted;
    let id = channel.id();
    let (reads, writes) = channel.split();
    let say = async |text: &str| {
        let text = if on_terminal { text.replace('\n', "\r\n") } else { text.to_owned() };
        // A client that is gone learns nothing.
        let _ = writes.extended_data_bytes(STDERR, text.into_bytes()).await;
    };
    for warning in warnings {
        say(&format!("warning: {warning}\n")).await;
    }
    let run = async {
        let _charge = commands::charge(agent, &caller.member)?;
        if on_terminal && agent.homes.of(&caller.member).is_none() {
            say("starting your home ...\n").await;
        }
        let link = lodging.link(agent, caller, &client).await?;
        if on_terminal && what == What::Shell {
            say(&greeting(&agent.config.name, &link)).await;
        }
        if asked.agent {
            link.allowed.agent();
        }
        if let Some(dotfiles) = link.visit.dotfiles() {
            if on_terminal {
                say(&format!("fetching your dotfiles from {} ...\n", dotfiles.source())).await;
            }
            // They keep nobody out.
            if let Err(why) = dotfiles.bring(link.clone(), asked.agent).await {
                say(&format!("warning: your dotfiles from {}: {why}\n", dotfiles.source())).await;
            }
        }
        let inner = begin(&link, &asked, &what).await?;
        let ended = carry(reads, &writes, inner, &lodging.inlet(agent, caller)).await?;
        let ended = match ended {
            Some(ended) => Ok(ended),
            None => match timeout(REASON, link.visit.ended()).await {
                Ok(why) => Err(format!("your home has ended: {why}")),
                Err(_) => Err("the connection into your home was lost".to_owned()),
            },
        };
        if on_terminal && what == What::Shell && ended.is_ok() && !link.visit.is_shared() {
            say(&farewell(&link)).await;
        }
        ended
    };
    match run.await {
        Ok(End::Status(status)) => {
            let _ = writes.exit_status(status).await;
        }
        Ok(End::Signal { signal, core_dumped, message }) => {
            let _ = client.exit_signal_request(id, signal, core_dumped, message, String::new()).await;
        }
        Err(why) => {
            say(&format!("error: {why}\n")).await;
            let _ = writes.exit_status(ExitStatus::LOST.0).await;
        }
    }
    let _ = writes.eof().await;
    let _ = writes.close().await;
}

/// Asks the sshd in the home for the same session.
async fn begin(link: &Link, asked: &Asked, what: &What) -> Result<Channel<HomeMsg>, String> {
    let failed = |error: russh::Error| format!("your home opens no session: {error}");
    let opening = link.inside.channel_open_session();
    let mut inner =
        link.inside.answers(opening).await.map_err(|why| format!("your home opens no session: {why}"))?;
    if asked.agent {
        inner.agent_forward(false).await.map_err(failed)?;
    }
    for (name, value) in &asked.variables {
        inner.set_env(false, name.as_str(), value.as_str()).await.map_err(failed)?;
    }
    if let Some(Terminal { kind, size: [columns, rows, width, height], modes }) = &asked.terminal {
        inner.request_pty(false, kind, *columns, *rows, *width, *height, modes).await.map_err(failed)?;
    }
    match what {
        What::Shell => inner.request_shell(true).await,
        What::Command(command) => inner.exec(true, command.clone()).await,
        What::Subsystem(name) => inner.request_subsystem(true, name.as_str()).await,
    }
    .map_err(failed)?;
    let granted = async {
        loop {
            match inner.wait().await {
                Some(ChannelMsg::Success) => return Ok(true),
                Some(ChannelMsg::WindowAdjusted { .. }) => {}
                _ => return Ok(false),
            }
        }
    };
    match link.inside.answers(granted).await? {
        true => Ok(inner),
        false => Err(format!("your home refuses to run the {}", what.name())),
    }
}

impl What {
    fn name(&self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Command(_) => "command",
            Self::Subsystem(_) => "subsystem",
        }
    }
}

/// Carries the session. `None`: it ended without a status, or the client has closed the channel. Fails if too much of what
/// the client sends waits.
async fn carry(
    client: ChannelReadHalf,
    to_client: &ChannelWriteHalf<Msg>,
    inner: Channel<HomeMsg>,
    inlet: &Inlet,
) -> Result<Option<End>, String> {
    let (mut from_home, to_home) = inner.split();
    let (to, from) = mpsc::unbounded_channel();
    let mut end = None;
    let outwards = async {
        while let Some(message) = from_home.wait().await {
            let carried = match message {
                ChannelMsg::Data { data } => to_client.data_bytes(data).await,
                ChannelMsg::ExtendedData { data, ext } => to_client.extended_data_bytes(ext, data).await,
                ChannelMsg::ExitStatus { exit_status } => {
                    end = Some(End::Status(exit_status));
                    Ok(())
                }
                ChannelMsg::ExitSignal { signal_name, core_dumped, error_message, .. } => {
                    let message = printable::start(&error_message, 200).to_string();
                    end = Some(End::Signal { signal: signal_name, core_dumped, message });
                    Ok(())
                }
                ChannelMsg::Close => return,
                _ => Ok(()),
            };
            if carried.is_err() {
                return;
            }
        }
    };
    let gone = take(client, to, inlet);
    let inwards = async {
        give(from, &to_home).await;
        // The end of the input is not the end of the session.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        () = outwards => Ok(()),
        gone = gone => gone.map_err(|over| over.to_string()),
        () = inwards => Ok(()),
    };
    let _ = to_home.close().await;
    ended.map(|()| end)
}

fn greeting(name: &str, link: &Link) -> String {
    let terms = link.visit.terms();
    format!(
        "Your home on {}: {} processors, {} MiB of memory for programs and files. Everything in it is thrown away {} after your \
         last session; if this one ended now, at {}.\n",
        printable::start(name, 40),
        terms.vcpus,
        terms.memory_mib,
        span(terms.ttl),
        date::shown(link.visit.goes_at()),
    )
}

fn farewell(link: &Link) -> String {
    format!("Your home will be thrown away at {} unless you come back.\n", date::shown(link.visit.goes_at()))
}

/// A time, for people.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7200 => format!("{} minutes", seconds / 60),
        _ => format!("{} hours", seconds / 3600),
    }
}
