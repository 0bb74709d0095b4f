//! Messages and archives that a correct client never sends, through the stock ssh client to a real agent.
//! Each causes one error that names the value; nothing of it becomes visible; the box continues to serve.
//!
//! `wire/tests/hostile.rs` tests the limits of every field of every request, `store/tests/hostile_nar.rs`
//! every rule of NARs; the tests here are those that need the whole box.

use std::collections::BTreeSet;
use std::process::Stdio;

use e2e::hostile::*;
use e2e::process::status_kib;
use nix::PathInfo;
use nix_derivation::{CAHash, HashAlgorithm, hash_bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::client::{encode_frames, encode_request};
use wire::worker::{CLIENT_MAGIC, Protocol, Request, SERVER_MAGIC};

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The output of ssh for a client that sends these bytes and then only reads.
async fn greeted_with(test_box: &TestBox, bytes: &[u8]) -> (Vec<u8>, String) {
    let mut ssh = test_box.ssh();
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut ssh = tokio::process::Command::from(ssh).spawn().expect("ssh");
    let mut stdin = ssh.stdin.take().expect("piped");
    stdin.write_all(bytes).await.expect("ssh reads");
    // The box must end the connection: our side stays open.
    let output = within("the box to hang up", ssh.wait_with_output()).await.expect("output");
    drop(stdin);
    assert_eq!(output.status.code(), Some(1));
    (output.stdout, String::from_utf8(output.stderr).expect("text"))
}

#[tokio::test]
async fn who_does_not_greet_like_a_nix_client_is_told_so_on_stderr() {
    let test_box = TestBox::open(&[]).await;
    for (bytes, part) in [
        (numbers(&[0x2f31_2e31_5054_5448]), "this is no Nix client: it greeted with 0x2f312e3150545448"),
        (
            numbers(&[CLIENT_MAGIC, u64::MAX]),
            "bad version in the handshake: \"0xffffffffffffffff\" is not a protocol version",
        ),
        (
            numbers(&[CLIENT_MAGIC, 0x126, 1 << 40]),
            "bad features in the handshake: 1099511627776 entries, at most",
        ),
    ] {
        let (_, said) = greeted_with(&test_box, &bytes).await;
        println!("{said}");
        assert!(said.contains(part), "{part:?} is not in {said:?}");
        assert_eq!(said.lines().filter(|line| line.contains("error: ")).count(), 1, "{said}");
    }
    test_box.close().await;
}

#[tokio::test]
async fn an_ancient_client_is_told_to_upgrade() {
    let test_box = TestBox::open(&[]).await;
    let (answer, _) = greeted_with(&test_box, &numbers(&[CLIENT_MAGIC, 0x10a])).await;
    const ERROR: u64 = 0x6378_7470;
    assert_eq!(answer[..8], SERVER_MAGIC.to_le_bytes());
    assert_eq!(answer[16..24], ERROR.to_le_bytes());
    let text = String::from_utf8_lossy(&answer[24..]);
    assert!(
        text.contains("speaks version 1.10 of the protocol and we need 1.18 or newer: use Nix 2.0 or newer"),
        "{text}"
    );
    test_box.close().await;
}

/// A session that sends these bytes in place of a request.
async fn refused_and_ended(test_box: &TestBox, bytes: &[u8], parts: &[&str]) {
    let mut session = test_box.session().await;
    session.send(bytes).await;
    session.refused(parts).await;
    session.ended().await;
}

#[tokio::test]
async fn an_operation_that_does_not_exist_is_named() {
    let test_box = TestBox::open(&[]).await;
    refused_and_ended(
        &test_box,
        &numbers(&[9999, 1, 2, 3]),
        &["operation 9999 is not known here", "newer than ours?"],
    )
    .await;
    test_box.close().await;
}

/// Peak memory of this process, in KiB.
fn peak_kib(pid: u32) -> u64 {
    status_kib(pid, "VmHWM")
}

#[tokio::test]
async fn oversized_messages_are_refused_before_they_are_allocated() {
    let test_box = TestBox::open(&[]).await;
    let nar = nar(&file(b"x"));
    let announced = Request::AddToStoreNar { info: info("a", &nar), repair: false, dont_check_sigs: true };
    let mut framed = encode_request(&announced, Protocol::plain(MINOR));
    framed.extend(numbers(&[1 << 32]));
    let before = peak_kib(test_box.agent.pid());
    for (bytes, part) in [
        (
            numbers(&[1, 1 << 63]),
            "bad path in IsValidPath: 9223372036854775808 bytes, at most 255 are accepted",
        ),
        (
            numbers(&[31, 1 << 40]),
            "bad paths in QueryValidPaths: 1099511627776 entries, at most 500000 are accepted",
        ),
        (
            [numbers(&[8]), tokens(&[b"t"]), numbers(&[(64 << 20) + 1])].concat(),
            "bad text in AddTextToStore: 67108865 bytes, at most 67108864 are accepted",
        ),
        (
            framed,
            "bad the length of a frame in AddToStoreNar: 4294967296 bytes, at most 4294967295 are accepted",
        ),
    ] {
        refused_and_ended(&test_box, &bytes, &[part]).await;
    }
    // Terabytes were announced. Ssh and threads need a little memory.
    let grown = peak_kib(test_box.agent.pid()) - before;
    assert!(grown < 16 << 10, "the agent grew by {grown} KiB");
    test_box.close().await;
}

#[tokio::test]
async fn padding_must_be_zero() {
    let test_box = TestBox::open(&[]).await;
    let bytes = [&numbers(&[1, 9])[..], b"/nix/stor\0\0\x01\0\0\0\0"].concat();
    refused_and_ended(&test_box, &bytes, &["bad path in IsValidPath: the padding after 9 bytes is not zero"])
        .await;
    test_box.close().await;
}

#[tokio::test]
async fn what_is_not_a_store_path_is_quoted() {
    let test_box = TestBox::open(&[]).await;
    for text in [
        "",
        "/etc/passwd",
        "/nix/store/../../etc/passwd",
        "/nix/store/short-a",
        "/nix/store/00000000000000000000000000000000-a/bin",
        "/nix/store/00000000000000000000000000000000-.",
        "/nix/store/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-a",
    ] {
        let bytes = [numbers(&[1]), tokens(&[text.as_bytes()])].concat();
        let quoted = format!("\"{text}\" is not a store path: ");
        refused_and_ended(&test_box, &bytes, &["bad path in IsValidPath: ", &quoted]).await;
    }
    test_box.close().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_anywhere_in_a_message_changes_nothing() {
    let test_box = TestBox::open(&[]).await;
    let nar = nar(&file(&[7; 1000]));
    let request = Request::AddToStoreNar { info: info("cut", &nar), repair: false, dont_check_sigs: true };
    let arguments = encode_request(&request, Protocol::plain(MINOR));
    let whole = [&arguments[..], &encode_frames(&nar, 256)].concat();
    // In the number, in the first length, in a path, before the first frame, in one, between two, and in the
    // last. (A NAR that is complete and as announced may be accepted even if the end of its message never
    // comes.)
    let end = whole.len() - 8;
    let cuts = [1, 12, 40, arguments.len(), arguments.len() + 100, arguments.len() + 8 + 256, end - 1];
    for len in cuts {
        let mut session = test_box.session().await;
        session.send(&whole[..len]).await;
        session.hang_up().await;
        let mut session = test_box.session().await;
        assert!(!session.is_valid(&path("cut")).await, "valid after {len} of {} bytes", whole.len());
    }
    // In the handshake.
    for len in [0, 4, 8, 12] {
        let (mut ssh, mut reader, mut writer) = test_box.pipe();
        writer.write_all(&numbers(&[CLIENT_MAGIC, 0x126])[..len]).await.expect("ssh reads");
        drop(writer);
        within("the end", reader.read_to_end(&mut Vec::new())).await.expect("read");
        within("ssh", ssh.wait()).await.expect("wait");
    }
    let mut session = test_box.session().await;
    session.send(&whole).await;
    within("an answer", session.client.done()).await.expect("whole, it is taken");
    session.leave().await;
    assert!(test_box.close().await.contains(&path("cut")));
}

/// Uploads a path that the store refuses. The session continues, and the path is not valid.
async fn refused_upload(test_box: &TestBox, info: &PathInfo, body: &[u8], parts: &[&str]) {
    let mut session = test_box.session().await;
    session.add_nar(info, body).await;
    session.refused(parts).await;
    assert!(!session.is_valid(&info.path).await);
    session.leave().await;
}

#[tokio::test]
async fn archives_with_impossible_names_or_order_are_refused() {
    let test_box = TestBox::open(&[]).await;
    let f = || file(b"x");
    for (name, entries, parts) in [
        ("up", vec![("..", f())], ["entry name", "\"..\""]),
        ("here", vec![(".", f())], ["entry name", "\".\""]),
        ("slash", vec![("a/b", f())], ["entry name", "\"a/b\""]),
        ("absolute", vec![("/etc", f())], ["entry name", "\"/etc\""]),
        ("nul", vec![("a\0b", f())], ["entry name", "a\\"]),
        ("empty", vec![("", f())], ["invalid NAR at byte", "of 0 bytes"]),
        ("twice", vec![("a", f()), ("a", f())], ["\"a\"", "entries must be sorted and unique"]),
        ("unsorted", vec![("b", f()), ("a", f())], ["\"a\"", "entries must be sorted and unique"]),
    ] {
        let nar = nar(&directory(&entries));
        refused_upload(&test_box, &info(name, &nar), &nar, &parts).await;
    }
    let mut session = test_box.session().await;
    let fine = nar(&directory(&[("a", f()), ("b", directory(&[("a", f())]))]));
    session.add_nar(&info("fine", &fine), &fine).await;
    within("an answer", session.client.done()).await.expect("sorted and unique, it is taken");
    session.leave().await;
    assert!(test_box.close().await.contains(&path("fine")));
}

#[tokio::test]
async fn a_tree_deeper_than_nix_allows_is_refused() {
    let test_box = TestBox::open(&[]).await;
    let deep = (0..1000).fold(file(b"x"), |node, _| directory(&[("d", node)]));
    let nar = nar(&deep);
    refused_upload(&test_box, &info("deep", &nar), &nar, &["nested too deep at byte", "at most 64 levels"])
        .await;
    test_box.close().await;
}

#[tokio::test]
async fn an_archive_that_is_not_what_was_announced_is_refused() {
    let test_box = TestBox::open(&["limits.max-nar-mib = 4"]).await;
    let whole = nar(&file(&[7; 5000]));
    let good = info("a", &whole);
    let path = good.path.to_string();
    refused_upload(&test_box, &good, &whole[..3000], &["NAR is truncated: it ends at byte 3000"]).await;
    let other = nar(&file(&[8; 5000]));
    refused_upload(
        &test_box,
        &good,
        &other,
        &["hash mismatch importing path", &path, "announced sha256:", "got sha256:"],
    )
    .await;
    let lie = PathInfo { nar_size: 42, ..good.clone() };
    let got = format!("got {}", whole.len());
    refused_upload(
        &test_box,
        &lie,
        &whole,
        &["size mismatch importing path", &path, "announced 42 bytes", &got],
    )
    .await;
    refused_upload(
        &test_box,
        &good,
        b"GET / HTTP/1.1\r\n\r\n and so on and so forth",
        &["invalid NAR at byte 0"],
    )
    .await;
    test_box.close().await;
}

#[tokio::test]
async fn an_archive_over_the_limit_of_the_box_is_refused() {
    let test_box = TestBox::open(&["limits.max-nar-mib = 4"]).await;
    let large = nar(&file(&vec![7; 5 << 20]));
    let mut session = test_box.session().await;
    session.add_nar(&info("large", &large), &large).await;
    session.refused(&["4194304"]).await;
    drop(session);
    let mut session = test_box.session().await;
    assert!(!session.is_valid(&path("large")).await);
    session.leave().await;
    test_box.close().await;
}

#[tokio::test]
async fn a_content_address_that_does_not_hold_is_refused() {
    let test_box = TestBox::open(&[]).await;
    let contents = nar(&file(b"contents"));
    let address = |nar: &[u8]| Some(CAHash::Nar(hash_bytes(HashAlgorithm::Sha256, nar)));
    let lie = PathInfo { ca: address(b"something else"), ..info("lie", &contents) };
    refused_upload(
        &test_box,
        &lie,
        &contents,
        &["announces content address 'fixed:r:sha256:", "but its contents have"],
    )
    .await;
    let misplaced = PathInfo { ca: address(&contents), ..info("misplaced", &contents) };
    refused_upload(&test_box, &misplaced, &contents, &["contents and references of", "belong at"]).await;
    test_box.close().await;
}

#[tokio::test]
async fn a_path_whose_reference_is_missing_is_refused() {
    let test_box = TestBox::open(&[]).await;
    let contents = nar(&file(b"contents"));
    let missing = path("missing");
    let dangling = PathInfo { references: BTreeSet::from([missing.clone()]), ..info("dangling", &contents) };
    let parts = [&format!("its reference '{missing}' is not valid"), "upload that first"];
    refused_upload(&test_box, &dangling, &contents, &parts.map(|part| part as &str)).await;
    test_box.close().await;
}

#[tokio::test]
async fn of_several_paths_with_one_bad_none_becomes_visible() {
    let test_box = TestBox::open(&[]).await;
    let good = nar(&file(b"good"));
    let bad = nar(&directory(&[("b", file(b"x")), ("a", file(b"x"))]));
    let up = nar(&directory(&[("..", file(b"x"))]));
    let first = || (info("first", &good), good.clone());
    for (body, part, goes_on) in [
        (
            items(2, &[first(), (info("second", &bad), bad.clone())]),
            "entries must be sorted and unique",
            true,
        ),
        (items(2, &[first(), (info("second", &up), up.clone())]), "\"..\" cannot be a file name", false),
        (items(2, &[first()]), "the body ended there", false),
        (items(u64::MAX, &[first()]), "18446744073709551615 entries, at most 500000 are accepted", false),
    ] {
        let mut session = test_box.session().await;
        session.request(&Request::AddMultipleToStore { repair: false, dont_check_sigs: true }).await;
        session.send(&encode_frames(&body, 32 << 10)).await;
        session.refused(&[part]).await;
        if goes_on {
            assert!(!session.is_valid(&path("first")).await);
            session.leave().await;
        } else {
            session.ended().await;
        }
        let mut session = test_box.session().await;
        for name in ["first", "second"] {
            assert!(!session.is_valid(&path(name)).await, "{name} is visible");
        }
        session.leave().await;
    }
    test_box.close().await;
}

#[tokio::test]
async fn an_upload_broken_off_in_the_middle_leaves_nothing() {
    let test_box = TestBox::open(&[]).await;
    let large = nar(&file(&vec![7; 8 << 20]));
    for power_loss in [false, true] {
        let mut session = test_box.session().await;
        session.announce(&info("large", &large)).await;
        session.send(&encode_frames(&large, 32 << 10)[..4 << 20]).await;
        let temporary = test_box.store_dir().join("tmp");
        until("the upload to reach the disk", || std::fs::read_dir(&temporary).expect("tmp").count() > 0)
            .await;
        if power_loss {
            session.vanish().await;
        } else {
            session.hang_up().await;
        }
        test_box.still_serves().await;
        let mut session = test_box.session().await;
        assert!(!session.is_valid(&path("large")).await);
        session.leave().await;
    }
    let mut session = test_box.session().await;
    session.add_nar(&info("large", &large), &large).await;
    within("an answer", session.client.done()).await.expect("whole, it is taken");
    session.leave().await;
    assert!(test_box.close().await.contains(&path("large")));
}
