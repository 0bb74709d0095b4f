//! The settings of `nix.conf` that a client may send, and how each is treated. A test checks `docs/design/protocols.md`
//! against the table.
//!
//! Stock Nix sends its settings only to daemons on its own machine: none through `ssh-ng://`, and through `ssh://` only
//! those of the serve protocol. Other clients may send any. A refused setting does not fail its request, since the
//! `nix.conf` with that setting was written for another machine; the client gets a line of the log about it.

use wire::types::ClientSettings;

/// Longest value that is kept. All honoured settings are numbers.
const MAX_VALUE: usize = 100;

/// The treatment of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The setting has its usual meaning, within the limits of the box and of the member.
    Honoured,
    /// The setting changes nothing here, and its user would not notice.
    Ignored,
    /// The setting changes nothing here, and its user may expect that it does, so the client gets a warning.
    Refused,
}

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The setting, and its older names.
    pub names: &'static [&'static str],
    pub treatment: Treatment,
    /// The effect of the setting here, or the reason why it has none.
    pub why: &'static str,
}

const fn honoured(names: &'static [&'static str], why: &'static str) -> Rule {
    Rule { names, treatment: Treatment::Honoured, why }
}

const fn ignored(names: &'static [&'static str], why: &'static str) -> Rule {
    Rule { names, treatment: Treatment::Ignored, why }
}

const fn refused(names: &'static [&'static str], why: &'static str) -> Rule {
    Rule { names, treatment: Treatment::Refused, why }
}

/// Every setting with a known treatment. Other settings are ignored.
pub const RULES: &[Rule] = &[
    honoured(
        &["timeout", "build-timeout"],
        "longest time of a build in seconds; the limits of the box and of the member apply too",
    ),
    honoured(
        &["max-silent-time", "build-max-silent-time"],
        "longest time without output in seconds; the same",
    ),
    honoured(
        &["max-log-size", "build-max-log-size"],
        "largest log in bytes; the box's `limits.max-log-mib` applies too",
    ),
    honoured(
        &["keep-going"],
        "whether other builds continue after a failure; if a client does not send it, the setting `keep-going` of its session applies",
    ),
    honoured(&["substitute", "build-use-substitutes"], "whether the box fetches before it builds"),
    ignored(
        &["max-jobs", "build-max-jobs"],
        "the scheduler and the member's limits decide how many builds run at the same time",
    ),
    ignored(
        &["cores", "build-cores"],
        "`NIX_BUILD_CORES` is the number of processors of the build: results are shared, so no client may influence them",
    ),
    ignored(&["fallback", "build-fallback"], "paths that cannot be fetched are always built"),
    ignored(&["verbosity"], "the box sends all messages, and the client selects which to show"),
    ignored(&["experimental-features"], "all features of the box are always enabled"),
    ignored(&["builders", "build-hook", "builders-use-substitutes"], "the box runs all builds itself"),
    ignored(
        &["connect-timeout", "download-attempts", "http-connections", "stalled-download-timeout"],
        "the settings of the box apply",
    ),
    ignored(
        &["narinfo-cache-negative-ttl", "narinfo-cache-positive-ttl", "require-sigs"],
        "the settings of the box apply",
    ),
    refused(&["keep-failed"], "the files of a failed build are removed with its sandbox"),
    refused(&["sandbox", "build-use-sandbox", "build-use-chroot"], "every build runs in a sandbox"),
    refused(
        &[
            "sandbox-paths",
            "build-sandbox-paths",
            "build-chroot-dirs",
            "extra-sandbox-paths",
            "allowed-impure-host-deps",
        ],
        "a build can access its inputs only",
    ),
    refused(
        &["system-features", "extra-platforms"],
        "the configuration of the box decides what it can build",
    ),
    refused(
        &["substituters", "extra-substituters", "binary-caches"],
        "the box uses its own substituters; upload paths that they do not have",
    ),
    refused(
        &["trusted-public-keys", "extra-trusted-public-keys", "binary-cache-public-keys"],
        "the configuration of the box decides which keys it trusts",
    ),
    refused(
        &["post-build-hook", "pre-build-hook", "diff-hook"],
        "programs of a client run in sandboxes only",
    ),
    refused(
        &["impersonate-linux-26", "filter-syscalls", "allow-new-privileges"],
        "the sandbox is the same for all members",
    ),
];

/// The warnings about these settings, a line each.
pub(super) fn warnings(settings: &ClientSettings) -> Vec<String> {
    let rule = |name: &str| RULES.iter().find(|rule| rule.names.contains(&name));
    settings
        .overrides
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(name, _)| rule(name).map(|rule| (name, rule)))
        .filter(|(_, rule)| rule.treatment == Treatment::Refused)
        .map(|(name, rule)| format!("warning: the setting '{name}' has no effect on this box: {}", rule.why))
        .collect()
}

/// The settings that a session keeps: those that the agent looks up. Other settings, of any length, would use memory as
/// long as the session.
pub(super) fn kept(mut settings: ClientSettings) -> ClientSettings {
    let honoured = |name: &str| {
        RULES.iter().any(|rule| rule.treatment == Treatment::Honoured && rule.names.contains(&name))
    };
    settings.overrides.retain(|name, value| honoured(name) && value.len() <= MAX_VALUE);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "<!-- settings: start -->\n";
    const END: &str = "<!-- settings: end -->\n";

    fn table() -> String {
        let mut text = String::from("| setting | also called | here | |\n|---|---|---|---|\n");
        for Rule { names, treatment, why } in RULES {
            let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let how = match treatment {
                Treatment::Honoured => "honoured",
                Treatment::Ignored => "ignored",
                Treatment::Refused => "refused",
            };
            text += &format!("| {} | {} | {how} | {why} |\n", quoted[0], quoted[1..].join(", "));
        }
        text
    }

    #[test]
    fn the_page_lists_exactly_these_settings() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/design/protocols.md");
        let page = std::fs::read_to_string(file).expect("the page");
        let (before, rest) = page.split_once(START).expect("a start mark");
        let (listed, after) = rest.split_once(END).expect("an end mark");
        if std::env::var_os("WRITE_DOCS").is_some() {
            std::fs::write(file, format!("{before}{START}{}{END}{after}", table())).expect("written");
            return;
        }
        assert_eq!(listed, table(), "run this test again with WRITE_DOCS=1 to write the table");
    }

    #[test]
    fn each_name_has_one_treatment() {
        let mut names: Vec<&str> = RULES.iter().flat_map(|rule| rule.names).copied().collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn only_what_is_honoured_is_remembered() {
        let set = [("timeout", "5".to_owned()), ("max-log-size", "9".repeat(101)), ("x", "1".into())];
        let overrides = set.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let kept = kept(ClientSettings { overrides, ..ClientSettings::default() });
        assert_eq!(kept.overrides.into_keys().collect::<Vec<_>>(), ["timeout"]);
    }

    #[test]
    fn only_what_is_refused_and_set_is_told() {
        let set = |pairs: &[(&str, &str)]| ClientSettings {
            overrides: pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..ClientSettings::default()
        };
        assert_eq!(warnings(&set(&[("timeout", "5"), ("max-jobs", "9"), ("unheard-of", "1")])), [""; 0]);
        assert_eq!(warnings(&set(&[("post-build-hook", "")])), [""; 0]);
        let told = warnings(&set(&[("build-use-sandbox", "false")]));
        assert_eq!(
            told,
            [
                "warning: the setting 'build-use-sandbox' has no effect on this box: every build runs in a sandbox"
            ]
        );
    }
}
