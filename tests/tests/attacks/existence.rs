//! Bob asks, by every operation, about paths that only Alice has; and gets, byte for byte, the same answers
//! as for paths that nobody has.
//!
//! Every operation of the protocol's table has its cases in a `match` without a default, so that a new
//! operation does not compile until somebody has considered what its answers reveal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use e2e::hostile::*;
use e2e::shared_box::{Line, SharedBox, WORKER, recipe};
use nix::derivation::BasicDerivation;
use nix::{BuildMode, PathInfo, Realisation};
use nix_derivation::{
    CAHash, ContentAddressMethod, DerivedPath, HashAlgorithm, SingleDerivedPath, StorePath,
};
use tokio::io::AsyncReadExt;
use wire::client::{Client, End, Frame, encode_frames, encode_items};
use wire::types::{ClientSettings, GcAction, GcOptions};
use wire::worker::{BodyShape, OPS, Op, OpInfo, Request};

use crate::realisations;
use crate::twins::{Secret, at, aterm};

/// One request of Bob's.
struct Case {
    /// Bob's uploads before the request, in a session of their own.
    before: Uploads,
    request: Request,
    /// Sent after the request, in the frames of current clients.
    body: Option<Vec<u8>>,
}

fn ask(request: Request) -> Case {
    Case { before: Vec::new(), request, body: None }
}

fn with_body(request: Request, body: Vec<u8>) -> Case {
    Case { before: Vec::new(), request, body: Some(body) }
}

pub fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

fn outputs_of(drv: &StorePath) -> DerivedPath {
    DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(drv.clone()), outputs: vec!["out".into()] }
}

/// Paths with their NARs.
pub type Uploads = Vec<(PathInfo, Vec<u8>)>;

/// Targets that lead to the secret, and Bob's uploads before.
pub fn targets(secret: &Secret) -> Vec<(Uploads, DerivedPath)> {
    let mut targets: Vec<_> = [&secret.plain, &secret.user, &secret.drv, &secret.output]
        .map(|path| (Vec::new(), DerivedPath::Opaque(path.clone())))
        .into();
    targets.push((Vec::new(), outputs_of(&secret.drv)));
    // Derivations of Bob's own that claim to need it. His announcements do not have to be true.
    for (drvs, sources) in [
        (vec![], vec![&secret.plain]),
        (vec![&secret.drv], vec![]),
        (vec![], vec![&secret.output]),
        (vec![], vec![&secret.drv]),
    ] {
        let file = nar(&file(&aterm(&secret.spare, &drvs, &sources, "echo bob > $out")));
        let before = vec![(at(&secret.spare_drv, &file), file)];
        targets.push((before, outputs_of(&secret.spare_drv)));
    }
    targets
}

/// Derivations that Bob can send as a whole.
pub fn recipes(secret: &Secret) -> Vec<(StorePath, BasicDerivation)> {
    let Secret { plain, drv, output, spare, spare_drv, user, .. } = secret;
    let look =
        format!("test -e {} && echo there || echo not there; echo bob > $out", plain.to_absolute_path());
    let mut recipes = vec![
        recipe(spare_drv, &[("out", spare)], &[plain], "echo bob > $out"),
        recipe(spare_drv, &[("out", spare)], &[user], "echo bob > $out"),
        recipe(spare_drv, &[("out", spare)], &[drv], "echo bob > $out"),
        recipe(spare_drv, &[("out", spare)], &[output], "echo bob > $out"),
        // Not the recipe from which Alice built this path.
        recipe(drv, &[("out", output)], &[], "echo built for bob > $out"),
        recipe(spare_drv, &[("out", spare)], &[], &look),
    ];
    let mut graph = recipe(spare_drv, &[("out", spare)], &[], "echo bob > $out");
    let wanted = format!("graph {}", plain.to_absolute_path()).into_bytes();
    graph.1.env.insert("exportReferencesGraph".into(), wanted);
    recipes.push(graph);
    let mut allowed = recipe(spare_drv, &[("out", spare)], &[], "echo bob > $out");
    allowed.1.env.insert("allowedReferences".into(), plain.to_absolute_path().into_bytes());
    recipes.push(allowed);
    recipes
}

fn garbage(action: GcAction, paths: Option<BTreeSet<StorePath>>, ignore_liveness: bool) -> Case {
    ask(Request::CollectGarbage(GcOptions {
        action,
        paths,
        delete_referrers: false,
        ignore_liveness,
        max_freed: u64::MAX,
    }))
}

/// All requests of `op` about `secret`.
fn cases(op: Op, secret: &Secret) -> Vec<Case> {
    use Request as Q;
    let Secret { plain, user, drv, output, realised, spare, proven, .. } = secret.clone();
    // Every kind of path that Alice has.
    let each = |make: &dyn Fn(StorePath) -> Request| -> Vec<Case> {
        [&plain, &user, &drv, &output, &proven].iter().map(|path| ask(make((*path).clone()))).collect()
    };
    let contents = Secret::contents();
    let mine = Secret::mine();
    match op {
        Op::IsValidPath => each(&|path| Q::IsValidPath { path }),
        Op::QueryReferences => each(&|path| Q::QueryReferences { path }),
        Op::QueryReferrers => each(&|path| Q::QueryReferrers { path }),
        Op::QueryDeriver => each(&|path| Q::QueryDeriver { path }),
        Op::EnsurePath => each(&|path| Q::EnsurePath { path }),
        Op::AddTempRoot => each(&|path| Q::AddTempRoot { path }),
        Op::QueryPathInfo => each(&|path| Q::QueryPathInfo { path }),
        Op::QueryDerivationOutputs => each(&|path| Q::QueryDerivationOutputs { path }),
        Op::QueryDerivationOutputNames => each(&|path| Q::QueryDerivationOutputNames { path }),
        Op::QueryDerivationOutputMap => each(&|path| Q::QueryDerivationOutputMap { path }),
        Op::QuerySubstitutablePathInfo => each(&|path| Q::QuerySubstitutablePathInfo { path }),
        Op::QueryValidDerivers => each(&|path| Q::QueryValidDerivers { path }),
        Op::NarFromPath => each(&|path| Q::NarFromPath { path }),
        Op::AddBuildLog => {
            let log = || b"bob's log\n".to_vec();
            [drv, plain].map(|drv_path| with_body(Q::AddBuildLog { drv_path }, log())).into()
        }
        Op::QueryPathFromHashPart => {
            each(&|path| Q::QueryPathFromHashPart { hash_part: Some(*path.digest()) })
        }
        Op::AddPermRoot => {
            each(&|path| Q::AddPermRoot { path, gc_root: "/nix/var/nix/gcroots/bob/root".into() })
        }
        Op::AddIndirectRoot => vec![ask(Q::AddIndirectRoot { gc_root: plain.to_absolute_path() })],
        Op::AddSignatures => {
            let signatures = vec![format!("bob:{}==", "A".repeat(86))];
            each(&|path| Q::AddSignatures { path, signatures: signatures.clone() })
        }
        Op::QueryValidPaths => [false, true]
            .iter()
            .flat_map(|substitute| {
                let paths = [&plain, &user, &drv, &output];
                paths.map(|path| {
                    ask(Q::QueryValidPaths { paths: vec![path.clone()], substitute: *substitute })
                })
            })
            .collect(),
        Op::QuerySubstitutablePaths => each(&|path| Q::QuerySubstitutablePaths { paths: vec![path] }),
        Op::QuerySubstitutablePathInfos => {
            each(&|path| Q::QuerySubstitutablePathInfos { paths: BTreeMap::from([(path, None::<CAHash>)]) })
        }
        Op::AddToStore => [&plain, &drv, &output]
            .iter()
            .map(|reference| {
                let request = Q::AddToStore {
                    name: "mine".into(),
                    method: ContentAddressMethod::Nar,
                    algorithm: HashAlgorithm::Sha256,
                    references: set([(*reference).clone()]),
                    repair: false,
                };
                with_body(request, mine.clone())
            })
            .collect(),
        Op::AddTextToStore => [&plain, &drv, &output]
            .iter()
            .map(|reference| {
                let references = set([(*reference).clone()]);
                ask(Q::AddTextToStore { name: "mine".into(), text: Secret::MINE.to_vec(), references })
            })
            .collect(),
        Op::AddToStoreNar => {
            let add = |info: PathInfo, nar: &[u8], repair| {
                with_body(Q::AddToStoreNar { info, repair, dont_check_sigs: true }, nar.to_vec())
            };
            let refers = PathInfo { references: set([plain.clone()]), ..at(&spare, &mine) };
            let derived = PathInfo { deriver: Some(drv), ..at(&spare, &mine) };
            vec![
                add(refers, &mine, false),
                add(derived, &mine, false),
                // The same contents as Alice's; other contents at the same path; and contents that do not
                // match the announcement.
                add(at(&plain, &contents), &contents, false),
                add(at(&user, &mine), &mine, true),
                add(at(&output, &contents), &mine, false),
            ]
        }
        Op::AddMultipleToStore => {
            let add = |items: &[(PathInfo, Vec<u8>)]| {
                with_body(Q::AddMultipleToStore { repair: false, dont_check_sigs: true }, encode_items(items))
            };
            let refers = PathInfo { references: set([user.clone()]), ..at(&spare, &mine) };
            vec![
                add(&[(refers, mine.clone())]),
                add(&[(at(&plain, &contents), contents.clone())]),
                add(&[(at(&output, &mine), mine.clone())]),
            ]
        }
        Op::BuildPaths => targets(secret)
            .into_iter()
            .map(|(before, target)| Case {
                before,
                ..ask(Q::BuildPaths { paths: vec![target], mode: BuildMode::Normal })
            })
            .collect(),
        Op::BuildPathsWithResults => targets(secret)
            .into_iter()
            .map(|(before, target)| {
                let request = Q::BuildPathsWithResults { paths: vec![target], mode: BuildMode::Normal };
                Case { before, ..ask(request) }
            })
            .collect(),
        Op::QueryMissing => targets(secret)
            .into_iter()
            .map(|(before, target)| Case { before, ..ask(Q::QueryMissing { targets: vec![target] }) })
            .collect(),
        Op::BuildDerivation => [BuildMode::Normal, BuildMode::Check, BuildMode::Repair]
            .into_iter()
            .flat_map(|mode| {
                let ask =
                    move |(drv_path, derivation)| ask(Q::BuildDerivation { drv_path, derivation, mode });
                recipes(secret).into_iter().map(ask)
            })
            .collect(),
        Op::CollectGarbage => {
            use GcAction::{DeleteDead, DeleteSpecific, ReturnDead, ReturnLive};
            let mut cases = Vec::new();
            for action in [ReturnLive, ReturnDead, DeleteDead, DeleteSpecific] {
                for ignore_liveness in [false, true] {
                    cases.push(garbage(action, None, ignore_liveness));
                    for path in [&plain, &user, &drv, &output, &proven] {
                        cases.push(garbage(action, Some(set([path.clone()])), ignore_liveness));
                    }
                }
            }
            cases
        }
        Op::RegisterDrvOutput => [&plain, &output]
            .iter()
            .map(|out_path| {
                ask(Q::RegisterDrvOutput {
                    realisation: Realisation {
                        id: realised.clone(),
                        out_path: (*out_path).clone(),
                        signatures: Vec::new(),
                        dependent_realisations: BTreeMap::new(),
                    },
                })
            })
            .collect(),
        Op::QueryRealisation => vec![ask(Q::QueryRealisation { id: realised })],
        // These requests are about the whole store. Alice's work between two of them must not show.
        Op::SyncWithGc => vec![ask(Q::SyncWithGc)],
        Op::FindRoots => vec![ask(Q::FindRoots)],
        Op::SetOptions => vec![ask(Q::SetOptions(ClientSettings::default()))],
        Op::QueryAllValidPaths => vec![ask(Q::QueryAllValidPaths)],
        Op::OptimiseStore => vec![ask(Q::OptimiseStore)],
        Op::VerifyStore => [(false, false), (true, false), (true, true)]
            .map(|(check_contents, repair)| ask(Q::VerifyStore { check_contents, repair }))
            .into(),
    }
}

/// Uploads the Verified part of the secret.
pub async fn prove(anyone: &mut Session, secret: &Secret) {
    anyone
        .request(&Request::AddToStore {
            name: secret.proven.name().to_owned(),
            method: ContentAddressMethod::Text,
            algorithm: HashAlgorithm::Sha256,
            references: BTreeSet::new(),
            repair: false,
        })
        .await;
    anyone.client.framed(Secret::PROVEN).await.expect("the box reads");
    within("an answer", anyone.client.done()).await.expect("added");
    let added = anyone.client.path_info(None).await.expect("a path info").path;
    assert_eq!(added, secret.proven);
}

/// Alice annotates the Verified path with a deriver and a signature: by an upload, and afterwards.
pub async fn annotated_by(alice: &mut Session, secret: &Secret) {
    let contents = nar(&file(Secret::PROVEN));
    let signature = |name: &str| format!("{name}:{}==", "A".repeat(86));
    let info = PathInfo {
        deriver: Some(secret.drv.clone()),
        signatures: vec![signature("first")],
        ..at(&secret.proven, &contents)
    };
    alice.upload(&info, &contents).await;
    let (path, signatures) = (secret.proven.clone(), vec![signature("second")]);
    alice.call(&Request::AddSignatures { path, signatures }).await;
    assert_eq!(alice.client.u64().await.expect("an answer"), 1);
    let told = alice.path_info(&secret.proven).await.expect("valid");
    assert_eq!(told.deriver.as_ref(), Some(&secret.drv));
    assert_eq!(told.signatures, [signature("first"), signature("second")]);
}

/// Alice gets the paths, in every possible way.
pub async fn owned_by(alice: &mut Session, secret: &Secret) {
    annotated_by(alice, secret).await;
    let contents = Secret::contents();
    alice.upload(&at(&secret.plain, &contents), &contents).await;
    let user = PathInfo {
        references: set([secret.plain.clone()]),
        deriver: Some(secret.drv.clone()),
        ..at(&secret.user, &contents)
    };
    alice.upload(&user, &contents).await;
    let drv = nar(&file(&aterm(&secret.output, &[], &[], "echo built for alice > $out")));
    alice.upload(&at(&secret.drv, &drv), &drv).await;
    let told = alice.build(secret.build()).await;
    assert_eq!(told.status, 0, "{told:?}");
    alice.call(&Request::AddTempRoot { path: secret.plain.clone() }).await;
    assert_eq!(alice.client.u64().await.expect("a number"), 1);
    let gc_root = "/nix/var/nix/gcroots/alices".to_owned();
    alice.call(&Request::AddPermRoot { path: secret.user.clone(), gc_root: gc_root.clone() }).await;
    assert_eq!(alice.client.string().await.expect("a link"), gc_root);
    let realisation = Realisation {
        id: secret.realised.clone(),
        out_path: secret.plain.clone(),
        signatures: Vec::new(),
        dependent_realisations: BTreeMap::new(),
    };
    alice.call(&Request::RegisterDrvOutput { realisation }).await;
    assert_eq!(realisations::realisation(alice, &secret.realised).await.len(), 1);
    assert!(alice.is_valid(&secret.plain).await && alice.is_valid(&secret.output).await);
}

/// Sends the uploads before a request, in a session of their own.
pub async fn upload_before(line: &Line, uploads: &Uploads) {
    if uploads.is_empty() {
        return;
    }
    let mut bob = Session::over(line.ssh(WORKER), MINOR).await;
    for (info, nar) in uploads {
        bob.upload(info, nar).await;
    }
    bob.leave().await;
}

/// Everything that a client can see of an answer. Ids and clock times always differ, so they are removed.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    frames: Vec<Frame>,
    end: End,
    rest: Vec<u8>,
    stderr: Vec<u8>,
}

impl Seen {
    fn renamed(&self, from: &Secret, to: &Secret) -> Seen {
        let text = |text: &str| String::from_utf8(from.rename(to, text.as_bytes())).expect("text");
        let bytes = |bytes: &Vec<u8>| from.rename(to, bytes);
        Seen {
            frames: self
                .frames
                .iter()
                .map(|frame| match frame {
                    Frame::Message(message) => Frame::Message(bytes(message)),
                    Frame::Start(id, kind, name) => Frame::Start(*id, *kind, text(name)),
                    Frame::Stop(id) => Frame::Stop(*id),
                    Frame::Result(id, kind, fields) => {
                        Frame::Result(*id, *kind, fields.iter().map(bytes).collect())
                    }
                })
                .collect(),
            end: match &self.end {
                End::Error(message) => End::Error(text(message)),
                other => other.clone(),
            },
            rest: bytes(&self.rest),
            stderr: bytes(&self.stderr),
        }
    }
}

/// Replaces numbers that are current times.
pub fn without_clock_times(answer: &mut [u8]) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    for word in answer.chunks_exact_mut(8) {
        let value = u64::from_le_bytes(word.try_into().expect("8 bytes"));
        if now.abs_diff(value) < 1000 {
            word.fill(0);
        }
    }
}

/// Sends one request in a session of its own and reads to the last byte.
async fn see(ssh: std::process::Command, minor: u8, info: &OpInfo, case: &Case) -> Seen {
    let (mut ssh, reader, writer, stderr) = piped_with_stderr(ssh);
    let mut client =
        within("a handshake", Client::connect(reader, writer, minor, &[])).await.expect("a handshake");
    client.request(&case.request).await.expect("the box reads");
    if let Some(body) = &case.body {
        assert_ne!(info.body, BodyShape::None, "{}", info.name);
        let _ = client.send(&encode_frames(body, 32 << 10)).await;
    }
    let (mut frames, end) = within("an answer", client.log()).await.expect("an answer");
    let Client { mut reader, writer, .. } = client;
    drop(writer);
    let mut rest = Vec::new();
    within("the end", reader.read_to_end(&mut rest)).await.expect("read");
    let stderr = within("the end", stderr).await.expect("read");
    within("ssh", ssh.wait()).await.expect("wait");

    let mut ids = Vec::new();
    for frame in &mut frames {
        let (Frame::Start(id, ..) | Frame::Stop(id) | Frame::Result(id, ..)) = frame else { continue };
        let at = ids.iter().position(|known| known == id).unwrap_or_else(|| {
            ids.push(*id);
            ids.len() - 1
        });
        *id = at as u64;
    }
    without_clock_times(&mut rest);
    Seen { frames, end, rest, stderr }
}

/// The versions in which clients send this operation: the newest, and the oldest if its body has the same
/// form.
fn minors(info: &OpInfo) -> Vec<u8> {
    let newest = info.until.map_or(MINOR, |until| until.minor.clamp(18, MINOR));
    match info.body {
        BodyShape::None if info.since.minor <= 18 && newest > 18 => vec![newest, 18],
        _ => vec![newest],
    }
}

#[tokio::test]
async fn no_operation_of_the_worker_protocol_tells_of_what_another_member_has() {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let mut alice = shared_box.session("alice").await;
    let mut prover = shared_box.session("alice").await;
    let own = async |secret: &Secret| owned_by(&mut alice, secret).await;
    let pairs = nothing_is_told(&mut prover, &shared_box.line("bob"), usize::MAX, own).await;
    println!("{pairs} pairs of answers are the same");
    // None of these requests changed Alice's paths.
    alice.leave().await;
}

/// Sends every request about the paths that `own` gives to another member, and about paths that nobody has,
/// and compares the answers. At most `most` cases of each operation; with that limit only in the newest
/// version.
pub async fn nothing_is_told(
    prover: &mut Session,
    line: &Line,
    most: usize,
    mut own: impl AsyncFnMut(&Secret),
) -> usize {
    let mut pairs = 0;
    for info in OPS {
        let versions = if most == usize::MAX { usize::MAX } else { 1 };
        for minor in minors(info).into_iter().take(versions) {
            let count = cases(info.op, &Secret::new("")).len();
            for index in 0..count.min(most) {
                let name = format!("{} {minor} {index}", info.name);
                let (hers, nobodys) =
                    (Secret::new(&format!("hers {name}")), Secret::new(&format!("nobodys {name}")));
                let mut seen = Vec::new();
                for secret in [&nobodys, &hers] {
                    prove(prover, secret).await;
                }
                for secret in [&nobodys, &hers] {
                    if std::ptr::eq(secret, &hers) {
                        own(&hers).await;
                    } else if info.op == Op::CollectGarbage {
                        // Bob's leftovers are removed before the first of the two requests.
                        see(line.ssh(WORKER), minor, info, &garbage(GcAction::DeleteDead, None, false)).await;
                    }
                    let case = cases(info.op, secret).swap_remove(index);
                    upload_before(line, &case.before).await;
                    seen.push(see(line.ssh(WORKER), minor, info, &case).await);
                }
                let expected = match info.op {
                    // Lists the Verified paths of both secrets, and no other path of either.
                    Op::QueryAllValidPaths => seen[0].renamed(&nobodys, &nobodys),
                    _ => seen[0].renamed(&nobodys, &hers),
                };
                assert_eq!(seen[1], expected, "{name}: left is what bob sees of alice's, right of nobody's");
                println!("{name}: {:?}, {} bytes", seen[1].end, seen[1].rest.len());
                pairs += 1;
            }
        }
    }
    pairs
}
