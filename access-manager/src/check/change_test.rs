//! Before, after, and what a reviewer is told.

use super::*;
use crate::nix::Limits;
use crate::roster::evaluate;
use crate::source::Memory;
use crate::test_keys::*;

fn sentences(before: &str, after: &str) -> Vec<String> {
    told(before, after).into_iter().map(|change| change.text).collect()
}

fn told(before: &str, after: &str) -> Vec<Change> {
    let keys = [("$A", A), ("$B", B), ("$C", ECDSA_256), ("$R", RSA_3072)];
    let read = |users: &str| {
        let users = keys.iter().fold(users.to_owned(), |text, (name, key)| text.replace(name, key));
        evaluate(Memory::with(&[("users.nix", &users)]), "users.nix", Limits::default())
            .unwrap_or_else(|error| panic!("{users}\n{error}"))
    };
    let (before, after) = (read(before), read(after));
    let today = Day::parse("2027-06-15").expect("a day");
    changes(&Side::of(&before), &Side::of(&after), today)
}

const A_SHA: &str = "SHA256:gRB7Zzfl/21eakaxlzg0SzmSRTTKw1d4cbTF/jdjTvc";

#[test]
fn what_changes_nobodys_access_is_not_told() {
    for (before, after) in [
        ("{ a.keys = \"$A\"; }", "{ a.keys = [ \"$A another comment\" ]; }"),
        ("{ a.keys = [ \"$A\" \"$B\" ]; }", "{ a.keys = [ \"$B\" \"$A\" ]; }"),
        (
            "{ a.keys = \"$A\"; b.keys = \"$B\"; }",
            "[ { name = \"b\"; keys = \"$B\"; } { name = \"a\"; keys = \"$A\"; } ]",
        ),
        // One side alone shares nothing.
        (
            "{ a.keys = \"$A\"; b.keys = \"$B\"; }",
            "{ a = { keys = \"$A\"; shareWith = [ \"b\" ]; }; b.keys = \"$B\"; }",
        ),
        // Their promise holds without them.
        ("{ a.keys = \"$A\"; }", "{ a.keys = \"no-pty,restrict $A\"; }"),
        // The member's name is what an authority without principals stands for.
        ("{ a.keys = \"cert-authority $A\"; }", "{ a.keys = \"cert-authority,principals=\\\"a\\\" $A\"; }"),
    ] {
        assert_eq!(sentences(before, after), [""; 0], "{before} -> {after}");
    }
}

#[test]
fn each_effect_is_one_sentence() {
    let plain = "{ a.keys = \"$A\"; z.keys = \"$R\"; }";
    let with = |extra: &str| format!("{{ a = {{ keys = \"$A\"; {extra} }}; z.keys = \"$R\"; }}");
    let keys = |keys: &str| format!("{{ a.keys = [ {keys} ]; z.keys = \"$R\"; }}");
    let both = |one: &str, other: &str| {
        format!("{{ a = {{ keys = \"$A\"; {one} }}; z = {{ keys = \"$R\"; {other} }}; }}")
    };
    let sharing = both("shareWith = [ \"z\" ];", "shareWith = [ \"a\" ];");
    for (before, after, expected) in [
        (
            plain.to_owned(),
            with("limits.maxJobs = 2;"),
            "limits `maxJobs` of `a` to 2 (before: the limit of the box only)",
        ),
        (with("limits.maxJobs = 2;"), with("limits.maxJobs = 16;"), "raises `maxJobs` of `a` from 2 to 16"),
        (with("limits.maxJobs = 16;"), with("limits.maxJobs = 2;"), "lowers `maxJobs` of `a` from 16 to 2"),
        (
            with("limits.maxCpuHoursPerMonth = 2;"),
            with("limits.maxCpuHoursPerMonth = 16;"),
            "raises `maxCpuHoursPerMonth` of `a` from 2 to 16",
        ),
        (
            plain.to_owned(),
            with("limits.maxCpuHoursPerMonth = 2;"),
            "sets `maxCpuHoursPerMonth` of `a` to 2, in place of the limit of the box",
        ),
        (
            with("limits.maxCpus = 2;"),
            plain.to_owned(),
            "removes the limit `maxCpus` of `a`, which was 2: the limit of the box remains",
        ),
        (
            plain.to_owned(),
            with("role = \"maintainer\";"),
            "makes `a` a maintainer: sees what every member uses, sees and cancels every member's builds, revokes their tickets and ends their connections, drains the box, evicts paths, reads the audit, and gets in when the roster is too old for others",
        ),
        (with("role = \"maintainer\";"), plain.to_owned(), "makes `a` a member who is no maintainer"),
        (plain.to_owned(), with("expires = \"2027-07-01\";"), "the access of `a` now ends after 2027-07-01"),
        (with("expires = \"2027-07-01\";"), plain.to_owned(), "the access of `a` no longer ends"),
        (
            with("expires = \"2027-07-01\";"),
            with("expires = \"2028-07-01\";"),
            "extends the access of `a` from 2027-07-01 to 2028-07-01",
        ),
        (
            with("expires = \"2028-07-01\";"),
            with("expires = \"2027-07-01\";"),
            "shortens the access of `a` from 2028-07-01 to 2027-07-01",
        ),
        (
            plain.to_owned(),
            with("expires = \"2027-06-14\";"),
            "ends the access of `a`, since 2027-06-14 has passed: ends their sessions and builds",
        ),
        (
            with("expires = \"2027-06-14\";"),
            with("expires = \"2027-06-15\";"),
            "lets `a` in again, until 2027-06-15",
        ),
        (plain.to_owned(), sharing.clone(), "`a` and `z` now share claims: each sees the paths of the other"),
        (sharing, plain.to_owned(), "`a` and `z` no longer share claims"),
        (keys("\"$B\""), keys("\"$B\" \"$A a@b\""), &format!("adds a key to `a`: {A_SHA} (ED25519) `a@b`")),
        (
            keys("\"$B\" \"$A a@b\""),
            keys("\"$B\""),
            &format!("removes the key {A_SHA} (ED25519) `a@b` of `a`: sessions with it end"),
        ),
        (
            keys("\"$B\" \"$A\""),
            keys("\"$B\" \"from=\\\"192.0.2.0/24\\\" $A\""),
            &format!(
                "changes when the key {A_SHA} (ED25519) of `a` counts: only from `192.0.2.0/24` (before: always)"
            ),
        ),
        (
            keys("\"$B\" \"cert-authority $A\""),
            keys("\"$B\" \"cert-authority,principals=\\\"x,y\\\" $A\""),
            &format!(
                "changes when the certificate authority {A_SHA} (ED25519) of `a` counts: always, with one of the \
                 principals `x` and `y` (before: always, with the principal `a`)"
            ),
        ),
        (
            keys("\"$B\""),
            keys("\"$B\" \"cert-authority $A\""),
            &format!(
                "adds a certificate authority for `a`: its holder can let in anybody as `a`, with the principal `a` in \
                 the certificate: {A_SHA} (ED25519)"
            ),
        ),
        (
            keys("\"$B\" \"cert-authority $A\""),
            keys("\"$B\""),
            &format!(
                "removes the certificate authority {A_SHA} (ED25519) of `a`: sessions with its certificates end"
            ),
        ),
        (plain.to_owned(), "{ z.keys = \"$R\"; }".to_owned(), "removes `a`: ends their sessions and builds"),
        (
            "{ z.keys = \"$R\"; }".to_owned(),
            with("limits = { maxJobs = 1; maxCpus = 8; maxMemoryMib = 20480; maxBuildSeconds = 7200; };"),
            &format!(
                "grants `a` 1 key, up to 1 build at a time, 20 GiB per build, 8 CPUs per build and 2 h per build: {A_SHA} \
                 (ED25519)"
            ),
        ),
        (
            "{ z.keys = \"$R\"; }".to_owned(),
            with(
                "limits = { maxCpuHoursPerMonth = 1; maxOutputMib = 1024; maxUploadMib = 5; maxSessions = 8; \
                 maxConnections = 1; maxSilentSeconds = 60; };",
            ),
            &format!(
                "grants `a` 1 key, up to 1 CPU hour a month, 1 GiB of outputs per build, 5 MiB per upload, 8 sessions at a \
                 time, 1 connection at a time and 1 min without output per build: {A_SHA} (ED25519)"
            ),
        ),
        (
            "{ z.keys = \"$R\"; }".to_owned(),
            with("role = \"maintainer\"; expires = \"2028-01-01\";"),
            &format!(
                "grants `a` 1 key, with the limits of the box, as a maintainer, until 2028-01-01: {A_SHA} (ED25519)"
            ),
        ),
        (
            plain.to_owned(),
            "{ a.key = \"$A\"; z.keys = \"$R\"; }".to_owned(),
            "leaves out `a` because of a mistake in the entry: ends their sessions and builds until it is corrected",
        ),
    ] {
        assert_eq!(sentences(&before, &after), [expected], "{before} -> {after}");
    }
}

#[test]
fn all_keys_at_once_make_another_person_and_one_kept_key_does_not() {
    let kinds = |before: &str, after: &str| -> Vec<&str> {
        told(before, after).into_iter().map(|change| change.kind).collect()
    };
    assert_eq!(
        kinds("{ a.keys = \"$A\"; }", "{ a.keys = \"$B\"; }"),
        ["replaces-keys", "adds-key", "removes-key"]
    );
    assert_eq!(
        kinds("{ a.keys = [ \"$A\" \"$B\" ]; }", "{ a.keys = [ \"$B\" \"$C\" ]; }"),
        ["adds-key", "removes-key"]
    );
    // An authority of several members tells nobody apart, as on the box; then the name decides.
    let two = |one: &str| {
        format!(
            "{{ a.keys = [ \"cert-authority $A\" {one} ]; z.keys = [ \"cert-authority,principals=\\\"z\\\" $A\" \"$R\" ]; }}"
        )
    };
    assert_eq!(kinds(&two("\"$B\""), &two("\"$C\"")), ["replaces-keys", "adds-key", "removes-key"]);
    assert_eq!(kinds(&two(""), &two("\"$C\"")), ["adds-key"]);
}

#[test]
fn another_name_for_the_same_keys_is_told() {
    let told = told("{ a.keys = \"$A\"; z.keys = \"$R\"; }", "{ b.keys = \"$A\"; z.keys = \"$R\"; }");
    let kinds: Vec<(&str, &str)> = told.iter().map(|change| (change.member.as_str(), change.kind)).collect();
    assert_eq!(kinds, [("a", "removes-member"), ("b", "adds-member"), ("b", "renames-member")]);
}

#[test]
fn many_keys_are_counted() {
    let told = sentences(
        "{ z.keys = \"$R\"; }",
        &format!(
            "{{ a.keys = [ \"$A\" \"$B\" \"$C\" \"{ECDSA_384}\" \"{ECDSA_521}\" \"{SK_ED25519}\" ]; z.keys = \"$R\"; }}"
        ),
    );
    assert!(told[0].starts_with("grants `a` 6 keys, with the limits of the box: SHA256:"), "{told:?}");
    assert!(told[0].ends_with("; 2 more"), "{told:?}");
}

#[test]
fn who_shares_limits_with_whom_is_told() {
    let roster = |groups: &str, a: &str, z: &str| {
        format!(
            "{{ users = {{ a = {{ keys = \"$A\"; {a} }}; b.keys = \"$B\"; z = {{ keys = \"$R\"; {z} }}; }}; groups = {{ {groups} }}; }}"
        )
    };
    let ci = "ci = { members = [ \"b\" ]; limits.maxJobs = 16; };";
    let of = "groups = [ \"ci\" ];";
    let share = "16 builds at a time";
    let bare = roster("", "", "");
    for (before, after, expected) in [
        (bare.clone(), roster(ci, "", of), vec![
            format!("adds the group `ci`: 2 members of it share {share}"),
            format!("adds `b` to the group `ci`: shares {share} with 1 other"),
            format!("adds `z` to the group `ci`: shares {share} with 1 other"),
        ]),
        (roster(ci, "", ""), roster(ci, of, ""), vec![
            format!("adds `a` to the group `ci`: shares {share} with 1 other"),
        ]),
        (roster(ci, of, of), roster(ci, of, ""), vec![
            format!("takes `z` out of the group `ci`: no longer shares {share}"),
        ]),
        (roster(ci, of, ""), roster(&ci.replace("16;", "16; limits.maxCpus = 8;"), of, "groups = [ \"ci\" ];"), vec![
            "limits `maxCpus` that the members of the group `ci` share to 8 (before: the limits of each member only)"
                .into(),
            format!("adds `z` to the group `ci`: shares {share} and 8 CPUs with 2 others"),
        ]),
        (bare.clone(), roster("ci = { members = [ \"b\" ]; limits = { maxCpuHoursPerMonth = 9; maxSessions = 4; }; };", "", ""), vec![
            "adds the group `ci`: 1 member of it has for all its members 9 CPU hours a month and 4 sessions at a time".into(),
            "adds `b` to the group `ci`: shares 9 CPU hours a month and 4 sessions at a time with nobody yet".into(),
        ]),
        (roster(ci, of, ""), bare.clone(), vec![
            format!("removes the group `ci`: 2 members no longer share {share}"),
        ]),
        (roster(ci, of, ""), roster(&ci.replace("16", "32"), of, ""), vec![
            "raises `maxJobs` that the members of the group `ci` share from 16 to 32".into(),
        ]),
        (roster(ci, of, ""), roster(&ci.replace("limits.maxJobs = 16;", ""), of, ""), vec![
            "removes the limit `maxJobs` that the members of the group `ci` share, which was 16: the limits of each \
             member remain".into(),
        ]),
        // The defaults that a group gives to its members are listed with each of them.
        (roster(ci, of, "limits.maxCpus = 3;"), roster(&ci.replace("limits.maxJobs", "memberLimits.maxCpus = 2; limits.maxJobs"), of, "limits.maxCpus = 3;"), vec![
            "limits `maxCpus` of `a` to 2 (before: the limit of the box only)".into(),
            "limits `maxCpus` of `b` to 2 (before: the limit of the box only)".into(),
        ]),
    ] {
        assert_eq!(sentences(&before, &after), expected, "{before} -> {after}");
    }
}

#[test]
fn which_boxes_and_which_vouchers_are_told() {
    let roster = |a: &str, groups: &str| {
        format!(
            "{{ users = {{ a = {{ keys = \"$A\"; {a} }}; z.keys = \"$R\"; }}; groups = {{ {groups} }}; hosts = [ \"box\" \"mac\" ]; }}"
        )
    };
    let (bare, both) = (roster("", ""), roster("hosts = [ \"mac\" \"box\" ];", ""));
    let one = roster("hosts = [ \"box\" ];", "");
    let none = roster("hosts = [ \"box\" ]; groups = [ \"g\" ];", "g.hosts = [ \"mac\" ];");
    let vouched = |names: &str| roster(&format!("vouchedBy = {names};"), "");
    for (before, after, expected) in [
        (bare.clone(), one.clone(), "lets `a` in on the box `box` only (before: on all boxes)"),
        (
            one.clone(),
            both.clone(),
            "lets `a` in on the boxes `box` and `mac` only (before: on the box `box` only)",
        ),
        (both, bare.clone(), "lets `a` in on all boxes (before: on the boxes `box` and `mac` only)"),
        (bare.clone(), vouched("\"z\""), "says that `z` vouched for `a` (before: nobody)"),
        (vouched("\"z\""), vouched("[ \"y\" \"x\" ]"), "says that `x` and `y` vouched for `a` (before: `z`)"),
    ] {
        assert_eq!(sentences(&before, &after), [expected], "{before} -> {after}");
    }
    assert!(
        sentences(&one, &none)[0].starts_with("lets `a` in on no box at all (their own `hosts`"),
        "{:?}",
        sentences(&one, &none)
    );
    assert_eq!(
        sentences(&vouched("\"z\""), &vouched("\"z\"").replace("z.keys = \"$R\";", "")),
        [
            "removes `z`: ends their sessions and builds",
            "`z`, who leaves, had vouched for `a`: look whether these may stay"
        ]
    );
    let new = roster("hosts = [ \"box\" ]; vouchedBy = \"z\";", "");
    assert_eq!(
        sentences("{ z.keys = \"$R\"; }", &new),
        [format!(
            "grants `a` 1 key, with the limits of the box, on the box `box` only, vouched for by `z`: {A_SHA} (ED25519)"
        )]
    );
}

#[test]
fn what_a_setting_does_is_told_where_it_changes() {
    let member = |settings: &str| format!("{{ a = {{ keys = \"$A\"; settings = {{ {settings} }}; }}; }}");
    let group = |settings: &str| {
        format!(
            "{{ users.a = {{ keys = \"$A\"; groups = [ \"ci\" ]; }}; groups.ci.settings = {{ {settings} }}; }}"
        )
    };
    let shell = "whether the member may run the commands for people; without it only stores and deployment tools are served";
    for (before, after, expected) in [
        (
            member(""),
            member("allow-shell = false;"),
            format!("sets `allow-shell` of `a` to `false` (before: not set): {shell}"),
        ),
        (
            member("timeout = 60;"),
            member("timeout = 600;"),
            "sets `timeout` of `a` to 600 seconds (before: 60 seconds): longest time of a build; the limit `maxBuildSeconds` of the \
             member counts too"
                .into(),
        ),
        (
            member("never-substitute = [ \"a*\" \"b\" ];"),
            member(""),
            "no longer sets `never-substitute` of `a`, which was `a*` `b`: an earlier level decides".into(),
        ),
        (
            "{ a.keys = \"$A\"; }".into(),
            format!("{{ a = {{ keys = \"$A\"; keySettings.\"{A_SHA}\".allow-shell = false; }}; }}"),
            format!("sets `allow-shell` of the key `{A_SHA}` of `a` to `false` (before: not set): {shell}"),
        ),
        (
            group(""),
            group("allow-shell = false;"),
            format!("sets `allow-shell` of each member of the group `ci` to `false` (before: not set): {shell}"),
        ),
    ] {
        assert_eq!(sentences(&before, &after), [expected], "{before} -> {after}");
    }
    // Who joins a group is told with the settings that come with it.
    let joined = |groups: &str| {
        format!(
            "{{ users.a = {{ keys = \"$A\"; groups = [ {groups} ]; }}; groups.ci.settings.keep-going = false; }}"
        )
    };
    let join =
        "adds `a` to the group `ci`: shares no limits with nobody yet; its settings count: `keep-going`";
    assert_eq!(sentences(&joined(""), &joined("\"ci\"")), [join]);
    let left = "takes `a` out of the group `ci`; its settings no longer count: `keep-going`";
    assert_eq!(sentences(&joined("\"ci\""), &joined("")), [left]);
}
