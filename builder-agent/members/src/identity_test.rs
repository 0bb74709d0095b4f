use super::*;

struct Box {
    dir: tempfile::TempDir,
    identities: Identities,
}

impl Box {
    fn new() -> Box {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let identities = Identities::open(dir.path().join("identities.json")).expect("opened");
        Box { dir, identities }
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
    let mut house = Box::new();
    assert_eq!(
        house.roster(&[("alice", &["a"]), ("bob", &["b"])])["alice"],
        "alice",
        "as before there were identities"
    );
    house.roster(&[("bob", &["b"])]);
    house.restart();
    let second = house.roster(&[("alice", &["x"]), ("bob", &["b"])])["alice"].clone();
    assert!(second.starts_with("alice~"), "{second}");
    assert_eq!(house.identities.gone(), ["alice"]);
    house.roster(&[("bob", &["b"])]);
    // Even with the first one's keys: the data of the first identity is deleted.
    let third = house.roster(&[("alice", &["a"]), ("bob", &["b"])])["alice"].clone();
    assert!(third.starts_with("alice~") && third != second);
    house.identities.dropped("alice").expect("written");
    house.restart();
    assert_eq!(house.identities.gone(), [second]);
    assert_eq!(
        house.roster(&[("alice", &["a"]), ("bob", &["b"])]),
        BTreeMap::from([("alice".into(), third), ("bob".into(), "bob".into())])
    );
}

#[test]
fn a_name_that_stays_or_comes_back_with_a_key_it_had_is_the_same_person() {
    let mut house = Box::new();
    house.roster(&[("bob", &["b"])]);
    let alice = house.roster(&[("alice", &["a"])])["alice"].clone();
    let is_alice = |house: &Box, keys: &[&str]| house.roster(&[("alice", keys)]).get("alice") == Some(&alice);
    assert!(is_alice(&house, &["a", "c"]));
    assert!(is_alice(&house, &["c"]), "one key less");
    assert!(is_alice(&house, &["c", "d"]) && is_alice(&house, &["d"]), "all replaced, one after the other");
    assert!(is_alice(&house, &[]), "an entry with a mistake is still hers");
    assert!(is_alice(&house, &["d"]));
    house.roster(&[]);
    house.restart();
    assert!(is_alice(&house, &["e", "d"]), "back with the key she had");
    house.roster(&[]);
    // The name has no identity before its entry can be read.
    assert!(house.roster(&[("alice", &[])]).is_empty());
    assert!(is_alice(&house, &["d"]));
    assert!(house.identities.gone().is_empty());
}

#[test]
fn a_name_whose_keys_are_all_replaced_at_once_is_somebody_else() {
    let mut house = Box::new();
    house.roster(&[("alice", &["a", "b"]), ("bob", &["b2"])]);
    let second = house.roster(&[("alice", &["x"]), ("bob", &["b2"])]);
    assert!(second["alice"].starts_with("alice~") && second["bob"] == "bob", "{second:?}");
    assert_eq!(house.identities.gone(), ["alice"]);
    // Neither an unreadable entry nor a restart connects the name to another person's keys.
    house.roster(&[("alice", &[]), ("bob", &["b2"])]);
    house.restart();
    let third = house.roster(&[("alice", &["y"]), ("bob", &["b2"])]);
    assert!(third["alice"] != second["alice"] && third["bob"] == "bob", "{third:?}");
}

#[test]
fn who_has_an_authority_of_several_members_and_nothing_else_is_known_by_their_name() {
    let house = Box::new();
    let ids = |keys: &[&str]| {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        house.identities.assign(&BTreeMap::from([("alice".into(), Some(keys))]))["alice"].to_string()
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
    let mut house = Box::new();
    house.roster(&[("alice", &["a"])]);
    std::fs::write(house.dir.path().join("identities.json"), "{ half of it").expect("written");
    house.restart();
    let alice = house.roster(&[("alice", &["a"])])["alice"].clone();
    assert!(alice.starts_with("alice~"), "{alice}");
    assert!(house.dir.path().join("identities.damaged").exists());
}

#[test]
fn who_is_new_waits_until_that_is_written_and_nobody_else_does() {
    let mut house = Box::new();
    house.roster(&[("alice", &["a"]), ("bob", &["b"])]);
    house.roster(&[("bob", &["b"])]);
    let path = std::mem::replace(&mut house.identities.path, "/proc/nowhere.json".into());
    let new: &[(&str, &[&str])] = &[("alice", &["x"]), ("bob", &["b", "b2"])];
    assert_eq!(house.roster(new).keys().collect::<Vec<_>>(), ["bob"]);
    assert!(house.identities.is_unsaved());
    house.identities.path = path;
    let ids = house.roster(new);
    assert!(ids["alice"].starts_with("alice~") && ids["bob"] == "bob", "{ids:?}");
    assert!(!house.identities.is_unsaved());
}

#[test]
fn names_that_left_longest_ago_are_forgotten_and_never_inherited() {
    let house = Box::new();
    house.roster(&[("alice", &["a"])]);
    house.roster(&[("bob", &["b"])]);
    let mut state = house.identities.lock().now.clone();
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
