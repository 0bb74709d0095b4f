//! The words of `nixos-rebuild --build-host`, read strictly: a command, its options, and nothing that is not in a table.
//!
//! Options that mean nothing on a box, or that a member's limits decide, are read and dropped, because nixos-rebuild
//! passes on whatever it was started with.
//! Not here: what the commands do (`daemon::host_command`).

use nix_derivation::{DerivedPath, SingleDerivedPath, StorePath};
use wire::types::BuildMode;

use crate::daemon::{HostCommand, Realise};

/// Options without an argument that are dropped.
const DROPPED: &[&str] = &[
    "--indirect",
    "--no-gc-warning",
    "--no-link",
    "--no-out-link",
    "--quiet",
    "--verbose",
    "--fallback",
    "--print-build-logs",
    "-L",
    "--no-build-output",
    "-Q",
    "--show-trace",
    "--refresh",
    "--impure",
    "--offline",
    "--no-net",
    "--accept-flake-config",
    "--no-build-hook",
    "--use-substitutes",
    "--no-update-lock-file",
    "--no-write-lock-file",
    "--no-registries",
    "--recreate-lock-file",
    "--commit-lock-file",
];

/// Options with this many arguments that are dropped, arguments and all.
const DROPPED_WITH: &[(&str, usize)] = &[
    ("--max-jobs", 1),
    ("-j", 1),
    ("--cores", 1),
    ("--builders", 1),
    ("-I", 1),
    ("--include", 1),
    ("--log-format", 1),
    ("--extra-experimental-features", 1),
    ("--experimental-features", 1),
    ("--out-link", 1),
    ("-o", 1),
    ("--arg", 2),
    ("--argstr", 2),
    ("--update-input", 1),
    ("--override-input", 2),
];

/// Options whose argument becomes a setting.
const SETTINGS: &[(&str, &str)] = &[("--timeout", "timeout"), ("--max-silent-time", "max-silent-time")];

/// Longest name of a temporary folder.
const MAX_TEMPLATE: usize = 100;

/// One of the commands, or why not; `None` if it is none of them at all.
pub(super) fn parse(words: &[&str]) -> Option<Result<HostCommand, String>> {
    // `env PATH=…` before a command says where to look for it, which is never here.
    let words = match words {
        ["env", "-i", path, rest @ ..] | ["env", path, rest @ ..] if path.starts_with("PATH=") => rest,
        _ => words,
    };
    let (program, rest) = words.split_first()?;
    Some(match (program.rsplit('/').next().unwrap_or(program), rest) {
        ("nix-store", ["-r" | "--realise" | "--realize", rest @ ..]) => realise(rest, true),
        ("nix", rest) => {
            let rest = after_features(rest);
            let ["build", rest @ ..] = rest else { return None };
            realise(rest, false)
        }
        ("mktemp", ["-d"]) => make_folder("tmp.XXXXXXXXXX"),
        ("mktemp", ["-d", "-t", template] | ["-t", "-d", template]) => make_folder(template),
        ("readlink", ["-f", link]) => Ok(HostCommand::ReadLink { link: (*link).to_owned() }),
        ("rm", ["-rf", folder]) if in_tmp(folder) => {
            Ok(HostCommand::RemoveFolder { folder: (*folder).to_owned() })
        }
        ("uname", ["-m"]) => Ok(HostCommand::Machine),
        _ => return None,
    })
}

/// Without the options that may stand before `build`.
fn after_features<'a>(mut words: &'a [&'a str]) -> &'a [&'a str] {
    while let ["--extra-experimental-features" | "--experimental-features", _, rest @ ..] = words {
        words = rest;
    }
    words
}

/// `always_print`: the older command prints unasked.
fn realise(words: &[&str], always_print: bool) -> Result<HostCommand, String> {
    let mut realise = Realise { print: always_print, ..Realise::default() };
    realise.settings.verbose_build = true;
    realise.settings.use_substitutes = true;
    let settings = &mut realise.settings;
    let mut words = words.iter().copied();
    let mut options = true;
    while let Some(word) = words.next() {
        let mut argument = || words.next().ok_or_else(|| format!("`{word}` needs an argument"));
        match word {
            "--" if options => options = false,
            _ if !options || !word.starts_with('-') => realise.targets.push(target(word)?),
            "--add-root" => realise.root = Some(argument()?.to_owned()),
            "--print-out-paths" => realise.print = true,
            "--keep-going" | "-k" => settings.keep_going = true,
            "--keep-failed" | "-K" => settings.keep_failed = true,
            "--check" | "--rebuild" => realise.mode = BuildMode::Check,
            "--repair" => realise.mode = BuildMode::Repair,
            "--option" => {
                let (name, value) = (argument()?.to_owned(), argument()?.to_owned());
                settings.overrides.insert(name, value);
            }
            _ if DROPPED.contains(&word) || is_verbose(word) || is_jobs(word) => {}
            _ => {
                if let Some((_, name)) = SETTINGS.iter().find(|(option, _)| *option == word) {
                    settings.overrides.insert((*name).to_owned(), argument()?.to_owned());
                } else if let Some((_, count)) = DROPPED_WITH.iter().find(|(option, _)| *option == word) {
                    for _ in 0..*count {
                        argument()?;
                    }
                } else {
                    return Err(format!("the option `{}` is not understood here", shown(word)));
                }
            }
        }
    }
    if settings.overrides.get("substitute").is_some_and(|value| value == "false") {
        settings.use_substitutes = false;
    }
    if let Some(silent) = settings.overrides.get("max-silent-time").and_then(|text| text.parse().ok()) {
        settings.max_silent_time = silent;
    }
    match realise.targets.is_empty() {
        true => Err("no store path to build was named".into()),
        false => Ok(HostCommand::Realise(realise)),
    }
}

/// `-v`, `-vv` and so on.
fn is_verbose(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b == b'v'))
}

/// `-j4`, `-jauto`.
fn is_jobs(word: &str) -> bool {
    word.strip_prefix("-j").is_some_and(|rest| !rest.is_empty())
}

/// A store path; a derivation alone, with `!` or with `^`, means its outputs.
fn target(word: &str) -> Result<DerivedPath, String> {
    let wrong = || format!("`{}` is not a store path; evaluate at home and copy the derivation", shown(word));
    let (path, outputs) = match word.split_once(['!', '^']) {
        Some((path, outputs)) => (path, Some(outputs)),
        None => (word, None),
    };
    let path = StorePath::from_absolute_path(path.as_bytes()).map_err(|_| wrong())?;
    let outputs = match outputs {
        None if !path.is_derivation() => return Ok(DerivedPath::Opaque(path)),
        None | Some("*") => Vec::new(),
        Some(names) => names.split(',').map(str::to_owned).collect(),
    };
    let sound = |name: &String| StorePath::from_parts([0; 20], name).is_ok();
    if !path.is_derivation() || !outputs.iter().all(sound) {
        return Err(wrong());
    }
    Ok(DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(path), outputs })
}

/// As `mktemp -t`: below `/tmp`, with other letters for the X at the end.
fn make_folder(template: &str) -> Result<HostCommand, String> {
    let prefix = template.trim_end_matches('X');
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let sound = template.len() <= MAX_TEMPLATE
        && template.len() >= prefix.len() + 3
        && prefix.chars().all(plain)
        && !prefix.starts_with("..");
    match sound {
        true => Ok(HostCommand::MakeFolder { prefix: format!("/tmp/{prefix}") }),
        false => Err(format!("`{}` is no template of a folder's name", shown(template))),
    }
}

fn in_tmp(path: &str) -> bool {
    path.strip_prefix("/tmp/").is_some_and(|rest| !rest.is_empty())
}

/// The start of a peer's text, without control characters, for use in our own messages.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let mut out: String = text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().count() > LONGEST {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/22222222222222222222222222222222-x.drv";

    fn realised(words: &[&str]) -> Realise {
        match parse(words) {
            Some(Ok(HostCommand::Realise(realise))) => realise,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn all_outputs() -> Vec<DerivedPath> {
        vec![target(DRV).expect("a target")]
    }

    #[test]
    fn what_both_kinds_of_nixos_rebuild_run_is_understood() {
        // nixos-rebuild.sh, with and without a Nix of its own.
        for words in [
            &["nix-store", "-r", DRV][..],
            &["nix-store", "-r", DRV, "-k", "--option", "sandbox", "true", "-j", "4", "--log-format", "raw"],
            &["env", "PATH=/nix/store/x-nix/bin:$PATH", "nix-store", "-r", DRV, "-j4", "-vv"],
        ] {
            let realise = realised(words);
            assert_eq!(realise.targets, all_outputs());
            assert!(realise.print && realise.root.is_none());
        }
        // nixos-rebuild-ng: classic and flake.
        let words =
            ["env", "-i", "PATH=${PATH-}", "nix-store", "--realise", DRV, "--add-root", "/tmp/n.1/abc"];
        assert_eq!(realised(&words).root.as_deref(), Some("/tmp/n.1/abc"));
        let flake = format!("{DRV}^*");
        let features = ["nix", "--extra-experimental-features", "nix-command flakes", "build"];
        let words = [&features[..], &[&flake, "--print-out-paths", "--no-link"]].concat();
        let realise = realised(&words);
        assert_eq!((realise.targets, realise.print), (all_outputs(), true));
        for (words, command) in [
            (
                &["mktemp", "-d", "-t", "nixos-rebuild.XXXXX"][..],
                HostCommand::MakeFolder { prefix: "/tmp/nixos-rebuild.".into() },
            ),
            (&["readlink", "-f", "/tmp/n.1/abc"], HostCommand::ReadLink { link: "/tmp/n.1/abc".into() }),
            (&["rm", "-rf", "/tmp/n.1"], HostCommand::RemoveFolder { folder: "/tmp/n.1".into() }),
            (&["uname", "-m"], HostCommand::Machine),
        ] {
            assert_eq!(parse(words), Some(Ok(command)));
        }
    }

    #[test]
    fn settings_are_kept_where_a_build_has_them() {
        let realise = realised(&[
            "nix-store",
            "-r",
            DRV,
            "-K",
            "-k",
            "--timeout",
            "60",
            "--option",
            "max-silent-time",
            "5",
            "--check",
        ]);
        assert!(realise.settings.keep_failed && realise.settings.keep_going);
        assert_eq!(realise.settings.max_silent_time, 5);
        assert_eq!(realise.settings.overrides["timeout"], "60");
        assert_eq!(realise.mode, BuildMode::Check);
    }

    #[test]
    fn everything_else_is_none_of_these_or_says_why_not() {
        for words in [
            &["rm", "-rf", "/"][..],
            &["rm", "-rf", "/tmp/"],
            &["rm", "-rf", "/nix/store/x"],
            &["rm", "/tmp/x"],
            &["readlink", "/tmp/x"],
            &["env", "LD_PRELOAD=x", "nix-store", "-r", DRV],
            &["nix-store", "--delete", DRV],
            &["nix-env", "-p", "/nix/var/nix/profiles/system", "--set", DRV],
            &["nix", "eval", "1"],
            &["nix"],
            &["test", "-e", DRV],
            &["env"],
            &[],
        ] {
            assert_eq!(parse(words), None, "{words:?}");
        }
        for (words, why) in [
            (&["nix-store", "-r"][..], "no store path"),
            (&["nix-store", "-r", DRV, "--add-root"], "needs an argument"),
            (&["nix-store", "-r", DRV, "--force"], "`--force`"),
            (&["nix-store", "-r", "/etc/passwd"], "`/etc/passwd`"),
            (&["nix-store", "-r", &format!("{DRV}!../x")], "is not a store path"),
            (&["nix", "build", "nixpkgs#hello"], "`nixpkgs#hello`"),
            (&["mktemp", "-d", "-t", "../XXXXX"], "no template"),
            (&["mktemp", "-d", "-t", "no-x"], "no template"),
        ] {
            match parse(words) {
                Some(Err(message)) => assert!(message.contains(why), "{words:?}: {message}"),
                other => panic!("{words:?}: {other:?}"),
            }
        }
    }
}
