//! The boot server over a real socket: raw requests, because HTTP clients would correct the hostile ones.

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Starts a server for a small release and sends one raw request. Returns status line with headers, and body.
async fn ask(request: &str) -> (String, String) {
    let dir = crate::testing::release();
    std::fs::write(dir.path().join("secret"), "not in the manifest").unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(run(listener, manifest::open(dir.path()).unwrap()));
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    server.abort();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn get(path: &str, extra: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: box\r\nConnection: close\r\n{extra}\r\n")
}

#[tokio::test]
async fn a_file_of_the_release_comes_whole_with_length_and_hash() {
    let (head, body) = ask(&get("/kernel", "")).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-length: 6") && head.contains("accept-ranges: bytes"), "{head}");
    let (sha256, _) = files::digest(&mut "kernel".as_bytes()).unwrap();
    assert!(head.contains(&format!("etag: \"{sha256}\"")), "{head}");
    assert_eq!(body, "kernel");
}

#[tokio::test]
async fn head_has_the_same_length_and_no_body() {
    let request = get("/boot.ipxe", "").replace("GET", "HEAD");
    let (head, body) = ask(&request).await;
    assert!(head.contains("content-length: 9"), "{head}");
    assert_eq!(body, "");
}

#[tokio::test]
async fn a_range_is_answered_with_exactly_that_part() {
    let (head, body) = ask(&get("/initrd", "Range: bytes=2-3\r\n")).await;
    assert!(head.starts_with("http/1.1 206") && head.contains("content-range: bytes 2-3/6"), "{head}");
    assert_eq!(body, "it");
    let (head, _) = ask(&get("/initrd", "Range: bytes=6-\r\n")).await;
    assert!(head.starts_with("http/1.1 416") && head.contains("content-range: bytes */6"), "{head}");
}

#[tokio::test]
async fn a_range_of_another_version_gets_the_whole_file() {
    let (head, body) = ask(&get("/initrd", "Range: bytes=2-3\r\nIf-Range: \"older\"\r\n")).await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(body, "initrd");
}

#[tokio::test]
async fn a_client_that_has_the_file_does_not_get_it_again() {
    let (sha256, _) = files::digest(&mut "kernel".as_bytes()).unwrap();
    let (head, body) = ask(&get("/kernel", &format!("If-None-Match: \"{sha256}\"\r\n"))).await;
    assert!(head.starts_with("http/1.1 304"), "{head}");
    assert_eq!(body, "");
}

#[tokio::test]
async fn nothing_outside_of_the_manifest_is_served() {
    let tries = [
        "/secret",
        "/../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/./kernel",
        "//kernel",
        "/kernel/",
        "/kernel/..",
        "/%2fetc/passwd",
        "/",
        "/KERNEL",
        "/kernel%00",
    ];
    for path in tries {
        let (head, body) = ask(&get(path, "")).await;
        assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
        assert!(!body.contains("not in the manifest") && !body.contains("root:"), "{path}: {body}");
    }
}

#[tokio::test]
async fn the_server_says_that_it_is_well() {
    assert_eq!(ask(&get("/healthz", "")).await.1, "ok\n");
}

#[test]
fn ranges_are_read_as_the_http_standard_says() {
    let part = |start, length| Range::Part { start, length };
    for (text, size, want) in [
        ("bytes=0-0", 10, part(0, 1)),
        ("bytes=5-", 10, part(5, 5)),
        ("bytes=5-99", 10, part(5, 5)),
        ("bytes=-3", 10, part(7, 3)),
        ("bytes=-30", 10, part(0, 10)),
        ("bytes=10-", 10, Range::Outside),
        ("bytes=-0", 10, Range::Outside),
        ("bytes=0-", 0, Range::Outside),
        ("bytes=5-4", 10, Range::Whole),
        ("bytes=0-1,3-4", 10, Range::Whole),
        ("bytes=-", 10, Range::Whole),
        ("bytes=+1-2", 10, Range::Whole),
        ("bytes=99999999999999999999999-", 10, Range::Whole),
        ("lines=0-1", 10, Range::Whole),
    ] {
        assert_eq!(parse_range(text, size), want, "{text}");
    }
}
