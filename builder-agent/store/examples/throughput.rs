//! Measures the store's speed on this machine, in memory and on disk:
//! `cargo run --release -p store --example throughput [DIR [small]]`.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use nix::PathInfo;
use nix_archive::nar::Encoder;
use nix_derivation::StorePath;
use sha2::{Digest, Sha256};
use store::{Member, NarReader, Store, StoreConfig, View};

/// A directory of `files` files of `size` bytes each; `seed` makes it unique.
fn nar(seed: u64, files: usize, size: usize) -> Vec<u8> {
    let mut data: Vec<u8> =
        (0..size as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let mut encoder = Encoder::new(Vec::new()).expect("memory");
    encoder.start_directory(None).expect("in order");
    for i in 0..files {
        let stamp = (seed << 32 | i as u64).to_le_bytes();
        let n = stamp.len().min(data.len());
        data[..n].copy_from_slice(&stamp[..n]);
        encoder.regular(Some(format!("{i:08}").as_bytes()), false, &data).expect("in order");
    }
    encoder.end_directory().expect("in order");
    encoder.finish().expect("memory")
}

fn info(name: &str, nar: &[u8]) -> PathInfo {
    let digest = Sha256::digest(name);
    PathInfo {
        path: StorePath::from_parts(*digest.first_chunk().expect("32 >= 20"), name).expect("a valid name"),
        nar_hash: Sha256::digest(nar).into(),
        nar_size: nar.len() as u64,
        references: BTreeSet::new(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    }
}

/// Wall clock and processor time: on a busy machine only the second one can be compared.
struct Start(Instant, f64);

fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

fn start() -> Start {
    Start(Instant::now(), cpu_seconds())
}

fn report(what: &str, bytes: usize, paths: usize, start: Start) {
    let cpu = cpu_seconds() - start.1;
    let secs = start.0.elapsed().as_secs_f64();
    println!(
        "{what:<52} {:>6.0} MB/s {:>8.0} paths/s   CPU {:>6.0} MB/s {:>7.1} us/path",
        bytes as f64 / 1e6 / secs,
        paths as f64 / secs,
        bytes as f64 / 1e6 / cpu,
        cpu * 1e6 / paths as f64,
    );
}

/// Reads a NAR to its end, in pieces of the size that a session uses.
fn drain(mut nar: NarReader) {
    let mut piece = vec![0; nar.size().clamp(1, 256 << 10) as usize];
    while nar.read(&mut piece).expect("reads") > 0 {}
}

fn shape(view: &View, what: &str, paths: usize, files: usize, size: usize) {
    let nars: Vec<Vec<u8>> = (0..paths as u64).map(|i| nar(i, files, size)).collect();
    let infos: Vec<PathInfo> =
        nars.iter().enumerate().map(|(i, n)| info(&format!("{}-{files}-{size}-{i}", paths), n)).collect();
    let bytes: usize = nars.iter().map(Vec::len).sum();
    let begin = start();
    let batch =
        infos.iter().zip(&nars).map(|(i, n)| view.stage(i.clone(), &mut &n[..]).expect("imports")).collect();
    view.register_many(batch).expect("registers");
    report(&format!("import {what}, one batch"), bytes, paths, begin);
    let begin = start();
    for info in &infos {
        drain(view.nar(&info.path).expect("is there"));
    }
    report(&format!("NAR of {what}"), bytes, paths, begin);
    let set: BTreeSet<StorePath> = infos.iter().map(|i| i.path.clone()).collect();
    let start = Instant::now();
    let image = view.snapshot(&set).expect("is there").compose().expect("composes");
    println!(
        "{:<52} {:>8.2} ms for {} MB, {} KB of it new",
        format!("compose {what}"),
        start.elapsed().as_secs_f64() * 1e3,
        image.len / 1_000_000,
        image.segments[0].2 / 1000
    );
    let start = Instant::now();
    let rounds = 200_000 / set.len().max(1) + 1;
    for _ in 0..rounds {
        assert!(set.iter().all(|p| view.is_valid(p)));
    }
    println!(
        "{:<52} {:>8.0} thousand/s",
        format!("is_valid among {what}"),
        (rounds * set.len()) as f64 / start.elapsed().as_secs_f64() / 1e3
    );
}

fn main() {
    let base = std::env::args().nth(1).map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let root = base.join(format!("store-throughput-{}", std::process::id()));
    {
        let store = Store::open(&root, StoreConfig::default()).expect("a store opens");
        let view = store.view(&Member::new("bench"));
        if std::env::args().nth(2).as_deref() != Some("small") {
            shape(&view, "4 paths of one 64 MiB file", 4, 1, 64 << 20);
            shape(&view, "50 paths of 1000 files of 2 KiB", 50, 1000, 2048);
        }
        shape(&view, "2000 paths of one 500-byte file", 2000, 1, 500);
        let begin = start();
        for i in 0..100 {
            let n = nar(1 << 20 | i, 1, 600);
            view.import(info(&format!("single-{i}"), &n), &mut &n[..]).expect("imports");
        }
        report("import small paths one by one, each durable", 0, 100, begin);
        for threads in [4, 16, 64] {
            let begin = start();
            std::thread::scope(|scope| {
                for t in 0..threads {
                    let view = store.view(&Member::new(&format!("member-{t}")));
                    scope.spawn(move || {
                        for i in 0..50 {
                            let n = nar(1 << 24 | t << 8 | i, 1, 600);
                            let info = info(&format!("many-{threads}-{t}-{i}"), &n);
                            view.import(info, &mut &n[..]).expect("imports");
                        }
                    });
                }
            });
            report(&format!("the same by {threads} members at once"), 0, threads as usize * 50, begin);
        }
    }
    let _ = io::stdout().flush();
    std::fs::remove_dir_all(root).expect("it was ours");
}
