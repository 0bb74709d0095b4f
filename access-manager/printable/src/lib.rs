//! Makes text of strangers safe to show in messages, logs and terminals.
//!
//! A control character can move the cursor, change a title or hide a line. A bidirectional control makes a terminal
//! show text in another order than that of its bytes. Both are replaced by a visible sign, so that a reader sees that
//! something was there.
//! Not here: quotation marks and the wording around the text.

/// Replaces a character that must not be shown.
const REPLACEMENT: char = '\u{fffd}';

/// Makes one character of a line printable. A tab or line break becomes one space, so that the line keeps its number
/// of characters, and a caret below it still points at the same place.
#[must_use]
pub fn character(c: char) -> char {
    match c {
        '\t' | '\n' | '\r' => ' ',
        c if c.is_control() || is_line_separator(c) || is_bidi(c) => REPLACEMENT,
        c => c,
    }
}

/// The whole text, on one line.
#[must_use]
pub fn line(text: &str) -> String {
    text.chars().map(character).collect()
}

/// The start of a text on one line: at most `longest` characters, then `…` if there is more.
#[must_use]
pub fn start(text: &str, longest: usize) -> String {
    let mut characters = text.chars();
    let mut out: String = characters.by_ref().take(longest).map(character).collect();
    if characters.next().is_some() {
        out.push('…');
    }
    out
}

/// The whole text, with its line breaks.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut out: String = text.lines().flat_map(|text| text.chars().map(character).chain(['\n'])).collect();
    if !text.ends_with('\n') {
        out.pop();
    }
    out
}

/// Unicode's own line and paragraph separators.
fn is_line_separator(c: char) -> bool {
    matches!(c, '\u{2028}' | '\u{2029}')
}

fn is_bidi(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_terminal_or_turns_text_around_is_left() {
        let every = (0..=0x3000).filter_map(char::from_u32);
        let text: String = every.collect();
        for shown in [line(&text), start(&text, usize::MAX), lines(&text)] {
            let left: Vec<char> = shown.chars().filter(|c| c.is_control() && *c != '\n').collect();
            assert!(left.is_empty(), "{left:?}");
            assert!(!shown.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\u{61c}', '\u{2028}', '\u{9b}']));
        }
    }

    #[test]
    fn one_line_stays_one_line_and_as_long_as_it_was() {
        let text = "a\tb\r\nc\u{1b}[2Jd\u{202e}é…";
        assert_eq!(line(text), "a b  c\u{fffd}[2Jd\u{fffd}é…");
        assert_eq!(line(text).chars().count(), text.chars().count());
    }

    #[test]
    fn a_start_is_bounded_and_says_that_it_is_one() {
        assert_eq!(start("hello", 5), "hello");
        assert_eq!(start("hello!", 5), "hello…");
        assert_eq!(start("", 0), "");
        assert_eq!(start(&"\u{7}".repeat(1_000_000), 3), "\u{fffd}\u{fffd}\u{fffd}…");
    }

    #[test]
    fn lines_keep_their_breaks() {
        assert_eq!(lines("a\r\n\u{1b}b\n\nc"), "a\n\u{fffd}b\n\nc");
        assert_eq!(lines("a\n"), "a\n");
        assert_eq!(lines(""), "");
    }
}
