//! `access-manager import`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use access_manager::import::{self, ImportError, Imported, KeyFiles};
use clap::Args;

use super::{LOCAL, REFUSED, complain, open, print};

/// Of the new roster: public, as the old one.
const MODE: u32 = 0o644;

#[derive(Args)]
pub struct ImportArgs {
    /// The roster, in any shape
    #[arg(value_name = "USERS.NIX", default_value = "users.nix")]
    file: PathBuf,
    /// Replace the file by the new text, which names the same key files
    #[arg(long, conflicts_with = "out")]
    write: bool,
    /// Write users.nix and copies of the key files into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Top of the repository, above which nothing may be named [default: the git repository around the file]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

pub fn import(args: &ImportArgs) -> ExitCode {
    let (source, root, file) = match open(&args.file, args.root.as_deref()) {
        Ok(opened) => opened,
        Err(code) => return code,
    };
    let keys = if args.out.is_some() { KeyFiles::Copied } else { KeyFiles::InPlace };
    let imported = match import::import(&source, &file, keys) {
        Ok(imported) => imported,
        Err(error @ (ImportError::Refused(_) | ImportError::Mistakes(_))) => {
            eprintln!("{error}\nerror: the roster has mistakes, so it is not rewritten; correct them first");
            return ExitCode::from(REFUSED);
        }
        Err(error @ (ImportError::Differs(_) | ImportError::Unreadable(_))) => {
            return complain(REFUSED, &error.to_string());
        }
        Err(error @ ImportError::KeyFile { .. }) => return complain(LOCAL, &error.to_string()),
    };
    for warning in &imported.warnings {
        eprintln!("warning: {warning}");
    }
    match (&args.out, args.write) {
        (None, false) => print(&imported.text),
        (None, true) => {
            let path = root.join(&file);
            match atomic_file::write(&path, imported.text.as_bytes(), MODE) {
                Ok(()) => done(&path, &imported),
                Err(e) => complain(LOCAL, &format!("cannot write {}\n   cause: {e}", path.display())),
            }
        }
        (Some(folder), _) => match write_all(folder, &imported) {
            Ok(()) => done(&folder.join("users.nix"), &imported),
            Err(message) => complain(LOCAL, &message),
        },
    }
}

fn done(path: &Path, imported: &Imported) -> ExitCode {
    eprintln!(
        "wrote {}: the same {} members, compared after evaluating both",
        path.display(),
        imported.members
    );
    ExitCode::SUCCESS
}

/// Makes new files only, and replaces none that is in the folder.
fn write_all(folder: &Path, imported: &Imported) -> Result<(), String> {
    let users = ("users.nix".to_owned(), imported.text.clone());
    for (name, text) in imported.files.clone().into_iter().chain([users]) {
        let path = folder.join(&name);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
            std::fs::File::create_new(&path)?.write_all(text.as_bytes())
        };
        write().map_err(|e| {
            format!("cannot write {}\n   cause: {e}\n    hint: choose a new folder for --out", path.display())
        })?;
    }
    Ok(())
}
