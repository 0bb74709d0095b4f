//! The commands that people type, with the real OpenSSH client.

mod common;

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
