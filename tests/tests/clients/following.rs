//! `builds show`, `builds log` and `builds watch`: one build of a stock client, while it runs.

use e2e::agent::Agent;
use e2e::clients::{Nix, Stock};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process::{Running, run};
use serde_json::Value;

pub fn a_member_follows_a_build_of_their_own_and_nobody_elses(stock: Stock) {
    let (alice_key, bob_key) = (Key::new("alice"), Key::new("bob"));
    let agent = Agent::start(&[("alice", &alice_key), ("bob", &bob_key)]);
    let (alice, bob) = (Nix::over(stock, &agent, &alice_key), Nix::over(stock, &agent, &bob_key));
    let command = |nix: &Nix, words: String| run(nix.ssh().arg(words));
    let started = |nix: &Nix, words: String| Running::start(nix.ssh().arg(words));

    // It ends when the test has seen what it came for.
    let script = "echo first line; while true; do sleep 0.1; done";
    let building = Running::start(&mut alice.build(&Drv::new("followed", script).expr()));
    agent.wait_for("build started");
    let listed: Value =
        serde_json::from_str(&command(&alice, "builds list --json".into()).ok().stdout).expect("JSON");
    let id = listed[0]["id"].as_u64().expect("a number");
    let following = started(&alice, format!("builds log {id}"));
    let watching = started(&alice, format!("builds watch {id} --json"));
    following.wait_for_stdout("first line\n");
    watching.wait_for_stdout("\"event\":\"running\"");

    let shown: Value =
        serde_json::from_str(&command(&alice, format!("builds show {id} --json")).ok().stdout).expect("JSON");
    assert_eq!((shown["state"].as_str(), shown["requests"].as_u64()), (Some("running"), Some(1)), "{shown}");
    assert!(shown["log_bytes"].as_u64() >= Some("first line\n".len() as u64), "{shown}");
    assert!(shown["processors"].as_u64() >= Some(1) && shown["memory_mib"].as_u64() > Some(1), "{shown}");
    assert!(shown["drv"].as_str().is_some_and(|drv| drv.ends_with("-followed.drv")), "{shown}");

    // The answer is the same as for a build that does not exist.
    for words in ["show", "log", "watch", "cancel"] {
        let said = |id: u64| command(&bob, format!("builds {words} {id}")).failed().stderr;
        assert_eq!(said(id), said(id + 1000).replace(&(id + 1000).to_string(), &id.to_string()));
    }
    command(&alice, format!("builds cancel {id}")).ok();
    building.finish().failed().says(&["was cancelled"]);
    let followed = following.finish().ok().stdout;
    assert!(followed.ends_with("first line\n"), "{followed}");
    let watched = watching.finish().failed();
    assert!(watched.answer().contains("\"event\":\"ended\""), "{watched}");
}

pub fn a_watched_build_that_is_built_ends_the_watch(stock: Stock) {
    let key = Key::new("alice");
    let agent = Agent::start(&[("alice", &key)]);
    let alice = Nix::over(stock, &agent, &key);
    let building = Running::start(&mut alice.build(&Drv::new("watched", "sleep 3; echo done > $out").expr()));
    let id = agent.wait_for("build started")["build"].as_u64().expect("a number");
    let watched = run(alice.ssh().arg(format!("builds watch {id}"))).ok();
    building.finish().ok();
    assert!(
        watched.answer().contains("  built  ") && watched.answer().ends_with("-watched.drv"),
        "{watched}"
    );
}
