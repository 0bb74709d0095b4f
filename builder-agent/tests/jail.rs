//! An agent that runs micro-VMs starts only if their jail is complete, or if its configuration names the
//! missing steps.
//!
//! No VM runs here and no KVM is needed: the agent tests the jail with a process of its own before it serves.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

const STEPS: [&str; 5] = ["cgroup", "namespaces", "pid-namespace", "own-uid", "landlock"];

/// The outcome of starting an agent with this list of steps that may be missing, on a host without a usable
/// cgroup.
enum Started {
    /// The agent serves, and has warned of these steps.
    Yes(BTreeSet<String>),
    No(String),
}

fn start(allowed: &[&str]) -> Started {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = dir.path().display();
    let file = dir.path().join("agent.toml");
    let text = format!(
        "name = \"testbox\"\nlisten = [\"127.0.0.1:0\"]\nroster = \"{path}/roster.json\"\nstate-dir = \"{path}/state\"\n\
         [sandbox]\nbackend = \"kvm\"\nkernel = \"/bin/sh\"\ninitrd = \"/bin/sh\"\ncgroup = \"/proc/no-cgroup\"\n\
         allow-missing = {allowed:?}\n"
    );
    std::fs::write(&file, text).expect("config");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_builder-agent"))
        .args(["serve", "--config"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent");
    let stderr = BufReader::new(agent.stderr.take().expect("piped"));
    let (mut warned, mut said, mut listens) = (BTreeSet::new(), String::new(), false);
    for line in stderr.lines() {
        let line = line.expect("text");
        let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(step) = event["step"].as_str() {
            warned.insert(step.to_owned());
        }
        if event["message"] == "listening" {
            listens = true;
            agent.kill().expect("kill");
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = agent.wait().expect("its end");
    if listens {
        return Started::Yes(warned);
    }
    assert_eq!(status.code(), Some(1), "{said}");
    Started::No(said)
}

#[test]
fn an_agent_whose_jail_is_incomplete_does_not_start_unless_its_configuration_says_so() {
    let Started::Yes(missing) = start(&STEPS) else { panic!("refused, whatever is allowed") };
    assert!(missing.contains("cgroup"), "{missing:?}");
    let named: Vec<&str> = missing.iter().map(String::as_str).collect();
    assert!(matches!(start(&named), Started::Yes(_)), "all that is missing is named");
    for step in &named {
        let others: Vec<&str> = named.iter().filter(|other| *other != step).copied().collect();
        let Started::No(said) = start(&others) else { panic!("started without {step}") };
        assert!(said.contains(&format!(" {step} (")), "{said}");
        assert!(said.contains(&format!("`sandbox.allow-missing = [\"{step}\"]`")), "{said}");
    }
}
