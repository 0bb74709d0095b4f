//! Where the checkout, the programs and the fast scratch space are.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the checkout").to_owned()
}

/// The folder cargo builds into, learnt from where this test itself lies (`<target>/release/deps/<test>`).
pub fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own file");
    exe.ancestors().nth(3).expect("tests lie three folders below the target folder").to_owned()
}

/// A program of ours, as `cargo build --release` leaves it.
pub fn program(name: &str) -> PathBuf {
    must_exist(target().join("release").join(name), "tests/scripts/build")
}

/// A file that `netboot-image guest` made.
pub fn guest(name: &str) -> PathBuf {
    must_exist(target().join("guest").join(name), "tests/scripts/build")
}

pub fn script(name: &str) -> PathBuf {
    root().join("tests/scripts").join(name)
}

/// Scratch space in memory: stores make many small files, and some disks are slow at that.
pub fn scratch(name: &str) -> TempDir {
    tempfile::Builder::new().prefix(&format!("e2e-{name}-")).tempdir_in("/dev/shm").expect("/dev/shm is writable")
}

pub fn must_exist(path: PathBuf, made_by: &str) -> PathBuf {
    assert!(path.exists(), "{} is not there\nhint: run {made_by}", path.display());
    path
}
