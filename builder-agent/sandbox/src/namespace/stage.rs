//! How an agent that is root shows its files to a bubblewrap that is nobody.
//!
//! The store lies below directories that only the agent may enter, and bubblewrap walks to its sources by path. So the
//! child, still root, gets a mount namespace of its own, binds every source into one directory that anybody may
//! enter, and only then becomes nobody. The mounts are gone with the last process of the job.
//!
//! `Stage::enter` runs between fork and exec of a process with threads: system calls only, nothing allocated.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Everything the child needs, made beforehand.
pub struct Stage {
    dir: CString,
    binds: Vec<Bind>,
    user: (u32, u32),
}

struct Bind {
    source: CString,
    target: CString,
    is_dir: bool,
}

impl Stage {
    /// Plans to show `sources` below `dir`, an empty directory; gives each its new host path.
    pub fn new(dir: &Path, sources: Vec<&mut PathBuf>, user: (u32, u32)) -> io::Result<Stage> {
        let mut binds = Vec::with_capacity(sources.len());
        for (index, source) in sources.into_iter().enumerate() {
            let target = dir.join(index.to_string());
            let is_dir = std::fs::metadata(&*source)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", source.display())))?
                .is_dir();
            binds.push(Bind { source: c_path(source)?, target: c_path(&target)?, is_dir });
            *source = target;
        }
        Ok(Stage { dir: c_path(dir)?, binds, user })
    }

    /// Goes there. Only for a freshly forked child; async-signal-safe.
    pub fn enter(&self) -> io::Result<()> {
        let (none, tmpfs) = (c"none", c"tmpfs");
        let mount = |source: &std::ffi::CStr, target: &std::ffi::CStr, flags| {
            let (kind, data) = (tmpfs.as_ptr(), c"mode=0755".as_ptr());
            // SAFETY: NUL-terminated strings that outlive the call; a bind mount ignores kind and data.
            cvt(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data.cast()) })
        };
        // SAFETY: no pointers; this is a forked child with one thread.
        cvt(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        mount(none, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
        mount(tmpfs, &self.dir, 0)?;
        for Bind { source, target, is_dir } in &self.binds {
            // SAFETY: NUL-terminated strings that outlive the calls.
            let made = unsafe {
                if *is_dir {
                    libc::mkdir(target.as_ptr(), 0o755)
                } else {
                    libc::mknod(target.as_ptr(), libc::S_IFREG | 0o644, 0)
                }
            };
            cvt(made)?;
            mount(source, target, libc::MS_BIND)?;
        }
        let (uid, gid) = self.user;
        // SAFETY: an empty list needs no pointer; the others take integers. The raw calls, because those of libc
        // would tell all threads of a process to follow, and the child only has copies of their records.
        unsafe {
            cvt_long(libc::syscall(libc::SYS_setgroups, 0 as libc::c_long, std::ptr::null::<libc::gid_t>()))?;
            cvt_long(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            cvt_long(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        Ok(())
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} contains a NUL byte")))
}

fn cvt(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn cvt_long(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
