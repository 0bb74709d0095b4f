//! `access-manager sync`: one synchronisation.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use access_manager::sync::{self, Options, Signing, Ssh, Substitute, SyncError, Synced};
use clap::Args;
use roster::date;

use super::{LOCAL, REFUSED, REWRITTEN, UNREACHABLE, UNSIGNED, USAGE, complain};

/// The options of `sync` and `watch`.
#[derive(Args)]
pub struct SourceArgs {
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
    /// Host keys of servers, for a repository over ssh (format: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)
    #[arg(long, value_name = "FILE")]
    known_hosts: Option<PathBuf>,
    /// A private key without passphrase, for a repository over ssh
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
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
}

#[derive(Args)]
pub struct SyncArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Accept this commit (40 hexadecimal digits) although the branch was rewritten or a signature is missing
    #[arg(long, value_name = "COMMIT")]
    accept: Option<git2::Oid>,
}

impl SourceArgs {
    fn options(self, accept: Option<git2::Oid>) -> Options {
        Options {
            repo: self.repo,
            branch: self.branch,
            file: self.file,
            host: self.host,
            out: self.out,
            keep_dir: self.keep_dir.unwrap_or_else(|| self.state_dir.clone()),
            state_dir: self.state_dir,
            fallback: self.fallback,
            ssh: Ssh { known_hosts: self.known_hosts, key: self.ssh_key },
            signing: Signing {
                allowed_signers: self.allowed_signers,
                gpg_keyring: self.gpg_keyring,
                merge_signers: self.merge_signers,
                merge_gpg_keyring: self.merge_gpg_keyring,
            },
            accept,
        }
    }

    /// The same options for a process of `sync`.
    pub fn arguments(self) -> Vec<OsString> {
        // Without `..`: a new option must not be left out, such as one that keeps somebody out.
        let SourceArgs {
            repo,
            branch,
            out,
            file,
            host,
            state_dir,
            keep_dir,
            fallback,
            known_hosts,
            ssh_key,
            allowed_signers,
            gpg_keyring,
            merge_signers,
            merge_gpg_keyring,
        } = self;
        let given = [
            ("--repo", Some(repo.into())),
            ("--branch", Some(branch.into())),
            ("--out", Some(out)),
            ("--file", Some(file.into())),
            ("--host", host.map(PathBuf::from)),
            ("--state-dir", Some(state_dir)),
            ("--keep-dir", keep_dir),
            ("--fallback", fallback),
            ("--known-hosts", known_hosts),
            ("--ssh-key", ssh_key),
            ("--allowed-signers", allowed_signers),
            ("--gpg-keyring", gpg_keyring),
            ("--merge-signers", merge_signers),
            ("--merge-gpg-keyring", merge_gpg_keyring),
        ];
        let given = given.into_iter().filter_map(|(name, value): (_, Option<PathBuf>)| Some((name, value?)));
        // One word each: a value may begin with a dash.
        given
            .map(|(name, value)| {
                let mut word = OsString::from(format!("{name}="));
                word.push(value);
                word
            })
            .collect()
    }
}

pub fn sync(args: SyncArgs) -> ExitCode {
    once(&args.source.options(args.accept))
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
        SyncError::OpenTransport { .. } | SyncError::NoHostKey { .. } => USAGE,
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
