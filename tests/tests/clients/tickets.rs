//! A friend of a member builds with a ticket, with stock ssh and Nix, and without a key that the box knows.

use e2e::clients::{Bringing, Nix, Protocol, Stock, outputs};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process;

use crate::Alice;

/// A path that the box does not have.
const NOWHERE: &str = "/nix/store/00000000000000000000000000000000-x";

impl Alice {
    /// The token of a new ticket, and the identity of its holder.
    fn ticket(&self, options: &str) -> (String, String) {
        let made = process::run(self.nix.ssh().arg(format!("ticket create --json {options}"))).ok();
        let made: serde_json::Value = serde_json::from_str(&made.stdout).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        (text(&made["token"]), format!("ticket:{}", text(&made["ticket"]["id"])))
    }
}

pub fn a_friend_builds_with_a_ticket_and_gets_the_result(stock: Stock) {
    let (alice, key) = (Alice::with(stock), Key::new("friend"));
    for (number, how) in [Bringing::Environment, Bringing::Askpass].into_iter().enumerate() {
        let (token, id) = alice.ticket(&format!("--name friend-{number}"));
        let mut friend = Nix::over(stock, &alice.agent, &key);
        friend.bring(&token, how);
        let drv = Drv::new(&format!("beam-{number}"), "echo oak > $out").expr();
        if how == Bringing::Askpass && !stock.builds_at_the_box() {
            // Nix removes SSH_ASKPASS from the environment of builds through `--builders` (src/build-remote: `main`).
            // The box says what is missing, and the same way works for all that Nix itself connects for.
            process::run(&mut friend.build(&drv)).failed().says(&["this login needs a ticket"]);
            process::run(&mut friend.closure_at_box(NOWHERE)).failed();
            alice.agent.wait_for_event("the login", |event| {
                event["message"] == "logged in" && event["ticket"] == *id
            });
            continue;
        }
        let built = outputs(&process::run(&mut friend.build(&drv)).ok())["out"].clone();
        if stock.builds_at_the_box() {
            // The holder reads what was built.
            assert!(process::run(&mut friend.closure_at_box(&built)).ok().stdout.contains(&built));
        } else {
            assert_eq!(std::fs::read_to_string(friend.local(&built)).expect("the result"), "oak\n");
        }
        // The ticket was for one build.
        let another = Drv::new(&format!("another-{number}"), "echo ash > $out").expr();
        let refused = process::run(&mut friend.build(&another)).failed();
        assert!(refused.stderr.contains("was for 1 builds (`--uses`)"), "{how:?}: {refused}");
    }
    let builds = if stock.builds_at_the_box() { 2 } else { 1 };
    assert_eq!(alice.agent.count("build started"), builds);
}

pub fn a_friend_builds_through_builders_until_the_ticket_is_revoked(stock: Stock) {
    let (alice, key) = (Alice::with(stock), Key::new("friend"));
    let (token, _) = alice.ticket("--name friend --uses unlimited");
    let mut friend = Nix::over(stock, &alice.agent, &key);
    friend.bring(&token, Bringing::Environment);
    let out = outputs(
        &process::run(&mut friend.build_through_builders(&Drv::new("beam", "echo oak > $out").expr())).ok(),
    )["out"]
        .clone();
    assert_eq!(std::fs::read_to_string(friend.local(&out)).expect("the result"), "oak\n");

    let endless = Drv::new("endless", "echo sawing; while :; do sleep 1; done").expr();
    let mut build = friend.build_through_builders(&endless);
    let running = process::Running::start(&mut build);
    running.wait_for("sawing");
    process::run(alice.nix.ssh().arg("ticket revoke friend")).ok();
    running.finish().failed();
    alice.agent.wait_for_event("the end of the build", |event| {
        event["message"] == "build finished"
            && event["error"].as_str().is_some_and(|text| text.contains("was cancelled"))
    });
}

pub fn a_ticket_for_reading_copies_what_everybody_sees_and_builds_nothing(stock: Stock) {
    let (alice, key) = (Alice::with(stock), Key::new("friend"));
    let (token, _) = alice.ticket("--name reader --scope read");
    let mut friend = Nix::over(stock, &alice.agent, &key);
    friend.bring(&token, Bringing::Environment);
    let drv = Drv::new("beam", "echo oak > $out").expr();
    let refused = process::run(&mut friend.build(&drv)).failed();
    assert!(refused.stderr.contains("the ticket `reader`, which is for reading only"), "{refused}");
    assert_eq!(alice.agent.count("build started"), 0);

    // Built from a whole derivation, so everybody sees the result.
    let builds = Nix::over(Stock { protocol: Protocol::SshNg, ..stock }, &alice.agent, &alice.key);
    let out = outputs(&process::run(&mut builds.build_at_box(&drv)).ok())["out"].clone();
    friend.run(["copy", "--from", friend.store(), &out, "--no-check-sigs"]).ok();
    assert_eq!(std::fs::read_to_string(friend.local(&out)).expect("the result"), "oak\n");
    if stock.builds_at_the_box() {
        // The derivation is here, and all that it needs.
        let at_box = |words: &[&str]| {
            let mut command = friend.command("nix-store");
            command.args(["--store", friend.store()]).args(words);
            process::run(&mut command)
        };
        let drv = at_box(&["--query", "--deriver", &out]).ok().answer().to_owned();
        let refused = at_box(&["--realise", "--check", &drv]).failed();
        assert!(
            refused.stderr.contains("the ticket `reader` is for reading only (`--scope read`)"),
            "{refused}"
        );
        assert_eq!(alice.agent.count("build started"), 1);
    }
}
