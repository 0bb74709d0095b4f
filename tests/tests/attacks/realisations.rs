//! Which path an output of a content-addressed derivation is: what one member says does not decide it for another.

use std::collections::BTreeMap;

use e2e::hostile::*;
use e2e::neighbours::Neighbours;
use nix_derivation::{HashAlgorithm, hash_bytes};
use wire::client::End;
use wire::types::{DrvKey, DrvOutputId, Realisation};
use wire::worker::Request;

use crate::twins::at;

/// What the box says this output is.
async fn realisation(who: &mut Session, id: &DrvOutputId) -> Vec<String> {
    who.call(&Request::QueryRealisation { id: id.clone() }).await;
    let count = who.client.u64().await.expect("an answer");
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(who.client.string().await.expect("a realisation"));
    }
    found
}

#[tokio::test]
async fn a_poisoned_realisation_reaches_only_who_registered_it() {
    let house = Neighbours::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (house.session("alice").await, house.session("mallory").await);
    let id = DrvOutputId {
        drv: DrvKey::Hash(hash_bytes(HashAlgorithm::Sha256, b"a derivation of alice's")),
        output: "out".into(),
    };
    // One path that is only hers, and one that everybody has: neither is what the derivation makes.
    let claim = path("forged");
    let contents = nar(&file(b"forged"));
    mallory.upload(&at(&claim, &contents), &contents).await;
    let proven = mallory.add("proven", &contents).await;
    let mut taken = 0;
    for out_path in [claim, proven] {
        let realisation = Realisation {
            id: id.clone(),
            out_path,
            signatures: vec![format!("testbox:{}==", "A".repeat(86))],
            dependent_realisations: BTreeMap::new(),
        };
        taken +=
            usize::from(mallory.try_call(&Request::RegisterDrvOutput { realisation }).await == End::Last);
    }
    let hers = realisation(&mut mallory, &id).await;
    println!("{taken} were taken; mallory is told {hers:?}");
    assert!(!hers.concat().contains("testbox:AAAA"), "a signature that nobody checked: {hers:?}");
    assert_eq!(realisation(&mut alice, &id).await, Vec::<String>::new(), "alice is told what mallory said");
}
