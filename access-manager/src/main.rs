//! Command line: `access-manager check` for pull requests, `eval` for people, `export` for other machines, `import` from other
//! shapes, `sync` for the box.
//!
//! This file and `commands` do all the talking. Messages go to stderr; rosters and reports to stdout or the file asked
//! for. Exit codes: see [`EXIT_CODES`] and `commands::check::EXIT_CODES`, which `--help` prints.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use access_manager::nix::{self, Limits};
use access_manager::roster;
use access_manager::source::WorkDir;
use access_manager::sync::{self, SyncError};
use clap::{Args, Parser, Subcommand};
use commands::{LOCAL, REFUSED, REWRITTEN, UNREACHABLE, USAGE, complain, locate, print, refuse};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; or, with --fallback, the baked-in roster was put in place because there was none
  1  something on this machine is in the way (state directory, output file)
  2  wrong arguments
  3  the repository cannot be reached or read; roster.json is as it was
  4  the branch was rewritten and is refused; roster.json is as it was
  5  users.nix is refused; roster.json is as it was. For `import`: it has mistakes, and nothing is written

A mistake in the lines of one member leaves that member out and is no reason to refuse the file, except with --strict
or when nobody else is in it.";

/// One attempt of `--watch` runs in a process of its own and is killed after this long: a connection that hangs inside
/// the git library cannot be interrupted otherwise. Longer than the library's own limit for a transfer that moves.
const ATTEMPT: Duration = Duration::from_secs(360);

/// Reads the roster (users.nix) and hands it to the agent as roster.json
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check users.nix and say what a change of it does (for pull requests)
    #[command(after_help = commands::check::EXIT_CODES)]
    Check(commands::check::CheckArgs),
    /// Evaluate users.nix and print who it lets in
    #[command(after_help = EXIT_CODES)]
    Eval(EvalArgs),
    /// Print the roster for machines that do not run the agent
    #[command(after_help = EXIT_CODES)]
    Export(commands::export::ExportArgs),
    /// Rewrite a roster of any shape into the recommended one, without changing who gets in
    #[command(after_help = EXIT_CODES)]
    Import(commands::import::ImportArgs),
    /// Fetch the roster's repository and write roster.json
    #[command(after_help = EXIT_CODES)]
    Sync(SyncArgs),
}

#[derive(Args)]
struct EvalArgs {
    /// The file to evaluate
    #[arg(value_name = "USERS.NIX", required_unless_present = "expr_json")]
    file: Option<PathBuf>,
    /// Print roster.json instead of a table
    #[arg(long)]
    json: bool,
    /// Refuse the whole file for any mistake, also one that leaves out a single member
    #[arg(long)]
    strict: bool,
    /// Leave out members who are for other boxes than this one [default: leave out nobody]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Top of the repository, above which nothing may be named [default: the git repository around the file]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Evaluate any expression as `nix-instantiate --eval --strict --json` does (for our tests)
    #[arg(long, hide = true, value_name = "FILE", conflicts_with_all = ["file", "json"])]
    expr_json: Option<PathBuf>,
}

#[derive(Args)]
struct SyncArgs {
    /// Url or path of the roster's git repository
    #[arg(long)]
    repo: String,
    #[arg(long, default_value = "main")]
    branch: String,
    /// Where to write roster.json
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The roster's path in the repository
    #[arg(long, default_value = "users.nix", value_name = "PATH")]
    file: String,
    /// The name of this box: members whose `hosts` do not include it are left out [default: leave out nobody]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Keeps the fetched repository and the last accepted commit
    #[arg(long, default_value = "/var/lib/barnraiser/access-manager", value_name = "DIR")]
    state_dir: PathBuf,
    /// A roster.json to use if no roster can be had and none is there yet
    #[arg(long, value_name = "PATH")]
    fallback: Option<PathBuf>,
    /// Accept this commit (40 hexadecimal digits) although the branch was rewritten
    #[arg(long, value_name = "COMMIT")]
    accept: Option<git2::Oid>,
    /// Do it again every so many seconds, forever; failures are reported and tried again
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400), conflicts_with = "accept")]
    watch: Option<u64>,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Check(args) => commands::check::check(args),
        Command::Eval(args) => eval(&args),
        Command::Export(args) => commands::export::export(&args),
        Command::Import(args) => commands::import::import(&args),
        Command::Sync(args) => match args.watch {
            Some(seconds) => watch(Duration::from_secs(seconds)),
            None => sync_once(args),
        },
    }
}

fn eval(args: &EvalArgs) -> ExitCode {
    let Some(file) = args.expr_json.as_deref().or(args.file.as_deref()) else { return ExitCode::from(USAGE) };
    let (root, inside) = match locate(file, args.root.as_deref()) {
        Ok(found) => found,
        Err(message) => return complain(LOCAL, &message),
    };
    let source = match WorkDir::new(&root) {
        Ok(source) => source,
        Err(e) => return complain(LOCAL, &format!("cannot open {}\n   cause: {e}", root.display())),
    };
    if args.expr_json.is_some() {
        return match nix::to_json(source, &inside, Limits::default()) {
            Ok(json) => print(&format!("{json}\n")),
            Err(diagnostic) => refuse(&diagnostic),
        };
    }
    match roster::evaluate(source, &inside, Limits::default()) {
        Ok(evaluated) => {
            let evaluated = evaluated.for_host(args.host.as_deref());
            for warning in &evaluated.warnings {
                eprintln!("warning: {warning}");
            }
            for mistake in &evaluated.mistakes {
                eprintln!("{}", mistake.diagnostic);
            }
            if args.strict && !evaluated.mistakes.is_empty() {
                return ExitCode::from(REFUSED);
            }
            let roster = evaluated.roster(None, file.display().to_string());
            print(&if args.json { roster.to_json() } else { roster::table(&roster) })
        }
        Err(diagnostic) => refuse(&diagnostic),
    }
}

fn sync_once(args: SyncArgs) -> ExitCode {
    let options = sync::Options {
        repo: args.repo,
        branch: args.branch,
        file: args.file,
        host: args.host,
        out: args.out,
        state_dir: args.state_dir,
        fallback: args.fallback,
        accept: args.accept,
    };
    let error = match sync::sync(&options) {
        Ok(done) => {
            for warning in &done.warnings {
                eprintln!("warning: {warning}");
            }
            for mistake in &done.mistakes {
                eprintln!("{}", mistake.diagnostic);
            }
            let out = done.mistakes.iter().filter(|mistake| mistake.left_out).count();
            if out > 0 {
                eprintln!(
                    "warning: {out} left out because of mistakes in their entries; roster.json has them in `errors`"
                );
            }
            let news = if done.changed { "wrote" } else { "nothing new in" };
            let commit = &done.commit[..12];
            eprintln!("{news} {}: {} members, commit {commit}", options.out.display(), done.members);
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    let code = match error {
        SyncError::Unreachable { .. } => UNREACHABLE,
        SyncError::NotDescendant { .. } | SyncError::NotTheAccepted { .. } => REWRITTEN,
        SyncError::Refused { .. } => REFUSED,
        SyncError::Local { .. } => LOCAL,
    };
    let message = error.to_string();
    eprintln!("{}{message}", if message.starts_with("error: ") { "" } else { "error: " });
    let Some(fallback) = &options.fallback else { return ExitCode::from(code) };
    match sync::fall_back(fallback, &options.out) {
        Ok(true) => {
            eprintln!(
                "warning: using the roster baked into the image ({}): members who joined or left since then are \
                 not known until the repository can be read",
                fallback.display()
            );
            ExitCode::SUCCESS
        }
        Ok(false) => {
            eprintln!("warning: keeping the roster that is there: {}", options.out.display());
            ExitCode::from(code)
        }
        Err(e) => complain(LOCAL, &e.to_string()),
    }
}

/// Repeats this command without `--watch`, each time in a new process.
fn watch(pause: Duration) -> ExitCode {
    let mut arguments = Vec::new();
    let mut given = std::env::args_os().skip(1);
    while let Some(argument) = given.next() {
        if argument == "--watch" {
            given.next();
        } else if !argument.to_string_lossy().starts_with("--watch=") {
            arguments.push(argument);
        }
    }
    let Ok(program) = std::env::current_exe() else {
        return complain(LOCAL, "cannot find this program's own file");
    };
    loop {
        match std::process::Command::new(&program).args(&arguments).spawn() {
            Ok(mut child) => wait_or_kill(&mut child),
            Err(e) => eprintln!("error: cannot start {}\n   cause: {e}", program.display()),
        }
        std::thread::sleep(pause);
    }
}

/// The child has said what went wrong, if anything did.
fn wait_or_kill(child: &mut std::process::Child) {
    let deadline = Instant::now() + ATTEMPT;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            Ok(Some(_)) => return,
            _ => {
                eprintln!("error: this attempt took longer than {} s and was ended", ATTEMPT.as_secs());
                // Either fails only if the child is gone already.
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
        }
    }
}
