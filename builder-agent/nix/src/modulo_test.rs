use nix_derivation::{CAHash, ContentAddressMethod, HashAlgorithm, hash_bytes};

use super::*;

fn basic_of(text: &str, name: &str) -> BasicDerivation {
    Derivation::parse(text.as_bytes(), name).expect("a derivation").basic
}

const PLAIN: &str = r#"Derive([("dev","DEV","",""),("out","OUT","","")],[],["/nix/store/8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v-src"],"x86_64-linux","/bin/sh",["-c","a \"b\" \\ \n\t\r"],[("dev","DEV"),("out","OUT"),("x","y")])"#;

/// `PLAIN` with the output paths that it should have.
fn plain() -> String {
    let empty = PLAIN.replace("DEV", "").replace("OUT", "");
    let drv = nix_derivation::Derivation::from_aterm_bytes(empty.as_bytes(), "t").expect("a derivation");
    // The library's own idea of the same hash.
    let hash = drv.hash_output_path_modulo(|_| [0; 32]).expect("a hash").into_ready().expect("ready");
    let path = |name| build_output_path(hash, name, "t").expect("a path").to_absolute_path();
    PLAIN.replace("DEV", &path("dev")).replace("OUT", &path("out"))
}

#[test]
fn text_is_written_as_it_was_read() {
    let text = plain();
    let again = aterm("t", &basic_of(&text, "t"), &BTreeMap::new(), false);
    assert_eq!(String::from_utf8(again).expect("text"), text);
    for (how, name) in [
        (r#"("out","","r:sha256","")"#, "floating"),
        (r#"("out","","text:sha256","")"#, "text"),
        (r#"("out","","","")"#, "deferred"),
        (r#"("out","","git:sha1","impure")"#, "impure"),
    ] {
        let text = format!(r#"Derive([{how}],[],[],"x","/b",[],[("__json","{{\"a\":1}}"),("out","")])"#);
        let again = aterm(name, &basic_of(&text, name), &BTreeMap::new(), false);
        assert_eq!(String::from_utf8(again).expect("text"), text);
    }
}

#[test]
fn a_derivation_that_misnames_its_outputs_is_not_verified() {
    let text = plain();
    assert!(of_basic("t", &basic_of(&text, "t")).expect("hashes").verified);
    let other = "/nix/store/8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v-t";
    let right = basic_of(&text, "t").outputs["out"].path("t", "out").expect("fine").expect("stated");
    for (from, to) in [
        // The path itself, the variable, and both.
        (format!("(\"out\",\"{}\",\"\"", right.to_absolute_path()), format!("(\"out\",\"{other}\",\"\"")),
        (format!("(\"out\",\"{}\")", right.to_absolute_path()), format!("(\"out\",\"{other}\")")),
        (right.to_absolute_path(), other.to_owned()),
    ] {
        let wrong = text.replace(&from, &to);
        assert_ne!(wrong, text);
        assert!(!of_basic("t", &basic_of(&wrong, "t")).expect("hashes").verified, "{wrong}");
    }
}

#[test]
fn a_floating_derivation_with_something_else_in_place_of_its_placeholder_is_not_verified() {
    let with = |value: &str| {
        let text = format!(r#"Derive([("out","","r:sha256","")],[],[],"x","/b",[],[("out","{value}")])"#);
        of_basic("t", &basic_of(&text, "t")).expect("hashes")
    };
    let (right, wrong) = (with(&hash_placeholder("out")), with("/tmp/x"));
    assert_eq!(right.masked, wrong.masked, "the name of the realisation does not tell them apart");
    assert!(right.deferred && right.verified && !wrong.verified);
}

#[test]
fn fixed_outputs_are_known_by_their_contents_alone() {
    let ca = CAHash::from_parts(
        ContentAddressMethod::Flat,
        HashAlgorithm::Sha256,
        hash_bytes(HashAlgorithm::Sha256, b"x").digest_as_bytes(),
    )
    .expect("a content address");
    let mut drv = basic_of(&plain(), "t");
    drv.outputs = [("out".to_owned(), Output::Fixed { ca })].into();
    let one = of_basic("t", &drv).expect("hashes");
    drv.env.insert("url".into(), b"elsewhere".to_vec());
    assert_eq!(of_basic("t", &drv).expect("hashes"), one);
    assert_eq!(one.masked, one.input);
}
