use super::*;

struct TestBox {
    dir: tempfile::TempDir,
    identities: Identities,
}

impl TestBox {
    fn new() -> TestBox {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let identities = Identities::open(dir.path().join("identities.json")).expect("opened");
        TestBox { dir, identities }
    }

    fn restart(&mut self) {
        self.identities = Identities::open(self.dir.path().join("identities.json")).expect("opened");
    }

    /// The identities after a roster with these names and keys; an empty list stands for keys that could not be
    /// understood.
    fn roster(&self, members: &[(&str, &[&str])]) -> BTreeMap<String, String> {
        let listed = members
            .iter()
            .map(|(name, keys)| {
                let keys: BTreeSet<String> = keys.iter().map(|key| (*key).to_owned()).collect();
                ((*name).into(), (!keys.is_empty()).then_some(keys))
            })
            .collect();
        let ids = self.identities.assign(&listed);
        ids.into_iter().map(|(name, id)| (name.to_string(), id.to_string())).collect()
    }
}

#[test]
fn a_name_that_comes_back_with_other_keys_is_somebody_else() {
    let mut test_box = TestBox::new();
    assert_eq!(
        test_box.roster(&[("alice", &["a"]), ("bob", &["b"])])["alice"],
        "alice",
        "as before there were identities"
    );
    test_box.roster(&[("bob", &["b"])]);
    test_box.restart();
    let second = test_box.roster(&[("alice", &["x"]), ("bob", &["b"])])["alice"].clone();
    assert!(second.starts_with("alice~"), "{second}");
    assert_eq!(test_box.identities.gone(), ["alice"]);
    test_box.roster(&[("bob", &["b"])]);
    // Even with the first one's keys: the data of the first identity is deleted.
    let third = test_box.roster(&[("alice", &["a"]), ("bob", &["b"])])["alice"].clone();
    assert!(third.starts_with("alice~") && third != second);
    test_box.identities.dropped("alice").expect("written");
    test_box.restart();
    assert_eq!(test_box.identities.gone(), [second]);
    assert_eq!(
        test_box.roster(&[("alice", &["a"]), ("bob", &["b"])]),
        BTreeMap::from([("alice".into(), third), ("bob".into(), "bob".into())])
    );
}

#[test]
fn a_name_that_stays_or_comes_back_with_a_key_it_had_is_the_same_person() {
    let mut test_box = TestBox::new();
    test_box.roster(&[("bob", &["b"])]);
    let alice = test_box.roster(&[("alice", &["a"])])["alice"].clone();
    let is_alice =
        |test_box: &TestBox, keys: &[&str]| test_box.roster(&[("alice", keys)]).get("alice") == Some(&alice);
    assert!(is_alice(&test_box, &["a", "c"]));
    assert!(is_alice(&test_box, &["c"]), "one key less");
    assert!(
        is_alice(&test_box, &["c", "d"]) && is_alice(&test_box, &["d"]),
        "all replaced, one after the other"
    );
    assert!(is_alice(&test_box, &[]), "an entry with a mistake is still hers");
    assert!(is_alice(&test_box, &["d"]));
    test_box.roster(&[]);
    test_box.restart();
    assert!(is_alice(&test_box, &["e", "d"]), "back with the key she had");
    test_box.roster(&[]);
    // The name has no identity before its entry can be read.
    assert!(test_box.roster(&[("alice", &[])]).is_empty());
    assert!(is_alice(&test_box, &["d"]));
    assert!(test_box.identities.gone().is_empty());
}

#[test]
fn a_name_whose_keys_are_all_replaced_at_once_is_somebody_else() {
    let mut test_box = TestBox::new();
    test_box.roster(&[("alice", &["a", "b"]), ("bob", &["b2"])]);
    let second = test_box.roster(&[("alice", &["x"]), ("bob", &["b2"])]);
    assert!(second["alice"].starts_with("alice~") && second["bob"] == "bob", "{second:?}");
    assert_eq!(test_box.identities.gone(), ["alice"]);
    // Neither an unreadable entry nor a restart connects the name to another person's keys.
    test_box.roster(&[("alice", &[]), ("bob", &["b2"])]);
    test_box.restart();
    let third = test_box.roster(&[("alice", &["y"]), ("bob", &["b2"])]);
    assert!(third["alice"] != second["alice"] && third["bob"] == "bob", "{third:?}");
}

#[test]
fn who_has_an_authority_of_several_members_and_nothing_else_is_known_by_their_name() {
    let test_box = TestBox::new();
    let ids = |keys: &[&str]| {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        test_box.identities.assign(&BTreeMap::from([("alice".into(), Some(keys))]))["alice"].to_string()
    };
    let alice = ids(&["ca"]);
    // Another member gets the same authority; alice's identity stays.
    assert_eq!((ids(&[]), ids(&[]), ids(&["ca"])), (alice.clone(), alice.clone(), alice.clone()));
    // But the shared authority does not connect the name to another person's keys.
    assert_eq!(ids(&[]), alice);
    assert_ne!(ids(&["x"]), alice);
}

#[test]
fn without_a_readable_file_nobody_inherits_anything() {
    let mut test_box = TestBox::new();
    test_box.roster(&[("alice", &["a"])]);
    std::fs::write(test_box.dir.path().join("identities.json"), "{ half of it").expect("written");
    test_box.restart();
    let alice = test_box.roster(&[("alice", &["a"])])["alice"].clone();
    assert!(alice.starts_with("alice~"), "{alice}");
    assert!(test_box.dir.path().join("identities.damaged").exists());
}

#[test]
fn who_is_new_waits_until_that_is_written_and_nobody_else_does() {
    let mut test_box = TestBox::new();
    test_box.roster(&[("alice", &["a"]), ("bob", &["b"])]);
    test_box.roster(&[("bob", &["b"])]);
    let path = std::mem::replace(&mut test_box.identities.path, "/proc/nowhere.json".into());
    let new: &[(&str, &[&str])] = &[("alice", &["x"]), ("bob", &["b", "b2"])];
    assert_eq!(test_box.roster(new).keys().collect::<Vec<_>>(), ["bob"]);
    assert!(test_box.identities.is_unsaved());
    test_box.identities.path = path;
    let ids = test_box.roster(new);
    assert!(ids["alice"].starts_with("alice~") && ids["bob"] == "bob", "{ids:?}");
    assert!(!test_box.identities.is_unsaved());
}

#[test]
fn names_that_left_longest_ago_are_forgotten_and_never_inherited() {
    let test_box = TestBox::new();
    test_box.roster(&[("alice", &["a"])]);
    test_box.roster(&[("bob", &["b"])]);
    let mut state = test_box.identities.lock().now.clone();
    for number in 0..MAX_PEOPLE {
        let person = Person { id: format!("m{number}"), keys: BTreeSet::new(), away_since: None };
        state.people.insert(format!("m{number}"), person);
    }
    state.forget_the_longest_gone();
    assert_eq!(
        (state.people.len(), state.people.contains_key("alice")),
        (MAX_PEOPLE + 1, false),
        "bob is there"
    );
    assert!(state.gone.contains("alice"));
    let listed = BTreeMap::from([("alice".into(), Some(BTreeSet::from(["a".to_owned()])))]);
    assert_ne!(&*state.assign(&listed)["alice"], "alice");
}
