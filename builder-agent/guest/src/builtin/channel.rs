//! `builtin:unpack-channel`: unpacks the single directory of a tarball, and names it after the channel.
//!
//! Source: Nix, src/libstore/builtins/unpack-channel.cc.

use std::fs;
use std::path::Path;

use super::{Outcome, attribute, failed, text, unpacked};

pub fn run(out: &Path) -> Outcome {
    let name = text("channelName")?;
    let source = attribute("src")?;
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(format!(
            "channelName is not allowed to contain filesystem separators, got '{}'",
            name.escape_debug()
        ));
    }
    fs::create_dir_all(out).map_err(failed("create", out))?;
    unpacked::unpack(Path::new(&source), out)?;
    let shown = source.to_string_lossy();
    let mut entries = fs::read_dir(out).map_err(failed("read", out))?;
    let Some(first) = entries.next() else {
        return Err(format!("channel tarball '{shown}' is empty"));
    };
    if entries.next().is_some() {
        return Err(format!("channel tarball '{shown}' contains more than one file"));
    }
    let first = first.map_err(failed("read", out))?.path();
    fs::rename(&first, out.join(&name)).map_err(failed("rename", &first))
}
