//! The work of the stock clients, and its measurement.

use std::process::{Command, Stdio};
use std::time::Instant;

use e2e::clients::{Nix, Protocol, Version};
use e2e::keys::Key;
use e2e::process::run;

use crate::scene::Scene;
use crate::servers::{ALL, Kind, Server};
use crate::usage::{self, Watch};
use crate::{Figures, Row, Sizes};

pub const VERSION: Version = Version::V2_34;
/// Number of repetitions that are measured as one, for work that is too short for clock ticks.
const REPEAT: usize = 5;

/// Runs a client's command, which must succeed, and measures both sides. `times`: how often the command does
/// its work.
pub fn measure(server: &Server, command: Command, times: usize) -> Figures {
    measure_all(server, &[command], times)
}

fn measure_all(server: &Server, commands: &[Command], times: usize) -> Figures {
    usage::settle(server.pid);
    let cpu = usage::cpu(server.pid);
    let reports = e2e::place::scratch("reports");
    let report = |n: usize| reports.path().join(n.to_string());
    let watch = Watch::start(server.pid, server.state.clone());
    let begin = Instant::now();
    let children: Vec<_> = (commands.iter().enumerate())
        .map(|(n, command)| {
            let mut reaper = Command::new(std::env::current_exe().expect("this program"));
            reaper.arg("--reap").arg(report(n)).arg(command.get_program()).args(command.get_args());
            reaper
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("a client")
        })
        .collect();
    for (child, command) in children.into_iter().zip(commands) {
        let output = child.wait_with_output().expect("a client");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} failed:\n{said}");
    }
    let wall = begin.elapsed().as_secs_f64();
    usage::settle(server.pid);
    let seconds = |n| std::fs::read_to_string(report(n)).ok().and_then(|text| text.parse::<f64>().ok());
    let client_cpu: f64 = (0..commands.len()).map(|n| seconds(n).expect("a report")).sum();
    let times = times as f64;
    Figures {
        wall: wall / times,
        cpu: (usage::cpu(server.pid) - cpu) / times,
        client_cpu: client_cpu / times,
        peak: watch.peak() as f64,
    }
}

/// A command in a loop, in one client.
fn repeated(nix: &Nix, command: &str, times: usize) -> Command {
    let mut shell = nix.command("bash");
    shell.args(["-euc", &format!("for i in {{1..{times}}}; do {command}; done")]);
    shell
}

/// Makes the first connection, which creates databases and folders, outside of the measurement. (`nix store
/// ping` works with every version and both kinds of store.)
pub fn warm(nix: &Nix, scene: &Scene) {
    run(nix.command("nix").args(["store", "ping", "--store", &scene.store()])).ok();
}

/// A login, a command that ends at once, and the end of the connection. (The agent refuses the command in one
/// line.)
pub fn logins(sizes: &Sizes, rows: &mut Vec<Row>) {
    let name = "ssh box true";
    if !sizes.wants(name) {
        return;
    }
    let key = Key::new("bench");
    let mut row = Row::new(name);
    let servers = ALL.map(|kind| kind.start(&Scene::NEAREST, &[&key], false));
    for run in 0..=sizes.runs {
        for (kind, server) in ALL.into_iter().zip(&servers) {
            let nix = Nix::at(VERSION, server.port, &key);
            let ssh = "ssh $NIX_SSHOPTS -o BatchMode=yes -o LogLevel=ERROR anyone@127.0.0.1 true";
            let figures = measure(
                server,
                repeated(&nix, &format!("{ssh} 2>/dev/null || true"), sizes.logins),
                sizes.logins,
            );
            // The first run fills caches.
            if run > 0 {
                row.add(kind, figures);
            }
        }
    }
    rows.push(row);
}

/// A path with its closure, in the store of the client that sends it.
struct Cargo {
    name: String,
    path: String,
    /// Whether it is also copied back.
    both_ways: bool,
}

pub fn instantiate(nix: &Nix, expression: &str) -> String {
    let made = run(nix.command("nix-instantiate").args([
        "--eval",
        "--strict",
        "--read-write-mode",
        "-E",
        expression,
    ]))
    .ok();
    made.answer().trim_matches('"').to_owned()
}

/// `count` small files, each referring to the previous one.
pub fn chain(count: usize, name: &str) -> String {
    format!(
        "builtins.foldl' (before: n: builtins.toFile \"{name}-${{toString n}}\" \"${{before}} ${{toString n}}\")
           (builtins.toFile \"{name}\" \"0\") (builtins.genList (n: n) {})",
        count.saturating_sub(1)
    )
}

/// Layers of derivations, each referring to three of the previous layer.
fn derivations(count: usize) -> String {
    let wide = (count / 10).max(1);
    format!(
        "let
           make = name: inputs: derivation {{
             inherit name inputs; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"echo ${{name}} > $out\" ];
           }};
           layer = before: n: builtins.genList (i: make \"drv-${{toString n}}-${{toString i}}\"
             (if before == [] then [] else map (k: builtins.elemAt before ((i * 7 + k) - (i * 7 + k) / {wide} * {wide})) [ 0 1 2 ])) {wide};
         in (make \"top\" (builtins.foldl' layer [] (builtins.genList (n: n) 10))).drvPath"
    )
}

/// Measures copies in each of these scenes.
pub fn copies(sizes: &Sizes, scenes: &[Scene], rows: &mut Vec<Row>) {
    let wanted = |name: &str| scenes.iter().any(|scene| sizes.wants(&format!("{name} {scene}")));
    let key = Key::new("bench");
    let source = Nix::at(VERSION, 1, &key);
    let mut cargoes = Vec::new();
    let bulk = format!("{} MiB in one path", sizes.bulk_mib);
    if wanted(&bulk) {
        let file = source.home().join("bulk");
        run(Command::new("sh").arg("-c").arg(format!(
            "head -c {}M /dev/urandom > {}",
            sizes.bulk_mib,
            file.display()
        )))
        .ok();
        let path = run(source.command("nix-store").args(["--add", "bulk"])).ok().answer().to_owned();
        std::fs::remove_file(&file).expect("the copy in the store is enough");
        cargoes.push(Cargo { name: bulk, path, both_ways: true });
    }
    let small = format!("{} chained small paths", sizes.paths);
    if wanted(&small) {
        let path = instantiate(&source, &chain(sizes.paths, "chain"));
        cargoes.push(Cargo { name: small, path, both_ways: true });
    }
    let drvs = format!("closure of {} .drv", sizes.drvs);
    if wanted(&drvs) {
        let path = instantiate(&source, &derivations(sizes.drvs));
        cargoes.push(Cargo { name: drvs, path, both_ways: false });
    }
    for scene in scenes {
        for cargo in cargoes.iter().filter(|cargo| sizes.wants(&format!("{} {scene}", cargo.name))) {
            copy(sizes, scene, rows, &source, &key, cargo);
        }
    }
}

fn copy(sizes: &Sizes, scene: &Scene, rows: &mut Vec<Row>, source: &Nix, key: &Key, cargo: &Cargo) {
    let mut to = Row::new(format!("{} to {scene}", cargo.name));
    let mut again = Row::new(format!("{} to, all there {scene}", cargo.name));
    let mut from = Row::new(format!("{} from {scene}", cargo.name));
    let store = scene.store();
    for _ in 0..sizes.runs {
        for kind in ALL {
            let server = kind.start(scene, &[key], false);
            let there = source.with_port(server.port);
            warm(&there, scene);
            let copy = |nix: &Nix, direction: &str| {
                let mut command = nix.command("nix");
                command.args(["copy", "--no-check-sigs", direction, &store, &cargo.path]);
                command
            };
            to.add(kind, measure(&server, copy(&there, "--to"), 1));
            let again_command = format!("nix copy --no-check-sigs --to '{store}' {}", cargo.path);
            again.add(kind, measure(&server, repeated(&there, &again_command, REPEAT), REPEAT));
            if !cargo.both_ways {
                continue;
            }
            // The floor does not keep large data.
            let server = if kind == Kind::Floor {
                let keeping = kind.start(scene, &[key], true);
                run(&mut copy(&source.with_port(keeping.port), "--to")).ok();
                keeping
            } else {
                server
            };
            let fresh = Nix::at(VERSION, server.port, key);
            warm(&fresh, scene);
            from.add(kind, measure(&server, copy(&fresh, "--from"), 1));
        }
    }
    rows.push(to);
    rows.push(again);
    if cargo.both_ways {
        rows.push(from);
    }
}

/// Measures trivial builds, new ones each time.
pub fn builds(sizes: &Sizes, scenes: &[Scene], rows: &mut Vec<Row>) {
    for scene in scenes {
        builds_in(sizes, scene, rows);
    }
}

fn builds_in(sizes: &Sizes, scene: &Scene, rows: &mut Vec<Row>) {
    let n = sizes.builds;
    let mut works = Vec::new();
    for (shape, chained) in [("independent", false), ("chained", true)] {
        for way in ["--builders", "--store"] {
            let row = Row::new(format!("{n} {shape} builds, {way} {scene}"));
            // No stock client can build in an ssh:// store.
            let possible = way == "--builders" || scene.protocol == Protocol::SshNg;
            if possible && sizes.wants(&row.name) {
                works.push((row, chained, way));
            }
        }
    }
    if works.is_empty() {
        return;
    }
    let key = Key::new("bench");
    let servers = ALL.map(|kind| kind.start(scene, &[&key], false));
    let clients: Vec<Nix> = servers.iter().map(|server| Nix::at(VERSION, server.port, &key)).collect();
    clients.iter().for_each(|nix| warm(nix, scene));
    let store = scene.store();
    for (mut row, chained, way) in works {
        for run in 0..sizes.runs {
            for ((kind, server), nix) in ALL.into_iter().zip(&servers).zip(&clients) {
                let nonce = format!("{chained}-{way}-{run}").replace("--", "");
                let file = nix.home().join("builds.nix");
                std::fs::write(&file, expression(n, chained, &nonce)).expect("an expression");
                let mut command = nix.command("nix");
                command.args(["build", "--no-link", "-f", "builds.nix"]);
                match way {
                    "--store" => command.args(["--store", &store, "--eval-store", "auto"]),
                    _ => {
                        let builders = format!("{store} x86_64-linux /root/keys/key 4");
                        command.args(["--builders", &builders, "--max-jobs", "0"])
                    }
                };
                if chained {
                    command.arg(format!("b{}", n - 1));
                } else {
                    command.args((0..n).map(|i| format!("b{i}")));
                }
                row.add(kind, measure(server, command, 1));
            }
        }
        rows.push(row);
    }
}

/// Attributes `b0`, `b1`, ...
fn expression(n: usize, chained: bool, nonce: &str) -> String {
    let mut text =
        "let make = n: input: derivation { name = \"bench-${n}\"; inherit input; system = \"x86_64-linux\"; \
        builder = \"/bin/sh\"; args = [ \"-c\" \"echo $name > $out\" ]; }; in rec {\n"
            .to_owned();
    for i in 0..n {
        let input = if chained && i > 0 { format!("b{}", i - 1) } else { "\"\"".to_owned() };
        text.push_str(&format!("  b{i} = make \"{nonce}-{i}\" {input};\n"));
    }
    text + "}\n"
}

/// All members send paths of their own at the same time.
pub fn crowd(sizes: &Sizes, scenes: &[Scene], rows: &mut Vec<Row>) {
    let each = (sizes.paths / 10).max(1);
    let name = format!("{} members at once, {each} small paths each", sizes.members);
    let scenes: Vec<&Scene> = scenes.iter().filter(|scene| sizes.wants(&format!("{name} {scene}"))).collect();
    if scenes.is_empty() {
        return;
    }
    let keys: Vec<Key> = (0..sizes.members).map(|n| Key::new(&format!("member{n}"))).collect();
    let sources: Vec<(Nix, String)> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| {
            let nix = Nix::at(VERSION, 1, key);
            let path = instantiate(&nix, &chain(each, &format!("of-{n}")));
            (nix, path)
        })
        .collect();
    let all: Vec<&Key> = keys.iter().collect();
    for scene in scenes {
        let store = scene.store();
        let mut row = Row::new(format!("{name} {scene}"));
        for _ in 0..sizes.runs {
            for kind in ALL {
                let server = kind.start(scene, &all, false);
                warm(&sources[0].0.with_port(server.port), scene);
                let commands: Vec<Command> = sources
                    .iter()
                    .map(|(nix, path)| {
                        let mut command = nix.with_port(server.port).command("nix");
                        command.args(["copy", "--no-check-sigs", "--to", &store, path]);
                        command
                    })
                    .collect();
                row.add(kind, measure_all(&server, &commands, 1));
            }
        }
        rows.push(row);
    }
}
