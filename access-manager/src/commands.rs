//! The commands, a file each, and what they share. `eval` is still in `main.rs`.

pub mod check;
pub mod export;
pub mod import;
pub mod sync;
pub mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use access_manager::source::WorkDir;

pub const LOCAL: u8 = 1;
pub const USAGE: u8 = 2;
pub const UNREACHABLE: u8 = 3;
pub const REWRITTEN: u8 = 4;
pub const REFUSED: u8 = 5;
pub const UNSIGNED: u8 = 6;

/// The top of the repository around `file`, and the file's path in it.
pub fn locate(file: &Path, root: Option<&Path>) -> Result<(PathBuf, String), String> {
    let cannot = |path: &Path, e: std::io::Error| {
        format!("cannot open {}\n   cause: {e}\n    hint: give the path of a users.nix", path.display())
    };
    let full = file.canonicalize().map_err(|e| cannot(file, e))?;
    let root = match root {
        Some(root) => root.canonicalize().map_err(|e| cannot(root, e))?,
        None => full
            .ancestors()
            .skip(1)
            .find(|dir| dir.join(".git").exists())
            .or(full.parent())
            .unwrap_or(Path::new("/"))
            .to_owned(),
    };
    match full.strip_prefix(&root).ok().and_then(Path::to_str) {
        Some(inside) => Ok((root, inside.to_owned())),
        None => Err(format!("{} is not inside {}\n    hint: check --root", file.display(), root.display())),
    }
}

/// The working directory around `file`, its top, and the file's path in it. The error was printed.
pub fn open(file: &Path, root: Option<&Path>) -> Result<(WorkDir, PathBuf, String), ExitCode> {
    let (root, inside) = locate(file, root).map_err(|message| complain(LOCAL, &message))?;
    match WorkDir::new(&root) {
        Ok(source) => Ok((source, root, inside)),
        Err(e) => Err(complain(LOCAL, &format!("cannot open {}\n   cause: {e}", root.display()))),
    }
}

/// A reader that stops early (`| head`) is not an error.
pub fn print(text: &str) -> ExitCode {
    use std::io::Write;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(LOCAL, &format!("cannot write: {e}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

pub fn refuse(diagnostic: &access_manager::diag::Diagnostic) -> ExitCode {
    eprintln!("{diagnostic}");
    ExitCode::from(REFUSED)
}

pub fn complain(code: u8, message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(code)
}
