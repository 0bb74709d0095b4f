//! The three servers to compare, each started anew, on a free port of the loopback interface.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::agent::{Agent, Setup};
use e2e::disk::Disk;
use e2e::keys::Key;
use e2e::place;
use e2e::stock_server::StockServer;

use crate::scene::{Ground, Scene};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// OpenSSH and `nix-daemon --stdio` of the same Debian release as the client.
    Stock,
    /// `builder-agent` with the namespace sandbox.
    Ours,
    /// `builder-agent/examples/floor.rs`.
    Floor,
}

pub const ALL: [Kind; 3] = [Kind::Stock, Kind::Ours, Kind::Floor];

/// Size of the disks for stores, one for each server: more than all copied data.
const DISK_MIB: u64 = 16 << 10;

/// A running server. Dropping it ends it and removes its store.
pub struct Server {
    /// The port for clients: the server's own, or that of the relay to it.
    pub port: u16,
    pub pid: u32,
    /// The folder of its store, whose files do not count as its memory.
    pub state: PathBuf,
    _process: Process,
    /// Dropped last.
    _disk: Option<Disk>,
}

/// Kept only to be dropped.
#[allow(dead_code)]
enum Process {
    Stock(StockServer),
    Ours(Box<Agent>),
    Floor(Reaped),
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(to) = std::env::var_os("BENCH_LOG") else { return };
        let Process::Ours(agent) = &self._process else { return };
        let file = OpenOptions::new().create(true).append(true).open(&to);
        let written = file.and_then(|mut file| file.write_all(agent.log_text().as_bytes()));
        written.unwrap_or_else(|e| panic!("cannot write {}: {e}", to.display()));
    }
}

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kind {
    /// `keep`: the floor keeps all data that it receives, however large.
    pub fn start(self, scene: &Scene, keys: &[&Key], keep: bool) -> Server {
        // The floor has no store.
        let disk = (scene.ground == Ground::Disk && self != Kind::Floor).then(|| Disk::ext4(DISK_MIB));
        let below = disk.as_ref().map_or_else(place::memory, |disk| disk.path().to_owned());
        let (port, pid, process) = match self {
            Kind::Stock => {
                let stock = StockServer::start_in(place::scratch_below(&below, "stock"), keys);
                (stock.port(), stock.pid(), Process::Stock(stock))
            }
            Kind::Ours => {
                let agent = ours(&below, keys);
                (agent.port(), agent.pid(), Process::Ours(Box::new(agent)))
            }
            Kind::Floor => floor(keep),
        };
        Server { port: scene.port(port), pid, state: below, _process: process, _disk: disk }
    }
}

fn ours(below: &Path, keys: &[&Key]) -> Agent {
    let names: Vec<String> = (0..keys.len()).map(|n| format!("member{n}")).collect();
    let members: Vec<(&str, &Key)> = names.iter().map(String::as_str).zip(keys.iter().copied()).collect();
    Setup::default().below(below).start(&members)
}

fn floor(keep: bool) -> (u16, u32, Process) {
    let program = place::target().join("release/examples/floor");
    let mut child = Command::new(&program)
        .arg(if keep { "1000000" } else { "1" })
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the floor's port");
    let port = line.trim().parse().expect("the floor's port");
    (port, child.id(), Process::Floor(Reaped(child)))
}
