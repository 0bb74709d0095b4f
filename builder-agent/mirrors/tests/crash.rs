//! A mirror works after any instant at which its synchronisation was killed, and after damage from outside.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use mirrors::snapshot;

/// Started by the other tests as a process that they can kill.
#[test]
#[ignore = "the process that another test kills"]
fn a_process_of_its_own_synchronises() {
    let (Ok(dir), Ok(url)) = (std::env::var("MIRROR_DIR"), std::env::var("MIRROR_URL")) else { return };
    let settings = settings(Path::new(&dir), &url);
    loop {
        drop(mirrors::sync(&settings, &settings.repositories[0]));
    }
}

fn syncing(mirror: &Mirror, upstream: &Upstream) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_of_its_own_synchronises", "--ignored"])
        .env("MIRROR_DIR", mirror.dir.path())
        .env("MIRROR_URL", upstream.url())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills every git that works for this mirror.
fn kill_gits(mirror: &Mirror) {
    let wanted = format!("GIT_DIR={}", mirror.folder().display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let ours = environment.split(|b| *b == 0).any(|line| line.starts_with(wanted.as_bytes()));
        if let (true, Ok(pid)) = (ours, entry.file_name().to_string_lossy().parse::<u32>()) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn a_kill_at_any_instant_leaves_a_mirror_that_works() {
    let mut upstream = Upstream::new();
    let mirror = Mirror::of(&upstream.url());
    let mut shown = 0;
    for round in 0..40_u64 {
        let branch = if round % 3 == 0 { format!("branch{}", round % 9) } else { "master".into() };
        if round % 5 == 4 {
            git(upstream.path(), &["update-ref", "-d", "refs/heads/branch3"]);
        }
        upstream.commit(&branch);
        let mut child = syncing(&mirror, &upstream);
        // Not random, but never the same instant: a synchronisation takes about 100 to 300 ms.
        std::thread::sleep(Duration::from_millis(round * 79 % 400));
        child.kill().unwrap();
        if round % 2 == 0 {
            kill_gits(&mirror);
        }
        child.wait().unwrap();
        if let Ok(image) = snapshot(&mirror.folder()) {
            shown += 1;
            Seen::of(&image).check();
        }
        // A git that was left alone may still work; it is waited for.
        if round % 4 == 3 {
            let synced = mirror.sync().unwrap();
            assert!(!synced.anew, "round {round}: nothing was broken");
            let seen = mirror.seen();
            seen.check();
            assert_eq!(
                seen.refs(),
                git(upstream.path(), &["for-each-ref", "--format=%(objectname) %(refname)"]),
                "round {round}"
            );
        }
    }
    assert!(shown > 20, "{shown}");
}

#[test]
fn what_is_broken_or_half_is_made_anew_and_readers_keep_what_they_have() {
    let mut upstream = Upstream::new();
    for _ in 0..20 {
        upstream.commit("master");
    }
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 8] = [
        ("a file in place of the repository", |work| {
            fs::remove_dir_all(work).unwrap();
            fs::write(work, "x").unwrap();
        }),
        ("no objects", |work| fs::remove_dir_all(work.join("objects")).unwrap()),
        ("no pack", |work| {
            for file in fs::read_dir(work.join("objects/pack")).unwrap() {
                fs::remove_file(file.unwrap().path()).unwrap();
            }
        }),
        ("branches that are none", |work| {
            fs::remove_file(work.join("packed-refs")).unwrap();
            fs::write(work.join("packed-refs"), "x\ny\n").unwrap();
        }),
        ("an empty branch of a power cut", |work| {
            fs::create_dir_all(work.join("refs/heads")).unwrap();
            fs::write(work.join("refs/heads/half"), "").unwrap();
        }),
        ("locks of a git that was killed", |work| {
            for lock in [
                "packed-refs.lock",
                "HEAD.lock",
                "objects/pack/tmp_pack_x",
                "objects/pack/multi-pack-index.lock",
            ] {
                fs::write(work.join(lock), "").unwrap();
            }
        }),
        ("a configuration and hooks of somebody else", |work| {
            fs::write(work.join("config"), "[core]\n\tbare = true\n[alias]\n\tx = !reboot\n").unwrap();
            fs::create_dir_all(work.join("hooks")).unwrap();
            fs::write(work.join("objects/info/alternates"), "/nonexistent\n").unwrap();
        }),
        ("no HEAD", |work| fs::remove_file(work.join("HEAD")).unwrap()),
    ];
    for (what, damage) in damages {
        let mirror = Mirror::of(&upstream.url());
        mirror.sync().unwrap();
        damage(&mirror.folder().join("work.git"));
        mirror.seen().check();
        upstream.commit("master");
        let synced = mirror.sync().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(synced.changed, "{what}");
        let seen = mirror.seen();
        seen.check();
        assert_eq!(
            seen.git(&["rev-parse", "HEAD"]),
            git(upstream.path(), &["rev-parse", "master"]),
            "{what}"
        );
        assert!(!mirror.folder().join("work.git/hooks").exists());
    }
}

#[test]
fn damage_that_no_check_sees_ends_after_three_attempts() {
    let mut upstream = Upstream::new();
    for _ in 0..50 {
        upstream.commit("master");
    }
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    // The oldest commits are gone, and no branch names them.
    let work = mirror.folder().join("work.git");
    let pack = fs::read_dir(work.join("objects/pack")).unwrap().map(|e| e.unwrap().path());
    let pack = pack.into_iter().find(|path| path.extension().is_some_and(|e| e == "pack")).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 400].fill(0);
    // Not the file that readers have.
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    let ends: Vec<_> = (0..3)
        .map(|_| {
            upstream.commit("master");
            mirror.sync()
        })
        .collect();
    assert!(ends[0].is_err() && ends[1].is_err(), "{ends:?}");
    assert!(ends[2].as_ref().is_ok_and(|synced| synced.anew), "{ends:?}");
    mirror.seen().check();
}

#[test]
fn git_that_is_missing_is_no_reason_to_remove_a_mirror() {
    let upstream = Upstream::new();
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    let empty = scratch();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_of_its_own_synchronises", "--ignored"])
        .env("MIRROR_DIR", mirror.dir.path())
        .env("MIRROR_URL", upstream.url())
        .env("PATH", empty.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    child.kill().unwrap();
    child.wait().unwrap();
    let status = mirrors::Status::read(mirror.dir.path(), "m").unwrap().unwrap();
    assert!(status.failure.is_some_and(|failure| failure.why.contains("cannot start `git`")));
    assert!(!mirror.sync().unwrap().anew);
}
