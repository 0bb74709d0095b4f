//! Logins with OpenSSH certificates, made by the real ssh-keygen and offered by the real client.

mod common;

use std::process::{Command, Stdio};

use common::{Agent, becomes_true, make_key, open_session};
use serde_json::json;

/// A roster of these members by name and key lines.
fn put_roster(agent: &Agent, members: &[(&str, String)]) {
    let members: Vec<_> = members
        .iter()
        .map(|(name, line)| json!({ "name": name, "keys": [line], "role": "member" }))
        .collect();
    let roster = json!({ "schema": 1, "commit": null, "source": "changed", "members": members });
    let temporary = agent.path().join("roster.new");
    std::fs::write(&temporary, roster.to_string()).expect("roster");
    std::fs::rename(&temporary, agent.path().join("roster.json")).expect("roster");
}

fn public(agent: &Agent, key: &str) -> String {
    std::fs::read_to_string(agent.path().join(format!("{key}.pub"))).expect("a key").trim().to_owned()
}

/// An agent with bob, who has a plain key, and alice, who has the authority `ca`.
fn start() -> Agent {
    // These logins fail more often than one address may.
    let agent = Agent::start(&["bob"], "[limits]\nper-source-penalties = \"no\"");
    for key in ["ca", "other-ca", "key"] {
        make_key(&agent.path().join(key));
    }
    put_roster(
        &agent,
        &[("alice", format!("cert-authority {}", public(&agent, "ca"))), ("bob", public(&agent, "bob"))],
    );
    wait_for_roster(&agent, 2);
    agent
}

/// Waits until the agent has loaded this many rosters.
fn wait_for_roster(agent: &Agent, number: usize) {
    let is_loaded = becomes_true(|| agent.log_text().matches("roster loaded").count() >= number);
    assert!(is_loaded, "{}", agent.log_text());
}

/// Signs `key.pub` again; the client finds `key-cert.pub` by itself.
fn certify(agent: &Agent, authority: &str, options: &[&str]) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-s"])
        .arg(agent.path().join(authority))
        .args(["-I", "a certificate"])
        .args(options)
        .arg(agent.path().join("key.pub"))
        .output()
        .expect("ssh-keygen");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Logs in and sends a small request; returns the client's error.
fn knock(agent: &Agent, user: &str) -> Result<(), String> {
    let output = ssh_as(agent, user, "key").arg("signing-key").output().expect("ssh");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// A client that logs in with this user name. Options come first: the last word of [`Agent::ssh`] is the
/// host.
fn ssh_as(agent: &Agent, user: &str, key: &str) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-l", user]);
    ssh.args(agent.ssh(key).get_args().map(|arg| match arg.to_str() {
        Some("anyone@127.0.0.1") => "127.0.0.1".into(),
        _ => arg.to_owned(),
    }));
    ssh.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
    ssh
}

#[test]
fn a_certificate_of_the_rosters_authority_lets_its_member_in_and_no_other_does() {
    let agent = start();
    assert!(knock(&agent, "alice").is_err(), "the bare key is nobody's");
    let good = ["-n", "alice"];
    certify(&agent, "ca", &good);
    knock(&agent, "alice").expect("a good certificate");
    // With any user name: the client offers the key first, then its certificate.
    knock(&agent, "root").expect("a good certificate");
    knock(&agent, "bob").expect("a good certificate");
    assert_eq!(agent.wait_for("logged in")["member"], "alice");

    for (authority, options) in [
        ("other-ca", &["-n", "alice"][..]),
        ("ca", &["-n", "bob"]),
        ("ca", &["-n", "alicex"]),
        ("ca", &[]),
        ("ca", &["-n", "alice", "-V", "-2h:-1h"]),
        ("ca", &["-n", "alice", "-V", "+1h:+2h"]),
        ("ca", &["-n", "alice", "-h"]),
        ("ca", &["-n", "alice", "-O", "force-command=nix-daemon --stdio"]),
        ("ca", &["-n", "alice", "-O", "verify-required"]),
        ("ca", &["-n", "alice", "-O", "critical:no-mondays@example.org=yes"]),
        ("ca", &["-n", "alice", "-O", "source-address=198.51.100.0/24"]),
        // Signed by the certified key itself.
        ("key", &["-n", "alice"]),
    ] {
        certify(&agent, authority, options);
        for user in ["alice", "bob"] {
            let error = knock(&agent, user).expect_err(&format!("{authority} {options:?} as {user}"));
            assert!(error.contains("Permission denied") || error.contains("Too many"), "{error}");
        }
    }
    certify(
        &agent,
        "ca",
        &["-n", "alice,others", "-V", "-1h:+1h", "-O", "source-address=127.0.0.0/8,::1/128"],
    );
    knock(&agent, "alice").expect("a certificate for here and now");
}

#[test]
fn principals_of_the_roster_take_the_place_of_the_name() {
    let agent = start();
    let line = format!("cert-authority,principals=\"builders,ops\" {}", public(&agent, "ca"));
    put_roster(
        &agent,
        &[("alice", line.clone()), ("carol", format!("cert-authority {}", public(&agent, "other-ca")))],
    );
    wait_for_roster(&agent, 3);
    certify(&agent, "ca", &["-n", "ops"]);
    knock(&agent, "alice").expect("a principal of the list");
    certify(&agent, "ca", &["-n", "alice"]);
    knock(&agent, "alice").expect_err("the name is not in the list");
}

#[test]
fn an_authority_that_leaves_the_roster_takes_its_sessions_with_it() {
    let agent = start();
    certify(&agent, "ca", &["-n", "alice"]);
    let (mut alice, mut bob) = (open_session(ssh_as(&agent, "alice", "key")), agent.open_session("bob"));
    let _stdin = alice.stdin.take();
    // Alice stays, with another authority.
    put_roster(
        &agent,
        &[
            ("alice", format!("cert-authority {}", public(&agent, "other-ca"))),
            ("bob", public(&agent, "bob")),
        ],
    );
    let output = alice.wait_with_output().expect("ended");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("alice or this key is no longer in the roster"), "{text}");
    assert_eq!(bob.try_wait().expect("wait"), None, "bob must stay");
    knock(&agent, "alice").expect_err("the authority is gone");
    bob.kill().expect("killed");
    bob.wait().expect("ended");
}

#[test]
fn a_key_of_two_members_asks_for_the_user_name_and_says_so() {
    let agent = start();
    let line = public(&agent, "key");
    put_roster(&agent, &[("dora", line.clone()), ("dora-untrusted", line), ("bob", public(&agent, "bob"))]);
    wait_for_roster(&agent, 3);
    let said = knock(&agent, "anyone").expect_err("which one?");
    assert!(
        said.contains("this key belongs to dora and dora-untrusted") && said.contains("dora@host"),
        "{said}"
    );
    agent.wait_for("login denied");
    for who in ["dora", "dora-untrusted"] {
        knock(&agent, who).expect(who);
        assert!(agent.log_text().contains(&format!("\"member\":\"{who}\"")), "{}", agent.log_text());
    }
    let output = agent.ssh("bob").arg("signing-key").output().expect("ssh");
    assert!(output.status.success(), "an unambiguous key needs no name");
}
