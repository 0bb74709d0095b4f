use std::time::Duration;

use super::*;

const ED1: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ alice@laptop";
const ED2: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA6rWI3G1sz07DnfFlrouTcysQlj2P+jpNSOEWD9OJ3X bob";

fn read(json: &str, today: &str) -> Result<Roster, FileError> {
    parse(json.as_bytes(), Day::parse(today).expect("a date"), by_name)
}

fn data(line: &str) -> KeyData {
    ::roster::keys::parse_line(line).expect("a key").data
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
    let [holder] = roster.holders(&data(&ED1.replace("alice@laptop", "other"))) else { panic!("one holder") };
    assert_eq!((&*holder.member.name, holder.member.limits.max_jobs), ("alice", Some(3)));
    assert!(roster.holders(&data(ED2)).is_empty());
}

/// The access manager's half of this rule is in the crate `roster`, whose `Day` both use.
#[test]
fn the_day_of_expiry_is_the_last_day_in() {
    let text = roster(&alice(r#","expires":"2027-02-28""#));
    assert_eq!(read(&text, "2027-02-28").expect("good").len(), 1);
    assert_eq!(read(&text, "2027-03-01").expect("good").len(), 0);
}

#[test]
fn a_newer_schema_is_refused_as_such() {
    let error = read(r#"{"schema":3,"people":{}}"#, "2026-01-01").expect_err("refused");
    assert!(matches!(error, FileError::Schema(3)), "{error}");
}

#[test]
fn a_mistake_in_one_entry_leaves_that_member_out_and_nobody_else() {
    let bob = format!(r#"{{"name":"bob","keys":["{ED2}"]}}"#);
    let broken = alice("").replace("AAAA", "!!!!");
    let text = roster(&format!("{broken},{bob}"));
    let text = format!(r#"{},"errors":[{{"name":"carol","error":"no keys"}}]}}"#, &text[..text.len() - 1]);
    let roster = read(&text, "2026-01-01").expect("good");
    assert!(roster.contains("bob") && !roster.contains("alice"));
    assert_eq!(roster.left_out.len(), 2, "{:?}", roster.left_out);
}

#[test]
fn one_key_may_have_two_members_and_an_authority_is_no_key() {
    let bob = alice("").replace("alice\"", "bob\"");
    let ca = format!(r#"{{"name":"carol","keys":["cert-authority {ED2}"]}}"#);
    let roster = read(&roster(&format!("{},{bob},{ca}", alice(""))), "2026-01-01").expect("good");
    let names: Vec<&str> = roster.holders(&data(ED1)).iter().map(|holder| &*holder.member.name).collect();
    assert_eq!(names, ["alice", "bob"]);
    assert!(roster.holders(&data(ED2)).is_empty() && roster.has_authority("carol"));
    assert_eq!(roster.holders_of_authority(&data(ED2)).len(), 1);
}

#[test]
fn an_authority_of_several_members_says_of_none_of_them_who_they_are() {
    let entry =
        |name: &str, keys: &[String]| format!(r#"{{"name":"{name}","keys":{}}}"#, serde_json::json!(keys));
    let (key, ca) = (ED1.to_owned(), format!("cert-authority {ED2}"));
    let keys_of_alice = |bobs: &[String]| {
        let text = roster(&format!("{},{}", entry("alice", &[key.clone(), ca.clone()]), entry("bob", bobs)));
        listed(&::roster::read(text.as_bytes()).expect("good"))["alice"].clone().expect("keys").len()
    };
    assert_eq!(keys_of_alice(std::slice::from_ref(&key)), 2);
    assert_eq!(keys_of_alice(std::slice::from_ref(&ca)), 1);
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
    // An expired member is not in the roster, and shares nothing.
    assert_eq!(shares(r#","share-with":["bob"],"expires":"2027-01-01""#), none());
}

#[test]
fn all_members_of_a_group_hold_the_same_one() {
    let bob = format!(r#"{{"name":"bob","keys":["{ED2}"],"groups":["ci"]}}"#);
    let text = format!(
        r#"{{"schema":2,"source":"test","members":[{},{bob}],"groups":[{{"name":"ci","limits":{{"max-jobs":16}}}},{{"name":"none"}}]}}"#,
        alice(r#","groups":["ci"]"#)
    );
    let roster = read(&text, "2027-01-02").expect("good");
    let [alice] = &roster.by_name["alice"].groups[..] else { panic!("one group") };
    let [bob] = &roster.by_name["bob"].groups[..] else { panic!("one group") };
    assert!(Arc::ptr_eq(alice, bob) && alice.limits.max_jobs == Some(16));
    assert_eq!(roster.groups().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["ci"]);
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
    let identities = Arc::new(Identities::open(dir.path().join("identities.json")).expect("opened"));
    let mut following = follow(path.clone(), identities);
    assert!(following.borrow_and_update().contains("alice"));
    put("{ this is not json");
    // The bad file must not be published: the next change is the good file after it.
    tokio::time::sleep(followed::POLL * 2).await;
    assert!(!following.has_changed().expect("alive"));
    assert!(following.borrow().contains("alice"));
    put(&roster(&alice("").replace("alice\"", "carol\"")));
    tokio::time::timeout(Duration::from_secs(20), following.changed())
        .await
        .expect("in time")
        .expect("alive");
    assert!(following.borrow().contains("carol") && !following.borrow().contains("alice"));
}
