//! A builder can see its number of processors and its memory. Here Mallory chooses the smallest of both that
//! the box allows, by client settings and by limits in the roster, and the others check what they get.

use std::collections::BTreeSet;

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::shared_box::{SharedBox, WORKER, recipe};
use nix::derivation::BasicDerivation;
use nix_derivation::store_path::{build_output_path, build_text_path};
use nix_derivation::{DerivationModuloHash, HashAlgorithm, NixHash, StorePath, hash_bytes};
use serde_json::json;
use wire::types::ClientSettings;
use wire::worker::Request;

use crate::twins::aterm;

/// A derivation without inputs, whose paths are all computed as in Nix: its result becomes Verified.
fn honest(name: &str, script: &str) -> (StorePath, StorePath, BasicDerivation) {
    let draft = path(name).to_absolute_path();
    let text = String::from_utf8(aterm(&path(name), &[], &[], script)).expect("text");
    let NixHash::Sha256(masked) = hash_bytes(HashAlgorithm::Sha256, text.replace(&draft, "").as_bytes())
    else {
        unreachable!()
    };
    let out = build_output_path(DerivationModuloHash::new(masked), "out", name).expect("a path");
    let text = text.replace(&draft, &out.to_absolute_path());
    let drv = build_text_path(&format!("{name}.drv"), text.as_bytes(), &BTreeSet::new()).expect("a path");
    let (drv, derivation) = recipe(&drv, &[("out", &out)], &[], script);
    (out, drv, derivation)
}

/// A box on which Mallory may use one processor of three, and half the memory.
async fn shared_box() -> SharedBox {
    let setup = Setup::default().setting("sandbox.vcpus = 3").setting("sandbox.memory-mib = 1024");
    let shared_box = SharedBox::with(&["alice", "mallory"], setup);
    shared_box.limit("mallory", json!({ "max-cpus": 1, "max-memory-mib": 512 })).await;
    shared_box
}

#[tokio::test]
async fn the_cores_a_client_asks_for_shape_nothing() {
    let shared_box = SharedBox::with(&["alice", "mallory"], Setup::default().setting("sandbox.vcpus = 3"));
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let overrides = [("cores", "1"), ("build-cores", "1"), ("max-log-size", "9999"), ("system", "mallory")];
    let settings = ClientSettings {
        build_cores: 1,
        max_silent_time: 60,
        overrides: overrides.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..ClientSettings::default()
    };
    mallory.call(&Request::SetOptions(settings)).await;
    let (out, drv, derivation) = honest("cores", "echo $NIX_BUILD_CORES > $out");
    assert_eq!(mallory.build((drv.clone(), derivation.clone())).await.status, 0);
    assert_eq!(mallory.nar(&out).await, nar(&file(b"3\n")));
    // The envelope does not depend on the member, so the result is for everybody.
    assert_eq!(alice.nar(&out).await, nar(&file(b"3\n")));
    assert_eq!(shared_box.agent.count("build started"), 1);
}

/// As with a lower limit, but Mallory chooses it alone, in the environment of her ssh client.
#[tokio::test]
async fn what_was_built_with_fewer_processors_by_a_setting_stays_that_members() {
    let shared_box = SharedBox::with(&["alice", "mallory"], Setup::default().setting("sandbox.vcpus = 3"));
    let mut ssh = shared_box.ssh("mallory", &[]);
    ssh.args(["-o", "SetEnv=BARN_MAX_CPU=1"]).args(WORKER);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, Session::over(ssh, MINOR).await);
    let (out, drv, derivation) = honest("asked", "echo $NIX_BUILD_CORES > $out");
    assert_eq!(mallory.build((drv.clone(), derivation.clone())).await.status, 0);
    assert_eq!(mallory.nar(&out).await, nar(&file(b"1\n")));
    let claim = mallory.path_info(&out).await.expect("valid");
    assert!(claim.signatures.is_empty(), "the box signed what mallory's setting has shaped: {claim:?}");
    assert!(!alice.is_valid(&out).await, "what mallory's setting has shaped is everybody's");
    assert_eq!(alice.build((drv, derivation)).await.status, 0);
    assert_eq!(alice.nar(&out).await, nar(&file(b"3\n")));
    assert_eq!(shared_box.agent.count("build started"), 2);
}

#[tokio::test]
async fn what_was_built_under_a_members_lower_limits_stays_that_members() {
    let shared_box = shared_box().await;
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let (out, drv, derivation) = honest("shaped", "echo $NIX_BUILD_CORES > $out");
    assert_eq!(mallory.build((drv.clone(), derivation.clone())).await.status, 0);
    assert_eq!(mallory.nar(&out).await, nar(&file(b"1\n")));
    let claim = mallory.path_info(&out).await.expect("valid");
    assert!(claim.signatures.is_empty(), "the box signed what mallory's limits have shaped: {claim:?}");
    assert!(!alice.is_valid(&out).await, "what mallory's limits have shaped is everybody's");

    assert_eq!(alice.build((drv.clone(), derivation.clone())).await.status, 0);
    assert_eq!(alice.nar(&out).await, nar(&file(b"3\n")));
    assert_eq!(shared_box.agent.count("build started"), 2);
    // A result that was built with the usual envelope is valid for Mallory, too.
    assert_eq!(mallory.nar(&out).await, nar(&file(b"3\n")));
    assert!(!mallory.path_info(&out).await.expect("valid").signatures.is_empty());
}

#[tokio::test]
async fn a_running_build_under_lower_limits_is_not_joined() {
    let shared_box = shared_box().await;
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let (out, drv, derivation) = honest("slow", "sleep 1; echo $NIX_BUILD_CORES > $out");
    mallory.start_build((drv.clone(), derivation.clone())).await;
    shared_box.agent.wait_for("build started");
    assert_eq!(alice.build((drv, derivation)).await.status, 0);
    assert_eq!(alice.nar(&out).await, nar(&file(b"3\n")));
    assert_eq!(mallory.told().await.status, 0);
    assert_eq!(alice.nar(&out).await, nar(&file(b"3\n")), "mallory's came later and changes nothing");
}

#[tokio::test]
async fn a_failure_under_other_limits_is_not_told_again() {
    let shared_box = shared_box().await;
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let (_, drv, derivation) = honest("wants-more", "[ $NIX_BUILD_CORES -gt 1 ]; echo > $out");
    assert_ne!(mallory.build((drv.clone(), derivation.clone())).await.status, 0);
    let told = alice.build((drv, derivation)).await;
    assert_eq!(told.status, 0, "{told:?}");
    let (_, drv, derivation) = honest("wants-less", "[ $NIX_BUILD_CORES = 1 ]; echo > $out");
    assert_ne!(alice.build((drv.clone(), derivation.clone())).await.status, 0);
    let told = mallory.build((drv, derivation)).await;
    assert_eq!(told.status, 0, "{told:?}");
}
