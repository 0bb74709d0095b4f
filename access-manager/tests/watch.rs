//! Webhooks with stock curl and openssl, against a watch on a real repository.

mod common;
#[path = "common/git.rs"]
mod git;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{A, B};
use git::{Scene, ok};

const SECRET: &str = "a secret of a test box";
/// Upper bound of steps that take a moment.
const PATIENCE: Duration = Duration::from_secs(60);

fn users(name: &str, key: &str) -> String {
    format!("{{ {name}.keys = \"{key}\"; }}")
}

/// A watch whose timer does not fire during a test.
struct Watch {
    scene: Scene,
    child: Child,
    address: SocketAddr,
    said: Arc<Mutex<String>>,
}

impl Watch {
    fn start() -> Watch {
        Self::of(&users("alice", A), &[])
    }

    /// A watch with more options, on a roster that lets in alice.
    fn of(users: &str, options: &[&str]) -> Watch {
        let scene = Scene::new();
        scene.commit(users, &[]);
        std::fs::write(scene.path("secret"), format!("{SECRET}\n")).unwrap();
        let secret = scene.at("secret");
        let more = ["--every", "86400", "--listen", "127.0.0.1:0", "--secret-file", &secret];
        let more = [&more, options].concat();
        let repo = scene.repository();
        let mut command = scene.command("watch", repo.to_str().unwrap(), &more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let address = first.strip_prefix("webhooks are answered on ").expect(&first).parse().unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let log = said.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let watch = Watch { scene, child, address, said };
        watch.wait("alice", || watch.scene.names() == ["alice"]);
        watch
    }

    fn wait(&self, what: &str, there: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !there() {
            assert!(Instant::now() < deadline, "{what}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    /// Sends a request with curl; returns the status of the answer.
    fn send(&self, body: &str, args: &[&str]) -> String {
        std::fs::write(self.scene.path("body"), body).unwrap();
        let data = format!("@{}", self.scene.at("body"));
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "60"]);
        curl.args(["--data-binary", &data]).args(args).arg(format!("http://{}/hook", self.address));
        ok(&mut curl)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The HMAC-SHA256 by openssl, in hexadecimal digits.
fn hmac(secret: &str, text: &str) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-r", "-hmac", secret]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn a_push_counts_at_once_when_the_webhook_of_any_forge_says_so() {
    let watch = Watch::start();
    let body = r#"{"ref":"refs/heads/somewhere-else","after":"0000"}"#;
    let digits = hmac(SECRET, body);
    let now = roster::date::now();
    let signed = hmac(SECRET, &format!("msg_1.{now}.{body}"));
    let raw: Vec<u8> =
        (0..64).step_by(2).map(|i| u8::from_str_radix(&signed[i..i + 2], 16).unwrap()).collect();
    let mut base64 = Command::new("base64").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    base64.stdin.take().unwrap().write_all(&raw).unwrap();
    let signed = String::from_utf8(base64.wait_with_output().unwrap().stdout).unwrap();
    let time = format!("webhook-timestamp: {now}");
    let requests: [&[&str]; 5] = [
        &[&format!("X-Hub-Signature-256: sha256={digits}")],
        &[&format!("X-Gitea-Signature: {digits}")],
        &[&format!("X-Forgejo-Signature: {digits}"), &format!("X-Gitea-Signature: {digits}")],
        &[&format!("X-Gitlab-Token: {SECRET}")],
        &["webhook-id: msg_1", &time, &format!("webhook-signature: v1,{}", signed.trim())],
    ];
    for (number, headers) in requests.into_iter().enumerate() {
        let name = format!("member{number}");
        watch.scene.commit(&users(&name, B), &[]);
        let args: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        assert_eq!(watch.send(body, &args), "202", "{headers:?}");
        watch.wait(&name, || watch.scene.names() == [name.as_str()]);
    }
    // The file of secrets is read anew, and two secrets count while one replaces the other.
    let next = "the next secret of the box";
    std::fs::write(watch.scene.path("secret"), format!("{SECRET}\n{next}\n")).unwrap();
    for secret in [SECRET, next] {
        let header = format!("X-Hub-Signature-256: sha256={}", hmac(secret, body));
        assert_eq!(watch.send(body, &["-H", &header]), "202");
    }
    std::fs::write(watch.scene.path("secret"), format!("{next}\n")).unwrap();
    assert_eq!(watch.send(body, &["-H", &format!("X-Gitlab-Token: {SECRET}")]), "403");
}

#[test]
fn members_for_other_boxes_stay_out_under_watch_as_under_sync() {
    let roster = format!(
        "{{ alice = {{ keys = \"{A}\"; hosts = [ \"here\" ]; }}; bob = {{ keys = \"{B}\"; hosts = [ \"there\" ]; }}; }}"
    );
    // `of` waits until the roster has alice, and nobody else.
    let watch = Watch::of(&roster, &["--host", "here"]);
    assert_eq!(watch.scene.names(), ["alice"]);
}

#[test]
fn others_who_wait_for_webhooks_are_told_of_each_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pushed");
    let watch = Watch::of(&users("alice", A), &["--touch", file.to_str().unwrap()]);
    assert!(!file.exists(), "nobody has asked yet");
    for _ in 0..2 {
        assert_eq!(watch.send("{}", &["-H", &format!("X-Gitlab-Token: {SECRET}")]), "202");
        watch.wait("the file", || file.exists());
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn who_does_not_know_the_secret_moves_nothing() {
    let watch = Watch::start();
    watch.scene.commit(&users("bob", B), &[]);
    let body = "{}";
    let digits = hmac(SECRET, body);
    for (headers, status) in [
        (&["Content-Type: application/json"][..], "401"),
        (&["X-Hub-Signature: sha1=0123"], "401"),
        (&["X-Hub-Signature-256: sha256=00"], "401"),
        (&[&format!("X-Hub-Signature-256: sha256={}", hmac("another secret of ours", body))], "403"),
        (&["X-Gitlab-Token: a secret of a test bo"], "403"),
        (&["X-Gitlab-Token;"], "403"),
    ] {
        let args: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        assert_eq!(watch.send(body, &args), status, "{headers:?}");
    }
    let header = format!("X-Hub-Signature-256: sha256={digits}");
    assert_eq!(watch.send("{ }", &["-H", &header]), "403", "another body");
    assert_eq!(watch.send(body, &["-H", &header, "-X", "PUT"]), "405");
    // One line for all of these.
    let said = watch.said();
    assert_eq!(said.matches("warning: webhook from 127.0.0.1 refused").count(), 1, "{said}");
    assert_eq!(watch.scene.names(), ["alice"]);
    assert_eq!(watch.send(body, &["-H", &header]), "202");
    watch.wait("bob", || watch.scene.names() == ["bob"]);
}

#[test]
fn what_is_too_large_or_too_slow_is_cut_off_and_the_next_webhook_counts() {
    let watch = Watch::start();
    let header = |body: &str| format!("X-Hub-Signature-256: sha256={}", hmac(SECRET, body));
    // A body that says how long it is, and one that does not.
    let large = "x".repeat(26 << 20);
    for more in [&["-H", "Expect:"][..], &["-H", "Transfer-Encoding: chunked", "-H", "Expect:"]] {
        std::fs::write(watch.scene.path("body"), &large).unwrap();
        let data = format!("@{}", watch.scene.at("body"));
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--max-time", "60"]);
        curl.args(["--data-binary", &data, "-H", &header("x")]).args(more);
        // The connection may be cut before curl has sent everything; then it reports no status.
        let output = curl.arg(format!("http://{}/", watch.address)).output().unwrap();
        let status = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(status == "413" || !output.status.success(), "{status}");
    }
    let long = format!("X-Long: {}", "y".repeat(20 << 10));
    assert_eq!(watch.send("{}", &["-H", &long, "-H", &header("{}")]), "431");

    // Sixteen clients that never finish their headers take all places, for a bounded time.
    let slow: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = TcpStream::connect(watch.address).unwrap();
            stream.write_all(b"POST / HTTP/1.1\r\nHost: box\r\nX-").unwrap();
            stream
        })
        .collect();
    for mut stream in slow {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // An answer or a reset: in any case the end.
        let _ = stream.read_to_end(&mut rest);
    }
    watch.scene.commit(&users("bob", B), &[]);
    assert_eq!(watch.send("{}", &["-H", &header("{}")]), "202");
    watch.wait("bob", || watch.scene.names() == ["bob"]);
}

#[test]
fn a_flood_of_valid_webhooks_becomes_a_few_synchronisations() {
    let watch = Watch::start();
    let header = format!("X-Gitlab-Token: {SECRET}");
    let statuses: Vec<String> = (0..60).map(|_| watch.send("{}", &["-H", &header])).collect();
    let accepted = statuses.iter().filter(|status| *status == "202").count();
    let refused = statuses.iter().filter(|status| *status == "429").count();
    assert!(accepted >= 20 && refused >= 1 && accepted + refused == 60, "{accepted} {refused}");
    let done = |said: &str| said.lines().filter(|line| line.contains("roster.json: 1 members")).count();
    watch.wait("the synchronisations", || done(&watch.said()) >= 2);
    assert!(done(&watch.said()) < accepted, "{}", watch.said());
}

#[test]
fn a_watch_does_not_start_with_a_secret_that_can_be_guessed() {
    let scene = Scene::new();
    for (secret, says) in [("short\n", "line 1 is shorter than 16"), ("\n", "it has 0 secrets")] {
        std::fs::write(scene.path("secret"), secret).unwrap();
        let file = scene.at("secret");
        let more = ["--listen", "127.0.0.1:0", "--secret-file", &file];
        let output = scene.command("watch", "/nowhere", &more).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(says), "{text}");
    }
}
