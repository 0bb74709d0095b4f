//! A simulator of the queue: days of a busy box in seconds, with the agent's own state machine and two other policies.
//!
//! `simulate [MEMBERS BUILDS SLOTS SEED]` prints the tables of `docs/design/scheduling.md` as Markdown, and on stderr
//! how fast each policy was. The same numbers give the same tables.

mod engine;
mod measure;
mod policy;
mod random;
mod workload;

use std::fmt::Write;
use std::time::Instant;

use engine::simulate;
use measure::Summary;
use policy::Kind;
use workload::{Setup, Shape};

const USUAL: Setup = Setup { members: 500, builds: 50_000, slots: 32, seed: 1 };

fn main() {
    let numbers: Result<Vec<u64>, _> = std::env::args().skip(1).map(|word| word.parse()).collect();
    let setup = match numbers.as_deref() {
        Ok([]) => USUAL,
        Ok([members @ 20..=100_000, builds @ 100..=10_000_000, slots @ 1..=4096, seed]) => Setup {
            members: *members as usize,
            builds: *builds as usize,
            slots: *slots as usize,
            seed: *seed,
        },
        _ => {
            eprintln!("usage: simulate [MEMBERS BUILDS SLOTS SEED], with at least 20 members and 100 builds");
            std::process::exit(2);
        }
    };
    print!("{}", tables(setup));
}

/// The tables of all shapes.
fn tables(setup: Setup) -> String {
    let Setup { members, builds, slots, seed } = setup;
    let mut text = format!("{members} members, {builds} builds, {slots} slots, seed {seed}.\n");
    for shape in Shape::ALL {
        let workload = shape.generate(setup);
        let _ = write!(text, "\n### {}\n\n{}\n\n", shape.title(), shape.text());
        text += "| policy | shares | wait p50 | p99 | of light members p50 | p99 | first builds p50 | p99 | utilisation |\n";
        text += "|---|---|---|---|---|---|---|---|---|\n";
        for kind in Kind::ALL {
            let began = Instant::now();
            let (measures, events) = simulate(&workload, kind.start(&workload, slots), slots);
            let rate = events as f64 / began.elapsed().as_secs_f64();
            eprintln!("{}, {}: {events} events, {rate:.0} a second", shape.title(), kind.name());
            let _ = writeln!(text, "{}", row(kind, &measures.summary()));
        }
    }
    text
}

fn row(kind: Kind, summary: &Summary) -> String {
    let waits = |(median, most): (f64, f64)| format!("{} | {}", time(median), time(most));
    let fairness = summary.fairness.map_or("–".to_owned(), |index| format!("{index:.3}"));
    format!(
        "| {} | {fairness} | {} | {} | {} | {:.1} % |",
        kind.name(),
        waits(summary.all),
        waits(summary.light),
        waits(summary.first),
        summary.utilisation * 100.0
    )
}

fn time(seconds: f64) -> String {
    match seconds {
        0.0 => "0".to_owned(),
        ..0.95 => format!("{seconds:.1} s"),
        ..99.5 => format!("{seconds:.0} s"),
        ..5970.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
#[path = "simulate_test.rs"]
mod simulate_test;
