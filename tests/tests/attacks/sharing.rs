//! Sharing must be mutual: a member who shares with another does not get access to the other's paths.

use std::collections::BTreeMap;

use e2e::hostile::*;
use e2e::shared_box::{SharedBox, recipe};
use nix::{PathInfo, Realisation};
use wire::worker::Request;

use crate::existence::{self, annotated_by, set};
use crate::existence_serve;
use crate::twins::{Secret, at, aterm};

#[tokio::test]
async fn who_does_not_share_back_sees_nothing() {
    let shared_box = SharedBox::of(&["alice", "mallory", "bob"]);
    let mut alice = shared_box.session("alice").await;
    let secret = path("secret");
    let contents = nar(&file(b"alice's"));
    alice.upload(&at(&secret, &contents), &contents).await;
    // Mallory names Alice, who names Bob, who names Mallory: no two of them name each other.
    shared_box.share(&[("alice", &["bob"]), ("bob", &["mallory"]), ("mallory", &["alice"])]).await;
    for who in ["mallory", "bob"] {
        assert!(!shared_box.session(who).await.is_valid(&secret).await, "{who} sees what is alice's");
    }
    // Now Alice and Bob name each other; paths that Bob sees this way are not shown to Mallory.
    shared_box
        .share(&[("alice", &["bob"]), ("bob", &["alice", "mallory"]), ("mallory", &["alice", "bob"])])
        .await;
    let mut bob = shared_box.session("bob").await;
    assert_eq!(bob.nar(&secret).await, contents);
    assert!(!shared_box.session("mallory").await.is_valid(&secret).await, "sharing went one step too far");
    // When a share ends its paths disappear, in open sessions too.
    shared_box.share(&[("alice", &[]), ("bob", &["alice"]), ("mallory", &[])]).await;
    assert!(!bob.is_valid(&secret).await);
    assert!(alice.is_valid(&secret).await);
}

/// Alice and Bob share, and so do Bob and Carol; Alice and Carol do not share.
async fn a_chain() -> SharedBox {
    let shared_box = SharedBox::of(&["alice", "bob", "carol"]);
    shared_box.share(&[("alice", &["bob"]), ("bob", &["alice", "carol"]), ("carol", &["bob"])]).await;
    shared_box
}

/// Alice has the path, and Bob builds upon it in every possible way.
async fn built_upon(alice: &mut Session, bob: &mut Session, secret: &Secret) {
    annotated_by(alice, secret).await;
    let contents = Secret::contents();
    for path in [&secret.plain, &secret.output] {
        alice.upload(&at(path, &contents), &contents).await;
    }
    let drv = nar(&file(&aterm(&secret.output, &[], &[], "echo built for alice > $out")));
    alice.upload(&at(&secret.drv, &drv), &drv).await;
    let references = set([&secret.plain, &secret.drv, &secret.output].map(Clone::clone));
    let user = PathInfo { references, deriver: Some(secret.drv.clone()), ..at(&secret.user, &contents) };
    bob.upload(&user, &contents).await;
    let gc_root = "/nix/var/nix/gcroots/bobs".to_owned();
    bob.call(&Request::AddPermRoot { path: secret.plain.clone(), gc_root: gc_root.clone() }).await;
    assert_eq!(bob.client.string().await.expect("a link"), gc_root);
    let realisation = Realisation {
        id: secret.realised.clone(),
        out_path: secret.plain.clone(),
        signatures: Vec::new(),
        dependent_realisations: BTreeMap::new(),
    };
    bob.call(&Request::RegisterDrvOutput { realisation }).await;
}

/// Number of cases per operation: the first ones contain all that matters; builds have many more with other
/// modes.
const MOST: usize = 10;

#[tokio::test]
async fn no_operation_of_the_worker_protocol_goes_two_steps_of_sharing() {
    let shared_box = a_chain().await;
    let (mut alice, mut bob) = (shared_box.session("alice").await, shared_box.session("bob").await);
    let mut prover = shared_box.session("alice").await;
    let own = async |secret: &Secret| built_upon(&mut alice, &mut bob, secret).await;
    let pairs = existence::nothing_is_told(&mut prover, &shared_box.line("carol"), MOST, own).await;
    println!("{pairs} pairs of answers are the same");
}

#[tokio::test]
async fn no_command_of_the_serve_protocol_goes_two_steps_of_sharing() {
    let shared_box = a_chain().await;
    let (mut alice, mut bob) = (shared_box.session("alice").await, shared_box.session("bob").await);
    let mut prover = shared_box.session("alice").await;
    let own = async |secret: &Secret| built_upon(&mut alice, &mut bob, secret).await;
    let pairs = existence_serve::nothing_is_told(&mut prover, &shared_box.line("carol"), false, own).await;
    println!("{pairs} pairs of answers are the same");
}

#[tokio::test]
async fn a_build_upon_anothers_claim_is_shown_to_those_with_whom_its_owner_shares() {
    let shared_box = a_chain().await;
    let [mut alice, mut bob, mut carol] = [
        shared_box.session("alice").await,
        shared_box.session("bob").await,
        shared_box.session("carol").await,
    ];
    let (secret, upon, own) = (path("secret"), path("upon"), path("own"));
    let contents = nar(&file(b"alice's\n"));
    alice.upload(&at(&secret, &contents), &contents).await;
    let script = format!("echo {} > $out", secret.to_absolute_path());
    let build = recipe(&path("upon.drv"), &[("out", &upon)], &[&secret], &script);
    assert_eq!(bob.build(build.clone()).await.status, 0);
    assert_eq!(bob.path_info(&upon).await.expect("valid").references, set([secret.clone()]));
    // Bob may share a path that is his alone.
    let his = recipe(&path("own.drv"), &[("out", &own)], &[], "echo bob > $out");
    assert_eq!(bob.build(his).await.status, 0);
    assert!(carol.is_valid(&own).await);
    for path in [&secret, &upon] {
        assert!(!carol.is_valid(path).await, "carol sees {path}");
    }
    // She cannot build with it; with a copy of her own she gets the result, and that is hers then.
    assert_ne!(carol.build(build.clone()).await.status, 0);
    let before = shared_box.agent.count("build started");
    carol.upload(&at(&secret, &contents), &contents).await;
    assert!(!carol.is_valid(&upon).await, "what bob built upon alice's is still of alice's");
    assert!(carol.build(build).await.status < 3, "a build that worked");
    assert_eq!(shared_box.agent.count("build started"), before, "the same build ran already");
    assert!(carol.is_valid(&upon).await);
    shared_box.share(&[("alice", &["bob"]), ("bob", &["alice"]), ("carol", &[])]).await;
    assert!(carol.is_valid(&upon).await && !carol.is_valid(&own).await);
}

#[tokio::test]
async fn who_shares_with_all_of_them_sees_what_they_built_together() {
    let shared_box = SharedBox::of(&["alice", "bob", "carol"]);
    let all: &[(&str, &[&str])] =
        &[("alice", &["bob", "carol"]), ("bob", &["alice", "carol"]), ("carol", &["alice", "bob"])];
    shared_box.share(all).await;
    let [mut alice, mut bob, mut carol] = [
        shared_box.session("alice").await,
        shared_box.session("bob").await,
        shared_box.session("carol").await,
    ];
    let secret = Secret::new("together");
    existence::prove(&mut alice, &secret).await;
    built_upon(&mut alice, &mut bob, &secret).await;
    for path in [&secret.plain, &secret.user, &secret.drv, &secret.output] {
        assert!(carol.is_valid(path).await, "{path}");
    }
    // Alice stops sharing with Carol, who then sees no path that depends on Alice's, in an open session.
    shared_box
        .share(&[("alice", &["bob"]), ("bob", &["alice", "carol"]), ("carol", &["alice", "bob"])])
        .await;
    for path in [&secret.plain, &secret.user, &secret.drv, &secret.output] {
        assert!(!carol.is_valid(path).await, "{path}");
    }
    assert!(bob.is_valid(&secret.user).await);
    // A member's annotations of a Verified path are not shared at all.
    let told = bob.path_info(&secret.proven).await.expect("valid");
    assert_eq!((told.deriver, told.signatures), (None, Vec::new()));
}
