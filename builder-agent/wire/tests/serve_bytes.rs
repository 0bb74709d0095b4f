//! The serve protocol byte by byte, for every version: requests as Nix's own client writes them, and our
//! answers.

mod common;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use common::*;
use nix::{BuildResult, BuildStatus, BuiltOutput, PathInfo};
use nix_derivation::{DerivedPath, SingleDerivedPath};
use tokio::io::{AsyncReadExt, DuplexStream};
use wire::client::encode_file_nar;
use wire::serve::*;
use wire::serve_client::{Client, encode_export, encode_request};
use wire::worker::Version;
use wire::{Terms, WireError};

type Serving = Connection<Cursor<Vec<u8>>, DuplexStream>;

/// A server of version 2.`minor` that receives these bytes and then a hang-up; and the stream to which it
/// writes.
fn serving(bytes: &[u8], minor: u8) -> (Serving, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    (Connection::after_handshake(Cursor::new(bytes.to_vec()), ours, version(minor), 1 << 20), theirs)
}

/// The bytes that `answer` writes for the one request in `request`.
fn answered<F: AsyncFnOnce(&mut Serving)>(request: &[u8], minor: u8, answer: F) -> Vec<u8> {
    let (mut conn, mut out) = serving(request, minor);
    block_on(async {
        conn.next_request().await.unwrap().unwrap();
        answer(&mut conn).await;
        conn.flush().await.unwrap();
        drop(conn);
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).await.unwrap();
        bytes
    })
}

fn read(bytes: &[u8], minor: u8) -> Request {
    block_on(serving(bytes, minor).0.next_request()).unwrap().unwrap()
}

#[test]
fn both_sides_speak_the_older_of_their_versions() {
    for (theirs, agreed) in
        [(0x201, version(1)), (0x207, version(7)), (0x208, version(8)), (0x209, version(8))]
    {
        let hello = bytes().n(0x390c_9deb).n(theirs).0;
        let (ours, mut out) = tokio::io::duplex(1 << 10);
        block_on(async {
            let conn =
                Connection::accept(&hello[..], ours, Terms { max_body_bytes: 1 << 20, ..Terms::default() })
                    .await
                    .unwrap();
            assert_eq!(conn.version(), agreed);
            drop(conn);
            let mut answer = Vec::new();
            out.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, bytes().n(0x5452_eecb).n(0x208).0);
        });
    }
}

#[test]
fn who_is_no_client_or_too_old_is_refused() {
    let accept = |hello: Bytes| {
        block_on(Connection::accept(Cursor::new(hello.0), tokio::io::sink(), Terms::default())).map(|_| ())
    };
    assert!(matches!(accept(bytes().n(0x6e69_7863).n(0x126)), Err(WireError::NotNix { .. })));
    let error = accept(bytes().n(0x390c_9deb).n(0x200)).unwrap_err();
    assert!(matches!(error, WireError::TooOld { client: Version { major: 2, minor: 0 }, .. }), "{error}");
    assert!(matches!(accept(bytes().n(0x390c_9deb).n(1 << 40)), Err(WireError::Field { .. })));
    assert!(accept(bytes().n(0x390c_9deb)).unwrap_err().is_disconnect());
}

#[test]
fn questions_are_read_as_nix_writes_them() {
    assert_eq!(
        read(&bytes().n(1).n(1).n(0).n(2).s(A).s(B).0, 7),
        Request::QueryValidPaths { lock: true, substitute: false, paths: paths(&[A, B]) }
    );
    assert_eq!(read(&bytes().n(2).n(1).s(A).0, 7), Request::QueryPathInfos { paths: paths(&[A]) });
    assert_eq!(read(&bytes().n(3).s(A).0, 7), Request::DumpStorePath { path: path(A) });
    assert_eq!(read(&bytes().n(5).n(0).n(1).s(A).0, 7), Request::ExportPaths { paths: paths(&[A]) });
    assert_eq!(
        read(&bytes().n(7).n(1).n(1).s(A).0, 7),
        Request::QueryClosure { include_outputs: true, paths: paths(&[A]) }
    );
}

#[test]
fn build_options_grow_with_the_version() {
    let all = [7u64, 60, 1000, 2, 1, 1];
    for (minor, count) in [(1, 2), (2, 3), (3, 5), (6, 5), (7, 6), (8, 6)] {
        let request = all[..count].iter().fold(bytes().n(6).n(1).s(DRV), |bytes, value| bytes.n(*value));
        let Request::BuildPaths { paths, options } = read(&request.0, minor) else {
            panic!("another request")
        };
        let drv_path = SingleDerivedPath::Opaque(path(DRV));
        assert_eq!(
            paths,
            [DerivedPath::Built { drv_path, outputs: Vec::new() }],
            "a derivation alone is built"
        );
        let expected = BuildOptions {
            max_silent_time: 7,
            build_timeout: 60,
            max_log_size: if count > 2 { 1000 } else { 0 },
            nr_repeats: if count > 3 { 2 } else { 0 },
            enforce_determinism: count > 4,
            keep_failed: count > 5,
        };
        assert_eq!(options, expected, "2.{minor}");
    }
}

#[test]
fn targets_are_paths_derivations_and_outputs() {
    let request = bytes().n(6).n(2).s(A).s(&format!("{DRV}!dev,out")).n(0).n(0).0;
    let Request::BuildPaths { paths, .. } = read(&request, 1) else { panic!("another request") };
    let drv_path = SingleDerivedPath::Opaque(path(DRV));
    let outputs = vec!["dev".into(), "out".into()];
    assert_eq!(paths, [DerivedPath::Opaque(path(A)), DerivedPath::Built { drv_path, outputs }]);
}

#[test]
fn a_derivation_to_build_is_read_with_the_options_behind_it() {
    let derivation_bytes = bytes()
        .n(2)
        .s("dev")
        .s("")
        .s("r:sha256")
        .s("")
        .s("out")
        .s(OUT)
        .s("")
        .s("")
        .n(1)
        .s(A)
        .s("x86_64-linux")
        .s("/bin/sh")
        .n(2)
        .s("-c")
        .s("echo > $out")
        .n(2)
        .s("out")
        .s(OUT)
        .s("raw")
        .b(b"\xff\0\n");
    let request = bytes().n(8).s(DRV).raw(&derivation_bytes.0).n(0).n(5).0;
    let options = BuildOptions { build_timeout: 5, ..BuildOptions::default() };
    assert_eq!(
        read(&request, 1),
        Request::BuildDerivation { drv_path: path(DRV), derivation: derivation(), options }
    );
}

#[test]
fn path_infos_end_with_an_empty_path_and_have_hashes_since_2_4() {
    let request = bytes().n(2).n(1).s(A).0;
    let answer = async |conn: &mut Serving| {
        let mut reply = conn.reply_infos().await.unwrap();
        reply.add(&info()).await.unwrap();
        reply.finish().await.unwrap();
    };
    let old = bytes().s(A).s(DRV).n(2).s(A).s(B).n(120).n(120);
    assert_eq!(answered(&request, 3, answer), old.clone().s("").0);
    let hash = format!("sha256:{}", nix_derivation::nixbase32::encode(&digest()));
    assert_eq!(answered(&request, 4, answer), old.s(&hash).s("").n(1).s("k:c2ln").s("").0);
}

#[test]
fn build_results_grow_with_the_version() {
    let request = encode_request(
        &Request::BuildDerivation {
            drv_path: path(DRV),
            derivation: derivation(),
            options: BuildOptions::default(),
        },
        version(8),
    );
    let output = BuiltOutput { path: path(OUT), drv_hash: None, signatures: vec!["k:c2ln".into()] };
    let result = BuildResult {
        times_built: 1,
        start_time: 10,
        stop_time: 20,
        cpu_user: Some(Duration::from_secs(1)),
        built_outputs: BTreeMap::from([("out".to_owned(), output)]),
        ..BuildResult::new(BuildStatus::Built, "")
    };
    let answer = async |conn: &mut Serving| conn.reply(&Response::BuildResult(result.clone())).await.unwrap();
    let answer_as = |minor: u8| {
        let request = encode_request(
            &Request::BuildDerivation {
                drv_path: path(DRV),
                derivation: derivation(),
                options: BuildOptions::default(),
            },
            version(minor),
        );
        answered(&request, minor, answer)
    };
    assert!(!request.is_empty());
    let base = bytes().n(0).s("");
    assert_eq!(answer_as(2), base.clone().0);
    let times = base.n(1).n(0).n(10).n(20);
    assert_eq!(answer_as(3), times.clone().0);
    let id = format!("sha256:{}!out", "0".repeat(64));
    let json = format!(
        "{{\"dependentRealisations\":{{}},\"id\":\"{id}\",\"outPath\":\"{}\",\"signatures\":[\"k:c2ln\"]}}",
        OUT.strip_prefix("/nix/store/").unwrap()
    );
    assert_eq!(answer_as(6), times.clone().n(1).s(&id).s(&json).0);
    assert_eq!(answer_as(7), times.clone().n(1).s(&id).s(&json).0);
    assert_eq!(answer_as(8), times.n(1).s("out").s(OUT).n(1).s("k:c2ln").0);
}

#[test]
fn a_failed_build_of_paths_has_a_message_and_a_good_one_has_none() {
    let request = bytes().n(6).n(0).n(0).n(0).0;
    let good = Response::Status(BuildStatus::Built, "not sent".into());
    assert_eq!(answered(&request, 1, async |c: &mut Serving| c.reply(&good).await.unwrap()), bytes().n(0).0);
    let bad = Response::Status(BuildStatus::TimedOut, "too slow".into());
    let told = answered(&request, 1, async |c: &mut Serving| c.reply(&bad).await.unwrap());
    assert_eq!(told, bytes().n(8).s("too slow").0);
}

/// An `AddToStoreNar` of [`info`] with this NAR.
fn upload(nar: &[u8]) -> Vec<u8> {
    let info = PathInfo { nar_size: nar.len() as u64, ..info() };
    let mut request = encode_request(&Request::AddToStoreNar { info }, version(7));
    request.extend_from_slice(nar);
    request
}

#[test]
fn an_upload_is_its_nar_and_the_next_request_stands_behind_it() {
    let nar = encode_file_nar(b"contents", false);
    let stream = [upload(&nar), bytes().n(3).s(A).0].concat();
    let (mut conn, _out) = serving(&stream, 7);
    block_on(async {
        let request = conn.next_request().await.unwrap().unwrap();
        let expected = PathInfo { nar_size: nar.len() as u64, ..info() };
        assert_eq!(request, Request::AddToStoreNar { info: expected });
        let mut got = Vec::new();
        conn.body().read_to_end(&mut got).await.unwrap();
        assert_eq!(got, nar);
        conn.reply(&Response::Done).await.unwrap();
        assert_eq!(conn.next_request().await.unwrap(), Some(Request::DumpStorePath { path: path(A) }));
    });
}

#[test]
fn a_refused_upload_is_skipped_and_the_connection_lives() {
    let nar = encode_file_nar(&[7; 100_000], true);
    let stream = [upload(&nar), bytes().n(3).s(A).0].concat();
    let (mut conn, mut out) = serving(&stream, 7);
    block_on(async {
        conn.next_request().await.unwrap().unwrap();
        conn.reply(&Response::Refused).await.unwrap();
        assert_eq!(conn.next_request().await.unwrap(), Some(Request::DumpStorePath { path: path(A) }));
        conn.flush().await.unwrap();
        assert_eq!(out.read_u64_le().await.unwrap(), 0);
    });
}

fn export() -> Vec<(ImportedInfo, Vec<u8>)> {
    let item = |name, references: &[&str], deriver, contents: &[u8]| {
        let info = ImportedInfo { path: path(name), references: path_set(references), deriver };
        (info, encode_file_nar(contents, false))
    };
    vec![item(A, &[], None, b"first"), item(B, &[A, B], Some(path(DRV)), b"second")]
}

#[test]
fn an_export_stream_is_imported_path_by_path_to_exactly_its_end() {
    // Written by hand once, so that both directions are compared with something independent.
    let nar = encode_file_nar(b"first", false);
    let by_hand = bytes().n(1).raw(&nar).n(0x4558_494e).s(A).n(0).s("").n(0).n(0).0;
    assert_eq!(encode_export(&export()[..1]), by_hand);

    let stream = [bytes().n(4).0, encode_export(&export()), bytes().n(3).s(A).0].concat();
    let (mut conn, _out) = serving(&stream, 7);
    block_on(async {
        assert_eq!(conn.next_request().await.unwrap(), Some(Request::ImportPaths));
        let mut got = Vec::new();
        while conn.next_nar().await.unwrap() {
            let mut nar = Vec::new();
            conn.body().read_to_end(&mut nar).await.unwrap();
            got.push((conn.trailer().await.unwrap(), nar));
        }
        assert_eq!(got, export());
        conn.reply(&Response::Done).await.unwrap();
        assert_eq!(conn.next_request().await.unwrap(), Some(Request::DumpStorePath { path: path(A) }));
    });
}

#[test]
fn a_nar_that_breaks_off_its_format_is_an_error_for_whoever_reads_to_the_end() {
    let stream =
        [encode_request(&Request::ImportPaths, version(7)), vec![1, 0, 0, 0, 0, 0, 0, 0], vec![0; 64]]
            .concat();
    let (mut conn, _out) = serving(&stream, 7);
    block_on(async {
        conn.next_request().await.unwrap();
        assert!(conn.next_nar().await.unwrap());
        assert!(conn.body().read_to_end(&mut Vec::new()).await.is_err());
    });
}

#[test]
fn an_old_signature_in_an_export_stream_is_read_over() {
    let nar = encode_file_nar(b"first", false);
    let stream = bytes().n(4).n(1).raw(&nar).n(0x4558_494e).s(A).n(0).s("").n(1).s("rsa").n(0).0;
    let (mut conn, _out) = serving(&stream, 7);
    block_on(async {
        conn.next_request().await.unwrap().unwrap();
        conn.reply(&Response::Done).await.unwrap();
        assert_eq!(conn.next_request().await.unwrap(), None);
    });
}

#[test]
fn a_refused_import_is_skipped_wherever_it_was_refused() {
    for read_before in 0..4 {
        let stream = [bytes().n(4).0, encode_export(&export()), bytes().n(3).s(A).0].concat();
        let (mut conn, _out) = serving(&stream, 7);
        block_on(async {
            conn.next_request().await.unwrap().unwrap();
            let mut nar = vec![0; 20];
            if read_before > 0 {
                assert!(conn.next_nar().await.unwrap());
            }
            if read_before > 1 {
                conn.body().read_exact(&mut nar).await.unwrap();
            }
            if read_before > 2 {
                conn.body().read_to_end(&mut nar).await.unwrap();
            }
            conn.reply(&Response::Refused).await.unwrap();
            assert_eq!(conn.next_request().await.unwrap(), Some(Request::DumpStorePath { path: path(A) }));
        });
    }
}

#[test]
fn what_is_exported_can_be_imported() {
    let request = bytes().n(5).n(0).n(2).s(A).s(B).0;
    let written = answered(&request, 7, async |conn: &mut Serving| {
        let mut reply = conn.reply_export().await.unwrap();
        for (item, nar) in export() {
            reply.begin().await.unwrap();
            reply.write(&nar).await.unwrap();
            let ImportedInfo { path, references, deriver } = item;
            reply.end(&PathInfo { path, references, deriver, ..info() }).await.unwrap();
        }
        reply.finish().await.unwrap();
    });
    assert_eq!(written, encode_export(&export()));
    let mut client = Client { reader: &written[..], writer: tokio::io::sink(), version: version(7) };
    assert_eq!(block_on(client.export()).unwrap(), export());
}

#[test]
fn an_unfinished_answer_is_not_followed_by_another() {
    let (mut conn, _out) = serving(&bytes().n(3).s(A).n(3).s(A).0, 7);
    block_on(async {
        conn.next_request().await.unwrap().unwrap();
        let mut reply = conn.reply_nar().await.unwrap();
        reply.write(&encode_file_nar(b"x", false)[..24]).await.unwrap();
        drop(reply);
        assert!(matches!(conn.next_request().await, Err(WireError::OutOfStep { op: "DumpStorePath", .. })));
    });
}

#[test]
fn answers_to_pipelined_questions_travel_together() {
    // A transport that counts writes.
    struct Counting(std::sync::Arc<std::sync::atomic::AtomicUsize>);
    impl tokio::io::AsyncWrite for Counting {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::task::Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }
    let count = std::sync::Arc::default();
    let questions: Vec<u8> = (0..100).flat_map(|_| bytes().n(2).n(1).s(A).0).collect();
    let mut conn =
        Connection::after_handshake(&questions[..], Counting(std::sync::Arc::clone(&count)), version(7), 0);
    block_on(async {
        while let Some(Request::QueryPathInfos { .. }) = conn.next_request().await.unwrap() {
            let mut reply = conn.reply_infos().await.unwrap();
            reply.add(&info()).await.unwrap();
            reply.finish().await.unwrap();
        }
    });
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
}
