//! Arbitrary bytes from a client cause an error that names the field, no panic, and no memory beyond the
//! limits.

mod common;

use common::*;
use nix::{BuildMode, DrvKey, DrvOutputId, Realisation};
use nix_derivation::{ContentAddressMethod, DerivedPath, HashAlgorithm, NixHash, SingleDerivedPath};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::WireError;
use wire::client::encode_request;
use wire::limits::*;
use wire::types::{ClientSettings, GcAction, GcOptions};
use wire::worker::{CLIENT_MAGIC, Connection, Failure, Features, OPS, Protocol, Request, ServerInfo};

/// Requests with every form of arguments.
fn samples() -> Vec<Request> {
    let target = DerivedPath::Built {
        drv_path: SingleDerivedPath::Opaque(path(DRV)),
        outputs: vec!["out".into(), "dev".into()],
    };
    let id = DrvOutputId { drv: DrvKey::Hash(NixHash::Sha256(digest())), output: "out".into() };
    vec![
        Request::IsValidPath { path: path(A) },
        Request::AddToStore {
            name: "a".into(),
            method: ContentAddressMethod::Nar,
            algorithm: HashAlgorithm::Sha256,
            references: path_set(&[A, B]),
            repair: false,
        },
        Request::AddTextToStore { name: "t".into(), text: b"text".to_vec(), references: path_set(&[A]) },
        Request::AddToStoreNar { info: info(), repair: false, dont_check_sigs: true },
        Request::BuildPathsWithResults { paths: vec![target.clone()], mode: BuildMode::Normal },
        Request::BuildDerivation { drv_path: path(DRV), derivation: derivation(), mode: BuildMode::Normal },
        Request::SetOptions(ClientSettings {
            overrides: [("a".to_owned(), "b".to_owned())].into(),
            ..ClientSettings::default()
        }),
        Request::CollectGarbage(GcOptions {
            action: GcAction::DeleteSpecific,
            paths: Some(path_set(&[A])),
            delete_referrers: false,
            ignore_liveness: false,
            max_freed: 0,
        }),
        Request::QueryPathFromHashPart { hash_part: Some([1; 20]) },
        Request::QuerySubstitutablePathInfos { paths: [(path(A), None)].into() },
        Request::QueryValidPaths { paths: paths(&[A, B]), substitute: false },
        Request::AddSignatures { path: path(A), signatures: vec!["k:c2ln".into()] },
        Request::QueryRealisation { id: id.clone() },
        Request::RegisterDrvOutput {
            realisation: Realisation {
                id,
                out_path: path(OUT),
                signatures: vec!["k:c2ln".into()],
                dependent_realisations: [("x".to_owned(), path(A))].into(),
            },
        },
        Request::AddBuildLog { drv_path: path(DRV) },
        Request::AddPermRoot { path: path(A), gc_root: "/r".into() },
    ]
}

fn parse(bytes: &[u8], protocol: Protocol) -> Result<Option<Request>, WireError> {
    let (mut server, _out) = serve(bytes, protocol);
    block_on(server.next_request())
}

#[test]
fn every_sample_is_read_back_as_it_was_written() {
    for minor in [31, 34, 38] {
        for request in samples() {
            let protocol = Protocol::plain(minor);
            assert_eq!(parse(&encode_request(&request, protocol), protocol).unwrap(), Some(request));
        }
    }
}

#[test]
fn a_request_cut_off_anywhere_is_a_hang_up() {
    let protocol = Protocol::plain(38);
    for request in samples() {
        let encoded = encode_request(&request, protocol);
        assert_eq!(parse(&[], protocol).unwrap(), None);
        for len in 1..encoded.len() {
            let error = parse(&encoded[..len], protocol).unwrap_err();
            assert!(error.is_disconnect(), "{request:?} after {len} bytes: {error}");
        }
    }
}

#[test]
fn operations_we_do_not_know_are_named() {
    let known: Vec<u64> = OPS.iter().map(|info| info.number).collect();
    for number in (0..2000).chain([u64::MAX]).filter(|number| !known.contains(number)) {
        let error = parse(&bytes().n(number).s("whatever").0, Protocol::plain(38)).unwrap_err();
        assert!(matches!(error, WireError::Unsupported { op } if op == number));
        assert!(error.to_string().contains(&format!("operation {number} ")));
    }
}

/// The error that these bytes cause at version 1.38.
fn error(bytes: Bytes) -> String {
    parse(&bytes.0, Protocol::plain(38)).unwrap_err().to_string()
}

#[test]
fn errors_name_operation_field_value_and_limit() {
    let long = format!("/nix/store/{}", "x".repeat(300));
    for (sent, expected) in [
        (bytes().n(1).s("/etc/passwd"), r#"bad path in IsValidPath: "/etc/passwd" is not a store path: "#),
        (bytes().n(1).s(""), r#"bad path in IsValidPath: "" is not a store path: "#),
        (bytes().n(1).s(&format!("{A}/bin")), "bad path in IsValidPath: "),
        (bytes().n(1).s("/nix/store/../../etc"), "bad path in IsValidPath: "),
        (bytes().n(1).s(&long), "bad path in IsValidPath: 311 bytes, at most 255 are accepted"),
        (
            bytes().n(31).n(MAX_PATHS + 1),
            "bad paths in QueryValidPaths: 500001 entries, at most 500000 are accepted",
        ),
        (bytes().n(9).n(0).n(3), "bad buildMode in BuildPaths: 3 is out of range, at most 2 is accepted"),
        (
            bytes().n(1).n(9).raw(b"/nix/stor\0\0\x01\0\0\0\0"),
            "bad path in IsValidPath: the padding after 9 bytes is not zero",
        ),
        (bytes().n(7).b(b"\xff"), r#"bad name in AddToStore: "\xff" is not UTF-8"#),
        (
            bytes().n(7).s("a").s("recursive"),
            r#"bad method in AddToStore: "recursive" is not "text:" or "fixed:" and a hash"#,
        ),
        (
            bytes().n(7).s("a").s("fixed:r:md4"),
            r#"bad method in AddToStore: "md4" is not a hash: unknown hash algorithm "md4""#,
        ),
        (bytes().n(39).s(A).s("").s("abc"), r#"bad narHash in AddToStoreNar: "abc" is not a hash: "#),
        (
            bytes().n(39).s(A).s("").s(&"0".repeat(64)).n(0).n(0).n(0).n(0).n(0).s("nonsense"),
            r#"bad ca in AddToStoreNar: "nonsense" is not a hash: "#,
        ),
        (
            bytes().n(46).n(1).s(&format!("{DRV}!../x")),
            r#"bad paths in BuildPathsWithResults: "../x" is not the name of an output"#,
        ),
        (
            bytes().n(46).n(1).s(&format!("{DRV}{}", "!a".repeat(100))),
            "bad paths in BuildPathsWithResults: 101 entries, at most 16 are accepted",
        ),
        (
            bytes().n(36).s(DRV).n(1).s("out").s(A).s("").s("hash"),
            r#"bad output in BuildDerivation: "hash" is not empty, as there is no hash algorithm"#,
        ),
        (bytes().n(42).s("{}"), r#"bad realisation in RegisterDrvOutput: "{}" is not a realisation as JSON"#),
        (bytes().n(45).s("../../etc"), "bad drvPath in AddBuildLog: "),
    ] {
        let got = error(sent);
        assert!(got.starts_with(expected), "{got:?} instead of {expected:?}");
    }
}

#[test]
fn long_values_are_quoted_in_part() {
    let value = "v".repeat(4000);
    assert!(error(bytes().n(7).s("a").s(&value)).len() < 300);
}

#[test]
fn arguments_that_are_small_one_by_one_cannot_be_large_together() {
    let value = vec![b'x'; 16 << 20];
    let mut sent = bytes().n(19);
    for _ in 0..12 {
        sent = sent.n(0);
    }
    sent = sent.n(5);
    for name in 0..5 {
        sent = sent.s(&name.to_string()).b(&value);
    }
    assert!(
        error(sent).starts_with("bad value of a setting in SetOptions: the fields of one message may have")
    );
}

#[test]
fn a_path_that_is_no_hash_part_is_nobodys() {
    for text in ["", "x", "0000000000000000000000000000000e", "../../../etc/passwd"] {
        let parsed = parse(&bytes().n(29).s(text).0, Protocol::plain(38)).unwrap();
        assert_eq!(parsed, Some(Request::QueryPathFromHashPart { hash_part: None }), "{text:?}");
    }
}

fn greet(bytes: Bytes) -> Result<Protocol, WireError> {
    let accepted = Connection::accept(&bytes.0[..], tokio::io::sink(), ServerInfo::new("2.34.0"));
    block_on(accepted).map(|server| server.protocol())
}

#[test]
fn greetings_that_are_not_nix_are_refused() {
    let error = greet(bytes().raw(b"GET / HTTP/1.1\r\n")).unwrap_err();
    assert!(matches!(error, WireError::NotNix { .. }));
    let error = greet(bytes().n(CLIENT_MAGIC).n(0x1_0000)).unwrap_err();
    assert!(matches!(error, WireError::Field { field: "version", .. }));
    let error = greet(bytes().n(CLIENT_MAGIC).n(0x126).n(MAX_FEATURES + 1)).unwrap_err();
    assert!(matches!(error, WireError::Field { field: "features", .. }));
}

#[test]
fn clients_before_1_18_are_told_to_upgrade() {
    block_on(async {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let hello = bytes().n(CLIENT_MAGIC).n(0x111).0;
        let error = Connection::accept(&hello[..], ours, ServerInfo::new("x")).await.err().unwrap();
        let text =
            "the client speaks version 1.17 of the protocol and we need 1.18 or newer: use Nix 2.0 or newer";
        assert_eq!(error.to_string(), text);
        let mut written = Vec::new();
        theirs.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, bytes().n(0x6478696f).n(0x126).n(0x63787470).s(text).n(1).0);
    });
}

#[test]
fn what_is_announced_and_does_not_come_is_never_allocated() {
    const INNER: &str = "WIRE_TEST_HAS_LITTLE_MEMORY";
    if std::env::var_os(INNER).is_none() {
        // Again, in a process that may have 1 GiB of address space.
        let status = std::process::Command::new("sh")
            .args(["-c", "ulimit -v 1048576 && exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "what_is_announced_and_does_not_come_is_never_allocated", "--nocapture"])
            .env(INNER, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    // 100 clients announce 6 GiB together.
    let announced = bytes().n(8).s("t").n(MAX_REQUEST_BYTES - 64).raw(b"a beginning").0;
    block_on(async {
        let mut held = Vec::new();
        for _ in 0..100 {
            let (reader, mut client) = tokio::io::duplex(4096);
            client.write_all(&announced).await.unwrap();
            let mut server =
                Connection::after_handshake(reader, tokio::io::sink(), Protocol::plain(38), 1 << 20);
            held.push((client, tokio::spawn(async move { server.next_request().await })));
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(held.iter().all(|(_, task)| !task.is_finished()));
    });
}

/// Handles a stream of arbitrary bytes as a server would.
fn survive(bytes: &[u8], protocol: Protocol) {
    let (mut server, out) = serve(bytes, protocol);
    let drain = async {
        let mut out = out;
        let _ = tokio::io::copy(&mut out, &mut tokio::io::sink()).await;
    };
    let run = async {
        while let Ok(Some(request)) = server.next_request().await {
            let mut buffer = [0; 512];
            if let Request::AddMultipleToStore { .. } = request {
                while let Ok(Some(_)) = server.next_item().await {}
            }
            while server.body().read(&mut buffer).await.is_ok_and(|got| got > 0) {}
            if server.fail(&Failure::new("no")).await.is_err() {
                break;
            }
        }
        drop(server);
    };
    block_on(async { tokio::join!(run, drain) });
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    (18u8..=38, any::<bool>()).prop_map(|(minor, features)| {
        let mut protocol = Protocol::plain(minor);
        if features && minor == 38 {
            protocol.features = Features::ALL;
        }
        protocol
    })
}

proptest! {
    #[test]
    fn garbage_never_panics_and_ends(
        op in prop::sample::select(OPS), tail in prop::collection::vec(any::<u8>(), 0..300), protocol in any_protocol()
    ) {
        survive(&bytes().n(op.number).raw(&tail).0, protocol);
    }

    #[test]
    fn small_numbers_never_panic_and_end(
        op in prop::sample::select(OPS), tail in prop::collection::vec(0u64..20, 0..60), protocol in any_protocol()
    ) {
        survive(&tail.iter().fold(bytes().n(op.number), |bytes, n| bytes.n(*n)).0, protocol);
    }

    #[test]
    fn a_request_with_a_changed_byte_never_panics(
        request in prop::sample::select(samples()), at in 0usize..2000, to: u8, protocol in any_protocol()
    ) {
        let mut sent = encode_request(&request, protocol);
        let at = at % sent.len();
        sent[at] = to;
        sent.extend([0; 64]);
        survive(&sent, protocol);
    }

    #[test]
    fn garbage_is_never_a_handshake_and_never_panics(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = greet(bytes().raw(&tail));
        let _ = greet(bytes().n(CLIENT_MAGIC).n(0x126).raw(&tail));
    }
}
