//! Commands that people type, about the builds of stock clients.

use e2e::agent::Agent;
use e2e::clients::{Nix, Stock, outputs};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process::{Running, Transcript, run};
use serde_json::Value;

fn command(nix: &Nix, words: &str) -> Transcript {
    run(nix.ssh().arg(words))
}

fn listed(nix: &Nix) -> Vec<Value> {
    let said = command(nix, "builds list --json").ok();
    serde_json::from_str::<Value>(&said.stdout).expect("JSON").as_array().expect("an array").clone()
}

pub fn a_member_lists_and_cancels_the_requests_of_that_member_alone(stock: Stock) {
    let (alice_key, bob_key) = (Key::new("alice"), Key::new("bob"));
    let agent = Agent::start(&[("alice", &alice_key), ("bob", &bob_key)]);
    let (alice, bob) = (Nix::over(stock, &agent, &alice_key), Nix::over(stock, &agent, &bob_key));
    let shared = Drv::new("shared", "echo running; sleep 4; echo once > $out").expr();
    let own = Drv::new("own", "echo running; while true; do sleep 0.1; done").expr();

    let of_alice = Running::start(&mut alice.build(&shared));
    agent.wait_for("build started");
    let of_bob = Running::start(&mut bob.build(&shared));
    agent.wait_for("build joined");
    let endless = Running::start(&mut alice.build(&own));
    agent.wait_for_event("the start of `own`", |event| {
        event["message"] == "build accepted"
            && event["drv"].as_str().is_some_and(|drv| drv.ends_with("-own.drv"))
    });

    let both = listed(&alice);
    assert_eq!(both.len(), 2, "{both:?}");
    let find = |name: &str| {
        let of_name = |line: &&Value| line["drv"].as_str().is_some_and(|drv| drv.ends_with(name));
        both.iter().find(of_name).expect(name)["id"].clone()
    };
    let (shared_id, own_id) = (find("-shared.drv"), find("-own.drv"));
    let for_bob = listed(&bob);
    assert_eq!((for_bob.len(), &for_bob[0]["id"], &for_bob[0]["member"]), (1, &shared_id, &"bob".into()));
    assert_eq!(for_bob[0]["requests"], 1, "alice's request is not shown to bob");

    // Bob cannot cancel what he does not wait for, and the answer is the same for a build that does not exist.
    for id in [own_id.to_string(), "999999".to_owned()] {
        let refused = command(&bob, &format!("builds cancel {id}")).failed();
        assert_eq!(
            refused.stderr,
            format!("error: no build {id} runs or waits for you; `builds list` has the numbers\n")
        );
    }
    for words in ["builds list --all".to_owned(), format!("builds cancel {own_id} --all")] {
        command(&bob, &words).failed().says(&["`--all` is for maintainers"]);
    }

    command(&alice, &format!("builds cancel {shared_id}")).ok();
    of_alice.finish().failed().says(&["was cancelled"]);
    command(&alice, &format!("builds cancel {own_id}")).ok();
    endless.finish().failed().says(&["was cancelled"]);
    assert_eq!(listed(&alice), Vec::<Value>::new());

    // Bob's request for the same build was not alice's to end.
    let built = of_bob.finish().ok();
    assert!(!outputs(&built)["out"].is_empty());
}
