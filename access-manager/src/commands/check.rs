//! `access-manager check`.

use std::path::PathBuf;
use std::process::ExitCode;

use access_manager::check::{self, Options, findings::Bound, report};
use clap::{Args, ValueEnum};

use super::{complain, locate, print};

pub const EXIT_CODES: &str = "\
Exit codes:
  0  the roster is fine; there may be warnings
  1  the roster has a mistake: do not merge
  2  it could not be checked: a file cannot be read, the base is unknown, wrong arguments

They are not those of `eval` and `sync`.";

/// The roster has a mistake.
const REFUSE: u8 = 1;
/// Nothing can be said about the roster.
const UNCHECKED: u8 = 2;

#[derive(Args)]
pub struct CheckArgs {
    /// The roster, in a git repository if there is a --base
    #[arg(value_name = "USERS.NIX", default_value = "users.nix")]
    file: PathBuf,
    /// Say what changed since this branch, tag or commit was left
    #[arg(long, value_name = "REV")]
    base: Option<String>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Refuse a member with more than this, such as `maxJobs=8`; may be repeated
    #[arg(long = "bound", value_name = "LIMIT=VALUE")]
    bounds: Vec<Bound>,
    /// With --base: refuse a new member for whom no member vouches (`vouchedBy`)
    #[arg(long, requires = "base")]
    require_vouch: bool,
    /// Top of the repository, above which nothing may be named [default: the git repository around the file]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For a terminal
    Text,
    /// For a comment or a job's summary
    Markdown,
    /// For programs
    Json,
}

pub fn check(args: CheckArgs) -> ExitCode {
    let (root, file) = match locate(&args.file, args.root.as_deref()) {
        Ok(found) => found,
        Err(message) => return complain(UNCHECKED, &message),
    };
    let now = roster::date::now();
    let (bounds, require_vouch) = (args.bounds, args.require_vouch);
    let options = Options { root, file, base: args.base, bounds, require_vouch, now };
    let report = match check::check(&options) {
        Ok(report) => report,
        Err(error) => return complain(UNCHECKED, &error.to_string()),
    };
    let written = print(&match args.format {
        Format::Text => report::text(&report),
        Format::Markdown => report::markdown(&report),
        Format::Json => report::json(&report),
    });
    if written != ExitCode::SUCCESS {
        return ExitCode::from(UNCHECKED);
    }
    if report.refused() { ExitCode::from(REFUSE) } else { ExitCode::SUCCESS }
}
