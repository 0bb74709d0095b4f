//! One home that runs: its machine, the connections into it, and what of the store it shows.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use members::{Member, Views};
use nix_derivation::StorePath;
use russh::Channel;
use russh::client::Msg;
use sandbox::home::HomeJob;
use sandbox::{Cancel, Image, Segment};
use store::View;

use crate::dotfiles::Dotfiles;
use crate::inside::{self, Inside, Opened, Outside, Reply};
use crate::keys::Keys;
use crate::machines::{Control, Machine, Machines, Started};
use crate::shown::Shown;
use crate::{Beside, HomeError, Inner, NixDoor, Parts, Terms};
use shares::threads::Workers;

/// Where Nix's clients find their daemon.
const NIX_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";
/// The name of members whose own cannot be the name of a UNIX user.
const ANONYMOUS: &str = "member";
const MAX_USER: usize = 31;
/// Below /etc of a home, whose `gitconfig` includes it.
const SAFE_REPOSITORIES: &str = "gitconfig-repositories";

/// A home that runs.
pub struct Home {
    pub member: Arc<Member>,
    control: Arc<dyn Control>,
    keys: Keys,
    user: String,
    workers: Workers,
    threads: shares::threads::Threads,
    /// What it shows of its member's view. One request at a time.
    shown: Arc<tokio::sync::Mutex<Shown>>,
    pub(crate) dotfiles: Option<Arc<Dotfiles>>,
    /// The connection whose sshd listens for Nix.
    nix: Mutex<Option<Inside>>,
}

/// Starts the machine of a home. Returns when its init answers.
pub(crate) async fn start(
    homes: &Arc<Inner>,
    machines: Arc<dyn Machines>,
    member: &Arc<Member>,
    terms: &Terms,
    cancel: &Cancel,
) -> Result<(Arc<Home>, Box<dyn Machine>), String> {
    let parts = &homes.parts;
    let keys = Keys::make().map_err(|error| format!("no keys can be made: {error}"))?;
    let key = |error: russh::keys::ssh_key::Error| format!("a key cannot be written: {error}");
    let image = image(&parts.settings.image)
        .map_err(|error| format!("{} cannot be read: {error}", parts.settings.image.display()))?;
    let user = user(&member.name);
    let job = HomeJob {
        id: format!("home of {}", member.name),
        user: user.clone(),
        hostname: parts.name.clone(),
        vcpus: terms.vcpus,
        memory_mib: terms.memory_mib,
        root: image,
        network: parts.network,
        etc: etc(parts),
        ssh_host_key: keys.host_file().map_err(key)?,
        authorized_key: keys.authorized().map_err(key)?,
        processes: parts.settings.processes,
        greeting: String::new(),
    };
    let cancel = cancel.clone();
    let starting = parts.threads.alone("home start", move || machines.start(&job, &cancel));
    let started = starting.await.map_err(|lost| lost.to_string())?;
    let Started { control, machine } = started.map_err(|error| error.to_string())?;
    let views = Views::open(&parts.store, &parts.roster, member);
    let home = Home {
        member: member.clone(),
        control,
        keys,
        user,
        workers: parts.threads.of(&member.payer().id),
        threads: parts.threads.clone(),
        shown: Arc::new(tokio::sync::Mutex::new(Shown::new(views))),
        dotfiles: terms.dotfiles.as_deref().map(|source| Dotfiles::new(source, parts.dotfiles_patience)),
        nix: Mutex::default(),
    };
    Ok((Arc::new(home), machine))
}

impl Home {
    /// Makes the socket for Nix.
    pub(crate) fn open(
        self: &Arc<Self>,
        nix: NixDoor,
        beside: Beside,
    ) -> impl Future<Output = Result<(), HomeError>> + use<> {
        let home = self.clone();
        async move {
            let inside = home.connect(Arc::new(ForNix { home: Arc::downgrade(&home), nix })).await?;
            let listening = inside.answers(inside.streamlocal_forward(NIX_SOCKET)).await;
            listening.map_err(|error| {
                HomeError::Silent(format!("its sshd does not listen at {NIX_SOCKET}: {error}"))
            })?;
            *home.nix.lock().unwrap_or_else(PoisonError::into_inner) = Some(inside);
            home.show_beside(beside).await;
            Ok(())
        }
    }

    /// Shows what is beside the store. A home without it is a home.
    async fn show_beside(&self, beside: Beside) {
        let (control, member) = (self.control.clone(), self.member.name.clone());
        let showing = self.threads.alone("home beside", move || {
            for (name, image) in beside() {
                if let Err(error) = control.show_in_root(&image, &name) {
                    tracing::warn!(%member, name, %error, "a home does not show a repository");
                }
            }
        });
        if let Err(lost) = showing.await {
            tracing::error!(error = %lost, "a home shows no repositories; this is a bug");
        }
    }

    /// An ssh connection to an sshd of its own.
    pub(crate) async fn connect(&self, outside: Arc<dyn Outside>) -> Result<Inside, HomeError> {
        let silent = |why: String| HomeError::Silent(why);
        let control = self.control.clone();
        let connecting = self.threads.alone("home connect", move || control.connect());
        let connected = connecting.await.map_err(|lost| silent(lost.to_string()))?;
        let (stream, keep) = connected.map_err(|error| silent(error.to_string()))?;
        let stream = stream.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(stream));
        let stream = stream.map_err(|error| silent(error.to_string()))?;
        inside::connect(stream, keep, &self.keys, &self.user, outside).await.map_err(silent)
    }

    /// Shows these paths in the home's store, with all that they refer to, unless it shows them already. Those that are not
    /// valid in this view are left out.
    pub async fn show(&self, view: View, paths: Vec<StorePath>) -> Result<(), String> {
        let shown = self.shown.clone().lock_owned().await;
        // Most answers are about these, and need no thread.
        if shown.has_all(&paths) {
            return Ok(());
        }
        let making = self.workers.contents(move || {
            let news = shown.news(&view, &paths);
            (shown, news)
        });
        let (mut shown, news) = making.await.map_err(|lost| lost.to_string())?;
        let Some(news) = news? else { return Ok(()) };
        let control = self.control.clone();
        // A thread of its own, as this waits for the guest.
        let attaching = self.threads.alone("home attach", move || {
            let image = news.image.as_ref();
            let attached = control.attach(image, &news.names, &news.files);
            attached.map(|()| shown.has(news.paths)).map_err(|error| error.to_string())
        });
        let attached = attaching.await.map_err(|lost| lost.to_string())?;
        attached.map_err(|why| format!("your home cannot show new store paths: {why}"))?
    }
}

/// Serves what connects to the socket for Nix.
struct ForNix {
    home: Weak<Home>,
    nix: NixDoor,
}

impl Outside for ForNix {
    fn opened(&self, what: Opened, channel: Channel<Msg>, reply: Reply) {
        let Opened::Socket { path } = what else { return };
        let Some(home) = self.home.upgrade().filter(|_| path == NIX_SOCKET) else { return };
        let nix = self.nix.clone();
        tokio::spawn(async move {
            reply.accept().await;
            nix(home, channel.into_stream());
        });
    }
}

/// The file as the image of a machine.
fn image(path: &std::path::Path) -> io::Result<Image> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    if len == 0 || len % 4096 != 0 {
        return Err(io::Error::other(format!("it has {len} bytes, which is no multiple of 4096")));
    }
    Ok(Image { segments: vec![Segment { file: Arc::new(file), offset: 0, len }] })
}

/// For /etc of the home: the box's certificates, and the repositories that git may read although they are not the member's.
fn etc(parts: &Parts) -> Vec<(String, Vec<u8>)> {
    let mut etc = sandbox::certificates(parts.certificates.as_deref(), "a home's");
    let safe = |name: &String| format!("\tdirectory = /{name}\n");
    let repositories: String = parts.repositories.iter().map(safe).collect();
    etc.push((SAFE_REPOSITORIES.to_owned(), format!("[safe]\n{repositories}").into_bytes()));
    etc
}

/// The member's name, if it can be that of a UNIX user (useradd(8)) and is none that systems have.
fn user(name: &str) -> String {
    const TAKEN: [&str; 27] = [
        "root",
        "daemon",
        "bin",
        "sys",
        "sync",
        "games",
        "man",
        "lp",
        "mail",
        "news",
        "uucp",
        "proxy",
        "www-data",
        "backup",
        "list",
        "irc",
        "_apt",
        "nobody",
        "sshd",
        "messagebus",
        "adm",
        "tty",
        "disk",
        "sudo",
        "users",
        "nogroup",
        "shadow",
    ];
    let sound = |(at, letter): (usize, char)| {
        letter.is_ascii_lowercase() || letter == '_' || at > 0 && (letter.is_ascii_digit() || letter == '-')
    };
    let is_sound = !name.is_empty() && name.len() <= MAX_USER && name.chars().enumerate().all(sound);
    match is_sound && !TAKEN.contains(&name) && !name.starts_with("systemd-") {
        true => name.to_owned(),
        false => ANONYMOUS.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_their_own_name_in_the_home_if_it_can_be_that_of_a_user() {
        for name in ["alice", "_bob-2", "j"] {
            assert_eq!(user(name), name);
        }
        let long = "a".repeat(MAX_USER + 1);
        for name in
            ["", "Alice", "2fast", "-x", "a b", "josé", "root", "sshd", "systemd-resolve", long.as_str()]
        {
            assert_eq!(user(name), ANONYMOUS, "{name}");
        }
    }
}
