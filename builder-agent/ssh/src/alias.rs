//! The name of the box in the ssh configurations that the box prints.

/// The name of the box as a host of an ssh configuration, where spaces and patterns have a meaning.
pub(crate) fn alias(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '-' };
    let alias: String = name.chars().map(plain).collect();
    match alias.trim_matches('-') {
        "" => "box".to_owned(),
        alias => alias.to_owned(),
    }
}
