use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::test_keys::*;

fn imported(files: &[(&str, &str)], keys: KeyFiles) -> Imported {
    import(&Memory::with(files), "users.nix", keys).unwrap_or_else(|error| panic!("{files:?}\n{error}"))
}

#[test]
fn the_new_text_is_what_a_person_would_write() {
    let users = format!(
        "{{ users = {{ bob = {{ keys = [ ./k/bob \"{B} desk\" ]; limits = {{ maxJobs = 2 * 1; maxCpus = 4; }}; groups = [ \"ci\" ]; \
         vouchedBy = [ \"alice\" ]; shareWith = [ \"alice\" ]; }}; alice = {{ keys = ./k/alice; role = \"maintainer\"; \
         expires = \"2030-01-01\"; shareWith = [ \"bob\" ]; limits.maxJobs = 9; settings = {{ timeout = 60 * 60; keep-going = false; }}; hosts = [ \"box\" ]; }}; }}; \
         groups.ci = {{ members = [ \"alice\" ]; limits.maxJobs = 16; memberLimits.maxJobs = 3; settings.never-substitute = [ \"a*\" ]; }}; hosts = [ \"mac\" \"box\" ]; }}"
    );
    let files = [
        ("users.nix", &*users),
        ("k/bob", ECDSA_256),
        ("k/alice", &*format!("# her laptop\nno-pty {A} laptop\n")),
    ];
    let text = imported(&files, KeyFiles::InPlace).text;
    let expected = format!(
        r#"{{
  # The boxes of this roster.
  hosts = [ "box" "mac" ];

  # The members of a group name it in `groups`. They share its `limits`.
  groups = {{
    ci = {{
      limits.maxJobs = 16;
      memberLimits.maxJobs = 3;
      settings.never-substitute = [ "a*" ];
    }};
  }};

  users = {{
    alice = {{
      keys = ./k/alice;
      role = "maintainer";
      limits.maxJobs = 9;
      settings = {{
        keep-going = false;
        timeout = 3600;
      }};
      groups = [ "ci" ];
      hosts = [ "box" ];
      shareWith = [ "bob" ];
      expires = "2030-01-01";
    }};

    bob = {{
      keys = [
        ./k/bob
        "{B} desk"
      ];
      limits = {{
        maxJobs = 2;
        maxCpus = 4;
      }};
      groups = [ "ci" ];
      shareWith = [ "alice" ];
      vouchedBy = "alice";
    }};
  }};
}}
"#
    );
    assert_eq!(text.strip_prefix(text::HEADER).expect("the steps to join"), expected);
    let copied = imported(&files, KeyFiles::Copied);
    assert!(copied.text.contains("keys = ./keys/alice.pub;"), "{}", copied.text);
    assert_eq!(copied.files["keys/alice.pub"], format!("# her laptop\nno-pty {A} laptop\n"));
    // Once more changes nothing.
    let again = imported(&[("users.nix", &*text), files[1], files[2]], KeyFiles::InPlace);
    assert_eq!(again.text, text);
}

#[test]
fn the_steps_to_join_are_those_of_the_projects_own_users_nix() {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the project");
    let own = std::fs::read_to_string(top.join("users.nix")).expect("users.nix");
    assert!(own.starts_with(text::HEADER), "{own}");
}

#[test]
fn key_files_with_odd_names_are_found_again_and_no_copy_hides_another() {
    let users = "{ lib, ... }: { users.users = lib.genAttrs [ \"a\" \"a-2\" \"A.b\" ] (name: { openssh.authorizedKeys.keyFiles = \
                 [ (./. + \"/the keys/${name}\") (./. + \"/\\${x}\\\"\") ]; }); }";
    let files = [
        ("infra/users.nix", users),
        ("infra/the keys/a", A),
        ("infra/the keys/a-2", B),
        ("infra/the keys/A.b", ECDSA_256),
        ("infra/${x}\"", SK_ED25519),
    ];
    let memory = Memory::with(&files);
    for keys in [KeyFiles::InPlace, KeyFiles::Copied] {
        let imported = import(&memory, "infra/users.nix", keys).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(imported.members, 3);
        let names: Vec<&str> = imported.files.keys().map(String::as_str).collect();
        let copies: &[&str] = match keys {
            KeyFiles::InPlace => &[],
            KeyFiles::Copied => &[
                "keys/A.b-2.pub",
                "keys/A.b.pub",
                "keys/a-2-2.pub",
                "keys/a-2-3.pub",
                "keys/a-2.pub",
                "keys/a.pub",
            ],
        };
        assert_eq!(names, copies);
    }
}

#[test]
fn nobody_is_lost_with_a_mistake() {
    let error = |users: &str| {
        import(&Memory::with(&[("users.nix", users)]), "users.nix", KeyFiles::InPlace).expect_err(users)
    };
    let one = format!("{{ a.keys = \"{A}\"; b.key = \"{B}\"; }}");
    assert!(matches!(error(&one), ImportError::Mistakes(_)));
    assert!(matches!(error("{ a.keys = "), ImportError::Refused(_)));
}

#[test]
fn what_would_not_be_the_same_is_named() {
    let read = |users: &str| {
        let files = [("users.nix", users.replace("$A", A).replace("$B", B))];
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        evaluate(Memory::with(&files), "users.nix", Limits::default())
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let before = read("{ users = { a.keys = \"$A x\"; b.keys = \"$B\"; }; groups.g.limits.maxJobs = 2; }");
    for (after, said) in [
        ("{ users = { a.keys = \"$A x\"; }; groups.g.limits.maxJobs = 2; }", "removes `b`"),
        (
            "{ users = { a.keys = \"$A x\"; b.keys = \"$B\"; }; groups.g.limits.maxJobs = 3; }",
            "raises `maxJobs`",
        ),
        (
            "{ users = { a.keys = \"$A y\"; b.keys = \"$B\"; }; groups.g.limits.maxJobs = 2; }",
            "`a` is not the same",
        ),
        (
            "{ users = { a.keys = \"$A x\"; b.keys = \"$B\"; }; groups.g = { limits.maxJobs = 2; hosts = [ \"x\" ]; }; }",
            "the groups or the boxes",
        ),
        (
            "{ users = { a.keys = \"$A x\"; b.keys = \"$B\"; c.key = 1; }; groups.g.limits.maxJobs = 2; }",
            "unknown attribute",
        ),
    ] {
        let told = differences(&before, &read(after));
        assert!(told.iter().any(|told| told.contains(said)), "{after}: {told:?}");
    }
    assert!(differences(&before, &before).is_empty());
}

/// Text of strangers, in comments, principals and names.
fn hostile() -> serde_json::Value {
    let ca = format!("cert-authority,principals=\"${{x}},$${{y}},$$,$\" {ECDSA_256} ''${{z}}''");
    json!({
        "if": { "keys": format!("{A} ${{builtins.abort \"x\"}} \\${{y}} \\\\ \" ''") },
        "0x4A6F": { "keys": [ca, format!("{RSA_3072} $${{x}}\t$")], "vouchedBy": ["or", "let"], "expires": "2030-01-01" },
        "a.b-c": { "keys": [format!("{B} # }} ; /* ]")], "limits": { "maxJobs": 2, "maxCpus": 3 }, "shareWith": ["if"] },
    })
}

/// `tests/agree.rs` compares what Nix says to this file with what our evaluator says. After a deliberate change,
/// `UPDATE=1` rewrites it; then `tests/agree/record.sh` asks Nix again.
#[test]
fn the_roster_that_nix_was_asked_about_is_what_is_imported() {
    let users = "builtins.fromJSON (builtins.readFile ./users.json)";
    let files = [("users.nix", users), ("users.json", &hostile().to_string())];
    let text = imported(&files, KeyFiles::InPlace).text;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agree/imported/users.nix");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder of the questions");
        std::fs::write(&path, &text).expect("the folder of the questions");
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap_or_default(), "{}", path.display());
}

fn piece() -> impl Strategy<Value = String> {
    let pieces = [
        "${", "}", "$", "$$", "\"", "\\", "''", "'", "#", "/*", ";", "]", " ", "\t", "\u{2028}", "\u{1b}",
        "ä", "x", "\u{85}", "\u{feff}", "@", "`", "=", "\\n",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..12)
        .prop_map(|pieces| pieces.concat())
}

fn member() -> impl Strategy<Value = serde_json::Value> {
    let key = (proptest::sample::select(vec![A, B, ECDSA_256, SK_ED25519, RSA_3072]), piece(), 0..3u8)
        .prop_map(|(key, comment, kind)| match kind {
            0 => format!("{key} {comment}"),
            1 => format!("from=\"192.0.2.0/24\",no-pty {key} {comment}"),
            _ => format!(
                "cert-authority,principals=\"a,p{}\" {key}",
                comment.replace(['"', '\\', ',', '\t', '\u{1b}', '\u{85}'], "_")
            ),
        });
    let rest =
        (proptest::option::of(1..1024u32), proptest::option::of(1..255u32), any::<bool>(), any::<bool>());
    (proptest::collection::vec(key, 1..4), rest, proptest::sample::subsequence(vec!["g", "or"], 0..=2))
        .prop_map(|(keys, (jobs, cpus, maintainer, expires), groups)| {
            let mut member = json!({ "keys": keys, "groups": groups });
            for (name, value) in [("maxJobs", jobs), ("maxCpus", cpus)] {
                if let Some(value) = value {
                    member["limits"][name] = value.into();
                }
            }
            if maintainer {
                member["role"] = "maintainer".into();
            }
            if expires {
                member["expires"] = "2031-02-03".into();
                member["hosts"] = json!(["box"]);
            }
            member
        })
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]

    /// The names are those that need quotes or mean something at the top of a roster.
    #[test]
    fn any_roster_is_the_same_after_an_import_and_after_another(
        members in proptest::collection::btree_map(
            proptest::sample::select(vec!["alice", "if", "0x4A", "a.b", "users", "groups", "hosts", "keys", "config", "null", "_"]),
            member(),
            1..6,
        ),
        default in proptest::option::of(1..9u32),
    ) {
        let mut roster = json!({ "users": members, "groups": { "g": { "limits": { "maxJobs": 7 } }, "or": {} }, "hosts": ["box", "mac"] });
        if let Some(default) = default {
            roster["groups"]["or"]["memberLimits"]["maxJobs"] = default.into();
        }
        let users = "builtins.fromJSON (builtins.readFile ./users.json)";
        let json = roster.to_string();
        let memory = Memory::with(&[("users.nix", users), ("users.json", &json)]);
        let again = |memory: &Memory| {
            import(memory, "users.nix", KeyFiles::InPlace).map_err(|error| TestCaseError::fail(error.to_string()))
        };
        let first = again(&memory)?;
        let second = again(&Memory::with(&[("users.nix", &first.text)]))?;
        prop_assert_eq!(first.text, second.text);
    }
}
