//! The box signs only what it has proven, never a member's statement: this tries every known way to get
//! another signature, in one box, and then checks every signature in it.

use std::collections::BTreeSet;

use e2e::clients::{Stock, outputs};
use e2e::drv::Drv;
use e2e::hostile::*;
use e2e::process;
use e2e::shared_box::{SharedBox, recipe};
use nix::{BuildMode, PathInfo};
use nix_derivation::{
    CAHash, DerivedPath, HashAlgorithm, NixHash, Output, SingleDerivedPath, StorePath, hash_bytes,
};
use store::signing::PublicKey;
use wire::client::encode_items;
use wire::worker::Request;

use crate::realisations::{poisoned, realisation};
use crate::twins::{at, aterm};

/// The text that the signature of this path covers (Nix: `ValidPathInfo::fingerprint`); implemented again
/// here, so that the test does not repeat a mistake of the box.
fn fingerprint(info: &PathInfo) -> String {
    let references: Vec<String> = info.references.iter().map(StorePath::to_absolute_path).collect();
    let hash = nix_derivation::nixbase32::encode(&info.nar_hash);
    format!("1;{};sha256:{hash};{};{}", info.path.to_absolute_path(), info.nar_size, references.join(","))
}

fn is_signed(key: &PublicKey, info: &PathInfo) -> bool {
    info.signatures.iter().any(|signature| key.verify(fingerprint(info).as_bytes(), signature))
}

/// The box's public key, as `ssh box signing-key` prints it.
pub fn box_key(shared_box: &SharedBox, who: &str) -> PublicKey {
    let said = process::run(&mut shared_box.ssh(who, &["signing-key"])).ok();
    said.answer().parse().unwrap_or_else(|error| panic!("no key ({error}): {said}"))
}

/// Builds outputs of this derivation file, which Mallory has uploaded.
fn build(drv: &StorePath) -> Request {
    let drv_path = SingleDerivedPath::Opaque(drv.clone());
    let paths = vec![DerivedPath::Built { drv_path, outputs: vec!["out".into()] }];
    Request::BuildPaths { paths, mode: BuildMode::Normal }
}

/// Returns `path(name)`, and adds it to the forged ones.
fn forge(forged: &mut BTreeSet<StorePath>, name: &str) -> StorePath {
    let path = path(name);
    forged.insert(path.clone());
    path
}

/// A path that the box built from whole derivations, and therefore signs.
fn built(shared_box: &SharedBox) -> StorePath {
    let nix = shared_box.machine("alice", Stock::NEWEST);
    let drv = Drv::new("verified", "echo verified > $out");
    let said = process::run(&mut nix.build_at_box(&drv.expr())).ok();
    StorePath::from_absolute_path(outputs(&said)["out"].as_bytes()).expect("a path")
}

#[tokio::test]
async fn the_box_signs_nothing_that_a_member_only_claims() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let key = box_key(&shared_box, "mallory");
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let verified = built(&shared_box);
    // Proven by its contents: everybody sees it, and it needs no signature.
    let addressed = alice.add("addressed", &nar(&file(b"addressed\n"))).await;
    let good = alice.path_info(&verified).await.expect("valid");
    assert!(is_signed(&key, &good), "the box signs at all: {good:?}");
    let genuine = good.signatures[0].clone();
    let claim = nar(&file(b"a claim\n"));
    // All paths at which Mallory wants forged contents.
    let mut forged = BTreeSet::new();

    // Signatures with the name of the box's key: made up; of another path; by a key of Mallory's with the
    // same name.
    let made_up = format!("{}:{}==", key.name(), "A".repeat(86));
    let her_key = store::signing::SecretKey::generate(key.name()).expect("a key");
    for (name, signature) in [("made-up", made_up.clone()), ("transplanted", genuine.clone())] {
        let info = PathInfo { signatures: vec![signature], ..at(&forge(&mut forged, name), &claim) };
        mallory.upload(&info, &claim).await;
    }
    let mut homemade = at(&forge(&mut forged, "homemade"), &claim);
    homemade.signatures = vec![store::signing::Signer::sign(&her_key, fingerprint(&homemade).as_bytes())];
    mallory.upload(&homemade, &claim).await;
    let multiple = at(&forge(&mut forged, "multiple"), &claim);
    let multiple = PathInfo { signatures: vec![made_up.clone()], ultimate: true, ..multiple };
    mallory.request(&Request::AddMultipleToStore { repair: false, dont_check_sigs: true }).await;
    mallory.client.framed(&encode_items(&[(multiple, claim.clone())])).await.expect("the box reads");
    within("an answer", mallory.client.done()).await.expect("added");

    // Signatures that are added later.
    for signatures in [vec![made_up.clone()], vec![genuine.clone()], homemade.signatures.clone()] {
        for target in [path("made-up"), path("homemade"), verified.clone()] {
            if mallory
                .try_call(&Request::AddSignatures { path: target, signatures: signatures.clone() })
                .await
                == wire::client::End::Last
            {
                assert_eq!(mallory.client.u64().await.expect("an answer"), 1);
            }
        }
    }

    // Content addresses: of other contents, of other references, of a method that requires other contents, at
    // another path.
    let digest = |nar: &[u8]| hash_bytes(HashAlgorithm::Sha256, nar);
    let sha1 = hash_bytes(HashAlgorithm::Sha1, &claim);
    let addresses = [
        CAHash::Nar(digest(&claim)),
        CAHash::Nar(digest(b"something else")),
        CAHash::Flat(digest(b"a claim\n")),
        CAHash::from_parts(
            nix_derivation::ContentAddressMethod::Git,
            HashAlgorithm::Sha1,
            sha1.digest_as_bytes(),
        )
        .expect("a git address"),
        CAHash::Text(match digest(b"a claim\n") {
            NixHash::Sha256(digest) => digest,
            _ => unreachable!(),
        }),
    ];
    for (n, ca) in addresses.into_iter().enumerate() {
        for references in
            [BTreeSet::new(), BTreeSet::from([verified.clone()]), BTreeSet::from([path("made-up")])]
        {
            let name = forge(&mut forged, &format!("addressed-{n}"));
            let info = PathInfo { ca: Some(ca.clone()), references, ..at(&name, &claim) };
            mallory.add_nar(&info, &claim).await;
            within("an answer", mallory.client.log()).await.expect("an answer");
        }
    }
    // A correct content address, but with a closure that is not proven.
    mallory
        .request(&Request::AddToStore {
            name: "refers".into(),
            method: nix_derivation::ContentAddressMethod::Nar,
            algorithm: HashAlgorithm::Sha256,
            references: BTreeSet::from([path("made-up")]),
            repair: false,
        })
        .await;
    mallory.client.framed(&claim).await.expect("the box reads");
    within("an answer", mallory.client.done()).await.expect("added");
    let refers = mallory.client.path_info(None).await.expect("a path info").path;
    forged.insert(refers.clone());

    // Other contents for a path that is proven.
    mallory.add_nar(&PathInfo { signatures: vec![genuine.clone()], ..at(&verified, &claim) }, &claim).await;
    within("an answer", mallory.client.log()).await.expect("an answer");

    // Builds that choose their output paths: a free path, an existing one, another member's.
    for (n, out) in [forge(&mut forged, "chosen"), path("made-up"), refers].iter().enumerate() {
        let drv = path(&format!("chosen-{n}.drv"));
        let mut what = recipe(&drv, &[("out", out)], &[], "echo chosen > $out");
        mallory.build(what.clone()).await;
        // The same, sent as the derivation of a proven path.
        what.0 = verified.clone();
        mallory
            .try_call(&Request::BuildDerivation {
                drv_path: what.0,
                derivation: what.1,
                mode: BuildMode::Normal,
            })
            .await;
        // The answer, whatever it is, concerns this session only.
        mallory = shared_box.session("mallory").await;
    }
    // A fixed output with other contents than announced.
    let (drv, mut fixed) = recipe(&path("fixed.drv"), &[], &[], "echo not this > $out");
    fixed.outputs.insert("out".into(), Output::Fixed { ca: CAHash::Flat(digest(b"but this")) });
    assert_ne!(mallory.build((drv, fixed)).await.status, 0);
    // A derivation file, itself proven, with an output path of Mallory's choice.
    let aim = forge(&mut forged, "aimed");
    let text = aterm(&aim, &[], &[], "echo aimed > $out");
    mallory
        .request(&Request::AddToStore {
            name: "aimed.drv".into(),
            method: nix_derivation::ContentAddressMethod::Text,
            algorithm: HashAlgorithm::Sha256,
            references: BTreeSet::new(),
            repair: false,
        })
        .await;
    mallory.client.framed(&text).await.expect("the box reads");
    within("an answer", mallory.client.done()).await.expect("added");
    let aimed_drv = mallory.client.path_info(None).await.expect("a path info").path;
    mallory.try_call(&build(&aimed_drv)).await;
    let mut mallory = shared_box.session("mallory").await;
    // And a file with a wrong announcement.
    let file_of = |text: &[u8]| nar(&file(text));
    let lying = file_of(&aterm(&forge(&mut forged, "lying"), &[], &[], "echo lying > $out"));
    let liar = forge(&mut forged, "lying.drv");
    mallory.upload(&at(&liar, &lying), &lying).await;
    mallory.try_call(&build(&liar)).await;
    let mut mallory = shared_box.session("mallory").await;

    // Realisations of derivations that nobody has built.
    let poison = [verified.clone(), path("made-up")].map(|path| poisoned(&path, &made_up));
    for realisation in &poison {
        mallory.call(&Request::RegisterDrvOutput { realisation: realisation.clone() }).await;
    }

    // Now check every signature in the store.
    for realised in &poison {
        let told = realisation(&mut mallory, &realised.id).await.concat();
        assert!(told.contains(&realised.out_path.to_basename()), "{told}");
        assert!(!told.contains(key.name()), "the box signed what nobody built: {told}");
    }
    let proven: BTreeSet<StorePath> = alice.all_paths().await.into_iter().collect();
    assert!(proven.contains(&addressed) && proven.contains(&verified));
    let info = alice.path_info(&addressed).await.expect("valid");
    assert!(info.ca.is_some() && !is_signed(&key, &info), "{info:?}");
    let mut claims = 0;
    for path in mallory.all_paths().await {
        let info = mallory.path_info(&path).await.expect("valid");
        if proven.contains(&path) {
            // Content-addressed paths prove themselves; all others are proven by this box alone.
            assert!(
                info.ca.is_some() || is_signed(&key, &info),
                "everybody sees what nothing proves: {info:?}"
            );
            // Mallory's additions to the path are shown to her only.
            let alices = alice.path_info(&path).await.expect("valid");
            let added = |s: &String| !alices.signatures.contains(s);
            assert!(
                !info
                    .signatures
                    .iter()
                    .filter(|s| added(s))
                    .any(|s| { key.verify(fingerprint(&info).as_bytes(), s) })
            );
            let (deriver, signatures) = (alices.deriver.clone(), alices.signatures.clone());
            assert_eq!(alices, PathInfo { deriver, signatures, ..info });
        } else {
            claims += 1;
            assert!(!is_signed(&key, &info), "the box signed a claim: {info:?}");
        }
    }
    assert!(claims >= 6, "{claims} claims were looked at");
    assert_eq!(alice.path_info(&verified).await.as_ref(), Some(&good), "nothing of it changed");
    for path in &forged {
        assert!(!proven.contains(path) && !alice.is_valid(path).await, "alice sees {path}");
    }
}
