//! What builders print is seen while they run, and again when they fail.
//!
//! The builders here print a line and then work for longer than any test waits, so that a line which only arrived at
//! the end would never be seen. The test ends them by ending the client.

use std::process::Command;

use e2e::clients::Stock;
use e2e::drv::Drv;
use e2e::process::{self, Running};

use crate::Alice;

const LINE: &str = "the beams are up";

fn endless(name: &str) -> String {
    Drv::new(name, &format!("echo {LINE}; while true; do sleep 0.1; done")).expr()
}

pub fn a_log_line_arrives_while_the_build_runs_at_the_box(stock: Stock) {
    let alice = Alice::with(stock);
    let mut build = alice.nix.build_at_box(&endless("live"));
    if !stock.builds_at_the_box() {
        return alice.refuses_by_itself(process::run(&mut build));
    }
    sees_the_line_and_takes_the_build_along(&alice, &mut build);
}

pub fn a_log_line_arrives_while_the_build_runs_through_builders(stock: Stock) {
    let alice = Alice::with(stock);
    sees_the_line_and_takes_the_build_along(&alice, &mut alice.nix.build_through_builders(&endless("live")));
}

fn sees_the_line_and_takes_the_build_along(alice: &Alice, build: &mut Command) {
    let mut client = Running::start(build);
    client.wait_for(&format!("live> {LINE}"));
    assert!(client.is_running());
    assert_eq!(alice.agent.count("build finished"), 0);
    client.kill();
    // Nobody waits for it any more.
    let end = alice.agent.wait_for("build finished");
    assert_eq!(end["ok"], false, "{end}");
    assert!(end["error"].as_str().is_some_and(|error| error.contains("cancelled")), "{end}");
}

pub fn a_second_client_joins_a_running_build_and_sees_its_log(stock: Stock) {
    let alice = Alice::with(stock);
    let second_machine = alice.other_machine();
    let expression = endless("joined");
    let first = Running::start(&mut alice.nix.build(&expression));
    first.wait_for(LINE);
    let mut second = Running::start(&mut second_machine.build(&expression));
    second.wait_for(LINE);
    assert_eq!(alice.agent.count("build started"), 1);
    // The build belongs to whoever still waits for it.
    first.kill();
    alice.wait_for_the_end_of_a_session();
    assert!(second.is_running());
    assert_eq!(alice.agent.count("build finished"), 0);
    second.kill();
    alice.agent.wait_for("build finished");
}

pub fn a_failing_builder_shows_its_status_and_last_lines(stock: Stock) {
    let alice = Alice::with(stock);
    let script =
        "i=1; while [ $i -le 30 ]; do echo line $i; i=$((i + 1)); done; echo no oak left >&2; exit 77";
    // A derivation for each way: the same one would be answered with the failure that is known by then.
    for way in 0..alice.ways_to_build("").len() {
        let drv = Drv::new("broken", script).attribute("way", &format!("\"{way}\"")).expr();
        process::run(&mut alice.ways_to_build(&drv)[way]).failed().says(&[
            "-broken.drv' failed with exit code 77",
            // The log as it came, from the first line on.
            "broken> line 1\n",
            // The end of it again, in the error.
            "> line 30\n",
            "> no oak left",
        ]);
    }
}
