//! People without a key: the connections that they can hold, the log lines that they can cause, and the time
//! that a member waits because of them. All of them come from 127.0.0.1, the member whom they attack from
//! 127.0.0.2.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::agent::Setup;
use e2e::hostile::*;
use e2e::keys::Key;
use e2e::process::{self, Transcript};
use e2e::shared_box::{SharedBox, WORKER};
use e2e::{PATIENCE, place};

/// More than the number of places for logins: `limits.max-startups` is 256 at most.
const CROWD: usize = 600;
/// The most logins of one source at once, `limits.per-source-max-startups`.
const SHARE: usize = 128;
/// Most log lines about strangers, however many there are: a burst, and two for each second of such a test.
const MOST_LINES: usize = 250;

/// A login of alice from her own address.
fn alice_from_home(shared_box: &SharedBox, words: &[&str]) -> Command {
    let mut ssh = shared_box.ssh("alice", &[]);
    ssh.args(["-b", "127.0.0.2"]).args(words);
    ssh
}

/// Logs in again, uploads a path and queries it.
async fn alice_works(shared_box: &SharedBox, name: &str) {
    let mut session = Session::over(alice_from_home(shared_box, WORKER), MINOR).await;
    let added = session.add(name, &nar(&file(name.as_bytes()))).await;
    assert!(session.is_valid(&added).await);
    session.leave().await;
}

fn connect(shared_box: &SharedBox) -> TcpStream {
    let stranger = TcpStream::connect(("127.0.0.1", shared_box.agent.port())).expect("the box listens");
    stranger.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stranger
}

/// Everything that the box sends until it closes the connection.
fn heard(mut stranger: TcpStream) -> String {
    let mut said = Vec::new();
    // A reset after the data is no failure here.
    let _ = stranger.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

/// Number of lines logged after the first `before`.
fn logged_since(shared_box: &SharedBox, before: usize) -> usize {
    shared_box.agent.events().len() - before
}

#[tokio::test]
async fn idle_connections_of_a_stranger_keep_no_member_out() {
    let shared_box = SharedBox::of(&["alice"]);
    let mut early = Session::over(alice_from_home(&shared_box, WORKER), MINOR).await;
    let kept = early.add("kept", &nar(&file(b"kept"))).await;
    let before = shared_box.agent.events().len();
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(&shared_box)).collect();
    let start = Instant::now();
    for n in 0..5 {
        alice_works(&shared_box, &format!("work-{n}")).await;
    }
    println!("five logins and uploads beside the crowd took {:?}", start.elapsed());
    assert!(early.is_valid(&kept).await, "a session that was there before");
    until("the crowd to be smaller", || open(&crowd) <= SHARE).await;
    // From now on this source is refused, with a message that says for how long.
    let said = heard(connect(&shared_box));
    assert!(said.contains("limits.per-source-penalties") && said.contains("try again in"), "{said:?}");
    assert!(logged_since(&shared_box, before) < MOST_LINES, "{}", shared_box.agent.log_text());
    until("what was left out of the log to be counted", || {
        shared_box.agent.events().iter().any(|event| event["left_out"].as_u64().is_some())
    })
    .await;
    drop(crowd);
    early.leave().await;
}

/// Number of these connections that the box has not closed.
fn open(crowd: &[TcpStream]) -> usize {
    let is_open = |stranger: &&TcpStream| {
        let mut stranger: &TcpStream = stranger;
        stranger.set_nonblocking(true).expect("a mode");
        let mut greeting = [0; 256];
        loop {
            match stranger.read(&mut greeting) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    };
    crowd.iter().filter(is_open).count()
}

#[tokio::test]
async fn a_member_who_is_logged_in_goes_on_from_an_address_that_is_held_off() {
    let shared_box = SharedBox::of(&["alice"]);
    // Both are behind one address, as in an office.
    let mut session = shared_box.session("alice").await;
    let crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(&shared_box)).collect();
    until("the crowd to be smaller", || open(&crowd) <= SHARE).await;
    drop(crowd);
    assert!(!session.is_valid(&path("nothing")).await);
    shared_box.session("alice").await.leave().await;
    session.leave().await;
    // Now no member is logged in from this address, so its next login waits; but not for ever, and logins
    // from other addresses do not wait.
    shared_box.agent.wait_for("worker session ended");
    until("the door to close for that address", || {
        process::run(&mut shared_box.ssh("alice", &["signing-key"])).status == Some(255)
    })
    .await;
    alice_works(&shared_box, "from-elsewhere").await;
}

#[tokio::test]
async fn who_tries_many_keys_is_held_off_and_members_are_not() {
    let shared_box = SharedBox::of(&["alice"]);
    let before = shared_box.agent.events().len();
    let keys: Vec<Key> = (0..8).map(|n| Key::new(&format!("mallory-{n}"))).collect();
    let known_hosts = place::scratch("mallory");
    let probe = || -> Transcript {
        let mut ssh = keys[0].ssh(shared_box.agent.port(), &known_hosts.path().join("known_hosts"), &[]);
        for key in &keys[1..] {
            ssh.arg("-i").arg(key.private());
        }
        process::run(ssh.arg("-v").arg("signing-key")).failed()
    };
    let mut denied = 0;
    let last = loop {
        let said = probe();
        if !said.stderr.contains("Permission denied") {
            break said;
        }
        denied += 1;
        assert!(denied < 10, "{said}");
        alice_works(&shared_box, &format!("meanwhile-{denied}")).await;
    };
    assert!(denied >= 1, "one who has no key yet must be told so:\n{last}");
    for n in 0..20 {
        heard(connect(&shared_box));
        if n % 10 == 0 {
            alice_works(&shared_box, &format!("later-{n}")).await;
        }
    }
    assert!(logged_since(&shared_box, before) < MOST_LINES, "{}", shared_box.agent.log_text());
}

#[tokio::test]
async fn what_is_no_ssh_is_held_off_and_hurts_nobody() {
    let shared_box = SharedBox::of(&["alice"]);
    let before = shared_box.agent.events().len();
    // A packet shorter than it announces, one that is no key exchange, another protocol, a missing line end.
    let endless = vec![b'x'; 100_000];
    let noises: [&[u8]; 4] = [
        b"SSH-2.0-x\r\n\xff\xff\xff\xff rubbish",
        b"SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x15rubbish....",
        b"GET / HTTP/1.1\r\nHost: box\r\n\r\n",
        &endless,
    ];
    for n in 0..300 {
        let mut stranger = connect(&shared_box);
        let _ = stranger.write_all(noises[n % noises.len()]);
        heard(stranger);
        if n % 100 == 50 {
            alice_works(&shared_box, &format!("work-{n}")).await;
        }
    }
    let said = heard(connect(&shared_box));
    assert!(said.starts_with("Not allowed at this time"), "{said:?}");
    assert!(logged_since(&shared_box, before) < MOST_LINES, "{}", shared_box.agent.log_text());
}

#[tokio::test]
async fn the_deadline_for_a_login_holds_for_those_who_keep_talking() {
    let shared_box = SharedBox::with(&["alice"], Setup::default().setting("limits.login-seconds = 2"));
    let mut slow = connect(&shared_box);
    let start = Instant::now();
    // A valid greeting, a byte at a time, which never ends.
    while slow.write_all(b"S").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "still being read");
        std::thread::sleep(Duration::from_millis(100));
    }
    // And a client that greets, and then sends nothing.
    let mut mute = connect(&shared_box);
    mute.write_all(b"SSH-2.0-mute\r\n").expect("sent");
    heard(mute);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    alice_works(&shared_box, "work").await;
}
