//! `netboot-image try`: starts a box in QEMU with its boot server beside it, and watches the boot until ssh answers.
//!
//! The state folder keeps `serial.log` (the box's console), `serve.log` (the downloads), `qemu.log`, and
//! `box.json` (the running processes, for `--stop`). Not here: the machine itself (`qemu`).

use crate::accel::{self, Choice};
use crate::manifest::{self, ReleaseError};
use crate::processes::Process;
use crate::qemu::{Machine, url_from_inside};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Lines of the console shown when a boot fails.
const CONSOLE_TAIL: usize = 30;
/// Interval between two reads of the console.
const GLANCE: Duration = Duration::from_millis(100);
/// A stage that takes longer than this is printed again, so that nobody mistakes a slow machine for a dead
/// one.
const STILL: Duration = Duration::from_secs(20);
/// Longest wait for the greeting of a port, before the next try.
const GREETING: Duration = Duration::from_secs(2);

/// Messages on the console during a boot, in this order, with their meanings.
const STAGES: [(&str, &str); 5] = [
    ("iPXE", "firmware is through, iPXE runs"),
    ("Barnraiser, built from", "boot script is loaded; downloading kernel and initrd"),
    ("Linux version", "kernel runs"),
    ("barnraiser: root file system is up", "root file system is up; starting services"),
    ("barnraiser: ready", "agent listens"),
];
/// Messages after which the boot cannot succeed.
const HOPELESS: [&str; 3] = ["Kernel panic", "barnraiser: cannot", "You are in emergency mode"];

pub struct Options {
    pub dir: PathBuf,
    pub state: PathBuf,
    pub memory_mib: u32,
    pub cpus: u32,
    pub ssh_port: u16,
    pub accel: Choice,
    /// A boot server that runs elsewhere, as the box sees it; without it one is started.
    pub url: Option<String>,
    pub disks: Vec<PathBuf>,
    pub credentials: Vec<(String, String)>,
    pub patience: Duration,
    /// The box continues to run after this program.
    pub daemonize: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TryError {
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error("a box is running already (state in {0})\nhint:  netboot-image try --stop --state {0}")]
    Running(PathBuf),
    #[error("port {port} on loopback is taken: {source}\nhint:  choose another with --ssh-port")]
    PortTaken { port: u16, source: std::io::Error },
    #[error("cannot start `{program}`: {source}\nhint:  {hint}")]
    Start { program: String, source: std::io::Error, hint: &'static str },
    #[error("the boot server did not start; see {log}")]
    NoServer { log: PathBuf },
    #[error("QEMU ended with {status}; see {log}\n{console}")]
    QemuEnded { status: std::process::ExitStatus, log: PathBuf, console: String },
    #[error("the box gave up while booting; its console ends with\n{console}")]
    BootFailed { console: String },
    #[error(
        "no ssh after {seconds} s; the box's console ends with\n{console}\nhint:  slower machines need --wait SECONDS"
    )]
    TooSlow { seconds: u64, console: String },
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: PathBuf, source: std::io::Error },
}

#[derive(Serialize, Deserialize)]
struct Running {
    qemu: Process,
    server: Option<Process>,
    ssh_port: u16,
}

/// A child that is ended when dropped, unless the box is to continue.
struct Guarded {
    child: Child,
    process: Process,
    stays: bool,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.stays {
            // It stays a zombie until it is waited for, and `stop` treats a zombie as gone.
            self.process.stop();
            drop(self.child.wait());
        }
    }
}

/// Starts a box and waits until ssh answers. Then returns (`daemonize`) or waits for the end of the box or of
/// this program. On error no process of it keeps running.
pub fn run(options: &Options) -> Result<(), TryError> {
    let started = Instant::now();
    let release = manifest::open(&options.dir)?;
    let state = &options.state;
    std::fs::create_dir_all(state).map_err(failed("make", state))?;
    if read_state(state).is_some_and(|running| running.qemu.is_alive()) {
        return Err(TryError::Running(state.clone()));
    }
    // QEMU would report this too, but only in its log.
    TcpListener::bind(("127.0.0.1", options.ssh_port))
        .map_err(|source| TryError::PortTaken { port: options.ssh_port, source })?;

    let (accel, why) = accel::choose(options.accel, &options.dir.join("kernel"), state);
    say(
        started,
        &format!(
            "{accel:?} ({why}), {} MiB, {} processors, kernel {}",
            options.memory_mib, options.cpus, release.manifest.kernel_version
        ),
    );
    let (mut server, boot_url) = match &options.url {
        Some(url) => (None, url.clone()),
        None => {
            let (server, address) = start_server(options)?;
            say(started, &format!("boot server on http://{address}"));
            (Some(server), url_from_inside(address))
        }
    };
    let serial = state.join("serial.log");
    drop(std::fs::remove_file(&serial));
    let machine = Machine {
        accel,
        memory_mib: options.memory_mib,
        cpus: options.cpus,
        boot_url,
        ssh_port: options.ssh_port,
        disks: options.disks.clone(),
        credentials: options.credentials.clone(),
    };
    let log = state.join("qemu.log");
    let mut qemu = start(
        &mut machine.command(&serial),
        &log,
        options.daemonize,
        "apt-get install qemu-system-x86 ipxe-qemu",
    )?;
    say(started, &format!("power on; console in {}", serial.display()));
    let running = Running {
        qemu: qemu.process.clone(),
        server: server.as_ref().map(|server| server.process.clone()),
        ssh_port: options.ssh_port,
    };
    let path = state.join("box.json");
    let json = serde_json::to_vec(&running).expect("numbers always serialize");
    atomic_file::write(&path, &json, 0o644).map_err(failed("write", &path))?;

    watch(options, started, &serial, &log, &mut qemu)?;
    if options.daemonize {
        qemu.stays = true;
        if let Some(server) = &mut server {
            server.stays = true;
        }
    } else {
        say(started, "Ctrl-C ends the box");
        wait_for_the_end(&mut qemu);
    }
    Ok(())
}

/// Ends the box of a state folder. Returns whether there was one.
pub fn stop(state: &Path) -> bool {
    let Some(running) = read_state(state) else { return false };
    let alive = running.qemu.is_alive();
    for process in [Some(running.qemu), running.server].into_iter().flatten() {
        process.stop();
    }
    drop(std::fs::remove_file(state.join("box.json")));
    alive
}

fn read_state(state: &Path) -> Option<Running> {
    serde_json::from_slice(&std::fs::read(state.join("box.json")).ok()?).ok()
}

/// Starts this program again as the boot server, which continues after this program and serves reboots.
fn start_server(options: &Options) -> Result<(Guarded, SocketAddr), TryError> {
    let log = options.state.join("serve.log");
    let program = std::env::current_exe().map_err(failed("find", Path::new("this program")))?;
    // A free port: taken here, released, and taken again by the server a moment later.
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(failed("listen on", Path::new("loopback")))?;
    let mut command = Command::new(program);
    command.arg("serve").arg("--dir").arg(&options.dir).arg("--listen").arg(address.to_string());
    let mut server = start(&mut command, &log, options.daemonize, "is it still there?")?;
    // The server checks every file before it listens.
    while TcpStream::connect(address).is_err() {
        if server.child.try_wait().ok().flatten().is_some() {
            return Err(TryError::NoServer { log });
        }
        std::thread::sleep(GLANCE);
    }
    Ok((server, address))
}

fn start(
    command: &mut Command,
    log: &Path,
    daemonize: bool,
    hint: &'static str,
) -> Result<Guarded, TryError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let out = File::create(log).map_err(failed("write", log))?;
    let err = out.try_clone().map_err(failed("write", log))?;
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    if daemonize {
        // Ctrl-C in the terminal must not end a box that is to continue.
        command.process_group(0);
    }
    let failed = |source| TryError::Start { program: program.clone(), source, hint };
    let mut child = command.spawn().map_err(failed)?;
    match Process::of(&child) {
        Some(process) => Ok(Guarded { child, process, stays: false }),
        None => {
            drop(child.kill());
            drop(child.wait());
            Err(failed(std::io::Error::other("it ended at once")))
        }
    }
}

/// Follows the console through the stages of a boot until ssh answers.
fn watch(
    options: &Options,
    started: Instant,
    serial: &Path,
    log: &Path,
    qemu: &mut Guarded,
) -> Result<(), TryError> {
    let deadline = started + options.patience;
    let mut next_stage = 0;
    let mut spoke = Instant::now();
    let of = STAGES.len();
    loop {
        let console = std::fs::read(serial).map(|bytes| plain_text(&bytes)).unwrap_or_default();
        // A stage may be missed (firmware without serial output): use the last one that is visible.
        if let Some(last) = (next_stage..STAGES.len()).rev().find(|stage| console.contains(STAGES[*stage].0))
        {
            for (number, stage) in STAGES.iter().enumerate().take(last + 1).skip(next_stage) {
                say(started, &format!("{} of {of}: {}", number + 1, stage.1));
            }
            next_stage = last + 1;
            spoke = Instant::now();
        }
        if spoke.elapsed() > STILL {
            let at = next_stage.checked_sub(1).map_or("firmware starts", |stage| STAGES[stage].1);
            say(started, &format!("still at {next_stage} of {of}: {at}"));
            spoke = Instant::now();
        }
        if let Ok(Some(status)) = qemu.child.try_wait() {
            return Err(TryError::QemuEnded { status, log: log.into(), console: tail(&console) });
        }
        if HOPELESS.iter().any(|words| console.contains(words)) {
            return Err(TryError::BootFailed { console: tail(&console) });
        }
        if next_stage == STAGES.len() && greets(options.ssh_port) {
            say(started, &format!("ssh answers: ssh -p {} anyone@127.0.0.1", options.ssh_port));
            for line in banner(&console) {
                println!("{line}");
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(TryError::TooSlow { seconds: options.patience.as_secs(), console: tail(&console) });
        }
        std::thread::sleep(GLANCE);
    }
}

/// Whether the ssh server has sent its greeting. QEMU accepts connections before any server in the box
/// listens.
fn greets(port: u16) -> bool {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut greeting = [0; 4];
    socket.set_read_timeout(Some(GREETING)).is_ok()
        && socket.read_exact(&mut greeting).is_ok()
        && &greeting == b"SSH-"
}

/// The box's own lines about itself on the console.
fn banner(console: &str) -> Vec<&str> {
    let wanted = ["  address ", "  host key ", "  roster ", "  warning "];
    let mut lines: Vec<&str> = Vec::new();
    for line in console.lines() {
        if let Some(at) = wanted.iter().find_map(|word| line.find(word)) {
            lines.push(line[at..].trim_end());
        }
    }
    lines
}

fn wait_for_the_end(qemu: &mut Guarded) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = interrupt.recv() => return,
                _ = terminate.recv() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    if !qemu.process.is_alive() {
                        return;
                    }
                }
            }
        }
    });
}

fn say(started: Instant, what: &str) {
    println!("[{:6.1} s] {what}", started.elapsed().as_secs_f32());
    // stdout may be a closed pipe, which is no error here.
    drop(std::io::stdout().flush());
}

/// Console bytes as text, without the terminal's escape sequences and returns.
fn plain_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut input = bytes.iter().copied().peekable();
    while let Some(byte) = input.next() {
        match byte {
            0x1b => match input.next() {
                // CSI: parameters, then one final byte.
                Some(b'[') => while input.next().is_some_and(|byte| !(0x40..=0x7e).contains(&byte)) {},
                // OSC: until bell or ESC.
                Some(b']') => while input.next().is_some_and(|byte| byte != 0x07 && byte != 0x1b) {},
                _ => {}
            },
            b'\n' | b'\t' | 0x20..=0x7e => text.push(char::from(byte)),
            _ => {}
        }
    }
    text
}

fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TryError + use<> {
    let path = path.to_path_buf();
    move |source| TryError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_firmware_do_not_hide_its_words() {
        assert_eq!(plain_text(b"\x1b[2J\x1b[01;01Hi\x1b[0mPXE\r\n\x1b]0;title\x07ok\xff"), "iPXE\nok");
        assert_eq!(plain_text(b"\x1b["), "");
    }

    #[test]
    fn the_box_is_quoted_without_what_the_journal_puts_before() {
        let console = "[ 1.0] announce[9]:   host key  SHA256:abc (ED25519)\nother\n  address   10.0.2.15 \n";
        assert_eq!(banner(console), ["  host key  SHA256:abc (ED25519)", "  address   10.0.2.15"]);
    }

    #[test]
    fn a_port_that_takes_connections_but_says_nothing_is_not_ssh() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let server = std::thread::spawn(move || drop(silent.accept()));
        assert!(!greets(port));
        server.join().unwrap();
    }

    #[test]
    fn stopping_without_a_box_is_no_error() {
        assert!(!stop(tempfile::tempdir().unwrap().path()));
    }
}
