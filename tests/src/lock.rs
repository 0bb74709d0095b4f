//! A lock between processes: nextest runs every test in a process of its own, and all of them use the client
//! trees.

use std::fs::File;
use std::path::Path;

/// Runs `action` while holding the lock file at `path`. The kernel releases it if the process ends.
pub fn locked<T>(path: &Path, action: impl FnOnce() -> T) -> T {
    let dir = path.parent().expect("a file in a folder");
    std::fs::create_dir_all(dir).expect("the lock's folder");
    let file = File::create(path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
    file.lock().unwrap_or_else(|e| panic!("cannot lock {}: {e}", path.display()));
    action()
}
