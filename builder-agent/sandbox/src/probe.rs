//! The probe: runs a guest to find out whether this machine can. No cheaper check is reliable: a `/dev/kvm`
//! that opens, and whose every ioctl succeeds, may still hang or crash a Linux guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::SandboxError;
use crate::job::{BuilderStatus, Host, Job, OutputSink, Phases, Run};
use crate::kvm::{KvmBackend, StartedVm, jail};
use crate::session::build::{InMachine, run_in};

/// A guest that has not run a shell by then is useless in practice. Hardware takes under a second; a VM in an
/// emulated VM on a busy machine, ten.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The result of a successful probe.
#[derive(Debug, Clone)]
pub struct Probed {
    /// `uname -r` of the guest.
    pub kernel: String,
    /// Time from the start to the end of a builder that does nothing.
    pub took: Duration,
    pub phases: Phases,
    /// Steps of the VMM's jail that were in force, and those that this host could not provide.
    pub jail_active: Vec<String>,
    pub jail_missing: Vec<jail::Missing>,
}

impl std::fmt::Display for Probed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ok: kernel {}, {} ms", self.kernel, self.took.as_millis())
    }
}

/// Boots a guest, runs `/bin/sh -c 'exit 0'` in it, and ends it. Returns within `patience` and a second.
pub fn probe(backend: &KvmBackend, patience: Duration) -> Result<Probed, SandboxError> {
    let job = Job::shell("exit 0", patience);
    let began = Instant::now();
    let cancel = Cancel::new();
    let late = Arc::new(AtomicBool::new(false));
    let timer = {
        let (cancel, late) = (cancel.clone(), late.clone());
        std::thread::Builder::new().name("probe-timer".to_owned()).spawn(move || {
            if !cancel.wait(patience) {
                late.store(true, Ordering::SeqCst);
                cancel.cancel();
            }
        })
    }
    .map_err(|e| SandboxError::Unavailable { why: format!("cannot start a thread: {e}") })?;

    let mut log = Log::default();
    let (run, console, jail) = run(backend, &job, &mut log, &cancel);
    let took = began.elapsed();
    cancel.cancel();
    // The thread only sleeps; the cancel above woke it.
    let _ = timer.join();
    judge(run, took, late.load(Ordering::SeqCst).then_some(patience), &console, jail, &log)
}

/// The build's session, after which the machine is asked for its console and its jail.
fn run(backend: &KvmBackend, job: &Job, log: &mut Log, cancel: &Cancel) -> (Run, String, jail::Report) {
    let began = Instant::now();
    match backend.start_vm(job.machine(), cancel) {
        Ok(StartedVm { running: mut vm, streams, network, plugs: _ }) => {
            let machine = InMachine { streams, network, started: began.elapsed() };
            let run = run_in(&mut vm, machine, job, log, cancel);
            (run, vm.console(), vm.jail().clone())
        }
        Err(error) => (Err(error).into(), String::new(), jail::Report::default()),
    }
}

/// Turns the result of the run into the result of the probe. `late`: the limit, if the run reached it.
fn judge(
    run: Run,
    took: Duration,
    late: Option<Duration>,
    console: &str,
    jail: jail::Report,
    log: &Log,
) -> Result<Probed, SandboxError> {
    let hint = "hint: is this a VM without nested virtualisation? look at the host's kernel log; \
                or choose the weaker backend = \"namespace\"";
    match (run.result, late) {
        (Ok(finished), _) if finished.status == BuilderStatus::Exited(0) => Ok(Probed {
            kernel: finished.kernel,
            took,
            phases: run.phases,
            jail_active: jail.active,
            jail_missing: jail.missing,
        }),
        (Ok(finished), _) => Err(SandboxError::Unavailable {
            why: format!(
                "the guest ran, but its shell ended with {:?}: {}",
                finished.status,
                String::from_utf8_lossy(&log.0)
            ),
        }),
        (Err(_), Some(patience)) => {
            let said = console.trim();
            let said = if said.is_empty() { "nothing".to_owned() } else { format!("\n{said}\n") };
            Err(SandboxError::Unavailable {
                why: format!(
                    "/dev/kvm opens, but a guest did not run a shell within {} s; its console said {said}; {hint}",
                    patience.as_secs()
                ),
            })
        }
        (Err(SandboxError::GuestDied { console }), None) => Err(SandboxError::Unavailable {
            why: format!("/dev/kvm opens, but the guest died: {}; {hint}", console.trim()),
        }),
        (Err(e), None) => Err(e),
    }
}

/// Keeps the output of the probe's builder; the session limits it.
#[derive(Default)]
struct Log(Vec<u8>);

impl Host for Log {
    fn log(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn output(&mut self, _name: &str) -> io::Result<Box<dyn OutputSink>> {
        Err(io::Error::other("the probe has no outputs"))
    }
}
