//! Bodies end exactly at their end, in every form of every version, and the next request is read correctly.

mod common;

use common::*;
use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm};
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use wire::WireError;
use wire::client::{Client, End, encode_file_nar, encode_frames, encode_items, encode_request};
use wire::error::Problem;
use wire::worker::{Connection, Failure, Protocol, Request, Response, ServerInfo};

const PING: Request = Request::SyncWithGc;

fn add_nar(nar_size: u64) -> Request {
    Request::AddToStoreNar { info: PathInfo { nar_size, ..info() }, repair: false, dont_check_sigs: true }
}

fn add_flat() -> Request {
    Request::AddToStore {
        name: "a".into(),
        method: ContentAddressMethod::Flat,
        algorithm: HashAlgorithm::Sha256,
        references: path_set(&[]),
        repair: false,
    }
}

/// The request, its body, and a ping.
fn stream(request: &Request, protocol: Protocol, body: &[u8]) -> Vec<u8> {
    [encode_request(request, protocol), body.to_vec(), encode_request(&PING, protocol)].concat()
}

async fn read_all(server: &mut Server) -> Result<Vec<u8>, WireError> {
    let mut all = Vec::new();
    server.body().read_to_end(&mut all).await?;
    Ok(all)
}

#[test]
fn framed_bodies_of_any_cut_come_out_whole() {
    let body: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let protocol = Protocol::plain(38);
    for frame in [1, 7, 8, 4096, 1 << 20] {
        let body = if frame < 8 { &body[..1000] } else { &body[..] };
        let (mut server, _out) = serve(&stream(&add_flat(), protocol, &encode_frames(body, frame)), protocol);
        block_on(async {
            server.next_request().await.unwrap();
            assert_eq!(read_all(&mut server).await.unwrap(), body);
            assert_eq!(read_all(&mut server).await.unwrap(), b"", "after its end a body stays ended");
            server.reply(&Response::Added(info())).await.unwrap();
            assert_eq!(server.next_request().await.unwrap(), Some(PING));
        });
    }
}

#[test]
fn a_nar_that_breaks_off_its_format_is_an_error_for_whoever_reads_to_the_end() {
    // Bare, and requested in pieces. Frames may carry any bytes; the store checks those.
    for minor in [20, 22] {
        let protocol = Protocol::plain(minor);
        let (mut server, _out) = serve(&stream(&add_nar(64), protocol, &[0; 64]), protocol);
        block_on(async {
            server.next_request().await.unwrap();
            assert!(read_all(&mut server).await.is_err(), "1.{minor}");
        });
    }
}

#[test]
fn a_body_without_frames_is_empty() {
    let protocol = Protocol::plain(38);
    let (mut server, _out) = serve(&stream(&add_flat(), protocol, &[0; 8]), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap(), b"");
        server.reply(&Response::Added(info())).await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), Some(PING));
    });
}

#[test]
fn what_nobody_read_of_a_body_is_skipped_before_either_answer() {
    let protocol = Protocol::plain(38);
    let nar = encode_file_nar(&[3; 50_000], false);
    let items = encode_items(&[(PathInfo { nar_size: nar.len() as u64, ..info() }, nar.clone())]);
    let many = Request::AddMultipleToStore { repair: false, dont_check_sigs: false };
    for good in [true, false] {
        for (request, body) in [(add_nar(nar.len() as u64), &nar), (many.clone(), &items)] {
            let (mut server, _out) = serve(&stream(&request, protocol, &encode_frames(body, 1000)), protocol);
            block_on(async {
                server.next_request().await.unwrap();
                if request == many {
                    server.next_item().await.unwrap();
                }
                let mut some = [0; 1234];
                server.body().read_exact(&mut some).await.unwrap();
                match good {
                    true => server.reply(&Response::Done).await.unwrap(),
                    false => server.fail(&Failure::new("no")).await.unwrap(),
                }
                assert_eq!(server.next_request().await.unwrap(), Some(PING));
            });
        }
    }
}

#[test]
fn a_frame_longer_than_32_bits_is_refused_before_it_is_read() {
    let protocol = Protocol::plain(38);
    let body = bytes().n(1 << 32).raw(b"data").0;
    let (mut server, _out) = serve(&stream(&add_flat(), protocol, &body), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        let error = read_all(&mut server).await.unwrap_err();
        assert!(
            matches!(error, WireError::Field { problem: Problem::TooLong { len: 0x1_0000_0000, .. }, .. }),
            "{error}"
        );
    });
}

#[test]
fn a_body_over_the_limit_fails_and_the_connection_lives() {
    let protocol = Protocol::plain(38);
    let body = encode_frames(&vec![1; (1 << 20) + 1], 32 << 10);
    let (mut server, _out) = serve(&stream(&add_flat(), protocol, &body), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        let error = read_all(&mut server).await.unwrap_err();
        assert!(matches!(error, WireError::Field { problem: Problem::BodyTooLarge { .. }, .. }), "{error}");
        server.fail(&Failure::new(error.to_string())).await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), Some(PING));
    });
}

#[test]
fn a_body_of_exactly_the_limit_passes() {
    let protocol = Protocol::plain(38);
    let body = encode_frames(&vec![1; 1 << 20], 32 << 10);
    let (mut server, _out) = serve(&stream(&add_flat(), protocol, &body), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap().len(), 1 << 20);
    });
}

#[test]
fn a_body_cut_off_anywhere_is_an_error() {
    let protocol = Protocol::plain(38);
    let request = encode_request(&add_flat(), protocol);
    let body = encode_frames(b"some bytes of a file", 6);
    for len in 0..body.len() {
        let (mut server, _out) = serve(&[&request, &body[..len]].concat(), protocol);
        block_on(async {
            server.next_request().await.unwrap();
            assert!(read_all(&mut server).await.unwrap_err().is_disconnect(), "after {len} bytes");
        });
    }
}

#[test]
fn a_bare_nar_ends_where_its_structure_ends() {
    let nar = encode_file_nar(&[7; 100_001], true);
    let protocol = Protocol::plain(20);
    let (mut server, _out) = serve(&stream(&add_nar(nar.len() as u64), protocol, &nar), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        assert_eq!(read_all(&mut server).await.unwrap(), nar);
        server.reply(&Response::Done).await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), Some(PING));
    });
}

#[test]
fn clients_before_1_25_wrap_flat_files_and_the_wrapping_is_taken_off() {
    let protocol = Protocol::plain(21);
    for size in [0, 1, 8, 9, 70_000] {
        let file: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let (mut server, _out) =
            serve(&stream(&add_flat(), protocol, &encode_file_nar(&file, false)), protocol);
        block_on(async {
            server.next_request().await.unwrap();
            assert_eq!(read_all(&mut server).await.unwrap(), file);
            server.reply(&Response::Added(info())).await.unwrap();
            assert_eq!(server.next_request().await.unwrap(), Some(PING));
        });
    }
}

#[test]
fn a_bare_nar_that_is_none_ends_the_connection_after_a_clear_error() {
    let protocol = Protocol::plain(20);
    let (mut server, _out) = serve(&stream(&add_nar(100), protocol, &bytes().s("not a NAR").0), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        let error = read_all(&mut server).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "bad NAR in AddToStoreNar: expected \"nix-archive-1\" and got \"not a NAR\" at byte 24"
        );
        assert!(matches!(server.fail(&Failure::new("no")).await, Err(WireError::OutOfStep { .. })));
        assert!(matches!(server.next_request().await, Err(WireError::OutOfStep { .. })));
    });
}

#[test]
fn items_come_one_by_one_and_unread_ones_are_skipped() {
    let protocol = Protocol::plain(34);
    let items: Vec<_> = [A, B, OUT]
        .iter()
        .map(|text| {
            let nar = encode_file_nar(text.as_bytes(), false);
            (PathInfo { path: path(text), nar_size: nar.len() as u64, ..info() }, nar)
        })
        .collect();
    let request = Request::AddMultipleToStore { repair: false, dont_check_sigs: true };
    for frame in [1, 13, 1 << 15] {
        let body = encode_frames(&encode_items(&items), frame);
        let (mut server, _out) = serve(&stream(&request, protocol, &body), protocol);
        block_on(async {
            server.next_request().await.unwrap();
            for (i, (info, nar)) in items.iter().enumerate() {
                assert_eq!(server.next_item().await.unwrap().as_ref(), Some(info));
                if i != 1 {
                    assert_eq!(&read_all(&mut server).await.unwrap(), nar);
                }
            }
            assert_eq!(server.next_item().await.unwrap(), None);
            server.reply(&Response::Done).await.unwrap();
            assert_eq!(server.next_request().await.unwrap(), Some(PING));
        });
    }
}

/// The error of reading all items of this body; afterwards the connection must still work.
fn bad_items(body: &[u8]) -> String {
    let protocol = Protocol::plain(34);
    let request = Request::AddMultipleToStore { repair: false, dont_check_sigs: true };
    let (mut server, _out) = serve(&stream(&request, protocol, &encode_frames(body, 100)), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        let error = loop {
            match server.next_item().await {
                Err(error) => break error,
                Ok(None) => panic!("nothing was wrong"),
                Ok(Some(_)) => {
                    if let Err(error) = read_all(&mut server).await {
                        break error;
                    }
                }
            }
        };
        assert!(!error.is_disconnect());
        server.fail(&Failure::new(error.to_string())).await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), Some(PING));
        error.to_string()
    })
}

#[test]
fn items_that_lie_about_their_size_fail_alone() {
    let nar = encode_file_nar(b"hello", false);
    let size = nar.len() as u64;
    let item = |nar_size, nar: &[u8]| encode_items(&[(PathInfo { nar_size, ..info() }, nar.to_vec())]);
    assert_eq!(
        bad_items(&item(size + 8, &[&nar[..], &[0; 8]].concat())),
        "bad the NAR in AddMultipleToStore: the NAR ended 8 bytes before the announced 128"
    );
    assert_eq!(
        bad_items(&item(size - 8, &nar)),
        "bad the NAR in AddMultipleToStore: the NAR continues after the announced 112 bytes"
    );
    assert_eq!(
        bad_items(&item(size, &nar[..50])),
        "bad the NAR in AddMultipleToStore: 70 of 120 announced bytes are missing"
    );
    assert_eq!(
        bad_items(&item(0, &[])),
        "bad the size of the NAR in AddMultipleToStore: 0 bytes are announced, and no NAR is empty"
    );
    assert_eq!(
        bad_items(&item(1 << 40, &nar)),
        "bad the size of the NAR in AddMultipleToStore: more than 1048576 bytes of body"
    );
    assert_eq!(
        bad_items(&bytes().n(1 << 40).0),
        "bad the number of paths in AddMultipleToStore: 1099511627776 entries, at most 500000 are accepted"
    );
    assert_eq!(bad_items(&bytes().n(1).s(A).0), "bad deriver in AddMultipleToStore: the body ended there");
}

#[test]
fn clients_of_1_21_and_1_22_are_asked_for_the_nar_piece_by_piece() {
    for minor in [21, 22] {
        for early in [false, true] {
            block_on(async {
                let (ours, theirs) = tokio::io::duplex(1 << 20);
                let nar = encode_file_nar(&vec![9; 150_000], false);
                let size = nar.len() as u64;
                let server = async {
                    let (reader, writer) = tokio::io::split(ours);
                    let mut server = Connection::accept(reader, writer, ServerInfo::new("x")).await.unwrap();
                    assert_eq!(server.next_request().await.unwrap(), Some(add_nar(size)));
                    let mut all = Vec::new();
                    if early {
                        server.body().take(1000).read_to_end(&mut all).await.unwrap();
                        server.fail(&Failure::new("enough")).await.unwrap();
                    } else {
                        server.body().read_to_end(&mut all).await.unwrap();
                        server.reply(&Response::Done).await.unwrap();
                    }
                    assert_eq!(server.next_request().await.unwrap(), Some(PING));
                    server.reply(&Response::Done).await.unwrap();
                    assert_eq!(server.next_request().await.unwrap(), None);
                    all
                };
                let client = async {
                    let (reader, writer) = tokio::io::split(theirs);
                    let mut client = Client::connect(reader, writer, minor, &[]).await.unwrap();
                    client.request(&add_nar(size)).await.unwrap();
                    let mut at = 0;
                    loop {
                        match client.log().await.unwrap().1 {
                            End::Read(asked) => {
                                // An odd number of bytes, so that there is padding.
                                let next = nar.len().min(at + (asked as usize).min(9_999));
                                client.send(&bytes().b(&nar[at..next]).0).await.unwrap();
                                at = next;
                            }
                            End::Error(message) => break assert!(early && message == "enough"),
                            End::Last => break assert!(!early),
                        }
                    }
                    client.call(&PING).await.unwrap();
                    assert_eq!(client.u64().await.unwrap(), 1);
                };
                let (all, ()) = tokio::join!(server, client);
                assert_eq!(all, nar[..if early { 1000 } else { nar.len() }]);
            });
        }
    }
}

#[test]
fn a_nar_is_answered_bare_and_only_whole() {
    let nar = encode_file_nar(b"hello", false);
    let protocol = Protocol::plain(38);
    let ask = encode_request(&Request::NarFromPath { path: path(A) }, protocol);
    let sent = [ask.clone(), encode_request(&PING, protocol)].concat();
    block_on(async {
        let (mut server, mut out) = serve(&sent, protocol);
        server.next_request().await.unwrap();
        let mut reply = server.reply_nar().await.unwrap();
        reply.write(&nar[..17]).await.unwrap();
        reply.write(&nar[17..]).await.unwrap();
        reply.finish().await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), Some(PING));
        server.flush().await.unwrap();
        drop(server);
        let mut written = Vec::new();
        out.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, bytes().n(0x616c7473).raw(&nar).0);

        // Nothing may follow an answer that stops in the middle.
        let (mut server, _out) = serve(&sent, protocol);
        server.next_request().await.unwrap();
        let mut reply = server.reply_nar().await.unwrap();
        reply.write(&nar[..17]).await.unwrap();
        assert!(reply.finish().await.is_err());
        assert!(matches!(server.next_request().await, Err(WireError::OutOfStep { .. })));
    });
}

proptest! {
    #[test]
    fn items_with_a_changed_byte_never_panic_and_leave_the_frames_in_step(at in 0usize..1000, to: u8) {
        let nar = encode_file_nar(b"hello", false);
        let item = (PathInfo { nar_size: nar.len() as u64, ..info() }, nar);
        let mut body = encode_items(&[item.clone(), item]);
        let at = at % body.len();
        body[at] = to;
        let protocol = Protocol::plain(34);
        let request = Request::AddMultipleToStore { repair: false, dont_check_sigs: true };
        let (mut server, _out) = serve(&stream(&request, protocol, &encode_frames(&body, 64)), protocol);
        block_on(async {
            server.next_request().await.unwrap();
            while let Ok(Some(_)) = server.next_item().await {
                let _ = read_all(&mut server).await;
            }
            server.fail(&Failure::new("no")).await.unwrap();
            assert_eq!(server.next_request().await.unwrap(), Some(PING));
        });
    }
}
