//! A drained box: stock clients build elsewhere, and read why.

use e2e::agent::Agent;
use e2e::clients::{Nix, Stock, outputs};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process::{Running, run};
use e2e::roster;

const WHY: &str = "the box is drained since ";

/// A box with a member and a maintainer.
struct Box {
    agent: Agent,
    _keys: (Key, Key),
    alice: Nix,
    carol: Nix,
}

impl Box {
    fn with(stock: Stock) -> Self {
        let keys = (Key::new("alice"), Key::new("carol"));
        let members = [("alice", &keys.0), ("carol", &keys.1)];
        let agent = Agent::start(&members);
        let mut roster = roster::roster(&members);
        roster["members"][1]["role"] = "maintainer".into();
        agent.set_roster_to(&roster);
        let (alice, carol) = (Nix::over(stock, &agent, &keys.0), Nix::over(stock, &agent, &keys.1));
        while !run(carol.ssh().arg("whoami")).ok().stdout.contains("maintainer") {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self { agent, _keys: keys, alice, carol }
    }

    fn maintain(&self, words: &str) -> String {
        run(self.carol.ssh().arg(words)).ok().stdout
    }
}

pub fn builders_pass_over_a_drained_box_and_others_are_told_why(stock: Stock) {
    let barn = Box::with(stock);
    barn.maintain("drain --reason 'a new disk'");
    let drv = Drv::new("elsewhere", "echo built > $out").expr();

    let built = run(barn.alice.build_through_builders(&drv).args(["--max-jobs", "1"])).ok();
    assert_eq!(
        std::fs::read_to_string(barn.alice.local(&outputs(&built)["out"])).expect("a file"),
        "built\n"
    );
    built.says(&[WHY, "(by carol: a new disk)"]);
    assert_eq!(barn.agent.count("build accepted"), 0);

    let nowhere = Drv::new("nowhere", "echo built > $out").expr();
    for command in &mut [barn.alice.build(&nowhere), barn.alice.build_through_builders(&nowhere)] {
        run(command).failed().says(&[WHY, "(by carol: a new disk)", "BARNRAISER_WHILE_DRAINED=1"]);
    }
    let status = run(barn.alice.ssh().arg("status")).ok().stdout;
    assert!(status.lines().any(|line| line.starts_with("drained  ") && line.contains(WHY)), "{status}");

    barn.maintain("undrain");
    run(&mut barn.alice.build(&nowhere)).ok();
    assert_eq!(barn.agent.count("build accepted"), 1);
}

pub fn what_runs_ends_well_and_what_is_there_can_be_fetched_from_a_drained_box(stock: Stock) {
    let mut barn = Box::with(stock);
    let running =
        Running::start(&mut barn.alice.build(&Drv::new("long", "sleep 3; echo done > $out").expr()));
    barn.agent.wait_for("build started");
    barn.maintain("drain");
    let built = running.finish().ok();

    let other = barn.alice.other_store();
    let path = &outputs(&built)["out"];
    let fetch = ["copy", "--no-check-sigs", "--from", other.store(), path];
    other.run(fetch).failed().says(&[WHY]);
    barn.alice.set_for_box("BARNRAISER_WHILE_DRAINED=1");
    let other = barn.alice.other_store();
    other.run(fetch).ok();
    assert_eq!(std::fs::read_to_string(other.local(path)).expect("a file"), "done\n");
    let refused = run(&mut barn.alice.build(&Drv::new("new", "echo new > $out").expr())).failed();
    refused.says(&["is not built: the box is drained since "]);
}
