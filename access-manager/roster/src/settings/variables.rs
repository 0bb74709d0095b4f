//! Settings in variables, of an ssh client (`SetEnv`) or of a derivation.
//!
//! `BARN_KEEP_GOING` is the setting `keep-going`. `NIXBUILDNET_KEEP_GOING` means the same, so that a configuration for
//! nixbuild.net works here; if both are set, `BARN_…` counts. Other variables are none of ours. Every byte is a
//! stranger's: names and values have limits, and a wrong one is remembered as the first mistake, in one sentence.

use super::layer::{Layer, too_late};
use super::table::{Level, find};
use super::value::Value;
use crate::words::quoted;

/// The names begin with one of these; an earlier prefix wins.
const PREFIXES: [&str; 2] = ["BARN_", "NIXBUILDNET_"];
/// A name that this box had before there were settings on levels. It counts like the first prefix.
const ALIASES: [(&str, &str); 1] = [("BARNRAISER_REUSE_FAILURES", "reuse-build-failures")];

/// Longest value, in bytes: a list of names is shorter.
const MAX_VARIABLE: usize = 8 << 10;
/// Bytes of all values of one session or derivation, with repetitions. A client can have many sessions that wait for a
/// command.
const MAX_BYTES: usize = 16 << 10;
/// Variables of one session or derivation, with repetitions. There are fewer settings.
const MAX_VARIABLES: usize = 200;

/// The settings in the variables of one client, or of one derivation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// By prefix.
    layers: [Layer; 2],
    count: usize,
    bytes: usize,
    /// The first mistake.
    wrong: Option<String>,
}

/// The index of the prefix, and the name of the setting. `None` for variables that are none of ours.
fn named(variable: &str) -> Option<(usize, String)> {
    if let Some((_, name)) = ALIASES.iter().find(|(alias, _)| *alias == variable) {
        return Some((0, (*name).to_owned()));
    }
    let with = |(index, prefix): (usize, &&str)| Some((index, variable.strip_prefix(prefix)?));
    let (index, rest) = PREFIXES.iter().enumerate().find_map(with)?;
    Some((index, rest.to_ascii_lowercase().replace('_', "-")))
}

/// Whether a variable of this name is a setting, or is meant to be one.
pub fn is_setting(variable: &str) -> bool {
    named(variable).is_some()
}

impl Variables {
    /// Takes a variable; false if it is none of ours. A wrong one is taken too: see [`Variables::wrong`].
    pub fn take(&mut self, level: Level, variable: &str, value: &[u8]) -> bool {
        let Some((prefix, name)) = named(variable) else { return false };
        self.count = self.count.saturating_add(1);
        self.bytes = self.bytes.saturating_add(value.len());
        if self.wrong.is_some() {
            return true;
        }
        let read = || {
            if self.count > MAX_VARIABLES {
                return Err(format!("more than {MAX_VARIABLES} variables are settings"));
            }
            if value.len() > MAX_VARIABLE {
                return Err(format!("it has {} bytes, at most {MAX_VARIABLE} are accepted", value.len()));
            }
            if self.bytes > MAX_BYTES {
                return Err(format!("the settings have more than {MAX_BYTES} bytes together"));
            }
            let setting = find(&name).map_err(|unknown| unknown.in_full())?;
            if !setting.may_be_on(level) {
                return Err(too_late(setting, level));
            }
            let text = str::from_utf8(value).map_err(|_| "it is not text in UTF-8".to_owned())?;
            Ok((setting, Value::from_text(setting, text)?))
        };
        let taken = read().and_then(|(setting, value)| self.layers[prefix].set(setting, value));
        self.wrong = taken.err().map(|why| format!("the variable {} is refused: {why}", quoted(variable)));
        true
    }

    /// The first mistake, as a sentence of one line.
    pub fn wrong(&self) -> Option<&str> {
        self.wrong.as_deref()
    }

    pub fn layer(&self) -> Layer {
        let [own, other] = &self.layers;
        own.or(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Id;

    fn of(pairs: &[(&str, &str)]) -> Variables {
        let mut variables = Variables::default();
        for (name, value) in pairs {
            assert!(variables.take(Level::Ssh, name, value.as_bytes()), "{name}");
        }
        variables
    }

    #[test]
    fn names_of_both_services_are_known_and_our_own_wins_in_any_order() {
        let (ours, theirs) = (("BARN_TIMEOUT", "5"), ("NIXBUILDNET_TIMEOUT", "6"));
        for pairs in [[ours, theirs], [theirs, ours]] {
            assert_eq!(of(&pairs).layer().get(Id::Timeout), Some(&Value::Number(5)));
        }
        assert_eq!(of(&[theirs]).layer().get(Id::Timeout), Some(&Value::Number(6)));
        let alias = of(&[("BARNRAISER_REUSE_FAILURES", "0")]);
        assert_eq!(alias.layer().get(Id::ReuseBuildFailures), Some(&Value::Flag(false)));
        for other in ["LANG", "PATH", "BARN", "NIXBUILDNET", "XBARN_TIMEOUT", ""] {
            assert!(!Variables::default().take(Level::Ssh, other, b"1") && !is_setting(other), "{other}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_by_name_in_one_line() {
        for (name, value, why) in [
            (
                "BARN_KEEP_GOIN",
                "1",
                "`BARN_KEEP_GOIN` is refused: there is no setting `keep-goin`; did you mean",
            ),
            (
                "NIXBUILDNET_CACHE_BUILD_FAILURES",
                "1",
                "the setting `cache-build-failures` has no effect on this box",
            ),
            ("BARN_TIMEOUT", "soon", "the setting `timeout` must be"),
            ("BARN_ALLOW_SHELL", "true", "cannot be set by the ssh environment"),
            ("BARN_", "", "there is no setting ``"),
            ("BARN_\u{1b}[2J\n", "", "there is no setting"),
        ] {
            let variables = of(&[("BARN_KEEP_GOING", "1"), (name, value), ("BARN_X", "")]);
            let line = variables.wrong().expect(name);
            assert!(line.contains(why) && !line.contains(['\n', '\u{1b}']), "{line}");
        }
    }

    #[test]
    fn number_and_size_are_bounded() {
        let long = "a".repeat(MAX_VARIABLE + 1);
        assert!(of(&[("BARN_NEVER_SUBSTITUTE", &long)]).wrong().expect("long").contains("8193 bytes"));
        let name = format!("BARN_{}", "A".repeat(1 << 20));
        assert!(of(&[(&name, "")]).wrong().expect("a long name").len() < 400);
        let mut variables = Variables::default();
        for _ in 0..MAX_VARIABLES {
            variables.take(Level::Ssh, "BARN_TIMEOUT", b"5");
        }
        assert_eq!(variables.wrong(), None);
        variables.take(Level::Ssh, "BARN_TIMEOUT", b"5");
        assert!(variables.wrong().expect("too many").contains("more than 200 variables"));
        let half = "a,".repeat(50) + &" ".repeat(MAX_VARIABLE - 200);
        let few = [("BARN_NEVER_SUBSTITUTE", &*half), ("NIXBUILDNET_NEVER_SUBSTITUTE", &half)];
        assert_eq!(of(&few).wrong(), None);
        let all = [few[0], few[1], ("BARN_ALWAYS_SUBSTITUTE", &half)];
        assert!(of(&all).wrong().expect("too much").contains("more than 16384 bytes together"));
        let mut bytes = Variables::default();
        bytes.take(Level::Derivation, "BARN_TIMEOUT", b"\xff");
        assert!(bytes.wrong().expect("no text").contains("not text"));
    }
}
