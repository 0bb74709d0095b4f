//! What happened at this box that concerns who may use it: logins, refused logins, commands of maintainers, changes of the
//! roster. `ssh box audit` shows it.
//!
//! Bounded: the last [`KEPT`] events, and apart from them the last [`LOGINS`] logins and [`STRANGERS`] refused ones, so that
//! nobody can push out what maintainers did, neither by knocking nor by logging in. The file is for the next start of the
//! agent; a thread writes it, so no connection waits for the disk. It is a help for people, and no proof: who can write the
//! file can change it, and the log is what leaves the machine. Not here: who may read it (`commands::audit`).

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use ::roster::date;
use serde::{Deserialize, Serialize};

use crate::quiet::Quiet;

/// Events that are kept, besides logins.
pub(crate) const KEPT: usize = 1000;
/// Logins that are kept.
pub(crate) const LOGINS: usize = 1000;
/// Refused logins that are kept.
pub(crate) const STRANGERS: usize = 500;
/// Longest text of an event, in characters.
const MAX_DETAIL: usize = 300;
/// The file is written anew when it has more lines than this: all that are kept, and room for new ones.
const MAX_LINES: usize = KEPT + LOGINS + STRANGERS + 2500;
/// Largest file that is read: what can be kept, with room. A longer file is read from its end.
const MAX_FILE: u64 = 8 << 20;
/// Events that may wait for the disk.
const WAITING: usize = 1024;
/// The name of the file in the state directory.
const FILE: &str = "audit.jsonl";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Started,
    Login,
    LoginRefused,
    Roster,
    /// The sessions and builds of a member who left the roster have ended.
    Removed,
    Drain,
    Undrain,
    Kick,
    /// A maintainer ended requests of others.
    Cancel,
    Sync,
    /// Another command that only maintainers can run.
    Command,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Login => "login",
            Self::LoginRefused => "login-refused",
            Self::Roster => "roster",
            Self::Removed => "removed",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
            Self::Kick => "kick",
            Self::Cancel => "cancel",
            Self::Sync => "sync",
            Self::Command => "command",
        }
    }
}

/// One event. Fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// In seconds since 1970.
    pub time: u64,
    pub event: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Event {
    pub fn now(event: Kind) -> Self {
        Self { time: date::now(), event, member: None, connection: None, address: None, detail: None }
    }

    pub fn by(mut self, member: &str) -> Self {
        self.member = Some(printable::start(member, 64));
        self
    }

    pub fn on(mut self, connection: u64) -> Self {
        self.connection = Some(connection);
        self
    }

    pub fn from(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// `text` may come from anybody.
    pub fn saying(mut self, text: &str) -> Self {
        self.detail = Some(printable::start(text, MAX_DETAIL));
        self
    }
}

#[derive(Default)]
struct Rings {
    acts: VecDeque<Event>,
    logins: VecDeque<Event>,
    strangers: VecDeque<Event>,
}

impl Rings {
    fn push(&mut self, event: Event) {
        let (ring, most) = match event.event {
            Kind::LoginRefused => (&mut self.strangers, STRANGERS),
            Kind::Login => (&mut self.logins, LOGINS),
            _ => (&mut self.acts, KEPT),
        };
        if ring.len() == most {
            ring.pop_front();
        }
        ring.push_back(event);
    }

    /// All events, the oldest first.
    fn all(&self) -> Vec<Event> {
        let mut all: Vec<Event> =
            self.acts.iter().chain(&self.logins).chain(&self.strangers).cloned().collect();
        all.sort_by_key(|event| event.time);
        all
    }
}

/// The events of one box.
pub(crate) struct Audit {
    rings: Arc<Mutex<Rings>>,
    /// Limits events about strangers, as log lines about them are limited.
    quiet: Quiet,
    writer: SyncSender<Event>,
}

impl Audit {
    /// Goes on with what an earlier start of the agent has left in this folder.
    pub fn open(state_dir: &Path) -> Arc<Self> {
        let path = state_dir.join(FILE);
        let mut rings = Rings::default();
        let lines = match load(&path, &mut rings) {
            // The last line may be cut off, so the first write makes the file anew.
            Ok(lines) if lines > 0 => MAX_LINES,
            Ok(_) => 0,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the earlier events of the audit");
                0
            }
        };
        let rings = Arc::new(Mutex::new(rings));
        let (writer, events) = sync_channel(WAITING);
        let file = Kept { path, file: None, lines, rings: rings.clone(), failed: false };
        if let Err(error) =
            std::thread::Builder::new().name("audit".into()).spawn(move || file.write_all(&events))
        {
            tracing::error!(name = "audit", %error, "cannot start a thread");
        }
        Arc::new(Self { rings, quiet: Quiet::new(), writer })
    }

    pub fn note(&self, event: Event) {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
        // If the disk is too slow, the event is in memory only.
        let _ = self.writer.try_send(event);
    }

    /// Notes an event that a stranger can cause, unless there are too many of them.
    pub fn note_stranger(&self, event: impl FnOnce() -> Event) {
        if self.quiet.line().is_some() {
            self.note(event());
        }
    }

    /// All events, the oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).all()
    }
}

/// Reads the events of a file; returns its number of lines. A line that cannot be read is passed over: the last one may be
/// cut off, and a newer version may have written others.
fn load(path: &Path, rings: &mut Rings) -> io::Result<usize> {
    use std::io::Seek;
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let size = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(size.saturating_sub(MAX_FILE)))?;
    let mut lines = 0;
    for line in BufReader::new(file.take(MAX_FILE)).split(b'\n') {
        lines += 1;
        if let Ok(event) = serde_json::from_slice(&line?) {
            rings.push(event);
        }
    }
    Ok(lines)
}

/// The file, which its own thread writes.
struct Kept {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
    rings: Arc<Mutex<Rings>>,
    /// The last write failed, and that is logged.
    failed: bool,
}

impl Kept {
    fn write_all(mut self, events: &Receiver<Event>) {
        while let Ok(first) = events.recv() {
            let mut batch = vec![first];
            batch.extend(events.try_iter().take(WAITING));
            match self.write(&batch) {
                Ok(()) => self.failed = false,
                Err(error) => {
                    self.file = None;
                    if !std::mem::replace(&mut self.failed, true) {
                        tracing::warn!(path = %self.path.display(), %error, "cannot write events of the audit; they are in memory only");
                    }
                }
            }
        }
    }

    fn write(&mut self, batch: &[Event]) -> io::Result<()> {
        if self.lines + batch.len() > MAX_LINES {
            return self.write_anew();
        }
        let text = json_lines(batch);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(options().append(true).open(&self.path)?),
        };
        self.lines += batch.len();
        file.write_all(text.as_bytes())
    }

    /// Replaces the file by one with what is kept.
    fn write_anew(&mut self) -> io::Result<()> {
        let all = self.rings.lock().unwrap_or_else(PoisonError::into_inner).all();
        self.file = None;
        let new = self.path.with_extension("new");
        options().write(true).truncate(true).open(&new)?.write_all(json_lines(&all).as_bytes())?;
        std::fs::rename(&new, &self.path)?;
        self.lines = all.len();
        Ok(())
    }
}

/// The file has addresses of people.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    options
}

/// One JSON object a line.
pub(crate) fn json_lines(events: &[Event]) -> String {
    // Texts and numbers, which cannot fail.
    events.iter().map(|event| serde_json::to_string(event).unwrap_or_default() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(std::time::Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn lines(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join(FILE)).map_or(0, |text| text.lines().count())
    }

    #[test]
    fn nobody_pushes_out_what_maintainers_did_by_logging_in_or_being_refused() {
        let mut rings = Rings::default();
        rings.push(Event::now(Kind::Kick).by("carol"));
        rings.push(Event::now(Kind::Login).by("alice"));
        (0..10 * KEPT).for_each(|_| rings.push(Event::now(Kind::LoginRefused)));
        assert!(rings.all().iter().any(|event| event.member.as_deref() == Some("alice")));
        (0..10 * KEPT).for_each(|_| rings.push(Event::now(Kind::Login).by("mallory")));
        let all = rings.all();
        assert_eq!(all.len(), 1 + LOGINS + STRANGERS);
        assert!(all.iter().any(|event| event.member.as_deref() == Some("carol")));
    }

    #[test]
    fn events_survive_a_start_and_the_file_stays_bounded() {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(
            dir.path().join(FILE),
            "{\"time\":1,\"event\":\"login\",\"member\":\"old\"}\nnot JSON\n{\"ti",
        )
        .expect("written");
        let audit = Audit::open(dir.path());
        assert_eq!(audit.events().len(), 1, "{:?}", audit.events());
        for n in 0..(MAX_LINES + 10) as u64 {
            audit.note(Event::now(Kind::Login).on(n));
            // The thread may fall behind: then events are in memory only.
            if n % 500 == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        until("the file is not written anew", || {
            audit.note(Event::now(Kind::Login));
            (1..MAX_LINES).contains(&lines(dir.path()))
        });
        assert_eq!(audit.events().len(), LOGINS);
        drop(audit);
        assert!(Audit::open(dir.path()).events().len() > LOGINS / 2);
    }

    #[test]
    fn texts_of_strangers_are_cut_and_printable() {
        let event = Event::now(Kind::LoginRefused).saying(&"\u{1b}[2J".repeat(1000));
        let detail = event.detail.expect("a detail");
        assert!(detail.chars().count() <= MAX_DETAIL + 1 && !detail.contains('\u{1b}'), "{detail}");
    }
}
