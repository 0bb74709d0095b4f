//! A member's dotfiles: a new home fetches them once, from the address in the setting `dotfiles`.
//!
//! A script does it (`dotfiles.sh`), as the member, in the home and through the home's network. For the agent it is a session as
//! any other, over the connection of whoever comes first, so that git can use that client's ssh agent. What it says is the
//! member's own and may be anything: it is kept in part, and shown printable. It has a limit in time, and those who come in
//! wait for it only so long: dotfiles keep nobody out. Not here: which addresses are accepted (`roster::settings`).

use std::sync::Arc;
use std::time::Duration;

use ::roster::settings::is_archive;
use russh::ChannelMsg;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::inside::Inside;

const SCRIPT: &str = include_str!("dotfiles.sh");
/// For the script, which has shorter ones for its parts.
const LONGEST: Duration = Duration::from_secs(600);
/// Bytes of its last words, and characters of them that are shown.
const MAX_WORDS: usize = 4096;
const MAX_SHOWN: usize = 400;

/// The dotfiles of one home.
pub struct Dotfiles {
    source: String,
    patience: Duration,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    /// Nobody has come in yet.
    Wanted,
    /// Whoever comes in waits until then.
    Fetching(Instant),
    Ended(Result<(), Arc<str>>),
}

impl Dotfiles {
    pub(crate) fn new(source: &str, patience: Duration) -> Arc<Self> {
        Arc::new(Self { source: source.to_owned(), patience, state: watch::Sender::new(State::Wanted) })
    }

    /// Whether the home has them, or cannot have them.
    #[must_use]
    pub fn are_settled(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended(_))
    }

    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Has them fetched over this connection, if nobody has yet, and waits for the end of it, within limits. `with_agent`: the
    /// client's ssh agent may be used. `Err`: why they are not there.
    pub async fn bring<I>(self: &Arc<Self>, inside: Arc<I>, with_agent: bool) -> Result<(), Arc<str>>
    where
        I: AsRef<Inside> + Send + Sync + 'static,
    {
        let first = self.state.send_if_modified(|state| {
            let first = matches!(state, State::Wanted);
            if first {
                *state = State::Fetching(Instant::now() + self.patience);
            }
            first
        });
        if first {
            let dotfiles = self.clone();
            // It goes on when the client that came first has gone.
            tokio::spawn(async move {
                let fetching = fetch((*inside).as_ref(), &dotfiles.source, with_agent);
                let fetched = timeout(LONGEST, fetching).await;
                let fetched =
                    fetched.unwrap_or_else(|_| Err(format!("not done after {} s", LONGEST.as_secs())));
                dotfiles.state.send_replace(State::Ended(fetched.map_err(Arc::from)));
            });
        }
        let mut state = self.state.subscribe();
        let until = match *state.borrow() {
            State::Fetching(until) => until,
            _ => Instant::now(),
        };
        let ended = timeout_at(until, state.wait_for(|state| matches!(state, State::Ended(_)))).await;
        match ended.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(State::Ended(fetched))) => fetched,
            _ => Err("they are not there yet, and still being fetched".into()),
        }
    }
}

/// The command for the member's shell. The address has no character that means something between single quotes.
fn command(source: &str) -> String {
    let kind = if is_archive(source) { "archive" } else { "git" };
    format!("exec bash -s -- {kind} '{source}'")
}

/// Runs the script. `Err`: its last words.
async fn fetch(inside: &Inside, source: &str, with_agent: bool) -> Result<(), String> {
    let failed = |error: russh::Error| format!("your home runs no command: {error}");
    let mut channel = inside.answers(inside.channel_open_session()).await?;
    if with_agent {
        channel.agent_forward(false).await.map_err(failed)?;
    }
    channel.exec(false, command(source)).await.map_err(failed)?;
    channel.data(SCRIPT.as_bytes()).await.map_err(failed)?;
    channel.eof().await.map_err(failed)?;
    let (mut words, mut status) = (Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                words.extend_from_slice(&data);
                words.drain(..words.len().saturating_sub(MAX_WORDS));
            }
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            ChannelMsg::Close => break,
            _ => {}
        }
    }
    match status {
        Some(0) => Ok(()),
        _ => Err(last(&String::from_utf8_lossy(&words))),
    }
}

/// The last lines of a text as one, printable.
fn last(words: &str) -> String {
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut kept = lines.len();
    let mut size = 0;
    while kept > 0 && size + lines[kept - 1].chars().count() <= MAX_SHOWN {
        size += lines[kept - 1].chars().count() + 2;
        kept -= 1;
    }
    match (lines.is_empty(), &lines[kept.min(lines.len().saturating_sub(1))..]) {
        (true, _) => "it ended without a word".to_owned(),
        (false, last) => printable::start(&last.join("; "), MAX_SHOWN),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// A home directory, and a `curl` that gives a file.
    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            let home = Self(tempfile::tempdir().expect("a folder"));
            fs::create_dir_all(home.path("bin")).expect("made");
            fs::create_dir_all(home.path("home")).expect("made");
            home
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, text).expect("written");
            let is_program = text.starts_with("#!");
            fs::set_permissions(&path, fs::Permissions::from_mode(if is_program { 0o755 } else { 0o644 }))
                .expect("a mode");
        }

        /// The archive with what is in this folder.
        fn serve(&self, folder: &str) {
            let tar = self.path("served.tar.gz");
            let packed =
                Command::new("tar").arg("-czf").arg(&tar).arg("-C").arg(self.path(folder)).arg(".").status();
            assert!(packed.expect("tar").success());
            let curl = format!(
                "#!/bin/sh\nwhile [ \"$1\" != --output ]; do shift; done\ntest \"$4\" = https://example.org/x.tar.gz && cp {} \"$2\"\n",
                tar.display()
            );
            self.write("bin/curl", &curl);
        }

        fn bring(&self) -> Output {
            let path = format!("{}:/usr/bin:/bin", self.path("bin").display());
            let mut shell = Command::new("sh")
                .args(["-c", &command("https://example.org/x.tar.gz")])
                .env_clear()
                .envs([("HOME", self.path("home").as_os_str()), ("PATH", path.as_ref())])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a shell");
            shell.stdin.take().expect("piped").write_all(SCRIPT.as_bytes()).expect("read");
            shell.wait_with_output().expect("its end")
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.path("home").join(name)).ok()
        }
    }

    #[test]
    fn files_of_an_archive_are_linked_and_replace_nothing() {
        let home = Home::new();
        for (name, text) in [
            (".bashrc", "new"),
            (".profile", "new"),
            (".ssh/authorized_keys", "new"),
            (".config/git/config", "new"),
            (".config/old", "new"),
            ("README", "new"),
        ] {
            home.write(&format!("files/dotfiles-main/{name}"), text);
        }
        home.write("home/.profile", "old");
        home.write("home/.config/old", "old");
        home.serve("files");
        let output = home.bring();
        assert!(output.status.success(), "{output:?}");
        let read: Vec<_> =
            [".bashrc", ".profile", ".config/git/config", ".config/old"].map(|name| home.read(name)).into();
        assert_eq!(read, ["new", "old", "new", "old"].map(|text| Some(text.to_owned())));
        for name in [".ssh", "README", ".dotfiles.archive", ".dotfiles.all"] {
            assert!(!home.path("home").join(name).exists(), "{name}");
        }
        assert!(
            home.path("home/.bashrc").is_symlink() && Path::new(&home.path("home/.dotfiles/README")).exists()
        );
    }

    #[test]
    fn a_script_that_installs_is_run_instead_and_its_last_words_are_told() {
        let home = Home::new();
        home.write("files/install.sh", "#!/bin/sh\ncat; pwd > ~/where; echo colour is missing; exit 3\n");
        home.write("files/.bashrc", "new");
        home.serve("files");
        let output = home.bring();
        assert!(!output.status.success());
        assert_eq!(home.read("where"), Some(format!("{}\n", home.path("home/.dotfiles").display())));
        assert_eq!(home.read(".bashrc"), None);
        let told = last(&String::from_utf8_lossy(&output.stderr));
        assert_eq!(told, "colour is missing; install.sh ended with status 3");
    }

    #[test]
    fn last_words_are_short_and_printable() {
        assert_eq!(last(""), "it ended without a word");
        assert_eq!(last("one\n\n two \n"), "one; two");
        let long = format!("first\n{}\nend\u{1b}[2J\n", "x".repeat(MAX_SHOWN));
        assert!(!last(&long).contains('\u{1b}') && !last(&long).contains("first"), "{}", last(&long));
        assert!(last(&"x".repeat(10 * MAX_SHOWN)).chars().count() <= MAX_SHOWN + 10);
    }
}
