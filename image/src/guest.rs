//! The files that a micro-VM boots: `vmlinux`, `initrd`, and beside them the binaries for the namespace
//! backend.
//!
//! The initrd is not compressed: it is mapped, not downloaded, and unpacking would take time in every build.
//! Format: `/init` is the guest binary, `/bin/busybox` the shell for builds, `/modules/order` lists the files
//! in `/modules` one a line in the order to load them, and `/modules/network` and `/modules/home` those that follow in a machine
//! with a network card, and in a home. Not here: the guest program.

use crate::cpio::Archive;
use crate::kernel::{self, ExtractError};
use crate::kernel_package::KernelPackage;
use crate::modules::{self, ModulesError};
use std::path::{Path, PathBuf};

/// The guest's drivers and file systems; the kernel's flavour decides which are built in.
pub(crate) const GUEST_MODULES: [&str; 8] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_pmem",
    "nd_pmem",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
    "virtio-rng",
];

/// For guests with a network card.
pub(crate) const NETWORK_MODULES: [&str; 1] = ["virtio_net"];

/// For homes.
pub(crate) const HOME_MODULES: [&str; 1] = ["loop"];

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("cannot read the {what} at {path}: {source}{hint}")]
    Read { what: &'static str, path: PathBuf, source: std::io::Error, hint: &'static str },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    /// The guest has no dynamic loader; a dynamic binary would fail there with "no such file".
    #[error("{path} needs a dynamic loader, but a guest has none\nhint:  {hint}")]
    NotStatic { path: PathBuf, hint: &'static str },
    #[error("cannot unpack {path}: {source}")]
    Extract { path: PathBuf, source: ExtractError },
    #[error(transparent)]
    Modules(#[from] ModulesError),
}

/// The command that makes a guest binary.
pub const GUEST_HINT: &str = "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p guest --target x86_64-unknown-linux-gnu";
/// The command that installs a busybox.
pub const BUSYBOX_HINT: &str = "apt-get install busybox-static";

/// Everything of [`assemble`], in memory.
pub struct GuestFiles {
    pub vmlinux: Vec<u8>,
    pub initrd: Vec<u8>,
    pub guest: Vec<u8>,
    pub busybox: Vec<u8>,
    /// The guest's `uname -r`.
    pub kernel_version: String,
}

/// Assembles the guest's files; the same inputs give the same bytes.
pub fn assemble(kernel: &KernelPackage, guest: &Path, busybox: &Path) -> Result<GuestFiles, GuestError> {
    let guest = static_binary("guest binary", guest, GUEST_HINT)?;
    let busybox = static_binary("busybox", busybox, BUSYBOX_HINT)?;
    let image = std::fs::read(&kernel.vmlinuz).map_err(|source| GuestError::Read {
        what: "kernel",
        path: kernel.vmlinuz.clone(),
        source,
        hint: "",
    })?;
    let vmlinux = kernel::vmlinux(&image)
        .map_err(|source| GuestError::Extract { path: kernel.vmlinuz.clone(), source })?;

    let mut archive = Archive::new();
    for dir in ["dev", "proc", "sys", "run", "tmp"] {
        archive.directory(dir, 0o755);
    }
    // The kernel opens this for init's stdin, stdout and stderr before /dev can be mounted.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, guest.clone());
    archive.file("bin/busybox", 0o755, busybox.clone());
    let lists: [&[&str]; 3] = [&GUEST_MODULES, &NETWORK_MODULES, &HOME_MODULES];
    let [always, network, home] = modules::load_orders(&kernel.modules, lists)?;
    for (list, modules) in [("order", always), ("network", network), ("home", home)] {
        let mut order = String::new();
        for module in modules {
            order += &module.file;
            order.push('\n');
            archive.file(&format!("modules/{}", module.file), 0o644, module.contents);
        }
        archive.file(&format!("modules/{list}"), 0o644, order.into_bytes());
    }
    let initrd =
        archive.to_bytes().map_err(|source| GuestError::Write { path: PathBuf::from("initrd"), source })?;
    Ok(GuestFiles { vmlinux, initrd, guest, busybox, kernel_version: kernel.version.clone() })
}

/// Writes the files into `out`, each under a temporary name first, so that a reader never sees an incomplete
/// one.
pub fn write(files: &GuestFiles, out: &Path) -> Result<(), GuestError> {
    std::fs::create_dir_all(out).map_err(|source| GuestError::Write { path: out.into(), source })?;
    let version = format!("{}\n", files.kernel_version);
    for (name, mode, contents) in [
        ("vmlinux", 0o644, files.vmlinux.as_slice()),
        ("initrd", 0o644, &files.initrd),
        ("guest", 0o755, &files.guest),
        ("busybox", 0o755, &files.busybox),
        ("kernel-version", 0o644, version.as_bytes()),
    ] {
        let path = out.join(name);
        atomic_file::write(&path, contents, mode).map_err(|source| GuestError::Write { path, source })?;
    }
    Ok(())
}

fn static_binary(what: &'static str, path: &Path, hint: &'static str) -> Result<Vec<u8>, GuestError> {
    let bytes = std::fs::read(path).map_err(|source| GuestError::Read {
        what,
        path: path.into(),
        source,
        hint: "",
    })?;
    if needs_loader(&bytes) {
        return Err(GuestError::NotStatic { path: path.into(), hint });
    }
    Ok(bytes)
}

/// Whether a 64-bit little-endian ELF file has a PT_INTERP program header. Anything else is left to the kernel.
fn needs_loader(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<u64> {
        Some(elf.get(at..at + len)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let has = || -> Option<bool> {
        let (table, size, count) =
            (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
        Some((0..count).any(|i| number(table.saturating_add(i * size), 4) == Some(u64::from(PT_INTERP))))
    };
    elf.starts_with(b"\x7fELF\x02\x01") && has().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamically_linked_guest_is_refused_with_the_way_to_build_a_static_one() {
        let error = static_binary("guest binary", Path::new("/bin/ls"), GUEST_HINT).unwrap_err();
        assert!(error.to_string().contains("crt-static"), "{error}");
    }

    #[test]
    fn the_same_inputs_give_the_same_initrd() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = crate::testing::fake_kernel(dir.path());
        let busybox = dir.path().join("busybox");
        std::fs::write(&busybox, "static").unwrap();
        let once = assemble(&kernel, &busybox, &busybox).unwrap();
        let twice = assemble(&kernel, &busybox, &busybox).unwrap();
        assert!(once.initrd == twice.initrd && once.vmlinux.starts_with(b"\x7fELF"));
    }

    #[test]
    fn every_module_in_the_lists_is_in_the_archive() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = crate::testing::fake_kernel(dir.path());
        let busybox = dir.path().join("busybox");
        std::fs::write(&busybox, "static").unwrap();
        let files = assemble(&kernel, &busybox, &busybox).unwrap();
        let mut cpio = std::process::Command::new("cpio");
        cpio.args(["-id", "--quiet"]).current_dir(dir.path());
        crate::tool::output_with_input(&mut cpio, &files.initrd, "unpack").unwrap();
        let lists = [
            ("order", GUEST_MODULES.len()),
            ("network", NETWORK_MODULES.len()),
            ("home", HOME_MODULES.len()),
        ];
        for (list, count) in lists {
            let order = std::fs::read_to_string(dir.path().join("modules").join(list)).unwrap();
            assert_eq!(order.lines().count(), count);
            for file in order.lines() {
                assert!(dir.path().join("modules").join(file).is_file(), "{file}");
            }
        }
    }
}
