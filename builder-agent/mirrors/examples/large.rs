//! Measures a mirror of a large repository: `cargo run --release -p mirrors --example large [FOLDER [FILES [COMMITS]]]`.
//!
//! The repository is made here. Each commit changes a few of its files, as those of a package collection do. Needs git; mounting
//! the image needs root.

use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Daemon, Mirror, Mounted, command, git};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "/dev/shm".into());
    let mut number = |default| arguments.next().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (files, commits) = (number(40_000_u64), number(5_000_u64));
    let dir = tempfile::tempdir_in(folder).expect("a folder");
    let upstream = dir.path().join("upstream.git");
    fs::create_dir(&upstream).expect("made");
    git(&upstream, &["init", "-q", "--bare", "-b", "master", "."]);
    git(&upstream, &["config", "gc.auto", "0"]);

    timed("make the repository", || import(&upstream, files, commits, 0));
    timed("  and pack it", || git(&upstream, &["repack", "-a", "-d", "-q"]));
    println!("{files} files, {commits} commits, {:.0} MiB in packs", mib(size(&upstream.join("objects"))));

    let mirror = Mirror::of(&format!("file://{}", upstream.display()));
    timed("first synchronisation", || mirror.sync().expect("fetched"));
    timed("with nothing new", || mirror.sync().expect("fetched"));
    import(&upstream, files, 100, commits);
    timed("100 new commits", || mirror.sync().expect("fetched"));

    let before = resident();
    let image = timed("snapshot", || mirrors::snapshot(&mirror.folder()).expect("composed"));
    let metadata = image.segments[0].2;
    let many: Vec<_> = {
        let started = Instant::now();
        let many: Vec<_> = (0..100).map(|_| mirrors::snapshot(&mirror.folder()).expect("composed")).collect();
        println!("snapshot, mean of 100: {:.2} ms", started.elapsed().as_secs_f64() * 10.0);
        many
    };
    println!(
        "image: {:.0} MiB in {} pieces, {} KiB of them generated; 101 of them took {} KiB of this process",
        mib(image.len),
        image.segments.len(),
        metadata >> 10,
        resident().saturating_sub(before) >> 10
    );
    drop(many);

    // The loop device needs one file: this copy is of the measurement, not of a home.
    let file = dir.path().join("image");
    let out = fs::File::create(&file).expect("created");
    let mut at = 0;
    for (piece, offset, len) in &image.segments {
        let there = (*len).min(piece.metadata().expect("a file").len() - offset);
        let mut bytes = vec![0; there as usize];
        piece.read_exact_at(&mut bytes, *offset).expect("read");
        out.write_all_at(&bytes, at).expect("written");
        at += len;
    }
    out.set_len(at).expect("its size");
    let Some(mounted) = Mounted::new(&file, &dir.path().join("m.git")) else { return };
    timed("fsck of the mounted image", || {
        git(&mounted.at, &["fsck", "--connectivity-only", "--no-progress"])
    });

    import(&upstream, files, 10, commits + 100);
    let daemon = Daemon::new(&upstream);
    let url = daemon.url(&upstream);
    daemon.sent();
    let clone = |name: &str, options: &[&str]| {
        let arguments = [&["clone", "-q", "--no-checkout"], options, &[&url, name]].concat();
        timed(&format!("git clone {}", options.first().unwrap_or(&"")), || git(dir.path(), &arguments));
        println!("  fetched {} KiB", daemon.sent() >> 10);
    };
    clone("whole", &[]);
    clone("referring", &["--reference", mounted.at.to_str().expect("text")]);
    timed("git log of all its commits", || {
        git(&dir.path().join("referring"), &["rev-list", "--count", "HEAD"])
    });
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    println!("{what}: {:.3} s", started.elapsed().as_secs_f64());
    result
}

/// Adds commits to `master`, the first of which has all files.
fn import(repository: &Path, files: u64, commits: u64, before: u64) {
    let mut child = command(repository, &["fast-import", "--quiet", "--force", "--depth=10"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("git runs");
    let mut to = BufWriter::new(child.stdin.take().expect("a pipe"));
    let file = |n: u64, version: u64| {
        // Half of it does not compress, as hashes in package descriptions do not.
        let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version.wrapping_mul(0xd6e8_feb8_6659_fd93) | 1;
        let mut text = format!(
            "{{ lib, stdenv, fetchurl }}:\nstdenv.mkDerivation {{ pname = \"p{n}\"; version = \"{version}\";\n"
        );
        for _ in 0..60 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            text.push_str(&format!("  hash = \"{x:016x}\";\n"));
        }
        let path = format!("pkgs/{}/{}/p{n}.nix", n % 50, n / 50 % 100);
        format!("M 100644 inline {path}\ndata {}\n{text}\n", text.len())
    };
    for commit in before..before + commits {
        let from = if commit == before && before > 0 { "from refs/heads/master^0\n" } else { "" };
        let date = 1_700_000_000 + commit;
        let head = format!(
            "commit refs/heads/master\ncommitter T <t@example.org> {date} +0000\ndata 3\nnew\n{from}"
        );
        to.write_all(head.as_bytes()).expect("written");
        let changed: Vec<u64> = if commit == 0 {
            (0..files).collect()
        } else {
            (0..5).map(|i| (commit * 7919 + i * 104_729) % files).collect()
        };
        for n in changed {
            to.write_all(file(n, commit).as_bytes()).expect("written");
        }
        to.write_all(b"\n").expect("written");
    }
    drop(to);
    assert!(child.wait().expect("it ends").success());
}

fn size(folder: &Path) -> u64 {
    let out = Command::new("du").args(["-sb"]).arg(folder).output().expect("du runs").stdout;
    String::from_utf8_lossy(&out).split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Private memory of this process, in bytes.
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    (pages[1] - pages[2]) * 4096
}
