//! A client's knowledge of a result besides its contents: the deriver and the signatures.

use e2e::clients::{Nix, Protocol, Stock, outputs};
use e2e::drv::Drv;
use e2e::process::{self, Transcript};
use e2e::shared_box::SharedBox;
use serde_json::Value;

/// A result of every kind: of a bare recipe, which is a claim; of a whole derivation; and a fixed output.
fn kinds(note: &str) -> [Drv; 3] {
    let input = Drv::new("input", &format!("echo known {note} > $out"));
    let claim =
        Drv::new("claim", "echo of the input; read line < $input; echo $line > $out").input("input", &input);
    let whole = Drv::new("whole", &format!("echo of nothing; echo {note} > $out"));
    let fixed = Drv::new("fixed", "echo of the hash; printf fixed > $out")
        .attribute("outputHashAlgo", "\"sha256\"")
        .attribute("outputHashMode", "\"flat\"")
        // The hash of the five bytes that the builder writes.
        .attribute("outputHash", "builtins.hashString \"sha256\" \"fixed\"")
        .attribute("note", &format!("\"{note}\""));
    [claim, whole, fixed]
}

/// Output and derivation in the answer of `nix build --json`.
fn made(built: &Transcript) -> (String, String) {
    let answer: Value = serde_json::from_str(&built.stdout).expect("JSON");
    (outputs(built)["out"].clone(), answer[0]["drvPath"].as_str().expect("a path").to_owned())
}

fn deriver(nix: &Nix, path: &str) -> String {
    process::run(nix.command("nix-store").args(["--query", "--deriver", path])).ok().answer().to_owned()
}

fn deriver_at_box(nix: &Nix, path: &str) -> String {
    let said = nix.run(["path-info", "--json", "--store", nix.store(), path]).ok();
    let answer: Value = serde_json::from_str(&said.stdout).expect("JSON");
    // The versions differ in the form: a list, or an object by path.
    let info = answer.get(0).or_else(|| answer.get(path)).unwrap_or_else(|| panic!("no info: {said}"));
    info["deriver"].as_str().unwrap_or_default().to_owned()
}

/// As with a stock builder: `nix log` and `nix-store --query --deriver` on the client's own machine.
pub fn a_result_of_builders_knows_its_derivation(stock: Stock) {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    // The second member gets the existing result, by a derivation with another name.
    for (who, note) in [("alice", "one"), ("bob", "two")] {
        let nix = &shared_box.machine(who, stock);
        for (drv, line) in kinds(note).iter().zip(["of the input", "of nothing", "of the hash"]) {
            let (out, by) = made(&process::run(&mut nix.build_through_builders(&drv.expr())).ok());
            assert_eq!(deriver(nix, &out), by, "{who}, on the client");
            assert_eq!(deriver_at_box(nix, &out), by, "{who}, at the box");
            // A result that existed already has no log at home, as with a stock builder.
            if who == "alice" {
                let log = nix.run(["log", &out]).ok();
                assert!(log.stdout.contains(line), "{log}");
            }
        }
    }
}

/// Two members request the same build by derivations of their own: each sees the name of their own.
pub fn each_member_reads_their_own_derivation(stock: Stock) {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let fixed = |who: &str| {
        Drv::new("same", "printf same > $out")
            .attribute("outputHashAlgo", "\"sha256\"")
            .attribute("outputHashMode", "\"flat\"")
            .attribute("outputHash", "builtins.hashString \"sha256\" \"same\"")
            .attribute("who", &format!("\"{who}\""))
    };
    let mut told = Vec::new();
    for who in ["alice", "bob"] {
        let nix = shared_box.machine(who, stock);
        let (out, by) = made(&process::run(&mut nix.build_through_builders(&fixed(who).expr())).ok());
        told.push((nix, out, by));
    }
    assert_eq!(told[0].1, told[1].1);
    assert_ne!(told[0].2, told[1].2);
    for (nix, out, by) in &told {
        assert_eq!((deriver(nix, out), deriver_at_box(nix, out)), (by.clone(), by.clone()));
    }
}

/// A signature by `nix store sign` is shown to the member who added it, and to nobody else.
pub fn a_signature_that_a_member_adds_is_theirs_alone(stock: Stock) {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let (alice, bob) = (&shared_box.machine("alice", stock), &shared_box.machine("bob", stock));
    let made = process::run(&mut alice.build(&Drv::new("signed", "echo signed > $out").expr())).ok();
    let out = outputs(&made)["out"].clone();
    let secret = alice.run(["key", "generate-secret", "--key-name", "alices-1"]).ok().answer().to_owned();
    std::fs::write(alice.home().join("secret"), &secret).expect("a file");
    std::fs::write(bob.home().join("secret"), &secret).expect("a file");
    let mut convert = alice.command("sh");
    convert.args(["-c", "nix key convert-secret-to-public < /root/secret"]);
    let public = process::run(&mut convert).ok().answer().to_owned();

    let sign = alice.run(["store", "sign", "--store", alice.store(), "--key-file", "/root/secret", &out]);
    if stock.protocol == Protocol::Ssh {
        // The serve protocol has no such operation, and stock Nix says so. An upload includes signatures.
        sign.failed();
        return;
    }
    sign.ok();
    let shown = |nix: &Nix| nix.run(["path-info", "--sigs", "--store", nix.store(), &out]).ok().stdout;
    assert!(shown(alice).contains("alices-1:"), "{}", shown(alice));
    assert!(shown(alice).contains("testbox"), "the box's own is there, too: {}", shown(alice));
    assert!(!shown(bob).contains("alices-1:"), "{}", shown(bob));
    let trusted = ["--option", "trusted-public-keys", &public, "--no-contents", "--sigs-needed", "1"];
    let verify =
        |nix: &Nix| nix.run([&["store", "verify", "--store", nix.store(), &out][..], &trusted].concat());
    verify(alice).ok();
    verify(bob).failed();
    // Another machine of the same member copies with this signature, and could not without it.
    let copy = |nix: &Nix| {
        nix.run(["copy", "--from", nix.store(), &out, "--option", "trusted-public-keys", &public])
    };
    copy(&shared_box.machine("alice", stock)).ok();
    copy(bob).failed();
}

/// The uploader sees signatures and deriver of an upload, also after the path has become Verified.
pub fn an_upload_brings_its_deriver_and_signatures_along(stock: Stock) {
    let shared_box = SharedBox::of(&["alice", "bob"]);
    let (alice, bob) = (&shared_box.machine("alice", stock), &shared_box.machine("bob", stock));
    let drv = kinds("here")[1].expr();
    let (out, by) = made(&alice.run(["build", "--no-link", "--json", "--expr", &drv]).ok());
    let secret = alice.run(["key", "generate-secret", "--key-name", "alices-1"]).ok().answer().to_owned();
    std::fs::write(alice.home().join("secret"), &secret).expect("a file");
    alice.run(["store", "sign", "--key-file", "/root/secret", &out]).ok();
    alice.run(["copy", "--to", alice.store(), &out]).ok();
    let signed = |nix: &Nix| {
        let said = nix.run(["path-info", "--sigs", "--store", nix.store(), &out]).ok();
        said.stdout.contains("alices-1:")
    };
    assert_eq!((signed(alice), deriver_at_box(alice, &out)), (true, by.clone()));
    // The recipe contains everything that this is built from, so the result is Verified.
    process::run(&mut bob.build(&drv)).ok();
    assert_eq!((signed(alice), deriver_at_box(alice, &out)), (true, by));
    assert!(!signed(bob));
}
