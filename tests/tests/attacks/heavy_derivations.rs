//! Derivations that cost the box much work before their builder runs: many outputs, long strings, growing
//! graphs. Mallory sends them while Alice builds normally.

use std::collections::BTreeSet;

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::shared_box::{SharedBox, recipe};
use nix::PathInfo;
use nix::derivation::BasicDerivation;
use nix_derivation::StorePath;

/// Clock ticks in a second (proc(5): `sysconf(_SC_CLK_TCK)`, a hundred on every Linux).
const TICKS: u64 = 100;

/// Processor time of the agent itself, in seconds.
fn processor_seconds(shared_box: &SharedBox) -> u64 {
    processor_ticks(shared_box) / TICKS
}

/// The same in clock ticks.
fn processor_ticks(shared_box: &SharedBox) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", shared_box.agent.pid())).expect("a process");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    // Fields 14 and 15, counted from the one after the name, which is the third.
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    ticks(11) + ticks(12)
}

/// Peak memory of the agent, in MiB.
fn peak_mib(shared_box: &SharedBox) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", shared_box.agent.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

/// Builds something small again and again; Mallory's attack must not change the results.
async fn works_as_always(who: &mut Session, round: &str) {
    for n in 0..3 {
        let name = format!("small-{round}-{n}");
        let out = path(&name);
        let small = recipe(&path(&format!("{name}.drv")), &[("out", &out)], &[], "echo small > $out");
        assert_eq!(who.build(small).await.status, 0);
        assert_eq!(who.nar(&out).await, nar(&file(b"small\n")));
    }
}

/// A derivation with a thousand outputs, and four megabytes of text that looks like placeholders at every
/// position.
fn many_outputs() -> (StorePath, BasicDerivation) {
    let outputs: Vec<(String, StorePath)> =
        (0..1000).map(|n| (format!("o{n}"), path(&format!("heavy-o{n}")))).collect();
    let named: Vec<(&str, &StorePath)> = outputs.iter().map(|(name, path)| (name.as_str(), path)).collect();
    let (drv, mut derivation) = recipe(&path("heavy.drv"), &named, &[], "exit 3");
    // Passed as files, so that the program can be started at all.
    let variables: Vec<String> = (0..4).map(|n| format!("big{n}")).collect();
    for name in &variables {
        derivation.env.insert(name.clone().into_bytes(), b"/x".repeat(1 << 19));
    }
    derivation.env.insert(b"passAsFile".to_vec(), variables.join(" ").into_bytes());
    (drv, derivation)
}

#[tokio::test]
async fn many_outputs_and_long_variables_cost_one_look_at_each() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let before = processor_seconds(&shared_box);
    mallory.start_build(many_outputs()).await;
    works_as_always(&mut alice, "outputs").await;
    let told = mallory.told().await;
    assert_ne!(told.status, 0);
    assert!(told.message.contains("exit code 3"), "the builder ran: {told:?}");
    let took = processor_seconds(&shared_box) - before;
    assert!(took < 4, "{took} seconds of processor time for one derivation");
}

/// Paths that refer to all earlier ones. Their names have about this length.
async fn dense_closure(who: &mut Session, count: usize, long: usize) -> StorePath {
    let mut references = BTreeSet::new();
    let mut last = None;
    for n in 0..count {
        let contents = nar(&file(n.to_string().as_bytes()));
        let name = format!("dense-{n}-{}", "x".repeat(long));
        let info = PathInfo { references: references.clone(), ..info(&name, &contents) };
        who.upload(&info, &contents).await;
        references.insert(info.path.clone());
        last = Some(info.path);
    }
    last.expect("at least one")
}

#[tokio::test]
async fn graphs_that_would_fill_the_memory_are_refused_before_they_are_written() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let root = dense_closure(&mut mallory, 60, 150).await;
    // A few hundred kilobytes that would expand to a gigabyte.
    let full = root.to_absolute_path();
    let wanted: Vec<String> = (0..4000).map(|n| format!("g{n} {full}")).collect();
    let wanted = wanted.join(" ").into_bytes();
    assert!(wanted.len() < 2 << 20);
    let (drv, mut derivation) = recipe(&path("bomb.drv"), &[("out", &path("bomb"))], &[&root], "echo > $out");
    derivation.env.insert(b"exportReferencesGraph".to_vec(), wanted);
    let before = peak_mib(&shared_box);
    mallory.start_build((drv.clone(), derivation.clone())).await;
    works_as_always(&mut alice, "graphs").await;
    let told = mallory.told().await;
    assert_ne!(told.status, 0);
    assert!(told.message.contains("'exportReferencesGraph'") && told.message.contains("64 MiB"), "{told:?}");
    let grown = peak_mib(&shared_box) - before;
    assert!(grown < 400, "{grown} MiB more for one derivation");
    // A small request on the same paths is built.
    derivation.env.insert(b"exportReferencesGraph".to_vec(), format!("g {full}").into_bytes());
    assert_eq!(mallory.build((drv, derivation)).await.status, 0);
}

#[tokio::test]
async fn attributes_of_very_many_values_are_refused_before_they_are_parsed() {
    let shared_box = SharedBox::of(&["alice", "mallory"]);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let (drv, mut derivation) = recipe(&path("wide.drv"), &[("out", &path("wide"))], &[], "echo > $out");
    let json = format!("{{\"list\":[{}0]}}", "0,".repeat(8 << 20));
    derivation.env.insert(b"__json".to_vec(), json.into_bytes());
    let before = peak_mib(&shared_box);
    mallory.start_build((drv, derivation)).await;
    works_as_always(&mut alice, "values").await;
    let told = mallory.told().await;
    assert_ne!(told.status, 0);
    assert!(told.message.contains("more than 250000 values"), "{told:?}");
    let grown = peak_mib(&shared_box) - before;
    assert!(grown < 400, "{grown} MiB more for one derivation of 16");
}

/// A derivation whose closures take the box about a second before its builder runs, which fails.
fn slow_to_prepare(name: &str, root: &StorePath) -> (StorePath, BasicDerivation) {
    const GRAPHS: usize = 5;
    let (drv, mut derivation) =
        recipe(&path(&format!("{name}.drv")), &[("out", &path(name))], &[root], "exit 3");
    let graphs: Vec<String> =
        (0..GRAPHS).map(|n| format!("\"g{n}\":[\"{}\"]", root.to_absolute_path())).collect();
    let json = format!("{{\"exportReferencesGraph\":{{{}}}}}", graphs.join(","));
    derivation.env.insert(b"__json".to_vec(), json.into_bytes());
    (drv, derivation)
}

#[tokio::test]
async fn what_is_prepared_for_a_client_who_hangs_up_ends_and_others_build_on() {
    const AT_ONCE: usize = 4;
    let setup = Setup::default()
        .setting("limits.max-jobs = 8")
        .setting(&format!("limits.max-jobs-per-member = {AT_ONCE}"));
    let shared_box = SharedBox::with(&["alice", "mallory"], setup);
    let (mut alice, mut mallory) = (shared_box.session("alice").await, shared_box.session("mallory").await);
    let root = dense_closure(&mut mallory, 500, 1).await;
    let (begun, ended) =
        (|| shared_box.agent.count("build started"), || shared_box.agent.count("build finished"));

    // The cost of one such build to its end.
    let before = processor_ticks(&shared_box);
    let told = mallory.build(slow_to_prepare("whole", &root)).await;
    assert!(told.message.contains("exit code 3"), "the builder ran: {told:?}");
    let whole = processor_ticks(&shared_box) - before;

    // One after the other, clients are killed as soon as their builds have begun.
    let before = processor_ticks(&shared_box);
    for n in 0..AT_ONCE {
        let mut client = shared_box.session("mallory").await;
        client.start_build(slow_to_prepare(&format!("cut-{n}"), &root)).await;
        until("the build to begin", || begun() == 2 + n).await;
        client.vanish().await;
        until("the build to end", || ended() == 2 + n).await;
    }
    let cut = processor_ticks(&shared_box) - before;
    println!("{whole} clock ticks for one to the end, {cut} for {AT_ONCE} that were cut off");
    assert!(cut < AT_ONCE as u64 * whole * 2 / 3, "{cut} clock ticks, where a whole one takes {whole}");

    // Builds in all her slots, and as many in the queue; Alice is not affected.
    let mut clients = Vec::new();
    for n in 0..2 * AT_ONCE {
        let mut client = shared_box.session("mallory").await;
        client.start_build(slow_to_prepare(&format!("all-{n}"), &root)).await;
        clients.push(client);
    }
    let accepted = 1 + AT_ONCE + 2 * AT_ONCE;
    until("all to be accepted", || shared_box.agent.count("build accepted") == accepted).await;
    for client in clients {
        client.vanish().await;
    }
    works_as_always(&mut alice, "beside").await;
    let gone = || ended() + shared_box.agent.count("build cancelled before it started");
    until("all of them to end", || gone() == accepted + 3).await;
}
