//! Starts the builder in a PID namespace of its own, as its PID 1, as Nix does: when the builder ends, the
//! kernel ends all its remaining processes, and no process in the namespace can see or signal the guest.
//!
//! The order in which the child gives up its rights matters; each step gives its reason.
//! Not here: the files the builder sees (`root`, `namespace`).

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use guest::protocol::Job;

use crate::sys::{self, Fork, seccomp};

/// As in Nix's sandbox.
pub const BUILD_UID: u32 = 1000;
pub const BUILD_GID: u32 = 100;

/// The builder's working directory, as the builder sees it.
pub const BUILD_DIR: &str = "/build";

/// What an error of it is about.
const RANDOM_ORDER: &str = "directories cannot be listed in a random order (`inject-fs-randomness`)";

/// The differences between the two kinds of sandbox.
pub enum Place {
    /// The guest is root of a machine: this tree becomes the builder's root, and the builder becomes an ordinary user.
    Machine { root: PathBuf },
    /// bubblewrap made the root and the user. `own_dir` is the guest's own directory, which is hidden from the builder.
    Namespace { own_dir: PathBuf },
}

/// A builder that has been started.
pub struct Running {
    pub pid: libc::pid_t,
    /// The pipe with its stdout and stderr.
    pub output: OwnedFd,
    /// Keeps its mount namespace beyond the builder's end. Otherwise the kernel would destroy the namespace
    /// first, which takes milliseconds, before the guest learns that the builder has ended. It keeps no
    /// process of the builder alive. `None` if the builder has ended already.
    pub mounts: Option<File>,
    /// The builder's calls that list a directory wait for answers here. `None` if the kernel answers them itself.
    pub listings: Option<OwnedFd>,
}

/// The reason why a builder was not started.
pub enum StartError {
    /// The program could not be executed; the derivation is to blame.
    Exec(String),
    Setup(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError::Setup(error)
    }
}

/// First byte of the message of a child that could not become the builder.
const FAILED_SETUP: u8 = 1;
const FAILED_EXEC: u8 = 2;
/// First byte of the message of a child that waits until the guest has taken its listener. Its number follows.
const LISTENS: u8 = 3;

/// Starts the builder. `before` is called with its pid and returns before the child takes its first step
/// (cgroups).
pub fn start(
    job: &Job,
    place: &Place,
    before: impl FnOnce(libc::pid_t) -> io::Result<()>,
) -> Result<Running, StartError> {
    let (output, output_child) = sys::pipe()?;
    let (report, report_child) = sys::pipe()?;
    let (go_child, go) = sys::pipe()?;
    let pid = match sys::fork_into_pid_namespace()? {
        Fork::Child => {
            drop((output, report, go));
            let mut report = File::from(report_child);
            let (kind, error) = child(job, place, File::from(go_child), output_child, &mut report);
            // If the message cannot be written, the exit code still reports the failure.
            let _ = report.write_all(&[kind]).and_then(|()| report.write_all(error.to_string().as_bytes()));
            sys::exit_now(127)
        }
        Fork::Parent(pid) => pid,
    };
    drop((output_child, report_child, go_child));
    let mut listings = None;
    let (mut go, mut report) = (File::from(go), File::from(report));
    let started = before(pid).and_then(|()| go.write_all(&[1])).and_then(|()| {
        let mut text = Vec::new();
        if job.random_order {
            let mut kind = [0];
            report
                .read_exact(&mut kind)
                .map_err(|e| named("the builder's process ended before its start", e))?;
            match kind[0] {
                LISTENS => {
                    listings = Some(take_listener(pid, &mut report)?);
                    go.write_all(&[1])?;
                }
                failed => text.push(failed),
            }
        }
        // Empty if exec succeeds, which closes the other end.
        report.take(4096).read_to_end(&mut text)?;
        Ok(text)
    });
    match started {
        Ok(text) if text.is_empty() => {
            let mounts = File::open(format!("/proc/{pid}/ns/mnt")).ok();
            Ok(Running { pid, output, mounts, listings })
        }
        failed => {
            let _ = sys::kill(pid, libc::SIGKILL);
            let _ = sys::wait(pid);
            let text = failed?;
            let why = String::from_utf8_lossy(&text[1..]).into_owned();
            Err(if text[0] == FAILED_EXEC {
                StartError::Exec(why)
            } else {
                StartError::Setup(io::Error::other(why))
            })
        }
    }
}

fn take_listener(pid: libc::pid_t, report: &mut File) -> io::Result<OwnedFd> {
    let mut number = [0; 4];
    report.read_exact(&mut number)?;
    seccomp::take(pid, i32::from_ne_bytes(number)).map_err(|e| named(RANDOM_ORDER, e))
}

/// Becomes the builder, or returns the error.
fn child(job: &Job, place: &Place, mut go: File, output: OwnedFd, report: &mut File) -> (u8, io::Error) {
    let prepared = prepare(job, place, &mut go, output).and_then(|()| match job.random_order {
        true => hand_over_listings(&mut go, report).map_err(|e| named(RANDOM_ORDER, e)),
        false => Ok(()),
    });
    if let Err(e) = prepared {
        return (FAILED_SETUP, e);
    }
    let error = exec(job);
    match sys::is_of_the_machine(&error) {
        true => (FAILED_SETUP, named("start the builder", error)),
        false => (FAILED_EXEC, error),
    }
}

/// From now on the guest lists directories for this process. Returns when the guest is ready.
fn hand_over_listings(go: &mut File, report: &mut File) -> io::Result<()> {
    // Closed by exec: a builder that had it could answer its own calls.
    let listener = seccomp::hand_over()?;
    report.write_all(&[LISTENS])?;
    report.write_all(&listener.as_raw_fd().to_ne_bytes())?;
    go.read_exact(&mut [0])
}

fn prepare(job: &Job, place: &Place, go: &mut File, output: OwnedFd) -> io::Result<()> {
    go.read_exact(&mut [0])?;
    sys::die_with_parent()?;
    sys::set_session()?;
    // After the move into its cgroup, so that the cgroup namespace starts there.
    let spaces = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;
    sys::unshare(spaces).map_err(|e| named("unshare", e))?;
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    let proc_flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    match place {
        Place::Machine { root } => {
            sys::mount("proc", &root.join("proc"), "proc", proc_flags, "")?;
            sys::become_root(root)?;
        }
        Place::Namespace { own_dir } => {
            sys::mount("proc", Path::new("/proc"), "proc", proc_flags, "")?;
            // Hides the guest's program. The directory is covered and not unmounted: a mount of an outer user
            // namespace is locked.
            let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            sys::mount("tmpfs", own_dir, "tmpfs", flags, "size=4k,mode=0555")?;
        }
    }
    sys::set_host_name("localhost", "(none)").map_err(|e| named("sethostname", e))?;

    let null = File::open("/dev/null").map_err(|e| named("/dev/null", e))?;
    sys::dup_to(null.as_raw_fd(), 0)?;
    sys::dup_to(output.as_raw_fd(), 1)?;
    sys::dup_to(output.as_raw_fd(), 2)?;
    sys::close_others_on_exec()?;
    sys::reset_signals();

    if let Place::Machine { .. } = place {
        // The guest may be exempt from the kernel's out-of-memory killer; the builder is not. (In a namespace
        // sandbox all processes have the score of a build already, and may not lower it.)
        OpenOptions::new()
            .write(true)
            .open("/proc/self/oom_score_adj")
            .and_then(|mut f| f.write_all(b"0"))
            .map_err(|e| named("oom_score_adj", e))?;
    }
    sys::set_limit(libc::RLIMIT_CORE, 0)?;
    let most_processes = match place {
        // The cgroup counts processes, and reports a refusal. A second limit here would refuse without a
        // report.
        Place::Machine { .. } => libc::RLIM_INFINITY,
        // Slightly above the limit that ends the build, so that the watch thread sees that the limit was
        // reached.
        Place::Namespace { .. } => u64::from(job.limits.processes) + 16,
    };
    sys::set_limit(libc::RLIMIT_NPROC, most_processes)?;
    sys::set_umask(0o022);
    sys::set_personality(persona(&job.system))?;

    // First the bounding set, which needs a right that the next step removes; then the user; then, for a user
    // namespace in which that changed nothing, the remaining rights.
    sys::drop_bounding_set().map_err(|e| named("capabilities", e))?;
    if let Place::Machine { .. } = place {
        sys::become_user(BUILD_UID, BUILD_GID).map_err(|e| named("setuid", e))?;
    }
    sys::drop_capabilities().map_err(|e| named("capabilities", e))?;
    sys::no_new_privileges()?;
    std::env::set_current_dir(BUILD_DIR).map_err(|e| named(BUILD_DIR, e))
}

/// Nix runs builders without address space randomisation, for reproducible results, and on a 64-bit machine
/// lets 32-bit builders see a 32-bit one (Nix: src/libstore/unix/build/linux-derivation-builder.cc).
fn persona(system: &str) -> libc::c_ulong {
    let linux32 = cfg!(target_arch = "x86_64") && system == "i686-linux";
    // linux/personality.h: PER_LINUX, PER_LINUX32, ADDR_NO_RANDOMIZE.
    (if linux32 { 0x0008 } else { 0x0000 }) | 0x0004_0000
}

fn exec(job: &Job) -> io::Error {
    let strings = || -> io::Result<(CString, Vec<CString>, Vec<CString>)> {
        let text = |bytes: &[u8]| sys::c_string(OsStr::from_bytes(bytes));
        let env = job.env.iter().map(|(key, value)| text(&[&key.0[..], b"=", &value.0].concat()));
        let builder = &job.builder.0[..];
        if let Some(builtin) = builder.strip_prefix(b"builtin:") {
            let out = job.outputs.get("out").map_or("", String::as_str);
            let args = [b"guest", &b"--builtin"[..], builtin, out.as_bytes()].into_iter().map(text);
            // No path leads to the guest's program in this root; the kernel still has the open file.
            let program = text(b"/proc/self/exe")?;
            return Ok((program, args.collect::<io::Result<_>>()?, env.collect::<io::Result<_>>()?));
        }
        let name = builder.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let args = std::iter::once(name).chain(job.args.iter().map(|arg| &arg.0[..])).map(text);
        Ok((text(builder)?, args.collect::<io::Result<_>>()?, env.collect::<io::Result<_>>()?))
    };
    match strings() {
        Ok((program, args, env)) => {
            let e = sys::exec(&program, &args, &env);
            named(&format!("executing '{}'", String::from_utf8_lossy(&job.builder.0)), e)
        }
        Err(e) => e,
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Reads the job's files from the stream and writes them into /build below `root`, owned by the builder.
pub fn write_files(
    stream: &mut crate::stream::Stream,
    job: &Job,
    root: &Path,
    owned: bool,
) -> io::Result<()> {
    let dir = root.join(BUILD_DIR.trim_start_matches('/'));
    for (name, length) in &job.files {
        // The agent sends these names, so this would be a bug and no attack; but the file would be outside of
        // /build.
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no name for a file in /build"),
            ));
        }
        let path = dir.join(name);
        let mut file = File::create_new(&path).map_err(|e| named(&format!("writing /build/{name}"), e))?;
        stream.read_file(*length, &mut file).map_err(|e| named(&format!("writing /build/{name}"), e))?;
        if owned {
            std::os::unix::fs::fchown(&file, Some(BUILD_UID), Some(BUILD_GID))?;
        }
    }
    Ok(())
}

/// Reads files for /etc from the stream, names and lengths of which are `files`, and writes them below `root`, for everyone
/// to read. One that is there already is an error, or is replaced.
pub fn write_etc_files(
    stream: &mut crate::stream::Stream,
    files: &[(String, u64)],
    root: &Path,
    replace: bool,
) -> io::Result<()> {
    let etc = root.join("etc");
    for (name, length) in files {
        let writing = |e| named(&format!("writing /etc/{name}"), e);
        // As for the files in /build: a mistake of the agent must not become a file somewhere else.
        let Some((folder, file)) = guest::etc::place(name) else {
            let why = format!("{name:?} is no name for a file in /etc");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        };
        let dir = folder.map_or_else(|| etc.clone(), |folder| etc.join(folder));
        fs::create_dir_all(&dir).map_err(writing)?;
        let path = dir.join(file);
        // Removed and not written over: it may be a link to a file elsewhere.
        if replace && path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(writing)?;
        }
        let mut file = File::create_new(path).map_err(writing)?;
        stream.read_file(*length, &mut file).map_err(writing)?;
        file.set_permissions(Permissions::from_mode(0o444)).map_err(writing)?;
    }
    Ok(())
}

/// Writes /etc below `root`.
pub fn write_etc(root: &Path) -> io::Result<()> {
    for (name, contents) in guest::etc::FILES {
        fs::write(root.join("etc").join(name), contents)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use guest::etc;
    use guest::protocol::{MAX_DATA, Tag, header};

    use super::*;
    use crate::stream::Stream;

    fn files(etc: &[(&str, u64)]) -> Vec<(String, u64)> {
        etc.iter().map(|(name, length)| ((*name).to_owned(), *length)).collect()
    }

    /// Writes these files, whose contents are `sent`, below `root`.
    fn write(root: &Path, files: &[(String, u64)], replace: bool, sent: &[&[u8]]) -> io::Result<()> {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let frames: Vec<u8> =
            sent.iter().flat_map(|bytes| [&header(Tag::FileData, bytes.len()), *bytes].concat()).collect();
        let sender = std::thread::spawn(move || host.write_all(&frames));
        let written = write_etc_files(&mut Stream::new(guest.into()), files, root, replace);
        let _ = sender.join().unwrap();
        written
    }

    /// A root with the files that every builder has.
    fn root(test: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("guest-etc-{test}-{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        write_etc(&root).unwrap();
        root
    }

    #[test]
    fn certificates_lie_where_nix_shows_them_and_all_may_read_them() {
        let root = root("certificates");
        let bundle = [vec![b'c'; MAX_DATA], vec![b'd'; 100]];
        let files = files(&[(etc::CERTIFICATES, MAX_DATA as u64 + 100), ("machine-id", 3)]);
        write(&root, &files, false, &[&bundle[0], &bundle[1], b"one"]).unwrap();
        let certificates = root.join("etc/ssl/certs/ca-certificates.crt");
        assert_eq!(fs::read(&certificates).unwrap(), bundle.concat());
        assert_eq!(fs::metadata(&certificates).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(fs::read(root.join("etc/machine-id")).unwrap(), b"one");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn in_a_home_a_file_of_the_host_takes_the_place_of_the_images_and_not_of_what_that_links_to() {
        let root = root("replaced");
        let certificates = root.join("etc/ssl/certs/ca-certificates.crt");
        fs::create_dir_all(certificates.parent().unwrap()).unwrap();
        fs::write(root.join("elsewhere"), "kept").unwrap();
        std::os::unix::fs::symlink(root.join("elsewhere"), &certificates).unwrap();
        let files = files(&[(etc::CERTIFICATES, 3), ("hosts", 3)]);
        write(&root, &files, true, &[b"one", b"two"]).unwrap();
        assert_eq!(fs::read(&certificates).unwrap(), b"one");
        assert!(certificates.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(root.join("etc/hosts")).unwrap(), b"two");
        assert_eq!(fs::read(root.join("elsewhere")).unwrap(), b"kept");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn in_a_sandbox_no_file_of_the_host_replaces_another_and_none_leaves_etc() {
        let root = root("outside");
        for name in ["passwd", "../out", "ssl/other/x", "/out", "ssl/certs/../../../out"] {
            let error = write(&root, &files(&[(name, 3)]), false, &[b"one"]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
        assert_eq!(passwd, etc::FILES[0].1);
        assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
        assert_eq!(fs::read_dir(root.join("etc")).unwrap().count(), etc::FILES.len());
        fs::remove_dir_all(&root).unwrap();
    }
}
