//! A hostile NAR: one clear error with the place and the reason, and no files left behind.

mod common;

use std::io::{self, Read, Write};

use common::*;
use proptest::prelude::*;
use store::nar::ParseError;
use store::{ImportError, Store, StoreConfig};

fn token(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
    out
}

/// A NAR of these tokens, valid or not.
fn raw(words: &[&[u8]]) -> Vec<u8> {
    words.iter().flat_map(|w| token(w)).collect()
}

/// A directory with these names, each an empty file.
fn names(names: &[&[u8]]) -> Vec<u8> {
    let mut words: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
    for name in names {
        words.extend([
            &b"entry"[..],
            b"(",
            b"name",
            name,
            b"node",
            b"(",
            b"type",
            b"regular",
            b"contents",
            b"",
            b")",
            b")",
        ]);
    }
    words.push(b")");
    raw(&words)
}

fn nested(levels: usize) -> Vec<u8> {
    let mut tree = file(b"deep");
    for _ in 0..levels {
        tree = dir([("d", tree)]);
    }
    // The encoder has the same limit, so it cannot make the deeper ones.
    let mut words: Vec<&[u8]> = vec![b"nix-archive-1"];
    for _ in 0..levels {
        words.extend([&b"("[..], b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
    }
    words.extend([&b"("[..], b"type", b"regular", b"contents", b"deep", b")"]);
    for _ in 0..levels {
        words.extend([&b")"[..], b")"]);
    }
    let nar = raw(&words);
    if levels < 64 {
        assert_eq!(nar, tree.nar());
    }
    nar
}

fn small() -> (tempfile::TempDir, Store) {
    let dir = scratch();
    let config = StoreConfig { max_nar_bytes: 1 << 20, max_entries: 100, ..StoreConfig::default() };
    let store = Store::open(dir.path(), config).unwrap();
    (dir, store)
}

/// The error for `nar`, which must be the same for every entry point and every size of pieces.
fn refused(store: &Store, nar: &[u8]) -> ParseError {
    let view = store.view(&alice());
    let mut errors = Vec::new();
    for pieces in [1, 5, 8, 4096, nar.len().max(1)] {
        let mut ingest = view.ingest(&[]).unwrap();
        let written = nar.chunks(pieces).try_for_each(|p| ingest.write_all(p));
        let error = match ingest.finish() {
            Err(ImportError::Nar(e)) => e,
            Ok(_) => panic!("accepted"),
            Err(e) => panic!("not the fault of the box: {e}"),
        };
        if let Err(e) = written {
            assert_eq!((e.kind(), e.to_string()), (io::ErrorKind::InvalidData, error.to_string()));
        }
        errors.push(error);
    }
    let path = path("hostile");
    match view.import(info(&path, nar, &[]), &mut &nar[..]) {
        Err(ImportError::Nar(e)) => errors.push(e),
        // `import` stops at the end of the NAR; the bytes after it belong to the next message.
        Err(ImportError::HashMismatch { .. }) if matches!(errors[0], ParseError::Trailing { .. }) => {}
        other => panic!("not refused as a NAR: {other:?}"),
    }
    errors.pop().unwrap()
}

#[test]
fn every_kind_of_nonsense_is_refused_with_its_place_and_value() {
    let (dir, store) = small();
    let long = vec![b'n'; 256];
    let target = vec![b't'; 4096];
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "NAR is truncated: it ends at byte 0, inside its structure"),
        (b"garbage that is no nar at all".to_vec(), "at byte 0: expected \"nix-archive-1\", got a token of "),
        (raw(&[b"nix-archive-2"]), "at byte 0: expected \"nix-archive-1\", got \"nix-archive-2\""),
        (raw(&[b"nix-archive-1", b"(", b"kind"]), "at byte 40: expected \"type\", got \"kind\""),
        (
            raw(&[b"nix-archive-1", b"(", b"type", b"fifo", b")"]),
            "at byte 56: expected \"regular\", \"symlink\" or \"directory\", got \"fifo\"",
        ),
        (names(&[b".."]), "entry name \"..\" would name the directory itself or its parent"),
        (names(&[b"."]), "entry name \".\" would name the directory itself or its parent"),
        (names(&[b"a/b"]), "entry name \"a/b\" contains a slash"),
        (names(&[b"a\0b"]), "entry name \"a\\x00b\" contains a NUL byte"),
        (names(&[b""]), "an entry name of 0 bytes, allowed are 1 to 255"),
        (names(&[&long]), "an entry name of 256 bytes, allowed are 1 to 255"),
        (names(&[b"a", b"a"]), "entry \"a\" repeats \"a\"; entries must be sorted and unique"),
        (names(&[b"b", b"a"]), "entry \"a\" comes after \"b\"; entries must be sorted and unique"),
        (names(&[b"a", b"b", b"\xff", b"Z"]), "entry \"Z\" comes after \"\\xff\""),
        (
            raw(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", &target, b")"]),
            "a symlink target of 4096 bytes, allowed are 1 to 4095",
        ),
        (
            raw(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", b"", b")"]),
            "a symlink target of 0 bytes",
        ),
        (
            raw(&[b"nix-archive-1", b"(", b"type", b"symlink", b"target", b"a\0b", b")"]),
            "symlink target \"a\\x00b\" contains a NUL byte",
        ),
        (
            raw(&[
                b"nix-archive-1",
                b"(",
                b"type",
                b"regular",
                b"executable",
                b"yes",
                b"contents",
                b"x",
                b")",
            ]),
            "expected an empty token, got \"yes\"",
        ),
        (
            raw(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents", b"x", b"("]),
            "at byte 104: expected \")\", got \"(\"",
        ),
        (nested(64), "nested too deep"),
        (nested(5000), "nested too deep"),
        ([file(b"x").nar(), vec![0]].concat(), "1 bytes or more follow its end at byte 120"),
        (
            file(vec![0; 1 << 20]).nar(),
            "NAR is too large: it needs at least 1048672 bytes, this box accepts 1048576",
        ),
        (
            {
                let mut nar = raw(&[b"nix-archive-1", b"(", b"type", b"regular", b"contents"]);
                nar.extend_from_slice(&u64::MAX.to_le_bytes());
                nar
            },
            "NAR is too large: it needs at least 18446744073709551615 bytes",
        ),
    ];
    for (nar, expected) in cases {
        let said = refused(&store, &nar).to_string();
        assert!(said.contains(expected), "said: {said}\nexpected: {expected}");
        assert!(said.len() < 400, "too long: {said}");
    }
    assert_eq!(count(&dir.path().join("tmp")), 0);
    assert!(store.view(&alice()).all_valid().is_empty());
}

#[test]
fn the_deepest_accepted_tree_comes_back() {
    let (_dir, store) = small();
    let view = store.view(&alice());
    let nar = nested(63);
    view.import(info(&path("deep"), &nar, &[]), &mut &nar[..]).unwrap();
    assert!(nar_of(&view, &path("deep")) == nar);
    unpacked(&view, &path("deep"));
}

#[test]
fn too_many_entries_are_refused() {
    let (_dir, store) = small();
    let many: Vec<Vec<u8>> = (0..100).map(|i| format!("{i:03}").into_bytes()).collect();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let said = refused(&store, &names(&many)).to_string();
    assert!(said.contains("more than 100 entries"), "{said}");
}

#[test]
fn a_nar_cut_off_anywhere_is_truncated() {
    let (dir, store) = small();
    let view = store.view(&alice());
    let tool = Tree::File { executable: true, contents: b"#!/bin/sh".to_vec() };
    let nar = dir_tree(tool).nar();
    for end in 0..nar.len() {
        let mut ingest = view.ingest(&[]).unwrap();
        ingest.write_all(&nar[..end]).unwrap();
        match ingest.finish() {
            Err(ImportError::Nar(ParseError::Truncated { at, .. })) => assert_eq!(at, end as u64),
            Err(e) => panic!("cut at {end}: {e}"),
            Ok(_) => panic!("cut at {end}: accepted"),
        }
    }
    assert_eq!(count(&dir.path().join("tmp")), 0);
}

fn dir_tree(tool: Tree) -> Tree {
    dir([
        ("bin", dir([("tool", tool)])),
        ("empty", dir([])),
        ("l", Tree::Symlink(b"bin/tool".to_vec())),
        ("x", file(b"12345")),
    ])
}

#[test]
fn hidden_bytes_in_any_padding_are_refused() {
    let (_dir, store) = small();
    let tree = dir([("name", Tree::Symlink(b"target".to_vec())), ("other", file(b"x"))]);
    let nar = tree.nar();
    let view = store.view(&alice());
    let mut refused_at = 0;
    for at in (0..nar.len()).filter(|&at| nar[at] == 0) {
        let mut bad = nar.clone();
        bad[at] = 1;
        let mut ingest = view.ingest(&[]).unwrap();
        let _ = ingest.write_all(&bad);
        assert!(ingest.finish().is_err(), "byte {at} may be changed without anybody noticing");
        refused_at += 1;
    }
    assert!(refused_at > 100);
}

#[test]
fn a_sender_that_fails_is_told_apart_from_a_bad_nar() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    }
    let (_dir, store) = small();
    let nar = file(b"x").nar();
    let mut stream = io::BufReader::new((&nar[..40]).chain(Broken));
    let error = store.view(&alice()).import(info(&path("x"), &nar, &[]), &mut stream).unwrap_err();
    assert!(matches!(error, ImportError::Source { .. }), "{error}");
}

#[test]
fn a_nar_that_is_not_the_announced_one_is_refused() {
    let (_dir, store) = small();
    let view = store.view(&alice());
    let nar = file(b"x").nar();
    let error = view.import(info(&path("p"), b"another", &[]), &mut &nar[..]).unwrap_err();
    assert!(matches!(error, ImportError::HashMismatch { .. }), "{error}");
    let mut wrong = info(&path("p"), &nar, &[]);
    wrong.nar_size += 8;
    let error = view.import(wrong, &mut &nar[..]).unwrap_err();
    assert!(matches!(error, ImportError::SizeMismatch { .. }), "{error}");
    assert!(!view.is_valid(&path("p")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Compares two independent parsers: `nix-archive` accepts every NAR that the store accepts, and the NAR
    /// comes back unchanged.
    #[test]
    fn a_damaged_nar_is_refused_or_is_a_nar(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (_dir, store) = small();
        let view = store.view(&alice());
        let mut nar = dir_tree(file(b"tool")).nar();
        for (at, value) in flips {
            let at = at.index(nar.len());
            nar[at] = value;
        }
        let theirs = nix_archive::nar::decode(&nar).is_ok();
        let ours = view.import(info(&path("x"), &nar, &[]), &mut &nar[..]);
        prop_assert_eq!(theirs, ours.is_ok(), "{:?}", ours);
        if ours.is_ok() {
            prop_assert!(nar_of(&view, &path("x")) == nar);
        }
    }
}
