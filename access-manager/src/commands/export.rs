//! `access-manager export`.

use std::path::PathBuf;
use std::process::ExitCode;

use access_manager::export::{self, Account, Format};
use access_manager::nix::Limits;
use access_manager::roster;
use clap::{Args, ValueEnum};

use super::{REFUSED, open, print, refuse};

#[derive(Args)]
pub struct ExportArgs {
    /// The roster
    #[arg(value_name = "USERS.NIX", default_value = "users.nix")]
    file: PathBuf,
    #[arg(long, value_enum)]
    format: FormatArg,
    /// The account of the machine that all members log in to
    #[arg(long, default_value = "nix-builder", value_name = "NAME")]
    user: Account,
    /// The name of the machine: members whose `hosts` do not include it are left out [default: leave out nobody]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Export nothing if any member has a mistake [default: leave that member out]
    #[arg(long)]
    strict: bool,
    /// Top of the repository, above which nothing may be named [default: the git repository around the file]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    /// A file of keys for sshd
    AuthorizedKeys,
    /// A NixOS module
    Nixos,
    /// A nix-darwin module
    NixDarwin,
}

pub fn export(args: &ExportArgs) -> ExitCode {
    let (source, _, file) = match open(&args.file, args.root.as_deref()) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let evaluated = match roster::evaluate(source, &file, Limits::default()) {
        Ok(evaluated) => evaluated,
        Err(diagnostic) => return refuse(&diagnostic),
    };
    for mistake in &evaluated.mistakes {
        eprintln!("{}", mistake.diagnostic);
    }
    if args.strict && !evaluated.mistakes.is_empty() {
        return ExitCode::from(REFUSED);
    }
    let known = evaluated.warnings.len();
    let evaluated = evaluated.for_host(args.host.as_deref());
    for warning in &evaluated.warnings[known..] {
        eprintln!("warning: {warning}");
    }
    let format = match args.format {
        FormatArg::AuthorizedKeys => Format::AuthorizedKeys,
        FormatArg::Nixos => Format::Nixos,
        FormatArg::NixDarwin => Format::NixDarwin,
    };
    let exported = export::export(&evaluated.members, format, &args.user, ::roster::date::now());
    for warning in &exported.warnings {
        eprintln!("warning: {warning}");
    }
    print(&exported.text)
}
