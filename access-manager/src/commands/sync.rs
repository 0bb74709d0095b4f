//! `access-manager sync`: one synchronisation, or one after the other.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use access_manager::sync::{self, Options, Signing, Substitute, SyncError, Synced};
use clap::Args;
use roster::date;

use super::{LOCAL, REFUSED, REWRITTEN, UNREACHABLE, UNSIGNED, USAGE, complain};

/// One attempt of `--watch` runs in a process of its own and is killed after this long: a connection that hangs inside
/// the git library cannot be interrupted otherwise. Longer than the library's own limit for a transfer that moves.
const ATTEMPT: Duration = Duration::from_secs(360);

#[derive(Args)]
pub struct SyncArgs {
    /// Url or path of the roster's git repository
    #[arg(long)]
    repo: String,
    #[arg(long, default_value = "main")]
    branch: String,
    /// Where to write roster.json; roster-status.json is written beside it
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The roster's path in the repository
    #[arg(long, default_value = "users.nix", value_name = "PATH")]
    file: String,
    /// The name of this box: members whose `hosts` do not include it are left out [default: leave out nobody]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Keeps the fetched repository
    #[arg(long, default_value = "/var/lib/barnraiser/access-manager", value_name = "DIR")]
    state_dir: PathBuf,
    /// Keeps the last accepted commit and its roster, where they survive a reboot [default: the state directory]
    #[arg(long, value_name = "DIR")]
    keep_dir: Option<PathBuf>,
    /// A roster.json to use if no roster can be had and none was ever accepted
    #[arg(long, value_name = "PATH")]
    fallback: Option<PathBuf>,
    /// Accept only commits that are signed by these ssh keys (format: ssh-keygen(1), ALLOWED SIGNERS)
    #[arg(long, value_name = "FILE")]
    allowed_signers: Option<PathBuf>,
    /// Accept only commits that are signed by these OpenPGP keys (as `gpg --export` writes them; needs gpgv)
    #[arg(long, value_name = "FILE")]
    gpg_keyring: Option<PathBuf>,
    /// Ssh keys that may sign merge commits, and nothing else
    #[arg(long, value_name = "FILE")]
    merge_signers: Option<PathBuf>,
    /// OpenPGP keys that may sign merge commits, and nothing else: a forge's own key
    #[arg(long, value_name = "FILE")]
    merge_gpg_keyring: Option<PathBuf>,
    /// Accept this commit (40 hexadecimal digits) although the branch was rewritten or a signature is missing
    #[arg(long, value_name = "COMMIT")]
    accept: Option<git2::Oid>,
    /// Do it again every so many seconds, forever; failures are reported and tried again
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400), conflicts_with = "accept")]
    watch: Option<u64>,
}

impl SyncArgs {
    fn options(self) -> Options {
        Options {
            repo: self.repo,
            branch: self.branch,
            file: self.file,
            host: self.host,
            out: self.out,
            keep_dir: self.keep_dir.unwrap_or_else(|| self.state_dir.clone()),
            state_dir: self.state_dir,
            fallback: self.fallback,
            signing: Signing {
                allowed_signers: self.allowed_signers,
                gpg_keyring: self.gpg_keyring,
                merge_signers: self.merge_signers,
                merge_gpg_keyring: self.merge_gpg_keyring,
            },
            accept: self.accept,
        }
    }
}

pub fn sync(args: SyncArgs) -> ExitCode {
    match args.watch {
        Some(seconds) => watch(Duration::from_secs(seconds)),
        None => once(&args.options()),
    }
}

fn once(options: &Options) -> ExitCode {
    let restored = |substitute: &Substitute| {
        if let Substitute::Kept { commit } = substitute {
            eprintln!(
                "there was no {}: using the last accepted roster, commit {}, until the repository can be read",
                options.out.display(),
                short(commit)
            );
        }
    };
    let error = match sync::sync(options, restored) {
        Ok(done) => {
            report(options, &done);
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    let code = match error {
        SyncError::Unreachable { .. } => UNREACHABLE,
        SyncError::NotDescendant { .. } | SyncError::NotTheAccepted { .. } => REWRITTEN,
        SyncError::Refused { .. } => REFUSED,
        SyncError::Unsigned { .. } => UNSIGNED,
        SyncError::OpenTransport { .. } => USAGE,
        SyncError::Local { .. } => LOCAL,
    };
    let message = error.to_string();
    eprintln!("{}{message}", if message.starts_with("error: ") { "" } else { "error: " });
    let Some(fallback) = &options.fallback else { return ExitCode::from(code) };
    match sync::fall_back(options) {
        Ok(Some(_)) => {
            eprintln!(
                "warning: using the roster baked into the image ({}): members who joined or left since then are \
                 not known until the repository can be read",
                fallback.display()
            );
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("warning: keeping the roster that is there: {}", options.out.display());
            ExitCode::from(code)
        }
        Err(e) => complain(LOCAL, &e.to_string()),
    }
}

fn report(options: &Options, done: &Synced) {
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
    let (path, members, commit) = (options.out.display(), done.members, short(&done.commit));
    match done.changed {
        true => {
            let made = date::shown(done.committed);
            eprintln!("wrote {path}: {members} members, commit {commit} of {made}");
        }
        false => eprintln!("nothing new in {path}: {members} members, commit {commit}"),
    }
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
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
