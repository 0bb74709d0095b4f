//! A mirror follows upstream, and begins with what a seed has.

mod common;

use std::fs;

use common::*;
use mirrors::{Source, Status};

#[test]
fn a_mirror_has_the_branches_and_tags_of_upstream_and_nothing_else() {
    let mut upstream = Upstream::new();
    upstream.commit("feature");
    upstream.commit("gone");
    git(upstream.path(), &["tag", "-a", "-m", "a tag", "v1", "master"]);
    for hidden in ["refs/pull/1/head", "refs/replace/x", "refs/notes/commits"] {
        git(upstream.path(), &["update-ref", hidden, "master"]);
    }
    let mirror = Mirror::of(&upstream.url());
    let synced = mirror.sync().unwrap();
    assert!(synced.changed && !synced.anew);
    let of_upstream = || {
        git(
            upstream.path(),
            &["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags"],
        )
    };
    assert_eq!(mirror.seen().refs(), of_upstream());
    assert!(!mirror.sync().unwrap().changed, "nothing is new");

    // A branch that is deleted, one that is rewritten, and one in whose place there are two.
    git(upstream.path(), &["update-ref", "-d", "refs/heads/gone"]);
    git(upstream.path(), &["update-ref", "refs/heads/feature", "master"]);
    git(upstream.path(), &["update-ref", "refs/heads/gone/a", "master"]);
    assert!(mirror.sync().unwrap().changed);
    let seen = mirror.seen();
    assert_eq!(
        seen.refs(),
        git(
            upstream.path(),
            &["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags"]
        )
    );
    seen.check();
    assert_eq!(seen.git(&["symbolic-ref", "HEAD"]), "refs/heads/master");
}

#[test]
fn the_branch_that_a_clone_checks_out_is_that_of_upstream() {
    let mut upstream = Upstream::new();
    upstream.commit("trunk");
    upstream.commit("a");
    git(upstream.path(), &["symbolic-ref", "HEAD", "refs/heads/trunk"]);
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    assert_eq!(mirror.seen().git(&["symbolic-ref", "HEAD"]), "refs/heads/trunk");
    // Upstream names a branch that is not there.
    git(upstream.path(), &["symbolic-ref", "HEAD", "refs/heads/none"]);
    git(upstream.path(), &["update-ref", "-d", "refs/heads/trunk"]);
    mirror.sync().unwrap();
    assert_eq!(mirror.seen().git(&["symbolic-ref", "HEAD"]), "refs/heads/master");
}

#[test]
fn the_status_says_how_fresh_a_mirror_is_and_why_the_last_attempt_failed() {
    let mut upstream = Upstream::new();
    let mirror = Mirror::of(&upstream.url());
    let status = || Status::read(mirror.dir.path(), "m").unwrap();
    assert_eq!(status(), None);
    let commit = upstream.commit("master");
    let synced = mirror.sync().unwrap();
    let first = status().unwrap();
    assert_eq!(first, synced.status);
    assert_eq!((first.name.as_str(), first.url), ("m", upstream.url()));
    assert_eq!((first.commit.as_deref(), first.committed), (Some(commit.as_str()), Some(1_700_000_002)));
    assert_eq!((first.head.as_deref(), first.source), (Some("refs/heads/master"), Some(Source::Upstream)));
    assert!(first.checked.is_some() && first.failure.is_none() && first.bytes > 0 && first.packs == 1);

    let away = upstream.path().with_extension("away");
    fs::rename(upstream.path(), &away).unwrap();
    for times in 1..=2 {
        let error = mirror.sync().unwrap_err();
        assert!(error.starts_with("cannot fetch `m` from file://"), "{error}");
        let failure = status().unwrap().failure.unwrap();
        assert_eq!((failure.why.as_str(), failure.times), (error.as_str(), times));
    }
    let failed = status().unwrap();
    assert_eq!((failed.checked, failed.commit), (first.checked, Some(commit)));
    mirror.seen().check();
    fs::rename(&away, upstream.path()).unwrap();
    assert_eq!(mirror.sync().unwrap().status.failure, None);
}

#[test]
fn the_number_of_packs_stays_small_and_there_are_no_loose_objects() {
    let mut upstream = Upstream::new();
    for _ in 0..200 {
        upstream.commit("master");
    }
    let mirror = Mirror::of(&upstream.url());
    let mut most = 0;
    for round in 0..40 {
        upstream.commit("master");
        if round % 10 == 0 {
            upstream.commit(&format!("branch{round}"));
        }
        most = most.max(mirror.sync().unwrap().status.packs);
    }
    assert!(most <= 8, "{most} packs");
    let seen = mirror.seen();
    seen.check();
    let counted = seen.git(&["count-objects", "-v"]);
    assert!(counted.starts_with("count: 0\n"), "{counted}");
    // Readers have a graph of the commits that is right.
    seen.git(&["commit-graph", "verify", "--no-progress"]);
    seen.git(&["multi-pack-index", "verify", "--no-progress"]);
    assert_eq!(seen.git(&["rev-parse", "HEAD"]), git(upstream.path(), &["rev-parse", "master"]));
}

#[test]
fn what_nothing_leads_to_goes_when_the_room_is_needed() {
    let mut upstream = Upstream::new();
    let noise = |seed: u64| -> Vec<u8> {
        let mut x = seed * 2 + 1;
        std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .take(1 << 20)
        .collect()
    };
    let mut mirror = Mirror::of(&upstream.url());
    mirror.settings.max_bytes = 4 << 20;
    upstream.commit("master");
    // Each time the branch is another MiB, and not a descendant of the one before.
    for round in 0..8 {
        let mut stream = format!(
            "commit refs/heads/big\ncommitter T <t@example.org> {round} +0000\ndata 1\nx\ndeleteall\nM 100644 inline f\ndata {}\n",
            1 << 20
        )
        .into_bytes();
        stream.extend(noise(round));
        stream.extend(b"\n");
        git(upstream.path(), &["update-ref", "-d", "refs/heads/big"]);
        fast_import(upstream.path(), &stream);
        let synced = mirror.sync().unwrap_or_else(|error| panic!("round {round}: {error}"));
        assert!(synced.status.bytes < 4 << 20);
        mirror.seen().check();
    }
    mirror.seen().git(&["commit-graph", "verify", "--no-progress"]);
}

fn bundle(upstream: &Upstream, to: &std::path::Path) {
    git(upstream.path(), &["bundle", "create", "-q", to.to_str().unwrap(), "--all", "HEAD"]);
}

#[test]
fn a_mirror_begins_with_the_seed_and_needs_no_upstream_for_that() {
    let mut upstream = Upstream::new();
    upstream.commit("old");
    git(upstream.path(), &["tag", "-a", "-m", "a tag", "v1", "master"]);
    let files = scratch();
    let file = files.path().join("x.bundle");
    bundle(&upstream, &file);
    let contents = fs::read(&file).unwrap();
    let server = Server::http(move |path| {
        assert_eq!(path, "/x.bundle");
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", contents.len());
        [head.as_bytes(), &contents].concat()
    });
    let at_seed = git(upstream.path(), &["for-each-ref", "--format=%(objectname) %(refname)"]);
    let copy = files.path().join("copy.git");
    git(upstream.path(), &["clone", "-q", "--mirror", ".", copy.to_str().unwrap()]);
    let seeds = [
        format!("m=http://127.0.0.1:{}/x.bundle", server.port),
        format!("m=file://{}", file.display()),
        format!("m=file://{}", copy.display()),
    ];
    for seed in seeds {
        let mut mirror = Mirror::of("file:///nonexistent");
        mirror.settings.seeds = vec![seed.parse().unwrap()];
        mirror.sync().unwrap_err();
        let status = Status::read(mirror.dir.path(), "m").unwrap().unwrap();
        assert_eq!(
            (status.source, status.checked, &status.seed_failure),
            (Some(Source::Seed), None, &None),
            "{seed}"
        );
        assert_eq!(status.head.as_deref(), Some("refs/heads/master"), "{seed}");
        assert_eq!(mirror.seen().refs(), at_seed, "{seed}");

        // Only what is new comes from upstream; what it does not have disappears.
        git(upstream.path(), &["update-ref", "-d", "refs/heads/old"]);
        upstream.commit("new");
        mirror.settings.repositories = vec![format!("m={}", upstream.url()).parse().unwrap()];
        let status = mirror.sync().unwrap().status;
        assert_eq!((status.source, status.failure), (Some(Source::Upstream), None));
        assert_eq!(
            mirror.seen().refs(),
            git(upstream.path(), &["for-each-ref", "--format=%(objectname) %(refname)"])
        );
        assert_eq!(fs::read_dir(mirror.folder()).unwrap().count(), 3, "lock, work.git and shown");
        git(upstream.path(), &["update-ref", "-d", "refs/heads/new"]);
        git(upstream.path(), &["update-ref", "refs/heads/old", at_seed.split(' ').next().unwrap()]);
    }
}

#[test]
fn a_clone_that_refers_to_the_mirror_fetches_only_what_is_new() {
    let mut upstream = Upstream::new();
    for _ in 0..300 {
        upstream.commit("master");
    }
    let mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    let seen = mirror.seen();
    let new = upstream.commit("master");
    let daemon = Daemon::new(upstream.path());
    let url = daemon.url(upstream.path());
    let work = scratch();
    daemon.sent();
    git(work.path(), &["clone", "-q", &url, "whole"]);
    let whole = daemon.sent();
    git(work.path(), &["clone", "-q", "--reference", seen.path().to_str().unwrap(), &url, "referring"]);
    let referring = daemon.sent();
    assert!(whole > 20_000 && referring < 3000, "{whole} and {referring} bytes");
    for clone in ["whole", "referring"] {
        assert_eq!(git(&work.path().join(clone), &["rev-parse", "HEAD"]), new);
    }
    git(&work.path().join("referring"), &["fsck", "--connectivity-only", "--no-progress"]);
    git(work.path(), &["clone", "-q", seen.path().to_str().unwrap(), "local"]);
}
