use super::*;

const ED1: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ alice@laptop";
const ED2: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X bob";

fn read(json: &str, today: &str) -> Result<Roster, RosterError> {
    parse(json.as_bytes(), Path::new("/r.json"), days_since_1970(today).expect("a date"))
}

fn roster(members: &str) -> String {
    format!(r#"{{"schema":1,"commit":null,"source":"test","members":[{members}]}}"#)
}

fn alice(extra: &str) -> String {
    format!(r#"{{"name":"alice","keys":["{ED1}"],"role":"member"{extra}}}"#)
}

#[test]
fn a_key_leads_to_its_member_and_the_comment_does_not_matter() {
    let roster =
        read(&roster(&alice(r#","limits":{"max-jobs":3,"max-store-mib":9},"expires":null"#)), "2026-01-01")
            .expect("good");
    let key = PublicKey::from_openssh(&ED1.replace("alice@laptop", "other")).expect("key");
    let member = roster.by_key(&key).expect("known");
    assert_eq!((&*member.name, member.limits.max_jobs), ("alice", Some(3)));
    assert!(roster.by_key(&PublicKey::from_openssh(ED2).expect("key")).is_none());
}

#[test]
fn the_day_of_expiry_is_the_last_day_in() {
    let text = roster(&alice(r#","expires":"2027-02-28""#));
    assert_eq!(read(&text, "2027-02-28").expect("good").len(), 1);
    assert_eq!(read(&text, "2027-03-01").expect("good").len(), 0);
}

#[test]
fn dates_count_as_the_calendar_does() {
    for (date, days) in [
        ("1970-01-01", 0),
        ("1969-12-31", -1),
        ("2000-03-01", 11_017),
        ("2024-02-29", 19_782),
        ("2027-01-01", 20_819),
    ] {
        assert_eq!(days_since_1970(date), Some(days), "{date}");
    }
    for not in ["2027-02-29", "2027-13-01", "2027-00-01", "2027-1-1", "tomorrow", "2027-01-01T00:00", ""] {
        assert_eq!(days_since_1970(not), None, "{not}");
    }
}

#[test]
fn a_newer_schema_is_refused_as_such() {
    let error = read(r#"{"schema":2,"people":{}}"#, "2026-01-01").expect_err("refused");
    assert!(matches!(error, RosterError::Schema { found: 2 }), "{error}");
}

#[test]
fn one_key_for_two_members_is_refused() {
    let bob = alice("").replace("alice\"", "bob\"");
    let error =
        read(&roster(&format!("{},{bob}", alice(""))), "2026-01-01").expect_err("refused").to_string();
    assert!(error.ends_with("to both alice and bob"), "{error}");
}

#[test]
fn what_is_no_key_or_no_date_or_said_twice_is_refused_by_name() {
    for (members, part) in [
        (alice("").replace("AAAA", "!!!!"), "member alice has a key that is not"),
        (alice(r#","expires":"soon""#), r#"member alice expires on "soon""#),
        (format!("{},{}", alice(""), alice("")), "names the member alice twice"),
        (alice("").replace("\"member\"", "\"king\""), "unknown variant `king`"),
    ] {
        let error = read(&roster(&members), "2026-01-01").expect_err("refused").to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn members_share_only_if_both_say_so() {
    let bob = format!(r#"{{"name":"bob","keys":["{ED2}"],"role":"member","share-with":["alice","carol"]}}"#);
    let shares = |alices: &str| {
        let text = roster(&format!("{},{bob}", alice(alices)));
        let roster = read(&text, "2027-01-02").expect("good");
        let names = |who| roster.sharing_with(who).iter().map(|n| n.to_string()).collect::<Vec<_>>();
        (names("alice"), names("bob"))
    };
    let none = || (vec![], vec![]);
    assert_eq!(shares(""), none());
    assert_eq!(shares(r#","share-with":["carol"]"#), none());
    assert_eq!(shares(r#","share-with":["bob"]"#), (vec!["bob".to_owned()], vec!["alice".to_owned()]));
    // Who has expired is not there, and shares nothing.
    assert_eq!(shares(r#","share-with":["bob"],"expires":"2027-01-01""#), none());
    let many = (0..101).map(|i| format!("\"m{i}\"")).collect::<Vec<_>>().join(",");
    let error =
        read(&roster(&alice(&format!(r#","share-with":[{many}]"#))), "2026-01-01").expect_err("refused");
    assert!(error.to_string().contains("names in one share-with: 101, at most 100"), "{error}");
}

#[tokio::test]
async fn a_bad_file_keeps_the_roster_before_it_and_a_good_one_replaces_it() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
    let path = dir.path().join("roster.json");
    let put = |text: &str| {
        let temp = dir.path().join("new");
        std::fs::write(&temp, text).expect("write");
        std::fs::rename(&temp, &path).expect("rename");
    };
    put(&roster(&alice("")));
    let mut following = follow(path.clone());
    assert!(following.borrow_and_update().contains("alice"));
    put("{ this is not json");
    // Nothing must be published for the bad file: the next change we see is the good one after it.
    tokio::time::sleep(POLL * 2).await;
    assert!(!following.has_changed().expect("alive"));
    assert!(following.borrow().contains("alice"));
    put(&roster(&alice("").replace("alice\"", "carol\"")));
    tokio::time::timeout(Duration::from_secs(20), following.changed())
        .await
        .expect("in time")
        .expect("alive");
    assert!(following.borrow().contains("carol") && !following.borrow().contains("alice"));
}
