//! Strangers who say that they have a ticket, and holders of tickets who want more than their makers gave.

use std::process::{Command, Stdio};

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::process;
use e2e::shared_box::{SharedBox, WORKER};
use russh::client;
use russh::keys::PublicKeyOrCertificate;

/// Connections of a stranger that wait for a ticket: more than the places for logins of one source.
const CROWD: usize = 300;
/// The most logins of one source at once, `limits.per-source-max-startups`.
const SHARE: usize = 128;

/// Accepts any host key: the box is the one that the test has started.
struct Anybody;

impl client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A connection past the authentication, as who brings a ticket in the environment. `None`: it was closed before.
async fn waiting(shared_box: &SharedBox) -> Option<client::Handle<Anybody>> {
    let address = ("127.0.0.1", shared_box.agent.port());
    let mut session = client::connect(Default::default(), address, Anybody).await.ok()?;
    let start =
        session.authenticate_keyboard_interactive_start("ticket", Some("env".to_owned())).await.ok()?;
    matches!(start, client::KeyboardInteractiveAuthResponse::Success).then_some(session)
}

/// A login of alice from an address of her own.
async fn alice_works(shared_box: &SharedBox, name: &str) {
    let mut ssh = shared_box.ssh("alice", &[]);
    ssh.args(["-b", "127.0.0.2"]).args(WORKER);
    let mut session = Session::over(ssh, MINOR).await;
    let added = session.add(name, &nar(&file(name.as_bytes()))).await;
    assert!(session.is_valid(&added).await);
    session.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_wait_for_a_ticket_are_strangers_and_keep_no_member_out() {
    let shared_box = SharedBox::of(&["alice"]);
    let mut crowd = Vec::new();
    for n in 0..CROWD {
        crowd.extend(waiting(&shared_box).await);
        if n % 100 == 50 {
            alice_works(&shared_box, &format!("work-{n}")).await;
        }
    }
    assert!(crowd.len() > SHARE, "{} got past the authentication", crowd.len());
    until("the crowd to be smaller", || crowd.iter().filter(|session| !session.is_closed()).count() <= SHARE)
        .await;
    alice_works(&shared_box, "beside-the-crowd").await;
    drop(crowd);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_ticket_has_one_channel_that_takes_nothing_and_a_deadline() {
    let shared_box = SharedBox::with(&["alice"], Setup::default().setting("limits.login-seconds = 3"));
    let session = waiting(&shared_box).await.expect("a connection");
    let channel = session.channel_open_session().await.expect("one channel");
    session.channel_open_session().await.expect_err("a second channel");
    session.tcpip_forward("127.0.0.1", 0).await.expect_err("forwarding");
    session.channel_open_direct_tcpip("127.0.0.1", 1, "127.0.0.1", 1).await.expect_err("forwarding");
    channel.exec(true, "whoami").await.expect("sent");
    shared_box.agent.wait_for_event("the refusal", |event| {
        event["message"] == "command refused"
            && event["line"].as_str().is_some_and(|line| line.contains("this login needs a ticket"))
    });
    until("the deadline", || session.is_closed()).await;
    let is_deadline = |event: &serde_json::Value| {
        event["reason"].as_str().is_some_and(|reason| reason.contains("limits.login-seconds"))
    };
    shared_box.agent.wait_for_event("the deadline", is_deadline);

    // Data that no command reads is not kept.
    let session = waiting(&shared_box).await.expect("a connection");
    let channel = session.channel_open_session().await.expect("one channel");
    channel.data(&[7; 1000][..]).await.expect("sent");
    until("the end of the connection", || session.is_closed()).await;
    alice_works(&shared_box, "afterwards").await;
    let deadlines = shared_box.agent.events().iter().filter(|event| is_deadline(event)).count();
    assert_eq!(deadlines, 1, "the data was taken until the deadline");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_the_environment_is_tried_once() {
    let shared_box = SharedBox::of(&["alice"]);
    let session = waiting(&shared_box).await.expect("a connection");
    let channel = session.channel_open_session().await.expect("one channel");
    for guess in ["", "barnraiser-ticket-", "x"] {
        // The later ones find the connection closed.
        let _ = channel.set_env(false, "BARNRAISER_TICKET", guess).await;
    }
    until("the end of the connection", || session.is_closed()).await;
    shared_box.agent.wait_for("login denied: no ticket has this token");
    assert_eq!(shared_box.agent.count("login denied: no ticket has this token"), 1);
}

/// The OpenSSH client of a holder.
fn holder(shared_box: &SharedBox, token: &str, words: &[&str]) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "LogLevel=ERROR",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
    ])
    .args(["-o", "PreferredAuthentications=keyboard-interactive", "-o", "KbdInteractiveDevices=env"])
    .args(["-o", &format!("SetEnv=BARNRAISER_TICKET={token}")])
    .args(["-p", &shared_box.agent.port().to_string(), "ticket@127.0.0.1"])
    .args(words)
    .env_remove("SSH_AUTH_SOCK")
    .stdin(Stdio::null());
    ssh
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_does_not_get_the_role_the_paths_or_the_connections_of_the_maker() {
    let setup = Setup::default().setting("limits.max-connections-per-member = 3");
    let shared_box = SharedBox::with(&["alice"], setup);
    let made =
        process::run(&mut shared_box.ssh("alice", &["ticket", "create", "--name", "friend", "--json"])).ok();
    let made: serde_json::Value = serde_json::from_str(&made.stdout).expect("JSON");
    let token = made["token"].as_str().expect("a token").to_owned();
    let mut alice = shared_box.session("alice").await;
    let secret = nar(&file(b"secret"));
    alice.upload(&info("secret", &secret), &secret).await;
    let mut friend = Session::over(holder(&shared_box, &token, WORKER), MINOR).await;
    assert!(alice.is_valid(&path("secret")).await && !friend.is_valid(&path("secret")).await);
    let poison = nar(&file(b"poison"));
    friend.upload(&info("poison", &poison), &poison).await;
    assert!(friend.is_valid(&path("poison")).await && !alice.is_valid(&path("poison")).await);
    let _third = shared_box.session("alice").await;
    // The fourth connection of alice, whoever opens it.
    let refused = process::run(&mut holder(&shared_box, &token, &["whoami"])).failed();
    assert!(refused.stderr.contains("limits.max-connections-per-member"), "{refused}");
}
