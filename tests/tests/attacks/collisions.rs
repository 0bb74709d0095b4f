//! Two contents for the same store path: a member's claim, and the Verified ones.

use std::collections::BTreeSet;

use e2e::hostile::*;
use e2e::shared_box::{SharedBox, recipe};
use nix::PathInfo;
use nix_derivation::StorePath;

use crate::twins::at;

/// The true contents of a content-addressed path, and Mallory's forged ones.
const TRUE: &[u8] = b"true\n";
const FORGED: &[u8] = b"forged\n";

/// Builds a derivation that copies `input`; returns the path of the result.
async fn copies(who: &mut Session, name: &str, input: &StorePath) -> StorePath {
    let (out, drv) = (path(name), path(&format!("{name}.drv")));
    let script = format!("read line < {}; echo $line > $out", input.to_absolute_path());
    let told = who.build(recipe(&drv, &[("out", &out)], &[input], &script)).await;
    assert_eq!(told.status, 0, "{told:?}");
    out
}

/// The path of [`TRUE`], computed by another box.
async fn true_path() -> StorePath {
    let elsewhere = SharedBox::of(&["alice"]);
    let mut alice = elsewhere.session("alice").await;
    let path = alice.add("line", &nar(&file(TRUE))).await;
    alice.leave().await;
    path
}

#[tokio::test]
async fn a_claim_gives_way_when_the_path_is_verified_and_what_stood_on_it_stays_a_claim() {
    let line = true_path().await;
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let forged = nar(&file(FORGED));
    mallory.upload(&at(&line, &forged), &forged).await;
    assert_eq!(mallory.nar(&line).await, forged);
    let hers = copies(&mut mallory, "hers", &line).await;
    assert_eq!(mallory.nar(&hers).await, forged);
    assert!(!alice.is_valid(&line).await);

    assert_eq!(alice.add("line", &nar(&file(TRUE))).await, line);
    for who in [&mut alice, &mut mallory] {
        assert_eq!(who.nar(&line).await, nar(&file(TRUE)), "what is proven counts for everyone");
    }
    // Mallory's earlier result has not changed, and nobody else sees it.
    assert_eq!(mallory.nar(&hers).await, forged);
    assert!(!alice.is_valid(&hers).await);
    // Alice builds the same recipe: her own build from the true input, at the same path.
    assert_eq!(copies(&mut alice, "hers", &line).await, hers);
    assert_eq!(alice.nar(&hers).await, nar(&file(TRUE)));
    // A result that is built from Mallory's old result stays a claim.
    let later = copies(&mut mallory, "later", &hers).await;
    assert_eq!(mallory.nar(&later).await, forged);
    assert!(!alice.is_valid(&later).await);
}

#[tokio::test]
async fn a_claim_after_the_path_was_verified_changes_nothing() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let line = alice.add("line", &nar(&file(TRUE))).await;
    let before = alice.path_info(&line).await.expect("valid");
    let forged = nar(&file(FORGED));
    for repair in [false, true] {
        let info = PathInfo { references: BTreeSet::from([line.clone()]), ..at(&line, &forged) };
        let request = wire::worker::Request::AddToStoreNar { info, repair, dont_check_sigs: true };
        mallory.request(&request).await;
        mallory.client.framed(&forged).await.expect("the box reads");
        // The upload may be accepted or refused: nobody else is affected.
        within("an answer", mallory.client.log()).await.expect("an answer");
    }
    for who in [&mut alice, &mut mallory] {
        assert_eq!(who.nar(&line).await, nar(&file(TRUE)));
        assert_eq!(who.path_info(&line).await.as_ref(), Some(&before));
    }
    let copy = copies(&mut mallory, "copy", &line).await;
    assert_eq!(mallory.nar(&copy).await, nar(&file(TRUE)), "she cannot even fool herself any more");
}

#[tokio::test]
async fn two_members_claim_one_path_with_different_contents_and_each_has_their_own() {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let (mut alice, mut bob) = (shared_box.session("alice").await, shared_box.session("bob").await);
    let both = path("both");
    let (hers, his) = (nar(&file(b"alice's\n")), nar(&file(b"bob's\n")));
    alice.upload(&at(&both, &hers), &hers).await;
    bob.upload(&at(&both, &his), &his).await;
    assert_eq!(alice.nar(&both).await, hers);
    assert_eq!(bob.nar(&both).await, his);
    // The results of their builds differ, too.
    let (from_hers, from_his) =
        (copies(&mut alice, "copy", &both).await, copies(&mut bob, "copy", &both).await);
    assert_eq!(from_hers, from_his, "the same path, which is the point");
    assert_eq!(alice.nar(&from_hers).await, hers);
    assert_eq!(bob.nar(&from_his).await, his);
    assert_eq!(shared_box.agent.count("build started"), 2, "neither got the other's result");
}
