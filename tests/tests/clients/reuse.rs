//! Equal requests share one build: its owner, the requests that join it, and what other members see of it.
//!
//! An expression gives the same derivation on two machines, so two members who build it request the same
//! build.

use e2e::clients::{Nix, Stock, outputs};
use e2e::drv::Drv;
use e2e::process::{self, Running};
use e2e::shared_box::SharedBox;

struct Pair {
    shared_box: SharedBox,
    alice: Nix,
    bob: Nix,
}

impl Pair {
    fn with(stock: Stock) -> Self {
        let shared_box = SharedBox::of(&["alice", "bob"]);
        let (alice, bob) = (shared_box.machine("alice", stock), shared_box.machine("bob", stock));
        Self { shared_box, alice, bob }
    }
}

fn built(nix: &Nix, drv: &Drv) -> String {
    outputs(&process::run(&mut nix.build(&drv.expr())).ok())["out"].clone()
}

/// A derivation with another as input, so that paths have to be computed through both.
fn frame() -> Drv {
    let beams = Drv::new("beams", "echo oak > $out");
    Drv::new("frame", "read wood < $beams; echo frame of $wood > $out").input("beams", &beams)
}

pub fn the_second_members_equal_build_does_not_run(stock: Stock) {
    let pair = Pair::with(stock);
    let path = built(&pair.alice, &frame());
    assert_eq!(pair.shared_box.agent.count("build started"), 2);
    assert_eq!(built(&pair.bob, &frame()), path);
    assert_eq!(pair.shared_box.agent.count("build started"), 2);
    pair.bob.run(["copy", "--no-check-sigs", "--from", pair.bob.store(), &path]).ok();
    assert_eq!(std::fs::read_to_string(pair.bob.local(&path)).expect("the result"), "frame of oak\n");
}

/// A result that the box built from whole derivations is for everybody, and signed.
pub fn what_was_built_from_whole_derivations_is_signed_and_valid_for_everybody(stock: Stock) {
    if !stock.builds_at_the_box() {
        // Without the input derivations the box cannot compute paths; `privacy` tests that case.
        return;
    }
    let pair = Pair::with(stock);
    let path = built(&pair.alice, &frame());
    let info = pair.bob.run(["path-info", "--json", "--store", pair.bob.store(), &path]).ok();
    assert!(info.stdout.contains("\"testbox"), "signed by the box:\n{info}");
    // And a client needs only the key that the box prints.
    let key = process::run(pair.bob.ssh().arg("signing-key")).ok().stdout;
    let trusted = ["--option", "trusted-public-keys", key.trim()];
    pair.bob.run([&["copy", "--from", pair.bob.store(), &path][..], &trusted].concat()).ok();
}

pub fn a_failure_is_told_again_to_another_member(stock: Stock) {
    let pair = Pair::with(stock);
    let broken = Drv::new("broken", "echo no oak left; exit 7").expr();
    process::run(&mut pair.alice.build(&broken)).failed().says(&["failed with exit code 7"]);
    process::run(&mut pair.bob.build(&broken)).failed().says(&[
        "failed with exit code 7",
        "no oak left",
        "BARNRAISER_REUSE_FAILURES=0",
    ]);
    assert_eq!(pair.shared_box.agent.count("build started"), 1);
}

pub fn another_member_joins_a_running_build_which_goes_on_when_the_first_leaves(stock: Stock) {
    let pair = Pair::with(stock);
    let endless = Drv::new("endless", "echo first line; while true; do sleep 0.1; done").expr();
    let first = Running::start(&mut pair.alice.build(&endless));
    first.wait_for("first line");
    let mut second = Running::start(&mut pair.bob.build(&endless));
    second.wait_for("first line");
    assert_eq!(pair.shared_box.agent.count("build started"), 1);
    first.kill();
    pair.shared_box.agent.wait_for("build handed over");
    assert!(second.is_running());
    assert_eq!(pair.shared_box.agent.count("build finished"), 0);
    second.kill();
    let end = pair.shared_box.agent.wait_for("build finished");
    assert_eq!(end["ok"], false, "{end}");
}

pub fn a_rebuild_that_differs_is_reported_in_nixs_words(stock: Stock) {
    if !stock.builds_at_the_box() {
        return;
    }
    let pair = Pair::with(stock);
    let same = Drv::new("same", "echo same > $out");
    let path = built(&pair.alice, &same);
    process::run(pair.alice.build(&same.expr()).arg("--rebuild")).ok();
    let differs = Drv::new("differs", "read uptime rest < /proc/uptime; echo $uptime > $out");
    built(&pair.alice, &differs);
    process::run(pair.alice.build(&differs.expr()).arg("--rebuild"))
        .failed()
        .says(&["may not be deterministic: output '/nix/store/"]);
    assert_eq!(pair.shared_box.agent.count("build started"), 4);
    pair.alice.run(["path-info", "--store", pair.alice.store(), &path]).ok();
}

pub fn a_log_can_be_read_afterwards_by_those_who_may_see_the_build(stock: Stock) {
    let pair = Pair::with(stock);
    let told =
        process::run(&mut pair.alice.build(&Drv::new("told", "echo sawing; echo x > $out").expr())).ok();
    let answer: serde_json::Value = serde_json::from_str(&told.stdout).expect("JSON");
    let path = answer[0]["drvPath"].as_str().expect("a derivation").to_owned();
    let read = |nix: &Nix| process::run(nix.ssh().arg(format!("log {path}")));
    let log = read(&pair.alice).ok().stdout;
    // The first line is the sandbox's.
    assert_eq!(log.lines().skip(1).collect::<Vec<_>>(), ["sawing"]);
    if stock.builds_at_the_box() {
        // A whole derivation with Verified inputs: everybody's own build would have printed the same.
        assert_eq!(read(&pair.bob).ok().stdout, log);
    } else {
        // The result of a bare recipe: other members do not see its log.
        read(&pair.bob).failed().says(&["there is no log of"]);
    }
}
