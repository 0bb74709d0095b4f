//! Derivations of every kind have the same outputs as when the same client builds them at home: same paths,
//! same contents.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use e2e::agent::Setup;
use e2e::clients::{Nix, Stock, Version, outputs};
use e2e::drv::{Drv, quoted};
use e2e::keys::Key;
use e2e::process::{self, Transcript};

use crate::Alice;

/// The programs of a script: those of the client's machine at home, those of the sandbox's shell on the box.
pub const PROGRAMS: &str = "PATH=/usr/bin:/bin;";

fn floating(drv: Drv) -> Drv {
    drv.attribute("__contentAddressed", "true")
        .attribute("outputHashMode", "\"recursive\"")
        .attribute("outputHashAlgo", "\"sha256\"")
}

/// An output's reference to itself. Nix 2.8 hashes contents with their own path in a way that later versions
/// dropped (see `build::floating`), so with it there is none.
fn itself(stock: Stock) -> &'static str {
    if stock.version == Version::V2_8 { "" } else { "$out" }
}

/// Two floating outputs; `out` refers to itself and to `dev`. The note changes the derivation, not its
/// outputs.
fn base(stock: Stock, note: &str) -> Drv {
    let own = itself(stock);
    let script = format!(
        "{PROGRAMS} : {note}; mkdir $out $dev; echo drawing > $dev/plan; echo {own} $dev > $out/names; ln -s {own}/names $out/link"
    );
    floating(Drv::new("base", &script).outputs(&["dev"]))
}

/// A floating derivation that uses `base`.
fn top(stock: Stock, note: &str) -> Drv {
    let (base, own) = (base(stock, note), itself(stock));
    let script =
        format!("{PROGRAMS} mkdir $out; cat $base/names $plan/plan > $out/all; echo $base {own} >> $out/all");
    floating(Drv::new("top", &script))
        .attribute("base", &base.expr())
        .attribute("plan", &format!("{}.dev", base.expr()))
}

/// A client with content-addressed derivations enabled.
fn with_ca(stock: Stock) -> Alice {
    let mut alice = Alice::with(stock);
    alice.nix.enable("ca-derivations");
    alice
}

/// `nix build` at home, without the box.
fn at_home(nix: &Nix, expression: &str) -> Command {
    let mut command = nix.command("nix");
    command.args(["build", "--no-link", "--json", "--impure", "--expr", expression]);
    command
}

/// The ways of this client to have a content-addressed derivation built. Builders must be declared to support
/// it.
fn ways(alice: &Alice, expression: &str) -> Vec<Command> {
    let builders = format!("{} 1 ca-derivations", alice.nix.builders());
    let mut commands = alice.ways_to_build(expression);
    if let Some(through_builders) = commands.last_mut() {
        // Of several options on a command line the last counts.
        through_builders.args(["--builders", &builders]);
    }
    commands
}

pub fn a_floating_chain_gets_the_paths_that_the_client_gives_it_at_home(stock: Stock) {
    let home = with_ca(stock);
    let expected = outputs(&process::run(&mut at_home(&home.nix, &top(stock, "x").expr())).ok());
    let text = std::fs::read_to_string(home.nix.local(&expected["out"]).join("all")).expect("the result");
    assert_eq!(text.contains(&expected["out"]), !itself(stock).is_empty(), "{text}");
    for way in 0..ways(&home, "").len() {
        let alice = with_ca(stock);
        let built = process::run(&mut ways(&alice, &top(stock, "x").expr())[way]).ok();
        assert_eq!(outputs(&built), expected, "{built}");
        assert_eq!(alice.agent.count("build started"), 2);
        let out = &expected["out"];
        alice.nix.run(["copy", "--no-check-sigs", "--from", alice.nix.store(), out]).ok();
        let here = std::fs::read_to_string(alice.nix.local(out).join("all")).expect("the result");
        assert_eq!(here, text);
    }
}

pub fn what_resolves_to_something_built_is_not_built_again(stock: Stock) {
    let alice = with_ca(stock);
    for way in 0..ways(&alice, "").len() {
        let before = alice.agent.count("build started");
        let one = process::run(&mut ways(&alice, &top(stock, &format!("one {way}")).expr())[way]).ok();
        let two = process::run(&mut ways(&alice, &top(stock, &format!("two {way}")).expr())[way]).ok();
        assert_eq!(outputs(&one), outputs(&two));
        let top_at_first = usize::from(way == 0);
        assert_eq!(alice.agent.count("build started") - before, 2 + top_at_first, "{two}");
    }
}

pub fn an_input_addressed_derivation_may_depend_on_a_floating_one(stock: Stock) {
    let script = format!("{PROGRAMS} mkdir $out; cat $base/names > $out/all; echo $out >> $out/all");
    let expression = Drv::new("plain", &script).attribute("base", &base(stock, "x").expr()).expr();
    let home = with_ca(stock);
    let expected = outputs(&process::run(&mut at_home(&home.nix, &expression)).ok());
    for way in 0..ways(&home, "").len() {
        let alice = with_ca(stock);
        let built = process::run(&mut ways(&alice, &expression)[way]).ok();
        assert_eq!(outputs(&built), expected, "{built}");
    }
}

pub fn a_realisation_is_read_back_from_the_box(stock: Stock) {
    if !stock.builds_at_the_box() {
        return;
    }
    let alice = with_ca(stock);
    let out = outputs(&process::run(&mut ways(&alice, &base(stock, "x").expr())[0]).ok());
    let mut ask = alice.nix.command("nix");
    ask.args(["realisation", "info", "--json", "--store", alice.nix.store(), "--eval-store", "auto"]);
    ask.args(["--impure", "--expr", &base(stock, "x").expr()]);
    let said = process::run(&mut ask).ok();
    let name = out["out"].strip_prefix("/nix/store/").expect("a store path");
    assert!(said.stdout.contains(name), "{said}");
}

pub fn outputs_that_refer_to_each_other_are_refused(stock: Stock) {
    let alice = with_ca(stock);
    let script = format!("{PROGRAMS} mkdir $out $dev; echo $dev > $out/x; echo $out > $dev/x");
    let drv = floating(Drv::new("circle", &script).outputs(&["dev"]));
    for mut way in ways(&alice, &drv.expr()) {
        process::run(&mut way).failed().says(&["cycle detected in build of"]);
    }
}

/// A hash that no contents have.
const NO_HASH: &str = "sha256 = \"0000000000000000000000000000000000000000000000000000\";";

/// A derivation with one fixed output. With an empty hash, which matches no contents, Nix prints the right
/// one.
fn fixed(name: &str, mode: &str, algorithm: &str, hash: &str, script: &str) -> Drv {
    Drv::new(name, &format!("{PROGRAMS} {script}"))
        .attribute("outputHashMode", &quoted(mode))
        .attribute("outputHashAlgo", &quoted(algorithm))
        .attribute("outputHash", &quoted(hash))
}

/// The hash in the second half of "specified: ... got: ...".
fn got(said: &Transcript) -> String {
    let text = format!("{said}");
    let line = text.lines().find(|line| line.contains("got:")).unwrap_or_else(|| panic!("no hash:\n{said}"));
    line.split_whitespace().last().expect("a hash").to_owned()
}

pub fn fixed_outputs_of_every_kind_have_the_hash_that_the_client_computes(stock: Stock) {
    let tree = "mkdir -p $out/bin; echo text > $out/text; echo run > $out/bin/run; chmod +x $out/bin/run; ln -s text $out/link";
    let kinds = [
        ("flat", "sha256", "echo flat > $out"),
        ("flat", "sha512", "echo flat > $out"),
        ("flat", "sha1", "echo flat > $out"),
        ("flat", "md5", "echo flat > $out"),
        ("recursive", "sha256", tree),
        ("recursive", "sha512", tree),
    ];
    let git = [("git", "sha1", tree), ("git", "sha256", tree), ("git", "sha1", "echo flat > $out")];
    let mut alice = Alice::with(stock);
    // Nix 2.8 does not know git hashes.
    let git = if stock.version == Version::V2_8 { &[][..] } else { &git[..] };
    if !git.is_empty() {
        alice.nix.enable("git-hashing");
    }
    // Nor does 2.26 know git hashes with SHA-256.
    let unknown = |algorithm: &str| stock.version == Version::V2_26 && algorithm == "sha256";
    let git = git.iter().filter(|(_, algorithm, _)| !unknown(algorithm));
    for (mode, algorithm, script) in kinds.iter().chain(git).copied() {
        let name = format!("{mode}-{algorithm}");
        let unknown = fixed(&name, mode, algorithm, "", script).expr();
        for way in 0..alice.ways_to_build("").len() {
            let mut wrong = alice.ways_to_build(&unknown).remove(way);
            let hash = got(&process::run(&mut wrong).failed().says(&["hash mismatch in fixed-output"]));
            let right = fixed(&name, mode, algorithm, &hash, script).expr();
            let built = process::run(&mut alice.ways_to_build(&right).remove(way)).ok();
            // The client's own result.
            let mut home = alice.other_machine();
            if mode == "git" {
                home.enable("git-hashing");
            }
            if mode == "git" && stock.version == Version::V2_26 {
                // This version looks for the output of its own builder in a folder that never existed
                // (local-derivation-goal.cc), so only the hash is compared.
                let out = &outputs(&built)["out"];
                home.run(["copy", "--from", home.store(), out]).ok();
                let hashed = home.run(["hash", "path", "--mode", "git", "--algo", algorithm, out]).ok();
                assert_eq!(hashed.answer(), hash, "{name}: {built}");
                continue;
            }
            let expected = process::run(&mut at_home(&home, &right)).ok();
            assert_eq!(outputs(&built), outputs(&expected), "{name}: {built}");
        }
    }
}

/// A server that answers a request for a known path with 200, for `/there` with a redirect, and for others
/// with 404.
struct Server {
    port: u16,
}

impl Server {
    /// Serves until the test ends.
    fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(path, body)| ((*path).to_owned(), body.clone())).collect();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let first = lines.next().unwrap_or_default();
                for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
                let path = first.split(' ').nth(1).unwrap_or_default();
                let (head, body): (&str, &[u8]) = match (path, files.get(path)) {
                    (_, Some(body)) => ("200 OK\r\n", body),
                    ("/there", _) => ("302 Found\r\nLocation: /file\r\n", b""),
                    _ => ("404 Not Found\r\n", b""),
                };
                let length = body.len();
                let _ = (&stream)
                    .write_all(
                        format!("HTTP/1.1 {head}Content-Length: {length}\r\nConnection: close\r\n\r\n")
                            .as_bytes(),
                    )
                    .and_then(|()| (&stream).write_all(body));
            }
        });
        Self { port }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn member_of_a_box_that_fetches_from_here(stock: Stock) -> Alice {
    let key = Key::new("alice");
    let agent = Setup::default().setting("fetch.allow-private = true").start(&[("alice", &key)]);
    let nix = Nix::over(stock, &agent, &key);
    Alice { agent, key, nix }
}

fn fetchurl(url: &str, more: &str) -> String {
    format!("(import <nix/fetchurl.nix> {{ url = {}; {more} }})", quoted(url))
}

pub fn the_box_fetches_what_the_client_would_fetch(stock: Stock) {
    let alice = member_of_a_box_that_fetches_from_here(stock);
    let body = b"from afar\n".repeat(100_000);
    // Input for `unpack`: a NAR, compressed or not.
    std::fs::create_dir_all(alice.nix.home().join("tree/bin")).expect("a folder");
    std::fs::write(alice.nix.home().join("tree/bin/run"), "#!/bin/sh\n").expect("a file");
    let dump = process::run(alice.nix.command("nix-store").args(["--dump", "/root/tree"])).ok();
    let nar = dump.stdout.into_bytes();
    let server = Server::start(&[
        ("/file", body.clone()),
        ("/tree.nar", nar.clone()),
        ("/tree.nar.xz", piped("xz", &nar)),
    ]);
    let hash = |data: &[u8]| {
        std::fs::write(alice.nix.home().join("hashed"), data).expect("a file");
        let said =
            process::run(alice.nix.command("nix").args(["hash", "file", "--type", "sha256", "/root/hashed"]));
        said.ok().answer().to_owned()
    };
    let tree = alice.nix.hash_path("/root/tree");
    let file = hash(&body);
    for (path, more) in [
        ("/file", format!("hash = {};", quoted(&file))),
        ("/there", format!("hash = {}; name = \"elsewhere\";", quoted(&file))),
        ("/tree.nar", format!("hash = {}; unpack = true;", quoted(&tree))),
        ("/tree.nar.xz", format!("hash = {}; unpack = true;", quoted(&tree))),
    ] {
        let expression = fetchurl(&server.url(path), &more);
        let expected = outputs(&process::run(&mut at_home(&alice.other_machine(), &expression)).ok());
        for mut way in alice.ways_to_build(&expression) {
            let built = process::run(&mut way).ok();
            assert_eq!(outputs(&built), expected, "{path}: {built}");
        }
    }
    for (url, more, said) in [
        (server.url("/file"), NO_HASH, "hash mismatch"),
        (server.url("/none"), NO_HASH, "404"),
        ("file:///etc/passwd".into(), NO_HASH, "http:// and https:// only"),
    ] {
        for mut way in alice.ways_to_build(&fetchurl(&url, more)) {
            process::run(&mut way).failed().says(&[said]);
        }
    }
}

pub fn the_box_fetches_nothing_from_its_own_network(stock: Stock) {
    let alice = Alice::with(stock);
    let server = Server::start(&[("/file", b"secret".to_vec())]);
    for mut way in alice.ways_to_build(&fetchurl(&server.url("/file"), NO_HASH)) {
        process::run(&mut way).failed().says(&["has no public address"]);
    }
}

/// The output of a program of this machine for this input.
fn piped(program: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}, which these tests need: {e}"));
    child.stdin.take().expect("piped").write_all(input).expect("a pipe");
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.success(), "{program} failed");
    output.stdout
}

/// Builds `expression` at home and in every way on the box, and compares paths and contents.
pub fn same_as_at_home(alice: &Alice, expression: &str) {
    same_as_built_by(&alice.other_machine(), alice, expression);
}

/// The same with `home` as the machine that builds at home; it deletes the result afterwards.
pub fn same_as_built_by(home: &Nix, alice: &Alice, expression: &str) {
    let out = outputs(&process::run(&mut at_home(home, expression)).ok())["out"].clone();
    let expected = home.hash_path(&out);
    home.run(["store", "delete", "--ignore-liveness", &out]).ok();
    for mut way in alice.ways_to_build(expression) {
        let built = process::run(&mut way).ok();
        assert_eq!(outputs(&built)["out"], out, "{built}");
        let reader = alice.other_machine();
        reader.run(["copy", "--no-check-sigs", "--from", reader.store(), &out]).ok();
        assert_eq!(reader.hash_path(&out), expected, "{built}");
    }
}

/// Three derivations, each with the previous one as an input.
fn three() -> [String; 3] {
    let base = Drv::new("base", &format!("{PROGRAMS} echo base > $out"));
    let lib = Drv::new("lib", &format!("{PROGRAMS} echo $base $out > $out")).input("base", &base);
    let tool = Drv::new("tool", &format!("{PROGRAMS} echo $lib > $out")).input("lib", &lib);
    [base.expr(), lib.expr(), tool.expr()]
}

pub fn a_builder_is_shown_the_closures_that_it_asks_for(stock: Stock) {
    let alice = Alice::with(stock);
    let [base, lib, tool] = three();
    // The closure of a derivation file includes its input derivations and their outputs.
    let graphs = format!("[ \"tool\" {tool} \"base\" {base} \"all\" {lib}.drvPath ]");
    let script = format!("{PROGRAMS} mkdir $out; cp tool base all $out");
    same_as_at_home(&alice, &Drv::new("graphs", &script).attribute("exportReferencesGraph", &graphs).expr());
    let outside = format!("[ \"x\" (builtins.unsafeDiscardStringContext {base}) ]");
    for mut way in
        alice.ways_to_build(&Drv::new("graphs", &script).attribute("exportReferencesGraph", &outside).expr())
    {
        process::run(&mut way).failed().says(&["because it is not in the input closure of the derivation"]);
    }
}

pub fn structured_attributes_describe_the_closures_that_are_asked_for(stock: Stock) {
    let alice = Alice::with(stock);
    let [base, lib, tool] = three();
    let drv = |graphs: &str, keep: &str| {
        // With the shell alone: there is no `sed` at home.
        let find =
            r#"read -r json < .attrs.json || :; json=${json#*'"outputs":{"out":"'}; out=${json%%'"'*}"#;
        Drv::new("described", &format!("{PROGRAMS} {find}; mkdir $out; {keep}"))
            .attribute("__structuredAttrs", "true")
            .attribute("exportReferencesGraph", graphs)
            .attribute("list", "[ 1 \"two\" ]")
            .attribute("replaced", "\"by a graph\"")
            .expr()
    };
    // Nix 2.8 does not print `"valid": true` for each path yet (store-api.cc: `pathInfoToJSON`).
    let is_old = stock.version == Version::V2_8;
    let keep = if is_old { "cp .attrs.sh $out" } else { "cp .attrs.json .attrs.sh $out" };
    let graphs = format!("{{ closure = [ {tool} {base} ]; all = [ {lib}.drvPath ]; replaced = {lib}; }}");
    same_as_at_home(&alice, &drv(&graphs, keep));
    // Only strings, which a shell can read.
    same_as_at_home(&alice, &drv(&format!("{{ closure = {lib}; }}"), keep));
}

pub fn an_environment_of_packages_is_what_the_client_makes_of_them(stock: Stock) {
    let alice = Alice::with(stock);
    let package = |name: &str, script: &str| {
        Drv::new(name, &format!("{PROGRAMS} mkdir -p $out/bin $out/share/man; {script}")).expr()
    };
    let extra = package("extra", "echo extra > $out/bin/extra; echo extra > $out/bin/both");
    let one = format!(
        "({} // {{ }})",
        Drv::new(
            "one",
            &format!(
                "{PROGRAMS} mkdir -p $out/bin $out/share/man $out/nix-support; echo one > $out/bin/one; \
                 echo one > $out/bin/both; echo one > $out/share/man/one; echo $extra > $out/nix-support/propagated-user-env-packages"
            )
        )
        .attribute("extra", &extra)
        .expr()
    );
    let two =
        package("two", "echo two > $out/bin/two; echo two > $out/bin/both; ln -s /nowhere $out/bin/gone");
    let environment = |second: u32| {
        format!(
            "(derivation {{ name = \"env\"; system = \"builtin\"; builder = \"builtin:buildenv\"; \
             derivations = [ \"true\" \"5\" \"1\" {one} \"true\" \"{second}\" \"1\" {two} ]; \
             manifest = builtins.toFile \"manifest\" \"[ ]\"; }})"
        )
    };
    same_as_at_home(&alice, &environment(4));
    same_as_at_home(&alice, &environment(6));
    for mut way in alice.ways_to_build(&environment(5)) {
        process::run(&mut way).failed().says(&["There is a conflict for the following files"]);
    }
}

pub fn a_channel_is_unpacked_whatever_it_is_compressed_with(stock: Stock) {
    let alice = Alice::with(stock);
    let home = alice.nix.home();
    std::fs::create_dir_all(home.join("channel-1/lib")).expect("a folder");
    std::fs::write(home.join("channel-1/default.nix"), "{ }").expect("a file");
    std::fs::write(home.join("channel-1/lib/run"), "run").expect("a file");
    std::fs::set_permissions(home.join("channel-1/lib/run"), std::fs::Permissions::from_mode(0o755))
        .expect("a mode");
    std::os::unix::fs::symlink("../default.nix", home.join("channel-1/lib/link")).expect("a link");
    std::fs::hard_link(home.join("channel-1/default.nix"), home.join("channel-1/again.nix")).expect("a link");
    let long = "long-name/".repeat(12) + &"x".repeat(120);
    std::fs::create_dir_all(home.join("channel-1").join(&long).parent().expect("a folder"))
        .expect("a folder");
    std::fs::write(home.join("channel-1").join(&long), "deep").expect("a file");
    let packed = Command::new("tar").arg("-C").arg(&home).args(["-c", "channel-1"]).output().expect("tar");
    assert!(packed.status.success(), "{packed:?}");
    let tar = packed.stdout;
    for program in ["cat", "gzip", "xz", "bzip2", "zstd"] {
        let name = format!("channel.{program}");
        let bytes = if program == "cat" { tar.clone() } else { piped(program, &tar) };
        std::fs::write(home.join(&name), &bytes).expect("a file");
        let source = alice.nix.run(["store", "add-file", &format!("./{name}")]).ok().answer().to_owned();
        let expression = format!(
            "(derivation {{ name = \"channel\"; system = \"builtin\"; builder = \"builtin:unpack-channel\"; \
             channelName = \"nixos\"; src = builtins.storePath {source}; }})"
        );
        // Only this machine has the source.
        same_as_built_by(&alice.nix, &alice, &expression);
    }
}
