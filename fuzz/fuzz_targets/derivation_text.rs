//! Any bytes as a `.drv`: no panic; what is accepted is written as a file that says the same, and where the library
//! accepts it, too, both understand the same. And any text as a number of structured attributes.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use nix::derivation::{Derivation, MAX_OUTPUTS, aterm};
use nix::numbers::Number;

fn written(drv: &Derivation) -> Vec<u8> {
    let inputs: BTreeMap<_, _> =
        drv.inputs.iter().map(|(path, outputs)| (path.to_absolute_path(), outputs.clone())).collect();
    aterm("t", &drv.basic, &inputs, false)
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(number) = Number::parse(text)
    {
        assert_eq!(Number::parse(&number.json()).map(Number::json), Some(number.json()));
        number.shell();
    }
    let Ok(ours) = Derivation::parse(bytes, "t") else { return };
    assert!(ours.basic.outputs.len() <= MAX_OUTPUTS);
    let text = written(&ours);
    assert_eq!(Derivation::parse(&text, "t").as_ref(), Ok(&ours));
    if let Ok(theirs) = nix_derivation::Derivation::from_aterm_bytes(bytes, "t") {
        assert_eq!(&ours.basic.outputs, theirs.outputs());
        assert!(ours.basic.args.iter().map(Vec::as_slice).eq(theirs.arguments().iter().map(String::as_bytes)));
        assert!(ours.inputs.keys().eq(theirs.input_derivations().keys()));
    }
});
