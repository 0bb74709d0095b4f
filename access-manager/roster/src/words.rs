//! Other people's words inside our sentences: quoted, listed, and corrected.

/// Longest piece of someone else's text in one of our sentences.
const MAX_QUOTED: usize = 80;

/// Someone else's text inside one of our sentences: in backticks, bounded, no control characters. A backtick in it becomes
/// an apostrophe, so that the quotation ends where we end it, also for those who turn the sentence into Markdown.
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
    // Distance is quadratic; nobody mistypes a word of this length.
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
