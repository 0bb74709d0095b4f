//! Realisations of content-addressed derivations: one member's statement does not decide it for another.

use std::collections::BTreeMap;

use e2e::hostile::*;
use e2e::shared_box::SharedBox;
use nix::{DrvKey, DrvOutputId, Realisation};
use nix_derivation::{HashAlgorithm, StorePath, hash_bytes};
use wire::client::End;
use wire::worker::Request;

use crate::signing::box_key;
use crate::twins::at;

/// The box's answer for this output.
pub async fn realisation(who: &mut Session, id: &DrvOutputId) -> Vec<String> {
    who.call(&Request::QueryRealisation { id: id.clone() }).await;
    let count = who.client.u64().await.expect("an answer");
    let mut found = Vec::new();
    for _ in 0..count {
        found.push(who.client.string().await.expect("a realisation"));
    }
    found
}

/// A realisation with this as its only signature: `path` as the output of a derivation that nobody ever
/// wrote.
pub fn poisoned(path: &StorePath, signature: &str) -> Realisation {
    let hash = hash_bytes(HashAlgorithm::Sha256, path.to_basename().as_bytes());
    Realisation {
        id: DrvOutputId { drv: DrvKey::Hash(hash), output: "out".into() },
        out_path: path.clone(),
        signatures: vec![signature.to_owned()],
        dependent_realisations: BTreeMap::new(),
    }
}

#[tokio::test]
async fn a_poisoned_realisation_reaches_only_who_registered_it() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let key = box_key(&shared_box, "mallory");
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    // A path that only she has, and a path that everybody has: the derivation produces neither.
    let claim = path("forged");
    let contents = nar(&file(b"forged"));
    mallory.upload(&at(&claim, &contents), &contents).await;
    let proven = mallory.add("proven", &contents).await;
    assert!(alice.is_valid(&proven).await && !alice.is_valid(&claim).await);
    let made_up = format!("{}:{}==", key.name(), "A".repeat(86));
    let poison = [claim, proven].map(|path| poisoned(&path, &made_up));
    let mut taken = 0;
    for realisation in &poison {
        let request = Request::RegisterDrvOutput { realisation: realisation.clone() };
        taken += usize::from(mallory.try_call(&request).await == End::Last);
    }
    assert_eq!(taken, 2, "both can be registered");
    for Realisation { id, out_path, .. } in &poison {
        let hers = realisation(&mut mallory, id).await;
        assert!(hers.concat().contains(&out_path.to_basename()), "mallory has what she said: {hers:?}");
        assert!(!hers.concat().contains(key.name()), "a signature by the box's name: {hers:?}");
        assert_eq!(
            realisation(&mut alice, id).await,
            Vec::<String>::new(),
            "alice is told what mallory said"
        );
    }
}
