//! Git content addresses equal git's own: the tests compare with the real `git`.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use nix::PathInfo;
use nix_derivation::{CAHash, ContentAddressMethod, HashAlgorithm, NixHash, store_path::build_ca_path};
use proptest::prelude::*;
use store::{ImportError, NarError, Provenance};

fn git(repo: &Path, args: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("git")
        .arg("-C")
        .arg(repo)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git is installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {args:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Git's answer: type for `mktree`, mode, hash.
fn oracle(repo: &Path, tree: &Tree) -> (&'static str, &'static str, String) {
    let blob = |bytes: &[u8]| git(repo, &["hash-object", "--stdin"], bytes);
    match tree {
        Tree::File { executable: false, contents } => ("blob", "100644", blob(contents)),
        Tree::File { executable: true, contents } => ("blob", "100755", blob(contents)),
        Tree::Symlink(target) => ("blob", "120000", blob(target)),
        Tree::Dir(entries) => {
            let mut listing = Vec::new();
            for (name, child) in entries {
                let (kind, mode, hash) = oracle(repo, child);
                listing.extend_from_slice(format!("{mode} {kind} {hash}\t").as_bytes());
                listing.extend_from_slice(name);
                listing.push(0);
            }
            ("tree", "040000", git(repo, &["mktree", "-z", "--missing"], &listing))
        }
    }
}

fn repositories() -> [(HashAlgorithm, tempfile::TempDir); 2] {
    [(HashAlgorithm::Sha1, "sha1"), (HashAlgorithm::Sha256, "sha256")].map(|(algorithm, format)| {
        let dir = scratch();
        git(dir.path(), &["init", "-q", &format!("--object-format={format}")], b"");
        (algorithm, dir)
    })
}

/// Git's hash of the contents of `nar`, as the store computes it.
fn hash_of(nar: &[u8], algorithm: HashAlgorithm) -> NixHash {
    let dir = scratch();
    let mut ingest = open(dir.path()).view(&alice()).ingest(&[]).unwrap();
    ingest.write_all(nar).unwrap();
    ingest.finish().unwrap().ca_hash(ContentAddressMethod::Git, algorithm, None).unwrap()
}

fn agree(tree: &Tree) {
    let nar = tree.nar();
    for (algorithm, repo) in &repositories() {
        let ours = hash_of(&nar, *algorithm);
        let (_, _, theirs) = oracle(repo.path(), tree);
        let hex: String = ours.digest_as_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, theirs, "{algorithm:?} of {tree:?}");
    }
}

#[test]
fn every_kind_of_file_and_every_order_of_names_hashes_as_in_git() {
    agree(&file(""));
    agree(&file("hello\n"));
    agree(&file(noise(1, 300_000)));
    agree(&dir([]));
    agree(&dir([("run", Tree::File { executable: true, contents: noise(1, 300_000) })]));
    agree(&dir([("link", Tree::Symlink(b"../somewhere".to_vec()))]));
    // As a directory `a` is `a/`, which sorts after `a-b` and `a.b` and before `a0`.
    agree(&dir([
        ("a", dir([("x", file("x")), ("empty", dir([]))])),
        ("a-b", file("1")),
        ("a.b", Tree::Symlink(b"a".to_vec())),
        ("a0", Tree::File { executable: true, contents: b"2".to_vec() }),
        ("ab", dir([("y", file(noise(2, 5000)))])),
    ]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_hashes_as_in_git(tree in tree()) {
        // git refuses names that it uses itself; the generator makes no `.git`. More than 40 nodes would take
        // too many processes.
        prop_assume!(format!("{tree:?}").matches("contents").count() < 40);
        // As a root these have no address; see below.
        prop_assume!(!matches!(tree, Tree::File { executable: true, .. } | Tree::Symlink(_)));
        agree(&tree);
    }
}

#[test]
fn an_upload_with_its_git_address_is_verified_and_with_another_refused() {
    let dir_ = scratch();
    let store = open(dir_.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    let nar =
        dir([("x", file("x")), ("run", Tree::File { executable: true, contents: b"y".to_vec() })]).nar();
    for algorithm in [HashAlgorithm::Sha1, HashAlgorithm::Sha256] {
        let none = [].into();
        let added = a.add_ca("tree", ContentAddressMethod::Git, algorithm, &none, &mut &nar[..]).unwrap();
        assert_eq!(b.info_with_provenance(&added.path).unwrap().1, Provenance::Verified);
        assert!(added.ca.as_ref().unwrap().to_nix_string().starts_with(&format!("fixed:git:{algorithm}:")));

        let other = scratch();
        let view = open(other.path()).view(&alice());
        view.import((*added).clone(), &mut &nar[..]).unwrap();
        assert_eq!(view.info_with_provenance(&added.path).unwrap().1, Provenance::Verified);

        let digest = vec![7; if algorithm == HashAlgorithm::Sha1 { 20 } else { 32 }];
        let wrong = CAHash::from_parts(ContentAddressMethod::Git, algorithm, &digest).unwrap();
        let at = build_ca_path("tree", &wrong, [], false).unwrap();
        let lie = PathInfo { ca: Some(wrong), ..info(&at, &nar, &[]) };
        let error = view.import(lie, &mut &nar[..]).unwrap_err();
        assert!(matches!(error, ImportError::ContentMismatch { .. }), "{error}");
    }
    // git has only two hash algorithms.
    let none = [].into();
    assert!(a.add_ca("tree", ContentAddressMethod::Git, HashAlgorithm::Md5, &none, &mut &nar[..]).is_err());
}

/// Git keeps a file's mode in the parent directory, so as a root these have the hash of the plain file.
#[test]
fn a_bare_executable_or_symlink_is_not_what_the_address_of_the_plain_file_proves() {
    let (dir, other) = (scratch(), scratch());
    let (honest, attacked) = (open(dir.path()).view(&alice()), open(other.path()).view(&bob()));
    let none = [].into();
    for algorithm in [HashAlgorithm::Sha1, HashAlgorithm::Sha256] {
        let nar = file("/etc/passwd").nar();
        let git = ContentAddressMethod::Git;
        let plain = honest.add_ca("f", git, algorithm, &none, &mut &nar[..]).unwrap();
        for twin in [
            Tree::Symlink(b"/etc/passwd".to_vec()),
            Tree::File { executable: true, contents: b"/etc/passwd".to_vec() },
        ] {
            let nar = twin.nar();
            let lie = PathInfo { ca: plain.ca.clone(), ..info(&plain.path, &nar, &[]) };
            let error = attacked.import(lie, &mut &nar[..]).unwrap_err();
            assert!(matches!(error, ImportError::ReadBack(NarError::NotAFile { .. })), "{error}");
            assert!(error.is_callers_fault() && error.to_string().contains("git"), "{error}");
            assert!(attacked.add_ca("f", git, algorithm, &none, &mut &nar[..]).is_err());
            assert!(!attacked.is_valid(&plain.path));
        }
    }
}
