//! Requests and answers as bytes, for the versions where they differ, written down by hand after Nix's sources
//! (src/libstore/worker-protocol.cc, daemon.cc and remote-store.cc of 2.3, 2.8, 2.26, 2.34 and 2.35).

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::*;
use nix::{
    BuildMode, BuildResult, BuildStatus, BuiltOutput, DrvKey, DrvOutputId, Missing, Realisation,
    SubstitutablePathInfo,
};
use nix_derivation::{
    CAHash, ContentAddressMethod, DerivedPath, HashAlgorithm, NixHash, Output, SingleDerivedPath,
};
use tokio::io::AsyncReadExt;
use wire::client::encode_request;
use wire::types::{ClientSettings, GcAction, GcOptions};
use wire::worker::{
    ActivityKind, Failure, Features, LogEvent, Protocol, Request, Response, ResultKind, Verbosity,
};

const LAST: u64 = 0x616c7473;
const ERROR: u64 = 0x63787470;
const NEXT: u64 = 0x6f6c6d67;
const START: u64 = 0x53545254;
const STOP: u64 = 0x53544f50;
const RESULT: u64 = 0x52534c54;

fn nix_2_35() -> Protocol {
    Protocol { features: Features::ALL, ..Protocol::plain(38) }
}

/// Asserts that these bytes are this request, in both directions.
fn request(protocol: Protocol, expected: Bytes, request: Request) {
    let encoded = encode_request(&request, protocol);
    assert_eq!(encoded, expected.0, "encoding {request:?}");
    let (mut server, _out) = serve(&expected.0, protocol);
    assert_eq!(block_on(server.next_request()).unwrap(), Some(request));
}

/// Asserts that this answer to this request is these bytes, after the end of the log.
fn answer(protocol: Protocol, to: Request, response: Response, expected: Bytes) {
    let written = answered(protocol, &to, &response);
    assert_eq!(written, bytes().n(LAST).raw(&expected.0).0, "{response:?} for {protocol:?}");
}

fn answered(protocol: Protocol, to: &Request, response: &Response) -> Vec<u8> {
    let (mut server, mut out) = serve(&encode_request(to, protocol), protocol);
    block_on(async {
        server.next_request().await.unwrap();
        server.reply(response).await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), None);
        drop(server);
        let mut written = Vec::new();
        out.read_to_end(&mut written).await.unwrap();
        written
    })
}

#[test]
fn requests_for_one_path_are_its_absolute_name() {
    for minor in [18, 21, 34, 38] {
        let protocol = Protocol::plain(minor);
        request(protocol, bytes().n(1).s(A), Request::IsValidPath { path: path(A) });
        request(protocol, bytes().n(26).s(A), Request::QueryPathInfo { path: path(A) });
        request(protocol, bytes().n(11).s(A), Request::AddTempRoot { path: path(A) });
        request(protocol, bytes().n(38).s(A), Request::NarFromPath { path: path(A) });
    }
}

#[test]
fn query_valid_paths_says_whether_to_substitute_since_1_27() {
    let ask = |substitute| Request::QueryValidPaths { paths: paths(&[A, B]), substitute };
    request(Protocol::plain(26), bytes().n(31).n(2).s(A).s(B), ask(false));
    request(Protocol::plain(27), bytes().n(31).n(2).s(A).s(B).n(1), ask(true));
}

#[test]
fn add_to_store_names_its_method_since_1_25_and_says_fixed_and_recursive_before() {
    let add = |method, algorithm, references| Request::AddToStore {
        name: "hello".into(),
        method,
        algorithm,
        references,
        repair: false,
    };
    use ContentAddressMethod::*;
    use HashAlgorithm::*;
    let new = Protocol::plain(34);
    request(
        new,
        bytes().n(7).s("hello").s("fixed:r:sha256").n(1).s(B).n(0),
        add(Nar, Sha256, path_set(&[B])),
    );
    request(new, bytes().n(7).s("hello").s("text:sha256").n(0).n(0), add(Text, Sha256, path_set(&[])));
    request(new, bytes().n(7).s("hello").s("fixed:sha1").n(0).n(0), add(Flat, Sha1, path_set(&[])));
    request(new, bytes().n(7).s("hello").s("fixed:git:sha1").n(0).n(0), add(Git, Sha1, path_set(&[])));
    let old = Protocol::plain(21);
    request(old, bytes().n(7).s("hello").n(0).n(1).s("sha256"), add(Nar, Sha256, path_set(&[])));
    request(old, bytes().n(7).s("hello").n(1).n(0).s("sha256"), add(Flat, Sha256, path_set(&[])));
    request(old, bytes().n(7).s("hello").n(1).n(1).s("sha512"), add(Nar, Sha512, path_set(&[])));
}

#[test]
fn add_to_store_nar_carries_a_whole_path_info() {
    let expected = info_bytes(bytes().n(39).s(A)).n(0).n(1);
    let add = Request::AddToStoreNar { info: info(), repair: false, dont_check_sigs: true };
    request(Protocol::plain(20), expected.clone(), add.clone());
    request(Protocol::plain(38), expected, add);
}

#[test]
fn nar_hashes_are_read_in_every_notation() {
    let base32 = nix_derivation::nixbase32::encode(&digest());
    let sri = NixHash::Sha256(digest()).to_sri_string();
    for hash in [HEX.to_owned(), format!("sha256:{HEX}"), base32.clone(), format!("sha256:{base32}"), sri] {
        let sent = bytes().n(39).s(A).s("").s(&hash).n(0).n(0).n(1).n(0).n(0).s("").n(0).n(0);
        let (mut server, _out) = serve(&sent.0, Protocol::plain(38));
        match block_on(server.next_request()).unwrap() {
            Some(Request::AddToStoreNar { info, .. }) => assert_eq!(info.nar_hash, digest(), "{hash}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn build_derivation_carries_outputs_sources_and_environment() {
    let expected = bytes().n(36).s(DRV);
    let expected = expected.n(2).s("dev").s("").s("r:sha256").s("").s("out").s(OUT).s("").s("");
    let expected = expected.n(1).s(A).s("x86_64-linux").s("/bin/sh").n(2).s("-c").s("echo > $out");
    let expected = expected.n(2).s("out").s(OUT).s("raw").b(b"\xff\0\n").n(0);
    let ask =
        Request::BuildDerivation { drv_path: path(DRV), derivation: derivation(), mode: BuildMode::Normal };
    for minor in [21, 34, 38] {
        request(Protocol::plain(minor), expected.clone(), ask.clone());
    }
}

#[test]
fn fixed_outputs_are_their_hash_in_base_16() {
    let ca = CAHash::Nar(NixHash::Sha256(digest()));
    let mut derivation = derivation();
    derivation.outputs = BTreeMap::from([("out".to_owned(), Output::Fixed { ca: ca.clone() })]);
    let fixed = Output::Fixed { ca }.path("x", "out").unwrap().unwrap().to_absolute_path();
    let expected = bytes().n(36).s(DRV).n(1).s("out").s(&fixed).s("r:sha256").s(HEX);
    let expected = expected.n(1).s(A).s("x86_64-linux").s("/bin/sh").n(2).s("-c").s("echo > $out");
    let expected = expected.n(2).s("out").s(OUT).s("raw").b(b"\xff\0\n").n(2);
    let ask = Request::BuildDerivation { drv_path: path(DRV), derivation, mode: BuildMode::Check };
    request(Protocol::plain(38), expected, ask);
}

#[test]
fn a_derivation_alone_is_all_its_outputs_before_1_30_and_itself_since() {
    let sent = bytes().n(9).n(1).s(DRV).n(0);
    let base = || SingleDerivedPath::Opaque(path(DRV));
    for (minor, meant) in
        [(29, DerivedPath::Built { drv_path: base(), outputs: vec![] }), (30, DerivedPath::Opaque(path(DRV)))]
    {
        let (mut server, _out) = serve(&sent.0, Protocol::plain(minor));
        let expected = Request::BuildPaths { paths: vec![meant], mode: BuildMode::Normal };
        assert_eq!(block_on(server.next_request()).unwrap(), Some(expected));
    }
}

#[test]
fn derived_paths_name_outputs_after_an_exclamation_mark() {
    let base = || SingleDerivedPath::Opaque(path(DRV));
    let dynamic = SingleDerivedPath::Built { drv_path: Box::new(base()), output: "out".into() };
    let all = vec![
        DerivedPath::Opaque(path(A)),
        DerivedPath::Built { drv_path: base(), outputs: vec!["out".into(), "dev".into()] },
        DerivedPath::Built { drv_path: base(), outputs: vec![] },
        DerivedPath::Built { drv_path: dynamic, outputs: vec!["lib".into()] },
    ];
    let sent = bytes().n(46).n(4).s(A).s(&format!("{DRV}!out,dev")).s(&format!("{DRV}!*"));
    let sent = sent.s(&format!("{DRV}!out!lib")).n(0);
    request(
        Protocol::plain(34),
        sent,
        Request::BuildPathsWithResults { paths: all, mode: BuildMode::Normal },
    );
}

#[test]
fn set_options_is_twelve_numbers_and_the_other_settings() {
    let settings = ClientSettings {
        keep_failed: true,
        keep_going: false,
        try_fallback: true,
        verbosity: 3,
        max_build_jobs: 4,
        max_silent_time: 5,
        verbose_build: true,
        build_cores: 6,
        use_substitutes: true,
        overrides: BTreeMap::from([("timeout".to_owned(), "7".to_owned())]),
    };
    let sent = bytes().n(19).n(1).n(0).n(1).n(3).n(4).n(5).n(1).n(0).n(0).n(0).n(6).n(1);
    request(Protocol::plain(38), sent.n(1).s("timeout").s("7"), Request::SetOptions(settings));
}

#[test]
fn content_addresses_travel_with_substitutable_queries_since_1_22() {
    let ca = CAHash::Flat(NixHash::Sha256(digest()));
    let rendered = ca.to_nix_string();
    let ask = |ca| Request::QuerySubstitutablePathInfos { paths: BTreeMap::from([(path(A), ca)]) };
    request(Protocol::plain(21), bytes().n(30).n(1).s(A), ask(None));
    request(Protocol::plain(22), bytes().n(30).n(1).s(A).s(""), ask(None));
    request(Protocol::plain(38), bytes().n(30).n(1).s(A).s(&rendered), ask(Some(ca)));
}

#[test]
fn realisations_have_three_forms() {
    let id = DrvOutputId { drv: DrvKey::Hash(NixHash::Sha256(digest())), output: "out".into() };
    let id_text = format!("sha256:{HEX}!out");
    let mut realisation = Realisation {
        id: id.clone(),
        out_path: path(OUT),
        signatures: vec![],
        dependent_realisations: BTreeMap::new(),
    };
    let base_name = OUT.strip_prefix("/nix/store/").unwrap();
    let register =
        |realisation: &Realisation| Request::RegisterDrvOutput { realisation: realisation.clone() };
    let query = |id: &DrvOutputId| Request::QueryRealisation { id: id.clone() };
    let some = Response::Realisation(Some(realisation.clone()));

    let old = Protocol::plain(30);
    request(old, bytes().n(42).s(&id_text).s(base_name), register(&realisation));
    answer(old, query(&id), some.clone(), bytes().n(1).s(OUT));
    answer(old, query(&id), Response::Realisation(None), bytes().n(0));

    let json = format!(
        r#"{{"dependentRealisations":{{}},"id":"{id_text}","outPath":"{base_name}","signatures":[]}}"#
    );
    let middle = Protocol::plain(38);
    request(middle, bytes().n(43).s(&id_text), query(&id));
    request(middle, bytes().n(42).s(&json), register(&realisation));
    answer(middle, query(&id), some, bytes().n(1).s(&json));

    realisation.id.drv = DrvKey::Path(path(DRV));
    realisation.signatures.push("k:c2ln".into());
    let new = nix_2_35();
    request(new, bytes().n(43).s(DRV).s("out"), query(&realisation.id));
    request(new, bytes().n(42).s(DRV).s("out").s(OUT).n(1).s("k:c2ln"), register(&realisation));
    answer(
        new,
        query(&realisation.id),
        Response::Realisation(Some(realisation.clone())),
        bytes().n(1).s(OUT).n(1).s("k:c2ln"),
    );
}

#[test]
fn garbage_collection_of_some_paths_is_a_feature() {
    let options = |paths, delete_referrers| {
        let action = GcAction::DeleteSpecific;
        Request::CollectGarbage(GcOptions {
            action,
            paths,
            delete_referrers,
            ignore_liveness: false,
            max_freed: 9,
        })
    };
    let sent = bytes().n(20).n(3).n(1).s(A).n(0).n(9).n(0).n(0).n(0);
    request(Protocol::plain(38), sent, options(Some(path_set(&[A])), false));
    let sent = bytes().n(20).n(3).n(0).n(1).s(A).n(1).n(0).n(9).n(0).n(0).n(0);
    request(nix_2_35(), sent, options(Some(path_set(&[A])), true));
}

#[test]
fn path_infos_are_answered_with_a_flag_in_front() {
    let ask = || Request::QueryPathInfo { path: path(A) };
    for minor in [18, 38] {
        answer(Protocol::plain(minor), ask(), Response::PathInfo(None), bytes().n(0));
        answer(Protocol::plain(minor), ask(), Response::PathInfo(Some(info())), info_bytes(bytes().n(1)));
    }
}

#[test]
fn what_was_added_is_answered_in_full_since_1_25() {
    let add = Request::AddTextToStore { name: "t".into(), text: b"x".to_vec(), references: path_set(&[]) };
    answer(Protocol::plain(24), add, Response::Added(info()), bytes().s(A));
    // The body of the next two is empty frames, and a missing NAR: other tests have them with bodies.
    let add = Request::AddToStore {
        name: "a".into(),
        method: ContentAddressMethod::Flat,
        algorithm: HashAlgorithm::Sha256,
        references: path_set(&[]),
        repair: false,
    };
    let protocol = Protocol::plain(25);
    let mut sent = encode_request(&add, protocol);
    sent.extend([0; 8]);
    let (mut server, mut out) = serve(&sent, protocol);
    block_on(async {
        server.next_request().await.unwrap();
        server.reply(&Response::Added(info())).await.unwrap();
        assert_eq!(server.next_request().await.unwrap(), None);
        drop(server);
        let mut written = Vec::new();
        out.read_to_end(&mut written).await.unwrap();
        assert_eq!(written, info_bytes(bytes().n(LAST).s(A)).0);
    });
}

fn built() -> BuildResult {
    let output = BuiltOutput { path: path(OUT), drv_hash: Some(digest()), signatures: vec![] };
    BuildResult {
        times_built: 1,
        start_time: 10,
        stop_time: 20,
        cpu_user: Some(Duration::from_millis(2)),
        built_outputs: BTreeMap::from([("out".to_owned(), output)]),
        ..BuildResult::new(BuildStatus::Built, "")
    }
}

#[test]
fn build_results_grow_with_the_version() {
    let ask = || Request::BuildDerivation {
        drv_path: path(DRV),
        derivation: derivation(),
        mode: BuildMode::Normal,
    };
    let id = format!("sha256:{HEX}!out");
    let base_name = OUT.strip_prefix("/nix/store/").unwrap();
    let json =
        format!(r#"{{"dependentRealisations":{{}},"id":"{id}","outPath":"{base_name}","signatures":[]}}"#);
    let outputs = |bytes: Bytes| bytes.n(1).s(&id).s(&json);
    let cases = [
        (Protocol::plain(27), bytes().n(0).s("")),
        (Protocol::plain(28), outputs(bytes().n(0).s(""))),
        (Protocol::plain(34), outputs(bytes().n(0).s("").n(1).n(0).n(10).n(20))),
        (Protocol::plain(38), outputs(bytes().n(0).s("").n(1).n(0).n(10).n(20).n(1).n(2000).n(0))),
        (nix_2_35(), bytes().n(0).s("").n(1).n(0).n(10).n(20).n(1).n(2000).n(0).n(1).s("out").s(OUT).n(0)),
    ];
    for (protocol, expected) in cases {
        answer(protocol, ask(), Response::BuildResult(built()), expected);
    }
}

#[test]
fn keyed_results_repeat_what_was_asked() {
    let target =
        DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(path(DRV)), outputs: vec!["out".into()] };
    let ask = Request::BuildPathsWithResults { paths: vec![target.clone()], mode: BuildMode::Normal };
    let result = BuildResult::new(BuildStatus::PermanentFailure, "no");
    answer(
        Protocol::plain(34),
        ask,
        Response::BuildResults(vec![(target, result)]),
        bytes().n(1).s(&format!("{DRV}!out")).n(3).s("no").n(0).n(0).n(0).n(0).n(0),
    );
}

#[test]
fn small_answers_have_their_shape() {
    let p = Protocol::plain(38);
    answer(p, Request::IsValidPath { path: path(A) }, Response::Bool(true), bytes().n(1));
    answer(
        p,
        Request::QueryReferrers { path: path(A) },
        Response::Paths(paths(&[A, B])),
        bytes().n(2).s(A).s(B),
    );
    let ask = Request::QueryPathFromHashPart { hash_part: Some([0; 20]) };
    answer(p, ask.clone(), Response::MaybePath(Some(path(A))), bytes().s(A));
    answer(p, ask, Response::MaybePath(None), bytes().s(""));
    answer(p, Request::AddTempRoot { path: path(A) }, Response::Done, bytes().n(1));
    answer(p, Request::SetOptions(ClientSettings::default()), Response::Done, bytes());
    let map = BTreeMap::from([("dev".to_owned(), None), ("out".to_owned(), Some(path(OUT)))]);
    let ask = Request::QueryDerivationOutputMap { path: path(DRV) };
    answer(p, ask, Response::OutputMap(map), bytes().n(2).s("dev").s("").s("out").s(OUT));
    let missing = Missing { will_build: paths(&[DRV]), download_size: 7, nar_size: 8, ..Missing::default() };
    let ask = Request::QueryMissing { targets: vec![] };
    answer(p, ask, Response::Missing(missing), bytes().n(1).s(DRV).n(0).n(0).n(7).n(8));
    let garbage = Response::Garbage { paths: vec![A.into()], bytes_freed: 5 };
    let ask = GcOptions {
        action: GcAction::DeleteDead,
        paths: None,
        delete_referrers: false,
        ignore_liveness: false,
        max_freed: 0,
    };
    answer(p, Request::CollectGarbage(ask), garbage, bytes().n(1).s(A).n(5).n(0));
    answer(p, Request::FindRoots, Response::Roots(vec![("l".into(), path(A))]), bytes().n(1).s("l").s(A));
    let ask = Request::AddPermRoot { path: path(A), gc_root: "/r".into() };
    answer(p, ask, Response::GcRoot("/r".into()), bytes().s("/r"));
    let known = SubstitutablePathInfo {
        path: path(A),
        deriver: None,
        references: path_set(&[B]),
        download_size: 1,
        nar_size: 2,
    };
    let ask = Request::QuerySubstitutablePathInfo { path: path(A) };
    answer(p, ask.clone(), Response::Substitutable(vec![]), bytes().n(0));
    answer(p, ask, Response::Substitutable(vec![known.clone()]), bytes().n(1).s("").n(1).s(B).n(1).n(2));
    let ask = Request::QuerySubstitutablePathInfos { paths: BTreeMap::new() };
    answer(p, ask, Response::Substitutable(vec![known]), bytes().n(1).s(A).s("").n(1).s(B).n(1).n(2));
}

/// The bytes written for a log event or a failure, while a request of this version runs.
fn written<F>(minor: u8, act: F) -> Vec<u8>
where
    F: AsyncFnOnce(&mut Server),
{
    let (mut server, mut out) = serve(&bytes().n(34).0, Protocol::plain(minor));
    block_on(async {
        server.next_request().await.unwrap();
        act(&mut server).await;
        server.flush().await.unwrap();
        drop(server);
        let mut written = Vec::new();
        out.read_to_end(&mut written).await.unwrap();
        written
    })
}

#[test]
fn errors_are_structured_since_1_26() {
    let failure = Failure { level: Verbosity::Error, message: "no".into(), traces: vec!["while".into()] };
    let write = |minor| written(minor, async |server: &mut Server| server.fail(&failure).await.unwrap());
    assert_eq!(write(25), bytes().n(ERROR).s("no").n(1).0);
    let expected = bytes().n(ERROR).s("Error").n(0).s("Error").s("no").n(0).n(1).n(0).s("while");
    assert_eq!(write(26), expected.0);
    assert_eq!(write(38), expected.0);
}

#[test]
fn activities_are_sent_since_1_20_and_their_text_before() {
    let events = [
        LogEvent::start_build(5, DRV),
        LogEvent::phase(5, "buildPhase"),
        LogEvent::build_line(5, "cc -O2"),
        LogEvent::Result {
            id: 5,
            kind: ResultKind::Progress,
            fields: vec![1.into(), 2.into(), 3.into(), 4.into()],
        },
        LogEvent::stop(5),
        LogEvent::message("hi"),
    ];
    let write = |minor| {
        written(minor, async |server: &mut Server| {
            for event in &events {
                server.log(event).await.unwrap();
            }
        })
    };
    let text = format!("building '{DRV}'");
    let expected = bytes().n(START).n(5).n(3).n(ActivityKind::Build as u64).s(&text);
    let expected = expected.n(4).n(1).s(DRV).n(1).s("").n(0).n(1).n(0).n(1).n(0);
    let expected = expected.n(RESULT).n(5).n(104).n(1).n(1).s("buildPhase");
    let expected = expected.n(RESULT).n(5).n(101).n(1).n(1).s("cc -O2");
    let expected = expected.n(RESULT).n(5).n(105).n(4).n(0).n(1).n(0).n(2).n(0).n(3).n(0).n(4);
    let expected = expected.n(STOP).n(5).n(NEXT).s("hi\n");
    assert_eq!(write(20), expected.0);
    let expected = bytes().n(NEXT).s(&format!("{text}...\n")).n(NEXT).s("cc -O2\n").n(NEXT).s("hi\n");
    assert_eq!(write(19), expected.0);
}
