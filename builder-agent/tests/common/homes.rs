//! Homes without machines: Debian's sshd in a mount namespace of this machine, which has users and folders as a home has.
//!
//! The front door, the ssh connections into homes and the life of a home are real then, and what is shown in a home's store is
//! written down here. Needs root and an sshd: the one that `tests/scripts/sshd` unpacks, or this machine's.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::homes::{Control, CpuMeter, Machine, Machines, Started};
use egress::Event;
use sandbox::home::{HomeEnd, HomeJob, RequestError, SmallFile};
use sandbox::{Cancel, Image, SandboxError, Usage};

/// Cargo's target folder.
pub fn target() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_builder-agent"));
    program.ancestors().nth(2).expect("the folder of a profile, in it").to_owned()
}

/// sshd and what starts it: of `tests/scripts/sshd`, or of this machine. `None`: there is none.
fn sshd() -> Option<Command> {
    let unpacked = target().join("cache/sshd");
    if unpacked.join("sshd").exists() {
        let mut sshd = Command::new(unpacked.join("lib/ld.so"));
        sshd.arg("--library-path").arg(unpacked.join("lib")).arg(unpacked.join("sshd"));
        return Some(sshd);
    }
    let installed = Path::new("/usr/sbin/sshd");
    installed.exists().then(|| Command::new(installed))
}

/// What one home was asked to show.
#[derive(Default)]
pub struct Attached {
    /// Base names.
    pub paths: Vec<String>,
    /// Names of files with their contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Names in the root directory.
    pub in_root: Vec<String>,
    /// How many images, and their bytes.
    pub images: Vec<u64>,
}

/// Names with contents.
pub type Files = Vec<(String, Vec<u8>)>;

#[derive(Clone, Default)]
pub struct Beside {
    /// Homes that were started.
    pub started: Arc<AtomicUsize>,
    /// Those that run.
    pub running: Arc<AtomicUsize>,
    /// What all of them were asked to show.
    pub attached: Arc<Mutex<Attached>>,
    /// Below /etc of the last one, as it was asked for.
    pub etc: Arc<Mutex<Files>>,
    /// The mount namespace of the last one, and the process that holds it.
    pub last: Arc<Mutex<Option<(PathBuf, u32)>>>,
    /// The processor time of each home until now, in milliseconds.
    pub cpu: Arc<AtomicUsize>,
    /// If set, homes are not started, for this reason.
    pub broken: Arc<Mutex<Option<String>>>,
}

/// Why these tests cannot run here.
pub fn impossible() -> Option<String> {
    if !rustix::process::getuid().is_root() {
        return Some("needs root, for a mount namespace".into());
    }
    sshd().is_none().then(|| "needs an sshd; tests/scripts/sshd unpacks one".into())
}

/// The namespace of one home.
struct Place {
    dir: tempfile::TempDir,
    holder: Mutex<Child>,
    namespace: PathBuf,
    /// Of all connections, which end with the machine.
    streams: Mutex<Vec<UnixStream>>,
    attached: Arc<Mutex<Attached>>,
    running: Arc<AtomicUsize>,
    cpu: Arc<AtomicUsize>,
}

impl Machines for Beside {
    fn start(&self, job: &HomeJob, _cancel: &Cancel) -> Result<Started, SandboxError> {
        if let Some(why) = self.broken.lock().expect("a reason").clone() {
            return Err(SandboxError::Unavailable { why });
        }
        self.started.fetch_add(1, Ordering::SeqCst);
        self.etc.lock().expect("what is in /etc").clone_from(&job.etc);
        let killed = || SandboxError::Unavailable { why: "it was killed".into() };
        let place = Place::new(job, self).ok_or_else(killed)?;
        self.running.fetch_add(1, Ordering::SeqCst);
        let holder = place.holder.lock().expect("a holder").id();
        *self.last.lock().expect("the last one") = Some((place.namespace.clone(), holder));
        let place = Arc::new(place);
        Ok(Started { control: place.clone(), machine: Box::new(Idle(place)) })
    }
}

impl Place {
    /// `None`: somebody has killed it meanwhile.
    fn new(job: &HomeJob, beside: &Beside) -> Option<Self> {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        let user = &job.user;
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        write(
            "passwd",
            &format!(
                "root:x:0:0::/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n{user}:x:1000:1000::/home/{user}:/bin/bash\n"
            ),
        );
        write("group", &format!("root:x:0:\ntty:x:5:\n{user}:x:1000:\nnogroup:x:65534:\n"));
        let key = write("host_key", &job.ssh_host_key);
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
        write("authorized_keys", &job.authorized_key);
        let here = dir.path().display();
        write(
            "sshd_config",
            &format!(
                "HostKey {here}/host_key\nAuthorizedKeysFile {here}/authorized_keys\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxSessions 500\n\
             StreamLocalBindUnlink yes\nAcceptEnv LANG LC_* COLORTERM\nPrintMotd no\nPrintLastLog no\nSubsystem sftp internal-sftp\n"
            ),
        );
        let set_up = format!(
            "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir /run/sshd; mkdir -p /nix; mount -t tmpfs tmpfs /nix; \
             mkdir -p /nix/store /nix/var/nix/daemon-socket; chown 1000:1000 /nix/var/nix/daemon-socket; \
             mount -t tmpfs -o mode=755 tmpfs /home; mkdir /home/{user}; chown 1000:1000 /home/{user}; \
             mount --bind {here}/passwd /etc/passwd; mount --bind {here}/group /etc/group; \
             touch {here}/ready; exec cat"
        );
        // It ends with this process, whose end of the pipe closes then.
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &set_up])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare");
        while !dir.path().join("ready").exists() {
            if holder.try_wait().expect("our child").is_some() {
                holder.wait().expect("its end");
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (attached, running) = (beside.attached.clone(), beside.running.clone());
        let Some(namespace) = namespace_of(holder.id() as i32) else {
            holder.wait().expect("its end");
            return None;
        };
        Some(Self {
            dir,
            holder: Mutex::new(holder),
            namespace,
            streams: Mutex::default(),
            attached,
            running,
            cpu: beside.cpu.clone(),
        })
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("sshd_config")
    }
}

impl Control for Place {
    fn connect(&self) -> Result<(UnixStream, Box<dyn Send + Sync>), RequestError> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let pid = self.holder.lock().expect("a holder").id().to_string();
        let (stdin, stdout) = (OwnedFd::from(theirs.try_clone().expect("a copy")), OwnedFd::from(theirs));
        let log = fs::File::create(self.dir.path().join("log")).expect("a log");
        let program = sshd().expect("it was there");
        let mut sshd = Command::new("nsenter")
            .args(["--mount", "--target", &pid])
            .arg(program.get_program())
            .args(program.get_args())
            .args(["-i", "-e", "-f"])
            .arg(self.config())
            .stdin(stdin)
            .stdout(stdout)
            .stderr(Stdio::from(log))
            .spawn()
            .expect("sshd");
        self.streams.lock().expect("streams").push(ours.try_clone().expect("a copy"));
        // Reaped when its stream ends.
        std::thread::spawn(move || sshd.wait());
        Ok((ours, Box::new(())))
    }

    fn attach(
        &self,
        image: Option<&Image>,
        paths: &[String],
        files: &[SmallFile],
    ) -> Result<(), RequestError> {
        let mut attached = self.attached.lock().expect("what is attached");
        attached.paths.extend_from_slice(paths);
        attached.files.extend(files.iter().map(|file| (file.name.clone(), file.contents.clone())));
        attached
            .images
            .extend(image.map(|image| image.segments.iter().map(|segment| segment.len).sum::<u64>()));
        Ok(())
    }

    /// The root of this machine stays as it is.
    fn show_in_root(&self, _image: &Image, name: &str) -> Result<(), RequestError> {
        self.attached.lock().expect("what is attached").in_root.push(name.to_owned());
        Ok(())
    }
}

/// The machine, which does nothing by itself, and ends if somebody kills what holds its namespace.
struct Idle(Arc<Place>);

impl Machine for Idle {
    fn cpu_meter(&self) -> Option<CpuMeter> {
        let cpu = self.0.cpu.clone();
        Some(Box::new(move || Some(Duration::from_millis(cpu.load(Ordering::SeqCst) as u64))))
    }

    fn run(self: Box<Self>, _tell: &mut (dyn FnMut(Event) + Send), cancel: &Cancel) -> (HomeEnd, Usage) {
        let has_died = || {
            let mut holder = self.0.holder.lock().expect("a holder");
            matches!(holder.try_wait(), Ok(Some(_)))
        };
        let mut end = HomeEnd::Cancelled;
        while !cancel.wait(Duration::from_millis(20)) {
            if has_died() {
                end = HomeEnd::Failed(SandboxError::Unavailable { why: "it was killed".into() });
                break;
            }
        }
        let mut holder = self.0.holder.lock().expect("a holder");
        let _ = holder.kill();
        let _ = holder.wait();
        // A machine ends with all of its connections and processes.
        for stream in self.0.streams.lock().expect("streams").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        for pid in processes_in(&self.0.namespace) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        let cpu = Duration::from_secs(2) + Duration::from_millis(self.0.cpu.load(Ordering::SeqCst) as u64);
        (end, Usage { cpu, ..Usage::default() })
    }
}

fn namespace_of(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()
}

/// The processes of a home.
pub fn processes_in(namespace: &Path) -> Vec<rustix::process::Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inside = |pid: &i32| namespace_of(*pid).is_some_and(|of| of == namespace);
    pids.filter(inside).filter_map(rustix::process::Pid::from_raw).collect()
}
