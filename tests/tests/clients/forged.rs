//! Mallory forges results with a stock client, Alice builds, and Alice gets the same results as without
//! Mallory.
//!
//! Mallory controls her own machine, so she can build arbitrary results there from a legitimate derivation:
//! the derivations here write `forged` if a file of hers exists, and `true` in the box's sandbox, where it
//! does not.

use e2e::clients::{Nix, Protocol, Stock, outputs};
use e2e::drv::Drv;
use e2e::process;
use e2e::shared_box::SharedBox;

/// A derivation with a different result on Mallory's machine.
fn two_faced(name: &str) -> Drv {
    Drv::new(name, "if [ -e /root/forged ]; then echo forged > $out; else echo true > $out; fi")
}

/// A derivation that prints the contents of its input.
fn shows(name: &str, input: &Drv) -> Drv {
    Drv::new(name, "read line < $input; echo built from $line > $out").input("input", input)
}

struct Scene {
    shared_box: SharedBox,
    mallory: Nix,
    alice: Nix,
}

impl Scene {
    fn with(stock: Stock) -> Self {
        let shared_box = SharedBox::of(&["alice", "mallory"]);
        let (mallory, alice) = (shared_box.machine("mallory", stock), shared_box.machine("alice", stock));
        std::fs::write(mallory.home().join("forged"), "").expect("mallory's mark");
        Self { shared_box, mallory, alice }
    }

    /// Mallory builds this on her own machine and uploads the result.
    fn forge(&self, drv: &Drv) -> String {
        let built = self.mallory.run(["build", "--no-link", "--json", "--expr", &drv.expr()]).ok();
        let path = outputs(&built)["out"].clone();
        assert_eq!(std::fs::read_to_string(self.mallory.local(&path)).expect("a file"), "forged\n");
        self.mallory.run(["copy", "--to", self.mallory.store(), &path]).ok();
        path
    }

    /// Builds on the box and returns the contents, as read on another machine of the same member.
    fn build(&self, who: &str, nix: &Nix, drv: &Drv) -> String {
        let path = outputs(&process::run(&mut nix.build(&drv.expr())).ok())["out"].clone();
        self.read(who, nix, &path)
    }

    /// The box's contents of this path, for this member.
    fn read(&self, who: &str, nix: &Nix, path: &str) -> String {
        let elsewhere = self.shared_box.machine(who, nix.stock());
        elsewhere.run(["copy", "--no-check-sigs", "--from", elsewhere.store(), path]).ok();
        std::fs::read_to_string(elsewhere.local(path)).expect("a file")
    }
}

pub fn a_forged_output_is_not_the_answer_to_anybody_elses_build(stock: Stock) {
    let scene = Scene::with(stock);
    let drv = two_faced("tool");
    let path = scene.forge(&drv);
    assert_eq!(scene.read("mallory", &scene.mallory, &path), "forged\n", "she fools herself");
    assert_eq!(scene.shared_box.agent.count("build started"), 0);
    assert_eq!(scene.build("alice", &scene.alice, &drv), "true\n");
    assert_eq!(scene.shared_box.agent.count("build started"), 1, "alice's own build ran");
    // The same through `--builders`, on a machine that never had the path.
    let again = scene.shared_box.machine("alice", stock);
    outputs(&process::run(&mut again.build_through_builders(&drv.expr())).ok());
    assert_eq!(std::fs::read_to_string(again.local(&path)).expect("the result"), "true\n");
}

pub fn a_forged_output_does_not_replace_what_was_built(stock: Stock) {
    let scene = Scene::with(stock);
    let drv = two_faced("tool");
    assert_eq!(scene.build("alice", &scene.alice, &drv), "true\n");
    let path = scene.forge(&drv);
    assert_eq!(scene.read("alice", &scene.alice, &path), "true\n");
    assert_eq!(scene.build("alice", &scene.shared_box.machine("alice", stock), &drv), "true\n");
}

pub fn a_forged_dependency_reaches_only_its_forger(stock: Stock) {
    let scene = Scene::with(stock);
    let tool = two_faced("tool");
    let product = shows("product", &tool);
    scene.forge(&tool);
    // She has the box build a legitimate derivation that uses it.
    let forged = scene.build("mallory", &scene.mallory, &product);
    assert_eq!(forged, "built from forged\n", "the attack itself must work");
    assert_eq!(scene.shared_box.agent.count("build started"), 1, "the forged tool was not built");
    assert_eq!(scene.build("alice", &scene.alice, &product), "built from true\n");
    assert_eq!(scene.shared_box.agent.count("build started"), 3, "alice's tool and product were");
    // And a result that is built from Alice's does not contain Mallory's either.
    let box_for = shows("box-for", &product);
    assert_eq!(scene.build("alice", &scene.alice, &box_for), "built from built from true\n");
}

pub fn what_mallory_built_on_a_forged_dependency_is_never_reused(stock: Stock) {
    let scene = Scene::with(stock);
    let (tool, product) = (two_faced("tool"), Drv::new("constant", "read line < $input; echo same > $out"));
    let product = product.input("input", &tool);
    scene.forge(&tool);
    assert_eq!(scene.build("mallory", &scene.mallory, &product), "same\n");
    // Although the results are equal, hers is not used: its inputs differ.
    assert_eq!(scene.build("alice", &scene.alice, &product), "same\n");
    assert_eq!(scene.shared_box.agent.count("build started"), 3);
}

/// Over `ssh://` a client cannot register a realisation, so Mallory does it over `ssh-ng://`; Alice asks over
/// either.
pub fn a_lie_about_a_floating_output_is_not_the_answer_to_anybody_elses_build(stock: Stock) {
    let mut scene = Scene::with(Stock { protocol: Protocol::SshNg, ..stock });
    scene.mallory.enable("ca-derivations");
    let drv = two_faced("tool")
        .attribute("__contentAddressed", "true")
        .attribute("outputHashMode", "\"recursive\"")
        .attribute("outputHashAlgo", "\"sha256\"")
        .expr();
    // As a content-addressed derivation's output, it is copied with its realisation.
    scene.mallory.run(["copy", "--to", scene.mallory.store(), "--impure", "--expr", &drv]).ok();
    let forged = outputs(&process::run(&mut scene.mallory.build_at_box(&drv)).ok())["out"].clone();
    assert_eq!(scene.read("mallory", &scene.mallory, &forged), "forged\n", "the attack itself must work");
    assert_eq!(scene.shared_box.agent.count("build started"), 0);

    let mut alice = scene.shared_box.machine("alice", stock);
    alice.enable("ca-derivations");
    let builders = format!("{} 1 ca-derivations", alice.builders());
    let mut ways = vec![alice.build_through_builders(&drv)];
    // Of several options on a command line the last counts.
    ways[0].args(["--builders", &builders]);
    if stock.builds_at_the_box() {
        ways.insert(0, alice.build_at_box(&drv));
    }
    for mut way in ways {
        let built = process::run(&mut way).ok();
        let out = outputs(&built)["out"].clone();
        assert_ne!(out, forged);
        assert_eq!(scene.read("alice", &alice, &out), "true\n", "{built}");
        assert_eq!(scene.shared_box.agent.count("build started"), 1, "alice's own build ran, once");
    }
}
