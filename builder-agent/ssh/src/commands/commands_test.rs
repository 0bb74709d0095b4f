use ::nix::BuildMode;
use nix_derivation::{DerivedPath, SingleDerivedPath};

use super::printing::Json;
use super::*;
use daemon::Realise;

const DRV: &str = "/nix/store/22222222222222222222222222222222-x.drv";

/// Commands that other tools run over ssh on a machine that builds: source file, the line as ssh sends it, its meaning
/// here. `docs/design/protocols.md` has the same lines. They come from the sources named, except for three that follow
/// the documentation: common-ssh-store-config.hh, nix-copy-closure.in, and the newer nixos-rebuild's words about roots
/// and temporary folders. Tools that only open a store (deploy-rs, `nix copy`) send the same lines as Nix.
#[rustfmt::skip]
const LINES: &[(&str, &str, Meant)] = &[
    // Nix's stores. Newer versions quote each word.
    ("nix: src/libstore/ssh-store.cc", "nix-daemon --stdio", Meant::Worker),
    ("nix: src/libstore/ssh-store.cc", "'nix-daemon' '--stdio' '--store' 'auto'", Meant::Worker),
    ("nix: src/libstore/legacy-ssh-store.cc", "nix-store --serve --write", Meant::Serve),
    ("nix: src/libstore/legacy-ssh-store.cc", "nix-store --serve --write --store auto", Meant::Serve),
    // `remote-program` may be a path or, since Nix 2.20, several words.
    ("nix: src/libstore/common-ssh-store-config.hh", "/run/current-system/sw/bin/nix-store --serve --write", Meant::Serve),
    ("nix: src/libstore/common-ssh-store-config.hh", "sudo -n nix-daemon --stdio", Meant::Worker),
    ("nix: src/libstore/common-ssh-store-config.hh", "nix --extra-experimental-features nix-command daemon --stdio", Meant::Worker),
    // The perl program up to Nix 2.3, before it was replaced by a copy between stores.
    ("nix: scripts/nix-copy-closure.in", "nix-store --serve --write", Meant::Serve),
    ("hydra: src/hydra-queue-runner/build-remote.cc", "nix-store --serve --write", Meant::Serve),
    ("hydra: src/hydra-queue-runner/build-remote.cc", "nix-store --builders '' --serve --write", Meant::Serve),
    // The older nixos-rebuild: `buildHostCmd`, also with options from its own command line.
    ("nixpkgs: nixos-rebuild.sh", "nix-store -r DRV", Meant::Realise),
    ("nixpkgs: nixos-rebuild.sh", "nix-store -r DRV -k --option sandbox true -j 4 --log-format raw -vv", Meant::Realise),
    ("nixpkgs: nixos-rebuild.sh", "nix-store -r DRV --add-root result --indirect --keep-going", Meant::Realise),
    ("nixpkgs: nixos-rebuild.sh", "nix-store -r DRV --builders '' --cores 2 --show-trace --repair", Meant::Realise),
    ("nixpkgs: nixos-rebuild.sh", "nix-store -r DRV --dry-run", Meant::Realise),
    ("nixpkgs: nixos-rebuild.sh", "env PATH=/nix/store/x-nix/bin:$PATH nix-store -r DRV -j4 --quiet", Meant::Realise),
    ("nixpkgs: nixos-rebuild.sh", "uname -m", Meant::Host),
    // The newer one: nix.py and process.py.
    ("nixpkgs: nixos-rebuild-ng, nix.py", "nix-store --realise DRV", Meant::Realise),
    ("nixpkgs: nixos-rebuild-ng, nix.py", "env -i 'PATH=${PATH-}' nix-store --realise DRV --add-root /tmp/n.1/abc", Meant::Realise),
    ("nixpkgs: nixos-rebuild-ng, nix.py", "env -i PATH=${PATH-} nix-store --realise DRV --max-jobs 4 --fallback", Meant::Realise),
    (
        "nixpkgs: nixos-rebuild-ng, nix.py",
        "nix --extra-experimental-features 'nix-command flakes' build 'DRV^*' --print-out-paths --no-link",
        Meant::Realise,
    ),
    ("nixpkgs: nixos-rebuild-ng, nix.py", "mktemp -d -t nixos-rebuild.XXXXX", Meant::Host),
    ("nixpkgs: nixos-rebuild-ng, nix.py", "readlink -f /tmp/n.1/abc", Meant::Host),
    ("nixpkgs: nixos-rebuild-ng, nix.py", "rm -rf /tmp/n.1", Meant::Host),
    ("nixpkgs: nixos-rebuild-ng, process.py", "pkill --signal SIGINT --full -- 'nix\\-store\\ \\-\\-realise'", Meant::Host),
    // For users other than root, colmena puts `privilegeEscalationCommand` before it.
    ("colmena: src/nix/host/ssh.rs", "nix-store --no-gc-warning --realise DRV", Meant::Realise),
    ("colmena: src/nix/host/ssh.rs", "sudo -H -- nix-store --no-gc-warning --realise DRV", Meant::Realise),
    ("colmena: src/nix/host/ssh.rs", "doas -- nix-store --no-gc-warning --realise DRV", Meant::Realise),
    ("nixinate: flake.nix", "sudo nix-store --realise DRV", Meant::Realise),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Meant {
    Worker,
    Serve,
    Realise,
    Host,
}

fn meant(command: &Command) -> Option<Meant> {
    match command {
        Command::Store(StoreSession::Worker) => Some(Meant::Worker),
        Command::Store(StoreSession::Serve { write: true }) => Some(Meant::Serve),
        Command::Host(HostCommand::Realise(_)) => Some(Meant::Realise),
        Command::Host(_) => Some(Meant::Host),
        _ => None,
    }
}

fn parsed(request: &str) -> Result<Command, String> {
    parse(request.replace("DRV", DRV).as_bytes())
}

fn realised(request: &str) -> Realise {
    match parsed(request) {
        Ok(Command::Host(HostCommand::Realise(realise))) => realise,
        other => panic!("{request}: {other:?}"),
    }
}

fn refusal(request: &str) -> String {
    match parsed(request) {
        Err(line) => line,
        other => panic!("accepted: {request}: {other:?}"),
    }
}

fn all_outputs() -> Vec<DerivedPath> {
    let drv_path = SingleDerivedPath::Opaque(StorePath::from_absolute_path(DRV.as_bytes()).expect("a path"));
    vec![DerivedPath::Built { drv_path, outputs: Vec::new() }]
}

#[test]
fn what_stock_tools_run_over_ssh_is_understood() {
    for (source, request, expected) in LINES {
        let command = parsed(request).unwrap_or_else(|line| panic!("{source}: {line}"));
        assert_eq!(meant(&command), Some(*expected), "{source}: `{request}` is {command:?}");
        if let Command::Host(HostCommand::Realise(realise)) = command {
            assert_eq!(realise.targets, all_outputs(), "{request}");
        }
    }
}

#[test]
fn the_page_about_protocols_has_the_lines_of_the_table_with_their_sources() {
    let page = include_str!("../../../../docs/design/protocols.md");
    for (source, request, _) in LINES {
        let row = page.lines().any(|line| {
            line.starts_with("| `") && line.contains(&format!("`{request}`")) && line.contains(source)
        });
        assert!(row, "docs/design/protocols.md lacks `{request}` of {source}");
    }
}

#[test]
fn the_reference_page_has_a_row_for_each_command_and_no_other() {
    let page = include_str!("../../../../docs/reference/commands.md");
    let (_, table) = page.split_once("| command | for | what it does |\n").expect("the table");
    let listed: Vec<&str> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    let rows = COMMANDS.iter().map(|row| {
        let readers = match row.readers {
            For::People => "people",
            For::Maintainers => "maintainers",
            For::Stores => "stores",
            For::Tools => "tools",
        };
        format!("| `{}` | {readers} | {} |", row.call(), row.help)
    });
    assert_eq!(listed, rows.collect::<Vec<_>>(), "docs/reference/commands.md");
}

#[test]
fn options_mean_the_same_in_any_place() {
    for words in [
        ["nix-store", "--realise", "DRV", "--keep-going", "--timeout 60"],
        ["nix-store", "--timeout 60", "--keep-going", "--realise", "DRV"],
        ["nix-store", "--keep-going", "DRV", "--timeout 60", "-r"],
        ["nix", "--keep-going", "--timeout 60", "build", "DRV"],
        ["nix", "build", "--timeout 60", "DRV", "--keep-going"],
    ] {
        let realise = realised(&words.join(" "));
        assert!(realise.settings.keep_going, "{words:?}");
        assert_eq!(realise.settings.overrides["timeout"], "60", "{words:?}");
        assert_eq!(realise.targets, all_outputs(), "{words:?}");
    }
    for request in ["nix-store --write --quiet --serve", "nix-store -j 4 --write --store '' --serve -vv"] {
        let command = parsed(request).expect("a session");
        assert_eq!(meant(&command), Some(Meant::Serve), "{request}");
    }
    assert_eq!(parsed("nix-store --serve"), Ok(Command::Store(StoreSession::Serve { write: false })));
    assert_eq!(parsed("nix-daemon --store daemon --stdio"), Ok(Command::Store(StoreSession::Worker)));
    // The word after an option with an argument is not an operation, and a word after `--` is not an option.
    assert!(refusal("nix-store --log-format --realise DRV").contains("this box answers"));
    assert!(refusal("nix-store --realise -- --keep-going").contains("`--keep-going` is not a store path"));
}

#[test]
fn settings_are_kept_where_a_build_has_them() {
    let realise = realised("nix-store -r DRV -K -k --timeout 60 --option max-silent-time 5 --check");
    assert!(realise.settings.keep_failed && realise.settings.keep_going && realise.print && !realise.dry_run);
    assert_eq!(realise.settings.max_silent_time, 5);
    assert_eq!(realise.settings.overrides["timeout"], "60");
    assert_eq!(realise.mode, BuildMode::Check);
    assert!(!realised("nix-store -r DRV --option substitute false").settings.use_substitutes);
    assert!(realised("nix-store -r DRV --dry-run").dry_run);
    assert!(!realised("nix build DRV").print, "the newer command prints only when asked");
    assert!(realised("nix build DRV^out --print-out-paths").print);
    assert_eq!(realised("nix-store --add-root /tmp/n.1/abc -r DRV").root.as_deref(), Some("/tmp/n.1/abc"));
}

#[test]
fn the_signing_key_is_asked_for_by_one_word() {
    for request in ["signing-key", " 'signing-key' "] {
        let key = Command::Print(Print::SigningKey(Json { json: false }));
        assert_eq!(parsed(request), Ok(key), "{request}");
    }
    refusal("signing-key --secret");
}

#[test]
fn a_log_is_asked_for_by_any_spelling_of_a_store_path_and_nothing_else() {
    let name = "ib3sh3pcz10wsmavxvkdbayhqivbghlq-hello.drv";
    for path in [name.to_owned(), format!("/nix/store/{name}"), format!("'/nix/store/{name}^out'")] {
        let Ok(Command::Log(path)) = parsed(&format!("log {path}")) else { panic!("refused: {path}") };
        assert_eq!(path.to_basename(), name);
    }
    for request in ["log", "log ../../etc/passwd", "log --now", &format!("log {name} {name}")] {
        refusal(request);
    }
}

#[test]
fn what_the_table_says_of_a_command_is_how_it_is_called() {
    for row in COMMANDS {
        let words = row
            .usage
            .replace(['[', ']'], "")
            .replace("DRV", DRV)
            .replace("PATH", DRV)
            .replace("YYYY-MM", "2026-11")
            .replace("NAME", "timeout")
            .replace("DURATION", "30m")
            .replace("--last N", "--last 5")
            .replace("PERIOD", "day")
            .replace("SIZE", "20G")
            .replace("WHAT", "tag")
            .replace("FORMAT", if row.name == "usage" { "csv" } else { "nixos" });
        let words = words.replace("TEMPLATE", "x.XXXXX");
        let request = format!("{} {words}", row.name);
        assert!(parse(request.as_bytes()).is_ok(), "{request}: {:?}", parse(request.as_bytes()));
    }
    for json in [false, true] {
        let request = if json { "signing-key --json" } else { "signing-key" };
        assert_eq!(parsed(request), Ok(Command::Print(Print::SigningKey(Json { json }))));
    }
    let line = refusal("status --yaml");
    assert!(
        line.contains("unexpected argument '--yaml'") && line.contains("`ssh box status --help`"),
        "{line}"
    );
}

#[test]
fn each_command_for_people_describes_itself() {
    for row in COMMANDS.iter().filter(|row| matches!(row.readers, For::People | For::Maintainers)) {
        let Ok(Command::Print(Print::Text(text))) = parsed(&format!("{} --help", row.name)) else {
            panic!("{} --help", row.name)
        };
        let about = row.help.split(';').next().unwrap_or_default();
        assert!(text.contains(about) && text.contains(&format!("Usage: ssh box {}", row.name)), "{text}");
    }
}

#[test]
fn help_has_a_line_for_each_command_that_people_type_or_write_down() {
    let (text, of_member) = (help::text(false, true), help::text(false, false));
    for row in COMMANDS {
        let shown = of_member.lines().any(|line| line.starts_with(&row.call()));
        assert_eq!(shown, matches!(row.readers, For::People | For::Stores), "{}:\n{of_member}", row.name);
        let listed = text.lines().any(|line| line.starts_with(row.name) && line.ends_with(row.help));
        assert_eq!(listed, row.readers != For::Tools, "{}:\n{text}", row.name);
    }
}

#[test]
fn everything_else_is_refused_in_one_line() {
    for request in [
        "",
        "ls",
        "nix-daemon",
        "nix-daemon --stdio; rm -rf /",
        "nix-daemon --stdio && id",
        "nix-daemon $(id) --stdio",
        "nix-daemon $PATH --stdio",
        "nix-env -p /nix/var/nix/profiles/system --set /nix/store/x",
        "env PATH=$HOME uname -m",
        "env",
        "env LD_PRELOAD=x nix-store -r DRV",
        "sudo",
        "sudo -u root nix-store -r DRV",
        "sudo nix-store --realise DRV && sudo nixos-rebuild switch",
        "uname -a",
        "nix-daemon '--stdio",
        "nix-daemon --stdio --store ssh://elsewhere",
        "nix-daemon --stdio --option sandbox false",
        "nix-daemon --stdio --process-ops",
        "nix-store --serve --write --force",
        "nix-store --serve --write DRV",
        "nix-store --serve --realise DRV",
        "nix-store",
        "nix-store --delete DRV",
        "nix-store --serve --write --store ssh://elsewhere",
        "bash -c 'nix-daemon --stdio'",
        "nix-copy-closure --to elsewhere DRV",
        "nix eval 1",
        "nix",
        "rm -rf /",
        "rm -rf /tmp/",
        "rm -rf /nix/store/x",
        "rm /tmp/x",
        "readlink /tmp/x",
        "test -e DRV",
        "pkill -9 -f nix",
    ] {
        let line = refusal(request);
        assert!(!line.contains('\n') && line.starts_with("cannot "), "{line}");
    }
}

#[test]
fn a_refusal_says_which_word_is_wrong() {
    let outside = format!("nix-store -r {DRV}!../x");
    for (request, why) in [
        ("nix-store -r", "no store path"),
        ("nix-store -r DRV --add-root", "`--add-root` needs an argument"),
        ("nix-store -r DRV --force", "`--force`"),
        ("nix-store --force -r DRV", "`--force`"),
        ("nix-store -r /etc/passwd", "`/etc/passwd`"),
        (outside.as_str(), "is not a store path"),
        ("nix build nixpkgs/hello", "`nixpkgs/hello`"),
        ("mktemp -d -t ../XXXXX", "no template"),
        ("mktemp -d -t no-x", "no template"),
        ("nix-daemon --stdio --store ssh://elsewhere", "remote-store"),
        ("nix-daemon --stdio --option sandbox false", "`--option` is not possible in a session"),
        ("nix-store --gc", "ssh-ng"),
    ] {
        let line = refusal(request);
        assert!(line.contains(why), "{request}: {line}");
    }
}

#[test]
fn refusals_repeat_little_of_the_request_and_no_control_characters() {
    let line = refusal(&format!("a\u{1b}[2J{}", "b".repeat(4000)));
    assert!(line.len() < 400 && !line.contains('\u{1b}'), "{line}");
    assert!(parse(&vec![b'a'; MAX_REQUEST + 1]).is_err());
}
