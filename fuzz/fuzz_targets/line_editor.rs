//! Any bytes of a terminal: no panic, lines are bounded and printable, and the terminal gets printable text, line ends,
//! bells and our own control sequences.
#![no_main]

use libfuzzer_sys::fuzz_target;
use line_editor::{Editor, Input};

fuzz_target!(|data: (&str, u16, &[u8])| {
    let (prompt, columns, bytes) = data;
    let (mut editor, mut out) = (Editor::new(prompt, columns.into()), String::new());
    for byte in bytes {
        match editor.feed(*byte, &mut out) {
            Some(Input::Line(line)) => {
                assert!(line.chars().count() <= 1000 && printable::line(&line) == line);
            }
            Some(Input::Complete) => editor.insert("status \u{1b}[2J"),
            Some(Input::End) | None => {}
        }
        assert!(editor.before_cursor().chars().count() <= 1000);
    }
    editor.refresh(&mut out);
    let ours = ["\u{1b}[K", "\u{1b}[H", "\u{1b}[2J", "\r", "\n", "\u{7}"];
    let rest = ours.iter().fold(out, |out, ours| out.replace(ours, ""));
    for part in rest.split("\u{1b}[").skip(1) {
        assert!(part.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('C'));
    }
    let text = rest.replace("\u{1b}[", "");
    assert_eq!(printable::line(&text), text);
});
