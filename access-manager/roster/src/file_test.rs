use super::*;

const A: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJV7rRib2e36t2hunyspCZColVrqjTOaCfF4Y/e4cJJl alice@laptop";

fn file(members: &str) -> String {
    format!(r#"{{"schema":1,"commit":null,"source":"test","members":[{members}]}}"#)
}

fn entry(name: &str, more: &str) -> String {
    format!(r#"{{"name":"{name}","keys":["{A}"],"role":"member"{more}}}"#)
}

fn names(read: &Read) -> Vec<&str> {
    read.members.iter().map(|(member, _)| member.name.as_str()).collect()
}

#[test]
fn a_mistake_in_one_entry_leaves_that_member_out_and_nobody_else() {
    let (bob, carol) = (entry("bob", ""), entry("carol", r#","expires":"2027-01-31""#));
    for (broken, who, why) in [
        (entry("alice", "").replace("AAAA", "!!!!"), "alice", "this key is damaged"),
        (entry("alice", "").replace("ssh-ed", "command=\\\"x\\\" ssh-ed"), "alice", "the option `command`"),
        (entry("alice", r#","expires":"soon""#), "alice", "`soon` is not a day"),
        (entry("alice", r#","expires":"2027-02-29""#), "alice", "`2027-02-29` is not a day"),
        (entry("alice", "").replace("\"member\"", "\"king\""), "alice", "unknown variant `king`"),
        (entry("alice", r#","limits":{"max-jobs":0}"#), "alice", "`max-jobs` is 0"),
        (entry("alice", r#","limits":{"max-cake":1}"#), "alice", "unknown field `max-cake`"),
        (entry("alice", r#","key-settings":{"SHA256:x":{}}"#), "alice", "which is none of the keys"),
        (entry("alice", r#","settings":{"keep-goin":true}"#), "alice", "did you mean `keep-going`"),
        (entry("alice", r#","settings":{"timeout":true}"#), "alice", "the setting `timeout` must be"),
        (entry("alice", r#","no-builds-on":"sunday""#), "alice", "unknown field `no-builds-on`"),
        (entry("alice~2", ""), "entry 2", "where a name was expected"),
        (entry("", ""), "entry 2", "an empty name"),
        ("42".into(), "entry 2", "invalid type"),
        (r#"{"name":"alice","keys":[]}"#.into(), "alice", "no keys"),
        (format!("{},{}", entry("alice", ""), entry("alice", "")), "alice", "two members named `alice`"),
        (format!("{},{}", entry("alice", ""), entry("Alice", "")), "alice", "two members named `alice`"),
    ] {
        let read = read(file(&format!("{bob},{broken},{carol}")).as_bytes()).expect(&broken);
        assert_eq!(names(&read), ["bob", "carol"], "{broken}");
        assert!(read.errors[0].name == who && read.errors[0].error.contains(why), "{:?}", read.errors);
    }
}

#[test]
fn what_makes_the_file_ambiguous_is_refused_whole() {
    for (text, why) in [
        ("{ this is not json".to_owned(), "not what `access-manager sync` writes"),
        (r#"{"schema":3,"people":{}}"#.to_owned(), "schema 3"),
        (file("").replace("\"source\"", "\"only-on\""), "unknown field `only-on`"),
        (file(&vec!["1"; MAX_MEMBERS + 1].join(",")), "10001 members"),
    ] {
        let error = read(text.as_bytes()).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_is_written_is_read_as_it_was() {
    let mut member: Member = serde_json::from_str(&entry("alice", "")).expect("a member");
    member.limits.max_cpus = Some(3);
    member.expires = Day::parse("2028-02-29");
    member.share_with = vec!["bob".into()];
    let fingerprint = keys::parse_line(A).expect("a key").fingerprint();
    member.key_settings =
        [(fingerprint, serde_json::from_str(r#"{"allow-shell":false}"#).expect("settings"))].into();
    member.settings = serde_json::from_str(r#"{"timeout":600}"#).expect("settings");
    let errors = vec![LeftOut::new("bob", "a line\nand\u{1b}[2J another")];
    member.groups = vec!["ci".into()];
    let ci = Group {
        name: "ci".into(),
        limits: MemberLimits { max_jobs: Some(16), ..Default::default() },
        settings: member.settings.clone(),
    };
    let roster = Roster::new((Some("c".into()), "s".into()), vec![member], vec![ci], errors);
    assert!(!roster.errors[0].error.contains(['\n', '\u{1b}']));
    let again: Roster = read(roster.to_json().as_bytes()).expect("our own").into();
    assert_eq!(again, roster);
}

fn with_groups(members: &str, groups: &str) -> String {
    format!(r#"{{"schema":2,"source":"test","members":[{members}],"groups":[{groups}]}}"#)
}

#[test]
fn a_group_that_cannot_be_read_leaves_out_its_members_and_nobody_else() {
    let members =
        format!("{},{}", entry("alice", r#","groups":["ci"]"#), entry("bob", r#","groups":["dev"]"#));
    let dev = r#"{"name":"dev","limits":{"max-jobs":2}}"#;
    for (broken, why) in [
        (r#"{"name":"ci","limits":{"max-jobs":0}}"#, "the group `ci` has a mistake: `max-jobs` is 0"),
        (r#"{"name":"ci","limits":{"max-cake":1}}"#, "unknown field `max-cake`"),
        (r#"{"name":"ci","limits":{"max-build-seconds":1}}"#, "`max-build-seconds` cannot be shared"),
        (r#"{"name":"ci","settings":{"keep-going":3}}"#, "the setting `keep-going` must be"),
        (r#"{"name":"ci","weight":3}"#, "unknown field `weight`"),
        (r#"{"name":"ci"},{"name":"ci"}"#, "two groups of this name"),
        (r#"{"limits":{}}"#, "there is no group `ci`"),
        ("42", "there is no group `ci`"),
    ] {
        let read = read(with_groups(&members, &format!("{dev},{broken}")).as_bytes()).expect(broken);
        assert_eq!(names(&read), ["bob"], "{broken}");
        assert!(read.errors[0].name == "alice" && read.errors[0].error.contains(why), "{:?}", read.errors);
        assert_eq!(read.groups.len(), 1);
    }
    let many = vec![dev; MAX_GROUPS + 1].join(",");
    assert!(matches!(read(with_groups("", &many).as_bytes()), Err(FileError::TooManyGroups(1001))));
}

#[test]
fn a_roster_with_groups_has_a_schema_that_older_agents_refuse() {
    let schema = |groups| Roster::new((None, String::new()), vec![], groups, vec![]).schema;
    let ci = Group { name: "ci".into(), limits: MemberLimits::default(), settings: Layer::default() };
    assert_eq!((schema(vec![]), schema(vec![ci])), (SCHEMA, SCHEMA_WITH_GROUPS));
}

proptest::proptest! {
    #[test]
    fn any_entry_gets_an_answer_and_never_costs_the_others(entry in "[\\[\\]{}:,\"a-z0-9~ -]{0,60}") {
        if serde_json::from_str::<serde_json::Value>(&entry).is_ok() {
            let bob = super::file_test::entry("bob", "");
            let read = read(file(&format!("{entry},{bob}")).as_bytes()).expect("a file");
            proptest::prop_assert_eq!(names(&read), ["bob"]);
        }
    }
}
