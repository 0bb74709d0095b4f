//! `access-manager watch`: synchronises again and again, and at once when a webhook asks for it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use access_manager::children;
use access_manager::watch::{self, http, secrets};
use clap::Args;

use super::sync::SourceArgs;
use super::{LOCAL, complain};

/// One attempt runs in a process of its own and is killed after this long: a connection that hangs inside the git library
/// cannot be interrupted otherwise. Longer than the library's own limit for a transfer that moves.
const ATTEMPT: Duration = Duration::from_secs(360);

/// Interval between looks whether an attempt has ended.
const GLANCE: Duration = Duration::from_millis(100);

#[derive(Args)]
pub struct WatchArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Synchronise every so many seconds; failures are reported and tried again
    #[arg(long, value_name = "SECONDS", default_value = "45", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    every: u64,
    /// Answer webhooks on this address, without TLS
    #[arg(long, value_name = "ADDRESS:PORT", requires = "secret_file")]
    listen: Option<SocketAddr>,
    /// The secrets of the webhooks, one in a line
    #[arg(long, value_name = "FILE", requires = "listen")]
    secret_file: Option<PathBuf>,
    /// Write to this file whenever a webhook asks; others can wait for it
    #[arg(long, value_name = "FILE", requires = "listen")]
    touch: Option<PathBuf>,
}

pub fn watch(args: WatchArgs) -> ExitCode {
    let Ok(program) = std::env::current_exe() else {
        return complain(LOCAL, "cannot find this program's own file");
    };
    let (requester, requests) = watch::requests();
    if let (Some(address), Some(file)) = (args.listen, args.secret_file) {
        if let Err(e) = secrets::read(&file) {
            let text = format!("cannot use the secrets of the webhook in {}\n   cause: {e}", file.display());
            return complain(LOCAL, &text);
        }
        let listening =
            TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = match listening {
            Ok(listening) => listening,
            Err(e) => return complain(LOCAL, &format!("cannot listen on {address}\n   cause: {e}")),
        };
        eprintln!("webhooks are answered on {address}");
        std::thread::spawn(move || {
            let Err(e) = http::serve(listener, file, requester);
            eprintln!("error: webhooks are no longer answered\n   cause: {e}");
        });
    }
    let arguments = args.source.arguments();
    watch::watch(Duration::from_secs(args.every), &requests, |asked| {
        if let Some(file) = args.touch.as_ref().filter(|_| asked)
            && let Err(e) = std::fs::write(file, "")
        {
            eprintln!("error: cannot write {}\n   cause: {e}", file.display());
        }
        let mut child = match Command::new(&program).arg("sync").args(&arguments).spawn() {
            Ok(child) => child,
            Err(e) => return eprintln!("error: cannot start {}\n   cause: {e}", program.display()),
        };
        // A child that ends by itself has said what went wrong, if anything did.
        if children::wait(&mut child, ATTEMPT, GLANCE).is_none() {
            eprintln!("error: this attempt took longer than {} s and was ended", ATTEMPT.as_secs());
        }
    })
}
