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
