//! `netboot-image build`: base system + files of this repository -> kernel, initrd, boot.ipxe, manifest.json.
//!
//! Equal inputs give equal bytes: times, file-system id and order are fixed, and nothing depends on the
//! building machine. Not here: the base system itself (`base`), the guest's files (`guest`).

use crate::archive::SUITE;
use crate::base::{self, Base, BaseError};
use crate::cpio::Archive;
use crate::files;
use crate::guest::{self, GuestError};
use crate::home::{self, Home};
use crate::kernel_package::KernelPackage;
use crate::manifest::{self, Entry, Manifest};
use crate::modules::{self, ModulesError};
use crate::root::{self, RootError, failed, hash_tree, overlay, put, remove};
use crate::tool::{self, ToolError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first program that the kernel starts on the box.
const INIT: &str = include_str!("../initrd/init");
/// Modules that it needs to reach the root file system; and the virtual network card, so that it exists when
/// udev looks for network cards, which it does before all other devices.
const BOX_MODULES: [&str; 4] = ["loop", "erofs", "overlay", "virtio_net"];
/// The folder of this repository's files on the box.
const PROGRAMS: &str = "usr/lib/barnraiser";
/// The user of barnraiser-roster.service.
const ROSTER_USER: &str = "barnraiser-roster";
/// The user of barnraiser-mirrors.service.
const MIRRORS_USER: &str = "barnraiser-mirrors";

/// Removed from the finished tree: no program on the box reads these.
const PRUNED: [&str; 12] = [
    // The package database: a box is never upgraded in place; the manifest has the versions.
    "var/lib/dpkg",
    "var/lib/apt",
    "var/cache",
    "var/log",
    "etc/apt",
    // Hardware names for messages; udev's rules that matter here do not use them.
    "usr/lib/udev/hwdb.d",
    "usr/lib/udev/hwdb.bin",
    // Text encodings other than UTF-8.
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/zoneinfo",
    "usr/share/perl5",
    "usr/share/lintian",
    "usr/lib/systemd/catalog",
];

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(
        "`{0}` cannot be the address or the branch of the roster's repository, or the name of a box: it has a quote, a \
         space or a line break"
    )]
    RosterSetting(String),
    #[error(transparent)]
    Base(#[from] BaseError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Modules(#[from] ModulesError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// All inputs of a release. They are read, never written.
pub struct Inputs {
    pub kernel: KernelPackage,
    /// Kernel of the micro-VMs.
    pub guest_kernel: KernelPackage,
    pub agent: PathBuf,
    pub access_manager: PathBuf,
    pub guest: PathBuf,
    pub busybox: PathBuf,
    /// The root file system of homes; `None`: the box has no homes.
    pub home: Option<Home>,
    /// Folders laid over the base system, one after the other.
    pub rootfs: Vec<PathBuf>,
    /// roster.json for boots without network.
    pub roster: Vec<u8>,
    pub roster_repo: Option<String>,
    pub roster_branch: String,
    /// The name of the box in the roster; `None`: the roster is for one box.
    pub roster_host: Option<String>,
    pub commit: Option<String>,
    pub modified: bool,
}

/// The outcome of [`build`].
pub enum Outcome {
    Built(Manifest),
    /// The folder already held the release of these inputs.
    UpToDate(Manifest),
}

/// Makes the release in `out`. Files get their names when they are complete, the manifest last; on error an
/// older release's files may be partly replaced, which a check against its manifest detects.
pub fn build(base: &Base, inputs: &Inputs, out: &Path) -> Result<Outcome, BuildError> {
    let hash = inputs_hash(&base.key, inputs)?;
    if let Ok(release) = manifest::open(out)
        && release.manifest.inputs == hash
    {
        return Ok(Outcome::UpToDate(release.manifest));
    }
    let staging = root::staging()?;
    let tree = staging.path().join("tree");
    std::fs::create_dir(&tree).map_err(failed("make", &tree))?;

    tracing::info!("release, 1 of 4: unpacking the base system");
    base::unpack(base, &tree)?;
    let packages = base::packages(&tree)?;
    tracing::info!("release, 2 of 4: kernel modules, our files, the roster");
    install_modules(&inputs.kernel, &tree)?;
    lay_out(inputs, &tree)?;
    tracing::info!("release, 3 of 4: compressing the root file system");
    let image = staging.path().join("root.erofs");
    root::pack(&tree, &image, &[], "make the root file system")?;
    let root = std::fs::read(&image).map_err(failed("read", &image))?;
    tracing::info!("release, 4 of 4: writing kernel, initrd, boot script and manifest");
    write_release(inputs, &hash, packages, root, out).map(Outcome::Built)
}

/// Installs the kernel's modules, with the indexes for modprobe and udev.
fn install_modules(kernel: &KernelPackage, tree: &Path) -> Result<(), BuildError> {
    let modules = tree.join("usr/lib/modules");
    std::fs::create_dir_all(&modules).map_err(failed("make", &modules))?;
    tool::output(
        Command::new("cp").arg("-dR").arg(&kernel.modules).arg(&modules),
        "copy the kernel modules",
    )?;
    // The tree's own depmod, since the building machine's may be too old for the module format.
    tool::output(
        Command::new("chroot").arg(tree).args(["/usr/sbin/depmod", &kernel.version]),
        "index the kernel modules",
    )?;
    Ok(())
}

/// Copies this repository's files over the base system and removes files that a box does not need.
fn lay_out(inputs: &Inputs, tree: &Path) -> Result<(), BuildError> {
    for path in PRUNED {
        remove(&tree.join(path))?;
    }
    for dir in ["var/cache", "var/log", "var/lib/dpkg"] {
        let path = tree.join(dir);
        std::fs::create_dir_all(&path).map_err(failed("make", &path))?;
    }
    for folder in &inputs.rootfs {
        overlay(folder, tree)?;
    }
    add_user(tree, ROSTER_USER, "Barnraiser: who may build here")?;
    add_user(tree, MIRRORS_USER, "Barnraiser: mirrors of git repositories")?;
    let programs = tree.join(PROGRAMS);
    std::fs::create_dir_all(&programs).map_err(failed("make", &programs))?;
    for (from, name) in [(&inputs.agent, "builder-agent"), (&inputs.access_manager, "access-manager")] {
        let contents = std::fs::read(from).map_err(failed("read", from))?;
        put(&programs.join(name), &contents, 0o755)?;
    }
    guest::write(
        &guest::assemble(&inputs.guest_kernel, &inputs.guest, &inputs.busybox)?,
        &programs.join("guest"),
    )?;
    put(&programs.join("roster.json"), &inputs.roster, 0o644)?;
    let repo = inputs.roster_repo.as_deref().unwrap_or_default();
    let host = inputs.roster_host.as_deref().unwrap_or_default();
    for text in [repo, &inputs.roster_branch, host] {
        // A shell reads this file.
        if text.contains(['\'', '"', '\\', '\n', '\r', ' ', '$', '`']) {
            return Err(BuildError::RosterSetting(text.into()));
        }
    }
    let conf = tree.join("etc/barnraiser/roster.conf");
    let text = std::fs::read_to_string(&conf).map_err(failed("read", &conf))?;
    let text: String = text
        .lines()
        .map(|line| match line.split_once('=').map(|(key, _)| key) {
            Some("ROSTER_REPO") => format!("ROSTER_REPO='{repo}'\n"),
            Some("ROSTER_HOST") => format!("ROSTER_HOST='{host}'\n"),
            Some("ROSTER_BRANCH") => format!("ROSTER_BRANCH='{}'\n", inputs.roster_branch),
            _ => format!("{line}\n"),
        })
        .collect();
    put(&conf, text.as_bytes(), 0o644)?;
    let about = serde_json::json!({ "commit": inputs.commit, "kernel-version": inputs.kernel.version });
    Ok(put(&programs.join("release.json"), format!("{about}\n").as_bytes(), 0o644)?)
}

/// Adds a user and a group of this name, who cannot log in. The tree's own tools are not used: a release has to be the
/// same whichever machine makes it.
fn add_user(tree: &Path, name: &str, about: &str) -> Result<(), BuildError> {
    let lines = |file: &str| match std::fs::read_to_string(tree.join(file)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(failed("read", &tree.join(file))),
    };
    let (passwd, group) = (lines("etc/passwd")?, lines("etc/group")?);
    let taken: Vec<&str> =
        passwd.lines().chain(group.lines()).filter_map(|line| line.split(':').nth(2)).collect();
    // Debian gives numbers of system users from 999 downwards.
    let free = (100..=899u32).rev().map(|id| id.to_string()).find(|id| !taken.contains(&id.as_str()));
    let id = free.ok_or_else(|| {
        failed("add a user to", &tree.join("etc/passwd"))(std::io::Error::other("no number is free"))
    })?;
    let user = format!("{passwd}{name}:x:{id}:{id}:{about}:/nonexistent:/usr/sbin/nologin\n");
    put(&tree.join("etc/passwd"), user.as_bytes(), 0o644)?;
    Ok(put(&tree.join("etc/group"), format!("{group}{name}:x:{id}:\n").as_bytes(), 0o644)?)
}

/// Writes kernel, initrd, boot.ipxe and, after these, the manifest.
fn write_release(
    inputs: &Inputs,
    hash: &str,
    packages: BTreeMap<String, String>,
    root: Vec<u8>,
    out: &Path,
) -> Result<Manifest, BuildError> {
    let kernel = std::fs::read(&inputs.kernel.vmlinuz).map_err(failed("read", &inputs.kernel.vmlinuz))?;
    let initrd = initrd(inputs, root)?;
    std::fs::create_dir_all(out).map_err(failed("make", out))?;
    let mut entries = BTreeMap::new();
    for (name, contents) in [
        ("kernel", kernel),
        ("initrd", initrd),
        ("boot.ipxe", boot_script(inputs.commit.as_deref()).into_bytes()),
    ] {
        put(&out.join(name), &contents, 0o644)?;
        let (sha256, size) = files::digest(&mut contents.as_slice()).map_err(failed("hash", out))?;
        entries.insert(name.to_owned(), Entry { sha256, size });
    }
    let manifest = Manifest {
        format: manifest::FORMAT,
        commit: inputs.commit.clone(),
        modified: inputs.modified,
        suite: SUITE.into(),
        architecture: "x86_64".into(),
        kernel_version: inputs.kernel.version.clone(),
        inputs: hash.to_owned(),
        files: entries,
        packages,
        home_packages: inputs.home.as_ref().map(|home| home.packages.clone()).unwrap_or_default(),
    };
    let mut json = serde_json::to_vec_pretty(&manifest).expect("strings and numbers always serialize");
    json.push(b'\n');
    put(&out.join(manifest::FILE_NAME), &json, 0o644)?;
    Ok(manifest)
}

fn initrd(inputs: &Inputs, root: Vec<u8>) -> Result<Vec<u8>, BuildError> {
    let mut archive = Archive::new();
    for dir in ["dev", "proc", "sys"] {
        archive.directory(dir, 0o755);
    }
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, INIT.into());
    archive.file(
        "bin/busybox",
        0o755,
        std::fs::read(&inputs.busybox).map_err(failed("read", &inputs.busybox))?,
    );
    archive.file("root.erofs", 0o644, root);
    // Beside the root and not in it: it is compressed already, and the box reads it without another layer between.
    if let Some(home) = &inputs.home {
        let contents = std::fs::read(&home.image).map_err(failed("read", &home.image))?;
        archive.file(home::FILE_NAME, 0o444, contents);
    }
    let mut order = String::new();
    for module in modules::load_order(&inputs.kernel.modules, &BOX_MODULES)? {
        order += &format!("{}\n", module.file);
        archive.file(&format!("modules/{}", module.file), 0o644, module.contents);
    }
    archive.file("modules/order", 0o644, order.into());
    Ok(archive.to_bytes().map_err(failed("pack", Path::new("initrd")))?)
}

/// Uses relative names, so that the script works at any address.
pub fn boot_script(commit: Option<&str>) -> String {
    let build = commit.map_or("an unknown commit", |commit| &commit[..commit.len().min(12)]);
    format!(
        "#!ipxe\n\
         echo Barnraiser, built from {build}\n\
         :start\n\
         kernel kernel initrd=initrd console=tty0 console=ttyS0,115200n8 panic=30 net.ifnames=0 ${{barnraiser-args}} || goto retry\n\
         initrd initrd || goto retry\n\
         boot || goto retry\n\
         :retry\n\
         echo Cannot load Barnraiser; trying again in 10 seconds\n\
         imgfree\n\
         sleep 10\n\
         goto start\n"
    )
}

/// Hash over everything that determines the release's bytes.
fn inputs_hash(base: &str, inputs: &Inputs) -> Result<String, BuildError> {
    let mut hash = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(base.as_bytes());
    // This program determines the rest: arguments of tools, lists of files.
    let own =
        std::env::current_exe().and_then(std::fs::read).map_err(failed("read", Path::new("this program")))?;
    field(&own);
    for text in [
        inputs.kernel.version.as_str(),
        &inputs.guest_kernel.version,
        inputs.commit.as_deref().unwrap_or_default(),
        if inputs.modified { "modified" } else { "" },
        inputs.roster_repo.as_deref().unwrap_or_default(),
        &inputs.roster_branch,
        inputs.roster_host.as_deref().unwrap_or_default(),
    ] {
        field(text.as_bytes());
    }
    field(&inputs.roster);
    field(inputs.home.as_ref().map_or("", |home| &home.key).as_bytes());
    for path in [
        &inputs.kernel.vmlinuz,
        &inputs.guest_kernel.vmlinuz,
        &inputs.agent,
        &inputs.access_manager,
        &inputs.guest,
        &inputs.busybox,
    ] {
        field(&std::fs::read(path).map_err(failed("read", path))?);
    }
    for folder in &inputs.rootfs {
        hash_tree(folder, &mut field)?;
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
#[path = "release_test.rs"]
mod release_test;
