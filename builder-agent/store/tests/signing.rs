//! Keys and signatures equal Nix's, byte for byte; only Verified paths are signed, and only trusted
//! signatures count.

mod common;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use common::*;
use nix::PathInfo;
use nix_derivation::{
    CAHash, ContentAddressMethod, HashAlgorithm, NixHash, StorePath, store_path::build_ca_path,
};
use proptest::prelude::*;
use store::signing::{
    KeyError, PublicKey, SecretKey, Signer, TrustedKeys, fingerprint, is_signature, realisation_fingerprint,
};
use store::{ImportError, Provenance, RealisationId, RegisterError, Store, StoreConfig, View};

/// Made by `nix key generate-secret` of Nix 2.34.8 for this file, and used for nothing else.
const SECRET: &str = "box.example.org-1:FNX0CHzmtMOh3AGn1HlgfQPraXr63GkmgSqwT1Q2ERnbSePu9W+EUDXRccypOMBRhbeNcFmybI9aj/SUEe2+aQ==";
const PUBLIC: &str = "box.example.org-1:20nj7vVvhFA10XHMqTjAUYW3jXBZsmyPWo/0lBHtvmk=";

fn sp(text: &str) -> StorePath {
    StorePath::from_absolute_path(text.as_bytes()).unwrap()
}

#[test]
fn a_path_is_signed_as_nix_signs_it() {
    // nix store sign -k secret PATH; nix path-info --json PATH (Nix 2.34.8)
    let NixHash::Sha256(nar_hash) =
        NixHash::parse("sha256-Rn+Apc7y4Xw2BOHnmuIfqyHspmlbXbzxAsi0Zej7fvU=").unwrap()
    else {
        panic!("SHA-256")
    };
    let drv = PathInfo {
        path: sp("/nix/store/3bi8nij9q7iqfl9fckla5lp372nmfsph-b.drv"),
        nar_hash,
        nar_size: 440,
        references: [sp("/nix/store/12wigjpizrn8axaqxj288q1b751qmwya-a")].into(),
        deriver: None,
        registration_time: 1_795_250_165,
        ultimate: false,
        signatures: Vec::new(),
        ca: Some("text:sha256:0v88yj7ydixwwx6b6fqq8ihgp36rfxcfn13cpqnfd42m8c2sjfqq".parse().unwrap()),
    };
    let wanted = "box.example.org-1:Br7QXFvuJeYsxxmkNsh7ZzG5UmCvE14syNth4+61FjbqhOkoV1/BZ2nNdM1sppTAhdX4onpI2/OVGRjs8xwFBQ==";
    let secret: SecretKey = SECRET.parse().unwrap();
    assert_eq!(secret.sign(fingerprint(&drv).as_bytes()), wanted);
    assert_eq!(secret.public().to_string(), PUBLIC);
    assert_eq!(secret.to_secret_text(), SECRET);
    let trusted = TrustedKeys::parse([PUBLIC]).unwrap();
    assert!(trusted.verify(fingerprint(&drv).as_bytes(), wanted));
    // Every field of the fingerprint is covered.
    for wrong in [
        PathInfo { nar_size: 441, ..drv.clone() },
        PathInfo { nar_hash: [1; 32], ..drv.clone() },
        PathInfo { references: BTreeSet::new(), ..drv.clone() },
        PathInfo { path: path("b.drv"), ..drv.clone() },
    ] {
        assert!(!trusted.verify(fingerprint(&wrong).as_bytes(), wanted));
    }
}

#[test]
fn a_realisation_is_signed_as_nix_signs_it() {
    // nix build of a floating derivation with `secret-key-files`; nix realisation info --json (Nix 2.34.8)
    let hex = "12b4babb21a9e09f635f491da600e7f1111f0374b376c1884b3bfd7490e5d492";
    let NixHash::Sha256(drv_hash) = NixHash::parse(&format!("sha256:{hex}")).unwrap() else {
        panic!("SHA-256")
    };
    let id = RealisationId { drv_hash, output: "out".to_owned() };
    assert_eq!(id.to_string(), format!("sha256:{hex}!out"));
    let secret: SecretKey = SECRET.parse().unwrap();
    let path = sp("/nix/store/jg3iyw19sm3aqibd9m0bpimiz60gk2nl-ca");
    assert_eq!(
        secret.sign(realisation_fingerprint(&id, &path).as_bytes()),
        "box.example.org-1:E+HATHbHKXnuC/Np8FwJ81J2Bxl7ItWWtQCLHZHJRtG/GAx9bZC1LHq7ZKII+8WL/sxN76C8zq9uBMP/TsdNAg=="
    );
}

#[test]
fn text_that_is_no_key_is_refused_with_the_reason() {
    let of = |text: &str| text.parse::<PublicKey>().unwrap_err();
    assert_eq!(of("no colon"), KeyError::NoName);
    assert_eq!(of(":AAAA"), KeyError::NoName);
    assert!(matches!(of("a b:AAAA"), KeyError::BadName(_)));
    assert!(matches!(of(&format!("{}:AAAA", "n".repeat(300))), KeyError::BadName(_)));
    for bad in ["k:", "k:AAAA", "k:????", &format!("k:{}", "A".repeat(1 << 20)), SECRET] {
        assert!(matches!(of(bad), KeyError::BadBytes { want: 32, .. }), "{bad:.40}");
    }
    // If the two halves did not belong together, signatures would reveal the secret one.
    let other = SecretKey::generate("x").unwrap().to_secret_text();
    let mixed = format!("x:{}{}", &SECRET[18..18 + 42], &other[2 + 42..]);
    assert!(matches!(mixed.parse::<SecretKey>(), Err(KeyError::Mismatch(_) | KeyError::BadBytes { .. })));
    assert!(!format!("{:?}", SECRET.parse::<SecretKey>().unwrap()).contains("FNX0"));
    assert!(SecretKey::generate("with space").is_err());
    assert_ne!(SecretKey::generate("k").unwrap().public(), SecretKey::generate("k").unwrap().public());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_text_makes_the_parsers_panic_or_verifies(text in "\\PC{0,120}") {
        let trusted = TrustedKeys::parse([PUBLIC]).unwrap();
        prop_assert!(!trusted.verify(b"x", &text));
        let named = format!("box.example.org-1:{text}");
        prop_assert!(!trusted.verify(b"x", &named));
        let _ = (text.parse::<PublicKey>().is_ok(), text.parse::<SecretKey>().is_ok(), is_signature(&text));
    }

    #[test]
    fn keys_survive_their_text(seed in "[a-z0-9.-]{1,40}") {
        let secret = SecretKey::generate(&seed).unwrap();
        let again: SecretKey = secret.to_secret_text().parse().unwrap();
        let public: PublicKey = secret.public().to_string().parse().unwrap();
        prop_assert_eq!(&public, &again.public());
        prop_assert!(public.verify(b"text", &again.sign(b"text")));
        prop_assert!(!public.verify(b"other", &again.sign(b"text")));
    }
}

/// A signer that records what it signed.
struct Recorder(SecretKey, Mutex<Vec<String>>);

impl Signer for Recorder {
    fn sign(&self, fingerprint: &[u8]) -> String {
        self.1.lock().unwrap().push(String::from_utf8(fingerprint.to_vec()).unwrap());
        self.0.sign(fingerprint)
    }
}

struct Signing {
    _dir: tempfile::TempDir,
    store: Store,
    signer: Arc<Recorder>,
    cache: SecretKey,
}

impl Signing {
    fn new() -> Self {
        let dir = scratch();
        let signer = Arc::new(Recorder(SECRET.parse().unwrap(), Mutex::default()));
        let cache = SecretKey::generate("cache-1").unwrap();
        let config = StoreConfig {
            signer: Some(signer.clone()),
            trusted: Arc::new(TrustedKeys::new([cache.public()])),
            ..StoreConfig::default()
        };
        let store = Store::open(dir.path(), config).unwrap();
        Self { _dir: dir, store, signer, cache }
    }

    fn signed(&self) -> Vec<String> {
        self.signer.1.lock().unwrap().clone()
    }
}

fn import(view: &View, info: PathInfo, nar: &[u8]) -> Result<(Arc<PathInfo>, Provenance), ImportError> {
    let path = info.path.clone();
    view.import(info, &mut &nar[..])?;
    Ok(view.info_with_provenance(&path).unwrap())
}

fn verified(view: &View, path: &StorePath, nar: &[u8], references: &[&StorePath]) -> Provenance {
    let mut ingest = view.ingest(&[]).unwrap();
    ingest.write_all(nar).unwrap();
    view.register(ingest.finish().unwrap(), info(path, nar, references), Provenance::Verified).unwrap();
    view.info_with_provenance(path).unwrap().1
}

#[test]
fn only_verified_paths_are_signed() {
    let s = Signing::new();
    let a = s.store.view(&alice());
    let nar = file("x").nar();
    let (claimed, provenance) = import(&a, info(&path("claim"), &nar, &[]), &nar).unwrap();
    assert_eq!((provenance, claimed.signatures.len()), (Provenance::Claimed(alice()), 0));
    // Verified by the caller's word, but with a claim as reference.
    assert_eq!(verified(&a, &path("top"), &nar, &[&path("claim")]), Provenance::Claimed(alice()));
    assert_eq!(s.signed(), Vec::<String>::new());

    assert_eq!(verified(&a, &path("good"), &nar, &[]), Provenance::Verified);
    let good = a.info(&path("good")).unwrap();
    assert_eq!(s.signed(), [fingerprint(&good)]);
    assert!(PUBLIC.parse::<PublicKey>().unwrap().verify(fingerprint(&good).as_bytes(), &good.signatures[0]));
    // The signature survives a restart, and is not made again.
    verified(&a, &path("good"), &nar, &[]);
    assert_eq!(s.signed().len(), 1);
}

/// Such paths prove themselves to every client, and a signature takes longer than all other work for a small
/// path.
#[test]
fn a_content_addressed_path_is_not_signed_and_seen_by_everybody_all_the_same() {
    let s = Signing::new();
    let (a, b) = (s.store.view(&alice()), s.store.view(&bob()));
    let nar = file("x").nar();
    let (method, algorithm) = (ContentAddressMethod::Nar, HashAlgorithm::Sha256);
    let added = a.add_ca("x", method, algorithm, &[].into(), &mut &nar[..]).unwrap();
    // Announced with its address, and with a trusted signature, which stays.
    let ca = CAHash::Nar(nix_derivation::hash_bytes(algorithm, &nar));
    let none: [StorePath; 0] = [];
    let at = build_ca_path("y", &ca, &none, false).unwrap();
    let plain = PathInfo { ca: Some(ca.clone()), ..info(&at, &nar, &[]) };
    let caches = s.cache.sign(fingerprint(&plain).as_bytes());
    import(&a, PathInfo { signatures: vec![caches.clone()], ..plain }, &nar).unwrap();
    for (path, signatures) in [(&added.path, vec![]), (&at, vec![caches])] {
        let (seen, provenance) = b.info_with_provenance(path).unwrap();
        assert_eq!((provenance, &seen.signatures), (Provenance::Verified, &signatures));
    }
    assert_eq!(s.signed(), Vec::<String>::new());
}

#[test]
fn a_claim_is_signed_when_it_becomes_verified() {
    let s = Signing::new();
    let a = s.store.view(&alice());
    let nar = file("x").nar();
    import(&a, info(&path("p"), &nar, &[]), &nar).unwrap();
    assert_eq!(verified(&a, &path("p"), &nar, &[]), Provenance::Verified);
    assert_eq!(s.signed().len(), 1);
    assert_eq!(s.store.view(&bob()).info(&path("p")).unwrap().signatures.len(), 1);
}

#[test]
fn a_trusted_signature_makes_an_upload_verified_and_a_wrong_one_does_not() {
    let s = Signing::new();
    let a = s.store.view(&alice());
    let nar = file("x").nar();
    let plain = info(&path("p"), &nar, &[]);
    let right = s.cache.sign(fingerprint(&plain).as_bytes());
    let wrong = s.cache.sign(fingerprint(&info(&path("q"), &nar, &[])).as_bytes());
    let stranger = SecretKey::generate("cache-1").unwrap().sign(fingerprint(&plain).as_bytes());
    let signed = |path: &StorePath, signatures: &[&String]| PathInfo {
        path: path.clone(),
        signatures: signatures.iter().map(|s| (*s).clone()).collect(),
        deriver: Some(common::path("evil.drv")),
        ultimate: true,
        ..plain.clone()
    };
    for bad in [&wrong, &stranger, &"cache-1:AAAA".to_owned()] {
        let (_, provenance) = import(&a, signed(&path("bad"), &[bad]), &nar).unwrap();
        assert_eq!(provenance, Provenance::Claimed(alice()));
    }
    // The right signature for another path is a wrong one.
    assert_eq!(import(&a, signed(&path("bad2"), &[&right]), &nar).unwrap().1, Provenance::Claimed(alice()));
    let (got, provenance) = import(&a, signed(&path("p"), &[&stranger, &right]), &nar).unwrap();
    assert_eq!(provenance, Provenance::Verified);
    // Other members see the checked fields and the box's signature; unproven fields are shown to alice only.
    let others = s.store.view(&bob()).info(&path("p")).unwrap();
    assert_eq!((&others.deriver, others.ultimate), (&None, false));
    assert_eq!(others.signatures[0], right);
    assert!(others.signatures[1].starts_with("box.example.org-1:") && others.signatures.len() == 2);
    assert_eq!((&got.deriver, got.ultimate), (&Some(common::path("evil.drv")), false));
    assert_eq!(got.signatures, [&others.signatures[..], &[stranger]].concat());
}

#[test]
fn a_signature_that_comes_later_lifts_the_claim_and_what_proves_itself_upon_it() {
    let s = Signing::new();
    let (a, b) = (s.store.view(&alice()), s.store.view(&bob()));
    let nar = file("x").nar();
    let base = info(&path("base"), &nar, &[]);
    import(&a, base.clone(), &nar).unwrap();
    // A content-addressed path that refers to it, and an ordinary claim that refers to that.
    let refs = [path("base")].into();
    let text = a
        .add_ca("t", ContentAddressMethod::Text, HashAlgorithm::Sha256, &refs, &mut &b"t"[..])
        .unwrap()
        .path
        .clone();
    import(&a, info(&path("top"), &nar, &[&text]), &nar).unwrap();
    assert!(b.all_valid().is_empty());

    let error = a.add_signatures(&path("nothing"), &["k:AAAA".to_owned()]).unwrap_err();
    assert!(matches!(error, RegisterError::NotValid(_)), "{error}");
    let wrong = SecretKey::generate("cache-1").unwrap().sign(fingerprint(&base).as_bytes());
    a.add_signatures(&path("base"), std::slice::from_ref(&wrong)).unwrap();
    assert_eq!(a.info(&path("base")).unwrap().signatures, std::slice::from_ref(&wrong));
    assert!(b.all_valid().is_empty() && s.signed().is_empty());

    let right = s.cache.sign(fingerprint(&base).as_bytes());
    a.add_signatures(&path("base"), std::slice::from_ref(&right)).unwrap();
    assert_eq!(b.all_valid(), [path("base"), text.clone()].into());
    let info = b.info(&path("base")).unwrap();
    // The other one is content-addressed.
    assert_eq!(s.signed(), [fingerprint(&info)]);
    assert_eq!(b.info(&text).unwrap().signatures, Vec::<String>::new());
    assert_eq!((info.signatures.len(), &info.signatures[0]), (2, &right));
    assert_eq!(a.info_with_provenance(&path("top")).unwrap().1, Provenance::Claimed(alice()));

    // On a Verified path other members see only signatures that can be checked; the earlier wrong one is
    // shown to alice only.
    let other = SecretKey::generate("mine").unwrap().sign(fingerprint(&info).as_bytes());
    a.add_signatures(&path("base"), std::slice::from_ref(&other)).unwrap();
    assert_eq!(b.info(&path("base")).unwrap(), info);
    let hers = a.info(&path("base")).unwrap().signatures.clone();
    assert_eq!(hers, [&info.signatures[..], &[wrong, other]].concat());
    assert_eq!(s.signed().len(), 1);
    let dir = s._dir.path().to_owned();
    drop((a, b, s.store));
    let again = open(&dir);
    assert_eq!(*again.recovery(), store::Recovery::default());
    assert_eq!(again.view(&bob()).info(&path("base")).unwrap(), info);
    assert_eq!(again.view(&bob()).all_valid(), [path("base"), text].into());
}

#[test]
fn a_content_address_beside_a_trusted_signature_must_hold_too() {
    let s = Signing::new();
    let a = s.store.view(&alice());
    let nar = file("x").nar();
    let wrong = CAHash::Nar(NixHash::Sha256([7; 32]));
    let none: [StorePath; 0] = [];
    let at = build_ca_path("x", &wrong, &none, false).unwrap();
    let plain = info(&at, &nar, &[]);
    let right = s.cache.sign(fingerprint(&plain).as_bytes());
    let announced = PathInfo { ca: Some(wrong), signatures: vec![right], ..plain };
    assert!(matches!(import(&a, announced, &nar), Err(ImportError::ContentMismatch { .. })));
}
