//! What upstream or a seed can try: the mirror stays as it is, within its limits, and the reason is told.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::*;
use mirrors::{Source, Status};

/// A mirror of `upstream` that has been fetched once, and follows `url` from now on.
fn mirror_that_moves_to(upstream: &Upstream, url: &str) -> Mirror {
    let mut mirror = Mirror::of(&upstream.url());
    mirror.sync().unwrap();
    mirror.settings.repositories = vec![format!("m={url}").parse().unwrap()];
    mirror
}

#[test]
fn an_upstream_that_is_too_large_is_refused_and_leaves_nothing() {
    let mut upstream = Upstream::new();
    let mut mirror = Mirror::of(&upstream.url());
    mirror.settings.max_bytes = 8 << 20;
    mirror.sync().unwrap();
    let before = mirror.seen().refs();
    let mut x = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .take(12 << 17)
    .flatten()
    .collect();
    let mut stream = format!(
        "commit refs/heads/big\ncommitter T <t@example.org> 1 +0000\ndata 1\nx\nM 100644 inline f\ndata {}\n",
        noise.len()
    )
    .into_bytes();
    stream.extend(&noise);
    stream.extend(b"\n");
    fast_import(upstream.path(), &stream);
    let error = mirror.sync().unwrap_err();
    assert!(error.contains("8 MiB") && error.contains("mirrors.max-mib"), "{error}");
    assert_eq!(mirror.seen().refs(), before);
    // The next attempt removes what was received, and goes on when upstream is small again.
    git(upstream.path(), &["update-ref", "-d", "refs/heads/big"]);
    upstream.commit("master");
    let status = mirror.sync().unwrap().status;
    assert!(status.bytes < 1 << 20, "{status:?}");
    mirror.seen().check();
}

#[test]
fn an_upstream_that_sends_without_end_or_never_is_ended_at_a_limit() {
    let upstream = Upstream::new();
    // Speaks git's protocol as far as the list of branches, which never ends.
    let list = Server::new(|mut stream| {
        let mut request = [0; 512];
        let _ = stream.read(&mut request);
        let mut n = 0_u64;
        while stream.write_all(format!("003d{n:040x} refs/heads/{n:08}\n").as_bytes()).is_ok() {
            n += 1;
        }
    });
    let silent = Server::new(|mut stream| {
        let mut request = [0; 512];
        while stream.read(&mut request).is_ok_and(|n| n > 0) {}
        std::thread::sleep(Duration::from_secs(60));
    });
    for server in [list, silent] {
        let mut mirror = mirror_that_moves_to(&upstream, &format!("git://127.0.0.1:{}/x", server.port));
        mirror.settings.patience.quiet = Duration::from_secs(2);
        let started = Instant::now();
        let error = mirror.sync().unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(20), "{error}");
        mirror.seen().check();
        let status = Status::read(mirror.dir.path(), "m").unwrap().unwrap();
        assert!(status.failure.is_some_and(|failure| failure.why == error));
    }
}

#[test]
fn objects_that_would_harm_a_clone_are_refused() {
    // A tree with `.git`, one with `..`, and a submodule whose URL is an option.
    let evil = |name: &str, mode: &str, what: &str| {
        let mut upstream = Upstream::new();
        upstream.commit("master");
        let blob = {
            let file = upstream.path().join("blob");
            fs::write(&file, what).unwrap();
            git(upstream.path(), &["hash-object", "-w", "--literally", "-t", "blob", file.to_str().unwrap()])
        };
        let mut tree = format!("{mode} {name}\0").into_bytes();
        tree.extend((0..20).map(|i| u8::from_str_radix(&blob[2 * i..2 * i + 2], 16).unwrap()));
        let file = upstream.path().join("tree");
        fs::write(&file, tree).unwrap();
        let tree =
            git(upstream.path(), &["hash-object", "-w", "--literally", "-t", "tree", file.to_str().unwrap()]);
        let commit = git(upstream.path(), &["commit-tree", "-m", "x", &tree]);
        (upstream, commit)
    };
    for (name, mode, what, said) in [
        (".git", "100644", "x", "hasDotgit"),
        ("..", "100644", "x", "hasDotdot"),
        (".gitmodules", "100644", "[submodule \"x\"]\n\tpath = x\n\turl = -u./payload\n", "gitmodules"),
        (".gitmodules", "120000", "/etc/passwd", "gitmodules"),
        ("a/b", "100644", "x", "fullPathname"),
    ] {
        let (upstream, commit) = evil(name, mode, what);
        let mut mirror = Mirror::of(&upstream.url());
        mirror.sync().unwrap();
        let before = mirror.seen().refs();
        git(upstream.path(), &["update-ref", "refs/heads/evil", &commit]);
        let error = mirror.sync().unwrap_err();
        assert!(error.contains(said), "{name}: {error}");
        let seen = mirror.seen();
        assert_eq!(seen.refs(), before, "{name}");

        // The same from a seed: it is not used, and upstream is.
        let bundle = upstream.path().join("evil.bundle");
        git(upstream.path(), &["bundle", "create", "-q", bundle.to_str().unwrap(), "--all"]);
        git(upstream.path(), &["update-ref", "-d", "refs/heads/evil"]);
        for seed in [format!("m=file://{}", bundle.display()), "m=file:///nonexistent.bundle".into()] {
            mirror = Mirror::of(&upstream.url());
            mirror.settings.seeds = vec![seed.parse().unwrap()];
            let status = mirror.sync().unwrap().status;
            assert_eq!(status.source, Some(Source::Upstream));
            assert!(
                status.seed_failure.is_some_and(|why| seed.contains("nonexistent") || why.contains(said)),
                "{seed}"
            );
            assert_eq!(mirror.seen().refs(), before);
            let missing = try_git(&mirror.folder().join("work.git"), &["cat-file", "-e", &commit]);
            assert!(!missing.0 || !seed.contains("evil"), "the seed's objects are there");
        }
    }
}

#[test]
fn a_seed_that_is_garbage_or_another_history_is_of_no_consequence() {
    let mut upstream = Upstream::new();
    upstream.commit("master");
    let mut other = Upstream::new();
    other.commit("strange");
    let file = upstream.path().join("garbage.bundle");
    fs::write(&file, b"# v2 git bundle\n\xff\xff\0garbage").unwrap();
    for seed in [format!("m=file://{}", file.display()), format!("m={}", other.url())] {
        let mut mirror = Mirror::of(&upstream.url());
        mirror.settings.seeds = vec![seed.parse().unwrap()];
        mirror.sync().unwrap();
        let seen = mirror.seen();
        seen.check();
        assert_eq!(
            seen.refs(),
            git(upstream.path(), &["for-each-ref", "--format=%(objectname) %(refname)"]),
            "{seed}"
        );
    }
}

#[test]
fn a_server_can_neither_ask_for_a_password_nor_send_us_elsewhere() {
    let upstream = Upstream::new();
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&asked);
    let inside = Server::http(move |_| {
        seen.store(true, std::sync::atomic::Ordering::SeqCst);
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec()
    });
    let port = inside.port;
    let redirect = Server::http(move |path| {
        format!("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}{path}\r\nContent-Length: 0\r\n\r\n")
            .into_bytes()
    });
    let password = Server::http(|_| {
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\n\r\n"
            .to_vec()
    });
    // Only a seed may have an URL without TLS.
    for (server, path) in
        [(&redirect, "x.git"), (&password, "x.git"), (&redirect, "x.bundle"), (&password, "x.bundle")]
    {
        let mut mirror = Mirror::of(&upstream.url());
        mirror.settings.seeds = vec![format!("m=http://127.0.0.1:{}/{path}", server.port).parse().unwrap()];
        let started = Instant::now();
        let status = mirror.sync().unwrap().status;
        assert!(status.seed_failure.is_some());
        assert!(started.elapsed() < Duration::from_secs(15), "{path}: nobody answers a question");
    }
    assert!(!asked.load(std::sync::atomic::Ordering::SeqCst), "a redirect was followed");
}
