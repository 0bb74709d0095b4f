//! A path that a member uploads or builds without proof is visible to that member only.

use e2e::agent::Agent;
use e2e::clients::{Nix, Protocol, Stock, outputs};
use e2e::drv::Drv;
use e2e::keys::Key;
use e2e::process;

/// Checks that alice's path on a box with two members is visible to her only.
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
    // Over `ssh://` the client queries the path first, and prints its own message.
    let elsewhere = format!("path '{path}' is required, but there is no substituter that can build it");
    let not_there = if bob.protocol == Protocol::SshNg { not_valid(&path) } else { elsewhere };
    copied.says(&[&not_there]);
    // Bob gets the same answer for a path that never existed anywhere.
    let never = path.replace("-alone", "-never");
    process::run(&mut bob.closure_at_box(&never)).failed().says(&[&not_valid(&never)]);
}

/// `--builders` sends a derivation without its input derivations, so its output path cannot be checked.
pub fn what_one_member_built_from_a_bare_recipe_does_not_exist_for_another(stock: Stock) {
    is_alone(stock, |alice| {
        // A derivation without inputs would be whole.
        let input = Drv::new("input", "echo known > $out");
        let drv = Drv::new("alone", "echo secret > $out").input("input", &input).expr();
        outputs(&process::run(&mut alice.build_through_builders(&drv)).ok())["out"].clone()
    });
}

/// An input-addressed path that was built on the client proves nothing about its contents.
pub fn what_one_member_uploaded_unchecked_does_not_exist_for_another(stock: Stock) {
    is_alone(stock, |alice| {
        // A derivation without inputs would be whole.
        let input = Drv::new("input", "echo known > $out");
        let drv = Drv::new("alone", "echo secret > $out").input("input", &input).expr();
        let built = alice.run(["build", "--no-link", "--json", "--expr", &drv]).ok();
        let path = outputs(&built)["out"].clone();
        alice.run(["copy", "--to", alice.store(), &path]).ok();
        path
    });
}
