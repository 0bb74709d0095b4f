//! `home.erofs`: the root file system of homes, the members' throw-away machines.
//!
//! Debian packages like the box's own (`base`), with the files of `image/home` laid over them. The kernel and PID 1 of a
//! home are those of every micro-VM (`guest`); PID 1 mounts this image read-only under a tmpfs, adds the member, and
//! starts sshd. Not here: what PID 1 does, and how the image reaches the box (`release`, `image/initrd/init`).

use crate::base::{self, Base, BaseError, Recipe};
use crate::files;
use crate::root::{self, RootError, chmod, failed, put, remove};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The name of the image, in the initrd and in `/usr/lib/barnraiser` of the box, too.
pub const FILE_NAME: &str = "home.erofs";

/// Packages of a home, besides those that Debian calls essential. Their dependencies add about 150.
pub const PACKAGES: [&str; 45] = [
    // Shells. fish needs python3, which is the reason that a home has it.
    "bash",
    "bash-completion",
    "zsh",
    "fish",
    // The way in and out: PID 1 starts sshd, and files and sessions travel over it.
    "openssh-server",
    "openssh-client",
    "openssh-sftp-server",
    "rsync",
    "mosh",
    // Satisfies a dependency of openssh-server that systemd would satisfy otherwise.
    "systemd-standalone-sysusers",
    // What a session on a terminal needs: sessions that survive a lost line, and the names of today's terminals.
    "tmux",
    "ncurses-term",
    "kitty-terminfo",
    // Editors and pagers.
    "vim",
    "nano",
    "less",
    // Manual pages, which are unpacked here and not on the box; those of system calls and the C library are 2 MB.
    "man-db",
    "manpages",
    "manpages-dev",
    // The work itself. Debian's Nix is stock Nix; its store is the member's view.
    "nix-bin",
    "git",
    "direnv",
    "diffutils",
    "patch",
    "jq",
    "ripgrep",
    "fd-find",
    "tree",
    // Fetching by hand, through the policy of the home's network.
    "curl",
    "wget",
    "ca-certificates",
    // Archives, also of dotfiles. tar and gzip are essential in Debian.
    "xz-utils",
    "zstd",
    "bzip2",
    "unzip",
    "file",
    // A look at the own machine: ps, free; killall, fuser; ss, ip; htop.
    "procps",
    "psmisc",
    "iproute2",
    "htop",
    // Linked by programs that people bring along: the usual build of a program for Linux finds these.
    "libssl3t64",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    // Time zones, for `TZ`.
    "tzdata",
];

/// Not unpacked: documentation other than manual pages, translations, headers.
const EXCLUDED: [&str; 8] = [
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/i18n/*",
    "/usr/share/man/*",
    "/usr/share/vim/vim*/tutor/*",
    "/usr/share/vim/vim*/lang/*",
    // For compiling modules of perl.
    "/usr/lib/x86_64-linux-gnu/perl/*/CORE/*.h",
];

/// Unpacked nevertheless: English manual pages, and licences, which have to go with the programs.
const INCLUDED: [&str; 4] = [
    "/usr/share/man/man[1-9]/*",
    "/usr/share/doc/*/copyright",
    "/usr/share/vim/vim*/tutor/tutor",
    "/usr/share/vim/vim*/tutor/tutor.vim",
];

/// Packages that a home must not have, with the reason. Debian's dependencies change, and a home that quietly gets a
/// second init or a compiler would go unnoticed.
const UNWANTED: [(&str, &str); 8] = [
    ("systemd", "PID 1 is our own program"),
    ("systemd-sysv", "PID 1 is our own program"),
    ("udev", "the devices of a home are known"),
    ("dbus", "nothing speaks it"),
    ("cron", "a home does what its member says"),
    ("sudo", "a member is never root in a home"),
    ("gcc", "compilers come from Nix"),
    ("libx11-6", "there is no screen"),
];

/// Removed from the finished tree.
const PRUNED: [&str; 23] = [
    // The package database: a home is never upgraded in place; the manifest of the release has the versions.
    "var/lib/dpkg",
    "var/lib/apt",
    "var/lib/ucf",
    "var/cache",
    "var/log",
    "etc/apt",
    // Copies that tools made of files they changed.
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    // Of the machine that made the base system; PID 1 writes those of the home.
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    // For inits and timers that a home does not have.
    "etc/init.d",
    "etc/systemd",
    "etc/sv",
    "etc/runit",
    "etc/ufw",
    "etc/cron.daily",
    "etc/cron.weekly",
    "etc/update-motd.d",
    "usr/lib/systemd/system",
    // A new home directory is empty. home-manager and other tools that bring dotfiles refuse to replace a file that is there
    // already, so the defaults of shells and programs are in /etc.
    "etc/skel",
];

/// Removed, too: files that start like this in a folder.
const PRUNED_BY_PREFIX: [(&str, &str); 2] = [
    // sshd's package makes keys when it is installed. They would be the same in all homes, and known to everybody.
    ("etc/ssh", "ssh_host_"),
    // Runlevels.
    ("etc", "rc"),
];

/// Python's compiled modules. They are a third of Python, and few programs here start it.
const COMPILED: &str = "__pycache__";

/// Made empty, because a program or PID 1 expects them; with their permissions.
const FOLDERS: [(&str, u32); 4] =
    [("var/cache", 0o755), ("var/log", 0o755), ("var/lib/dpkg", 0o755), ("etc/skel", 0o755)];

/// The text of the modules that determine the bytes of an image besides its inputs.
const OWN: [&str; 2] = [include_str!("home.rs"), include_str!("root.rs")];

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error(
        "a home would have the package `{package}`, which it must not ({reason})\nhint:  another package depends on it; see which with `apt-cache rdepends {package}`, and change PACKAGES in image/src/home.rs"
    )]
    Unwanted { package: String, reason: &'static str },
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Root(#[from] RootError),
}

/// A finished image, in the cache.
pub struct Home {
    pub image: PathBuf,
    /// Changes with everything that determines the image's bytes.
    pub key: String,
    /// Debian package -> version.
    pub packages: BTreeMap<String, String>,
    /// Bytes of the files in it, before compression.
    pub unpacked: u64,
    /// Whether this run made it; otherwise it was there.
    pub made: bool,
}

/// What the cache keeps beside an image.
#[derive(Serialize, Deserialize)]
struct About {
    unpacked: u64,
    packages: BTreeMap<String, String>,
}

/// The packages of homes: [`PACKAGES`] and `extra`.
pub fn recipe(extra: &[String]) -> Recipe<'_> {
    Recipe {
        what: "base system of homes",
        folder: if extra.is_empty() { "home" } else { "home-with-extras" },
        packages: PACKAGES.into_iter().chain(extra.iter().map(String::as_str)).collect(),
        excluded: &EXCLUDED,
        included: &INCLUDED,
    }
}

/// Makes the image of a base system and the folders `rootfs`, or finds the one made of the same before. It is in the
/// folder of the base system, and replaces the images of other inputs there.
pub fn make(base: &Base, rootfs: &[PathBuf]) -> Result<Home, HomeError> {
    let key = key(&base.key, rootfs)?;
    let dir = base.tar.parent().unwrap_or(Path::new("."));
    let image = dir.join(format!("{key}.erofs"));
    let about = dir.join(format!("{key}.json"));
    if let Some(About { unpacked, packages }) = read_about(&about)
        && image.exists()
    {
        tracing::info!(key, "home: nothing changed");
        return Ok(Home { image, key, packages, unpacked, made: false });
    }
    let staging = root::staging()?;
    let tree = staging.path().join("tree");
    std::fs::create_dir(&tree).map_err(failed("make", &tree))?;
    tracing::info!("home, 1 of 3: unpacking the base system of homes");
    base::unpack(base, &tree)?;
    let packages = base::packages(&tree)?;
    refuse_unwanted(&packages)?;
    tracing::info!("home, 2 of 3: our files");
    lay_out(&tree, rootfs)?;
    let unpacked = strip(&tree)?;
    tracing::info!("home, 3 of 3: compressing {} MB", unpacked / 1_000_000);
    let partial = dir.join(format!("partial-{}.erofs", std::process::id()));
    // Thousands of small files: their ends share blocks with their names. Linux 5.17 and later read that.
    let packed = root::pack(&tree, &partial, &["-Eztailpacking"], "make the root file system of homes");
    if let Err(error) = packed {
        drop(std::fs::remove_file(&partial));
        return Err(error.into());
    }
    for old in root::sorted(dir)? {
        let ending = old.extension().and_then(|ending| ending.to_str());
        if old != partial && matches!(ending, Some("erofs" | "json")) {
            remove(&old)?;
        }
    }
    std::fs::rename(&partial, &image).map_err(failed("move into place", &image))?;
    let json = serde_json::to_vec(&About { unpacked, packages: packages.clone() });
    // After the image: without this file an image does not count.
    put(&about, &json.expect("strings and numbers always serialize"), 0o644)?;
    Ok(Home { image, key, packages, unpacked, made: true })
}

/// Writes `home.erofs` into `out`; returns its size in bytes. A file that is the same already is left alone.
pub fn write(home: &Home, out: &Path) -> Result<u64, HomeError> {
    std::fs::create_dir_all(out).map_err(failed("make", out))?;
    let path = out.join(FILE_NAME);
    let contents = std::fs::read(&home.image).map_err(failed("read", &home.image))?;
    let digest = |mut reader: &mut dyn std::io::Read| files::digest(&mut reader);
    let there = std::fs::File::open(&path).and_then(|mut file| digest(&mut file)).ok();
    if there.is_none() || there != digest(&mut contents.as_slice()).ok() {
        put(&path, &contents, 0o444)?;
    }
    Ok(contents.len() as u64)
}

fn read_about(path: &Path) -> Option<About> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn key(base: &str, rootfs: &[PathBuf]) -> Result<String, HomeError> {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(base.as_bytes());
    // Not the whole program, as for a release: making an image takes long, and most changes of the program do not matter here.
    for text in OWN {
        field(text.as_bytes());
    }
    for folder in rootfs {
        root::hash_tree(folder, &mut field)?;
        field(b"");
    }
    Ok(hex::encode(hash.finalize())[..24].to_owned())
}

fn refuse_unwanted(packages: &BTreeMap<String, String>) -> Result<(), HomeError> {
    for name in packages.keys() {
        let reason = match UNWANTED.iter().find(|(unwanted, _)| name == unwanted) {
            Some((_, reason)) => reason,
            None if name.starts_with("linux-image-") => "the kernel is that of every micro-VM",
            None => continue,
        };
        return Err(HomeError::Unwanted { package: name.clone(), reason });
    }
    Ok(())
}

/// Removes what a home does not need and copies our files over the rest.
fn lay_out(tree: &Path, rootfs: &[PathBuf]) -> Result<(), HomeError> {
    for path in PRUNED {
        remove(&tree.join(path))?;
    }
    for (folder, prefix) in PRUNED_BY_PREFIX {
        if !tree.join(folder).is_dir() {
            continue;
        }
        for path in root::sorted(&tree.join(folder))? {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
                remove(&path)?;
            }
        }
    }
    for (dir, mode) in FOLDERS {
        let path = tree.join(dir);
        std::fs::create_dir_all(&path).map_err(failed("make", &path))?;
        chmod(&path, mode)?;
    }
    for folder in rootfs {
        root::overlay(folder, tree)?;
    }
    Ok(())
}

/// Takes the set-user-id and set-group-id bits of everything, since who is not root in a home must not become it, and
/// removes what was compiled on installation. Returns the bytes of all files.
fn strip(dir: &Path) -> Result<u64, HomeError> {
    let mut bytes = 0;
    for path in root::sorted(dir)? {
        let meta = path.symlink_metadata().map_err(failed("read", &path))?;
        if meta.is_symlink() {
            continue;
        }
        if path.file_name().is_some_and(|name| name == COMPILED) {
            remove(&path)?;
            continue;
        }
        if meta.permissions().mode() & 0o6000 != 0 {
            chmod(&path, meta.permissions().mode() & 0o1777)?;
        }
        bytes += if meta.is_dir() { strip(&path)? } else { meta.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "home_test.rs"]
mod home_test;
