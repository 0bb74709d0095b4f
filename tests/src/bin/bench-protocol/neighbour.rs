//! The work of one member beside another one who takes all that the server gives.

use std::process::{Child, Command, Stdio};

use e2e::clients::{Nix, Protocol};
use e2e::keys::Key;

use crate::scene::Scene;
use crate::servers::ALL;
use crate::work::{self, VERSION};
use crate::{Row, Sizes};

/// Clients of the greedy member, each with a connection of its own.
const CLIENTS: usize = 4;

/// A client that uploads new files, one after the other, until it is dropped.
struct Greedy(Child);

impl Greedy {
    fn start(nix: &Nix, store: &str, number: usize) -> Self {
        let mut shell = nix.command("bash");
        shell.args([
            "-uc",
            &format!(
                "while head -c 4M /dev/urandom > greedy-{number}; do \
                 nix store add-file --store '{store}' greedy-{number}; done"
            ),
        ]);
        // A process group of its own, so that the loop ends together with the client that it has started.
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(shell.spawn().expect("a client"))
    }
}

impl Drop for Greedy {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        Command::new("kill").args(["-KILL", "--", &group]).status().expect("kill");
        self.0.wait().expect("the loop has ended");
    }
}

/// One member sends small paths while another one uploads without end. The processor seconds of the server include those
/// for the other member.
pub fn beside(sizes: &Sizes, scenes: &[Scene], rows: &mut Vec<Row>) {
    let each = (sizes.paths / 10).max(1);
    let name = format!("{each} small paths beside a member who uploads without end");
    let keys = [Key::new("member0"), Key::new("member1")];
    for scene in scenes.iter().filter(|scene| sizes.wants(&format!("{name} {scene}"))) {
        let source = Nix::at(VERSION, 1, &keys[0]);
        let path = work::instantiate(&source, &work::chain(each, "small"));
        let store = scene.store();
        // Files cannot be added to a store named ssh://.
        let greedy_store = Scene { protocol: Protocol::SshNg, ..*scene }.store();
        let mut row = Row::new(format!("{name} {scene}"));
        for _ in 0..sizes.runs {
            for kind in ALL {
                let server = kind.start(scene, &[&keys[0], &keys[1]], false);
                let nix = source.with_port(server.port);
                work::warm(&nix, scene);
                let greedy = Nix::at(VERSION, server.port, &keys[1]);
                work::warm(&greedy, scene);
                let greedy: Vec<Greedy> =
                    (0..CLIENTS).map(|number| Greedy::start(&greedy, &greedy_store, number)).collect();
                std::thread::sleep(std::time::Duration::from_secs(1));
                let mut copy = nix.command("nix");
                copy.args(["copy", "--no-check-sigs", "--to", &store, &path]);
                row.add(kind, work::measure(&server, copy, 1));
                drop(greedy);
            }
        }
        rows.push(row);
    }
}
