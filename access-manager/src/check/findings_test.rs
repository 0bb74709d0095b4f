use super::*;
use crate::nix::Limits;
use crate::roster::inspect;
use crate::source::Memory;
use crate::test_keys::*;

/// `kind: text` of all findings.
fn found(users: &str, files: &[(&str, &str)], bounds: &[&str]) -> Vec<String> {
    let users = users.replace("$A", A).replace("$B", B).replace("$C", ECDSA_256).replace("$R", RSA_3072);
    let mut all_files = vec![("users.nix", users.as_str())];
    all_files.extend_from_slice(files);
    let (evaluated, inspected) = inspect(Memory::with(&all_files), "users.nix", Limits::default(), &[])
        .unwrap_or_else(|error| panic!("{error}"));
    let bounds: Vec<Bound> = bounds.iter().map(|bound| bound.parse().expect("a bound")).collect();
    let now = Day::parse("2027-06-15").expect("a day").end().0;
    let told = all(&evaluated, &inspected, &bounds, now);
    told.into_iter().map(|finding| format!("{}: {}", finding.kind, finding.text)).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_roster_in_order_has_no_findings() {
    let users = "{ alice.keys = ./keys/alice.pub; Bob.keys = \"$B\"; carol.keys = \"$C\"; }";
    assert_eq!(found(users, &[("keys/alice.pub", A), ("README.md", "x")], &["maxJobs=1"]), NOTHING);
}

#[test]
fn names_out_of_order_are_told_with_where_they_belong() {
    let list = |names: &[&str]| -> String {
        let keys = [A, B, ECDSA_256, ECDSA_384];
        let entries: Vec<String> = names
            .iter()
            .zip(keys)
            .map(|(name, key)| format!("{{ name = \"{name}\"; keys = \"{key}\"; }}"))
            .collect();
        format!("[ {} ]", entries.join(" "))
    };
    let belongs =
        |name: &str, place: &str| format!("order: `{name}` is not in alphabetical order: it belongs {place}");
    for (names, expected) in [
        (vec!["alice", "bob", "carol"], vec![]),
        (vec!["bob", "carol", "alice"], vec![belongs("alice", "before `bob`")]),
        (vec!["alice", "dora", "bob", "carol"], vec![belongs("dora", "after `carol`")]),
        (vec!["carol", "alice", "bob"], vec![belongs("carol", "after `bob`")]),
    ] {
        assert_eq!(found(&list(&names), &[], &[]), expected, "{names:?}");
    }
    assert_eq!(found("{ b.keys = \"$A\"; a.keys = \"$B\"; }", &[], &[]), [belongs("b", "after `a`")]);
    let generated = |names: &str| {
        format!(
            "{{ lib, ... }}: lib.genAttrs {names} (name: {{ keys = if lib.hasSuffix \"a\" name then \"$A\" else \"$B\"; }})"
        )
    };
    assert_eq!(found(&generated("[ \"b\" \"a\" ]"), &[], &[]), [belongs("b", "after `a`")]);
    // Names that are computed have no order in the file.
    assert_eq!(
        found(&generated("(builtins.genList (n: if n == 0 then \"b\" else \"a\") 2)"), &[], &[]),
        NOTHING
    );
}

#[test]
fn a_roster_in_an_order_of_its_own_gets_one_note() {
    // Ed25519 keys are any 32 bytes.
    let entries: String = (0..20)
        .rev()
        .map(|i| format!("m{i:02}.keys = \"{}\"; ", A.replace("JJl", &format!("J{}l", (b'a' + i) as char))))
        .collect();
    let told = found(&format!("{{ {entries} }}"), &[], &[]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("not in alphabetical order: 19 of 20"), "{told:?}");
}

#[test]
fn key_files_that_nobody_names_are_told() {
    let private = format!("-----BEGIN OPENSSH {} KEY-----\nxx\n", "PRIVATE");
    let files = [
        ("keys/alice.pub", A),
        ("keys/bob.pub", B),
        ("keys/carol", ECDSA_256),
        ("keys/README", "who is who"),
        ("keys/oops", private.as_str()),
        ("other/dora.pub", ECDSA_384),
        ("default.nix", "42"),
    ];
    assert_eq!(
        found("{ alice.keys = ./keys/alice.pub; }", &files, &[]),
        [
            "unused-key-file: nobody names the key file `keys/bob.pub`",
            "unused-key-file: nobody names the key file `keys/carol`",
            "private-key: `keys/oops` holds a PRIVATE key"
        ]
    );
}

#[test]
fn limits_above_the_sites_bounds_are_refused() {
    let users = "{ a = { keys = \"$A\"; limits.maxJobs = 9; }; b = { keys = \"$B\"; limits.maxJobs = 8; }; c.keys = \"$C\"; }";
    assert_eq!(
        found(users, &[], &["maxJobs=8", "maxCpus=4"]),
        ["above-bound: `maxJobs` of `a` is 9; at most 8 builds are given to one member here"]
    );
    for not in ["maxJobs", "max-jobs=8", "maxJobs=0", "maxJobs=many", "maxJobs=99999999"] {
        not.parse::<Bound>().expect_err(not);
    }
    let error = "max-jobs=8".parse::<Bound>().expect_err("another name");
    assert!(error.ends_with("did you mean `maxJobs`?"), "{error}");
}

#[test]
fn dates_that_have_passed_are_told() {
    let users = "{ a = { keys = \"$A\"; expires = \"2027-06-14\"; }; b = { keys = \"$B\"; expires = \"2027-06-15\"; }; \
                 c.keys = [ \"expiry-time=\\\"20270101\\\" $C\" \"$R\" ]; }";
    let told = found(users, &[], &[]);
    assert_eq!(told[0], "expired: the access of `a` has expired on 2027-06-14");
    assert!(told[1].ends_with("of `c` has expired at 20270101000000Z"), "{told:?}");
    assert_eq!(told.len(), 2);
}

#[test]
fn rights_of_an_ordinary_machine_are_explained() {
    let module = "{ lib, pkgs, ... }: { users.users.a = { extraGroups = [ \"wheel\" \"trusted\" \"docker\" ]; shell = pkgs.fish; \
                  openssh.authorizedKeys.keys = [ \"$A\" ]; }; users.users.b = { extraGroups = lib.mkIf true [ \"wheel\" ]; \
                  openssh.authorizedKeys.keys = [ \"$B\" ]; }; users.groups.docker.members = [ \"b\" ]; nix.settings.trusted-users = [ \"root\" \"@wheel\" ]; }";
    let told = found(module, &[], &[]);
    assert_eq!(told.len(), 4, "{told:#?}");
    assert_eq!(
        told[0],
        "no-effect: `trusted` (`a`) has no effect here: there are no trusted users, and nobody has to be one to build"
    );
    assert!(
        told[1].starts_with("no-effect: `trusted-users` (`@wheel` and `root`) has no effect here"),
        "{told:#?}"
    );
    assert!(
        told[2].starts_with("no-effect: `wheel` (`a` and `b`) has no effect here: members have no account"),
        "{told:#?}"
    );
    assert_eq!(told[3], "no-effect: groups of users have no effect here: `docker`");
    // What cannot be evaluated has no effect either.
    let broken = "{ config, ... }: { users.users.a = { extraGroups = config.groups; openssh.authorizedKeys.keys = [ \"$A\" ]; }; }";
    assert_eq!(found(broken, &[], &[]), NOTHING);
    let allowed = "{ ... }: { nix.settings.allowed-users = [ \"@users\" ]; users.users.a.openssh.authorizedKeys.keys = [ \"$A\" ]; }";
    assert_eq!(
        found(allowed, &[], &[]),
        ["no-effect: `allowed-users` (`@users`) has no effect here: every member may build, and nobody else"]
    );
    let set = found("{ a = { keys = \"$A\"; trusted = true; }; }", &[], &[]);
    assert_eq!(set, ["not-meant: `trusted` of `a` is ignored: no member has to be trusted here"]);
}

#[test]
fn a_member_whom_no_box_lets_in_is_told() {
    let users = "{ users = { a = { keys = \"$A\"; hosts = [ \"box\" ]; groups = [ \"g\" ]; }; b = { keys = \"$B\"; groups = [ \"g\" ]; }; }; \
                 groups.g.hosts = [ \"mac\" ]; }";
    assert_eq!(
        found(users, &[], &[]),
        ["not-meant: no box lets in `a`: their own `hosts` and those of their groups have none in common"]
    );
}
