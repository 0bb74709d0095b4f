//! The commands of maintainers, with the real OpenSSH client: who may run them, and what they do.

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{Agent, until};
use serde_json::Value;

/// An agent whose members are alice, bob and the maintainer carol.
fn barn() -> Agent {
    let agent = Agent::start(&["alice", "bob", "carol"], "");
    agent.edit_roster(|roster| roster["members"][2]["role"] = "maintainer".into());
    agent
}

fn run(agent: &Agent, who: &str, words: &str) -> (Option<i32>, String, String) {
    let output = agent.ssh(who).arg(words).output().expect("ssh");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn ok(agent: &Agent, who: &str, words: &str) -> String {
    let (status, stdout, stderr) = run(agent, who, words);
    assert_eq!(status, Some(0), "{words}: {stderr}");
    stdout
}

fn json(agent: &Agent, who: &str, words: &str) -> Value {
    serde_json::from_str(&ok(agent, who, words)).expect("JSON")
}

#[test]
fn who_is_no_maintainer_can_run_none_of_their_commands_and_is_not_shown_them() {
    let agent = barn();
    let commands = json(&agent, "carol", "help --json");
    let of_maintainers: Vec<String> = commands
        .as_array()
        .expect("a list")
        .iter()
        .filter(|line| line["maintainers"] == true)
        .map(|line| line["command"].as_str().expect("text").split(' ').next().expect("a word").to_owned())
        .collect();
    for name in ["drain", "undrain", "kick", "audit", "sync"] {
        assert!(of_maintainers.iter().any(|listed| listed == name), "{of_maintainers:?}");
    }
    assert!(!ok(&agent, "alice", "help").contains("undrain"));
    for name in &of_maintainers {
        let words = if name == "kick" { "kick bob" } else { name };
        let (status, stdout, stderr) = run(&agent, "alice", words);
        assert!(status == Some(1) && stdout.is_empty(), "{words}: {stdout}{stderr}");
        assert!(stderr.contains("this command is for maintainers"), "{stderr}");
        assert!(ok(&agent, "carol", &format!("{name} --help")).contains("Usage: ssh box"));
    }
    // The role of this moment counts, not that of the login.
    agent.edit_roster(|roster| roster["members"][2]["role"] = "member".into());
    assert_eq!(run(&agent, "carol", "drain").0, Some(1));
    assert_eq!(json(&agent, "alice", "status --json")["drained"], Value::Null);
}

#[test]
fn a_drained_box_says_why_and_stays_drained_when_its_agent_is_started_again() {
    let mut agent = barn();
    let (status, _, stderr) = run(&agent, "carol", "drain --deadline 5min");
    assert!(
        status == Some(127) && stderr.contains("not a duration; write it as 90s, 30m, 2h, 7d or 2w"),
        "{stderr}"
    );
    let left = json(&agent, "carol", "drain --deadline 30m --reason 'a new disk' --json");
    assert_eq!((left["running"].as_u64(), left["ended"].as_u64()), (Some(0), Some(0)), "{left}");
    let since = left["drained"]["since"].as_u64().expect("a time");
    assert!(left["drained"]["deadline"].as_u64().is_some_and(|at| at >= since + 1800), "{left}");

    agent.signal("-TERM");
    agent.start_again();
    agent.wait_for("the box is still drained");
    let drained = json(&agent, "alice", "status --json")["drained"].clone();
    assert_eq!((&drained["by"], &drained["reason"]), (&"carol".into(), &"a new disk".into()), "{drained}");
    // Both protocols: the reason comes before the session is open.
    let (status, _, stderr) = run(&agent, "alice", "nix-store --serve --write");
    assert!(
        status == Some(1) && stderr.contains("(by carol: a new disk), so it starts no builds"),
        "{stderr}"
    );
    let said = ok(&agent, "carol", "undrain");
    assert!(said.starts_with("the box starts builds again; it was drained since "), "{said}");
    drop(agent.open_session("alice"));
    assert_eq!(ok(&agent, "carol", "undrain"), "the box was not drained; it starts builds\n");
}

#[test]
fn a_member_sees_their_own_connections_and_a_maintainer_everybodys_and_ends_them() {
    let agent = barn();
    let (mut alice, mut bob) = (agent.open_session("alice"), agent.open_session("bob"));
    let of = |who: &str| -> Vec<(String, bool)> {
        let lines = json(&agent, who, "who --json");
        let line = |line: &Value| {
            let runs = line["commands"]["nix-daemon"] == 1;
            (line["member"].as_str().expect("a member").to_owned(), runs)
        };
        lines.as_array().expect("a list").iter().map(line).collect()
    };
    // Carol's list comes first: the box notices a moment later that the connection of a command has ended. Therefore
    // also nobody asks as alice, whose connections are counted below.
    let all = [("alice".to_owned(), true), ("bob".to_owned(), true), ("carol".to_owned(), false)];
    assert_eq!(of("carol"), all);
    assert_eq!(of("bob"), [("bob".to_owned(), true), ("bob".to_owned(), false)]);
    let table = ok(&agent, "carol", "who");
    assert!(table.starts_with("connection  member") && table.contains("nix-daemon"), "{table}");

    let (status, _, stderr) = run(&agent, "carol", "kick nobody");
    assert!(status == Some(1) && stderr.contains("no member `nobody` is logged in"), "{stderr}");
    let said = ok(&agent, "carol", "kick alice --reason 'please update'");
    assert!(said.contains("ended 1 connection.") && said.contains("remove them from the roster"), "{said}");
    until("alice's client to end", || alice.try_wait().expect("wait").is_some());
    let mut said = String::new();
    alice.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(said.contains("carol, a maintainer, has ended this connection: please update"), "{said}");
    assert_eq!(bob.try_wait().expect("wait"), None, "bob stays");

    let id = json(&agent, "bob", "who --json")[0]["connection"].as_u64().expect("a number");
    assert_eq!(json(&agent, "carol", &format!("kick {id} --json"))["connections"][0].as_u64(), Some(id));
    bob.wait().expect("ended");
    // They can come back.
    drop(agent.open_session("alice"));
}

#[test]
fn the_audit_names_logins_refusals_changes_of_the_roster_and_what_maintainers_did() {
    let mut agent = barn();
    common::make_key(&agent.path().join("mallory"));
    run(&agent, "mallory", "status");
    ok(&agent, "alice", "status");
    ok(&agent, "carol", "drain --reason disk");
    ok(&agent, "carol", "undrain");
    ok(&agent, "carol", "gc --json");
    ok(&agent, "alice", "ticket create --name friend");
    agent.edit_roster(|roster| drop(roster["members"].as_array_mut().expect("members").remove(1)));

    let events = |agent: &Agent, words: &str| -> Vec<Value> {
        let lines = ok(agent, "carol", words);
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let has = |events: &[Value], event: &str, member: Value, detail: &str| {
        let found = events.iter().any(|line| {
            let said = line["detail"].as_str().unwrap_or_default();
            line["event"] == event && line["member"] == member && said.contains(detail)
        });
        assert!(found, "no {event} of {member} with {detail}: {events:#?}");
    };
    // One task logs that the roster is loaded, another one notes the change, and a thread writes the file.
    let file = agent.path().join("state/audit.jsonl");
    let is_written = || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("-bob"));
    until("the change of the roster to be in the audit", is_written);
    for restarted in [false, true] {
        if restarted {
            agent.signal("-TERM");
            agent.start_again();
        }
        let all = events(&agent, "audit --json --last 1000");
        has(&all, "started", Value::Null, "barnraiser");
        has(&all, "login", "alice".into(), "SHA256:");
        has(&all, "login-refused", Value::Null, "user anyone");
        has(&all, "roster", Value::Null, "carol is maintainer now");
        has(&all, "roster", Value::Null, "-bob");
        has(&all, "drain", "carol".into(), "disk");
        has(&all, "undrain", "carol".into(), "");
        has(&all, "command", "carol".into(), "gc: everything");
        // A ticket changes who gets in, and not the roster.
        let unchanged = |line: &&Value| {
            line["event"] == "roster"
                && line["detail"].as_str().is_some_and(|said| said.contains("the same members"))
        };
        assert_eq!(all.iter().find(unchanged), None);
    }
    assert_eq!(events(&agent, "audit --json --last 2").len(), 2);
    assert!(events(&agent, "audit --json --member alice").iter().all(|line| line["member"] == "alice"));
    let table = ok(&agent, "carol", "audit --since 1h");
    assert!(table.starts_with("time  ") && table.contains("login-refused"), "{table}");
}

#[test]
fn sync_asks_the_synchroniser_and_tells_what_came_of_it() {
    let agent = barn();
    let asked = agent.path().join("state/sync-requested");
    let report = |text: String| {
        let temporary = agent.path().join("status.new");
        std::fs::write(&temporary, text).expect("written");
        std::fs::rename(&temporary, agent.path().join("roster-status.json")).expect("replaced");
    };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let accepted = format!(
        "\"schema\": 1, \"accepted\": {{ \"commit\": \"{commit}\", \"committed\": 1, \"accepted\": 2 }}"
    );
    for (reported, status, said) in [
        (
            format!("{{ {accepted}, \"checked\": 1795000000 }}"),
            0,
            format!("the roster is up to date: commit {commit}"),
        ),
        (
            format!(
                "{{ {accepted}, \"problem\": {{ \"commit\": null, \"reason\": \"no route\", \"since\": 3, \"at\": 4 }} }}"
            ),
            1,
            "because: no route".to_owned(),
        ),
    ] {
        let sync = agent.ssh("carol").arg("sync").stdout(Stdio::piped()).spawn().expect("ssh");
        until("the synchroniser to be asked", || asked.exists());
        report(reported);
        let output = sync.wait_with_output().expect("ended");
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(text.contains(&said), "{text}");
        std::fs::remove_file(&asked).expect("removed");
    }
}

#[test]
fn a_maintainer_sees_when_a_member_was_removed_and_how_long_the_sessions_went_on() {
    let agent = barn();
    let mut bob = agent.open_session("bob");
    let _stdin = bob.stdin.take();
    agent.edit_roster(|roster| {
        let members = roster["members"].as_array_mut().expect("members");
        members.retain(|member| member["name"] != "bob");
    });
    let said = agent.wait_for("sessions and builds of a removed member have ended");
    assert!(bob.wait_with_output().expect("ended").stderr.len() > 10, "bob was told why");
    assert_eq!(said["member"], "bob", "{said}");
    let removed = json(&agent, "carol", "status --json")["roster"]["removed"].clone();
    let [only] = &removed.as_array().expect("a list")[..] else { panic!("{removed}") };
    let (since, ended) = (only["removed"].as_u64().expect("a time"), only["ended"].as_u64().expect("a time"));
    assert_eq!(only["member"], "bob");
    assert!(since <= ended && ended < since + 60, "{only}");
    let text = ok(&agent, "carol", "status");
    assert!(text.contains("removed      bob at 20") && text.contains("sessions and builds ended"), "{text}");
    assert_eq!(json(&agent, "alice", "status --json")["roster"]["removed"], Value::Null);
    let events = ok(&agent, "carol", "audit --json");
    assert!(events.lines().any(|line| line.contains("\"removed\"") && line.contains("bob")), "{events}");
}
