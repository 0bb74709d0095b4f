//! Any bytes as variables of an ssh client, and of a derivation: what is taken is a setting that the level may set, and
//! the first mistake is one line of bounded length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use roster::settings::{Layers, Level, Variables};

fuzz_target!(|bytes: &[u8]| {
    for level in [Level::Ssh, Level::Derivation] {
        let mut variables = Variables::default();
        for line in bytes.split(|byte| *byte == 0) {
            let end = line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
            let value = line.get(end + 1..).unwrap_or_default();
            variables.take(level, &String::from_utf8_lossy(&line[..end]), value);
        }
        if let Some(wrong) = variables.wrong() {
            assert!(wrong.len() < 2000 && !wrong.contains(['\n', '\r', '\u{1b}']));
        }
        let layer = variables.layer();
        assert_eq!(layer.check(level), Ok(()));
        for (setting, value) in layer.iter() {
            assert_eq!(value.clone().check(setting).as_ref(), Ok(value));
        }
        for settled in Layers::default().with(level, "", &layer).resolve().iter() {
            assert!(settled.votes.len() <= 1);
        }
    }
});
