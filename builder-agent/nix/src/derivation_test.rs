use nix_derivation::store_path::hash_placeholder;
use proptest::prelude::*;

use super::*;

const OUT: &str = "/nix/store/8hx7m9l0k5bmhlkd7w4vcz9v5s6c5c0v-t";
const IN: &str = "/nix/store/ib3sh3pcz10wsmavxvkdbayhqivbghlq-in.drv";

fn text_of(drv: &Derivation) -> Vec<u8> {
    let inputs = drv.inputs.iter().map(|(path, outputs)| (path.to_absolute_path(), outputs.clone()));
    aterm(&drv.name, &drv.basic, &inputs.collect(), false)
}

#[test]
fn a_file_is_parsed_and_written_byte_for_byte() {
    let mut text = format!(
        r#"Derive([("dev","","r:sha256",""),("out","{OUT}","","")],[("{IN}",["dev","out"])],["{OUT}"],"x86_64-linux","/b\\in\"/sh",["-c","\n\r\t{}"],[("a","#,
        hash_placeholder("out")
    )
    .into_bytes();
    text.extend(b"\"D\xfcsseldorf \xff\x00\"),(\"\xfe\",\"b\")])");
    let drv = Derivation::parse(&text, "t").expect("a derivation");
    assert_eq!(drv.basic.builder, b"/b\\in\"/sh");
    assert_eq!(drv.basic.env[&b"a"[..]], b"D\xfcsseldorf \xff\x00");
    assert_eq!(drv.basic.env[&b"\xfe"[..]], b"b");
    assert_eq!(text_of(&drv), text);
}

#[test]
fn what_is_not_a_derivation_says_where() {
    for (text, part) in [
        ("", "no \"Derive(\" at byte 0"),
        ("Derive([", "no \"(\""),
        ("Derive([],[],[],\"x\",\"/b\",[],[])x", "something after the end at byte 31"),
        ("Derive([],[],[],\"x\",\"/b", "a string without an end"),
        ("Derive([],[],[],\"x\",\"/b\\", "a string without an end"),
        ("Derive([(\"a/b\",\"\",\"\",\"\")],[],[],\"x\",\"/b\",[],[])", "the name of an output"),
        ("Derive([(\"out\",\"/x\",\"\",\"\")],[],[],\"x\",\"/b\",[],[])", "at byte"),
        ("DrvWithVersion(\"xp-other\",[],[],[],\"x\",\"/b\",[],[])", "an unknown version"),
    ] {
        let error = Derivation::parse(text.as_bytes(), "t").expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let dynamic = format!("DrvWithVersion(\"xp-dyn-drv\",[],[(\"{IN}\",([],[]))],[],\"x\",\"/b\",[],[])");
    assert_eq!(Derivation::parse(dynamic.as_bytes(), "t"), Err(DerivationError::Dynamic));
}

#[test]
fn outputs_have_a_limit() {
    let outputs: Vec<String> =
        (0..=MAX_OUTPUTS).map(|n| format!("(\"o{n}\",\"\",\"r:sha256\",\"\")")).collect();
    let text = |outputs: &[String]| format!("Derive([{}],[],[],\"x\",\"/b\",[],[])", outputs.join(","));
    assert!(Derivation::parse(text(&outputs[1..]).as_bytes(), "t").is_ok());
    let refused = Derivation::parse(text(&outputs).as_bytes(), "t");
    assert_eq!(refused, Err(DerivationError::TooManyOutputs));
}

/// Where both understand a file they agree; ours understands what is not UTF-8, too.
fn agrees_with_the_library(bytes: &[u8]) {
    let ours = Derivation::parse(bytes, "t");
    let Ok(theirs) = nix_derivation::Derivation::from_aterm_bytes(bytes, "t") else { return };
    let Ok(ours) = ours else { panic!("{ours:?}: {}", String::from_utf8_lossy(bytes)) };
    assert_eq!(&ours.basic.outputs, theirs.outputs());
    assert_eq!(ours.basic.builder, theirs.builder().as_bytes());
    assert_eq!(text_of(&ours), theirs.to_aterm_bytes());
}

proptest! {
    #[test]
    fn any_strings_come_back(
        builder: Vec<u8>,
        args: Vec<Vec<u8>>,
        env: BTreeMap<Vec<u8>, Vec<u8>>,
    ) {
        let basic = BasicDerivation {
            outputs: BTreeMap::from([("out".to_owned(), Output::Deferred)]),
            input_sources: BTreeSet::new(),
            system: b"x86_64-linux".to_vec(),
            builder,
            args,
            env,
        };
        let drv = Derivation { name: "t".into(), basic, inputs: BTreeMap::new() };
        prop_assert_eq!(Derivation::parse(&text_of(&drv), "t"), Ok(drv));
    }

    #[test]
    fn a_damaged_file_gets_the_verdict_of_the_library(at in 0_usize..200, with: [u8; 2]) {
        let mut text = format!(
            r#"Derive([("out","{OUT}","","")],[("{IN}",["out"])],["{OUT}"],"x","/b",["-c"],[("a","b\n"),("out","{OUT}")])"#
        )
        .into_bytes();
        let at = at % (text.len() - 1);
        text[at..at + 2].copy_from_slice(&with);
        // What is not among the characters of a store path the library lets pass in names of outputs.
        if Derivation::parse(&text, "t").is_ok() {
            agrees_with_the_library(&text);
        }
    }
}
