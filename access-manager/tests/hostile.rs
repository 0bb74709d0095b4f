//! No text makes the evaluator panic, overflow its stack, or run without end.

use access_manager::nix::{Limits, to_json};
use access_manager::roster::evaluate;
use access_manager::source::Memory;
use access_manager::ssh_keys;
use proptest::prelude::*;

/// Small, so that thousands of cases run in a second; every limit is reached in some.
fn limits() -> Limits {
    Limits { steps: 20_000, values: 20_000, text: 1 << 16, depth: 200, ..Limits::default() }
}

fn run(text: &str) {
    let files = Memory::with(&[("users.nix", text), ("k.pub", text)]);
    // Either answer is fine; coming back with one is the rule. Messages are rendered, too.
    let _ = evaluate(files, "users.nix", limits()).map_err(|d| d.to_string());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gets_an_answer(text in "\\PC{0,200}") {
        run(&text);
    }

    #[test]
    fn any_soup_of_nix_gets_an_answer(words in prop::collection::vec(prop::sample::select(WORDS), 0..40)) {
        run(&words.join(" "));
    }

    #[test]
    fn any_key_text_gets_an_answer(text in "(ssh-rsa |ssh-ed25519 |from=\"|AAAA|#|\n|,|\\PC){0,40}") {
        for (offset, key) in ssh_keys::parse(&text) {
            prop_assert!(text.is_char_boundary(offset));
            if let Ok(key) = key {
                prop_assert!(!key.line().contains('\n'));
            }
        }
    }
}

const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "let",
    "in",
    "rec",
    "with",
    "inherit",
    "if",
    "then",
    "else",
    "assert",
    "a",
    "b",
    "keys",
    "alice",
    "=",
    ";",
    ":",
    ".",
    ",",
    "?",
    "or",
    "@",
    "...",
    "++",
    "//",
    "+",
    "-",
    "*",
    "/",
    "!",
    "==",
    "&&",
    "->",
    "<",
    "1",
    "2.5",
    "\"x\"",
    "''\n y\n''",
    "\"${a}\"",
    "./k.pub",
    "../x",
    "./${a}",
    "builtins",
    "map",
    "import",
    "throw",
    "builtins.genList",
    "builtins.foldl'",
    "builtins.toJSON",
    "builtins.sort",
    "x: x",
    "{ a, b ? 1 }: a",
    "null",
    "true",
    "a = 1;",
    "alice.keys = ",
    "rec { a = b; b = a; }",
    "let f = x: f x; in f 1",
    "${",
    "''",
    "\"",
];

#[test]
fn chains_of_every_kind_neither_overflow_the_stack_nor_hang() {
    let n = 200_000;
    for piece in [
        "[",
        "(",
        "{a=",
        "!",
        "-",
        "- ",
        "a++",
        "a//",
        "a->",
        "a+",
        "a ",
        "a.b or ",
        "x:",
        "{x}:",
        "if a then ",
        "let a=1;in ",
        "with a;",
        "assert a;",
        "\"${",
        "''${",
        "[(",
        "a?b.",
        "a.${",
        "a.",
        "a@{b}:",
        "rec{",
        "a<|",
        "a|>",
    ] {
        run(&piece.repeat(n / piece.len()));
        run(&format!("{}1", piece.repeat(1_000)));
    }
}

#[test]
fn recursion_in_values_is_bounded_whichever_way_it_goes() {
    for text in [
        "let f = x: f x; in f 1",
        "let f = x: [ (f x) ]; in f 1",
        "let f = x: { a = f x; }; in builtins.toJSON (f 1)",
        "let f = x: [ (f x) ]; in builtins.deepSeq (f 1) 1",
        "let f = x: [ (f x) ]; in f 1 == f 1",
        "let f = x: [ (f x) ]; in f 1 < f 1",
        "let f = x: [ (f x) ]; in toString (f 1)",
        "let s = { __toString = self: self; }; in \"${s}\"",
        "let s = { __functor = self: self; }; in s 1",
        "{ lib, ... }: let f = x: [ (f x) ]; in lib.flatten (f 1)",
        "import ./users.nix",
        "let x = x; in x",
        "let m = { _type = \"if\"; condition = true; content = m; }; in { users.users = m; }",
        "let m = { imports = [ m ]; }; in m",
        "builtins.foldl' (a: _: a + a) \"x\" (builtins.genList (x: x) 1000)",
        "builtins.foldl' (a: _: a ++ a) [ 1 ] (builtins.genList (x: x) 1000)",
    ] {
        let files = || Memory::with(&[("users.nix", text)]);
        to_json(files(), "users.nix", Limits::default()).expect_err(text);
        evaluate(files(), "users.nix", Limits::default()).expect_err(text);
    }
}
