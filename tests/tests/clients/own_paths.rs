//! A member's operations on their own claims: deleting and sharing them.

use e2e::clients::{Nix, Protocol, Stock, outputs};
use e2e::drv::Drv;
use e2e::process::{self, Transcript};
use e2e::shared_box::SharedBox;

/// Builds at home and uploads: the box cannot verify the contents.
fn claim(nix: &Nix, drv: &Drv) -> String {
    let built = nix.run(["build", "--no-link", "--json", "--expr", &drv.expr()]).ok();
    let path = outputs(&built)["out"].clone();
    nix.run(["copy", "--to", nix.store(), &path]).ok();
    path
}

fn at_box(nix: &Nix, path: &str) -> Transcript {
    process::run(&mut nix.closure_at_box(path))
}

pub fn a_member_throws_away_what_is_theirs_and_nothing_else(stock: Stock) {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let (alice, bob) = (&shared_box.machine("alice", stock), &shared_box.machine("bob", stock));
    let [first, second] = ["first", "second"].map(|name| claim(alice, &Drv::new(name, "echo hers > $out")));
    let bobs = claim(bob, &Drv::new("bobs", "echo his > $out"));
    std::fs::write(alice.home().join("text"), "text").expect("a file");
    let proven = alice.run(["store", "add-path", "./text", "--name", "proven"]).ok().answer().to_owned();
    alice.run(["copy", "--to", alice.store(), &proven]).ok();

    let delete = |path: &str| alice.run(["store", "delete", "--store", alice.store(), path]);
    if stock.protocol == Protocol::Ssh {
        // The serve protocol has no such operation, and stock Nix says so.
        delete(&first).failed();
        at_box(alice, &first).ok();
        return;
    }
    delete(&first).ok();
    at_box(alice, &first).failed().says(&["is not valid"]);
    // Newer clients query the live paths first, and print the reason themselves.
    delete(&bobs).failed();
    delete(&proven).failed();
    alice.run(["store", "gc", "--store", alice.store()]).ok();
    at_box(alice, &second).failed().says(&["is not valid"]);
    at_box(bob, &bobs).ok();
    at_box(bob, &proven).ok();
}

pub fn two_members_who_share_use_each_others_paths_until_one_of_them_stops(stock: Stock) {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let (alice, bob) = (&shared_box.machine("alice", stock), &shared_box.machine("bob", stock));
    let time = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let share =
        |alices: &[&str], bobs: &[&str]| time.block_on(shared_box.share(&[("alice", alices), ("bob", bobs)]));
    let base = Drv::new("base", "echo base > $out");
    let path = claim(alice, &base);
    share(&["bob"], &[]);
    at_box(bob, &path).failed().says(&["is not valid"]);
    share(&["bob"], &["alice"]);
    at_box(bob, &path).ok();
    bob.run(["copy", "--no-check-sigs", "--from", bob.store(), &path]).ok();
    // Bob uploads a path that refers to it; so it is copied to his own.
    let top = claim(bob, &Drv::new("top", "read line < $base; echo $base > $out").input("base", &base));
    share(&[], &["alice"]);
    at_box(alice, &top).failed().says(&["is not valid"]);
    let closure = at_box(bob, &top).ok();
    assert!(closure.stdout.contains(&path), "{closure}");
}
