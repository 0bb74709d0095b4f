//! Caches made by stock Nix and used by the box: the paths that they have are neither uploaded nor built.

use std::process::Command;

use e2e::agent::{Agent, Setup};
use e2e::clients::{Nix, Stock, Version, outputs};
use e2e::drv::Drv;
use e2e::http::FileServer;
use e2e::keys::Key;
use e2e::process::{self, Transcript};
use e2e::shared_box::SharedBox;

/// A cache with the results that one machine built at home.
struct Cache {
    server: FileServer,
    /// In the form of `trusted-public-keys`.
    key: String,
    /// The published path; the cache has its closure.
    out: String,
    /// The machine that filled the cache and has all its paths; it has no box yet.
    machine: Nix,
    owner: Key,
}

/// The compression of the cache, another one for each client.
fn compression(stock: Stock) -> &'static str {
    match (stock.version, stock.builds_at_the_box()) {
        (Version::V2_8, true) => "xz",
        (Version::V2_26, true) => "zstd",
        (Version::V2_34, true) => "none",
        (Version::V2_8, false) => "bzip2",
        (Version::V2_26, false) => "gzip",
        (Version::V2_34, false) => "br",
    }
}

/// Makes a key pair in the machine's home; returns the public half.
fn generate_key(nix: &Nix, file: &str) -> String {
    let secret = nix.run(["key", "generate-secret", "--key-name", "cache.example.org-1"]).ok().stdout;
    std::fs::write(nix.home().join(file), secret.trim()).expect("a key");
    let convert = format!("nix key convert-secret-to-public < /root/{file}");
    process::run(nix.command("sh").args(["-c", &convert])).ok().stdout.trim().to_owned()
}

/// Builds at home, without the box.
fn at_home(nix: &Nix, drv: &Drv) -> String {
    let said = nix.run(["build", "--no-link", "--json", "--impure", "--expr", &drv.expr()]).ok();
    outputs(&said)["out"].clone()
}

impl Cache {
    fn of(stock: Stock, drv: &Drv) -> Self {
        let cache = Self::unsigned(stock, drv);
        let files = "file:///root/cache";
        cache.machine.run(["store", "sign", "--store", files, "-k", "/root/secret", "-r", &cache.out]).ok();
        cache
    }

    /// A cache whose key exists, but signed nothing.
    fn unsigned(stock: Stock, drv: &Drv) -> Self {
        let owner = Key::new("alice");
        let mut machine = Nix::at(stock.version, 0, &owner);
        machine.protocol = stock.protocol;
        let out = at_home(&machine, drv);
        let key = generate_key(&machine, "secret");
        let to = format!("file:///root/cache?compression={}", compression(stock));
        machine.run(["copy", "--to", &to, &out]).ok();
        let server = FileServer::start(&machine.home().join("cache"));
        Self { server, key, out, machine, owner }
    }
}

/// A box that uses a cache, and two members.
struct Scene {
    agent: Agent,
    cache: Cache,
    /// The machine that filled the cache.
    alice: Nix,
    /// A machine with an empty store.
    bob: Nix,
    _bobs: Key,
}

impl Scene {
    fn with(stock: Stock, cache: Cache) -> Self {
        let bobs = Key::new("bob");
        let agent = Setup::default()
            .setting(&format!("substituters = [\"{}\"]", cache.server.url()))
            .setting(&format!("trusted-public-keys = [\"{}\"]", cache.key))
            .setting("fetch.allow-private = true")
            .start(&[("alice", &cache.owner), ("bob", &bobs)]);
        let alice = cache.machine.with_port(agent.port());
        let bob = Nix::over(stock, &agent, &bobs);
        Self { agent, cache, alice, bob, _bobs: bobs }
    }

    /// Whether all members see this path on the box: it must be Verified, as every fetched path is.
    fn is_for_everybody(&self, path: &str) -> bool {
        process::run(&mut self.bob.closure_at_box(path)).ok_or_not()
    }

    /// Numbers of builds started and of NARs fetched.
    fn built_and_fetched(&self) -> (usize, usize) {
        (self.agent.count("build started"), self.cache.server.nars())
    }

    fn copy_or_substitute(&self) -> Transcript {
        let wish = match self.alice.version {
            // Over `ssh-ng://`, this version sends `builders-use-substitutes` and not the other option.
            Version::V2_8 => {
                &["--substitute-on-destination", "--option", "builders-use-substitutes", "true"][..]
            }
            _ => &["--substitute-on-destination"],
        };
        self.alice.run([&["copy", "--to", self.alice.store(), &self.cache.out][..], wish].concat()).ok()
    }
}

fn frame() -> Drv {
    Drv::new("frame", "echo frame of oak > $out")
}

/// Refers to the frame, as a build input and at run time.
fn barn() -> Drv {
    Drv::new("barn", "read line < $frame; echo $line in $frame > $out").input("frame", &frame())
}

pub fn what_a_cache_has_is_not_uploaded(stock: Stock) {
    let scene = Scene::with(stock, Cache::of(stock, &barn()));
    scene.copy_or_substitute();
    assert_eq!(scene.built_and_fetched(), (0, 2), "the path and the one it needs came from the cache");
    // An upload would be the uploader's own claim.
    assert!(scene.is_for_everybody(&scene.cache.out));

    // The same without the setting.
    let other = Scene::with(stock, scene.cache);
    other.alice.run(["copy", "--to", other.alice.store(), &other.cache.out]).ok();
    assert_eq!(other.built_and_fetched(), (0, 2), "nothing more was fetched");
    process::run(&mut other.alice.closure_at_box(&other.cache.out)).ok();
    assert!(!other.is_for_everybody(&other.cache.out));
}

pub fn inputs_that_a_cache_has_are_not_uploaded_for_a_build(stock: Stock) {
    let scene = Scene::with(stock, Cache::of(stock, &frame()));
    let through_builders = |name: &str, wish: &str| {
        let drv = Drv::new(name, "read line < $frame; echo $line > $out").input("frame", &frame());
        let mut build = scene.alice.build_through_builders(&drv.expr());
        build.args(["--option", "builders-use-substitutes", wish]);
        let out = outputs(&process::run(&mut build).ok())["out"].clone();
        assert_eq!(std::fs::read_to_string(scene.alice.local(&out)).expect("the result"), "frame of oak\n");
    };
    through_builders("without", "false");
    assert_eq!(scene.built_and_fetched(), (1, 0));
    assert!(!scene.is_for_everybody(&scene.cache.out), "it was uploaded");

    let scene = Scene::with(stock, scene.cache);
    let drv = Drv::new("with", "read line < $frame; echo $line > $out").input("frame", &frame());
    let mut build = scene.alice.build_through_builders(&drv.expr());
    process::run(build.args(["--option", "builders-use-substitutes", "true"])).ok();
    assert_eq!(scene.built_and_fetched(), (1, 1));
    assert!(scene.is_for_everybody(&scene.cache.out));
}

/// Has the box build `drv` with the commands of `nixos-rebuild --build-host`. Stock clients have no better
/// way over `ssh://`, and none to send settings over `ssh-ng://`.
fn realise_at_box(nix: &Nix, drv: &Drv, options: &str) -> Transcript {
    let said = process::run(nix.command("nix-instantiate").args(["--expr", &drv.expr()])).ok();
    let path = said.answer();
    nix.run(["copy", "--derivation", "--to", nix.store(), path]).ok();
    process::run(nix.ssh().arg(format!("nix-store --realise {path} {options}"))).ok()
}

pub fn what_a_cache_has_is_not_built(stock: Stock) {
    let scene = Scene::with(stock, Cache::of(stock, &barn()));
    let built = match stock.builds_at_the_box() {
        true => outputs(&process::run(&mut scene.bob.build_at_box(&barn().expr())).ok())["out"].clone(),
        false => realise_at_box(&scene.bob, &barn(), "").answer().to_owned(),
    };
    assert_eq!(built, scene.cache.out);
    assert_eq!(scene.built_and_fetched(), (0, 2));
    // Alice sees the path that bob's request fetched.
    process::run(&mut scene.alice.closure_at_box(&built)).ok();
}

/// `nix-store --serve` builds every requested target, as Nix's own does: the client has queried it before.
pub fn through_builders_only_the_newer_protocol_fetches_outputs(stock: Stock) {
    let scene = Scene::with(stock, Cache::of(stock, &barn()));
    let built = process::run(&mut scene.bob.build_through_builders(&barn().expr())).ok();
    assert_eq!(outputs(&built)["out"], scene.cache.out);
    let expected = if stock.builds_at_the_box() { (0, 2) } else { (2, 0) };
    assert_eq!(scene.built_and_fetched(), expected, "{built}");
}

pub fn a_client_or_a_derivation_that_wants_nothing_substituted_gets_a_build(stock: Stock) {
    let scene = Scene::with(stock, Cache::of(stock, &barn()));
    let built = realise_at_box(&scene.bob, &barn(), "--option substitute false");
    assert_eq!((built.answer(), scene.built_and_fetched()), (&*scene.cache.out, (2, 0)));

    let local = || Drv::new("local", "echo here > $out").attribute("allowSubstitutes", "false");
    let scene = Scene::with(stock, Cache::of(stock, &local()));
    match stock.builds_at_the_box() {
        true => process::run(&mut scene.bob.build_at_box(&local().expr())).ok(),
        false => realise_at_box(&scene.bob, &local(), ""),
    };
    assert_eq!(scene.built_and_fetched(), (1, 0));
}

pub fn what_nobody_trusted_signed_is_refused_in_one_line_and_uploaded(stock: Stock) {
    let unsigned = Cache::unsigned(stock, &frame());
    let mut forged = Cache::unsigned(stock, &frame());
    // Another key with the same name.
    generate_key(&forged.machine, "others");
    let files = "file:///root/cache";
    forged.machine.run(["store", "sign", "--store", files, "-k", "/root/others", "-r", &forged.out]).ok();
    let mut stranger = Cache::of(stock, &frame());
    stranger.key = stranger.key.replace("cache.example.org-1", "another.example.org-1");
    forged.key = generate_key(&forged.machine, "trusted");
    for (cache, said) in [
        (unsigned, "has no signature"),
        (forged, "no right signature by a key this box trusts (signed by cache.example.org-1)"),
        (stranger, "(signed by cache.example.org-1); add the key to `trusted-public-keys` of the box"),
    ] {
        let scene = Scene::with(stock, cache);
        let copied = scene.copy_or_substitute();
        let about: Vec<&str> = copied.stderr.lines().filter(|line| line.contains("signature")).collect();
        assert!(about.len() == 1 && about[0].contains(said), "{copied}");
        // It was accepted as an upload, which is only a claim.
        process::run(&mut scene.alice.closure_at_box(&scene.cache.out)).ok();
        assert!(!scene.is_for_everybody(&scene.cache.out));
        if stock.builds_at_the_box() {
            let asked = scene.bob.run(["build", "--no-link", "--store", scene.bob.store(), &scene.cache.out]);
            asked.failed().says(&["is not valid here and cannot be fetched", said]);
        }
        assert_eq!(scene.built_and_fetched(), (0, 0));
    }
}

pub fn what_was_fetched_is_copied_with_signatures_checked(stock: Stock) {
    let scene = Scene::with(stock, Cache::of(stock, &barn()));
    scene.copy_or_substitute();
    let copy = |trusted: &str| {
        let trusted = ["--option", "trusted-public-keys", trusted];
        scene.bob.run([&["copy", "--from", scene.bob.store(), &scene.cache.out][..], &trusted].concat())
    };
    copy("").failed().says(&["lacks a"]);
    let boxes = process::run(scene.bob.ssh().arg("signing-key")).ok().stdout;
    assert!(boxes.starts_with("testbox-1:"), "{boxes}");
    copy(boxes.trim()).ok();
    let copied = std::fs::read_to_string(scene.bob.local(&scene.cache.out)).expect("the copy");
    assert!(copied.contains("-frame"), "{copied}");
}

/// One version of the client is sufficient: here a box is the client of another.
#[test]
fn another_box_is_a_substituter_by_its_host_key_and_signing_key() {
    let first = SharedBox::of(&["alice", "second-box"]);
    let alice = first.machine("alice", Stock::NEWEST);
    let out = outputs(&process::run(&mut alice.build_at_box(&barn().expr())).ok())["out"].clone();
    let signing = process::run(alice.ssh().arg("signing-key")).ok().stdout;
    let public_half = |key: &std::path::Path| {
        let script = "ssh-keygen -y -f \"$0\" | base64 -w0";
        let encoded = process::run(Command::new("sh").args(["-c", script]).arg(key)).ok().stdout;
        // A plus in a query would be read as a space.
        encoded.replace('+', "%2B")
    };
    let bobs = Key::new("bob");
    let build_at_second = |host_key: &str| {
        let url = format!(
            "ssh-ng://anyone@127.0.0.1:{}?base64-ssh-public-host-key={host_key}&ssh-key={}",
            first.agent.port(),
            first.key("second-box").private().display()
        );
        let second = Setup::default()
            .setting(&format!("substituters = [\"{url}\"]"))
            .setting(&format!("trusted-public-keys = [\"{}\"]", signing.trim()))
            .setting("fetch.allow-private = true")
            // A second key with the same name would replace the first.
            .setting("signing-key-name = \"second-1\"")
            .start(&[("bob", &bobs)]);
        let bob = Nix::over(Stock::NEWEST, &second, &bobs);
        let built = process::run(&mut bob.build_at_box(&barn().expr())).ok();
        assert_eq!(outputs(&built)["out"], out);
        (second.count("build started"), built)
    };
    let (builds, built) =
        build_at_second(&public_half(&first.agent.state_dir().join("ssh_host_ed25519_key")));
    assert_eq!(builds, 0, "{built}");
    // A machine with another host key at that address is not trusted, and gets no request.
    let (builds, built) = build_at_second(&public_half(&bobs.private()));
    assert_eq!(builds, 2, "{built}");
    assert!(built.stderr.contains("is not the machine it should be"), "{built}");
}
