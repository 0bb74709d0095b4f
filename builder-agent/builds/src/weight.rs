//! Estimates the memory that a derivation takes, from one pass over its text and before it is parsed.
//!
//! A list of many short strings takes twenty times its text; a script in one variable takes its text. So the parts are
//! counted, each at the most it can take with the allocator's rounding and half-full tree nodes.
//! Not here: whose budget is charged (`study`; for builds, `realise::one`).

/// A string besides its bytes: its header in a list or a tree, and the allocator's overhead.
const STRING: u64 = 64;
/// Two strings in a tree, or an output.
const TUPLE: u64 = 64;
/// A list: the outputs wanted of one input derivation are a tree of their own, whose first node has room for eleven.
const LIST: u64 = 384;

/// Bytes that the derivation in this text takes once it is parsed. Meaningless for a text that is not a derivation.
#[must_use]
pub fn of_text(aterm: &[u8]) -> u64 {
    let (mut strings, mut tuples, mut lists) = (0, 0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in aterm {
        match (in_string, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (true, false, b'"') => in_string = false,
            (true, ..) => {}
            (false, _, b'"') => {
                in_string = true;
                strings += 1;
            }
            (false, _, b'(') => tuples += 1,
            (false, _, b'[') => lists += 1,
            (false, ..) => {}
        }
    }
    aterm.len() as u64 + strings * STRING + tuples * TUPLE + lists * LIST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_and_what_is_inside_of_strings_is_not() {
        let small = br#"Derive([("out","/x","","")],[],[],"x","b",["a"],[])"#;
        assert_eq!(of_text(small), small.len() as u64 + 7 * STRING + 2 * TUPLE + 5 * LIST);
        let script = "(((\\\"[[[\\\\".repeat(1 << 16);
        let long = format!(r#"Derive([("out","/x","","")],[],[],"x","b",["{script}"],[])"#);
        assert_eq!(of_text(long.as_bytes()) - of_text(small), (script.len() - 1) as u64);
    }
}
