//! Compares stock OpenSSH with nix-daemon, the agent, and the least that the client itself costs, in turn, on
//! one machine.
//!
//! `tests/scripts/bench-protocol` builds the programs and runs this one. It prints medians and checks
//! nothing; `docs/benchmarks.md` explains the figures. Sizes come from the environment, see [`Sizes`].

mod neighbour;
mod scene;
mod servers;
mod usage;
mod work;

use scene::Scene;
use servers::{ALL, Kind};

/// Sizes of the work; each comes from the environment variable of its name.
pub struct Sizes {
    pub runs: usize,
    pub bulk_mib: u64,
    pub paths: usize,
    pub drvs: usize,
    pub builds: usize,
    pub members: usize,
    pub logins: usize,
    /// Words separated by commas: run only the work whose name has one of the words, and none whose name has
    /// one with a `!` before it.
    pub only: Vec<String>,
}

impl Sizes {
    fn read() -> Self {
        let number = |name: &str, default: u64| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not '{text}'")),
            Err(_) => default,
        };
        let only = std::env::var("BENCH_ONLY").unwrap_or_default();
        Self {
            runs: number("BENCH_RUNS", 5).max(1) as usize,
            bulk_mib: number("BENCH_BULK_MIB", 1024),
            paths: number("BENCH_PATHS", 2000) as usize,
            drvs: number("BENCH_DRVS", 3000) as usize,
            builds: number("BENCH_BUILDS", 50) as usize,
            members: number("BENCH_MEMBERS", 20) as usize,
            logins: number("BENCH_LOGINS", 10) as usize,
            only: only.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
        }
    }

    /// Smaller sizes for a long line: if each small path costs a round trip, a tenth of the paths shows the
    /// same.
    fn for_a_long_line(&self) -> Self {
        let tenth = |n: usize| (n / 10).max(1);
        let bulk_mib = (self.bulk_mib / 8).max(1);
        Self { bulk_mib, paths: tenth(self.paths), drvs: tenth(self.drvs), only: self.only.clone(), ..*self }
    }

    pub fn wants(&self, name: &str) -> bool {
        let (unwanted, wanted): (Vec<&str>, Vec<&str>) =
            self.only.iter().map(String::as_str).partition(|word| word.starts_with('!'));
        let is_in = |word: &&str| name.contains(word.trim_start_matches('!'));
        (wanted.is_empty() || wanted.iter().any(is_in)) && !unwanted.iter().any(is_in)
    }
}

/// One measured piece of work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Seconds until the client ended.
    pub wall: f64,
    /// Processor seconds of the server and its children.
    pub cpu: f64,
    /// Processor seconds of the client.
    pub client_cpu: f64,
    /// Peak memory of the server and its children in bytes, without the page cache of its own files.
    pub peak: f64,
}

/// All runs of one kind of work, for each server.
pub struct Row {
    pub name: String,
    pub figures: [Vec<Figures>; 3],
}

impl Row {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), figures: Default::default() }
    }

    pub fn add(&mut self, kind: Kind, figures: Figures) {
        eprintln!(
            "    {:<58} {:<5} {:7.3} s, server {:6.2} s, client {:6.2} s, {:6.1} MiB",
            self.name,
            format!("{kind:?}").to_lowercase(),
            figures.wall,
            figures.cpu,
            figures.client_cpu,
            figures.peak / 1048576.0
        );
        self.figures[kind as usize].push(figures);
    }

    fn median(&self, kind: Kind, of: impl Fn(&Figures) -> f64) -> f64 {
        let mut values: Vec<f64> = self.figures[kind as usize].iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => values[n / 2],
            n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
        }
    }
}

fn print(rows: &[Row]) {
    println!(
        "\n| work | stock s | ours s | floor s | ours/stock | ours/floor | CPU stock s | CPU ours s | CPU floor s | ours/stock | client CPU s (ours) | peak MiB stock, ours |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let [stock, ours, floor] = ALL.map(|kind| row.median(kind, |f| f.wall));
        let cpu = ALL.map(|kind| row.median(kind, |f| f.cpu));
        let peak = ALL.map(|kind| row.median(kind, |f| f.peak) / 1048576.0);
        println!(
            "| {} | {stock:.3} | {ours:.3} | {floor:.3} | {:.2} | {:.2} | {:.3} | {:.3} | {:.3} | {:.2} | {:.2} | {:.0}, {:.0} |",
            row.name,
            ours / stock,
            ours / floor,
            cpu[0],
            cpu[1],
            cpu[2],
            cpu[1] / cpu[0],
            row.median(Kind::Ours, |f| f.client_cpu),
            peak[0],
            peak[1],
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [reap, report, command @ ..] = &*args
        && reap == "--reap"
    {
        std::process::exit(usage::reap(report, command));
    }
    usage::adopt_orphans();
    let sizes = Sizes::read();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load before: {}", load.trim());
    let mut rows = Vec::new();
    work::logins(&sizes, &mut rows);
    let near = Scene::near();
    work::copies(&sizes, &near, &mut rows);
    work::builds(&sizes, &near, &mut rows);
    work::crowd(&sizes, &near, &mut rows);
    neighbour::beside(&sizes, &near, &mut rows);
    work::copies(&sizes.for_a_long_line(), &Scene::far(), &mut rows);
    print(&rows);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\nload after: {}", load.trim());
}
