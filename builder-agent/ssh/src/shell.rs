//! `ssh box` without a command: an interactive shell on a terminal, and commands line by line from a pipe.
//!
//! It is no shell of an operating system: a line is a command of the table, read by the same parser as `ssh box COMMAND`,
//! and nothing else. Nix's own protocols need the whole channel, so they are not run here.
//! While a command runs, this reads on: Ctrl-C ends the command, and what is typed ahead waits, up to a limit. So a client
//! that sends without reading cannot make both sides wait for each other.
//! Not here: editing a line (`line_editor`), and what a command does (`commands`).

use std::collections::VecDeque;
use std::sync::Arc;

use daemon::{Agent, Caller};
use line_editor::{Editor, Input};
use members::Member;
use members::settings::SETTINGS;
use russh::server::Msg;
use russh::{Channel, ChannelMsg};
use tokio::io::AsyncWriteExt;
use wire::PatientWriter;

use crate::commands::{self, Command, MAX_REQUEST, Purpose, is_maintainer};
use crate::records::Records;
use crate::terminal::{ExitStatus, INTERRUPT, Screen, Terminal};
use complete::{Completion, LEAVE, complete};

mod complete;

/// Bytes that may wait while a command runs.
const MAX_AHEAD: usize = 64 << 10;

/// The client's end of a shell.
struct Shell<'a> {
    channel: &'a mut Channel<Msg>,
    screen: Screen,
    agent: &'a Arc<Agent>,
    caller: &'a Caller,
    records: &'a Records,
    /// Bytes that the client has sent, and nobody has read.
    ahead: VecDeque<u8>,
    /// The client sends nothing more.
    ended: bool,
}

/// Why a command gave no status of its own.
enum Stopped {
    /// Ctrl-C.
    Interrupted,
    /// The client has sent more than [`MAX_AHEAD`].
    TooMuch,
    /// The client has closed the channel, or its member has left.
    Gone,
}

/// Runs until the client leaves. Returns the status of the last command that failed; on a terminal, that of the last
/// command.
pub(crate) async fn run(
    channel: &mut Channel<Msg>,
    screen: Screen,
    agent: &Arc<Agent>,
    caller: &Caller,
    records: &Records,
) -> ExitStatus {
    let _charge = match commands::charge(agent, &caller.member) {
        Ok(charge) => charge,
        Err(over) => {
            let terminal = Terminal::in_shell(channel, screen);
            return terminal.fail(&over, agent.config.limits.client_stall).await;
        }
    };
    let mut shell = Shell { channel, screen, agent, caller, records, ahead: VecDeque::new(), ended: false };
    match screen.is_terminal() {
        true => shell.interact().await,
        false => shell.read_lines().await,
    }
}

impl Shell<'_> {
    /// Sends text to the client; false if it reads nothing.
    async fn show(&mut self, text: &str) -> bool {
        let (stdout, _) = self.screen.writers(self.channel);
        let mut stdout = PatientWriter::new(stdout, self.agent.config.limits.client_stall);
        stdout.write_all(text.as_bytes()).await.is_ok() && stdout.flush().await.is_ok()
    }

    async fn interact(&mut self) -> ExitStatus {
        let name = printable::start(&self.agent.config.name, 40);
        let mut editor = Editor::new(&format!("{name}> "), self.columns());
        let mut status = ExitStatus::DONE;
        let mut out = format!("{name}: `help` lists the commands, Tab completes them, Ctrl-D leaves\r\n");
        loop {
            let Some(byte) = self.ahead.pop_front() else {
                editor.refresh(&mut out);
                if !out.is_empty() && !self.show(&std::mem::take(&mut out)).await {
                    return ExitStatus::FAILED;
                }
                match self.channel.wait().await {
                    None | Some(ChannelMsg::Close | ChannelMsg::Eof) => return status,
                    Some(message) => self.receive(message),
                }
                editor.resize(self.columns());
                continue;
            };
            match editor.feed(byte, &mut out) {
                None => {}
                Some(Input::Complete) => {
                    self.complete(&mut editor, &mut out);
                    // Completion takes longer than any other key, and a client can send nothing but these.
                    tokio::task::yield_now().await;
                }
                Some(Input::End) => {
                    self.show(&out).await;
                    return status;
                }
                Some(Input::Line(line)) => {
                    if !self.show(&std::mem::take(&mut out)).await {
                        return ExitStatus::FAILED;
                    }
                    let line = line.trim();
                    if LEAVE.contains(&line) {
                        return status;
                    }
                    if !line.is_empty() {
                        match self.run(line).await {
                            Ok(ended) => status = ended,
                            Err(Stopped::Interrupted) => out.push_str("^C\r\n"),
                            Err(Stopped::TooMuch | Stopped::Gone) => return ExitStatus::FAILED,
                        }
                    }
                    editor.resize(self.columns());
                }
            }
        }
    }

    fn columns(&self) -> usize {
        self.screen.columns.unwrap_or(80)
    }

    fn complete(&self, editor: &mut Editor, out: &mut String) {
        let maintainer = is_maintainer(&self.agent.roster.borrow(), &self.caller.member);
        let values = |name: &str, words: &[&str]| self.values(name, words, maintainer);
        match complete(&editor.before_cursor(), maintainer, values) {
            Completion::Insert(text) => editor.insert(&text),
            Completion::Choose(words) => {
                editor.refresh(out);
                out.push_str(&format!("\r\n{}\r\n", words.join("  ")));
                editor.show_again();
            }
            Completion::Nothing => out.push('\u{7}'),
        }
    }

    /// What the next word of a command can be, of what exists at this moment and this member may see.
    fn values(&self, name: &str, words: &[&str], maintainer: bool) -> Vec<String> {
        match (name, words) {
            ("builds", ["show" | "log" | "watch" | "cancel"]) => {
                let own = |other: &Member| other.id == self.caller.member.id;
                let builds = self.agent.realiser.scheduler.list(&own);
                builds.iter().map(|build| build.id.to_string()).collect()
            }
            ("kick", []) if maintainer => {
                let open = self.records.connections.list(|_| true);
                open.iter().map(|open| open.member.name.to_string()).collect()
            }
            ("settings", ["--explain"] | ["--json", "--explain"]) => {
                SETTINGS.iter().map(|setting| setting.name.to_owned()).collect()
            }
            ("ticket", ["inspect" | "revoke" | "reveal"]) if self.caller.member.ticket.is_none() => {
                let own = self.agent.tickets.list(|ticket| ticket.maker == self.caller.member.id);
                own.iter().map(|ticket| ticket.name.to_string()).collect()
            }
            ("audit", [.., "--member"]) if maintainer => {
                let roster = self.agent.roster.borrow().clone();
                roster.everybody().map(|member| member.name.to_string()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Runs each line of the client's input.
    async fn read_lines(&mut self) -> ExitStatus {
        let (mut failed, mut lines) = (ExitStatus::DONE, 0);
        while let Some(line) = self.line().await {
            let Ok(line) = line else {
                return self.refuse(&format!("a line longer than {MAX_REQUEST} bytes")).await;
            };
            let line = line.trim();
            lines += 1;
            if LEAVE.contains(&line) {
                return failed;
            }
            // As in scripts: comments and empty lines.
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match self.run(line).await {
                Ok(ExitStatus::DONE) => {}
                Ok(status) => failed = status,
                Err(_) => return ExitStatus::FAILED,
            }
        }
        match lines {
            0 => self.refuse(&commands::none()).await,
            _ => failed,
        }
    }

    /// The next line; `None` at the end of the input, an error for a line that is too long.
    async fn line(&mut self) -> Option<Result<String, ()>> {
        loop {
            let end = self.ahead.iter().position(|byte| *byte == b'\n');
            let length = end.unwrap_or(self.ahead.len());
            if length > MAX_REQUEST {
                return Some(Err(()));
            }
            if end.is_some() || self.ended && length > 0 {
                let line: Vec<u8> = self.ahead.drain(..length).collect();
                self.ahead.pop_front();
                return Some(Ok(String::from_utf8_lossy(&line).into_owned()));
            }
            if self.ended {
                return None;
            }
            match self.channel.wait().await {
                None | Some(ChannelMsg::Close) => return None,
                Some(message) => self.receive(message),
            }
        }
    }

    fn receive(&mut self, message: ChannelMsg) {
        match message {
            ChannelMsg::Data { data } => self.ahead.extend(&data[..]),
            ChannelMsg::Eof => self.ended = true,
            ChannelMsg::WindowChange { col_width, .. } => self.screen.resize(col_width),
            _ => {}
        }
    }

    /// One line on stderr, as for a request that is no command.
    async fn refuse(&mut self, why: &str) -> ExitStatus {
        let (_, stderr) = self.screen.writers(self.channel);
        let mut stderr = PatientWriter::new(stderr, self.agent.config.limits.client_stall);
        // The client may be gone; the exit status is the same.
        let _ = stderr.write_all(self.screen.lines(&format!("{why}\n")).as_bytes()).await;
        let _ = stderr.flush().await;
        ExitStatus::NOT_FOUND
    }

    /// Runs one command to its end, and reads what the client sends meanwhile.
    async fn run(&mut self, line: &str) -> Result<ExitStatus, Stopped> {
        let command = match commands::parse(line.as_bytes()) {
            Ok(Command::Store(_) | Command::Host(_) | Command::Shell) => {
                return Ok(self
                    .refuse("this command is not for the shell; run it as `ssh box COMMAND`")
                    .await);
            }
            Ok(command) => command,
            Err(why) => return Ok(self.refuse(&why).await),
        };
        // As they are now: a shell can be open for days.
        let member = self.agent.roster.borrow().current(&self.caller.member).cloned();
        let Some(member) = member else { return Err(Stopped::Gone) };
        let options = self.caller.options.clone();
        let caller = Caller::outside(member, self.caller.connection, options);
        if let Err(why) = commands::admit(Purpose::Command(&command), self.agent, &caller) {
            return Ok(self.refuse(&why).await);
        }
        let listed = self.records.connections.session(caller.connection, commands::name(line.as_bytes()));
        let terminal = Terminal::in_shell(self.channel, self.screen);
        let mut running = Box::pin(command.run(terminal, self.agent.clone(), caller, self.records));
        let ended = loop {
            tokio::select! {
                status = &mut running => break Ok(status),
                message = self.channel.wait(), if !self.ended => match message {
                    None | Some(ChannelMsg::Close) => break Err(Stopped::Gone),
                    Some(ChannelMsg::Data { data }) if self.screen.is_terminal() && data.contains(&INTERRUPT) => {
                        self.ahead.clear();
                        break Err(Stopped::Interrupted);
                    }
                    Some(ChannelMsg::Data { data }) if self.ahead.len() + data.len() > MAX_AHEAD => {
                        break Err(Stopped::TooMuch);
                    }
                    Some(message) => self.receive(message),
                },
            }
        };
        drop(running);
        drop(listed);
        if let Err(Stopped::TooMuch) = ended {
            self.refuse(&format!("more than {MAX_AHEAD} bytes wait behind a command; send less at once"))
                .await;
        }
        ended
    }
}
