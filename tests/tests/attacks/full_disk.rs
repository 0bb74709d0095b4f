//! The box's disk is full, of bytes or of files. That is a failure of the box: a member who builds meanwhile
//! gets an error that allows another try, it is not remembered as the build's own failure, and queries still
//! work. A member who fills it makes the box evict, and stops nobody.

use std::path::{Path, PathBuf};

use e2e::agent::Setup;
use e2e::disk::Disk;
use e2e::hostile::*;
use e2e::shared_box::{SharedBox, recipe};
use nix::derivation::BasicDerivation;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, Output, StorePath};

use crate::twins::at;

/// Nix: `BuildResult::TransientFailure`.
const TRANSIENT: u64 = 6;
/// Size of the outputs here, larger than any other file that a build writes.
const OUTPUT: u64 = 4 << 20;

/// Files that fill the disk. Dropping it removes them.
struct Filler(Vec<PathBuf>);

impl Filler {
    /// Leaves this many bytes free.
    fn bytes(disk: &Path, but: u64) -> Self {
        let path = disk.join("filler");
        let free = rustix::fs::statvfs(disk).expect("a file system");
        let length = (free.f_bavail * free.f_bsize).saturating_sub(but);
        let file = std::fs::File::create(&path).expect("a file");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)
            .expect("room for the filler");
        Self(vec![path])
    }

    /// Leaves no room for another file.
    fn files(disk: &Path) -> Self {
        let mut made = Vec::new();
        for n in 0.. {
            let path = disk.join(format!("filler-{n}"));
            if std::fs::File::create(&path).is_err() {
                break;
            }
            made.push(path);
        }
        Self(made)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The shell writes an output of `OUTPUT` bytes that contains its own path, so that a floating one has to be
/// rewritten.
fn large(name: &str) -> (StorePath, BasicDerivation) {
    let doublings = (OUTPUT / 16).ilog2();
    let script = format!(
        "echo $out > $out; x=0123456789abcdef; n=0; while [ $n -lt {doublings} ]; do x=$x$x; n=$((n+1)); done; echo $x >> $out"
    );
    recipe(&path(&format!("{name}.drv")), &[("out", &path(name))], &[], &script)
}

fn floating(name: &str) -> (StorePath, BasicDerivation) {
    let (drv, mut derivation) = large(name);
    let out = Output::Floating { method: ContentAddressMethod::Nar, hash_algorithm: HashAlgorithm::Sha256 };
    derivation.outputs = [("out".to_owned(), out)].into();
    // A placeholder in Nix's form: the box replaces it by the scratch path.
    let placeholder = nix_derivation::store_path::hash_placeholder("out");
    derivation.env = [(b"out".to_vec(), placeholder.into_bytes())].into();
    (drv, derivation)
}

#[tokio::test]
async fn a_full_disk_is_trouble_of_the_box_and_nobodys_failure() {
    let disk = Disk::memory("size=48m,nr_inodes=2000");
    let shared_box = SharedBox::with(&["alice", "bob"], Setup::default().below(disk.path()));
    let (mut alice, mut bob) = (shared_box.session("alice").await, shared_box.session("bob").await);
    let input = nar(&file(b"input\n"));
    alice.upload(&at(&path("input"), &input), &input).await;
    bob.upload(&at(&path("bobs"), &input), &input).await;

    let reads = {
        let script = format!("read line < {}; echo $line > $out", path("input").to_absolute_path());
        recipe(&path("reader.drv"), &[("out", &path("reader"))], &[&path("input")], &script)
    };
    // Three cases: the output has no room; its second copy, with its final path, has none; and no file can be
    // created, beginning with the copy of an input.
    let cases = [
        ("output", large("large"), Filler::bytes as fn(&Path, u64) -> Filler, OUTPUT / 2),
        ("rewrite", floating("floating"), Filler::bytes, OUTPUT + OUTPUT / 2),
        ("files", reads, |disk, _| Filler::files(disk), 0),
    ];
    for (what, build, fill, but) in cases {
        let filler = fill(disk.path(), but);
        for _ in 0..2 {
            let told = alice.build(build.clone()).await;
            assert_eq!(told.status, TRANSIENT, "{what}: {told:?}");
            assert!(told.message.contains("No space left on device"), "{what}: {told:?}");
            // Another member's queries work, and a member who requests the same build gets no remembered
            // failure.
            assert!(bob.is_valid(&path("bobs")).await, "{what}");
            assert_eq!(bob.nar(&path("bobs")).await, input, "{what}");
        }
        drop(filler);
        let told = alice.build(build).await;
        assert_eq!(told.status, 0, "{what}, with room again: {told:?}");
    }
}

/// Uploads `count` claims, with a new session for every ten, so that those before are dead. Returns the messages of refusals.
async fn fill(shared_box: &SharedBox, count: u32, size: usize) -> Vec<String> {
    let mut refusals = Vec::new();
    for round in 0..count / 10 {
        let mut session = shared_box.session("mallory").await;
        for n in 0..10 {
            let name = format!("m{round}-{n}");
            let mut contents = vec![n as u8; size];
            contents[..name.len()].copy_from_slice(name.as_bytes());
            let contents = nar(&file(&contents));
            if let Err(said) = session.try_upload(&at(&path(&name), &contents), &contents).await {
                refusals.push(said);
                break;
            }
        }
    }
    refusals
}

/// One member fills the disk again and again, another one builds and copies all the time.
async fn nobody_fails_because_of_a_member_who_fills(disk: &Disk, count: u32, size: usize) {
    let shared_box = SharedBox::with(&["mallory", "bob"], Setup::default().below(disk.path()));
    let filled = std::cell::Cell::new(false);
    let filling = async {
        let refusals = fill(&shared_box, count, size).await;
        filled.set(true);
        refusals
    };
    let working = async {
        let mut round = 0;
        while !filled.get() || round < 3 {
            let mut bob = shared_box.session("bob").await;
            let name = format!("input-{round}");
            let input = nar(&file(&[name.as_bytes(), b"\n", &vec![b'x'; 50_000]].concat()));
            bob.upload(&at(&path(&name), &input), &input).await;
            let script = format!("read line < {}; echo $line > $out", path(&name).to_absolute_path());
            let out = path(&format!("out-{round}"));
            let drv = path(&format!("out-{round}.drv"));
            let told = bob.build(recipe(&drv, &[("out", &out)], &[&path(&name)], &script)).await;
            assert_eq!(told.status, 0, "round {round}: {told:?}");
            assert_eq!(bob.nar(&path(&name)).await, input, "round {round}");
            assert!(bob.is_valid(&out).await, "round {round}");
            round += 1;
        }
        round
    };
    let (refusals, rounds) = tokio::join!(filling, working);
    assert!(shared_box.agent.count("evicted") > 0, "the disk was never low: {refusals:?}");
    // A member who is refused learns why, and nothing of the others.
    for said in refusals {
        assert!(said.contains("max-store-mib") || said.contains("min-free"), "{said}");
    }
    let mut bob = shared_box.session("bob").await;
    let last = path(&format!("out-{}", rounds - 1));
    assert!(bob.is_valid(&last).await, "what was used last is there");
}

#[tokio::test]
async fn a_member_who_fills_a_store_in_memory_stops_nobody() {
    let disk = Disk::memory("size=64m,nr_inodes=20000");
    nobody_fails_because_of_a_member_who_fills(&disk, 150, 1 << 20).await;
}

#[tokio::test]
async fn a_member_who_fills_a_disk_stops_nobody() {
    let disk = Disk::ext4(160);
    nobody_fails_because_of_a_member_who_fills(&disk, 150, 1 << 20).await;
}

#[tokio::test]
async fn a_member_who_uses_up_the_inodes_stops_nobody() {
    let disk = Disk::memory("size=256m,nr_inodes=500");
    nobody_fails_because_of_a_member_who_fills(&disk, 1000, 100).await;
}
