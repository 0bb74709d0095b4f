use std::path::Path;

use super::keys::{KEYS, markdown};
use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    super::parse::config(text, Path::new("/etc/builder-agent.toml"))
}

fn refusal(text: &str) -> String {
    load(text).expect_err("this must be refused").to_string()
}

#[test]
fn the_example_we_show_to_newcomers_loads() {
    let config = load(error::EXAMPLE).expect("the example in our own error message");
    assert_eq!(config.sandbox.backend, BackendKind::Kvm);
    assert_eq!(config.host_key, Path::new("/var/lib/barnraiser/ssh_host_ed25519_key"));
    assert_eq!(config.limits.max_build.as_secs(), 14400);
}

#[test]
fn unknown_key_is_refused_with_its_value_and_the_accepted_ones() {
    assert_eq!(
        refusal("roster = \"/r\"\n[sandbox]\nbackend = \"kvm\"\nmemory = 4096\n"),
        "/etc/builder-agent.toml:4: unknown key `sandbox.memory` (its value is 4096)\n\
         hint: accepted in [sandbox]: backend, kernel, initrd, guest, shell, cgroup, allow-missing, templates, vcpus, memory-mib"
    );
}

#[test]
fn unknown_section_is_refused_like_an_unknown_key() {
    let message = refusal("roster = \"/r\"\n[proxy]\nuse = true\n");
    assert!(message.contains("unknown key `proxy`"), "{message}");
    assert!(message.contains("accepted at the top: name, listen, roster"), "{message}");
}

#[test]
fn value_out_of_range_names_key_value_and_range() {
    assert_eq!(
        refusal("roster = \"/r\"\n[limits]\nmax-jobs = 0\n"),
        "/etc/builder-agent.toml:3: `limits.max-jobs` is 0, but it must be a whole number from 1 to 4096"
    );
}

#[test]
fn backend_is_one_of_two_words() {
    assert_eq!(
        refusal("roster = \"/r\"\n[sandbox]\nbackend = \"docker\"\n"),
        "/etc/builder-agent.toml:3: `sandbox.backend` is \"docker\", but it must be \"kvm\" or \"namespace\""
    );
}

#[test]
fn nothing_of_the_jail_may_be_missing_unless_it_is_named() {
    use sandbox::kvm::jail::Step;
    let allowed =
        |text: &str| load(&format!("roster = \"/r\"\n{text}")).expect("a good file").sandbox.allow_missing;
    assert_eq!(allowed(""), []);
    assert_eq!(
        allowed("sandbox.allow-missing = [\"landlock\", \"pid-namespace\"]"),
        [Step::Landlock, Step::PidNamespace]
    );
    let message = refusal("roster = \"/r\"\nsandbox.allow-missing = [\"landlock\", \"seccomp\"]\n");
    assert!(message.contains("there is no step 'seccomp'; the steps are cgroup, namespaces"), "{message}");
    let help = KEYS.iter().find(|key| key.name == "sandbox.allow-missing").expect("the key").help;
    assert!(Step::ALL.into_iter().all(|step| help.contains(&format!("`{}`", step.name()))), "{help}");
}

#[test]
fn keys_that_are_none_are_refused_with_what_is_wrong() {
    let message = refusal("roster = \"/r\"\ntrusted-public-keys = [\"cache.example.org-1:AAAA\"]\n");
    assert!(message.contains("the key cache.example.org-1 is not 32 bytes in base64"), "{message}");
}

#[test]
fn relative_paths_are_refused() {
    let message = refusal("roster = \"roster.json\"\n");
    assert!(message.contains("`roster` is \"roster.json\", but it must be an absolute path"), "{message}");
}

#[test]
fn a_key_without_default_must_be_set() {
    let message = refusal("state-dir = \"/s\"\n");
    assert!(message.contains("`roster` is not set, and it has no default"), "{message}");
}

#[test]
fn long_values_are_cut_in_errors() {
    let message = refusal(&format!("roster = \"{}\"\n", "x".repeat(5000)));
    assert!(message.len() < 300, "{message}");
}

#[test]
fn missing_file_is_named_and_an_example_shown() {
    let message = Config::load(Path::new("/nonexistent/agent.toml")).expect_err("absent").to_string();
    assert!(message.starts_with("there is no configuration file at /nonexistent/agent.toml"), "{message}");
    assert!(message.contains("backend = \"kvm\""), "{message}");
}

#[test]
fn guide_has_the_table_of_keys_as_the_code_has_it() {
    let guide = include_str!("../../../docs/reference/settings.md");
    for line in markdown().lines() {
        assert!(
            guide.contains(line),
            "docs/reference/settings.md lacks this line of `builder-agent config keys`:\n{line}"
        );
    }
    let rows = guide.lines().filter(|line| line.starts_with("| `") && line.matches('|').count() == 5).count();
    assert_eq!(rows, KEYS.len(), "docs/reference/settings.md has rows for keys that do not exist");
}

/// Each setting on levels has a key of the box with the same default and a range inside of its own.
#[test]
fn every_setting_on_levels_has_its_key() {
    use super::keys::{Fallback, Kind};
    use roster::settings::{Kind as OfLevels, SETTINGS, Value};
    let defaults = load("roster = \"/r\"\n").expect("the defaults").settings;
    for setting in SETTINGS.iter().filter(|setting| !setting.key.is_empty()) {
        let key =
            KEYS.iter().find(|key| key.name == setting.key).unwrap_or_else(|| panic!("{}", setting.key));
        match (setting.kind, key.kind, key.default) {
            (OfLevels::Flag { default }, Kind::Bool, Fallback::Toml(text)) => {
                assert_eq!(default.to_string(), text, "{}", key.name);
                assert_eq!(defaults.get(setting.id), Some(&Value::Flag(default)));
            }
            (
                OfLevels::Most { smallest, largest, .. } | OfLevels::Amount { smallest, largest, .. },
                Kind::Int { min, max },
                _,
            ) => {
                assert!(smallest <= min && max <= largest);
            }
            (OfLevels::Count { largest, default }, Kind::Int { min: 0, max }, Fallback::Toml(text)) => {
                assert_eq!((default.to_string().as_str(), max), (text, largest), "{}", key.name);
            }
            (OfLevels::Globs, Kind::Globs, _) => {}
            other => panic!("{}: {other:?}", setting.name),
        }
    }
}

#[test]
fn mirrors_have_a_name_and_an_address_that_git_may_fetch() {
    let text = |list: &str| format!("roster = \"/r\"\n[mirrors]\nrepositories = {list}\n");
    assert_eq!(load("roster = \"/r\"\n").expect("the defaults").mirrors.repositories, []);
    let good = load(&text("[\"nixpkgs=https://git.example.org/nixpkgs\"]")).expect("a good file").mirrors;
    assert_eq!(good.repositories[0].name(), "nixpkgs");
    assert_eq!(good.folder("nixpkgs"), Path::new("/var/lib/barnraiser-mirrors/nixpkgs"));
    for (list, why) in [
        ("[\"a=https://x/y\", \"a=https://x/z\"]", "`a` is there twice"),
        ("[\"nixpkgs\"]", "`nixpkgs` is not `NAME=URL`"),
        ("[\"../x=https://x/y\"]", "cannot be the name of a mirror"),
        ("[\"x=ext::reboot\"]", "must begin with one of https://"),
    ] {
        let message = refusal(&text(list));
        assert!(message.contains("`mirrors.repositories` is") && message.contains(why), "{message}");
    }
}

#[test]
fn the_system_level_is_what_the_keys_say() {
    use roster::settings::{Id, Value};
    let text = "roster = \"/r\"\nkeep-going = false\nnever-substitute = [\"a*\"]\n[settings]\nallow-override = false\n\
                [limits]\nmax-build-seconds = 60\n";
    let settings = load(text).expect("a good file").settings;
    assert_eq!(settings.get(Id::KeepGoing), Some(&Value::Flag(false)));
    assert_eq!(settings.get(Id::AllowOverride), Some(&Value::Flag(false)));
    assert_eq!(settings.get(Id::Timeout), Some(&Value::Number(60)));
    assert_eq!(settings.get(Id::NeverSubstitute), Some(&Value::Words(vec!["a*".into()])));
    for globs in ["[\"a/b\"]", "[\"\"]", "[1]", "\"a\""] {
        let message = refusal(&format!("roster = \"/r\"\nnever-substitute = {globs}\n"));
        assert!(
            message.contains("`never-substitute` is") && message.contains("a list of at most 100"),
            "{message}"
        );
    }
}
