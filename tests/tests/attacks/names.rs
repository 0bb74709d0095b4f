//! A member who joins under the name of a member who left inherits nothing.

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::keys::Key;
use e2e::shared_box::{SharedBox, recipe};

use crate::twins::at;

/// Sets the roster: names, and the owner of each one's key. Returns when the agent uses it.
async fn roster(shared_box: &SharedBox, members: &[(&str, &str)]) {
    let members: Vec<(&str, &Key)> = members.iter().map(|(name, key)| (*name, shared_box.key(key))).collect();
    let before = shared_box.agent.count("roster loaded");
    shared_box.agent.set_roster(&members);
    until("the roster to be loaded", || shared_box.agent.count("roster loaded") > before).await;
}

#[tokio::test]
async fn who_takes_the_name_of_somebody_who_left_inherits_nothing() {
    let shared_box = SharedBox::of(&["alice", "mallory", "bob"]);
    roster(&shared_box, &[("alice", "alice"), ("bob", "bob")]).await;
    let (secret, contents) = (path("secret"), nar(&file(b"alice's")));
    shared_box.session("alice").await.upload(&at(&secret, &contents), &contents).await;
    roster(&shared_box, &[("bob", "bob")]).await;
    // Bob works all the time.
    let (bobs, mut bob) = (path("bobs"), shared_box.session("bob").await);
    bob.upload(&at(&bobs, &contents), &contents).await;

    roster(&shared_box, &[("alice", "mallory"), ("bob", "bob")]).await;
    let mut mallory = shared_box.session("mallory").await;
    assert!(!mallory.is_valid(&secret).await, "inherited");
    assert!(mallory.path_info(&secret).await.is_none());
    assert!(!mallory.all_paths().await.contains(&secret));
    // The first one's claims are dropped, and no others.
    until("the claims to be dropped", || {
        shared_box.agent.count("claims of a former member are removed") == 1
    })
    .await;
    assert!(bob.is_valid(&bobs).await);
    mallory.upload(&at(&secret, &contents), &contents).await;
    assert!(mallory.is_valid(&secret).await);
    // The first one returns under a name that belongs to somebody else now, and finds no paths of either.
    roster(&shared_box, &[("bob", "bob")]).await;
    roster(&shared_box, &[("alice", "alice"), ("bob", "bob")]).await;
    assert!(!shared_box.session("alice").await.is_valid(&secret).await, "inherited back");
    assert!(bob.is_valid(&bobs).await);
}

#[tokio::test]
async fn who_comes_back_with_a_key_they_had_finds_what_they_left() {
    let mut shared_box = SharedBox::of(&["alice", "bob"]);
    let (secret, contents) = (path("secret"), nar(&file(b"alice's")));
    shared_box.session("alice").await.upload(&at(&secret, &contents), &contents).await;
    roster(&shared_box, &[("bob", "bob")]).await;
    shared_box.agent.restart();
    roster(&shared_box, &[("alice", "alice"), ("bob", "bob")]).await;
    assert!(shared_box.session("alice").await.is_valid(&secret).await);
}

/// One change of the roster removes Alice and gives her name to Mallory. Two changes in quick succession look
/// the same.
#[tokio::test]
async fn who_is_given_a_name_in_the_change_that_takes_its_owner_out_inherits_nothing() {
    let setup = Setup::default().setting("keep-builds-running = true");
    let shared_box = SharedBox::with(&["alice", "mallory", "bob"], setup);
    roster(&shared_box, &[("alice", "alice"), ("bob", "bob")]).await;
    let (secret, contents) = (path("secret"), nar(&file(b"alice's")));
    let (mut alice, mut bob) = (shared_box.session("alice").await, shared_box.session("bob").await);
    alice.upload(&at(&secret, &contents), &contents).await;
    let bobs = path("bobs");
    bob.upload(&at(&bobs, &contents), &contents).await;
    alice.start_build(recipe(&path("hers.drv"), &[("out", &path("hers"))], &[], "sleep 900")).await;
    until("her build", || shared_box.agent.count("build started") == 1).await;

    roster(&shared_box, &[("alice", "mallory"), ("bob", "bob")]).await;
    let mut mallory = shared_box.session("mallory").await;
    assert!(!mallory.is_valid(&secret).await, "inherited");
    assert!(mallory.path_info(&secret).await.is_none());
    assert!(!mallory.all_paths().await.contains(&secret));
    // The first one's builds end with her sessions.
    until("her build to end", || shared_box.agent.count("build finished") == 1).await;
    assert!(within("her session to end", alice.client.done()).await.is_err());
    assert!(bob.is_valid(&bobs).await, "bob's session and claims are as they were");
}
