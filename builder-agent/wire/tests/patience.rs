//! A client that stops in the middle of a message gets an error and is disconnected; a slow or idle client is
//! not.

use std::time::{Duration, Instant};

use nix_derivation::StorePath;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use wire::client::{Client, encode_request};
use wire::worker::{Connection, Request, Response, ServerInfo};
use wire::{PIECE, PatientWriter, Terms, WireError};

const STALL: Duration = Duration::from_millis(300);

fn info() -> ServerInfo {
    let mut info = ServerInfo::new("2.34.0 (test)");
    info.terms = Terms { stall: Some(STALL), ..Terms::default() };
    info
}

fn path() -> StorePath {
    StorePath::from_basename(b"ib3sh3pcz10wsmavxvkdbayhqivbghlq-hello").expect("a path")
}

/// A server, and a client that has shaken hands with it.
async fn connected() -> (
    Connection<impl tokio::io::AsyncRead + Unpin, impl tokio::io::AsyncWrite + Unpin>,
    Client<tokio::io::ReadHalf<tokio::io::DuplexStream>, tokio::io::WriteHalf<tokio::io::DuplexStream>>,
) {
    let (ours, theirs) = duplex(4096);
    let (ours, theirs) = (tokio::io::split(ours), tokio::io::split(theirs));
    let (server, client) = tokio::join!(
        Connection::accept(ours.0, ours.1, info()),
        Client::connect(theirs.0, theirs.1, 38, &[]),
    );
    (server.expect("a server"), client.expect("a client"))
}

#[tokio::test]
async fn half_a_request_is_waited_for_only_so_long() {
    let (mut server, mut client) = connected().await;
    client.send(&26u64.to_le_bytes()[..4]).await.expect("sent");
    let start = Instant::now();
    let error = server.next_request().await.expect_err("half a request");
    assert!(matches!(error, WireError::NothingSent { .. }) && !error.is_disconnect(), "{error}");
    assert!(error.to_string().contains("connect again"), "{error}");
    assert!(start.elapsed() >= STALL);
}

#[tokio::test]
async fn a_byte_now_and_then_buys_no_time() {
    let (mut server, mut client) = connected().await;
    let dripping = tokio::spawn(async move {
        let request = Request::IsValidPath { path: path() };
        for byte in encode_request(&request, client.protocol) {
            let _ = client.send(&[byte]).await;
            tokio::time::sleep(STALL / 10).await;
        }
    });
    let start = Instant::now();
    let error = server.next_request().await.expect_err("too slow");
    assert!(matches!(error, WireError::NothingSent { .. }), "{error}");
    assert!(start.elapsed() < 4 * STALL, "{:?}", start.elapsed());
    dripping.abort();
}

#[tokio::test]
async fn between_requests_nothing_hurries() {
    let (mut server, mut client) = connected().await;
    for _ in 0..2 {
        tokio::time::sleep(2 * STALL).await;
        client.request(&Request::IsValidPath { path: path() }).await.expect("sent");
        server.next_request().await.expect("good").expect("a request");
        server.reply(&Response::Bool(true)).await.expect("answered");
        server.flush().await.expect("sent");
        client.done().await.expect("good");
        assert_eq!(client.u64().await.expect("an answer"), 1);
    }
    let waiting = tokio::time::timeout(3 * STALL, server.next_request()).await;
    assert!(waiting.is_err(), "an idle client is left in peace");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_the_connection() {
    let (mut server, mut client) = connected().await;
    client.request(&Request::QueryAllValidPaths).await.expect("sent");
    server.next_request().await.expect("good").expect("a request");
    let error = server.reply(&Response::Paths(vec![path(); 10_000])).await.expect_err("nobody reads");
    assert!(matches!(error, WireError::NothingTaken { .. }) && error.is_disconnect(), "{error}");
}

#[tokio::test]
async fn a_slow_reader_that_takes_its_pieces_in_time_gets_everything() {
    let (ours, mut theirs) = duplex(4096);
    let sent = 4 * PIECE as usize;
    let writing = tokio::spawn(async move {
        let mut writer = PatientWriter::new(ours, STALL);
        writer.write_all(&vec![1; sent]).await?;
        writer.flush().await
    });
    let mut got = 0;
    let mut piece = vec![0; PIECE as usize];
    while got < sent {
        // Each piece takes two thirds of the allowed time.
        tokio::time::sleep(STALL * 2 / 3).await;
        let want = piece.len().min(sent - got);
        got += theirs.read_exact(&mut piece[..want]).await.expect("it goes on");
    }
    writing.await.expect("no panic").expect("all was taken in time");
}
