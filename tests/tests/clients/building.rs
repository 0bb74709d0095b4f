//! Derivations are built, in the box's own store and through `--builders`, and results come back.

use e2e::agent::Setup;
use e2e::clients::{Nix, Stock, outputs};
use e2e::drv::{Drv, quoted};
use e2e::keys::Key;
use e2e::process::{self, Running};
use serde_json::Value;

use crate::Alice;

/// Three derivations; the others use the two outputs of the first separately.
fn chain() -> Drv {
    let beams = Drv::new("beams", "mkdir $out $dev; echo oak > $out/wood; echo plan > $dev/drawing")
        .outputs(&["dev"]);
    let frame = Drv::new("frame", "mkdir $out; cat $plan/drawing > $out/done; echo frame >> $out/done")
        .attribute("plan", &format!("{}.dev", beams.expr()));
    Drv::new("barn", "mkdir $out; cat $frame/done $beams/wood > $out/barn; echo $frame > $out/needs")
        .input("frame", &frame)
        .input("beams", &beams)
}

const BARN: &str = "plan\nframe\noak\n";

pub fn a_chain_of_derivations_builds_at_the_box_and_its_result_is_read_back(stock: Stock) {
    let alice = Alice::with(stock);
    let built = process::run(&mut alice.nix.build_at_box(&chain().expr()));
    if !stock.builds_at_the_box() {
        return alice.refuses_by_itself(built);
    }
    let out = outputs(&built.ok())["out"].clone();
    assert_eq!(alice.agent.count("build started"), 3);
    assert!(!alice.nix.local(&out).exists(), "built at the box, not here");
    let frame = the_frame_it_needs(&alice, &out);

    let other = alice.other_machine();
    // The box signs results that it built from whole derivations.
    let key = process::run(other.ssh().arg("signing-key")).ok().stdout;
    other.run(["copy", "--from", other.store(), &out, "--option", "trusted-public-keys", key.trim()]).ok();
    assert_eq!(std::fs::read_to_string(other.local(&out).join("barn")).expect("the result"), BARN);
    // The reference was found, so the closure was copied, too.
    assert!(other.local(&frame).join("done").exists());
}

pub fn a_chain_of_derivations_builds_through_builders(stock: Stock) {
    let alice = Alice::with(stock);
    let out =
        outputs(&process::run(&mut alice.nix.build_through_builders(&chain().expr())).ok())["out"].clone();
    assert_eq!(alice.agent.count("build started"), 3);
    assert_eq!(std::fs::read_to_string(alice.nix.local(&out).join("barn")).expect("the result"), BARN);
    the_frame_it_needs(&alice, &out);
}

/// Asks the box for the references of the barn: it must be exactly the frame that it names.
fn the_frame_it_needs(alice: &Alice, out: &str) -> String {
    let closure = process::run(&mut alice.nix.closure_at_box(out)).ok();
    let mut others: Vec<&str> = closure.stdout.lines().filter(|path| *path != out).collect();
    assert_eq!(others.len(), 1, "{closure}");
    assert!(others[0].ends_with("-frame"), "{closure}");
    others.remove(0).to_owned()
}

pub fn sources_of_the_client_reach_the_builder(stock: Stock) {
    let alice = Alice::with(stock);
    std::fs::create_dir(alice.nix.home().join("source")).expect("a folder");
    std::fs::write(alice.nix.home().join("source/hello.txt"), "from home\n").expect("a file");
    let drv = |name| Drv::new(name, "cat $src/hello.txt > $out").attribute("src", "/root/source");
    let out =
        outputs(&process::run(&mut alice.nix.build_through_builders(&drv("one").expr())).ok())["out"].clone();
    assert_eq!(std::fs::read_to_string(alice.nix.local(&out)).expect("the result"), "from home\n");
    if !stock.builds_at_the_box() {
        return;
    }
    let out = outputs(&process::run(&mut alice.nix.build_at_box(&drv("two").expr())).ok())["out"].clone();
    alice.nix.run(["copy", "--no-check-sigs", "--from", alice.nix.store(), &out]).ok();
    assert_eq!(std::fs::read_to_string(alice.nix.local(&out)).expect("the result"), "from home\n");
}

pub fn a_derivation_for_another_system_is_refused_naming_both(stock: Stock) {
    let alice = Alice::with(stock);
    let expression = Drv::new("arm", "echo > $out").system("aarch64-linux").expr();
    if stock.builds_at_the_box() {
        let said = process::run(&mut alice.nix.build_at_box(&expression)).failed();
        said.says(&["'aarch64-linux'", "'x86_64-linux'"]);
    }
    // A client with a wrong system for this box in its configuration.
    let wrong = format!("{} aarch64-linux /root/keys/key 4", alice.nix.store());
    alice
        .nix
        .run(["build", "--builders", &wrong, "--max-jobs", "0", "--no-link", "--expr", &expression])
        .failed()
        .says(&["'aarch64-linux'", "'x86_64-linux'"]);
    assert_eq!(alice.agent.count("build started"), 0);
}

/// A derivation with a fixed output: the hash of these contents.
fn fixed(name: &str, script: &str, announced: &str) -> Drv {
    Drv::new(name, script)
        .attribute("outputHashMode", "\"flat\"")
        .attribute("outputHashAlgo", "\"sha256\"")
        .attribute("outputHash", &format!("builtins.hashString \"sha256\" {}", quoted(announced)))
}

pub fn a_fixed_output_with_another_hash_is_refused(stock: Stock) {
    let alice = Alice::with(stock);
    let drv = fixed("tarball", "echo something else > $out", "as announced\n").expr();
    for mut build in alice.ways_to_build(&drv) {
        process::run(&mut build).failed().says(&[
            "hash mismatch in fixed-output derivation",
            "specified:",
            "got:",
        ]);
    }
}

pub fn a_fixed_output_with_the_right_hash_is_accepted(stock: Stock) {
    let alice = Alice::with(stock);
    let drv = fixed("tarball", "echo as announced > $out", "as announced\n").expr();
    let out = outputs(&process::run(&mut alice.nix.build(&drv)).ok())["out"].clone();
    // It is content-addressed, so it needs no signature.
    let other = alice.other_machine();
    other.run(["copy", "--from", other.store(), &out]).ok();
    assert_eq!(std::fs::read_to_string(other.local(&out)).expect("the result"), "as announced\n");
}

pub fn clients_that_ask_at_once_share_one_build(stock: Stock) {
    let alice = Alice::with(stock);
    let machines = [alice.other_machine(), alice.other_machine(), alice.other_machine()];
    let drv = Drv::new("shared", "sleep 1; echo once > $out").expr();
    let running: Vec<Running> = machines.iter().map(|nix| Running::start(&mut nix.build(&drv))).collect();
    let results: Vec<_> = running.into_iter().map(|client| outputs(&client.finish().ok())).collect();
    assert_eq!(results[0], results[1]);
    assert_eq!(results[1], results[2]);
    assert_eq!(alice.agent.count("build started"), 1);
}

pub fn what_does_not_need_a_failed_build_is_built_all_the_same(stock: Stock) {
    // With `--builders` a client requests each build separately, and stops by itself.
    if !stock.builds_at_the_box() {
        return;
    }
    for goes_on in [true, false] {
        let key = Key::new("alice");
        let setup = if goes_on { Setup::default() } else { Setup::default().setting("keep-going = false") };
        let agent = setup.start(&[("alice", &key)]);
        let nix = Nix::over(stock, &agent, &key);
        let good = Drv::new("good", "sleep 2; echo good > $out");
        let both = Drv::new("both", "echo > $out").input("good", &good);
        let both = both.input("bad", &Drv::new("bad", "exit 1")).expr();
        process::run(nix.build_at_box(&both).arg("--keep-going")).failed().says(&["bad"]);
        assert_eq!(agent.count("build started"), 2);
        process::run(&mut nix.build_at_box(&good.expr())).ok();
        let again = usize::from(!goes_on);
        assert_eq!(agent.count("build started"), 2 + again, "keep-going = {goes_on}");
    }
}

/// A client opens one ssh connection for each build of `--builders`.
pub fn a_builder_with_forty_slots_takes_forty_builds_of_one_member_at_once(stock: Stock) {
    let key = Key::new("alice");
    // Half of them wait for a slot, with their connections open.
    let agent = Setup::default().setting("limits.max-jobs = 20").start(&[("alice", &key)]);
    let nix = Nix::over(stock, &agent, &key);
    let parts: String = (0..40)
        .map(|n| Drv::new(&format!("part-{n}"), &format!("sleep 1; echo {n} > $out")).expr())
        .collect();
    let all = Drv::new("all", "cat $parts > $out").attribute("parts", &format!("[ {parts} ]"));
    let mut command = nix.command("nix");
    let builders = format!("{} x86_64-linux /root/keys/key 40", nix.store());
    command.args(["build", "--builders", &builders, "--max-jobs", "0", "--no-link", "--json", "--impure"]);
    let built = process::run(command.args(["--expr", &all.expr()])).ok();
    assert!(!built.stderr.contains("cannot build on"), "{built}");
    let result = std::fs::read_to_string(nix.local(&outputs(&built)["out"])).expect("the result");
    assert_eq!(result.lines().count(), 40, "{result}");
    assert_eq!(agent.count("build started"), 41);
}

pub fn a_build_that_waits_for_a_slot_says_why(stock: Stock) {
    let key = Key::new("alice");
    let agent = Setup::default().setting("limits.max-jobs = 1").start(&[("alice", &key)]);
    let nix = Nix::over(stock, &agent, &key);
    for protocol in ["store", "builders"] {
        let build = |name: &str, script: &str| {
            let expr = Drv::new(&format!("{protocol}-{name}"), script).expr();
            match protocol {
                "store" => nix.build_at_box(&expr),
                _ => nix.build_through_builders(&expr),
            }
        };
        if protocol == "store" && !stock.builds_at_the_box() {
            continue;
        }
        // Much longer than a build waits before it says so.
        let long = Running::start(&mut build("long", "sleep 8; echo > $out"));
        agent.wait_for_event("the start of the long build", |event| {
            let drv = event["drv"].as_str().unwrap_or_default();
            event["message"] == "build started" && drv.ends_with(&format!("-{protocol}-long.drv"))
        });
        let waited = process::run(build("short", "echo > $out").arg("--print-build-logs")).ok();
        assert!(waited.stderr.contains("builds run in all 1 slots of the box"), "{protocol}: {waited}");
        long.finish().ok();
    }
}

pub fn what_a_build_used_is_charged_to_its_member(stock: Stock) {
    let alice = Alice::with(stock);
    let work = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; echo sawing; echo sawn > $out";
    process::run(&mut alice.nix.build_through_builders(&Drv::new("used", work).expr())).ok();
    let finished = alice.agent.wait_for("build finished");
    let said = process::run(alice.nix.ssh().args(["usage", "--json"])).ok().stdout;
    let report: Value = serde_json::from_str(&said).expect("JSON");
    let used = &report["usage"][0];
    let number = |name: &str| used[name].as_f64().unwrap_or_else(|| panic!("{name} of {report}"));
    assert_eq!((number("builds"), number("failed_builds")), (1.0, 0.0), "{report}");
    // The ledger has whole milliseconds.
    let logged = finished["cpu_ms"].as_f64().expect("processor time") / 1e3;
    assert!(
        number("cpu_seconds") > 0.0 && (number("cpu_seconds") - logged).abs() < 0.0015,
        "{logged}: {report}"
    );
    for some in ["wall_seconds", "memory_mib_seconds", "bytes_up", "bytes_down"] {
        assert!(number(some) > 0.0, "{some} of {report}");
    }
    assert!(number("log_bytes") >= 7.0, "{report}");
}
