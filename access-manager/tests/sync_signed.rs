//! Signed commits, made with stock git, ssh-keygen and gpg: which of them count, and what is refused.

mod common;
#[path = "common/git.rs"]
mod git;

use std::process::{Command, Stdio};

use common::{A, B};
use git::{Scene, ok, signed};

const UNSIGNED: i32 = 6;

fn alice() -> String {
    format!("{{ alice.keys = \"{A}\"; }}")
}

fn bob() -> String {
    format!("{{ bob.keys = \"{B}\"; }}")
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// A scene with the key of a maintainer, the file that allows it, and git's options to sign with it.
fn maintained() -> (Scene, String, Vec<String>) {
    let scene = Scene::new();
    let key = scene.key("maintainer", "ed25519");
    std::fs::write(scene.path("allowed"), format!("maintainer@x namespaces=\"git\" {key}\n")).unwrap();
    let (allowed, sign) = (scene.at("allowed"), signed(&scene.path("maintainer")));
    (scene, allowed, sign)
}

#[test]
fn only_commits_signed_by_an_allowed_key_count() {
    let (scene, allowed, sign) = maintained();
    let allow = ["--allowed-signers", &allowed];
    let first = scene.commit(&alice(), &[]);
    let (code, text) = scene.sync(&allow);
    assert!(code == UNSIGNED && text.contains(&format!("commit {first} of ")), "{text}");
    assert!(text.contains("it is not signed") && !scene.path("roster.json").exists(), "{text}");

    scene.commit(&alice(), &words(&sign));
    assert_eq!(scene.sync(&allow).0, 0);
    // Keys of each kind that git signs with.
    for kind in ["ecdsa", "rsa"] {
        let key = scene.key(kind, kind);
        scene.commit(&bob(), &words(&signed(&scene.path(kind))));
        let (code, text) = scene.sync(&allow);
        assert!(code == UNSIGNED && text.contains("which is no allowed signer"), "{text}");
        assert_eq!(scene.names(), ["alice"]);
        let all = std::fs::read_to_string(scene.path("allowed")).unwrap();
        std::fs::write(scene.path("allowed"), format!("{all}{kind}@x {key}\n")).unwrap();
        assert_eq!(scene.sync(&allow).0, 0, "{kind}");
        scene.commit(&alice(), &words(&sign));
        assert_eq!(scene.sync(&allow).0, 0);
    }
}

#[test]
fn a_signed_commit_does_not_vouch_for_an_unsigned_one_below_it() {
    let (scene, allowed, sign) = maintained();
    let allow = ["--allowed-signers", &allowed];
    scene.commit(&alice(), &words(&sign));
    assert_eq!(scene.sync(&allow).0, 0);
    let slipped_in = scene.commit(&bob(), &[]);
    let tip = scene.commit(&bob(), &words(&sign));
    let (code, text) = scene.sync(&allow);
    assert!(code == UNSIGNED && text.contains(&format!("commit {slipped_in} of ")), "{text}");
    assert!(text.contains(&format!("--accept {tip}")), "{text}");
    assert_eq!(scene.names(), ["alice"]);
    assert_eq!(scene.sync(&[&allow[..], &["--accept", &tip]].concat()).0, 0);
    assert_eq!(scene.names(), ["bob"]);
}

#[test]
fn a_key_for_merges_signs_merges_and_nothing_else() {
    let (scene, allowed, sign) = maintained();
    let forge = scene.key("forge", "ed25519");
    std::fs::write(scene.path("merges"), format!("forge {forge}\n")).unwrap();
    let (merges, by_forge) = (scene.at("merges"), signed(&scene.path("forge")));
    let allow = ["--allowed-signers", &allowed, "--merge-signers", &merges];
    scene.commit(&alice(), &words(&sign));
    assert_eq!(scene.sync(&allow).0, 0);

    // A contributor's unsigned branch, merged by the forge.
    scene.git(&["checkout", "-q", "-b", "topic"]);
    scene.commit(&bob(), &[]);
    scene.git(&["checkout", "-q", "main"]);
    let merge = ["merge", "-q", "--no-ff", "-m", "merge", "topic"];
    scene.git(&[&words(&by_forge)[..], &merge].concat());
    let (code, text) = scene.sync(&allow);
    assert_eq!(code, 0, "{text}");
    assert_eq!(scene.names(), ["bob"]);

    scene.commit(&alice(), &words(&by_forge));
    let (code, text) = scene.sync(&allow);
    assert!(code == UNSIGNED && text.contains("which may sign merge commits only"), "{text}");
    scene.git(&["reset", "-q", "--hard", "HEAD~1"]);

    // The forge merged main into a contributor's branch, who then pushed that as main.
    scene.git(&["checkout", "-q", "-b", "mallorys", "HEAD~1"]);
    let mallorys = scene.commit(&alice(), &[]);
    scene.git(
        &[&words(&by_forge)[..], &["merge", "-q", "--no-ff", "-s", "ours", "-m", "update", "main"]].concat(),
    );
    scene.git(&["branch", "-f", "main", "mallorys"]);
    let (code, text) = scene.sync(&allow);
    assert!(code == UNSIGNED && text.contains(&mallorys), "{text}");
    assert_eq!(scene.names(), ["bob"]);
}

#[test]
fn a_changed_commit_and_a_signature_for_something_else_are_refused() {
    let (scene, allowed, sign) = maintained();
    let allow = ["--allowed-signers", &allowed];
    scene.commit(&alice(), &words(&sign));
    let object = scene.git(&["cat-file", "commit", "HEAD"]) + "\n";
    scene.commit(&bob(), &[]);
    let tree = scene.git(&["rev-parse", "HEAD^{tree}"]);
    let (_, after_tree) = object.split_once('\n').unwrap();
    let put = |text: &str| {
        std::fs::write(scene.path("object"), text).unwrap();
        let id = scene.git(&["hash-object", "-t", "commit", "-w", &scene.at("object")]);
        scene.git(&["update-ref", "refs/heads/main", &id]);
        scene.sync(&allow)
    };
    let (code, text) = put(&format!("tree {tree}\n{after_tree}"));
    assert!(code == UNSIGNED && text.contains("is wrong"), "{text}");

    // The same key signs the same bytes as a file.
    let unsigned = scene.git(&["cat-file", "commit", "HEAD"]);
    let header: Vec<&str> = unsigned.split("gpgsig ").collect();
    let body = format!("{}\nother\n", header[0]);
    std::fs::write(scene.path("body"), &body).unwrap();
    let key = scene.at("maintainer");
    ok(Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", "file", "-f", &key])
        .arg(scene.path("body")));
    let signature = std::fs::read_to_string(scene.path("body.sig")).unwrap().trim().replace('\n', "\n ");
    let (code, text) = put(&format!("{}gpgsig {signature}\n\nother\n", header[0]));
    assert!(code == UNSIGNED && text.contains("is wrong"), "{text}");
    assert!(!scene.path("roster.json").exists());
}

#[test]
fn a_key_signs_within_its_time_only() {
    let (scene, allowed, sign) = maintained();
    let key = std::fs::read_to_string(scene.path("maintainer.pub")).unwrap();
    scene.commit(&alice(), &words(&sign));
    for (options, code) in [("valid-before=\"20200101Z\"", UNSIGNED), ("valid-after=\"20200101Z\"", 0)] {
        std::fs::write(&allowed, format!("m {options} {key}")).unwrap();
        assert_eq!(scene.sync(&["--allowed-signers", &allowed]).0, code, "{options}");
    }
    scene.commit(&bob(), &words(&sign));
    std::fs::write(&allowed, format!("m cert-authority {key}")).unwrap();
    let (code, text) = scene.sync(&["--allowed-signers", &allowed]);
    assert!(code == 1 && text.contains("line 1: `cert-authority` is not supported"), "{text}");
    assert_eq!(scene.names(), ["alice"]);
}

#[test]
fn openpgp_signatures_are_verified_with_gpgv() {
    let scene = Scene::new();
    let home = scene.path("gpg");
    std::fs::create_dir(&home).unwrap();
    let gpg = |args: &[&str]| {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""]);
        gpg.args(args).env("GNUPGHOME", &home).stdin(Stdio::null());
        ok(&mut gpg)
    };
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for name in ["maintainer", "forge"] {
        gpg(&["--quick-generate-key", &format!("{name}@example.org"), "ed25519", "sign", "never"]);
        gpg(&["--output", &scene.at(&format!("{name}.gpg")), "--export", &format!("{name}@example.org")]);
    }
    let by = |name: &str| {
        let key = format!("user.signingkey={name}@example.org");
        ["-c", &key, "-c", "commit.gpgsign=true"].map(str::to_owned).to_vec()
    };
    let (ring, forge) = (scene.at("maintainer.gpg"), scene.at("forge.gpg"));
    let allow = ["--gpg-keyring", &ring, "--merge-gpg-keyring", &forge];

    scene.commit(&alice(), &words(&by("forge")));
    let (code, text) = scene.sync(&allow);
    assert!(code == UNSIGNED && text.contains("not in the keyring"), "{text}");
    scene.commit(&alice(), &words(&by("maintainer")));
    let (code, text) = scene.sync(&allow);
    assert_eq!(code, 0, "{text}");

    scene.git(&["checkout", "-q", "-b", "topic"]);
    scene.commit(&bob(), &[]);
    scene.git(&["checkout", "-q", "main"]);
    scene.git(&[&words(&by("forge"))[..], &["merge", "-q", "--no-ff", "-m", "merge", "topic"]].concat());
    assert_eq!(scene.sync(&allow).0, 0);
    assert_eq!(scene.names(), ["bob"]);

    // A changed commit under a good signature.
    scene.commit(&alice(), &words(&by("maintainer")));
    let object = scene.git(&["cat-file", "commit", "HEAD"]).replace("\n\nchange", "\n\nchanged\n");
    std::fs::write(scene.path("object"), object).unwrap();
    let id = scene.git(&["hash-object", "-t", "commit", "-w", &scene.at("object")]);
    scene.git(&["update-ref", "refs/heads/main", &id]);
    let (code, text) = scene.sync(&allow);
    assert!(code == UNSIGNED && text.contains("gpgv refuses its signature: BADSIG"), "{code} {text}");
    assert_eq!(scene.names(), ["bob"]);
    ok(Command::new("gpgconf").args(["--kill", "gpg-agent"]).env("GNUPGHOME", &home));
}

#[test]
fn a_repository_that_anybody_on_the_line_can_change_is_refused_unless_commits_are_signed() {
    let (scene, allowed, _) = maintained();
    for repo in ["http://127.0.0.1:1/r.git", "git://127.0.0.1:1/r.git"] {
        let (code, text) = scene.sync_from(repo, &[]);
        assert!(code == 2 && text.contains("anybody on the line can change what arrives"), "{text}");
        assert!(
            text.contains(
                "hint: use an https:// url, or ssh:// with --known-hosts, or require signed commits"
            ),
            "{text}"
        );
        assert_eq!(scene.sync_from(repo, &["--allowed-signers", &allowed]).0, 3);
    }
}
