//! What a member brings or makes without proof is that member's alone.

use e2e::agent::Agent;
use e2e::clients::{Nix, Protocol, Stock, outputs};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process;

/// A box with two members, and a path that alice has there.
fn is_alone(stock: Stock, make: impl Fn(&Nix) -> String) {
    let (alices_key, bobs_key) = (Key::new("alice"), Key::new("bob"));
    let agent = Agent::start(&[("alice", &alices_key), ("bob", &bobs_key)]);
    let alice = Nix::over(stock, &agent, &alices_key);
    let bob = Nix::over(stock, &agent, &bobs_key);
    let path = make(&alice);
    process::run(&mut alice.closure_at_box(&path)).ok();

    let not_valid = |path: &str| format!("'{path}' is not valid");
    process::run(&mut bob.closure_at_box(&path)).failed().says(&[&not_valid(&path)]);
    let copied = bob.run(["copy", "--no-check-sigs", "--from", bob.store(), &path]).failed();
    // Over `ssh://` the client looks before it asks, and then tells it in words of its own.
    let elsewhere = format!("path '{path}' is required, but there is no substituter that can build it");
    let not_there = if bob.protocol == Protocol::SshNg { not_valid(&path) } else { elsewhere };
    copied.says(&[&not_there]);
    // Bob's answer is the one for a path that never existed anywhere.
    let never = path.replace("-alone", "-never");
    process::run(&mut bob.closure_at_box(&never)).failed().says(&[&not_valid(&never)]);
}

/// `--builders` sends a derivation without those it was made from, so its output path cannot be checked.
pub fn what_one_member_built_from_a_bare_recipe_does_not_exist_for_another(stock: Stock) {
    is_alone(stock, |alice| {
        // One without inputs would be whole as it is.
        let input = Drv::new("input", "echo known > $out");
        let drv = Drv::new("alone", "echo secret > $out").input("input", &input).expr();
        outputs(&process::run(&mut alice.build_through_builders(&drv)).ok())["out"].clone()
    });
}

/// An input-addressed path that was built on the client says nothing about its contents.
pub fn what_one_member_uploaded_unchecked_does_not_exist_for_another(stock: Stock) {
    is_alone(stock, |alice| {
        // One without inputs would be whole as it is.
        let input = Drv::new("input", "echo known > $out");
        let drv = Drv::new("alone", "echo secret > $out").input("input", &input).expr();
        let built = alice.run(["build", "--no-link", "--json", "--expr", &drv]).ok();
        let path = outputs(&built)["out"].clone();
        alice.run(["copy", "--to", alice.store(), &path]).ok();
        path
    });
}
