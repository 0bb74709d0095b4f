//! The client against the server, for every version: the handshake, pipelining, logs, and hang-ups.

mod common;

use std::time::Duration;

use common::*;
use nix::BuildMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::mpsc;
use wire::WireError;
use wire::client::{Client, End, Frame, encode_request};
use wire::worker::{
    Connection, Failure, Features, LogEvent, Protocol, Request, Response, ServerInfo, Version,
};

type Halves = (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>);

fn pipe() -> (Halves, Halves) {
    let (ours, theirs) = duplex(1 << 16);
    (split(ours), split(theirs))
}

async fn meet(
    minor: u8,
    features: &[&str],
) -> (
    Connection<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
    Client<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>,
) {
    let (ours, theirs) = pipe();
    let (server, client) = tokio::join!(
        Connection::accept(ours.0, ours.1, ServerInfo::new("2.34.0 (test)")),
        Client::connect(theirs.0, theirs.1, minor, features),
    );
    (server.unwrap(), client.unwrap())
}

#[test]
fn every_version_shakes_hands_and_learns_what_it_can() {
    for minor in 18..=45 {
        block_on(async {
            let (server, client) = meet(minor, &[]).await;
            assert_eq!(server.protocol(), client.protocol);
            assert_eq!(server.protocol().version, Version::new(minor.min(38)));
            assert_eq!(client.nix_version.as_deref(), (minor >= 33).then_some("2.34.0 (test)"));
            assert_eq!(client.trusted, (minor >= 35).then_some(1));
        });
    }
}

#[test]
fn a_client_that_announces_1_39_gets_1_38_and_works() {
    block_on(async {
        let (mut server, mut client) = meet(39, &["from-the-future"]).await;
        assert_eq!(server.protocol(), Protocol::plain(38));
        let serve = async {
            while let Some(request) = server.next_request().await.unwrap() {
                assert_eq!(request, Request::QueryPathInfo { path: path(A) });
                server.reply(&Response::PathInfo(Some(info()))).await.unwrap();
            }
        };
        let ask = async {
            client.call(&Request::QueryPathInfo { path: path(A) }).await.unwrap();
            assert_eq!(client.u64().await.unwrap(), 1);
            assert_eq!(client.path_info(Some(path(A))).await.unwrap(), info());
            drop(client);
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn features_count_when_both_sides_name_them() {
    block_on(async {
        let (server, client) = meet(38, &["realisation-with-path-not-hash", "from-the-future"]).await;
        let expected = Features { realisation_with_path: true, delete_dead_specific_referrers: false };
        assert_eq!(server.protocol().features, expected);
        assert_eq!(client.protocol.features, expected);
    });
}

#[test]
fn the_handshake_of_nix_2_34_byte_for_byte() {
    block_on(async {
        // Version 1.38, no features, no CPU affinity, no reserved space.
        let hello = bytes().n(0x6e697863).n(0x126).n(0).n(0).n(0).0;
        let (ours, mut theirs) = duplex(4096);
        let server = Connection::accept(&hello[..], ours, ServerInfo::new("2.34.0")).await.unwrap();
        drop(server);
        let mut written = Vec::new();
        theirs.read_to_end(&mut written).await.unwrap();
        let expected = bytes().n(0x6478696f).n(0x126);
        let expected = expected.n(2).s("delete-dead-specific-referrers").s("realisation-with-path-not-hash");
        assert_eq!(written, expected.s("2.34.0").n(1).n(0x616c7473).0);
    });
}

#[test]
fn the_handshake_of_nix_2_8_byte_for_byte() {
    block_on(async {
        let hello = bytes().n(0x6e697863).n(0x122).n(0).n(0).0;
        let (ours, mut theirs) = duplex(4096);
        drop(Connection::accept(&hello[..], ours, ServerInfo::new("2.34.0")).await.unwrap());
        let mut written = Vec::new();
        theirs.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, bytes().n(0x6478696f).n(0x126).s("2.34.0").n(0x616c7473).0);
    });
}

/// The error is where a client expects the end of the handshake, after the fields of its version.
#[test]
fn a_server_that_opens_no_sessions_says_why_as_the_end_of_the_handshake() {
    for (minor, trust) in [(0x122u64, None), (0x123, Some(1)), (0x126, Some(1))] {
        block_on(async {
            let hello = bytes().n(0x6e697863).n(minor).n(0).n(0).n(0).0;
            let (ours, mut theirs) = duplex(4096);
            let info = ServerInfo { closed: Some("a new disk".into()), ..ServerInfo::new("2.34.0") };
            let error = Connection::accept(&hello[..], ours, info).await.err().unwrap();
            assert!(error.to_string().contains("a new disk") && !error.is_disconnect(), "{error}");
            let mut written = Vec::new();
            theirs.read_to_end(&mut written).await.unwrap();
            let version = bytes().s("2.34.0");
            let before = match trust {
                Some(trust) => version.n(trust).0,
                None => version.0,
            };
            let error = bytes().n(0x63787470).s("Error").n(0).s("Error").s("a new disk").n(0).n(0).0;
            assert!(written.ends_with(&[before, error].concat()), "{minor:#x}: {written:?}");
        });
    }
}

#[test]
fn a_path_info_survives_the_way_there_and_back() {
    for minor in [18, 21, 34, 38] {
        block_on(async {
            let (mut server, mut client) = meet(minor, &[]).await;
            let serve = async {
                assert_eq!(
                    server.next_request().await.unwrap(),
                    Some(Request::QueryPathInfo { path: path(A) })
                );
                server.reply(&Response::PathInfo(Some(info()))).await.unwrap();
                assert_eq!(server.next_request().await.unwrap(), None);
            };
            let ask = async {
                client.call(&Request::QueryPathInfo { path: path(A) }).await.unwrap();
                assert_eq!(client.u64().await.unwrap(), 1);
                assert_eq!(client.path_info(Some(path(A))).await.unwrap(), info());
                drop(client);
            };
            tokio::join!(serve, ask);
        });
    }
}

/// Counts flushes.
struct Flushes(DuplexStream, std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl tokio::io::AsyncWrite for Flushes {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[test]
fn answers_to_pipelined_requests_travel_together() {
    block_on(async {
        let protocol = Protocol::plain(38);
        let asked = encode_request(&Request::IsValidPath { path: path(A) }, protocol).repeat(500);
        let (ours, mut theirs) = duplex(1 << 20);
        let flushes = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let out = Flushes(ours, flushes.clone());
        let mut server = Connection::after_handshake(&asked[..], out, protocol, 1 << 20);
        let mut answered = 0;
        while server.next_request().await.unwrap().is_some() {
            server.reply(&Response::Bool(true)).await.unwrap();
            answered += 1;
        }
        assert_eq!(answered, 500);
        // One before the first request, one after the last, one where the input buffer was empty.
        assert!(flushes.load(std::sync::atomic::Ordering::Relaxed) <= 4);
        drop(server);
        let mut written = Vec::new();
        theirs.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, bytes().n(0x616c7473).n(1).0.repeat(500));
    });
}

#[test]
fn log_lines_arrive_while_the_work_goes_on() {
    block_on(async {
        let (mut server, mut client) = meet(38, &[]).await;
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let serve = async move {
            server.next_request().await.unwrap();
            let (send, mut receive) = mpsc::channel(8);
            let work = async move {
                send.send(LogEvent::start_build(1, DRV)).await.unwrap();
                send.send(LogEvent::build_line(1, "first")).await.unwrap();
                // Continues only after the client has seen the line.
                wait.await.unwrap();
                send.send(LogEvent::build_line(1, "last")).await.unwrap();
                42
            };
            assert_eq!(
                server.run(work, &mut receive, |event, rendered| rendered.push(event)).await.unwrap(),
                42
            );
            server.log(&LogEvent::stop(1)).await.unwrap();
            server.reply(&Response::Done).await.unwrap();
            assert_eq!(server.next_request().await.unwrap(), None);
        };
        let ask = async {
            client.request(&Request::BuildPaths { paths: vec![], mode: BuildMode::Normal }).await.unwrap();
            let mut first = vec![0; bytes().n(0).n(1).n(3).n(105).s(&format!("building '{DRV}'")).0.len()];
            client.reader.read_exact(&mut first).await.unwrap();
            go.send(()).unwrap();
            let mut rest = Vec::new();
            client.writer.shutdown().await.unwrap();
            client.reader.read_to_end(&mut rest).await.unwrap();
            let lines =
                bytes().n(0x52534c54).n(1).n(101).n(1).n(1).s("last").n(0x53544f50).n(1).n(0x616c7473).n(1);
            assert!(rest.ends_with(&lines.0));
        };
        let joined = async { tokio::join!(serve, ask) };
        tokio::time::timeout(Duration::from_secs(60), joined).await.expect("nothing waits for ever");
    });
}

#[test]
fn log_frames_are_read_back_by_the_client() {
    block_on(async {
        let (mut server, mut client) = meet(38, &[]).await;
        let serve = async {
            server.next_request().await.unwrap();
            for event in
                [LogEvent::start_build(7, DRV), LogEvent::build_line(7, "x"), LogEvent::message("hi")]
            {
                server.log(&event).await.unwrap();
            }
            server.fail(&Failure::new("no such luck")).await.unwrap();
        };
        let ask = async {
            client.request(&Request::OptimiseStore).await.unwrap();
            client.log().await.unwrap()
        };
        let ((), (frames, end)) = tokio::join!(serve, ask);
        assert_eq!(end, End::Error("no such luck".into()));
        assert_eq!(
            frames,
            [
                Frame::Start(7, 105, format!("building '{DRV}'")),
                Frame::Result(7, 101, vec![b"x".to_vec()]),
                Frame::Message(b"hi\n".to_vec()),
            ]
        );
    });
}

#[test]
fn work_is_dropped_when_the_client_hangs_up() {
    block_on(async {
        let (mut server, mut client) = meet(38, &[]).await;
        let serve = async {
            server.next_request().await.unwrap();
            let (_send, mut receive) = mpsc::channel(8);
            server
                .run(std::future::pending::<()>(), &mut receive, |event, rendered| rendered.push(event))
                .await
        };
        let ask = async {
            client.request(&Request::OptimiseStore).await.unwrap();
            drop(client);
        };
        let joined = async { tokio::join!(serve, ask) };
        let (result, ()) =
            tokio::time::timeout(Duration::from_secs(60), joined).await.expect("it is noticed");
        assert!(result.unwrap_err().is_disconnect());
    });
}

#[test]
fn requests_that_arrive_during_work_are_kept() {
    block_on(async {
        let (mut server, mut client) = meet(38, &[]).await;
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let serve = async {
            server.next_request().await.unwrap();
            let (_send, mut receive) = mpsc::channel(8);
            server
                .run(async { wait.await.unwrap() }, &mut receive, |event, rendered| rendered.push(event))
                .await
                .unwrap();
            server.reply(&Response::Done).await.unwrap();
            assert_eq!(server.next_request().await.unwrap(), Some(Request::IsValidPath { path: path(B) }));
        };
        let ask = async {
            client.request(&Request::OptimiseStore).await.unwrap();
            client.request(&Request::IsValidPath { path: path(B) }).await.unwrap();
            go.send(()).unwrap();
        };
        tokio::join!(serve, ask);
    });
}

#[test]
fn answers_that_would_be_misread_are_refused() {
    block_on(async {
        let (mut server, _out) = serve(&bytes().n(1).s(A).0, Protocol::plain(38));
        assert!(matches!(server.reply(&Response::Done).await, Err(WireError::Misuse { .. })));
        server.next_request().await.unwrap();
        assert!(matches!(server.next_request().await, Err(WireError::Misuse { .. })));
        assert!(matches!(server.reply(&Response::Done).await, Err(WireError::Misuse { .. })));
        assert!(matches!(server.reply_nar().await, Err(WireError::Misuse { .. })));
        server.reply(&Response::Bool(false)).await.unwrap();
        assert!(matches!(server.reply(&Response::Bool(false)).await, Err(WireError::Misuse { .. })));
    });
}

#[test]
fn a_refusal_reaches_the_client_as_an_error() {
    block_on(async {
        let (mut server, mut client) = meet(38, &[]).await;
        let serve = async {
            let error = server.next_request().await.unwrap_err();
            server.refuse(&error, error.to_string()).await.unwrap();
        };
        let ask = async {
            client.send(&bytes().n(48).0).await.unwrap();
            client.log().await.unwrap().1
        };
        let ((), end) = tokio::join!(serve, ask);
        let text = "operation 48 is not known here, so its arguments cannot be read; is the client's Nix newer than ours?";
        assert_eq!(end, End::Error(text.into()));
    });
}
