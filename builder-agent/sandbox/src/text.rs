//! Finds places at which bytes that may be UTF-8 can be cut. Builders, guests and consoles may write any bytes, so
//! nothing is changed or refused here: bytes that are not text may be cut anywhere.

/// Bytes of the longest character.
const LONGEST: usize = 4;

/// The last place up to `at` that is not inside a character. `at` may be the end of the bytes that have arrived so far.
pub fn cut(bytes: &[u8], at: usize) -> usize {
    for back in 1..LONGEST.min(at + 1) {
        let length = match bytes[at - back] {
            // This byte continues a character that begins before it.
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > back { at - back } else { at };
    }
    at
}

/// `bytes` whose beginning was lost, without the rest of a character that began there.
pub fn rest(bytes: &[u8]) -> &[u8] {
    let inside = bytes.iter().take(LONGEST - 1).take_while(|byte| (0x80..=0xbf).contains(*byte)).count();
    &bytes[inside..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        let text = "a\u{e9}\u{20ac}\u{1f33e}z";
        for at in 0..=text.len() {
            let end = cut(text.as_bytes(), at);
            assert!(text.is_char_boundary(end) && end <= at && at - end < LONGEST, "{at}");
            assert!(!text.is_char_boundary(at) || end == at, "{at}");
            let end = std::str::from_utf8(rest(&text.as_bytes()[at..])).unwrap();
            assert!(text.len() - at - end.len() < LONGEST && text.ends_with(end), "{at}");
        }
    }

    #[test]
    fn what_is_no_text_loses_nothing() {
        for bytes in [&b"\x80\x80\x80\x80\x80"[..], b"\xff\xff\xff", b"\xc0\x80\x80", b""] {
            assert_eq!(cut(bytes, bytes.len()), bytes.len());
        }
    }
}
