use russh::keys::PrivateKey;
use russh::keys::ssh_key::certificate::Builder;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};

use super::*;

const NOON: u64 = 1_800_000_000;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&[seed; 32])), "").expect("a key")
}

fn line(seed: u8) -> String {
    key(seed).public_key().to_openssh().expect("text")
}

/// Members by name and key lines.
fn roster(members: &[(&str, &[String])]) -> Roster {
    let members: Vec<_> =
        members.iter().map(|(name, keys)| serde_json::json!({ "name": name, "keys": keys })).collect();
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = dir.path().join("roster.json");
    std::fs::write(&path, serde_json::json!({ "schema": 1, "members": members }).to_string())
        .expect("written");
    let roster = members::load(&path).expect("a roster");
    assert!(roster.left_out.is_empty(), "{:?}", roster.left_out);
    roster
}

/// A valid certificate for alice of authority 9 and key 1, as modified by `change`.
fn certificate(change: impl FnOnce(&mut Builder)) -> Certificate {
    let mut builder =
        Builder::new(vec![7; 16], key(1).public_key(), NOON - 60, NOON + 60).expect("a builder");
    change(&mut builder);
    builder.sign(&key(9)).expect("signed")
}

fn named(builder: &mut Builder, name: &str) {
    builder.valid_principal(name).expect("a principal");
}

fn for_alice(builder: &mut Builder) {
    named(builder, "alice");
}

fn decide(roster: &Roster, user: &str, credential: Credential) -> Result<String, Refusal> {
    decide_at(roster, user, credential, "192.0.2.1", NOON)
}

fn decide_at(
    roster: &Roster,
    user: &str,
    credential: Credential,
    peer: &str,
    at: u64,
) -> Result<String, Refusal> {
    let login = Login { user: user.into(), peer: peer.parse().expect("an address"), credential, at };
    login.decide(roster).map(|member| member.name.to_string())
}

fn shown(certificate: Certificate) -> Credential {
    Credential::Certificate(Box::new(certificate))
}

fn unfit(result: Result<String, Refusal>) -> String {
    match result {
        Err(Refusal::Unfit(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_user_name_counts_only_where_a_key_could_mean_several_members() {
    let roster = roster(&[("alice", &[line(1)]), ("dora", &[line(2)]), ("dora-untrusted", &[line(2)])]);
    let show = |seed: u8| Credential::Key(key(seed).public_key().clone());
    for user in ["alice", "anyone", "dora", ""] {
        assert_eq!(decide(&roster, user, show(1)), Ok("alice".into()));
    }
    assert_eq!(decide(&roster, "dora", show(2)), Ok("dora".into()));
    assert_eq!(decide(&roster, "dora-untrusted", show(2)), Ok("dora-untrusted".into()));
    // Another user name than the owner's does not help.
    for user in ["anyone", "alice", "Dora"] {
        let refusal = decide(&roster, user, show(2)).expect_err("ambiguous");
        assert_eq!(refusal, Refusal::Ambiguous(vec!["dora".into(), "dora-untrusted".into()]));
        assert!(refusal.to_string().contains("dora@host"), "{refusal}");
    }
    assert_eq!(decide(&roster, "alice", show(3)), Err(Refusal::Unknown));
}

#[test]
fn a_keys_own_conditions_hold() {
    let lines = [format!("from=\"192.0.2.0/24\",expiry-time=\"20300101\" {}", line(1))];
    let roster = roster(&[("alice", &lines)]);
    let show = || Credential::Key(key(1).public_key().clone());
    assert_eq!(decide(&roster, "x", show()), Ok("alice".into()));
    assert!(unfit(decide_at(&roster, "x", show(), "198.51.100.1", NOON)).contains("192.0.2.0/24"));
    assert!(unfit(decide_at(&roster, "x", show(), "192.0.2.1", NOON * 2)).contains("expiry-time"));
}

#[test]
fn a_certificate_lets_in_whom_its_authority_and_a_principal_name() {
    let authority = [format!("cert-authority {}", line(9))];
    let roster = roster(&[("alice", &authority), ("bob", &authority), ("carol", &[line(3)])]);
    // The user name does not matter, because the principal names the member.
    assert_eq!(decide(&roster, "root", shown(certificate(for_alice))), Ok("alice".into()));
    let both = |builder: &mut Builder| {
        for_alice(builder);
        named(builder, "bob");
    };
    assert_eq!(decide(&roster, "bob", shown(certificate(both))), Ok("bob".into()));
    assert!(matches!(decide(&roster, "root", shown(certificate(both))), Err(Refusal::Ambiguous(_))));
    // A member without the authority cannot use the certificate, even if it names them.
    let carols = certificate(|builder| named(builder, "carol"));
    assert!(unfit(decide(&roster, "carol", shown(carols))).contains("lists no principal"));
    // Neither the authority's own key nor the certified one logs in by itself.
    for seed in [9, 1] {
        let bare = Credential::Key(key(seed).public_key().clone());
        assert_eq!(decide(&roster, "alice", bare), Err(Refusal::Unknown));
    }
}

#[test]
fn listed_principals_take_the_place_of_the_name() {
    let lines = [format!("cert-authority,principals=\"ops,build\" {}", line(9))];
    let roster = roster(&[("alice", &lines)]);
    assert_eq!(
        decide(&roster, "x", shown(certificate(|builder| named(builder, "build")))),
        Ok("alice".into())
    );
    assert!(unfit(decide(&roster, "alice", shown(certificate(for_alice)))).contains("lists no principal"));
}

#[test]
fn a_certificate_that_sshd_would_refuse_is_refused() {
    let roster = roster(&[("alice", &[format!("cert-authority {}", line(9))])]);
    let with = |name: &'static str, value: &'static str| {
        certificate(|builder| {
            for_alice(builder);
            builder.critical_option(name, value).expect("an option");
        })
    };
    for (certificate, why) in [
        (
            certificate(|builder| {
                builder.all_principals_valid().expect("any");
            }),
            "lists no principals",
        ),
        (
            certificate(|b| {
                for_alice(b);
                b.cert_type(CertType::Host).expect("a type");
            }),
            "is for a host",
        ),
        (with("force-command", "nix-store --serve"), "is for one command only"),
        (with("verify-required", ""), "critical option `verify-required`"),
        (with("no-mondays@example.org", "x"), "critical option `no-mondays@example.org`"),
        (with("source-address", "198.51.100.0/24"), "may be used from 198.51.100.0/24 only"),
        (with("source-address", "!192.0.2.1"), "is not understood"),
    ] {
        let found = unfit(decide(&roster, "alice", shown(certificate)));
        assert!(found.contains(why), "{found}");
    }
    assert_eq!(decide(&roster, "alice", shown(with("source-address", "192.0.2.0/24"))), Ok("alice".into()));
    let at = |at| decide_at(&roster, "alice", shown(certificate(for_alice)), "192.0.2.1", at);
    assert!(unfit(at(NOON - 61)).contains("not valid yet"));
    assert_eq!((at(NOON - 60), at(NOON + 59)), (Ok("alice".into()), Ok("alice".into())));
    assert!(unfit(at(NOON + 60)).contains("has expired"));

    let mut others = Builder::new(vec![7; 16], key(1).public_key(), NOON - 60, NOON + 60).expect("a builder");
    for_alice(&mut others);
    let others = others.sign(&key(8)).expect("signed");
    assert!(unfit(decide(&roster, "alice", shown(others))).contains("no authority of the roster"));
}

#[test]
fn an_unknown_key_is_tried_only_where_a_certificate_is_likely() {
    let (ca, peer) = (format!("cert-authority {}", line(9)), "192.0.2.1".parse().expect("an address"));
    let with = roster(&[("alice", &[ca]), ("bob", &[line(2)])]);
    let without = roster(&[("bob", &[line(2)])]);
    let stranger = key(5).public_key().clone();
    let ed25519 = (&stranger, &Algorithm::Ed25519);
    let mut offers = Offers::default();
    assert_eq!(offers.consider(&with, "bob", peer, ed25519), Err(Refusal::Unknown));
    assert_eq!(offers.consider(&with, "bob", peer, ed25519), Ok(()), "a key, then its certificate");
    assert_eq!(
        Offers::default().consider(&with, "alice", peer, ed25519),
        Ok(()),
        "whose name has an authority"
    );
    let mut offers = Offers::default();
    for _ in 0..3 {
        assert_eq!(offers.consider(&without, "alice", peer, ed25519), Err(Refusal::Unknown));
    }
    let bobs = key(2).public_key().clone();
    let sha1 = (&bobs, &Algorithm::Rsa { hash: None });
    assert!(matches!(offers.consider(&without, "bob", peer, sha1), Err(Refusal::Unfit(_))));
}
