//! The three servers that are compared, each fresh, on a free port of the loopback interface, its store in memory.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use e2e::agent::{Agent, Setup};
use e2e::keys::Key;
use e2e::place;
use e2e::stock_server::StockServer;

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

/// A running server. Dropping it ends it and removes its store.
pub struct Server {
    pub port: u16,
    pub pid: u32,
    _process: Process,
}

/// Only held.
#[allow(dead_code)]
enum Process {
    Stock(StockServer),
    Ours(Box<Agent>),
    Floor(Reaped),
}

struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kind {
    /// `keep`: the floor keeps what it is sent, however large.
    pub fn start(self, keys: &[&Key], keep: bool) -> Server {
        match self {
            Kind::Stock => {
                let stock = StockServer::start(keys);
                Server { port: stock.port(), pid: stock.pid(), _process: Process::Stock(stock) }
            }
            Kind::Ours => ours(keys),
            Kind::Floor => floor(keep),
        }
    }
}

fn ours(keys: &[&Key]) -> Server {
    let names: Vec<String> = (0..keys.len()).map(|n| format!("member{n}")).collect();
    let members: Vec<(&str, &Key)> = names.iter().map(String::as_str).zip(keys.iter().copied()).collect();
    let agent = Setup::default().start(&members);
    Server { port: agent.port(), pid: agent.pid(), _process: Process::Ours(Box::new(agent)) }
}

fn floor(keep: bool) -> Server {
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
    Server { port, pid: child.id(), _process: Process::Floor(Reaped(child)) }
}
