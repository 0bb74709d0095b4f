//! What one member's paths may take: first the member is charged less, then registrations are refused. The charge says nothing
//! about other members.

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use common::*;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};
use store::{Charged, Member, Payer, Provenance, Quota, QuotaSetBy, RegisterError, Store, StoreConfig, View};

const BIG: usize = 1 << 20;
/// Room for three objects of `BIG` bytes and their metadata.
const LIMIT: u64 = 3 * (BIG as u64 + (64 << 10));

fn limited(dir: &std::path::Path) -> Store {
    let config = StoreConfig { max_bytes_per_member: Some(LIMIT), ..StoreConfig::default() };
    Store::open(dir, config).unwrap()
}

fn claim(
    view: &View,
    name: &str,
    seed: u64,
    references: &[&StorePath],
) -> Result<StorePath, store::ImportError> {
    std::thread::sleep(Duration::from_millis(3));
    let nar = file(noise(seed, BIG)).nar();
    view.import(info(&path(name), &nar, references), &mut &nar[..]).map(|info| info.path.clone())
}

/// Content-addressed, so Verified.
fn public(view: &View, name: &str, seed: u64) -> StorePath {
    std::thread::sleep(Duration::from_millis(3));
    let (method, algorithm) = (ContentAddressMethod::Flat, HashAlgorithm::Sha256);
    view.add_ca(name, method, algorithm, &[].into(), &mut &noise(seed, BIG)[..]).unwrap().path.clone()
}

#[test]
fn what_a_member_does_not_need_makes_room_and_then_the_limit_is_named() {
    let dir = scratch();
    let store = limited(dir.path());
    let session = store.view(&alice()).holding();
    let a = store.view(&alice());
    let old = claim(&a, "old", 1, &[]).unwrap();
    let held = claim(&session, "held", 2, &[]).unwrap();
    let rooted = claim(&a, "rooted", 3, &[]).unwrap();
    a.add_root("r", &rooted).unwrap();
    // The fourth takes the place of the oldest one that nothing needs.
    let fourth = claim(&session, "fourth", 4, &[]).unwrap();
    assert_eq!(a.all_valid(), [held.clone(), rooted, fourth].into());
    let _ = old;
    let refused = claim(&a, "fifth", 5, &[]).unwrap_err();
    assert!(refused.is_callers_fault());
    let said = refused.to_string();
    for part in [
        "needs 2 MiB",
        "of the 3 MiB",
        "`limits.max-store-mib-per-member`",
        "the operator of the box",
        "Remove roots",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Refused when it is announced, before a byte of it is read.
    assert!(matches!(a.make_room(1 << 30), Err(RegisterError::Quota { set_by: QuotaSetBy::Box, .. })));
    a.make_room(0).unwrap();
    // Nothing was removed for what could not fit.
    assert!(a.is_valid(&held));
    drop(session);
    claim(&a, "fifth", 5, &[]).unwrap();
    // Other members have their own.
    claim(&store.view(&bob()), "bobs", 6, &[]).unwrap();
    // The roster's limit, if it is smaller.
    let said = a.clone().limited_to(Some(1 << 20), Vec::new()).make_room(2 << 20).unwrap_err().to_string();
    assert!(
        said.contains("your `max-store-mib` in the roster") && said.contains("a maintainer of the roster"),
        "{said}"
    );
}

#[test]
fn a_charge_is_the_same_whatever_others_have() {
    let dir = scratch();
    let store = limited(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    claim(&a, "p", 1, &[]).unwrap();
    let alone = a.charged().0;
    // The same contents, and the same path, of another member; and the same contents under another name.
    claim(&b, "p", 1, &[]).unwrap();
    assert_eq!((a.charged().0, b.charged().0), (alone, alone));
    claim(&a, "q", 1, &[]).unwrap();
    assert_eq!(a.charged().0, 2 * alone, "each path counts");
    // The first who brings a Verified path pays; who brings it again does not.
    let shown = public(&b, "public", 2);
    let paid = b.charged().0;
    assert!(paid > alone);
    assert_eq!(public(&a, "public", 2), shown);
    assert_eq!((a.charged().0, b.charged().0), (2 * alone, paid));
    // The box pays for what it fetches for nobody.
    public(&store.view(&alice()).paid_by(Payer::default()), "fetched", 3);
    assert_eq!(a.charged().0, 2 * alone);
    drop((a, b, store));
    let store = limited(dir.path());
    assert_eq!((store.view(&alice()).charged().0, store.view(&bob()).charged().0), (2 * alone, paid));
}

#[test]
fn the_store_tells_what_everybody_is_charged_for_and_forgets_what_is_gone() {
    let dir = scratch();
    let store = open(dir.path());
    let (a, b) = (store.view(&alice()), store.view(&bob()));
    assert_eq!(store.charged(), BTreeMap::new());
    let base = public(&b, "base", 1);
    claim(&a, "p", 2, &[&base]).unwrap();
    claim(&a, "q", 3, &[&base, &path("p")]).unwrap();
    let charged = store.charged();
    let counts = |member| charged.get(&member).map(|charged: &Charged| (charged.paths, charged.references));
    assert_eq!((counts(alice()), counts(bob())), (Some((2, 3)), Some((1, 0))));
    assert_eq!([&a, &b].map(|view| charged[view.member()].bytes), [&a, &b].map(|view| view.charged().0));
    drop((a, b, store));
    let store = open(dir.path());
    assert_eq!(store.charged(), charged, "the same after a restart");
    store.evict(u64::MAX, "a test").unwrap();
    assert_eq!(store.charged(), BTreeMap::new());
}

#[test]
fn verified_paths_of_a_full_member_stay_for_the_others_at_the_charge_of_the_box() {
    let dir = scratch();
    let store = limited(dir.path());
    let a = store.view(&alice());
    let (one, two) = (public(&a, "one", 1), public(&a, "two", 2));
    let used = store.view(&bob());
    assert!(used.is_valid(&one));
    public(&a, "three", 3);
    let before = a.charged().0;
    let four = public(&a, "four", 4);
    assert!(a.charged().0 <= before, "somebody else pays now");
    assert!(
        [&one, &two, &four].into_iter().all(|path| used.is_valid(path)),
        "nothing is removed for a limit"
    );
    // What a session needs is charged on.
    let session = store.view(&alice()).holding();
    for n in 5..8 {
        public(&session, "held", n);
    }
    let refused = session.add_ca(
        "more",
        ContentAddressMethod::Flat,
        HashAlgorithm::Sha256,
        &[].into(),
        &mut &noise(9, BIG)[..],
    );
    assert!(refused.unwrap_err().to_string().contains("limits.max-store-mib-per-member"));
    // What only alice has used goes first, although bob used his before.
    drop((session, used));
    let mut evicted = 0;
    while store.view(&bob()).all_valid().contains(&one) {
        evicted += store.evict(1, "a test").unwrap().paths;
        assert!(evicted < 20);
    }
    assert!(!store.view(&bob()).all_valid().contains(&two), "before `one`, which bob has used");
}

#[test]
fn the_maker_of_a_ticket_pays_for_its_holders_and_the_limit_holds_over_all() {
    let dir = scratch();
    let store = limited(dir.path());
    let holder = Member::new("ticket:1");
    let with_ticket = || store.view(&holder).charged_to(&alice()).holding();
    let (a, with) = (store.view(&alice()).holding(), with_ticket());
    claim(&a, "one", 1, &[]).unwrap();
    let two = claim(&with, "two", 2, &[]).unwrap();
    public(&with, "three", 3);
    let charged = store.charged();
    assert_eq!(
        (charged[&alice()].paths, charged[&holder].paths),
        (2, 1),
        "alice has brought what is Verified"
    );
    assert_eq!(a.charged().0, charged[&alice()].bytes + charged[&holder].bytes);
    assert!(with.charged().0 < a.charged().0, "a holder does not see what the maker has");
    // None of both has room for a fourth, and each reads whose limit it is.
    let said = claim(&a, "four", 4, &[]).unwrap_err().to_string();
    assert!(said.contains("your paths take 4 of the 3 MiB"), "{said}");
    let said = claim(&with, "four", 4, &[]).unwrap_err().to_string();
    for part in
        ["alice, who made the ticket", "of the 3 MiB", "`limits.max-store-mib-per-member`", "ask alice"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("take 4 of"), "{said}");
    claim(&store.view(&bob()), "bobs", 5, &[]).unwrap();
    // What the holder does not need any more makes room for alice.
    drop(with);
    claim(&a, "four", 4, &[]).unwrap();
    assert!(!with_ticket().all_valid().contains(&two));
    // After a start the box says who pays, before anybody is served.
    claim(&with_ticket(), "five", 6, &[]).unwrap();
    let charged = a.charged().0;
    drop((a, store));
    let store = limited(dir.path());
    store.pays_for(&alice(), &holder);
    assert_eq!(store.view(&alice()).charged().0, charged);
    let of_alice_alone = store.charged()[&alice()].bytes;
    store.forgets(&holder);
    assert_eq!(store.view(&alice()).charged().0, of_alice_alone, "nobody pays for a ticket that has ended");
}

#[test]
fn members_of_a_group_have_its_limit_together() {
    let dir = scratch();
    let store = open(dir.path());
    let members: std::sync::Arc<[Member]> = [alice(), bob()].into();
    let view = |member: &Member| {
        let quota = Quota::of_group("ci", LIMIT, members.clone());
        store.view(member).limited_to(None, vec![quota]).holding()
    };
    let (a, b) = (view(&alice()), view(&bob()));
    claim(&a, "one", 1, &[]).unwrap();
    claim(&b, "two", 2, &[]).unwrap();
    claim(&store.view(&bob()), "dead", 3, &[]).unwrap();
    let said = claim(&a, "four", 4, &[]).unwrap_err().to_string();
    for part in
        ["members of the group 'ci' take 4 of the 3 MiB", "`max-store-mib` of the group 'ci'", "a maintainer"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    // Whoever wants more is charged less.
    claim(&b, "four", 4, &[]).unwrap();
    claim(&store.view(&Member::new("carol")), "carols", 5, &[]).unwrap();
}

#[test]
fn copies_of_what_others_share_are_refused_before_a_build_and_never_in_the_middle() {
    let dir = scratch();
    let store = limited(dir.path());
    let b = store.view(&bob()).holding();
    let base = claim(&b, "base", 1, &[]).unwrap();
    let top = claim(&b, "top", 2, &[&base]).unwrap();
    let a = store.view_sharing(&alice(), &[bob()]).holding();
    let session = store.view(&alice()).holding();
    claim(&session, "held", 3, &[]).unwrap();
    claim(&session, "held-too", 4, &[]).unwrap();
    let before = a.charged();
    let refused = a.snapshot_to_build([&top]).map(|_| ()).unwrap_err();
    assert!(matches!(refused, RegisterError::Quota { .. }), "{refused}");
    assert!(matches!(a.add_root("r", &top), Err(RegisterError::Quota { .. })));
    assert_eq!(a.charged(), before, "nothing was copied");
    // With dead paths of hers there is room, and the output fits beside the inputs, or is refused for itself.
    drop(session);
    let inputs = a.snapshot_to_build([&top]).unwrap();
    assert_eq!(store.charged()[&alice()].paths, 2, "the dead ones had to go");
    let nar = file(noise(9, BIG / 2)).nar();
    let mut ingest = a.ingest(&[]).unwrap();
    ingest.write_all(&nar).unwrap();
    let out = info(&path("out"), &nar, &[&top, &base]);
    a.register(ingest.finish().unwrap(), out, Provenance::Claimed(alice())).unwrap();
    drop(inputs);
    // An upload that refers to what others share has to have room for the copies, too.
    let carol = Member::new("carol");
    let sharing = store.view_sharing(&carol, &[bob()]).holding();
    claim(&store.view(&carol), "dead", 5, &[]).unwrap();
    claim(&store.view(&carol), "dead-too", 6, &[]).unwrap();
    claim(&sharing, "on-his", 7, &[&top]).unwrap();
    assert_eq!(store.charged()[&carol].paths, 3);
}

#[test]
fn outputs_and_reused_results_count_too() {
    let dir = scratch();
    let store = limited(dir.path());
    let a = store.view(&alice()).holding();
    let put = |view: &View, name: &str, seed: u64| {
        let nar = file(noise(seed, BIG)).nar();
        let mut ingest = view.ingest(&[]).unwrap();
        ingest.write_all(&nar).unwrap();
        view.register(
            ingest.finish().unwrap(),
            info(&path(name), &nar, &[]),
            Provenance::Claimed(view.member().clone()),
        )
    };
    for n in 0..3 {
        put(&a, &format!("out{n}"), n).unwrap();
    }
    assert!(matches!(put(&a, "out3", 3), Err(RegisterError::Quota { .. })));
    let b = store.view(&bob());
    let made = put(&b, "shared", 7).unwrap();
    let adopted = a.adopt(vec![(nix::PathInfo::clone(&made), Provenance::Claimed(alice()))], None);
    assert!(matches!(adopted, Err(RegisterError::Quota { .. })), "{adopted:?}");
    // What is valid already costs nothing.
    put(&a, "out1", 1).unwrap();
}
