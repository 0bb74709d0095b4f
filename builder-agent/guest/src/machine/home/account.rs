//! The member's account in a home, and the files that are about this home and no other.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use guest::protocol::Home;

/// User and group of the member.
pub const MEMBER: u32 = 1000;

/// What sshd needs, and whom a home cannot be without.
const SYSTEM_USERS: [&str; 3] = ["root", "sshd", "nobody"];

/// Longest name that `useradd` makes.
const USER_MAX: usize = 32;

/// Where sshd finds its keys, as the image's sshd_config says.
pub const RUN: &str = "run/home";
pub const LOG: &str = "run/home/sshd.log";

/// Below /nix/var/nix: what each user has a folder in.
const PER_USER: [&str; 2] = ["profiles/per-user", "gcroots/per-user"];

/// Makes the account and the files below `root`.
pub fn create(home: &Home, root: &Path) -> io::Result<()> {
    let user = checked(&home.user)?;
    // No password fits `*`, and sshd does not take it for a locked account.
    for (file, line) in [
        ("passwd", format!("{user}:x:{MEMBER}:{MEMBER}:{user}:/home/{user}:/bin/bash\n")),
        ("shadow", format!("{user}:*:::::::\n")),
        ("group", format!("{user}:x:{MEMBER}:\n")),
    ] {
        let path = root.join("etc").join(file);
        set_entry(&path, user, &line).map_err(|e| named(&path, e))?;
    }
    let place = root.join("home").join(user);
    copy_skeleton(&root.join("etc/skel"), &place).map_err(|e| named(&place, e))?;
    fs::set_permissions(&place, Permissions::from_mode(0o700))?;

    let etc = root.join("etc");
    write(&etc.join("hostname"), 0o644, &format!("{}\n", home.hostname))?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", home.hostname);
    write(&etc.join("hosts"), 0o644, &hosts)?;
    write(&etc.join("motd"), 0o644, &home.greeting)?;
    keys(home, root)?;
    nix(user, &root.join("nix/var/nix"))
}

fn keys(home: &Home, root: &Path) -> io::Result<()> {
    let run = root.join(RUN);
    fs::create_dir_all(&run)?;
    // Where sshd goes before it knows who is there.
    fs::create_dir_all(root.join("run/sshd"))?;
    write(&run.join("ssh_host_key"), 0o600, &with_newline(&home.ssh_host_key))?;
    write(&run.join("authorized_keys"), 0o644, &with_newline(&home.authorized_key))?;
    write(&root.join(LOG), 0o600, "")
}

/// Folders that Nix expects. The member's sshd makes the socket of the daemon, which is the box.
fn nix(user: &str, nix: &Path) -> io::Result<()> {
    let socket = nix.join("daemon-socket");
    fs::create_dir_all(&socket)?;
    let mut owned = vec![socket];
    for folder in PER_USER {
        let folder = nix.join(folder);
        fs::create_dir_all(&folder)?;
        let own = folder.join(user);
        DirBuilder::new().recursive(true).mode(0o755).create(&own)?;
        owned.push(own);
    }
    owned.into_iter().try_for_each(|folder| chown(folder, Some(MEMBER), Some(MEMBER)))
}

/// The agent has checked the name. It becomes a part of lines and paths here, so this is checked where it matters.
fn checked(user: &str) -> io::Result<&str> {
    let is_sound = |user: &str| {
        user.len() <= USER_MAX
            && user.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && user.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    let why = match user {
        user if !is_sound(user) => "is no UNIX user name",
        user if SYSTEM_USERS.contains(&user) => "is a user of the system",
        _ => return Ok(user),
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{user:?} {why}")))
}

/// Puts a line into a file such as /etc/passwd, in place of those with this name or the member's number. Debian has users
/// that nobody is, such as `games`: a member may have that name.
fn set_entry(path: &Path, name: &str, line: &str) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let number = MEMBER.to_string();
    let others = text.lines().filter(|line| {
        let mut fields = line.split(':');
        // In /etc/shadow it is a day, and that one was in 1972.
        fields.next() != Some(name) && fields.nth(1) != Some(&number)
    });
    let mut lines: String = others.flat_map(|line| [line, "\n"]).collect();
    lines += line;
    // Written over and not replaced: mode and group stay.
    fs::write(path, lines)
}

/// Copies a folder of the image, if it is there, for the member.
fn copy_skeleton(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    lchown(to, Some(MEMBER), Some(MEMBER))?;
    let entries = match fs::read_dir(from) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let (kind, source, target) = (entry.file_type()?, entry.path(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_skeleton(&source, &target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            lchown(&target, Some(MEMBER), Some(MEMBER))?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
            chown(&target, Some(MEMBER), Some(MEMBER))?;
        }
    }
    Ok(())
}

fn with_newline(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

/// Writes a file anew; what had its name before, be it a link, is gone.
fn write(path: &Path, mode: u32, contents: &str) -> io::Result<()> {
    let written = || {
        if path.symlink_metadata().is_ok() {
            fs::remove_file(path)?;
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(contents.as_bytes())?;
        file.set_permissions(Permissions::from_mode(mode))
    };
    written().map_err(|e| named(path, e))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))
}
