//! Places on disk: built programs, caches, and scratch space in memory.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Stores and trees are many small files; on a tmpfs they cost no disk time.
const MEMORY: &str = "/dev/shm/barnraiser-e2e";

/// The checkout.
pub fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project().join("target"), PathBuf::from)
}

/// A program of this workspace, built in the same profile as the running test (`tests/scripts/build`:
/// `release`).
pub fn program(name: &str) -> PathBuf {
    built(target().join(profile()).join(name))
}

/// The folder of the running program's profile: `target/<profile>/deps/<test>`, or `target/<profile>/<program>`.
fn profile() -> String {
    let running = std::env::current_exe().expect("the path of this program");
    let below = running.strip_prefix(target().canonicalize().unwrap_or_else(|_| target()));
    let first = below.ok().and_then(|path| path.components().next());
    first.map_or("release".to_owned(), |name| name.as_os_str().to_string_lossy().into_owned())
}

/// The statically linked program that runs inside sandboxes.
pub fn guest() -> PathBuf {
    built(target().join("x86_64-unknown-linux-gnu/release/guest"))
}

/// The static shell that becomes `/bin/sh` in sandboxes.
pub fn busybox() -> PathBuf {
    let path = PathBuf::from("/usr/bin/busybox");
    assert!(path.exists(), "{} is missing\nhint: apt-get install busybox-static", path.display());
    path
}

fn built(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} has not been built\nhint: run tests/scripts/build first", path.display());
    path.canonicalize().expect("a path that exists")
}

/// The folder in memory, shared by all tests and kept between runs.
pub fn memory() -> PathBuf {
    let path = PathBuf::from(MEMORY);
    std::fs::create_dir_all(&path)
        .unwrap_or_else(|e| panic!("cannot make {MEMORY}: {e}\nhint: the tests keep their stores in memory"));
    path
}

/// A folder in memory that is removed after the test. `what` is a part of its name, to recognise it while the
/// test runs.
pub fn scratch(what: &str) -> TempDir {
    scratch_below(&memory(), what)
}

/// The same below another folder.
pub fn scratch_below(folder: &Path, what: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{what}-"))
        .tempdir_in(folder)
        .unwrap_or_else(|e| panic!("cannot make a folder below {}: {e}", folder.display()))
}
