//! Builders that are part of Nix: `builtin:buildenv` and `builtin:unpack-channel`.
//!
//! They run inside the sandbox, as the builder: with its user, its files, its limits, and in a fresh image of
//! this program (`exec` of itself), so that a malicious archive can reach nothing of the guest. Attributes
//! come as environment variables, as for any builder. Not here: `builtin:fetchurl`, which needs a network,
//! and a sandbox has none.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::process::ExitCode;

mod buildenv;
mod channel;
mod unpacked;

/// The error is one line for the log.
type Outcome = Result<(), String>;

/// Runs the builtin of this name to its end. It writes to `out`.
pub fn main(name: &str, out: &Path) -> ExitCode {
    let done = match name {
        "buildenv" => buildenv::run(out),
        "unpack-channel" => channel::run(out),
        other => Err(format!("unsupported builtin builder '{other}'")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn attribute(name: &str) -> Result<OsString, String> {
    std::env::var_os(name).ok_or_else(|| format!("attribute '{name}' missing"))
}

fn text(name: &str) -> Result<String, String> {
    attribute(name)?.into_string().map_err(|_| format!("attribute '{name}' is not UTF-8"))
}

fn failed(what: &str, path: impl AsRef<OsStr>) -> impl FnOnce(io::Error) -> String {
    let path = path.as_ref().to_string_lossy().into_owned();
    let what = what.to_owned();
    move |error| format!("cannot {what} '{path}': {error}")
}
