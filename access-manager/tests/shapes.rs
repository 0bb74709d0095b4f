//! Every shape of users.nix that communities use is understood, gives the members one expects, and can be imported.

mod common;

use access_manager::import::{KeyFiles, import};
use access_manager::nix::Limits;
use access_manager::roster::{Evaluated, LIMITS, Role, evaluate};
use access_manager::source::{Memory, WorkDir};
use common::*;

fn read(users: &str) -> Evaluated {
    read_with(users, &[])
}

fn read_with(users: &str, files: &[(&str, &str)]) -> Evaluated {
    let mut all = vec![("users.nix", users)];
    all.extend_from_slice(files);
    let files = Memory::with(&all);
    let roster = evaluate(files, "users.nix", Limits::default()).unwrap_or_else(|d| panic!("{d}"));
    // Whatever is read can be rewritten; `import` itself compares both.
    if roster.mistakes.is_empty() && roster.members.len() < 1000 {
        for keys in [KeyFiles::InPlace, KeyFiles::Copied] {
            let imported =
                import(&Memory::with(&all), "users.nix", keys).unwrap_or_else(|e| panic!("{users}\n{e}"));
            assert_eq!(imported.members, roster.members.len());
        }
    }
    roster
}

/// `name: key key, name: key`, without comments.
fn summary(roster: &Evaluated) -> Vec<(String, Vec<String>)> {
    let short = |k: &String| k.split(' ').take(2).collect::<Vec<_>>().join(" ");
    roster.members.iter().map(|m| (m.name.clone(), m.keys.iter().map(short).collect())).collect()
}

fn warnings(roster: &Evaluated) -> Vec<String> {
    roster.warnings.iter().map(|warning| warning.to_string()).collect()
}

fn alice_and_bob() -> Vec<(String, Vec<String>)> {
    vec![("alice".into(), vec![A.into()]), ("bob".into(), vec![A_OTHER.into(), B.into()])]
}

const A_OTHER: &str = ECDSA_256;

fn bobs() -> String {
    format!("# two machines\n\n{ECDSA_256} bob@phone\n   {B}   bob at his desk")
}

#[test]
fn a_set_or_a_list_of_users_with_keys_in_any_form() {
    let files = [("keys/alice.pub", A), ("keys/bob.pub", &*bobs())];
    let shapes = [
        "{ alice.keys = ./keys/alice.pub; bob.keys = ./keys/bob.pub; }".to_owned(),
        "{ alice = { keys = [ ./keys/alice.pub ]; }; bob.keys = [ ./keys/bob.pub ]; }".into(),
        "[ { name = \"bob\"; keys = ./keys/bob.pub; } { name = \"alice\"; keys = ./keys/alice.pub; } ]".into(),
        format!("{{ alice.keys = \"{A}\"; bob.keys = [ \"{ECDSA_256} x\" \"{B}\" ]; }}"),
        "{ alice.keys = builtins.readFile ./keys/alice.pub; bob.keys = builtins.readFile ./keys/bob.pub; }".into(),
        "{ lib, ... }: lib.genAttrs [ \"alice\" \"bob\" ] (name: { keys = ./keys/${name}.pub; })".into(),
        "{ lib }: lib.mapAttrs' (file: _: lib.nameValuePair (lib.removeSuffix \".pub\" file) \
         { keys = ./keys + \"/${file}\"; }) (builtins.readDir ./keys)"
            .into(),
        "builtins.listToAttrs (map (name: { inherit name; value.keys = ./keys + \"/${name}.pub\"; }) [ \"alice\" \"bob\" ])"
            .into(),
    ];
    for shape in shapes {
        assert_eq!(summary(&read_with(&shape, &files)), alice_and_bob(), "{shape}");
    }
}

#[test]
fn a_nixos_module_gives_its_users_keys() {
    let files = [("keys/alice.pub", A), ("keys/bob.pub", &*bobs()), ("modules/more.nix", MORE)];
    const MORE: &str = "{ ... }: { users.users.bob.openssh.authorizedKeys.keyFiles = [ ../keys/bob.pub ]; }";
    let alice = "users.users.alice.openssh.authorizedKeys.keys = [ (builtins.readFile ./keys/alice.pub) ];";
    let shapes = [
        format!(
            "{{ config, pkgs, ... }}: {{ imports = [ ./modules/more.nix ]; {alice} services.x = pkgs.y; }}"
        ),
        format!(
            "{{ lib, ... }}: {{ config = lib.mkMerge [ (lib.mkIf true {{ {alice} }}) (import ./modules/more.nix {{ }}) ]; }}"
        ),
        format!(
            "{{ {alice} users.users.bob.openssh.authorizedKeys.keyFiles = [ ./keys/bob.pub ]; \
                 users.users.daemon.isSystemUser = true; }}"
        ),
    ];
    for shape in shapes {
        assert_eq!(summary(&read_with(&shape, &files)), alice_and_bob(), "{shape}");
    }
    let off = "{ lib, ... }: { users.users = lib.mkIf false { alice = throw \"never looked at\"; }; }";
    assert!(read(off).members.is_empty());
}

#[test]
fn the_list_of_a_large_community_is_read_as_it_is() {
    let users = r#"{ pkgs, ... }:
let
  inherit (pkgs) lib;
  users = { "0x4A6F" = { trusted = true; keys = ./keys/one; }; ckie = { trusted = true; keys = ./keys/two; }; };
  ifAttr = key: default: result: opts: if (opts ? "${key}") && opts."${key}" then result else default;
  groups = opts: (ifAttr "trusted" [ ] [ "trusted" ] opts) ++ (ifAttr "sudo" [ ] [ "wheel" ] opts);
  toUser = name: opts: {
    extraGroups = groups opts; home = "/home/${name}"; hashedPassword = opts.password or null;
    openssh.authorizedKeys.keyFiles = [ opts.keys ];
  };
in { users = { mutableUsers = false; users = lib.mapAttrs toUser users; }; }"#;
    let roster = read_with(users, &[("keys/one", A), ("keys/two", B)]);
    assert_eq!(summary(&roster), [("0x4A6F".into(), vec![A.into()]), ("ckie".into(), vec![B.into()])]);
}

#[test]
fn a_roster_may_extend_another_one() {
    let base = format!("{{ alice.keys = \"{A}\"; }}");
    let users = format!("(import ./base/users.nix) // {{ demo = {{ keys = [ \"{B}\" ]; }}; }}");
    let roster = read_with(&users, &[("base/users.nix", &base)]);
    assert_eq!(summary(&roster), [("alice".into(), vec![A.into()]), ("demo".into(), vec![B.into()])]);
}

#[test]
fn every_attribute_reaches_roster_json_under_its_name() {
    let roster = read(&format!(
        "{{ alice = {{ keys = \"{A} laptop\"; role = \"maintainer\"; expires = \"2028-02-29\"; limits = {{ maxJobs = 3; \
         maxMemoryMib = 2048; maxCpus = 2; maxBuildSeconds = 60; maxStoreMib = 1024; }}; }}; }}"
    ));
    assert_eq!(
        serde_json::to_value(&roster.members[0]).unwrap(),
        serde_json::json!({
            "name": "alice", "keys": [format!("{A} laptop")], "role": "maintainer", "expires": "2028-02-29",
            "limits": { "max-jobs": 3, "max-memory-mib": 2048, "max-cpus": 2, "max-build-seconds": 60,
                        "max-store-mib": 1024 }
        })
    );
    assert_eq!(read(&format!("{{ bob.keys = \"{B}\"; }}")).members[0].role, Role::Member);
}

fn whole(users: &str, rest: &str) -> String {
    let users = users.replace("$A", A).replace("$B", B).replace("$C", ECDSA_256);
    format!("{{ users = {users}; {rest} }}")
}

#[test]
fn a_group_has_members_by_its_own_list_and_by_theirs() {
    let users = "{ alice = { keys = \"$A\"; groups = [ \"ci\" \"dev\" ]; limits.maxCpus = 8; }; bob.keys = \"$B\"; carol.keys = \"$C\"; }";
    let groups = "groups = { ci = { members = [ \"bob\" \"alice\" ]; limits = { maxJobs = 16; maxCpus = 32; }; memberLimits = { maxCpus = 4; \
                  maxJobs = 3; }; }; dev = { memberLimits.maxJobs = 2; }; unused = { }; };";
    let roster = read(&whole(users, groups));
    assert!(roster.mistakes.is_empty());
    let json = serde_json::to_value(roster.roster(None, "test".into())).unwrap();
    assert_eq!(json["schema"], 2);
    // A group that nobody is in is not the agent's business.
    assert_eq!(
        json["groups"],
        serde_json::json!([{ "name": "ci", "limits": { "max-jobs": 16, "max-cpus": 32 } }, { "name": "dev", "limits": {} }])
    );
    let members: Vec<(&str, serde_json::Value, serde_json::Value)> = json["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| (member["name"].as_str().unwrap(), member["groups"].clone(), member["limits"].clone()))
        .collect();
    use serde_json::{Value::Null, json};
    // The member's own limit counts; of two groups' defaults the smaller one.
    assert_eq!(
        members,
        [
            ("alice", json!(["ci", "dev"]), json!({ "max-cpus": 8, "max-jobs": 2 })),
            ("bob", json!(["ci"]), json!({ "max-cpus": 4, "max-jobs": 3 })),
            ("carol", Null, json!({})),
        ]
    );
}

#[test]
fn members_below_users_have_every_form() {
    let expected = [("alice".into(), vec![A.to_owned()]), ("bob".into(), vec![B.to_owned()])];
    for users in [
        "{ alice.keys = \"$A\"; bob.keys = \"$B\"; }",
        "[ { name = \"bob\"; keys = \"$B\"; } { name = \"alice\"; keys = [ \"$A\" ]; } ]",
        "builtins.mapAttrs (name: keys: { inherit keys; }) { alice = \"$A\"; bob = \"$B\"; }",
    ] {
        assert_eq!(summary(&read(&whole(users, ""))), expected, "{users}");
        assert_eq!(summary(&read(&format!("{{ lib, ... }}: {}", whole(users, "groups = { };")))), expected);
    }
    // Members may be called as these attributes are.
    for name in ["users", "groups", "hosts", "config", "keys"] {
        let users = format!("{{ {name}.keys = \"$A\"; }}").replace("$A", A);
        assert_eq!(summary(&read(&users)), [(name.into(), vec![A.into()])], "{users}");
        assert_eq!(summary(&read(&format!("{{ users = {users}; }}"))), [(name.into(), vec![A.into()])]);
    }
}

#[test]
fn a_mistake_in_a_group_leaves_out_its_members_and_nobody_else() {
    let users =
        "{ alice = { keys = \"$A\"; groups = [ \"ci\" ]; }; bob.keys = \"$B\"; carol.keys = \"$C\"; }";
    for group in [
        "ci = { members = [ \"bob\" ]; limits.maxJobs = 0; }",
        "ci = { members = [ \"bob\" ]; limits.maxBuildSeconds = 60; }",
        "ci = { members = [ \"bob\" ]; limits.maxUploadMib = 60; }",
        "ci = { members = [ \"bob\" ]; weight = 3; }",
        "ci = { members = [ \"bob\" ]; hosts = [ ]; }",
    ] {
        let roster = read(&whole(users, &format!("groups = {{ {group}; }};")));
        assert_eq!(summary(&roster), [("carol".into(), vec![ECDSA_256.into()])], "{group}");
        let left: Vec<String> = roster.left_out().into_iter().map(|left| left.name).collect();
        assert_eq!(left, ["alice", "bob"], "{group}");
        roster.strict().expect_err(group);
    }
    // Nobody is without the limits of a group by a name that is mistyped.
    let roster = read(&whole(&users.replace("ci", "cii"), "groups.ci = { };"));
    assert_eq!(
        roster.left_out()[0].error,
        "there is no group `cii` (users.nix:1:125); hint: did you mean `ci`?"
    );
    // Nor by a list of members that nobody can read: then there is no roster, and a box keeps the one it has.
    for group in [
        "ci = { members = [ \"bob\" 3 ]; limits.maxJobs = 2; }",
        "ci = { members = bob; limits.maxJobs = 2; }",
        "ci = { memers = [ \"bob\" ]; limits.maxJobs = 2; }",
        "ci = [ \"bob\" ]",
    ] {
        let roster = whole(users, &format!("groups = {{ {group}; }};"));
        let files = Memory::with(&[("users.nix", &roster)]);
        let error = evaluate(files, "users.nix", Limits::default()).expect_err(group).to_string();
        assert!(error.contains("nobody can say who shares the limits of the group `ci`"), "{group}: {error}");
    }
    // A stranger in the list costs nobody anything.
    let roster = read(&whole(users, "groups.ci.members = [ \"dave\" ];"));
    assert_eq!((roster.members.len(), roster.left_out().len(), roster.mistakes.len()), (3, 0, 1));
}

#[test]
fn hosts_say_which_boxes_let_a_member_in() {
    let users = "{ alice = { keys = \"$A\"; hosts = [ \"box\" \"mac\" ]; }; bob = { keys = \"$B\"; groups = [ \"x86\" ]; }; carol.keys = \"$C\"; }";
    let rest = "hosts = [ \"box\" \"mac\" \"arm.example.org\" ]; groups.x86.hosts = [ \"box\" ];";
    let on = |host: Option<&str>| read(&whole(users, rest)).for_host(host);
    let names =
        |roster: &Evaluated| roster.members.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&on(Some("box"))), ["alice", "bob", "carol"]);
    assert_eq!(names(&on(Some("mac"))), ["alice", "carol"]);
    assert_eq!(names(&on(Some("arm.example.org"))), ["carol"]);
    assert!(warnings(&on(Some("mac"))).is_empty());
    assert!(warnings(&on(Some("boxx")))[0].ends_with("no box `boxx` in `hosts` (did you mean `box`?)"));
    assert_eq!(names(&on(None)), ["alice", "bob", "carol"]);
    assert!(
        warnings(&on(None))[0].contains("for some boxes only: `alice` and `bob`"),
        "{:?}",
        warnings(&on(None))
    );
    // The agent needs no list of boxes, so an agent of any age can read what is left.
    let json = serde_json::to_string(&on(Some("mac")).roster(None, "test".into())).unwrap();
    assert!(!json.contains("hosts") && json.contains("\"schema\":1"), "{json}");
    // Without a list of its own, a roster may name any box.
    let free = read(&whole("{ alice = { keys = \"$A\"; hosts = [ \"any\" ]; }; }", ""));
    assert_eq!(names(&free.for_host(Some("any"))), ["alice"]);
}

#[test]
fn share_with_names_members_that_come_later_and_warns_while_it_is_one_sided() {
    let users = |bobs: &str| {
        format!(
            "{{ alice = {{ keys = \"{A}\"; shareWith = [ \"bob\" \"bob\" ]; }}; bob = {{ keys = \"{B}\"; {bobs} }}; }}"
        )
    };
    let roster = read(&users(""));
    assert_eq!(roster.members[0].share_with, ["bob"]);
    assert!(roster.members[1].share_with.is_empty());
    assert_eq!(
        warnings(&roster),
        [
            "`alice` shares with `bob`, but not the other way round: nothing is shared until both list each other"
        ]
    );
    let roster = read(&users("shareWith = [ \"alice\" ];"));
    assert!(roster.warnings.is_empty(), "{:?}", roster.warnings);
    let json = serde_json::to_value(&roster.members[1]).unwrap();
    assert_eq!(json["share-with"], serde_json::json!(["alice"]));
}

#[test]
fn every_accepted_key_type_is_accepted() {
    for key in [A, ECDSA_256, ECDSA_384, ECDSA_521, RSA_3072, SK_ED25519, SK_ECDSA] {
        let roster =
            read_with("{ alice.keys = ./k; }", &[("k", &format!("no-pty,restrict {key} a b c\r\n"))]);
        assert_eq!(roster.members[0].keys, [format!("{key} a b c")]);
    }
}

#[test]
fn a_trusted_attribute_is_ignored_aloud() {
    let roster = read(&format!("{{ alice = {{ keys = \"{A}\"; trusted = true; }}; }}"));
    assert!(roster.warnings[0].text.contains("`trusted` of `alice` is ignored"), "{:?}", roster.warnings);
}

#[test]
fn the_projects_own_users_nix_is_a_roster() {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let roster = evaluate(WorkDir::new(top).unwrap(), "users.nix", Limits::default())
        .unwrap_or_else(|d| panic!("{d}"));
    assert!(roster.members.len() >= 2 && roster.warnings.is_empty(), "{roster:?}");
}

#[test]
fn ten_thousand_members_fit_the_limits() {
    // One key may belong to one member only, so each gets its own: the last bytes of an ed25519 key are free.
    let users: String = (0..9_999)
        .map(|i| {
            let digits: String = format!("{i:04}").chars().collect();
            format!("  m{i}.keys = \"{}{digits}\";\n", &A[..A.len() - 4])
        })
        .collect();
    assert_eq!(read(&format!("{{\n{users}}}")).members.len(), 9_999);
}

#[test]
fn links_are_followed_inside_the_repository_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repo");
    std::fs::create_dir_all(root.join("keys")).unwrap();
    std::fs::write(root.join("keys/alice.pub"), A).unwrap();
    std::fs::write(dir.path().join("outside.pub"), B).unwrap();
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    link("keys/alice.pub", "good");
    link("../outside.pub", "up");
    link("/etc/hostname", "absolute");
    link("loop", "loop");
    link("..", "keys/top");
    let read = |file: &str| {
        std::fs::write(root.join("users.nix"), format!("{{ alice.keys = ./{file}; }}")).unwrap();
        evaluate(WorkDir::new(&root).unwrap(), "users.nix", Limits::default()).map_err(|d| d.to_string())
    };
    assert_eq!(read("good").unwrap().members[0].keys, [A]);
    assert_eq!(read("keys/top/good").unwrap().members[0].keys, [A]);
    for (file, expected) in
        [("up", "leaves the repository"), ("absolute", "leaves the repository"), ("loop", "40")]
    {
        let error = read(file).unwrap_err();
        assert!(error.contains(expected), "{file}: {error}");
    }
}

/// The shapes of three lists in use, with invented people: a set, a list of names with a group each, and one with numbers.
#[test]
fn an_authority_and_one_key_of_two_accounts_are_read_as_communities_write_them() {
    let files = [
        ("keys/luke", &*format!("cert-authority,principals=\"luke\" {A} luke-ca\n")),
        ("keys/dora", B),
        ("keys/touch", &*format!("no-touch-required {SK_ED25519}")),
    ];
    let users = r#"{ config, pkgs, ... }:
let users = [
  { name = "luke"; trusted = true; uid = 501; keys = ./keys/luke; }
  { name = "dora"; trusted = true; shell = pkgs.fish; keys = ./keys/dora; }
  { name = "dora-untrusted"; trusted = false; keys = ./keys/dora; }
  { name = "touch"; keys = ./keys/touch; }
]; in {
  users.users = builtins.listToAttrs (map (u: { inherit (u) name; value = {
    extraGroups = builtins.concatLists [ (if u ? trusted && u.trusted then [ "trusted" ] else [ ]) ];
    shell = u.shell or config.users.defaultUserShell;
    openssh.authorizedKeys.keyFiles = [ u.keys ];
  }; }) users);
  users.knownUsers = map (u: u.name) users;
}"#;
    let roster = read_with(users, &files);
    let names: Vec<&str> = roster.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["dora", "dora-untrusted", "luke", "touch"]);
    assert_eq!(roster.members[2].keys, [format!("cert-authority,principals=\"luke\" {A} luke-ca")]);
    assert!(roster.mistakes.is_empty());
    assert_eq!(roster.warnings.len(), 1, "{:?}", roster.warnings);
    assert!(
        roster.warnings[0].text.contains("`dora` and `dora-untrusted` have the same key"),
        "{:?}",
        roster.warnings
    );
}

#[test]
fn one_authority_of_many_members_warns_only_where_a_certificate_could_mean_two() {
    let users = |bobs: &str| {
        warnings(&read(&format!(
            "{{ alice.keys = \"cert-authority {A}\"; bob.keys = \"cert-authority{bobs} {A}\"; }}"
        )))
    };
    assert!(users("").is_empty());
    assert!(users(",principals=\\\"ops\\\"").is_empty());
    let warnings = users(",principals=\\\"alice\\\"");
    assert!(warnings[0].contains("`alice` and `bob` have the same certificate authority"), "{warnings:?}");
}

#[test]
fn what_is_wrong_with_one_member_keeps_nobody_else_out() {
    let files = [("keys/bob", B), ("keys/two", &*format!("{A} x{B}"))];
    let broken = [
        "alice.keys = ./keys/nowhere",
        "alice.keys = ./keys/two",
        "alice.keys = \"ssh-ed25519 AAAA\"",
        "alice.keys = ../../etc/passwd",
        "alice.keys = nowhere",
        "alice.keys = throw \"left\"",
        "alice.keys = (let f = n: f (n + 1) + 1; in f 0)",
        "alice = 5",
        "alice = { keys = ./keys/bob; expires = \"soon\"; }",
        "alice = { keys = ./keys/bob; limits.maxJobs = 0; }",
        "alice = { keys = ./keys/bob; king = true; }",
        "\"alice smith\".keys = ./keys/bob",
        "alice.keys = ./keys/bob; Alice.keys = ./keys/bob",
    ];
    for lines in broken {
        let roster = read_with(&format!("{{ {lines}; bob.keys = ./keys/bob; }}"), &files);
        assert_eq!(summary(&roster), [("bob".into(), vec![B.into()])], "{lines}");
        assert!(roster.mistakes.iter().all(|m| m.left_out && m.name.to_lowercase().starts_with("alice")));
        let left = roster.left_out();
        assert!(!left.is_empty() && !left[0].error.contains('\n'), "{left:?}");
        roster.strict().expect_err(lines);
    }
    // In a list and in a module alike; an entry without a name is known by its place.
    let list = read_with("[ { keys = ./keys/bob; } { name = \"bob\"; keys = ./keys/bob; } ]", &files);
    assert_eq!((list.members.len(), &*list.mistakes[0].name), (1, "entry 1"));
    let users =
        "alice.openssh.authorizedKeys.keys = 5; bob.openssh.authorizedKeys.keyFiles = [ ./keys/bob ];";
    let module = read_with(&format!("{{ ... }}: {{ users.users = {{ {users} }}; }}"), &files);
    assert_eq!((module.members.len(), &*module.mistakes[0].name), (1, "alice"));
}

#[test]
fn who_left_costs_those_who_shared_with_them_nothing_but_the_share() {
    let roster = read(&format!("{{ alice = {{ keys = \"{A}\"; shareWith = [ \"carol\" ]; }}; }}"));
    assert!(roster.members[0].share_with.is_empty());
    assert!(!roster.mistakes[0].left_out && roster.left_out().is_empty());
    roster.strict().expect_err("a mistake all the same");
}

#[test]
fn every_limit_can_be_a_members_own() {
    let limits: String =
        LIMITS.iter().map(|limit| format!("limits.{} = {};", limit.name, limit.smallest)).collect();
    let roster = read(&format!("{{ alice = {{ keys = \"{A}\"; {limits} }}; }}"));
    assert!(roster.warnings.is_empty(), "{:?}", roster.warnings);
    assert_eq!(roster.members[0].limits.values().count(), LIMITS.len());
}
