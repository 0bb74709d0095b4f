//! Attacks that were published on Nix, on micro-VMs and on the ssh library, by name.
//! `docs/design/published-attacks.md` has the whole list; the tests here need a real agent.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use e2e::hostile::{Session, TestBox, derivation, info, nar, path, tokens, within};
use e2e::place;
use e2e::published::LOOK_FOR_A_WAY_OUT;
use wire::client::End;

/// Nix: `BuildResult::Built`.
const BUILT: u64 = 0;

#[tokio::test]
async fn a_builder_finds_no_socket_and_no_writable_file_of_the_host() {
    // A process in the same network namespace could connect to it.
    let address =
        SocketAddr::from_abstract_name(format!("barnraiser-{}", std::process::id())).expect("an address");
    let _listening = UnixListener::bind_addr(&address).expect("a socket");
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("the sockets of this machine");
    assert!(sockets.contains("@barnraiser-"), "the script would see it if it were there");
    let test_box = TestBox::open(&[]).await;
    let mut session = test_box.session().await;
    let told = session.build(derivation(&test_box, "way-out", LOOK_FOR_A_WAY_OUT)).await;
    assert_eq!(told.status, BUILT, "{told:?}");
    // Other users cannot read the builder's own folder.
    let told = session.build(derivation(&test_box, "own-folder", "$bb stat -c %a /build; echo > $out")).await;
    assert_eq!((told.status, told.log[1].as_str()), (BUILT, "700"), "{told:?}");
    session.leave().await;
    test_box.close().await;
}

#[tokio::test]
async fn an_output_that_is_a_link_is_kept_as_a_link_and_never_followed() {
    let test_box = TestBox::open(&[]).await;
    let dir = place::scratch("target");
    let target = dir.path().join("passwd");
    std::fs::write(&target, "root:x:0:0").expect("a file of the host");
    let shown = target.display();
    // Also beside the output, under the names that builders use for copies.
    let script = format!(
        "echo evil > /build/evil; for l in $out $out.tmp $out.lock $out.chroot; do $bb ln -s {shown} $l; done"
    );
    let mut session = test_box.session().await;
    let told = session.build(derivation(&test_box, "link", &script)).await;
    assert_eq!(told.status, BUILT, "{told:?}");
    let kept = session.nar(&path("link")).await;
    let link = tokens(&[b"(", b"type", b"symlink", b"target", target.as_os_str().as_encoded_bytes(), b")"]);
    assert_eq!(kept, nar(&link));
    assert_eq!(std::fs::read_to_string(&target).expect("still there"), "root:x:0:0");
    session.leave().await;
    test_box.close().await;
}

/// Far more levels than the stack of a recursive parser would survive.
const LEVELS: usize = 50_000;

fn nested() -> Vec<u8> {
    let level = tokens(&[b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node"]);
    [tokens(&[b"nix-archive-1"]), level.repeat(LEVELS)].concat()
}

/// Before 1.21 an archive is sent bare; before 1.23 the server requests it in pieces; since then it is sent
/// in frames.
#[tokio::test]
async fn an_archive_nested_without_end_is_refused_in_every_version_of_the_protocol() {
    let test_box = TestBox::open(&[]).await;
    let archive = nested();
    for minor in [18, 20, 21, 22, 23, 38] {
        let mut session = Session::open(&test_box, minor).await;
        let name = format!("nested-{minor}");
        session.announce(&info(&name, &archive)).await;
        let sent = async {
            match minor {
                ..21 => session.send(&archive).await,
                21..23 => {}
                _ => drop(session.client.framed(&archive).await),
            }
            let mut at = 0;
            loop {
                match session.client.log().await.expect("an answer").1 {
                    End::Read(wanted) => {
                        let piece = &archive[at..archive.len().min(at + wanted as usize)];
                        at += piece.len();
                        session.send(&tokens(&[piece])).await;
                    }
                    End::Error(message) => break message,
                    other => panic!("1.{minor}: {other:?}"),
                }
            }
        };
        let message = within("an error", sent).await;
        assert!(message.contains("nested"), "1.{minor}: {message}");
        assert!(!test_box.session().await.is_valid(&path(&name)).await);
    }
    test_box.close().await;
}

/// Sends bytes without a key. Returns the agent's answer, after which the agent must hang up.
fn hung_up_on(port: u16, bytes: &[u8]) -> Vec<u8> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    // The agent may hang up during the write.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error} after {:?}", began.elapsed()),
    }
    // The agent must hang up earlier than at the login time-out.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    answer
}

/// Without this setting the second attempt from an address would be refused at once.
const EACH_IS_HEARD: &str = "limits.per-source-penalties = \"no\"";

#[tokio::test]
async fn who_chats_before_saying_ssh_is_hung_up_on() {
    let test_box = TestBox::open(&[EACH_IS_HEARD]).await;
    let chatter = b"hello\r\n".repeat(100_000);
    hung_up_on(test_box.agent.port(), &chatter);
    hung_up_on(test_box.agent.port(), &[b'x'; 100_000]);
    test_box.close().await;
}

#[tokio::test]
async fn a_packet_that_announces_gigabytes_costs_no_memory_and_ends_the_connection() {
    let test_box = TestBox::open(&[EACH_IS_HEARD]).await;
    let before = resident_kib(test_box.agent.pid());
    for length in [0x7fff_fff0_u32, u32::MAX, 0x1000_0000] {
        let packet = [b"SSH-2.0-attack\r\n".as_slice(), &length.to_be_bytes(), &[4; 64]].concat();
        for _ in 0..20 {
            hung_up_on(test_box.agent.port(), &packet);
        }
    }
    let grown = resident_kib(test_box.agent.pid()).saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more");
    test_box.close().await;
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the agent's status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak memory");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

/// Libraries that we link and in which a vulnerability was published, and the first version with the fix.
const MENDED: [(&str, &str, [u32; 3]); 4] = [
    ("CVE-2024-43410", "russh", [0, 44, 1]),
    ("CVE-2026-42189", "russh", [0, 60, 1]),
    ("CVE-2026-46702", "russh", [0, 61, 1]),
    ("CVE-2026-48108", "russh", [0, 61, 0]),
];

#[test]
fn libraries_with_published_holes_are_linked_in_versions_that_mended_them() {
    let lock = std::fs::read_to_string(place::project().join("Cargo.lock")).expect("Cargo.lock");
    for (name, library, mended) in MENDED {
        let versions: Vec<[u32; 3]> = lock
            .split("[[package]]")
            .filter(|package| package.contains(&format!("\nname = \"{library}\"\n")))
            .map(|package| {
                let version = package.split("version = \"").nth(1).and_then(|rest| rest.split('"').next());
                let numbers =
                    version.expect("a version").split(['-', '+']).next().expect("numbers").split('.');
                let numbers: Vec<u32> = numbers.map(|number| number.parse().expect("a number")).collect();
                numbers.try_into().expect("three numbers")
            })
            .collect();
        assert!(!versions.is_empty(), "{library} is not linked any more: {name} can go");
        assert!(versions.iter().all(|version| *version >= mended), "{name}: {library} {versions:?}");
    }
}
