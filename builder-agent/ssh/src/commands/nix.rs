//! Parses the words of `nix-store`, `nix-daemon` and `nix` as tools run them over ssh: an operation, and options before
//! and after it, as Nix takes them.
//!
//! One table lists for every option the number of words that belong to it and its treatment. Options without a meaning
//! on a box, or whose value a member's limits decide, are parsed and dropped, because tools pass on all options they
//! got. Options and operations that are not in the table are refused.
//! Not here: running the command (`daemon`), and quoting (`commands`).

use nix::BuildMode;
use nix_derivation::{DerivedPath, SingleDerivedPath, StorePath};

use daemon::{HostCommand, Realise};

use super::{Command, StoreSession, Wrong, shown};

/// The treatment of an option.
#[derive(Clone, Copy)]
enum Meaning {
    /// Dropped, with this many words after it.
    Dropped(usize),
    /// The word after it is the value of this setting.
    Setting(&'static str),
    /// The two words after it are the name and the value of a setting.
    Option,
    /// The store to open; the box has only one.
    Store,
    KeepGoing,
    KeepFailed,
    Check,
    Repair,
    DryRun,
    AddRoot,
    Print,
}

use Meaning::{AddRoot, Check, Dropped, DryRun, KeepFailed, KeepGoing, Print, Repair, Setting, Store};

/// The options of Nix 2.8 to 2.34 (libmain: shared.cc, common-args.cc; nix-store.cc; libcmd: installables.cc) that
/// tools have a reason to pass on.
const OPTIONS: &[(&str, Meaning)] = &[
    ("--keep-going", KeepGoing),
    ("-k", KeepGoing),
    ("--keep-failed", KeepFailed),
    ("-K", KeepFailed),
    ("--check", Check),
    ("--rebuild", Check),
    ("--repair", Repair),
    ("--dry-run", DryRun),
    ("--add-root", AddRoot),
    ("--print-out-paths", Print),
    ("--option", Meaning::Option),
    ("--store", Store),
    ("--timeout", Setting("timeout")),
    ("--max-silent-time", Setting("max-silent-time")),
    ("--indirect", Dropped(0)),
    ("--no-gc-warning", Dropped(0)),
    ("--no-link", Dropped(0)),
    ("--no-out-link", Dropped(0)),
    ("--quiet", Dropped(0)),
    ("--verbose", Dropped(0)),
    ("--fallback", Dropped(0)),
    ("--print-build-logs", Dropped(0)),
    ("-L", Dropped(0)),
    ("--no-build-output", Dropped(0)),
    ("-Q", Dropped(0)),
    ("--show-trace", Dropped(0)),
    ("--refresh", Dropped(0)),
    ("--impure", Dropped(0)),
    ("--offline", Dropped(0)),
    ("--no-net", Dropped(0)),
    ("--accept-flake-config", Dropped(0)),
    ("--no-build-hook", Dropped(0)),
    ("--use-substitutes", Dropped(0)),
    ("--ignore-unknown", Dropped(0)),
    ("--readonly-mode", Dropped(0)),
    ("--no-update-lock-file", Dropped(0)),
    ("--no-write-lock-file", Dropped(0)),
    ("--no-registries", Dropped(0)),
    ("--recreate-lock-file", Dropped(0)),
    ("--commit-lock-file", Dropped(0)),
    ("--max-jobs", Dropped(1)),
    ("-j", Dropped(1)),
    ("--cores", Dropped(1)),
    ("--builders", Dropped(1)),
    ("-I", Dropped(1)),
    ("--include", Dropped(1)),
    ("--log-format", Dropped(1)),
    ("--extra-experimental-features", Dropped(1)),
    ("--experimental-features", Dropped(1)),
    ("--out-link", Dropped(1)),
    ("-o", Dropped(1)),
    ("--arg", Dropped(2)),
    ("--argstr", Dropped(2)),
    ("--update-input", Dropped(1)),
    ("--override-input", Dropped(2)),
];

/// The command of `nix-store` with these words, or the mistake in them.
pub(super) fn nix_store(words: &[&str]) -> Result<Command, Wrong> {
    let (mut realise, mut serve, mut write) = (false, false, false);
    let read = read(words, true, |word| {
        match word {
            "-r" | "--realise" | "--realize" => realise = true,
            "--serve" => serve = true,
            "--write" => write = true,
            _ => return false,
        }
        true
    });
    match (realise, serve) {
        (true, false) if !write => read?.realise(),
        (false, true) => read?.session(StoreSession::Serve { write }),
        _ => Err(Wrong::Unknown),
    }
}

/// The command of `nix-daemon`, or of `nix daemon`.
pub(super) fn nix_daemon(words: &[&str]) -> Result<Command, Wrong> {
    let mut stdio = false;
    let read = read(words, true, |word| {
        let is_stdio = word == "--stdio";
        stdio |= is_stdio;
        is_stdio
    });
    match stdio {
        true => read?.session(StoreSession::Worker),
        false => Err(Wrong::Unknown),
    }
}

/// The command of `nix`: its subcommand is the first word that is neither an option nor belongs to one.
pub(super) fn nix(words: &[&str]) -> Result<Command, Wrong> {
    let mut at = 0;
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        at += 1 + operands(word);
    }
    let Some(subcommand) = words.get(at) else { return Err(Wrong::Unknown) };
    let rest = [&words[..at], &words[at + 1..]].concat();
    match *subcommand {
        "build" => read(&rest, false, |_| false)?.realise(),
        "daemon" => nix_daemon(&rest),
        _ => Err(Wrong::Unknown),
    }
}

fn meaning(word: &str) -> Option<Meaning> {
    let named = OPTIONS.iter().find(|(option, _)| *option == word).map(|(_, meaning)| *meaning);
    named.or_else(|| (is_verbose(word) || is_jobs(word)).then_some(Dropped(0)))
}

/// The number of words after an option that belong to it.
fn operands(word: &str) -> usize {
    match meaning(word) {
        Some(Dropped(count)) => count,
        Some(Setting(_) | Store | AddRoot) => 1,
        Some(Meaning::Option) => 2,
        _ => 0,
    }
}

/// The words of a command besides its operation.
struct Said<'a> {
    realise: Realise,
    targets: Vec<&'a str>,
    store: Option<&'a str>,
    /// An option that changes how builds are made; a session cannot take one.
    changes: Option<&'a str>,
}

/// Reads words in any order; `is_operation` recognises operations. `print`: the older program prints without being
/// asked.
fn read<'a>(
    words: &[&'a str],
    print: bool,
    mut is_operation: impl FnMut(&str) -> bool,
) -> Result<Said<'a>, String> {
    let mut said = Said {
        realise: Realise { print, ..Realise::default() },
        targets: Vec::new(),
        store: None,
        changes: None,
    };
    said.realise.settings.verbose_build = true;
    said.realise.settings.use_substitutes = true;
    let mut wrong = None;
    let mut rest = words.iter().copied();
    let mut options = true;
    while let Some(word) = rest.next() {
        if options && word == "--" {
            options = false;
            continue;
        }
        if !options || !word.starts_with('-') {
            said.targets.push(word);
            continue;
        }
        if is_operation(word) {
            continue;
        }
        let Some(meaning) = meaning(word) else {
            // Parsing goes on, because the operation decides which program reports the mistake.
            wrong.get_or_insert_with(|| format!("the option `{}` is not supported here", shown(word)));
            continue;
        };
        let settings = &mut said.realise.settings;
        let mut operand = || rest.next().ok_or_else(|| format!("`{word}` needs an argument"));
        if !matches!(meaning, Dropped(_) | Store) {
            said.changes = Some(word);
        }
        match meaning {
            Dropped(count) => {
                for _ in 0..count {
                    operand()?;
                }
            }
            Setting(name) => drop(settings.overrides.insert(name.to_owned(), operand()?.to_owned())),
            Meaning::Option => {
                let name = operand()?.to_owned();
                settings.overrides.insert(name, operand()?.to_owned());
            }
            Store => said.store = Some(operand()?),
            KeepGoing => settings.keep_going = true,
            KeepFailed => settings.keep_failed = true,
            Check => said.realise.mode = BuildMode::Check,
            Repair => said.realise.mode = BuildMode::Repair,
            DryRun => said.realise.dry_run = true,
            AddRoot => said.realise.root = Some(operand()?.to_owned()),
            Print => said.realise.print = true,
        }
    }
    match wrong {
        Some(wrong) => Err(wrong),
        None => Ok(said),
    }
}

impl Said<'_> {
    /// A session of one of the protocols. The only option is the name of the one store.
    fn session(self, kind: StoreSession) -> Result<Command, Wrong> {
        self.the_one_store()?;
        match (self.targets.first().copied(), self.changes) {
            (None, None) => Ok(Command::Store(kind)),
            (Some(word), _) | (None, Some(word)) => {
                Err(Wrong::Words(format!("`{}` is not possible in a session", shown(word))))
            }
        }
    }

    fn realise(self) -> Result<Command, Wrong> {
        self.the_one_store()?;
        let mut realise = self.realise;
        for word in self.targets {
            realise.targets.push(target(word)?);
        }
        let settings = &mut realise.settings;
        if settings.overrides.get("substitute").is_some_and(|value| value == "false") {
            settings.use_substitutes = false;
        }
        if let Some(silent) = settings.overrides.get("max-silent-time").and_then(|text| text.parse().ok()) {
            settings.max_silent_time = silent;
        }
        match realise.targets.is_empty() {
            true => Err(Wrong::Words("no store path to build was named".into())),
            false => Ok(Command::Host(HostCommand::Realise(realise))),
        }
    }

    fn the_one_store(&self) -> Result<(), String> {
        match self.store {
            None | Some("" | "auto" | "daemon") => Ok(()),
            Some(store) => Err(format!(
                "this box has one store, `--store {}` cannot be chosen; leave `remote-store` unset",
                shown(store)
            )),
        }
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

/// A store path; a plain derivation, or one with `!` or `^`, means its outputs.
fn target(word: &str) -> Result<DerivedPath, String> {
    let wrong =
        || format!("`{}` is not a store path; evaluate on the client and copy the derivation", shown(word));
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
