//! A snapshot is a repository of one moment, and nothing but the mirror, whatever happens to its folder.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use mirrors::{SnapshotError, Status, snapshot};

#[test]
fn branches_name_only_objects_of_the_snapshot_while_a_synchronisation_runs() {
    let mut upstream = Upstream::new();
    let mirror = Arc::new(Mirror::of(&upstream.url()));
    mirror.sync().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, mirrored) = (Arc::clone(&stop), Arc::clone(&mirror));
    let syncer = std::thread::spawn(move || {
        let mut syncs = 0;
        while !stopped.load(Ordering::SeqCst) {
            match syncs % 4 {
                3 => git(upstream.path(), &["update-ref", "refs/heads/branch1", "master~1"]),
                n => upstream.commit(&if n == 0 { "master".to_owned() } else { format!("branch{n}") }),
            };
            mirrored.sync().unwrap();
            syncs += 1;
        }
        syncs
    });
    let mut versions = std::collections::BTreeSet::new();
    // Many are opened in the time in which one is checked.
    for _ in 0..60 {
        let mut last = None;
        for _ in 0..200 {
            last = Some(snapshot(&mirror.folder()).unwrap_or_else(|error| panic!("{}", chain(&error))));
        }
        let seen = Seen::of(&last.unwrap());
        seen.check();
        versions.insert(seen.refs());
    }
    stop.store(true, Ordering::SeqCst);
    let syncs = syncer.join().unwrap();
    assert!(syncs > 10 && versions.len() > 5, "{syncs} synchronisations, {} versions", versions.len());
}

#[test]
fn a_snapshot_stays_as_it_is_when_the_mirror_changes_or_goes() {
    let mut upstream = Upstream::new();
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    let image = snapshot(&mirror.folder()).unwrap();
    let before = Seen::of(&image).refs();
    for _ in 0..5 {
        upstream.commit("master");
        mirror.sync().unwrap();
    }
    fs::remove_dir_all(mirror.folder()).unwrap();
    let seen = Seen::of(&image);
    seen.check();
    assert_eq!(seen.refs(), before);
    assert!(matches!(snapshot(&mirror.folder()), Err(SnapshotError::NotYet(_))));
}

#[test]
fn everything_in_a_mounted_snapshot_belongs_to_root_and_cannot_be_written() {
    let mut upstream = Upstream::new();
    upstream.commit("master");
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    let dir = scratch();
    let image = dir.path().join("image");
    write_image(&snapshot(&mirror.folder()).unwrap(), &image);
    let Some(mounted) = Mounted::new(&image, &dir.path().join("m.git")) else { return };
    let listed = Command::new("find").arg(&mounted.at).args(["-printf", "%y %m %U:%G\n"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.lines().count() > 10, "{listed}");
    assert!(listed.lines().all(|line| ["d 555 0:0", "f 444 0:0"].contains(&line)), "{listed}");
    git(&mounted.at, &["fsck", "--connectivity-only", "--no-progress"]);
    git(dir.path(), &["clone", "-q", "--reference", mounted.at.to_str().unwrap(), &upstream.url(), "c"]);
}

/// What the user of git could put into the folder, with what must be said about it.
#[test]
fn a_folder_that_was_taken_over_shows_nothing_but_files_of_its_owner() {
    let upstream = Upstream::new();
    let secret = scratch();
    let secret = secret.path().join("secret");
    fs::write(&secret, "the host key").unwrap();
    type Attack = fn(&std::path::Path, &std::path::Path);
    let attacks: [(&str, Attack); 8] = [
        ("a link in place of a pack", |shown, secret| {
            symlink(secret, shown.join("objects/pack/pack-0000000000000000000000000000000000000000.pack"))
                .unwrap();
        }),
        ("a link in place of the branches", |shown, secret| {
            fs::remove_file(shown.join("packed-refs")).unwrap();
            symlink(secret, shown.join("packed-refs")).unwrap();
        }),
        ("a link in place of a folder", |shown, secret| {
            fs::remove_dir_all(shown.join("objects/info")).unwrap();
            symlink(secret.parent().unwrap(), shown.join("objects/info")).unwrap();
            fs::write(secret.parent().unwrap().join("commit-graph"), "x").unwrap();
        }),
        ("a link in place of the whole", |shown, secret| {
            fs::rename(shown, shown.with_extension("moved")).unwrap();
            symlink(secret.parent().unwrap(), shown).unwrap();
        }),
        ("a pipe", |shown, _| {
            let path = shown.join("objects/pack/multi-pack-index");
            drop(fs::remove_file(&path));
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        }),
        ("a second name of somebody's file", |shown, secret| {
            let file = shown.join("objects/pack/pack-0000000000000000000000000000000000000000.idx");
            fs::hard_link(secret, &file).unwrap();
            // Tests run as root, to whom the folder belongs; the file is somebody else's.
            std::os::unix::fs::chown(secret, Some(12345), None).unwrap();
        }),
        ("a HEAD that is no branch", |shown, _| {
            fs::write(shown.join("HEAD"), "ref: ../../etc/passwd\n").unwrap();
        }),
        ("many files", |shown, _| {
            for n in 0..5000 {
                fs::write(shown.join(format!("objects/pack/pack-{n:040}.pack")), "").unwrap();
            }
        }),
    ];
    for (what, attack) in attacks {
        if what.starts_with("a second name") && fs::metadata("/proc/self").unwrap().uid() != 0 {
            eprintln!("SKIPPED: {what}: only root can give files away");
            continue;
        }
        let mirror = Mirror::of(&upstream.url());
        mirror.sync().unwrap();
        attack(&mirror.folder().join("shown"), &secret);
        let error = match snapshot(&mirror.folder()) {
            Err(error) => chain(&error),
            Ok(_) => panic!("{what}: it was shown"),
        };
        assert!(!error.contains("host key"), "{what}: {error}");
    }
}

#[test]
fn configuration_hooks_and_alternates_of_the_folder_are_not_shown() {
    let upstream = Upstream::new();
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    let shown = mirror.folder().join("shown");
    fs::write(shown.join("config"), "[core]\n\tfsmonitor = reboot\n").unwrap();
    fs::create_dir(shown.join("hooks")).unwrap();
    fs::write(shown.join("hooks/post-checkout"), "reboot").unwrap();
    fs::set_permissions(shown.join("hooks/post-checkout"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(shown.join("objects/info/alternates"), "/persist\n").unwrap();
    let seen = mirror.seen();
    seen.check();
    let config = fs::read_to_string(seen.path().join("config")).unwrap();
    assert!(!config.contains("fsmonitor") && config.contains("bare = true"), "{config}");
    for unseen in ["hooks", "objects/info/alternates"] {
        assert!(!seen.path().join(unseen).exists(), "{unseen}");
    }
}

#[test]
fn a_status_that_was_taken_over_is_refused_or_made_printable() {
    let dir = scratch();
    let path = dir.path().join("m.json");
    fs::write(&path, r#"{"name":"m","url":"x","failure":{"why":"a\u001b]0;x\u0007\nb","at":1,"times":1}}"#)
        .unwrap();
    let status = Status::read(dir.path(), "m").unwrap().unwrap();
    assert_eq!(status.failure.unwrap().why, "a\u{fffd}]0;x\u{fffd} b");
    fs::write(&path, vec![b' '; 100_000]).unwrap();
    assert!(Status::read(dir.path(), "m").is_err());
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(Status::read(dir.path(), "m").is_err());
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    assert!(Status::read(dir.path(), "m").is_err());
}
