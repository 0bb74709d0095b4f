//! Synchronisation against real repositories, through the program: messages, exit codes, what is on disk afterwards.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::*;

struct World {
    dir: tempfile::TempDir,
    repo: git2::Repository,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut options = git2::RepositoryInitOptions::new();
        let repo =
            git2::Repository::init_opts(dir.path().join("roster"), options.initial_head("main")).unwrap();
        World { dir, repo }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Commits `files` as the whole tree on top of `parent`, and moves main there.
    fn commit_on(&self, parent: Option<git2::Oid>, files: &[(&str, &str)]) -> git2::Oid {
        let mut index = git2::Index::new().unwrap();
        for (name, text) in files {
            let link = text.starts_with("-> ");
            let entry = git2::IndexEntry {
                ctime: git2::IndexTime::new(0, 0),
                mtime: git2::IndexTime::new(0, 0),
                dev: 0,
                ino: 0,
                mode: if link { 0o120000 } else { 0o100644 },
                uid: 0,
                gid: 0,
                file_size: 0,
                id: self.repo.blob(text.trim_start_matches("-> ").as_bytes()).unwrap(),
                flags: 0,
                flags_extended: 0,
                path: name.as_bytes().to_vec(),
            };
            index.add(&entry).unwrap();
        }
        let tree = self.repo.find_tree(index.write_tree_to(&self.repo).unwrap()).unwrap();
        let who = git2::Signature::new("t", "t@example.org", &git2::Time::new(1, 0)).unwrap();
        let parent = parent.map(|p| self.repo.find_commit(p).unwrap());
        let parents: Vec<&git2::Commit> = parent.iter().collect();
        let id = self.repo.commit(None, &who, &who, "change", &tree, &parents).unwrap();
        self.repo.reference("refs/heads/main", id, true, "test").unwrap();
        id
    }

    fn commit(&self, files: &[(&str, &str)]) -> git2::Oid {
        let head = self.repo.find_reference("refs/heads/main").ok().and_then(|r| r.target());
        self.commit_on(head, files)
    }

    fn sync(&self, more: &[&str]) -> (i32, String) {
        self.sync_from(self.path("roster").to_str().unwrap(), more)
    }

    fn sync_from(&self, repo: &str, more: &[&str]) -> (i32, String) {
        let output: Output = Command::new(env!("CARGO_BIN_EXE_access-manager"))
            .args(["sync", "--repo", repo, "--branch", "main", "--out"])
            .arg(self.path("roster.json"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .args(more)
            .output()
            .unwrap();
        assert!(output.stdout.is_empty());
        let text =
            String::from_utf8(output.stderr).unwrap().replace(self.dir.path().to_str().unwrap(), "TMP");
        (output.status.code().unwrap(), text)
    }

    /// The folders of a box that has just booted: only what is kept is left.
    fn reboot(&self) {
        std::fs::remove_dir_all(self.path("state")).unwrap();
        for name in ["roster.json", "roster-status.json"] {
            std::fs::remove_file(self.path(name)).unwrap();
        }
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("roster-status.json")).unwrap()).unwrap()
    }

    fn roster(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path("roster.json")).unwrap()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let roster = self.roster();
        roster["members"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    }
}

fn alice() -> String {
    format!("{{ alice.keys = \"{A}\"; }}")
}

fn both() -> String {
    format!("{{ alice.keys = \"{A}\"; bob.keys = ./keys/bob.pub; }}")
}

#[test]
fn a_member_with_a_mistake_is_left_out_and_named_and_the_others_get_in() {
    let w = World::new();
    let two = format!("{A} alice@home{B} alice@work");
    w.commit(&[
        ("users.nix", "{ alice.keys = ./keys/alice; bob.keys = ./keys/bob; }"),
        ("keys/bob", B),
        ("keys/alice", &two),
    ]);
    let (code, text) = w.sync(&[]);
    assert_eq!(code, 0, "{text}");
    for part in [
        "error: there is a second key on this line",
        "keys/alice:1:1",
        "alice is left out",
        "1 members, commit",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(w.names(), ["bob"]);
    let roster = w.roster();
    let error = roster["errors"][0]["error"].as_str().unwrap();
    assert!(roster["errors"][0]["name"] == "alice" && error.contains("(keys/alice:1:1)"), "{roster}");

    // Nobody is left: then the roster before it stays.
    w.commit(&[("users.nix", "{ alice.keys = ./keys/alice; }"), ("keys/alice", &two)]);
    assert_eq!(w.sync(&[]).0, 5);
    assert_eq!(w.names(), ["bob"]);
}

#[test]
fn members_come_and_go_with_commits() {
    let w = World::new();
    let first = w.commit(&[("users.nix", &both()), ("keys/bob.pub", B)]);
    let (code, text) = w.sync(&[]);
    assert_eq!(
        (code, text.as_str()),
        (
            0,
            &*format!(
                "wrote TMP/roster.json: 2 members, commit {} of 1970-01-01 00:00:01Z\n",
                &first.to_string()[..12]
            )
        )
    );
    assert_eq!(w.roster()["commit"], first.to_string());
    assert_eq!(w.roster()["schema"], 1);

    let (code, text) = w.sync(&[]);
    assert_eq!(code, 0);
    assert!(text.starts_with("nothing new in"), "{text}");

    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&[]).0, 0);
    assert_eq!(w.names(), ["alice"]);
}

#[test]
fn a_rewritten_branch_is_refused_and_a_person_can_accept_it() {
    let w = World::new();
    let old = w.commit(&[("users.nix", &both()), ("keys/bob.pub", B)]);
    let accepted = w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&[]).0, 0);
    // Back to the commit with bob in it: the attack this rule is about.
    w.repo.reference("refs/heads/main", old, true, "rewind").unwrap();
    let (code, text) = w.sync(&[]);
    assert_eq!(code, 4, "{text}");
    assert_eq!(
        text,
        format!(
            "error: the history of branch main at TMP/roster was rewritten\n   found: commit {old}\nexpected: a \
             descendant of the last accepted commit {accepted}\n    hint: if the rewrite was meant, look at the \
             difference, then run once with --accept {old}\n"
        )
    );
    assert_eq!(w.names(), ["alice"]);

    // Losing the fetched repository loses nothing that was promised.
    std::fs::remove_dir_all(w.path("state/repo.git")).unwrap();
    assert_eq!(w.sync(&[]).0, 4);
    assert_eq!(w.sync(&["--accept", &accepted.to_string()]).0, 4);
    assert_eq!(w.sync(&["--accept", &old.to_string()]).0, 0);
    assert_eq!(w.names(), ["alice", "bob"]);
    let unrelated = w.commit_on(None, &[("users.nix", &alice())]);
    let (code, text) = w.sync(&[]);
    assert!(code == 4 && text.contains(&unrelated.to_string()) && text.contains(&old.to_string()), "{text}");
}

#[test]
fn a_bad_commit_keeps_the_last_good_roster_until_the_next_good_one() {
    let w = World::new();
    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&[]).0, 0);
    let before = std::fs::read(w.path("roster.json")).unwrap();
    let bad = w.commit(&[("users.nix", "{\n  bob.keys = ./keys/bob.pub;\n}")]);
    let (code, text) = w.sync(&[]);
    assert_eq!(code, 5, "{text}");
    assert_eq!(
        text,
        format!(
            "error: the file `keys/bob.pub` does not exist\n --> users.nix:2:14\n  |\n2 |   bob.keys = ./keys/bob.pub;\n  \
             |              ^^^^^^^^^^^^^^\n    hint: paths are relative to the file that names them; is it committed?\n    \
             note: in commit {bad} of TMP/roster\n"
        )
    );
    assert_eq!(std::fs::read(w.path("roster.json")).unwrap(), before);
    w.commit(&[("users.nix", &both()), ("keys/bob.pub", B)]);
    assert_eq!(w.sync(&[]).0, 0);
    assert_eq!(w.names(), ["alice", "bob"]);
}

#[test]
fn an_unreachable_remote_is_named_and_changes_nothing() {
    let w = World::new();
    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&[]).0, 0);
    let before = std::fs::read(w.path("roster.json")).unwrap();
    // Port 1 of loopback: refused at once, no name to resolve.
    for (repo, hint) in [
        ("https://127.0.0.1:1/roster.git", "check the network and --repo"),
        ("/nowhere/at/all", "is there a git repository at `/nowhere/at/all`?"),
        ("ftp://127.0.0.1:1/x", "use an https:// url"),
    ] {
        let (code, text) = w.sync_from(repo, &[]);
        assert_eq!(code, 3, "{text}");
        assert!(
            text.starts_with(&format!("error: cannot fetch branch main from {repo}\n   cause: ")),
            "{text}"
        );
        assert!(text.contains(hint), "{text}");
        assert_eq!(std::fs::read(w.path("roster.json")).unwrap(), before);
    }
    let (code, text) = w.sync(&["--branch", "elsewhere"]);
    assert_eq!(code, 2, "an option given twice is a mistake: {text}");
    w.repo.find_reference("refs/heads/main").unwrap().rename("refs/heads/trunk", true, "t").unwrap();
    let (code, text) = w.sync(&[]);
    assert!(code == 3 && text.contains("hint: check --branch"), "{code} {text}");
}

#[test]
fn the_baked_in_roster_serves_only_where_there_is_none() {
    let w = World::new();
    let baked = serde_json::json!({ "schema": 1, "commit": null, "source": "users.nix", "members":
        [{ "name": "carol", "keys": [B], "role": "member", "limits": { "max-jobs": 1 }, "expires": null }] });
    std::fs::write(w.path("baked.json"), baked.to_string()).unwrap();
    let fallback = w.path("baked.json");
    let fallback = fallback.to_str().unwrap();

    let (code, text) = w.sync_from("https://127.0.0.1:1/r", &[]);
    assert!(code == 3 && !w.path("roster.json").exists(), "{text}");
    let (code, text) = w.sync_from("https://127.0.0.1:1/r", &["--fallback", fallback]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("warning: using the roster baked into the image"), "{text}");
    assert_eq!((&w.roster()["source"], w.names()), (&"baked-in".into(), vec!["carol".to_owned()]));
    assert_eq!(w.roster()["members"], baked["members"]);

    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&["--fallback", fallback]).0, 0);
    assert_eq!(w.names(), ["alice"]);
    let (code, text) = w.sync_from("https://127.0.0.1:1/r", &["--fallback", fallback]);
    assert!(code == 3 && text.contains("keeping the roster that is there"), "{text}");
    assert_eq!(w.names(), ["alice"]);
}

/// A carol who is in no commit, as `roster.json` has her.
fn baked_in(w: &World) -> String {
    let baked = serde_json::json!({ "schema": 1, "commit": null, "source": "users.nix", "members":
        [{ "name": "carol", "keys": [B], "role": "member", "limits": {}, "expires": null }] });
    std::fs::write(w.path("baked.json"), baked.to_string()).unwrap();
    w.path("baked.json").to_str().unwrap().to_owned()
}

#[test]
fn what_was_accepted_survives_a_reboot_where_the_disk_does() {
    let w = World::new();
    let (keep, baked) = (w.path("keep"), baked_in(&w));
    let keep = ["--keep-dir", keep.to_str().unwrap(), "--fallback", &baked];
    let old = w.commit(&[("users.nix", &both()), ("keys/bob.pub", B)]);
    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&keep).0, 0);
    let checked = w.status()["checked"].clone();

    // Without network: neither bob nor the image's carol come back.
    w.reboot();
    let (code, text) = w.sync_from("/nowhere/at/all", &keep);
    assert!(code == 3 && text.contains("using the last accepted roster, commit "), "{code} {text}");
    assert_eq!((w.names(), &w.status()["checked"]), (vec!["alice".to_owned()], &checked));

    // With an attacker on the line who offers the history before the removal.
    w.repo.reference("refs/heads/main", old, true, "rewind").unwrap();
    w.reboot();
    assert_eq!(w.sync(&keep).0, 4);
    assert_eq!(w.names(), ["alice"]);
}

#[test]
fn the_baked_in_roster_does_not_come_back_when_the_kept_one_is_lost() {
    let w = World::new();
    let (keep, baked) = (w.path("keep"), baked_in(&w));
    let keep = ["--keep-dir", keep.to_str().unwrap(), "--fallback", &baked];
    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&keep).0, 0);
    w.reboot();
    std::fs::write(w.path("keep/roster.json"), "{").unwrap();
    let (code, text) = w.sync_from("/nowhere/at/all", &keep);
    assert!(code == 1 && text.contains("another roster was accepted before"), "{code} {text}");
    assert!(!w.path("roster.json").exists());
    assert_eq!(w.sync(&keep).0, 0);
    assert_eq!(w.names(), ["alice"]);
}

#[test]
fn the_status_says_which_commit_counts_and_why_a_newer_one_does_not() {
    let w = World::new();
    let before = roster::date::now();
    let good = w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&[]).0, 0);
    let status = w.status();
    let accepted = &status["accepted"];
    assert_eq!((&accepted["commit"], &accepted["committed"]), (&good.to_string().into(), &1.into()));
    assert!(
        accepted["accepted"].as_u64().unwrap() >= before && status["checked"].as_u64().unwrap() >= before
    );
    assert_eq!(status["problem"], serde_json::Value::Null);

    let bad = w.commit(&[("users.nix", "{ bob.keys = 1; }")]);
    assert_eq!(w.sync(&[]).0, 5);
    let refused = w.status();
    assert_eq!((&refused["accepted"], &refused["checked"]), (accepted, &status["checked"]));
    let problem = &refused["problem"];
    assert_eq!(problem["commit"], bad.to_string());
    assert!(problem["reason"].as_str().unwrap().contains("users.nix:1:14"), "{problem}");

    assert_eq!(w.sync_from("/nowhere/at/all", &[]).0, 3);
    let problem = &w.status()["problem"];
    assert!(
        problem["commit"].is_null() && problem["reason"].as_str().unwrap().contains("/nowhere"),
        "{problem}"
    );

    let next = w.commit(&[("users.nix", &both()), ("keys/bob.pub", B)]);
    assert_eq!(w.sync(&[]).0, 0);
    let status = w.status();
    assert_eq!(
        (&status["accepted"]["commit"], &status["problem"]),
        (&next.to_string().into(), &serde_json::Value::Null)
    );
}

#[test]
fn a_commit_cannot_reach_outside_its_own_tree() {
    let w = World::new();
    w.commit(&[
        ("users.nix", "{ alice.keys = ./link; }"),
        ("link", "-> keys/alice.pub"),
        ("keys/alice.pub", A),
    ]);
    assert_eq!(w.sync(&[]).0, 0);
    for (target, what) in
        [("-> /etc/hostname", "`/etc/hostname`"), ("-> ../state/accepted.json", "`../state/accepted.json`")]
    {
        w.commit(&[("users.nix", "{ alice.keys = ./link; }"), ("link", target)]);
        let (code, text) = w.sync(&[]);
        assert!(code == 5 && text.contains("leaves the repository") && text.contains(what), "{text}");
    }
}

#[test]
fn a_damaged_copy_is_fetched_again_and_a_damaged_memory_is_not_guessed() {
    let w = World::new();
    w.commit(&[("users.nix", &alice())]);
    assert_eq!(w.sync(&[]).0, 0);
    std::fs::write(w.path("state/repo.git/HEAD"), "").unwrap();
    std::fs::remove_dir_all(w.path("state/repo.git/objects")).unwrap();
    w.commit(&[("users.nix", &both()), ("keys/bob.pub", B)]);
    let (code, text) = w.sync(&[]);
    assert_eq!(code, 0, "{text}");
    std::fs::write(w.path("state/accepted.json"), "{").unwrap();
    let (code, text) = w.sync(&[]);
    assert!(code == 1 && text.contains("accepted.json") && text.contains("hint:"), "{text}");
}

/// The figure in docs/reference/roster.md is that of this test (`--no-capture`, an idle machine).
#[test]
fn ten_thousand_members_with_key_files_are_read_from_a_commit() {
    use base64::Engine;
    let w = World::new();
    let key = |i: u32| {
        let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
        blob.extend((0..8).flat_map(|_| i.to_be_bytes()));
        format!("ssh-ed25519 {} m{i}\n", base64::prelude::BASE64_STANDARD.encode(blob))
    };
    let members = 0..10_000u32;
    let users: String = members.clone().map(|i| format!("  m{i:05}.keys = ./keys/m{i:05}.pub;\n")).collect();
    let users = format!("{{\n{users}}}\n");
    let files: Vec<(String, String)> = members.map(|i| (format!("keys/m{i:05}.pub"), key(i + 1))).collect();
    let mut files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    files.push(("users.nix", &users));
    w.commit(&files);
    let started = std::time::Instant::now();
    let (code, text) = w.sync(&[]);
    eprintln!("fetched, evaluated and written in {:?}", started.elapsed());
    assert!(code == 0 && text.contains("10000 members"), "{text}");
    assert_eq!(w.names().len(), 10_000);
}

#[test]
fn eval_prints_a_table_or_json_and_names_the_mistake() {
    let w = World::new();
    std::fs::write(w.path("users.nix"), alice()).unwrap();
    let run = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_access-manager")).arg("eval").args(arguments).output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let users = w.path("users.nix");
    let users = users.to_str().unwrap();
    let (code, out, _) = run(&[users]);
    assert_eq!(
        (code, out.as_str()),
        (
            0,
            "NAME   ROLE    KEYS     LIMITS  SHARES WITH  EXPIRES\nalice  member  ed25519  -       -            -\n1 member\n"
        )
    );
    let (code, out, _) = run(&[users, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["members"][0]["keys"][0]), (0, &A.into()));
    std::fs::write(users, "{ alice.keys = 1; }").unwrap();
    let (code, out, err) = run(&[users]);
    assert!(code == 5 && out.is_empty() && err.contains("users.nix:1:16"), "{err}");
    assert_eq!(run(&["/nowhere/users.nix"]).0, 1);
    assert!(Path::new(users).exists());
}
