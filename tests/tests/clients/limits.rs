//! A limit that the roster sets for a member, as stock Nix shows it, and a higher one.

use e2e::PATIENCE;
use e2e::drv::Drv;
use e2e::process;
use serde_json::{Value, json};

use crate::Alice;
use e2e::clients::Stock;

impl Alice {
    /// Sets her limits in the roster; returns when the agent uses them.
    fn limit(&self, limits: Value) {
        let mut roster = e2e::roster::roster(&[("alice", &self.key)]);
        roster["members"][0]["limits"] = limits;
        let loaded = || self.agent.count("roster loaded");
        let before = loaded();
        self.agent.set_roster_to(&roster);
        let deadline = std::time::Instant::now() + PATIENCE;
        while loaded() == before {
            assert!(std::time::Instant::now() < deadline, "the roster is not loaded");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

pub fn a_limit_of_the_roster_is_named_with_who_set_it_and_a_higher_one_counts_at_once(stock: Stock) {
    let alice = Alice::with(stock);
    std::fs::write(alice.nix.home().join("planks"), vec![b'p'; 3 << 20]).expect("written");
    let path = alice.nix.run(["store", "add-path", "./planks", "--name", "planks"]).ok().answer().to_owned();
    let upload = || alice.nix.run(["copy", "--to", alice.nix.store(), &path]);
    alice.limit(json!({ "max-upload-mib": 1, "max-output-mib": 1 }));
    let ask = "ask a maintainer of the roster for more";
    upload().failed().says(&["one upload may have 1048576 (your `max-upload-mib` in the roster)", ask]);
    let drv = Drv::new("planed", "yes planed | head -c 3000000 > $out").expr();
    for mut build in alice.ways_to_build(&drv) {
        process::run(&mut build)
            .failed()
            .says(&["are larger than 1048576 bytes (your `max-output-mib` in the roster)", ask]);
    }

    alice.limit(json!({ "max-upload-mib": 4, "max-output-mib": 4 }));
    upload().ok();
    process::run(&mut alice.nix.build(&drv)).ok();

    alice.limit(json!({ "max-cpu-hours-per-month": 1, "max-connections": 1, "max-sessions": 1 }));
    let limits = process::run(alice.nix.ssh().arg("whoami")).ok().stdout.clone();
    assert!(limits.contains("max-sessions        1 sessions, set by the roster\n"), "{limits}");
}
