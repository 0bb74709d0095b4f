//! A builder's output is shown while it runs, and again when it fails.
//!
//! The builders here print a line and then work for longer than any test waits, so that a line that only
//! arrived at the end would never be seen. The test ends them by ending the client.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use e2e::clients::{Nix, Stock};
use e2e::drv::Drv;
use e2e::place;
use e2e::process::{self, Running};
use e2e::stock_server::StockServer;
use serde_json::Value;

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
    // No client waits for it any more.
    let end = alice.agent.wait_for("build finished");
    assert_eq!(end["ok"], false, "{end}");
    assert!(end["error"].as_str().is_some_and(|error| error.contains("cancelled")), "{end}");
    // The resources used until then are logged nevertheless.
    for used in ["cpu_ms", "bytes_in", "bytes_out", "phase_machine_started_ms", "phase_builder_started_ms"] {
        assert!(end[used].as_f64().is_some_and(|number| number > 0.0), "{used} of {end}");
    }
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
    // The build continues for the client that still waits.
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
    // A derivation for each way: otherwise the second request would be answered with the remembered failure.
    for way in 0..alice.ways_to_build("").len() {
        let drv = Drv::new("broken", script).attribute("way", &format!("\"{way}\"")).expr();
        process::run(&mut alice.ways_to_build(&drv)[way]).failed().says(&[
            "-broken.drv' failed with exit code 77",
            // The log as it arrived, from the first line on.
            "broken> line 1\n",
            // Its end again, in the error.
            "> line 30\n",
            "> no oak left",
        ]);
    }
}

/// More than is shown at once, but with everything else less than a pipe holds (64 KiB): ssh makes the stderr
/// that it shares with Nix's build hook non-blocking, and the hook drops what the pipe has no room for, with
/// any server.
const LETTERS: usize = 12_000;

/// A line of two-byte letters that begins at an odd offset, bytes that are not text, and a message to Nix:
/// each longer than the amount that is shown at once.
const LONG: &str = r#"printf x; yes "$(printf '\303\251')" | head -n 12000 | tr -d '\n'; echo
printf 'raw\377\200bytes\n'
printf '@nix {"action":"setPhase","phase":"'; yes p | head -n 9000 | tr -d '\n'; printf '"}\n'
echo and on; echo > $out"#;

pub fn long_lines_are_cut_between_characters_and_messages_nowhere(stock: Stock) {
    let alice = Alice::with(stock);
    for way in 0..alice.ways_to_build("").len() {
        let drv = Drv::new("long", LONG).attribute("way", &format!("\"{way}\"")).expr();
        // Into a file: ssh makes the stderr that it shares with Nix non-blocking, and data that a pipe has no
        // room for is lost.
        let (dir, mut build) = (place::scratch("said"), alice.ways_to_build(&drv).remove(way));
        let said = dir.path().join("stderr");
        let stderr = std::fs::File::create(&said).expect("a file");
        let built = build.stdin(Stdio::null()).stderr(stderr).output().expect("Nix runs");
        let said = String::from_utf8_lossy(&std::fs::read(&said).expect("what it said")).into_owned();
        assert!(built.status.success(), "{said}");
        assert_eq!(said.matches('\u{e9}').count(), LETTERS, "{said}");
        assert!(said.contains("and on"), "{said}");
        assert!(!said.contains("pppppppp"), "a message was shown as text:\n{said}");
        let answer: Value = serde_json::from_slice(&built.stdout).expect("JSON");
        let path = answer[0]["drvPath"].as_str().expect("a derivation");
        let read = alice.nix.ssh().arg(format!("log {path}")).output().expect("ssh");
        let line = [b"x".to_vec(), "\u{e9}".repeat(LETTERS).into_bytes()].concat();
        let kept: Vec<&[u8]> = read.stdout.split(|byte| *byte == b'\n').collect();
        // As the builder wrote it, after the sandbox's first line.
        assert!(kept[1] == line && kept[2] == b"raw\xff\x80bytes" && kept[4] == b"and on");
        assert!(kept[3].starts_with(b"@nix {") && kept[3].ends_with(b"ppp\"}"));
    }
}

/// The same client's stderr with the box and with a stock daemon, over `ssh-ng://`, line by line.
fn beside_a_stock_daemon(stock: Stock, run: impl Fn(&Nix) -> Command) -> [Vec<String>; 2] {
    let alice = Alice::with(stock);
    let server = StockServer::start(&[&alice.key]);
    let there = Nix::at(stock.version, server.port(), &alice.key);
    [&there, &alice.nix].map(|nix| {
        let said = process::run(&mut run(nix));
        println!("{said}");
        said.stderr.lines().map(str::to_owned).filter(|line| !is_of_one_server(line)).collect()
    })
}

/// Whether the line is a message of ssh or of the box about itself.
fn is_of_one_server(line: &str) -> bool {
    line.starts_with("Warning: Permanently added")
        || line == "testbox: a Barnraiser community builder"
        || line.contains("warning: builds run in the namespace sandbox")
        || line.contains("barnraiser: building in a namespace sandbox")
}

const SPEAKS: &str = "echo to stdout; echo to stderr >&2; echo; echo '  indented'; echo > $out";

pub fn a_build_looks_as_with_a_stock_daemon(stock: Stock) {
    if !stock.builds_at_the_box() {
        return;
    }
    let plank = Drv::new("plank", "echo sawing; echo > $out");
    let barn = Drv::new("barn", SPEAKS).input("plank", &plank).expr();
    for run in [Nix::build_at_box, Nix::build_through_builders] {
        let [stocks, ours] = beside_a_stock_daemon(stock, |nix| run(nix, &barn));
        assert_eq!(ours, stocks);
    }
}

/// The words of the error differ between versions of Nix; the box uses those of 2.8 to 2.26.
pub fn a_failing_build_looks_as_with_a_stock_daemon(stock: Stock) {
    if !stock.builds_at_the_box() {
        return;
    }
    let broken =
        Drv::new("broken", "i=1; while [ $i -le 30 ]; do echo line $i; i=$((i + 1)); done; exit 77").expr();
    for run in [Nix::build_at_box, Nix::build_through_builders] {
        let [stocks, ours] = beside_a_stock_daemon(stock, |nix| run(nix, &broken)).map(|lines| {
            let error = lines.iter().position(|line| line.starts_with("error: ")).expect("an error");
            let (before, error) = lines.split_at(error);
            (before.to_vec(), error.to_vec())
        });
        assert_eq!(ours.0, stocks.0, "all that comes before the error");
        for error in [&ours.1, &stocks.1] {
            let last: Vec<&str> = error.iter().filter_map(|line| line.trim().strip_prefix("> ")).collect();
            assert!(error.iter().any(|line| line.contains("failed with exit code 77")), "{error:?}");
            assert!(last.len() >= 10 && last.last() == Some(&"line 30"), "{error:?}");
        }
    }
}

/// Kinds of activities and results, by Nix's numbers (`src/libutil/include/nix/util/logging.hh`).
fn kinds(lines: &[String]) -> BTreeSet<(String, u64)> {
    let events = lines.iter().filter_map(|line| line.strip_prefix("@nix "));
    let events = events.map(|event| serde_json::from_str::<Value>(event).expect("JSON"));
    events.filter_map(|event| Some((event["action"].as_str()?.to_owned(), event["type"].as_u64()?))).collect()
}

pub fn the_activities_of_a_build_are_those_of_a_stock_daemon(stock: Stock) {
    if !stock.builds_at_the_box() {
        return;
    }
    let barn = Drv::new("barn", SPEAKS).expr();
    let [stocks, ours] = beside_a_stock_daemon(stock, |nix| {
        let mut build = nix.build_at_box(&barn);
        build.args(["--log-format", "internal-json", "-v"]);
        build
    });
    let (stocks, ours) = (kinds(&stocks), kinds(&ours));
    // A build, and a line of its log.
    for kind in [("start", 105), ("result", 101)] {
        assert!(ours.contains(&(kind.0.to_owned(), kind.1)), "{ours:?}");
    }
    assert!(ours.is_subset(&stocks), "{ours:?} are not all of {stocks:?}");
    // No client shows these: a whole request, its expected results, and the daemon's query of its own store.
    let unseen = [("start", 102), ("result", 106), ("start", 0)].map(|(what, kind)| (what.to_owned(), kind));
    let missing: Vec<_> = stocks.difference(&ours).filter(|kind| !unseen.contains(kind)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
