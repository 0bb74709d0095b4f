//! Globs over names, from the configuration: `*` stands for any number of characters, `?` for one.

use wildmatch::WildMatch;

/// A list of globs.
#[derive(Debug, Clone, Default)]
pub struct Patterns(Vec<WildMatch>);

impl Patterns {
    #[must_use]
    pub fn new(globs: &[String]) -> Self {
        Self(globs.iter().map(|glob| WildMatch::new(glob)).collect())
    }

    /// Whether one of them matches the whole of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|glob| glob.matches(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        for (glob, name, fits) in [
            ("hello", "hello", true),
            ("hello", "hello-2.12", false),
            ("hello-*", "hello-2.12", true),
            ("*-src", "hello-2.12-src", true),
            ("*.tar.*", "a.tar.gz", true),
            ("*.tar.*", "a.tar", false),
            ("*a*a*b", "aaaaaaaaaaaaaab", true),
            ("*a*a*c", "aaaaaaaaaaaaaab", false),
            ("?ello", "hello", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("linux-[56]", "linux-[56]", true),
        ] {
            assert_eq!(Patterns::new(&[glob.to_owned()]).matches(name), fits, "{glob} on {name}");
        }
        assert!(!Patterns::default().matches("anything"));
    }
}
