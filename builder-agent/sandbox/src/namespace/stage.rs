//! Assembles the parts of a build's file system before bubblewrap starts.
//!
//! The store is below directories that only the agent may enter, but bubblewrap and the guest run as
//! `nobody`; also, bubblewrap takes at most 9,000 arguments and compares every mount with every other.
//! Therefore the forked child, while it still has the right, gets a mount namespace of its own, binds each
//! input into a `/nix/store` in memory, and keeps that as one detached tree behind a descriptor. bubblewrap
//! passes the descriptor on, and the guest mounts the tree. An agent that is root becomes `nobody`
//! afterwards; any other agent gets the right to mount from a user namespace. The mounts disappear with the
//! last process of the job.
//!
//! `Stage::enter` runs between fork and exec of a process with threads: system calls only, nothing allocated.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::error::SandboxError;

/// Most inputs of one build. The kernel allows 100,000 mounts in a namespace (`fs.mount-max`), one input is one mount,
/// and the machine has mounts of its own.
pub const MAX_INPUTS: usize = 50_000;

/// The kernel's preference to kill a build when the machine is out of memory (-1000 to 1000), as for a VM.
const OOM_SCORE: &CStr = c"900";

/// Everything that the child needs, prepared before the fork.
pub struct Stage {
    dir: CString,
    /// Mounts that bubblewrap shows to the builder.
    binds: Vec<Bind>,
    store: CString,
    store_options: CString,
    inputs: Vec<Input>,
    rights: Rights,
}

struct Bind {
    source: CString,
    target: CString,
    is_dir: bool,
}

/// One entry of `/nix/store`.
enum Input {
    Bind(Bind),
    /// A symlink stays a symlink; a bind mount would follow it.
    Link {
        target: CString,
        at: CString,
    },
}

/// The source of the right to mount.
enum Rights {
    /// The process is root, and becomes this user and group afterwards.
    Root(u32, u32),
    /// A user namespace in which user and group keep their numbers: the contents of `uid_map` and `gid_map`.
    UserNamespace { uid_map: CString, gid_map: CString },
}

/// A step of `enter` that failed: the action, its path, and the error.
struct Failed<'a>(&'static CStr, &'a CStr, io::Error);

impl Stage {
    /// Plans a stage in `dir`, an empty directory: `sources` are shown to bubblewrap, and each gets its new host path;
    /// `trees` become a `/nix/store` of at most `disk` bytes of memory.
    pub fn new(
        dir: &Path,
        sources: Vec<&mut PathBuf>,
        trees: &[(String, PathBuf)],
        disk: u64,
        user: (u32, u32),
    ) -> Result<Stage, SandboxError> {
        let setup =
            |what: &Path, e: io::Error| SandboxError::Setup { why: format!("{}: {e}", what.display()) };
        if trees.len() > MAX_INPUTS {
            return Err(SandboxError::Setup {
                why: format!(
                    "the build has {} inputs, and the namespace sandbox shows at most {MAX_INPUTS}; build it in a \
                     micro-VM (backend = \"kvm\")",
                    trees.len()
                ),
            });
        }
        let mut binds = Vec::with_capacity(sources.len());
        for (index, source) in sources.into_iter().enumerate() {
            let target = dir.join(index.to_string());
            binds.push(Bind::new(source, &target).map_err(|e| setup(source, e))?);
            *source = target;
        }
        let store = dir.join("store");
        let inputs = trees.iter().map(|(inside, host)| {
            let name = Path::new(inside).file_name().ok_or(io::ErrorKind::InvalidInput)?;
            Input::new(host, &store.join(name))
        });
        let inputs = inputs.zip(trees).map(|(input, (_, host))| input.map_err(|e| setup(host, e)));
        let root = rustix::process::geteuid().is_root();
        let (uid, gid) = match root {
            true => user,
            false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        };
        let text = |text: String| CString::new(text).expect("numbers and words");
        Ok(Stage {
            dir: c_path(dir).map_err(|e| setup(dir, e))?,
            binds,
            store: c_path(&store).map_err(|e| setup(dir, e))?,
            store_options: text(format!("mode=1775,uid={uid},gid={gid},size={disk}")),
            inputs: inputs.collect::<Result<_, _>>()?,
            rights: match root {
                true => Rights::Root(uid, gid),
                false => Rights::UserNamespace {
                    uid_map: text(format!("{uid} {uid} 1")),
                    gid_map: text(format!("{gid} {gid} 1")),
                },
            },
        })
    }

    /// Enters the stage. The tree of `/nix/store` replaces the descriptor `store`, which stays open over exec. Only for a
    /// child directly after fork; async-signal-safe. The step that failed is written to stderr.
    pub fn enter(&self, store: RawFd) -> io::Result<()> {
        self.steps(store).map_err(|Failed(what, path, error)| {
            for text in [what, path] {
                // Best effort: the error itself reaches the parent in any case.
                let _ = rustix::io::write(rustix::stdio::stderr(), text.to_bytes());
            }
            error
        })
    }

    fn steps(&self, store: RawFd) -> Result<(), Failed<'_>> {
        let root = c"/";
        // The kernel ends a build before the agent, whose unit asks for -900, and before other programs of the machine.
        write(c"/proc/self/oom_score_adj", OOM_SCORE)?;
        let mut spaces = libc::CLONE_NEWNS;
        if matches!(self.rights, Rights::UserNamespace { .. }) {
            spaces |= libc::CLONE_NEWUSER;
        }
        // SAFETY: no pointers; this is a forked child with one thread.
        cvt(unsafe { libc::unshare(spaces) }, c"cannot create namespaces for the mounts of ", root)?;
        if let Rights::UserNamespace { uid_map, gid_map } = &self.rights {
            write(c"/proc/self/setgroups", c"deny")?;
            write(c"/proc/self/uid_map", uid_map)?;
            write(c"/proc/self/gid_map", gid_map)?;
        }
        mount(c"none", root, libc::MS_REC | libc::MS_PRIVATE, c"")?;
        mount(c"tmpfs", &self.dir, 0, c"mode=0755")?;
        self.binds.iter().try_for_each(Bind::make)?;

        // SAFETY: a NUL-terminated string that outlives the call.
        cvt(unsafe { libc::mkdir(self.store.as_ptr(), 0o755) }, c"cannot make ", &self.store)?;
        mount(c"tmpfs", &self.store, libc::MS_NOSUID | libc::MS_NODEV, &self.store_options)?;
        for input in &self.inputs {
            match input {
                Input::Bind(bind) => bind.make()?,
                Input::Link { target, at } => {
                    // SAFETY: NUL-terminated strings that outlive the call.
                    let made = unsafe { libc::symlink(target.as_ptr(), at.as_ptr()) };
                    cvt(made, c"cannot make the link ", at)?;
                }
            }
        }
        self.detach(store)?;

        if let Rights::Root(uid, gid) = self.rights {
            // SAFETY: an empty list needs no pointer; the others take integers. The raw calls, because those of libc
            // would tell all threads of a process to follow, and the child only has copies of their records.
            let (groups, group, user) = unsafe {
                (
                    libc::syscall(libc::SYS_setgroups, 0 as libc::c_long, std::ptr::null::<libc::gid_t>()),
                    libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                )
            };
            for done in [groups, group, user] {
                cvt(done as libc::c_int, c"cannot become an ordinary user outside of ", root)?;
            }
        }
        Ok(())
    }

    /// Detaches the store from this namespace, read-only except its own root, so that bubblewrap does not see its mounts.
    fn detach(&self, store: RawFd) -> Result<(), Failed<'_>> {
        let at = &*self.store;
        let failed = |what| move |e: rustix::io::Errno| Failed(what, at, e.into());
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, at, flags).map_err(failed(c"cannot take the mounts of "))?;
        let closed = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
        for (recursive, set, clear) in [(libc::AT_RECURSIVE, closed, 0), (0, 0, MOUNT_ATTR_RDONLY)] {
            let attributes = MountAttributes { set, clear, ..MountAttributes::default() };
            // SAFETY: an open descriptor, an empty string, and one structure of the size that is told; all outlive the
            // call, which only reads them.
            let changed = unsafe {
                libc::syscall(
                    libc::SYS_mount_setattr,
                    tree.as_raw_fd(),
                    c"".as_ptr(),
                    libc::AT_EMPTY_PATH | recursive,
                    &raw const attributes,
                    size_of::<MountAttributes>(),
                )
            };
            cvt(changed as libc::c_int, c"cannot make the inputs read-only in ", at)?;
        }
        unmount(at, UnmountFlags::DETACH).map_err(failed(c"cannot let go of "))?;
        // SAFETY: numbers of open descriptors; the caller gave up the second one, which dup3 closes and replaces.
        cvt(unsafe { libc::dup3(tree.as_raw_fd(), store, 0) }, c"cannot pass on ", at)
    }
}

impl Bind {
    fn new(source: &Path, target: &Path) -> io::Result<Bind> {
        let is_dir = fs::metadata(source)?.is_dir();
        Ok(Bind { source: c_path(source)?, target: c_path(target)?, is_dir })
    }

    /// Async-signal-safe.
    fn make(&self) -> Result<(), Failed<'_>> {
        let Bind { source, target, is_dir } = self;
        // SAFETY: NUL-terminated strings that outlive the calls.
        let made = unsafe {
            if *is_dir {
                libc::mkdir(target.as_ptr(), 0o755)
            } else {
                libc::mknod(target.as_ptr(), libc::S_IFREG | 0o644, 0)
            }
        };
        cvt(made, c"cannot make room for ", source)?;
        mount(source, target, libc::MS_BIND, c"")
    }
}

impl Input {
    fn new(host: &Path, at: &Path) -> io::Result<Input> {
        if fs::symlink_metadata(host)?.is_symlink() {
            let target = fs::read_link(host)?;
            return Ok(Input::Link { target: c_path(&target)?, at: c_path(at)? });
        }
        Ok(Input::Bind(Bind::new(host, at)?))
    }
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

// linux/mount.h
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;

/// Async-signal-safe.
fn mount<'a>(
    source: &'a CStr,
    target: &'a CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> Result<(), Failed<'a>> {
    let kind = c"tmpfs".as_ptr();
    // SAFETY: NUL-terminated strings that outlive the call; only a tmpfs looks at kind and data.
    let mounted = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data.as_ptr().cast()) };
    let named = if flags & libc::MS_BIND == 0 { target } else { source };
    cvt(mounted, c"cannot mount ", named)
}

/// One line into a file of /proc. Async-signal-safe.
fn write<'a>(path: &'a CStr, text: &CStr) -> Result<(), Failed<'a>> {
    let failed = |e: rustix::io::Errno| Failed(c"cannot write ", path, e.into());
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(failed)?;
    rustix::io::write(&file, text.to_bytes()).map_err(failed).map(drop)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} contains a NUL byte")))
}

fn cvt<'a>(result: libc::c_int, what: &'static CStr, path: &'a CStr) -> Result<(), Failed<'a>> {
    if result < 0 { Err(Failed(what, path, io::Error::last_os_error())) } else { Ok(()) }
}
