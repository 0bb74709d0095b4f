//! Arbitrary bytes from a client of the serve protocol cause an error that names the field, no panic, and no
//! memory beyond the limits.

mod common;

use std::io::Cursor;

use common::*;
use nix::PathInfo;
use nix_derivation::{DerivedPath, SingleDerivedPath};
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use wire::WireError;
use wire::client::encode_file_nar;
use wire::limits::*;
use wire::serve::*;
use wire::serve_client::{encode_export, encode_request};

/// Requests with every form of arguments, each with its body.
fn samples() -> Vec<(Request, Vec<u8>)> {
    let nar = encode_file_nar(b"contents", true);
    let options = BuildOptions { build_timeout: 3, keep_failed: true, ..BuildOptions::default() };
    let drv_path = SingleDerivedPath::Opaque(path(DRV));
    let targets = vec![
        DerivedPath::Opaque(path(A)),
        DerivedPath::Built { drv_path: drv_path.clone(), outputs: Vec::new() },
        DerivedPath::Built { drv_path, outputs: vec!["out".into()] },
    ];
    let item = ImportedInfo { path: path(A), references: path_set(&[A, B]), deriver: Some(path(DRV)) };
    let none = Vec::new;
    vec![
        (Request::QueryValidPaths { lock: true, substitute: true, paths: paths(&[A, B]) }, none()),
        (Request::QueryPathInfos { paths: paths(&[A, B]) }, none()),
        (Request::DumpStorePath { path: path(A) }, none()),
        (Request::ImportPaths, encode_export(&[(item.clone(), nar.clone()), (item, nar.clone())])),
        (Request::ExportPaths { paths: paths(&[A]) }, none()),
        (Request::BuildPaths { paths: targets, options }, none()),
        (Request::QueryClosure { include_outputs: true, paths: paths(&[A]) }, none()),
        (Request::BuildDerivation { drv_path: path(DRV), derivation: derivation(), options }, none()),
        (Request::AddToStoreNar { info: PathInfo { nar_size: nar.len() as u64, ..info() } }, nar),
    ]
}

fn encoded(sample: &(Request, Vec<u8>), minor: u8) -> Vec<u8> {
    [encode_request(&sample.0, version(minor)), sample.1.clone()].concat()
}

/// Reads one request with its whole body.
fn take(bytes: &[u8], minor: u8) -> Result<Option<Request>, WireError> {
    let input = Cursor::new(bytes.to_vec());
    let mut conn = Connection::after_handshake(input, tokio::io::sink(), version(minor), 1 << 20);
    block_on(async {
        let request = conn.next_request().await?;
        match conn.pending().map(|op| op.info().body) {
            None | Some(BodyShape::None) => {}
            Some(BodyShape::Nar) => {
                let mut nar = Vec::new();
                conn.body().read_to_end(&mut nar).await?;
            }
            Some(BodyShape::Export) => {
                while conn.next_nar().await? {
                    let mut nar = Vec::new();
                    conn.body().read_to_end(&mut nar).await?;
                    conn.trailer().await?;
                }
            }
        }
        Ok(request)
    })
}

#[test]
fn every_sample_is_read_back_as_it_was_written() {
    for sample in samples() {
        assert_eq!(take(&encoded(&sample, 7), 7).unwrap(), Some(sample.0));
    }
    assert_eq!(samples().len(), OPS.len(), "a sample of each command");
}

#[test]
fn a_request_cut_off_anywhere_is_a_hang_up() {
    for sample in samples() {
        let whole = encoded(&sample, 7);
        for end in 1..whole.len() {
            let error = take(&whole[..end], 7).expect_err("a cut request");
            assert!(error.is_disconnect(), "{:?} cut at {end}: {error}", sample.0);
        }
    }
}

#[test]
fn lengths_and_counts_meet_their_limits_before_memory_is_taken() {
    for (request, field) in [
        (bytes().n(1).n(0).n(0).n(MAX_PATHS + 1), "paths"),
        (bytes().n(2).n(u64::MAX), "paths"),
        (bytes().n(3).n(MAX_STORE_PATH_BYTES + 1), "path"),
        (bytes().n(5).n(0).n(MAX_PATHS + 1), "paths"),
        (bytes().n(6).n(MAX_TARGETS + 1), "paths"),
        (bytes().n(6).n(1).n(MAX_DERIVED_PATH_BYTES + 1), "paths"),
        (bytes().n(7).n(0).n(MAX_PATHS + 1), "paths"),
        (bytes().n(8).s(DRV).n(MAX_OUTPUTS + 1), "outputs"),
        (bytes().n(9).s(A).s("").s(HEX).n(MAX_PATHS + 1), "references"),
        (bytes().n(9).s(A).s("").s(HEX).n(0).n(0).n(1 << 40).n(0).n(0).s(""), "the size of the NAR"),
        (bytes().n(9).s(A).s("").s(HEX).n(0).n(0).n(0).n(0).n(0).s(""), "the size of the NAR"),
    ] {
        match take(&request.0, 7) {
            Err(WireError::Field { field: got, .. }) => assert_eq!(got, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn an_unknown_command_is_named_by_its_number() {
    for number in [0, 10, 0xffff_ffff_ffff_ffff] {
        assert!(matches!(take(&bytes().n(number).0, 7), Err(WireError::Unsupported { op }) if op == number));
    }
}

#[test]
fn a_nar_of_another_size_than_announced_is_refused() {
    let nar = encode_file_nar(b"contents", false);
    for size in [nar.len() as u64 - 8, nar.len() as u64 + 8] {
        let info = PathInfo { nar_size: size, ..info() };
        let request = encode_request(&Request::AddToStoreNar { info }, version(7));
        let error = take(&[request, nar.clone(), vec![0; 64]].concat(), 7).expect_err("another size");
        assert!(error.to_string().contains("announced"), "{error}");
    }
}

#[test]
fn an_export_stream_has_its_marks() {
    let nar = encode_file_nar(b"x", false);
    for (stream, field) in [
        (bytes().n(4).n(2), "the mark before a NAR"),
        (bytes().n(4).n(1).raw(&nar).n(1), "the mark after a NAR"),
        (bytes().n(4).n(1).raw(&nar).n(EXPORT_MAGIC).s(A).n(0).s("").n(2), "whether there is a signature"),
        (bytes().n(4).n(1).raw(&nar).n(EXPORT_MAGIC).s("/etc/passwd"), "path"),
    ] {
        match take(&stream.0, 7) {
            Err(WireError::Field { field: got, .. }) => assert_eq!(got, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert!(matches!(take(&bytes().n(4).n(1).s("nix-archive-2").0, 7), Err(WireError::Nar { .. })));
}

#[test]
fn a_nar_in_an_export_stream_meets_the_limit_of_one_nar() {
    let nar = encode_file_nar(&vec![0; 2 << 20], false);
    let error = take(&bytes().n(4).n(1).raw(&nar).0, 7).expect_err("too large");
    assert!(error.to_string().contains(&(1 << 20).to_string()), "{error}");
}

#[test]
fn a_refused_upload_without_end_ends_the_connection() {
    // 2 GiB that are never in memory at once: a NAR with one very long file.
    let head = bytes().n(4).n(1).s("nix-archive-1").s("(").s("type").s("regular").s("contents").n(2 << 30).0;
    let endless = tokio::io::AsyncReadExt::chain(Cursor::new(head), tokio::io::repeat(0));
    let mut conn = Connection::after_handshake(endless, tokio::io::sink(), version(7), u64::MAX);
    block_on(async {
        conn.next_request().await.unwrap().unwrap();
        let error = conn.reply(&Response::Refused).await.expect_err("more than we skip");
        assert!(error.to_string().contains(&MAX_DISCARD_BYTES.to_string()), "{error}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_a_request_or_an_error(minor in 1u8..=8, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = take(&bytes, minor);
    }

    #[test]
    fn any_change_of_a_real_request_is_a_request_or_an_error(
        which in 0usize..9, minor in 1u8..=8, at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = encoded(&samples()[which], minor);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = take(&bytes, minor);
    }

    #[test]
    fn options_survive_the_way_there(
        minor in 7u8..=8, a in any::<u64>(), b in any::<u64>(), c in any::<u64>(), d in any::<u64>(), e in any::<bool>(),
    ) {
        let options = BuildOptions {
            max_silent_time: a, build_timeout: b, max_log_size: c, nr_repeats: d,
            enforce_determinism: e, keep_failed: !e,
        };
        let request = Request::BuildPaths { paths: Vec::new(), options };
        let bytes = encode_request(&request, version(minor));
        prop_assert_eq!(take(&bytes, minor).unwrap(), Some(request));
    }
}
