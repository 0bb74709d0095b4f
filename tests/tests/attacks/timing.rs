//! Neither the duration of an answer nor the files that the agent reads for it reveal to Bob what Alice has.
//!
//! No duration is compared with a fixed limit: requests of both kinds are sent in turn, thousands of times,
//! and the test counts how often one kind was slower than the other. If both do the same work that is half of
//! the time, whatever else the machine does, since it affects both. If one kind causes an additional read
//! from disk, or an additional walk, it is slower nearly always.

use std::time::Instant;

use e2e::agent::Setup;
use e2e::disk::Disk;
use e2e::hostile::*;
use e2e::shared_box::{SharedBox, recipe};
use nix_derivation::StorePath;
use wire::client::End;
use wire::types::{GcAction, GcOptions};
use wire::worker::Request;

use crate::twins::at;

/// Number of requests of each kind, for each operation.
const QUESTIONS: usize = 1500;
/// Accepted share of requests of one kind that are slower. By chance alone it stays within 0.47 to 0.53.
const FAIR: std::ops::Range<f64> = 0.40..0.60;
/// Accepted difference of the bytes read from files per request. Reading a part of an object takes at least
/// 4096.
const READ_MORE: u64 = 256;

/// Number of contents of each kind that are uploaded and deleted. By chance alone the share of slower ones is
/// within 0.47 to 0.53.
const UPLOADS: usize = 700;
const FAIR_CHANGES: std::ops::Range<f64> = 0.43..0.57;
/// Number of builds of each kind, which take long: by chance alone the share is within 0.40 to 0.60 of so
/// few.
const BUILDS: usize = 60;
const FAIR_BUILDS: std::ops::Range<f64> = 0.28..0.72;

/// An operation's name, and its request for a path.
type Question = (&'static str, fn(StorePath) -> Request);

fn name(kind: &str, n: usize) -> StorePath {
    path(&format!("{kind}-{n}"))
}

/// Bytes that the process has read from files so far (proc(5): io, rchar).
fn read_bytes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("the agent runs");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("rchar");
    line.parse().expect("a number")
}

/// Sends one request; the answer is the same for both kinds, so only its first two numbers are read.
async fn ask(bob: &mut Session, request: &Request) -> u128 {
    let start = Instant::now();
    bob.request(request).await;
    let (_, end) = within("an answer", bob.client.log()).await.expect("an answer");
    if end == End::Last {
        let word = bob.client.u64().await.expect("an answer");
        assert_eq!(word, 0, "{request:?} is about a path that is not there");
    }
    start.elapsed().as_nanos()
}

/// Decides at random which of the two kinds comes first, so that the order has no pattern in common with
/// other work.
struct Coin(u64);

impl Default for Coin {
    fn default() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }
}

impl Coin {
    fn order(&mut self) -> [&'static str; 2] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        if self.0 & 1 == 0 { ["hers", "nobodys"] } else { ["nobodys", "hers"] }
    }
}

/// The probability that a value of `a` is larger than one of `b` (the Mann-Whitney statistic, between 0 and
/// 1).
fn larger(a: &[u128], b: &[u128]) -> f64 {
    let mut b = b.to_vec();
    b.sort_unstable();
    let below = |x: u128| {
        let (less, not_more) = (b.partition_point(|y| *y < x), b.partition_point(|y| *y <= x));
        (less + not_more) as f64 / 2.0
    };
    a.iter().map(|x| below(*x)).sum::<f64>() / (a.len() * b.len()) as f64
}

#[tokio::test]
async fn a_question_about_anothers_path_takes_no_longer_and_reads_no_more() {
    const PATHS: usize = 50;
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let mut alice = shared_box.session("alice").await;
    // Large enough that a read of it would show.
    let contents = nar(&file(&vec![7; 1 << 20]));
    for n in 0..PATHS {
        alice.upload(&at(&name("hers", n), &contents), &contents).await;
    }
    let mut bob = shared_box.session("bob").await;
    let questions: [Question; 6] = [
        ("IsValidPath", |path| Request::IsValidPath { path }),
        ("QueryPathInfo", |path| Request::QueryPathInfo { path }),
        ("QueryPathFromHashPart", |path| Request::QueryPathFromHashPart { hash_part: Some(*path.digest()) }),
        ("QueryValidPaths", |path| Request::QueryValidPaths { paths: vec![path], substitute: false }),
        ("QueryReferrers", |path| Request::QueryReferrers { path }),
        ("NarFromPath", |path| Request::NarFromPath { path }),
    ];
    for (what, question) in questions {
        let mut times = [Vec::new(), Vec::new()];
        let mut read = [0, 0];
        let mut coin = Coin::default();
        for n in 0..QUESTIONS {
            for kind in coin.order() {
                let index = usize::from(kind == "nobodys");
                let before = read_bytes(shared_box.agent.pid());
                times[index].push(ask(&mut bob, &question(name(kind, n % PATHS))).await);
                read[index] += read_bytes(shared_box.agent.pid()) - before;
            }
        }
        let slower = larger(&times[0], &times[1]);
        println!("{what}: alice's are slower in {:.1}% of the cases, read {read:?} bytes", slower * 100.0);
        assert!(
            FAIR.contains(&slower),
            "{what}: questions about alice's paths are slower in {slower} of the cases"
        );
        let more = read[0].abs_diff(read[1]) / QUESTIONS as u64;
        assert!(
            more < READ_MORE,
            "{what}: a question about the one kind reads {more} bytes more than about the other"
        );
    }
}

/// Contents that nobody guesses by chance, but Bob does. The size is the same for both kinds.
fn guess(kind: &str, n: usize) -> Vec<u8> {
    format!("{kind:7} {n}\n").repeat(400).into_bytes()
}

fn fair(what: &str, times: &[Vec<u128>; 2], range: &std::ops::Range<f64>) {
    let slower = larger(&times[0], &times[1]);
    println!("{what}: with alice's contents slower in {:.1}% of the cases", slower * 100.0);
    assert!(range.contains(&slower), "{what}: with contents that alice has slower in {slower} of the cases");
}

/// Bob guesses Alice's contents: he uploads, builds and deletes them under names of his own, and measures the
/// time. On a disk with a journal, where a rename to a name that exists, or a change that turns out to be
/// none, takes less time.
#[tokio::test]
async fn an_upload_a_build_and_a_deletion_of_contents_that_another_has_take_no_longer() {
    let disk = Disk::ext4(1024);
    let shared_box = SharedBox::with(&["alice", "bob"], Setup::default().below(disk.path()));
    let mut alice = shared_box.session("alice").await;
    for n in 0..UPLOADS {
        let hers = nar(&file(&guess("hers", n)));
        alice.upload(&at(&name("hers", n), &hers), &hers).await;
    }
    let output = |kind: &str, n: usize| format!("output {n} {kind}\n").into_bytes();
    for n in 0..BUILDS {
        let hers = nar(&file(&output("hers", n)));
        alice.upload(&at(&name("hers-built", n), &hers), &hers).await;
    }

    let mut bob = shared_box.session("bob").await;
    let mut coin = Coin::default();
    let mut times: [[Vec<u128>; 2]; 3] = Default::default();
    let mine = |kind: &str, n: usize| name(&format!("bobs-{kind}"), n);
    for n in 0..UPLOADS {
        for kind in coin.order() {
            let contents = nar(&file(&guess(kind, n)));
            let info = at(&mine(kind, n), &contents);
            let begun = Instant::now();
            bob.upload(&info, &contents).await;
            times[0][usize::from(kind == "nobodys")].push(begun.elapsed().as_nanos());
        }
    }
    for n in 0..BUILDS {
        for kind in coin.order() {
            let out = mine(&format!("{kind}-built"), n);
            let drv = path(&format!("{}.drv", out.name()));
            let build = recipe(&drv, &[("out", &out)], &[], &format!("echo output {n} {kind} > $out"));
            let begun = Instant::now();
            assert_eq!(bob.build(build).await.status, 0);
            times[1][usize::from(kind == "nobodys")].push(begun.elapsed().as_nanos());
        }
    }
    // A session holds the paths that it uploaded.
    bob.leave().await;
    let mut bob = shared_box.session("bob").await;
    for n in 0..UPLOADS {
        for kind in coin.order() {
            let delete = Request::CollectGarbage(GcOptions {
                action: GcAction::DeleteSpecific,
                paths: Some([mine(kind, n)].into()),
                delete_referrers: false,
                ignore_liveness: false,
                max_freed: u64::MAX,
            });
            let begun = Instant::now();
            bob.call(&delete).await;
            let deleted = bob.client.paths().await.expect("what was deleted");
            assert_eq!(deleted, [mine(kind, n)]);
            bob.client.u64().await.expect("bytes");
            bob.client.u64().await.expect("obsolete");
            times[2][usize::from(kind == "nobodys")].push(begun.elapsed().as_nanos());
        }
    }
    fair("uploads", &times[0], &FAIR_CHANGES);
    fair("builds", &times[1], &FAIR_BUILDS);
    fair("deletions", &times[2], &FAIR_CHANGES);
}
