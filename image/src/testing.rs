//! Fakes for the unit tests: a kernel package without a kernel.

use crate::kernel_package::KernelPackage;
use std::path::Path;

/// An unpacked package whose kernel is an ELF magic and whose modules are empty.
pub fn fake_kernel(root: &Path) -> KernelPackage {
    let root = root.join("kernel-package");
    let tree = root.join("usr/lib/modules/6.12.0-test");
    std::fs::create_dir_all(tree.join("kernel/drivers")).unwrap();
    std::fs::create_dir_all(root.join("boot")).unwrap();
    std::fs::write(tree.join("modules.builtin"), "").unwrap();
    for module in crate::guest::GUEST_MODULES.iter().chain(&crate::guest::NETWORK_MODULES).chain(&["loop"]) {
        std::fs::write(tree.join(format!("kernel/drivers/{module}.ko")), "\0depends=\0").unwrap();
    }
    std::fs::write(
        root.join("boot/vmlinuz-6.12.0-test"),
        crate::kernel::tests::zstd_image(b"\x7fELF kernel"),
    )
    .unwrap();
    KernelPackage::open(&root).unwrap()
}

/// A folder with a small valid release: kernel "kernel", initrd "initrd" and so on.
pub fn release() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut files = std::collections::BTreeMap::new();
    for name in crate::manifest::FILES {
        std::fs::write(dir.path().join(name), name).unwrap();
        let (sha256, size) = crate::files::digest(&mut name.as_bytes()).unwrap();
        files.insert(name.to_owned(), crate::manifest::Entry { sha256, size });
    }
    let manifest = crate::manifest::Manifest {
        format: crate::manifest::FORMAT,
        commit: None,
        modified: false,
        suite: "trixie".into(),
        architecture: "x86_64".into(),
        kernel_version: "6.12.0-test".into(),
        inputs: "none".into(),
        files,
        packages: Default::default(),
        home_packages: Default::default(),
    };
    std::fs::write(dir.path().join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    dir
}
