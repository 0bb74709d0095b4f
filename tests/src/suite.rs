//! Root file systems with stock Nix clients, from three Debian releases.
//!
//! Made once by mmdebstrap and kept as tar files below `target/cache/clients`; unpacked once per boot of this machine
//! into memory, where all tests share them read-only. Packages are unpacked without running their scripts: nix and
//! ssh need nothing of what those do, apart from a `passwd` entry for root.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lock::locked;
use crate::{place, process};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Changes when the trees' content must.
const EDITION: u32 = 1;

/// The shared tree of this Debian release, made when it is not there.
pub fn tree(release: &str) -> PathBuf {
    let tar = tar(release);
    let dir = place::memory().join(format!("client-{release}-{EDITION}"));
    locked(&dir.with_extension("lock"), || {
        if !dir.exists() {
            eprintln!("unpacking the {release} client into memory");
            let partial = dir.with_extension("partial");
            let _ = std::fs::remove_dir_all(&partial);
            std::fs::create_dir_all(&partial).expect("a folder in memory");
            process::run(
                Command::new("tar").args(["-x", "--exclude=./dev/*", "-f"]).arg(&tar).arg("-C").arg(&partial),
            )
            .ok();
            finish(&partial);
            std::fs::rename(&partial, &dir).expect("the tree in place");
        }
    });
    dir
}

fn tar(release: &str) -> PathBuf {
    let dir = place::target().join("cache/clients");
    let tar = dir.join(format!("{release}-{EDITION}.tar"));
    locked(&dir.join(format!("{release}.lock")), || {
        if !tar.exists() {
            eprintln!("making the {release} client with mmdebstrap (about half a minute)");
            let partial = dir.join(format!("{release}.partial.tar"));
            process::run(&mut debootstrap(release, &partial)).ok();
            std::fs::rename(&partial, &tar).expect("the tar in place");
        }
    });
    tar
}

fn debootstrap(release: &str, tar: &Path) -> Command {
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=extract", "--format=tar", "--architectures=amd64"])
        .arg("--include=base-files,nix-bin,openssh-client,ca-certificates,busybox-static")
        .args(["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"])
        .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\""])
        // Mirrors that are frozen in time serve a sid whose index is past its date; signatures are still checked.
        .args(["--aptopt=Acquire::Check-Valid-Until \"false\""])
        .args(
            ["doc", "man", "info", "locale"].map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")),
        )
        .arg(release)
        .arg(tar)
        .arg(format!("deb [signed-by={KEYRING}] {} {release} main", mirror()))
        .env("LC_ALL", "C.UTF-8");
    command
}

/// The mirror this machine's apt uses for its own release.
fn mirror() -> String {
    let targets = process::run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CREATED_BY) $(SITE) $(RELEASE) $(COMPONENT)",
    ]))
    .ok();
    let sites = targets.stdout.lines().filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        ["Packages", site, "bookworm" | "trixie" | "forky" | "sid", "main"] => Some(site.to_owned()),
        _ => None,
    });
    sites.into_iter().next().expect("a Debian mirror in apt's configuration")
}

/// What package scripts would have made, and places to mount on.
fn finish(tree: &Path) {
    for (file, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ] {
        std::fs::write(tree.join("etc").join(file), text).expect("a file of the tree");
    }
    for dir in ["nix", "keys", "work"] {
        std::fs::create_dir_all(tree.join(dir)).expect("a folder of the tree");
    }
}
