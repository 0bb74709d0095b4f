//! The same as `existence`, for every command of the serve protocol (`ssh://`).

use e2e::hostile::*;
use e2e::shared_box::{Line, SERVE, SharedBox};
use nix::PathInfo;
use tokio::io::AsyncReadExt;
use wire::serve::{BodyShape, BuildOptions, ImportedInfo, OPS, Op, Request};
use wire::serve_client::{Client, encode_export};

use crate::existence::{Uploads, owned_by, prove, recipes, set, targets, upload_before, without_clock_times};
use crate::twins::{Secret, at};

/// One request of Bob's.
struct Case {
    /// Bob's uploads before the request.
    before: Uploads,
    request: Request,
    /// Sent after the request.
    body: Vec<u8>,
}

fn ask(request: Request) -> Case {
    Case { before: Vec::new(), request, body: Vec::new() }
}

/// All requests of `op` about `secret`.
fn cases(op: Op, secret: &Secret) -> Vec<Case> {
    use Request as Q;
    let Secret { plain, user, drv, output, spare, proven, .. } = secret.clone();
    let kinds = [plain.clone(), user.clone(), drv.clone(), output.clone(), proven];
    let (contents, mine) = (Secret::contents(), Secret::mine());
    let options = BuildOptions::default();
    match op {
        Op::QueryValidPaths => [(false, false), (true, false), (false, true), (true, true)]
            .iter()
            .flat_map(|(lock, substitute)| {
                kinds.clone().map(|path| {
                    ask(Q::QueryValidPaths { lock: *lock, substitute: *substitute, paths: vec![path] })
                })
            })
            .collect(),
        Op::QueryPathInfos => kinds.map(|path| ask(Q::QueryPathInfos { paths: vec![path] })).into(),
        Op::DumpStorePath => kinds.map(|path| ask(Q::DumpStorePath { path })).into(),
        Op::ExportPaths => kinds.map(|path| ask(Q::ExportPaths { paths: vec![path] })).into(),
        Op::QueryClosure => [false, true]
            .iter()
            .flat_map(|include_outputs| {
                kinds
                    .clone()
                    .map(|path| ask(Q::QueryClosure { include_outputs: *include_outputs, paths: vec![path] }))
            })
            .collect(),
        Op::ImportPaths => {
            let import = |path, references, deriver, nar: &[u8]| {
                let info = ImportedInfo { path, references, deriver };
                Case { body: encode_export(&[(info, nar.to_vec())]), ..ask(Q::ImportPaths) }
            };
            vec![
                import(spare.clone(), set([plain.clone()]), None, &mine),
                import(spare, set([]), Some(drv), &mine),
                import(plain, set([]), None, &contents),
                import(output, set([]), None, &mine),
            ]
        }
        Op::AddToStoreNar => {
            let add =
                |info: PathInfo, nar: &[u8]| Case { body: nar.to_vec(), ..ask(Q::AddToStoreNar { info }) };
            vec![
                add(PathInfo { references: set([plain.clone()]), ..at(&spare, &mine) }, &mine),
                add(PathInfo { deriver: Some(drv), ..at(&spare, &mine) }, &mine),
                add(at(&plain, &contents), &contents),
                add(at(&output, &mine), &mine),
                add(PathInfo { nar_size: mine.len() as u64, ..at(&user, &contents) }, &mine),
            ]
        }
        Op::BuildPaths => targets(secret)
            .into_iter()
            .map(|(before, target)| Case { before, ..ask(Q::BuildPaths { paths: vec![target], options }) })
            .collect(),
        Op::BuildDerivation => recipes(secret)
            .into_iter()
            .map(|(drv_path, derivation)| ask(Q::BuildDerivation { drv_path, derivation, options }))
            .collect(),
    }
}

/// The answer, and the messages on the user's terminal.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    answer: Vec<u8>,
    stderr: String,
}

/// Sends one request in a session of its own and reads to the last byte.
async fn see(ssh: std::process::Command, minor: u8, case: &Case) -> Seen {
    let (mut ssh, reader, writer, stderr) = piped_with_stderr(ssh);
    let client = within("a handshake", Client::connect(reader, writer, minor)).await;
    let mut client = client.expect("a handshake");
    client.request(&case.request).await.expect("the box reads");
    let _ = client.send(&case.body).await;
    // Every answer begins with a number, unless the session ends instead. Until then a build may run.
    let mut answer = vec![0; 8];
    if within("an answer", client.reader.read_exact(&mut answer)).await.is_err() {
        answer.clear();
    }
    let Client { mut reader, writer, .. } = client;
    drop(writer);
    within("the end", reader.read_to_end(&mut answer)).await.expect("read");
    let stderr = within("the end", stderr).await.expect("read");
    within("ssh", ssh.wait()).await.expect("wait");
    without_clock_times(&mut answer);
    Seen { answer, stderr: String::from_utf8_lossy(&stderr).into_owned() }
}

#[tokio::test]
async fn no_command_of_the_serve_protocol_tells_of_what_another_member_has() {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let mut alice = shared_box.session("alice").await;
    let mut prover = shared_box.session("alice").await;
    let own = async |secret: &Secret| owned_by(&mut alice, secret).await;
    let pairs = nothing_is_told(&mut prover, &shared_box.line("bob"), true, own).await;
    println!("{pairs} pairs of answers are the same");
    alice.leave().await;
}

/// Sends every request about the paths that `own` gives to another member, and about paths that nobody has,
/// and compares.
pub async fn nothing_is_told(
    prover: &mut Session,
    line: &Line,
    old_clients_too: bool,
    mut own: impl AsyncFnMut(&Secret),
) -> usize {
    let mut pairs = 0;
    for info in OPS {
        // The newest version, and the oldest if both send the same bytes.
        let both = old_clients_too && info.body == BodyShape::None;
        let minors: &[u8] = if both { &[8, 1] } else { &[8] };
        for minor in minors {
            for index in 0..cases(info.op, &Secret::new("")).len() {
                let name = format!("{} {minor} {index}", info.name);
                let (hers, nobodys) =
                    (Secret::new(&format!("hers {name}")), Secret::new(&format!("nobodys {name}")));
                for secret in [&nobodys, &hers] {
                    prove(prover, secret).await;
                }
                own(&hers).await;
                let mut seen = Vec::new();
                for secret in [&nobodys, &hers] {
                    let case = cases(info.op, secret).swap_remove(index);
                    upload_before(line, &case.before).await;
                    seen.push(see(line.ssh(SERVE), *minor, &case).await);
                }
                let expected = Seen {
                    answer: nobodys.rename(&hers, &seen[0].answer),
                    stderr: String::from_utf8(nobodys.rename(&hers, seen[0].stderr.as_bytes()))
                        .expect("text"),
                };
                assert_eq!(seen[1], expected, "{name}: left is what bob sees of alice's, right of nobody's");
                println!("{name}: {} bytes, {:?}", seen[1].answer.len(), seen[1].stderr);
                pairs += 1;
            }
        }
    }
    pairs
}
