//! Sharing takes two. One who opens their own door does not open another's.

use e2e::hostile::*;
use e2e::neighbours::Neighbours;

use crate::twins::at;

#[tokio::test]
async fn who_does_not_share_back_sees_nothing() {
    let house = Neighbours::of(&["alice", "mallory", "bob"]);
    let mut alice = house.session("alice").await;
    let secret = path("secret");
    let contents = nar(&file(b"alice's"));
    alice.upload(&at(&secret, &contents), &contents).await;
    // Mallory names Alice, who names Bob, who names Mallory: no two of them name each other.
    house.share(&[("alice", &["bob"]), ("bob", &["mallory"]), ("mallory", &["alice"])]).await;
    for who in ["mallory", "bob"] {
        assert!(!house.session(who).await.is_valid(&secret).await, "{who} sees what is alice's");
    }
    // Now Alice and Bob do; and what Bob sees does not go on to Mallory.
    house.share(&[("alice", &["bob"]), ("bob", &["alice", "mallory"]), ("mallory", &["alice", "bob"])]).await;
    let mut bob = house.session("bob").await;
    assert_eq!(bob.nar(&secret).await, contents);
    assert!(!house.session("mallory").await.is_valid(&secret).await, "sharing went one step too far");
    // A share that ends takes its paths along, in sessions that are open too.
    house.share(&[("alice", &[]), ("bob", &["alice"]), ("mallory", &[])]).await;
    assert!(!bob.is_valid(&secret).await);
    assert!(alice.is_valid(&secret).await);
}
