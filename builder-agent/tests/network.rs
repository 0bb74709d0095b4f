//! What a guest reaches, and what it does not: real programs behind a real guard and a real passt, in network namespaces that
//! play the box and the internet. The way of frames into a micro-VM is not part of it.

mod common;

use common::world::{BOX, PRIVATE, RESOLVER, RESOLVER_V6, WEB, WEB_V6, World, gone};
use serde_json::{Value, json};

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The reasons of all refusals.
fn reasons(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| event.get("refused"))
        .map(|refused| refused["reason"].to_string())
        .collect()
}

fn total(events: &[Value]) -> &Value {
    events.last().and_then(|event| event.get("total")).unwrap_or_else(|| panic!("no total: {events:?}"))
}

fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

#[test]
fn a_public_server_is_reached_by_name_over_both_families_and_each_connection_is_told() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(&json!({}));
    for (family, address) in [("-4", WEB), ("-6", WEB_V6)] {
        let got = guest.curl(&[family, "http://web.test/"]);
        assert!(text(&got).contains(&format!("this is {}:80", host(address))), "{}", text(&got));
    }
    let got = guest.curl(&[
        "-4",
        "http://web.test/big",
        "--output",
        "/dev/null",
        "--write-out",
        "%{size_download}",
    ]);
    assert!(text(&got).contains(&(64 << 20).to_string()), "{}", text(&got));
    let events = guest.end();
    let told = |address: &str, at_least: u64| {
        let mut all = events.iter().filter_map(|event| event.get("connection"));
        all.any(|told| {
            told["name"] == "web.test"
                && told["address"] == address
                && told["down"].as_u64() >= Some(at_least)
        })
    };
    assert!(told(WEB, 64 << 20) && told(WEB_V6, 50), "{events:?}");
    let total = total(&events);
    assert!(total["down"].as_u64() >= Some(64 << 20) && total["refused"] == 0, "{total}");
}

#[test]
fn what_is_not_public_is_not_reached_in_any_form_and_fails_at_once() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(&json!({}));
    let mut urls: Vec<String> = PRIVATE.iter().map(|address| format!("http://{}/", host(address))).collect();
    urls.push(format!("http://{RESOLVER}/"));
    urls.push("http://inward.test/".to_owned());
    // A redirect from a public server.
    urls.push(format!("http://web.test/to?http://{}/", PRIVATE[0]));
    // Other ways to write the same address.
    urls.push(format!("http://[::ffff:{}]/", PRIVATE[0]));
    urls.push("http://[64:ff9b::10.99.0.1]/".to_owned());
    urls.push("http://[2002:0a63:0001::1]/".to_owned());
    urls.push("http://0.0.0.0/".to_owned());
    for url in &urls {
        let began = std::time::Instant::now();
        let got = guest.curl(&["--location", "-4", url.as_str()]);
        let other = guest.curl(&["--location", url.as_str()]);
        assert!(!got.status.success() && !other.status.success(), "{url}: {}", text(&other));
        // Refused, and not left to wait (curl gives up after 20 seconds).
        assert!(began.elapsed().as_secs() < 15, "{url} took {:?}", began.elapsed());
    }
    let reached: Vec<_> = world.reached().into_iter().map(|address| address.ip().to_string()).collect();
    assert!(reached.iter().all(|address| address == WEB), "{reached:?}");
    let reasons = reasons(&guest.end());
    assert!(reasons.iter().any(|reason| reason.contains("not-public")), "{reasons:?}");
}

#[test]
fn a_name_that_changes_its_address_leads_nowhere_else() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(&json!({}));
    world.set_name("rebind.test", WEB);
    assert!(guest.curl(&["http://rebind.test/"]).status.success());
    world.set_name("rebind.test", PRIVATE[0]);
    assert!(!guest.curl(&["http://rebind.test/"]).status.success());
    assert!(world.reached().iter().all(|address| address.ip().to_string() == WEB));
}

#[test]
fn an_answer_that_is_too_long_for_a_datagram_is_asked_for_over_tcp_and_its_name_is_known() {
    let Some(world) = World::new() else { return };
    world.set_addresses("many.test", &[WEB; 100]);
    for policy in [json!({}), json!({ "allow_names": ["many.*"] })] {
        let guest = world.guest(&policy);
        // The resolver library asks for both families over one connection.
        let got = guest.curl(&["http://many.test/"]);
        assert!(text(&got).contains("this is"), "{}", text(&got));
        let events = guest.end();
        let connections: Vec<_> = events.iter().filter_map(|event| event.get("connection")).collect();
        let of = |address: &str, port: u16, name: Value| {
            let is_it =
                |told: &&&Value| told["address"] == address && told["port"] == port && told["name"] == name;
            connections.iter().filter(is_it).count()
        };
        assert_eq!(of(WEB, 80, "many.test".into()), 1, "{events:?}");
        assert!(of(RESOLVER, 53, Value::Null) > 0, "{events:?}");
    }
    let guest = world.guest(&json!({ "deny_names": ["many.*"] }));
    assert!(!guest.curl(&["-4", "http://many.test/"]).status.success());
}

#[test]
fn a_name_server_that_has_an_ipv6_address_only_is_asked() {
    let Some(world) = World::new() else { return };
    world.set_addresses("many.test", &[WEB; 100]);
    let guest = world.guest_asking(RESOLVER_V6, &json!({}));
    for name in ["web.test", "many.test"] {
        let got = guest.curl(&["-4", &format!("http://{name}/")]);
        assert!(text(&got).contains("this is"), "{name}: {}", text(&got));
    }
    // It is for questions only, and the other one is not there for this guest.
    assert!(!guest.curl(&[&format!("http://{}/", host(RESOLVER_V6))]).status.success());
    let events = guest.end();
    let names: Vec<_> = events.iter().filter_map(|event| event.get("connection")?["name"].as_str()).collect();
    assert_eq!(names, ["web.test", "many.test"], "{events:?}");
}

/// The program that holds the network executes another one, as an agent does that is replaced; its children stay.
#[test]
fn a_fetch_goes_on_while_another_program_takes_its_network_over() {
    let Some(world) = World::new() else { return };
    let mut guest = world.guest(&json!({}));
    let processes = guest.processes();
    assert_eq!(processes.len(), 2);
    let mut curl = guest.command("curl");
    curl.args([
        "-4",
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        "--limit-rate",
        "16M",
        "http://web.test/big",
    ]);
    curl.args(["--output", "/dev/null", "--write-out", "%{size_download} bytes"]);
    let curl = curl.stdout(std::process::Stdio::piped()).spawn().expect("curl");
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(700));
        // One that has ended before, and is told by the program that was there then or by the next one.
        assert!(guest.curl(&["-6", "http://web.test/"]).status.success());
        guest.replace();
        assert_eq!(guest.processes(), processes, "guard and passt are the same ones");
        assert!(guest.curl(&["-6", "http://web.test/"]).status.success());
    }
    let got = curl.wait_with_output().expect("curl");
    assert_eq!(String::from_utf8_lossy(&got.stdout), format!("{} bytes", 64 << 20), "{}", text(&got));
    let events = guest.end();
    let connections: Vec<_> = events.iter().filter_map(|event| event.get("connection")).collect();
    let of = |address: &str| {
        connections.iter().filter(|told| told["address"] == address && told["name"] == "web.test").count()
    };
    assert_eq!((of(WEB), of(WEB_V6)), (1, 6), "each connection is told once: {events:?}");
    assert!(total(&events)["down"].as_u64() >= Some(64 << 20), "{events:?}");
    gone(&processes);
    // Under the program that took over they end with it as before.
    let mut guest = world.guest(&json!({}));
    let processes = guest.processes();
    guest.replace();
    guest.kill();
    gone(&processes);
}

#[test]
fn the_box_itself_is_not_reached_at_any_of_its_addresses() {
    let Some(world) = World::new() else { return };
    // Also if the operator allows the network around it.
    let guest = world.guest(&json!({ "allow_networks": ["10.77.0.0/24", "198.41.0.0/24"] }));
    for address in BOX {
        for port in [22, 80] {
            let got = guest.curl(&[&format!("http://{address}:{port}/")]);
            assert!(!got.status.success(), "{address}: {}", text(&got));
        }
    }
    for own in ["127.0.0.1", "192.0.2.1"] {
        assert!(!guest.curl(&[&format!("http://{own}/")]).status.success());
    }
    assert_eq!(world.reached(), []);
    let reasons = reasons(&guest.end());
    assert!(reasons.iter().any(|reason| reason.contains("own")), "{reasons:?}");
}

#[test]
fn lists_of_networks_and_names_open_and_close() {
    let Some(world) = World::new() else { return };
    let mirror = format!("http://{}/", PRIVATE[0]);
    let guest = world.guest(&json!({ "allow_networks": ["10.99.0.0/16"] }));
    assert!(guest.curl(&[&mirror]).status.success());
    let guest =
        world.guest(&json!({ "allow_networks": ["10.99.0.0/16"], "deny_networks": ["10.99.0.1/32"] }));
    assert!(!guest.curl(&[&mirror]).status.success());
    world.set_name("other.test", WEB);
    let guest = world.guest(&json!({ "allow_names": ["web.*"] }));
    assert!(guest.curl(&["-4", "http://web.test/"]).status.success());
    assert!(!guest.curl(&["http://other.test/"]).status.success());
    let reasons = reasons(&guest.end());
    assert!(reasons.iter().any(|reason| reason.contains("name-not-allowed")), "{reasons:?}");
}

#[test]
fn nothing_connects_to_a_guest_and_passt_listens_nowhere() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(&json!({}));
    let mut listener = guest.command("busybox").args(["nc", "-l", "-p", "4444"]).spawn().expect("busybox");
    assert!(guest.curl(&["-4", "http://web.test/"]).status.success());
    // (Its sockets of UDP are open to answers from anywhere; the guard drops those that nobody waits for.)
    let listening = world.on_the_box("ss").args(["-Hltnp"]).output().expect("ss");
    assert!(!text(&listening).contains("passt"), "{}", text(&listening));
    for address in BOX {
        let mut curl = world.in_the_world("curl");
        let got = curl.args(["--silent", "--max-time", "3", &format!("http://{address}:4444/")]).output();
        assert!(!got.expect("curl").status.success());
    }
    listener.kill().and_then(|()| listener.wait()).expect("its end");
}

#[test]
fn a_guest_at_its_limit_of_bytes_is_cut_off_with_the_reason() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(&json!({ "limits": { "max_bytes": 8 << 20 } }));
    let got = guest.curl(&["-4", "http://web.test/big", "--output", "/dev/null"]);
    assert!(!got.status.success());
    assert!(!guest.curl(&["-4", "http://web.test/"]).status.success());
    let events = guest.end();
    let total = total(&events);
    let all = total["down"].as_u64().unwrap_or(u64::MAX) + total["up"].as_u64().unwrap_or(u64::MAX);
    assert!(all <= (8 << 20) + 4096, "{total}");
    assert!(
        events.iter().any(|event| event.to_string().contains("\"bytes\":{\"limit\":8388608}")),
        "{events:?}"
    );
}

/// The other guest is measured alone, and beside one that opens connections without an end.
#[test]
fn a_guest_that_floods_does_not_stop_another_one() {
    let Some(world) = World::new() else { return };
    let (hostile, other) = (world.guest(&json!({})), world.guest(&json!({})));
    let fetch = || {
        let began = std::time::Instant::now();
        let got = other.curl(&["-4", "http://web.test/big", "--output", "/dev/null"]);
        assert!(got.status.success(), "{}", text(&got));
        began.elapsed()
    };
    let alone = fetch();
    let script = format!(
        "while :; do for i in $(seq 200); do busybox nc -w 1 {WEB} $((i + 8000)) </dev/null & \
         busybox nc -w 1 10.99.0.1 $i </dev/null & done; wait; done"
    );
    let mut flood =
        hostile.command("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).spawn().expect("sh");
    std::thread::sleep(std::time::Duration::from_secs(2));
    let beside = fetch();
    flood.kill().and_then(|()| flood.wait()).expect("its end");
    assert!(beside <= alone * 10 + std::time::Duration::from_secs(10), "{beside:?}, alone {alone:?}");
    let events = hostile.end();
    // However many were refused, there are few lines.
    assert!(reasons(&events).len() <= 200, "{}", reasons(&events).len());
    let total = total(&events);
    assert!(total["refused"].as_u64() > Some(50), "{total}");
}

#[test]
fn many_connections_at_once_are_all_served() {
    let Some(world) = World::new() else { return };
    let guest = world.guest(&json!({}));
    let args =
        ["-4", "--parallel", "--parallel-max", "50", "http://web.test/?[1-100]", "--output", "/dev/null"];
    let got = guest.curl(&args);
    assert!(got.status.success(), "{}", text(&got));
    let reached = world.reached().len();
    let events = guest.end();
    let told =
        events.iter().filter(|event| event.get("connection").is_some_and(|told| told["port"] == 80)).count();
    assert_eq!((reached, told), (100, 100));
}

/// As a script does that fetches thousands of small files, each with a program of its own. The guest closes first, so each port is
/// kept for a minute by its kernel (TIME_WAIT).
#[test]
fn a_builder_opens_more_connections_to_one_host_than_it_has_ports() {
    let Some(world) = World::new() else { return };
    world.serve_in_the_world(|| {
        let listener = std::net::TcpListener::bind(("::", 9000)).expect("a port of the namespace");
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    let guest = world.guest(&json!({}));
    let script = format!(
        "until exec 3<>/dev/tcp/{WEB}/9000; do sleep 0.1; done; \
         for i in $(seq 700); do exec 3<>/dev/tcp/{WEB}/9000 || exit 1; exec 3>&-; done"
    );
    let got = guest.command("bash").args(["-c", &script]).output().expect("bash");
    let events = guest.end();
    assert!(got.status.success(), "{}: {events:?}", text(&got));
    let told =
        events.iter().filter_map(|event| event.get("connection")).filter(|told| told["port"] == 9000).count();
    assert!(told >= 700, "{told}");
}

#[test]
fn git_clones_through_it() {
    let Some(world) = World::new() else { return };
    let repository = world.dir().join("served/project");
    let git = |dir: &std::path::Path, args: &[&str]| {
        let mut git = std::process::Command::new("git");
        let done =
            git.arg("-C").arg(dir).args(["-c", "user.name=x", "-c", "user.email=x@x"]).args(args).output();
        let done = done.expect("git");
        assert!(done.status.success(), "{}", text(&done));
    };
    std::fs::create_dir_all(&repository).expect("a folder");
    git(&repository, &["init", "-q", "-b", "main"]);
    std::fs::write(repository.join("file"), "contents").expect("a file");
    git(&repository, &["add", "-A"]);
    git(&repository, &["commit", "-qm", "first"]);
    let mut daemon = world.in_the_world("git");
    daemon.args(["daemon", "--export-all", "--reuseaddr", &format!("--listen={WEB}")]);
    daemon
        .arg(format!("--base-path={}", world.dir().join("served").display()))
        .arg(world.dir().join("served"));
    let mut daemon = daemon.spawn().expect("git daemon");
    let guest = world.guest(&json!({}));
    let target = world.dir().join("clone");
    common::until("the clone", || {
        let cloned =
            guest.command("git").args(["clone", "-q", "git://web.test/project"]).arg(&target).output();
        cloned.expect("git").status.success()
    });
    assert_eq!(std::fs::read_to_string(target.join("file")).expect("a clone"), "contents");
    daemon.kill().and_then(|()| daemon.wait()).expect("its end");
}

#[test]
fn guard_and_passt_have_no_rights_and_users_of_their_own_and_end_with_whoever_holds_them() {
    let Some(world) = World::new() else { return };
    let (mut guest, other) = (world.guest(&json!({})), world.guest(&json!({})));
    let processes = guest.processes();
    let mut users = Vec::new();
    for pid in &processes {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.split_whitespace().next().unwrap_or_default().to_owned()
        };
        assert_eq!(
            (value("CapEff:"), value("CapPrm:"), value("NoNewPrivs:"), value("Seccomp:")),
            ("0000000000000000".into(), "0000000000000000".into(), "1".into(), "2".into()),
            "{status}"
        );
        users.push(value("Uid:"));
    }
    assert_eq!(users.len(), 2, "{users:?}");
    let passt =
        users.iter().filter(|user| sandbox::kvm::network::USERS.contains(&user.parse().expect("a number")));
    assert_eq!(passt.count(), 1, "{users:?}");
    for pid in other.processes() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        assert!(users.iter().all(|user| !status.contains(&format!("Uid:\t{user}\t"))), "{status}");
    }
    guest.kill();
    gone(&processes);
    let processes = other.processes();
    assert_eq!(processes.len(), 2);
    other.end();
    gone(&processes);
}

#[test]
fn where_no_machine_has_a_network_the_firewall_has_no_rules() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("agent.toml");
    let rules = |text: &str| {
        std::fs::write(&config, format!("roster = \"/r\"\n{text}\n")).expect("a file");
        let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_builder-agent"));
        let output = agent.args(["config", "firewall", "--config"]).arg(&config).output().expect("the agent");
        assert!(output.status.success(), "{}", self::text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(rules("sandbox.backend = \"kvm\"").contains("table inet barnraiser"));
    assert_eq!(rules("sandbox.backend = \"kvm\"\nnetwork.builds = false"), "");
    assert_eq!(rules("sandbox.backend = \"namespace\""), "");
}

/// Programs with the rights and the user of a passt that was taken over.
#[test]
fn the_firewall_holds_without_the_guard() {
    let Some(world) = World::new() else { return };
    let config = world.dir().join("agent.toml");
    std::fs::write(&config, "roster = \"/r\"\nnetwork.allow-networks = [\"10.99.0.0/16\"]\n")
        .expect("a file");
    let mut agent = std::process::Command::new(env!("CARGO_BIN_EXE_builder-agent"));
    let rules = agent.args(["config", "firewall", "--config"]).arg(&config).output().expect("the agent");
    let file = world.dir().join("rules");
    std::fs::write(&file, &rules.stdout).expect("a file");
    // Twice, as when the settings have changed.
    for _ in 0..2 {
        let loaded = world.on_the_box("nft").arg("-f").arg(&file).output().expect("nft");
        assert!(loaded.status.success(), "{}{}", text(&loaded), text(&rules));
    }
    let reaches = |user: u32, address: &str| {
        let mut curl = world.on_the_box("setpriv");
        curl.args([&format!("--reuid={user}"), "--clear-groups", "curl", "--silent", "--max-time", "5"]);
        curl.arg(format!("http://{}/", host(address))).output().expect("curl").status.success()
    };
    let users = sandbox::kvm::network::USERS;
    for user in [*users.start(), users.start() + 4242, *users.end()] {
        assert!(reaches(user, WEB) && reaches(user, WEB_V6));
        for private in PRIVATE.iter().chain(&BOX).chain(&["127.0.0.1", "::1"]) {
            // The first one is allowed.
            assert_eq!(reaches(user, private), *private == PRIVATE[0], "{user} {private}");
        }
    }
    // Others of the box are not concerned.
    for user in [0, users.start() - 1, users.end() + 1] {
        assert!(PRIVATE.iter().all(|private| reaches(user, private)), "{user}");
    }
}
