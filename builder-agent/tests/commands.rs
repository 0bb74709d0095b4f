//! The commands that people type, with the real OpenSSH client.

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Agent, fingerprint};
use serde_json::Value;

const BANNER: &str = "testbox: a Barnraiser community builder\n\
                      warning: builds run in the namespace sandbox, which is weaker than this project's micro-VMs\n";

fn output(agent: &Agent, words: &[&str]) -> String {
    let output = agent.ssh("alice").args(words).output().expect("ssh");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(agent: &Agent, words: &[&str]) -> Value {
    let text = output(agent, words);
    assert_eq!(text.lines().count(), 1, "JSON is one line: {text}");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn whoami_says_which_limits_hold_and_who_set_them() {
    let agent = Agent::start(&["alice"], "limits.max-jobs = 8\nlimits.max-jobs-per-member = 4");
    let answer = json(&agent, &["whoami", "--json"]);
    assert_eq!((&answer["member"], &answer["role"]), (&"alice".into(), &"member".into()), "{answer}");
    let jobs = |answer: &Value| {
        let limits = answer["limits"].as_array().expect("limits").clone();
        limits.into_iter().find(|limit| limit["name"] == "max-jobs").expect("max-jobs")
    };
    assert_eq!((jobs(&answer)["value"].as_u64(), jobs(&answer)["set_by"].as_str()), (Some(4), Some("box")));

    agent.edit_roster(|roster| roster["members"][0]["limits"] = serde_json::json!({ "max-jobs": 2 }));
    let answer = json(&agent, &["whoami", "--json"]);
    assert_eq!(
        (jobs(&answer)["value"].as_u64(), jobs(&answer)["set_by"].as_str()),
        (Some(2), Some("roster"))
    );
    agent.edit_roster(|roster| {
        roster["schema"] = 2.into();
        roster["groups"] = serde_json::json!([{ "name": "ci", "limits": { "max-jobs": 3 } }]);
        roster["members"][0]["groups"] = serde_json::json!(["ci"]);
    });
    let text = output(&agent, &["whoami"]);
    let group = "group               ci, max-jobs 3 builds for all its members together, set by the roster";
    assert!(text.lines().any(|line| line == group), "{text}");
    assert!(text.lines().any(|line| line == "max-jobs            2 builds, set by the roster"), "{text}");
}

#[test]
fn keys_list_has_the_members_own_keys_and_no_others() {
    let agent = Agent::start(&["alice", "bob"], "");
    let text = output(&agent, &["keys", "list"]);
    let of = |name: &str| fingerprint(&agent.path().join(format!("{name}.pub")));
    assert!(text.starts_with(&format!("{}  ED25519", of("alice"))) && text.lines().count() == 1, "{text}");
    let listed = json(&agent, &["keys", "list", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["fingerprint"], of("alice"));
}

/// The answer to `keys set` with this input.
fn set_keys(agent: &Agent, options: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut ssh = agent.ssh("alice");
    ssh.args(["keys", "set"]).args(options);
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ssh.spawn().expect("ssh");
    // The other end may close before everything is written.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("ended");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn keys_set_prints_what_to_propose_and_changes_nothing() {
    let agent = Agent::start(&["alice", "bob"], "");
    agent.edit_roster(|roster| roster["source"] = "https://git.example.org/box/users".into());
    let file = |name: &str| std::fs::read_to_string(agent.path().join(format!("{name}.pub"))).expect("a key");
    let of = |name: &str| fingerprint(&agent.path().join(format!("{name}.pub")));
    common::make_key(&agent.path().join("new"));
    let input = format!("# mine\n{}\n{}", file("alice"), file("new"));
    let (status, text, stderr) = set_keys(&agent, &[], input.as_bytes());
    assert_eq!(status, Some(0), "{stderr}");
    for part in [
        "Nothing has been changed".to_owned(),
        format!("  has      {}", of("alice")),
        format!("  new      {}", of("new")),
        format!("\n\n{}{}", file("alice"), file("new")),
        format!("  alice.keys = [\n    \"{}\"", file("alice").trim_end()),
        "a pull request to https://git.example.org/box/users".to_owned(),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    // Other keys only: another person for the box. Another member's key is no secret, but whose it is stays unsaid.
    let (_, text, _) = set_keys(&agent, &["--json"], file("bob").as_bytes());
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&told["changed"], &told["keys"][0]["known"]), (&false.into(), &false.into()));
    assert_eq!(told["removed"][0]["fingerprint"], of("alice"));
    let notes = told["notes"].to_string();
    assert!(
        notes.contains("another member has the key") && notes.contains("none of your present keys"),
        "{notes}"
    );
    let listed = json(&agent, &["keys", "list", "--json"]);
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["fingerprint"]), (Some(1), &of("alice").into()));
}

#[test]
fn keys_set_refuses_what_the_roster_would_refuse_and_reads_no_more_than_it_needs() {
    let agent = Agent::start(&["alice"], "");
    let key = std::fs::read_to_string(agent.path().join("alice.pub")).expect("a key");
    let private = std::fs::read(agent.path().join("alice")).expect("a private key");
    let long = "# x\n".repeat(100_000);
    let twice = format!("{key}{key}");
    for (input, why) in [
        (&b""[..], "there is no key in the input"),
        (b"\n# nothing\n", "there is no key in the input"),
        (b"\nssh-ed25519 AAAA", "line 2: this key is damaged"),
        (&private, "this is a PRIVATE key"),
        (twice.as_bytes(), "line 2: the key SHA256:"),
        (b"\xff\xfe", "the input is not text"),
        (long.as_bytes(), "more than 65536 bytes of keys"),
    ] {
        let (status, stdout, stderr) = set_keys(&agent, &[], input);
        assert!(status == Some(1) && stdout.is_empty() && stderr.contains(why), "{why}: {stdout}{stderr}");
    }
}

#[test]
fn every_command_for_people_has_json_and_help() {
    let agent = Agent::start(&["alice"], "");
    // Some commands are for maintainers.
    agent.edit_roster(|roster| roster["members"][0]["role"] = "maintainer".into());
    let commands = json(&agent, &["help", "--json"]);
    let names: Vec<String> = commands
        .as_array()
        .expect("a list")
        .iter()
        .map(|line| {
            line["command"].as_str().expect("a command").split(' ').next().expect("a word").to_owned()
        })
        .filter(|name| !name.starts_with("nix"))
        .collect();
    assert!(names.len() > 5, "{names:?}");
    for name in &names {
        let help = output(&agent, &[name, "--help"]);
        assert!(help.contains(&format!("Usage: ssh box {name}")), "{help}");
        match name.as_str() {
            // The log is the builder's output, which has no form.
            "log" => {}
            "builds" => drop(json(&agent, &["builds", "list", "--json"])),
            "keys" => drop(json(&agent, &["keys", "list", "--json"])),
            "home" => drop(json(&agent, &["home", "show", "--json"])),
            // It has no output of its own.
            "shell" => {}
            // They need a connection to end, and a synchroniser: see `maintaining.rs`.
            "kick" | "sync" => {}
            // One object a line.
            "audit" => drop(json(&agent, &["audit", "--last", "1", "--json"])),
            "ticket" => drop(json(&agent, &["ticket", "list", "--json"])),
            _ => drop(json(&agent, &[name, "--json"])),
        }
    }
}

#[test]
fn a_wrong_word_is_named_in_one_line_with_the_way_to_the_help() {
    let agent = Agent::start(&["alice"], "");
    assert_eq!(
        agent.transcript("alice", &["client-config --format yaml"]),
        format!(
            "$ ssh box client-config --format yaml\n{BANNER}\
             cannot run `client-config --format yaml`: invalid value 'yaml' for '--format <FORMAT>' \
             [possible values: nixos, nix-darwin, nix.conf, machines, ssh, json]; see `ssh box client-config --help`\n\
             [exit 127]\n"
        )
    );
    let host = agent.transcript("alice", &["client-config --host 'a b'"]);
    assert!(host.contains("the host must consist of letters"), "{host}");
}

#[test]
fn gc_is_for_maintainers_and_says_what_it_freed() {
    let agent = Agent::start(&["alice", "bob"], "");
    let refused = agent.transcript("alice", &["gc"]);
    assert!(
        refused.contains("this command is for maintainers") && refused.ends_with("[exit 1]\n"),
        "{refused}"
    );
    // How much is free says something about others, so only maintainers see it.
    assert!(json(&agent, &["status", "--json"]).get("store").is_none());
    agent.edit_roster(|roster| roster["members"][0]["role"] = "maintainer".into());
    let status = json(&agent, &["status", "--json"]);
    let store = &status["store"];
    assert_eq!((store["object_bytes"].as_u64(), store["pressure"].as_u64()), (Some(0), Some(0)), "{status}");
    assert!(store["free_bytes"].as_u64() < store["total_bytes"].as_u64(), "{status}");
    assert!(output(&agent, &["status"]).contains("store        0 MiB in objects, "));
    let answer = json(&agent, &["gc", "--free", "1G", "--json"]);
    assert_eq!((answer["paths"].as_u64(), answer["bytes"].as_u64()), (Some(0), Some(0)), "{answer}");
    assert!(output(&agent, &["gc"]).starts_with("evicted 0 paths with 0 objects of 0 MiB; "));
    let wrong = agent.transcript("alice", &["gc", "--free", "much"]);
    assert!(wrong.contains("not a size"), "{wrong}");
}

#[test]
fn whoami_says_what_the_store_takes_and_may_take() {
    let agent = Agent::start(&["alice"], "limits.max-store-mib-per-member = 70");
    let quota = |answer: &Value| {
        let limits = answer["limits"].as_array().expect("limits").clone();
        limits.into_iter().find(|limit| limit["name"] == "max-store-mib").expect("max-store-mib")
    };
    let answer = json(&agent, &["whoami", "--json"]);
    assert_eq!(answer["store_bytes"], 0);
    assert_eq!(
        (quota(&answer)["value"].as_u64(), quota(&answer)["set_by"].as_str()),
        (Some(70), Some("box"))
    );
    agent.edit_roster(|roster| roster["members"][0]["limits"] = serde_json::json!({ "max-store-mib": 7 }));
    let answer = json(&agent, &["whoami", "--json"]);
    assert_eq!(
        (quota(&answer)["value"].as_u64(), quota(&answer)["set_by"].as_str()),
        (Some(7), Some("roster"))
    );
}
