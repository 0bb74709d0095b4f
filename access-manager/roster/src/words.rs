//! Strangers' text in messages: quotes and lists it, and suggests corrections.

/// Longest quotation in a message, in characters.
const MAX_QUOTED: usize = 80;

/// A stranger's text as a quotation in a message: in backticks, bounded, without control characters. A backtick in it
/// becomes an apostrophe, so that the text cannot end the quotation, also where the message is shown as Markdown.
pub fn quoted(text: &str) -> String {
    format!("`{}`", printable::start(text, MAX_QUOTED).replace('`', "'"))
}

/// `a`, `b` or `c`.
pub fn one_of<S: AsRef<str>>(names: &[S]) -> String {
    listed(names, "or")
}

/// `a`, `b` and `c`.
pub fn all_of<S: AsRef<str>>(names: &[S]) -> String {
    listed(names, "and")
}

fn listed<S: AsRef<str>>(names: &[S], word: &str) -> String {
    let names: Vec<String> = names.iter().map(|n| quoted(n.as_ref())).collect();
    match names.split_last() {
        None => "nothing".into(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} {word} {last}", rest.join(", ")),
    }
}

/// The candidate a person probably meant, if one is close enough to offer.
pub fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The time is quadratic in the length, so long words and long candidates are left out.
    if word.len() > 40 {
        return None;
    }
    let allowed = 1 + word.chars().count() / 4;
    let word = word.to_lowercase();
    candidates
        .filter(|c| c.len() <= 40)
        .take(2000)
        .map(|c| (strsim::levenshtein(&word, &c.to_lowercase()), c))
        .filter(|&(d, c)| d <= allowed && d < c.chars().count())
        .min_by_key(|&(d, _)| d)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_stranger_do_not_reach_the_terminal() {
        let text = quoted("a\u{1b}[2Jb\u{202e}c");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text:?}");
    }

    #[test]
    fn a_quotation_ends_where_we_end_it() {
        assert_eq!(quoted("a` b `c"), "`a' b 'c`");
    }

    #[test]
    fn a_quotation_is_bounded() {
        assert!(quoted(&"x".repeat(1_000_000)).chars().count() < 100);
    }

    #[test]
    fn a_word_is_offered_only_when_it_is_close() {
        assert_eq!(did_you_mean("key", ["keys", "role"].into_iter()), Some("keys"));
        assert_eq!(did_you_mean("colour", ["keys", "role"].into_iter()), None);
    }
}
