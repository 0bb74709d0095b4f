//! Command line: `access-manager check` for pull requests, `eval` for people, `export` for other machines, `import` from other
//! shapes, `sync` and `watch` for the box.
//!
//! This file and `commands` do all the talking. Messages go to stderr; rosters and reports to stdout or the file asked
//! for. Exit codes: see [`EXIT_CODES`] and `commands::check::EXIT_CODES`, which `--help` prints.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use access_manager::nix::{self, Limits};
use access_manager::roster;
use clap::{Args, Parser, Subcommand};
use commands::{REFUSED, USAGE, open, print, refuse};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; or, with --fallback, the baked-in roster was put in place because none was ever accepted
  1  something on this machine is in the way (state directory, output file)
  2  wrong arguments; or a repository over http:// or git://, without signed commits
  3  the repository cannot be reached or read; roster.json is as it was
  4  the branch was rewritten and is refused; roster.json is as it was
  5  users.nix is refused; roster.json is as it was. For `import`: it has mistakes, and nothing is written
  6  a commit is not signed as it must be; roster.json is as it was

A mistake in the lines of one member leaves that member out and is no reason to refuse the file, except with --strict
or when nobody else is in it.";

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
    Sync(commands::sync::SyncArgs),
    /// Synchronise again and again, and at once when a webhook asks for it
    Watch(commands::watch::WatchArgs),
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

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Check(args) => commands::check::check(args),
        Command::Eval(args) => eval(&args),
        Command::Export(args) => commands::export::export(&args),
        Command::Import(args) => commands::import::import(&args),
        Command::Sync(args) => commands::sync::sync(args),
        Command::Watch(args) => commands::watch::watch(args),
    }
}

fn eval(args: &EvalArgs) -> ExitCode {
    let Some(file) = args.expr_json.as_deref().or(args.file.as_deref()) else { return ExitCode::from(USAGE) };
    let (source, _, inside) = match open(file, args.root.as_deref()) {
        Ok(opened) => opened,
        Err(code) => return code,
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
