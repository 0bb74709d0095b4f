//! The strong sandbox: a micro-VM per job, in a jailed process of its own.
//!
//! This is the agent's side: it starts the process, hands over descriptors, and ends the process in every case. The
//! VMM's side is `vmm`, its restrictions are in `jail`, and the hardware that the guest sees is in `devices` and `arch`.
//! The VMM is trusted as little as the guest: its reports are bounded and used for messages and numbers only.

pub(crate) mod additions;
pub mod arch;
mod bus;
pub mod devices;
mod end;
mod events;
pub(crate) mod handover;
pub mod jail;
mod launch;
mod making;
pub(crate) mod memory;
pub mod network;
mod overhead;
mod prefault;
mod snapshot;
mod templates;
mod vcpu;
mod vm;
mod vmm;
mod written;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use egress::Event;
use guest::protocol::{self, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use arch::{Architecture, Native};
pub use handover::ClosureDevice;
use handover::{Config, DeviceKind, Files, Origin, Report, Reports, Shape};
use jail::cgroup::Hierarchy;
pub(crate) use launch::ARGUMENT;
use launch::Vmm;
pub use memory::growing;
use network::{Network, NetworkConfig, Plug};
use templates::{Template, Templates};

use crate::backend::{Backend, FarEnd, Image, Inputs, Machine, Started, Streams};
use crate::cancel::Cancel;
use crate::cpu_meter::CpuMeter;
use crate::descriptors::Received;
use crate::error::SandboxError;
use crate::parent::NotPassedOn;
use crate::paused::PausedMachine;
use crate::plugs::Plugs;
use crate::usage::Usage;

/// From starting the process to running vCPUs. It takes milliseconds; a VM inside a VM takes a second.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Time for an ending VMM to report its reason, before it is killed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// With less memory the kernel, the initrd and its unpacked copy do not fit.
const MEMORY_MIN_MIB: u32 = 128;
/// First uid for VMs; the process id is added, so that no two VMs share one. Above what systemd hands out
/// (uids.systemd.io), below the 2^31 at which some tools give up.
const UID_BASE: u32 = 0x7000_0000;

/// Always given to the guest kernel, on every architecture.
///
/// - `quiet loglevel=4`: each console byte costs an exit; errors and panics still come.
/// - `panic=-1`: a panic ends the VM at once.
/// - `mitigations=off`: the guest has one tenant, the builder, who may have its own VM's secrets. What protects the
///   host from the guest are the host's mitigations.
/// - `random.trust_cpu=on`: the random pool is ready at once.
/// - `cryptomgr.notests`: self-tests of ciphers cost 50 ms.
/// - `oops=panic`: a guest kernel in doubt must not produce an output.
const CMDLINE: &str = "quiet loglevel=4 panic=-1 oops=panic mitigations=off random.trust_cpu=on \
                       cryptomgr.notests rdinit=/init";

/// The guest kernel's command line, and these words after it.
pub fn cmdline(extra: &str) -> String {
    format!("{} {CMDLINE} {extra}", Native::CMDLINE).trim_end().to_owned()
}

#[derive(Debug, Clone)]
pub struct KvmConfig {
    /// In the form that the architecture boots: for x86_64 an uncompressed ELF file with a PVH entry.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// Normally `/dev/kvm`.
    pub device: PathBuf,
    pub closure_device: ClosureDevice,
    /// Appended to the guest kernel's command line. For debugging: `loglevel=7`.
    pub extra_cmdline: String,
    /// The executable that answers to `__vmm`: normally this one.
    pub executable: PathBuf,
    /// The cgroup for VMs; none means below the agent's own.
    pub cgroup: Option<PathBuf>,
    /// Steps of the jail that may be missing.
    pub allow_missing: Vec<jail::Step>,
    /// The network of machines that are to have one.
    pub network: Option<NetworkConfig>,
    /// Most templates at a time (`templates`): one for each shape of VM. With 0, every VM boots its kernel.
    pub templates: usize,
}

impl KvmConfig {
    pub fn new(kernel: impl Into<PathBuf>, initrd: impl Into<PathBuf>) -> KvmConfig {
        KvmConfig {
            kernel: kernel.into(),
            initrd: initrd.into(),
            device: "/dev/kvm".into(),
            closure_device: ClosureDevice::default(),
            extra_cmdline: String::new(),
            executable: "/proc/self/exe".into(),
            cgroup: None,
            allow_missing: Vec::new(),
            network: None,
            templates: 0,
        }
    }
}

pub struct KvmBackend {
    launcher: Arc<Launcher>,
    templates: Templates,
    /// See [`keep_kvm_on`]. None if KVM is missing; the first job reports that.
    _keeper: Option<Keeper>,
}

/// Starts VMs of any shape.
struct Launcher {
    config: KvmConfig,
    /// The parent of the VMs' cgroups, or the reason why there is none: then only the VM's own size limits
    /// its memory.
    cgroups: Result<Hierarchy, String>,
}

/// What a VM is started for, and what its guest begins with.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// A machine of somebody's, which boots.
    Machine,
    /// To become a template with this memory.
    Template(&'a File),
    /// A copy of this template. `alone`: it is nobody's machine.
    Copy { of: &'a Template, alone: bool },
}

impl KvmBackend {
    /// Moves the agent into a child of its cgroup if VMs cannot be limited otherwise.
    pub fn new(config: KvmConfig) -> KvmBackend {
        let cgroups = Hierarchy::prepare(config.cgroup.as_deref());
        let _keeper = keep_kvm_on(&config.device)
            .inspect_err(|error| tracing::debug!(%error, "KVM is not kept switched on between VMs"))
            .ok();
        let most = config.templates;
        let launcher = Arc::new(Launcher { config, cgroups });
        KvmBackend { templates: Templates::new(launcher.clone(), most), launcher, _keeper }
    }

    /// Makes templates for these, one after the other, in a thread of its own.
    pub fn prepare(self: &Arc<Self>, likely: Vec<Likely>) {
        let backend = Arc::downgrade(self);
        let work = move || {
            for likely in likely {
                let Some(backend) = backend.upgrade() else { return };
                let shape = likely.shape(Some(backend.launcher.config.closure_device));
                // The reason was logged. Its VMs boot.
                let _ = backend.templates.make(&shape);
            }
        };
        // Without a thread, the first VM of each shape boots.
        let _ = std::thread::Builder::new().name("templates".to_owned()).spawn(work);
    }

    /// Makes the template for machines like this one, if there is none yet. The error says why there is none now.
    pub fn make_template(&self, machine: Machine<'_>) -> Result<(), String> {
        let Inputs::Image(image) = machine.inputs else { return Err("trees have no templates".to_owned()) };
        self.templates.make(&shape_of(machine, image, self.launcher.config.closure_device))
    }

    /// Enters the jail as a VM would, without a VM. Returns the steps that are in force, or an error if a
    /// required one is missing.
    ///
    /// Needs neither KVM nor a guest, and takes milliseconds.
    pub fn check_jail(&self) -> Result<jail::Report, SandboxError> {
        let null = open(Path::new("/dev/null"), "a file for a VMM that runs no VM")?;
        let shape = Shape { vcpus: 1, memory_mib: MEMORY_MIN_MIB, devices: Vec::new() };
        let (mut running, config) = self.launcher.launch(shape)?;
        let config = Config { only_jail: true, ..config };
        let console = running.vmm.console();
        let files = Files {
            kvm: null.as_fd(),
            kernel: null.as_fd(),
            initrd: null.as_fd(),
            console,
            memory: None,
            snapshot: None,
            stream: None,
            net: None,
            additions: None,
        };
        let sent = handover::send(&running.vmm.control, &config, &files, &[]);
        running.wait_for_start(&Cancel::new())?;
        sent.map_err(cannot("hand the jail's check over to a VMM process"))?;
        Ok(running.jail)
    }

    /// Starts a VM and gives it everything it needs; returns when its vCPUs run.
    pub(crate) fn start_vm(&self, machine: Machine<'_>, cancel: &Cancel) -> Result<StartedVm, SandboxError> {
        let Inputs::Image(image) = machine.inputs else {
            let why = "the kvm backend takes its closure as an image, and was given trees".to_owned();
            return Err(SandboxError::Unavailable { why });
        };
        check_inputs(image.segments.len())?;
        let shape = shape_of(machine, image, self.launcher.config.closure_device);
        let start = |work| self.launcher.start(&shape, image, machine.id, work, cancel);
        let Some(template) = self.templates.find(&shape) else {
            let started = start(Work::Machine)?;
            self.templates.want(&shape);
            return Ok(started);
        };
        match start(Work::Copy { of: &template, alone: false }) {
            Err(error) if !cancel.is_cancelled() => {
                // Only if this one starts was the template to blame: a box that has no network left, or no memory, starts neither.
                let started = start(Work::Machine)?;
                self.templates.discard(&template, &error);
                Ok(started)
            }
            started => started,
        }
    }
}

impl Launcher {
    /// Starts a VMM process in a cgroup; returns it with the parts of its configuration that do not depend on
    /// inputs.
    fn launch(&self, shape: Shape) -> Result<(Running, Config), SandboxError> {
        let mut vmm = Vmm::launch(&self.config.executable).map_err(cannot("start a VMM process"))?;
        let mut jail = jail::Report::default();
        let limited = match &self.cgroups {
            Ok(cgroups) => vmm.limit(cgroups, &shape).map_err(|e| e.to_string()),
            Err(why) => Err(why.clone()),
        };
        match limited {
            Ok(()) => jail.active("cgroup"),
            Err(why) => jail.missing(jail::Step::Cgroup, why),
        }
        jail.accept(&self.config.allow_missing)
            .map_err(|incomplete| SandboxError::Unavailable { why: incomplete.to_string() })?;
        let config = Config {
            shape,
            cmdline: cmdline(&self.config.extra_cmdline),
            uid: jail::is_root().then(|| UID_BASE.saturating_add(vmm.pid())),
            allow_missing: self.config.allow_missing.clone(),
            only_jail: false,
            origin: Origin::Boot,
            segments: Vec::new(),
        };
        Ok((Running::new(vmm, jail), config))
    }

    /// Starts a network for this VM.
    fn connect(&self, running: &mut Running) -> Result<Plug, SandboxError> {
        let none = || SandboxError::Unavailable { why: "builders have no network on this box".to_owned() };
        let config = self.config.network.as_ref().ok_or_else(none)?;
        let admit = |pid| running.vmm.admit(pid);
        let (network, plug) =
            Network::start(config, &self.config.executable, &self.config.allow_missing, admit)
                .map_err(cannot("start the network of a VM"))?;
        running.network = Some(network);
        Ok(plug)
    }

    /// Starts a VM of this shape, and gives it everything it needs; returns when its vCPUs run. A VM that is no machine of
    /// somebody's has no network: nothing is behind its network card.
    fn start(
        &self,
        shape: &Shape,
        image: &Image,
        id: &str,
        work: Work<'_>,
        cancel: &Cancel,
    ) -> Result<StartedVm, SandboxError> {
        let is_alone = matches!(work, Work::Template(_) | Work::Copy { alone: true, .. });
        let kvm = open_kvm(&self.config.device)?;
        let kernel = open(&self.config.kernel, "the guest kernel")?;
        let initrd = open(&self.config.initrd, "the guest initrd")?;
        let pair = || UnixStream::pair().map_err(cannot("create a stream for the guest"));
        let (mut guest, theirs) = pair()?;
        let (adding, additions) = shape.has_disk().then(pair).transpose()?.unzip();

        let (mut running, config) = self.launch(shape.clone())?;
        let (origin, memory, snapshot) = match work {
            Work::Machine => (Origin::Boot, None, None),
            Work::Template(memory) => (Origin::Template, Some(memory), None),
            Work::Copy { of, .. } => {
                let (memory, written) = (of.parts.clone(), of.written.clone());
                (Origin::Copy { memory, written }, Some(&of.memory), Some(&of.snapshot))
            }
        };
        let config = Config { origin, segments: segments_of(image), ..config };
        running.is_home = shape.has_disk();
        running.not_passed_on = is_alone.then(|| NotPassedOn::process(running.vmm.pid()));
        let plugs = adding.map(|adding| running.plugs(adding, image.segments.len())).transpose()?;
        let (mut frames, mut network, mut nobody) = (None, None, None);
        if shape.has_network_card() && is_alone {
            let (ours, far) = network::unconnected().map_err(cannot("create a socket for frames"))?;
            (frames, nobody) = (Some(ours), Some(far));
        } else if shape.has_network_card() {
            let plug = self.connect(&mut running)?;
            (frames, network) = (Some(plug.frames), Some(plug.settings));
        }
        running.nobody = nobody;
        let files = Files {
            kvm: kvm.as_fd(),
            kernel: kernel.as_fd(),
            initrd: initrd.as_fd(),
            console: running.vmm.console(),
            memory: memory.map(AsFd::as_fd),
            snapshot: snapshot.map(AsFd::as_fd),
            stream: Some(theirs.as_fd()),
            net: frames.as_ref().map(AsFd::as_fd),
            additions: additions.as_ref().map(AsFd::as_fd),
        };
        let segments: Vec<_> = image.segments.iter().map(|s| s.file.as_fd()).collect();
        // A VMM that ended early sends the reason in a report; that is a better message than "broken pipe".
        let sent = handover::send(&running.vmm.control, &config, &files, &segments);
        drop((theirs, additions, frames));
        running.wait_for_start(cancel)?;
        sent.map_err(cannot("hand the job over to the VMM"))?;
        if let Some(network) = &mut running.network {
            network.wait_for_start(cancel)?;
        }
        if snapshot.is_some() {
            let resume = templates::resume().map_err(cannot("make the seed of a VM"))?;
            // A few hundred bytes into an empty socket.
            guest.write_all(&resume).map_err(cannot("tell a VM that it is a copy"))?;
        }
        tracing::debug!(job = id, pid = running.vmm.pid(), jail = ?running.jail, is_copy = snapshot.is_some(), "VM started");
        Ok(StartedVm { running, streams: Streams { guest }, network, plugs })
    }
}

impl Backend for KvmBackend {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn start(&self, machine: Machine<'_>, cancel: &Cancel) -> Result<Started, SandboxError> {
        let StartedVm { running, streams, network, plugs } = self.start_vm(machine, cancel)?;
        Ok(Started { far_end: Box::new(running), streams, network, plugs })
    }
}

/// A [`Started`] machine that is known to be a micro-VM.
pub(crate) struct StartedVm {
    pub running: Running,
    pub streams: Streams,
    pub network: Option<protocol::Network>,
    pub plugs: Option<Plugs>,
}

/// A VM for this machine. A machine without inputs has no closure to show.
fn shape_of(machine: Machine<'_>, image: &Image, closure: ClosureDevice) -> Shape {
    let Machine { vcpus, memory_mib, network, home, .. } = machine;
    let closure = image.segments.iter().any(|segment| segment.len > 0).then_some(closure);
    Likely { vcpus, memory_mib, network, home }.shape(closure)
}

/// Machines that will be started: with inputs, and otherwise as in [`Machine`].
#[derive(Debug, Clone, Copy)]
pub struct Likely {
    pub vcpus: u8,
    pub memory_mib: u32,
    pub network: bool,
    pub home: bool,
}

impl Likely {
    /// One without a network has no network card, and only a home has a disk that grows.
    fn shape(self, closure: Option<ClosureDevice>) -> Shape {
        let mut devices = vec![DeviceKind::Vsock];
        devices.extend(closure.map(DeviceKind::Closure));
        // After the closure: the guest names disks in this order.
        if self.home {
            devices.push(DeviceKind::Disk);
        }
        devices.push(DeviceKind::Rng);
        if self.network {
            devices.push(DeviceKind::Net);
        }
        Shape {
            vcpus: self.vcpus.clamp(1, Native::VCPUS_MAX),
            memory_mib: self.memory_mib.max(MEMORY_MIN_MIB),
            devices,
        }
    }
}

fn segments_of(image: &Image) -> Vec<(u64, u64)> {
    image.segments.iter().map(|segment| (segment.offset, segment.len)).collect()
}

/// A VM whose vCPUs run. Dropping it ends it.
pub(crate) struct Running {
    /// Dropped before the VM: its processes are in the VM's cgroup, which goes with that.
    network: Option<Network>,
    /// What its network said last.
    last_events: Vec<Event>,
    vmm: Vmm,
    reports: Reports,
    jail: jail::Report,
    stopped: Option<String>,
    /// A home ends with its agent: nobody could go on with the sessions in it.
    is_home: bool,
    /// The other end of a network card that has no network.
    nobody: Option<OwnedFd>,
    /// It is nobody's machine.
    not_passed_on: Option<NotPassedOn>,
}

/// A VM that another program has started, and paused the build in.
pub(crate) fn taken_over(paused: PausedMachine, received: &mut Received) -> std::io::Result<Running> {
    let PausedMachine::Kvm { pid, control, console, stderr, guest, cgroup, reports, network } = paused else {
        return Err(std::io::Error::other("not a micro-VM"));
    };
    let network = network.map(|network| Network::taken_over(network, received)).transpose()?;
    let mut take = |number| received.take(number);
    let vmm = Vmm::taken_over(pid, take(control)?, take(console)?, take(stderr)?, guest, cgroup)?;
    let reports = Reports::taken_over(reports.0.0, reports.1);
    // What the jail consists of was reported when the VM was started.
    Ok(Running { network, reports, ..Running::new(vmm, jail::Report::default()) })
}

impl Running {
    fn new(vmm: Vmm, jail: jail::Report) -> Running {
        let (network, last_events) = (None, Vec::new());
        let (reports, stopped) = (Reports::default(), None);
        let (nobody, not_passed_on) = (None, None);
        Running { network, last_events, vmm, reports, jail, stopped, is_home: false, nobody, not_passed_on }
    }

    /// For what is added to a home. `segments`: parts of the closure.
    fn plugs(&self, adding: UnixStream, segments: usize) -> Result<Plugs, SandboxError> {
        let limit = self.vmm.memory_limit().map_err(cannot("read the memory limit of a VM"))?;
        Plugs::new(adding, segments, limit).map_err(cannot("prepare the disk of a home"))
    }

    /// Which steps of the jail are in force.
    pub(crate) fn jail(&self) -> &jail::Report {
        &self.jail
    }

    /// The end of the console's output.
    pub(crate) fn console(&self) -> String {
        self.vmm.last_words()
    }

    fn wait_for_start(&mut self, cancel: &Cancel) -> Result<(), SandboxError> {
        let cancelled = cancel.event().map_err(cannot("create an eventfd"))?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            if cancel.is_cancelled() {
                return Err(SandboxError::Cancelled);
            }
            match self.next_report(deadline, &cancelled) {
                Next::Report(Report::Started { jail, guest, micros }) => {
                    tracing::debug!(?micros, "VMM: received, jailed, loaded, started");
                    self.vmm.set_guest_ranges(guest);
                    // Added to the steps that the agent took from outside.
                    self.jail.active.extend(jail.active);
                    self.jail.missing.extend(jail.missing);
                    return Ok(());
                }
                Next::Report(Report::Failed { why } | Report::Stopped { why }) => {
                    return Err(SandboxError::Unavailable { why: format!("the VMM says: {why}") });
                }
                Next::Interrupted => {}
                Next::Gone => {
                    self.vmm.let_end(LAST_WORDS);
                    let status = self.vmm.end().0.map(|s| s.to_string()).unwrap_or_default();
                    let words = self.vmm.last_words();
                    let why = format!("the VMM process died before the guest ran ({status}) {words}");
                    return Err(SandboxError::Unavailable { why: why.trim_end().to_owned() });
                }
                Next::Late => {
                    let why =
                        format!("the VMM did not start the guest within {} s", START_PATIENCE.as_secs());
                    return Err(SandboxError::Unavailable { why });
                }
            }
        }
    }

    fn next_report(&mut self, deadline: Instant, cancelled: &OwnedFd) -> Next {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Next::Late;
        }
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(&self.vmm.control, PollFlags::IN), PollFd::new(cancelled, PollFlags::IN)];
        if poll(&mut fds, timeout.as_ref()).is_err() || fds[0].revents().is_empty() {
            return Next::Interrupted;
        }
        match self.reports.read(&self.vmm.control) {
            // One report is expected at a time; of several the last one contains the reason of the end.
            Ok(Some(mut reports)) => reports.pop().map_or(Next::Interrupted, Next::Report),
            Ok(None) | Err(_) => Next::Gone,
        }
    }
}

impl FarEnd for Running {
    fn last_words(&mut self) -> String {
        // The stream ends a moment before the VMM's report arrives.
        let deadline = Instant::now() + LAST_WORDS;
        if let Ok(nothing) = Cancel::new().event() {
            loop {
                match self.next_report(deadline, &nothing) {
                    Next::Report(Report::Stopped { why } | Report::Failed { why }) => {
                        self.stopped = Some(why)
                    }
                    Next::Report(Report::Started { .. }) | Next::Interrupted => {}
                    Next::Gone | Next::Late => break,
                }
            }
        }
        self.vmm.let_end(LAST_WORDS);
        let (ended, _) = self.vmm.end();
        let mut words = self.vmm.last_words();
        if let Some(why) = &self.stopped {
            words.push_str(&format!("\n(the VM stopped: {why})"));
        } else if let Some(status) = ended {
            words.push_str(&format!("\n(the VMM process ended without a word: {status})"));
        }
        words
    }

    fn ran_out_of_memory(&self, last_words: &str) -> bool {
        // The message of mm/oom_kill.c. A guest that prints it without being out of memory deceives only its
        // owner.
        self.vmm.was_killed_for_memory()
            || [
                "Out of memory: Killed process",
                "System is deadlocked on memory",
                "Out of memory and no killable",
            ]
            .iter()
            .any(|words| last_words.contains(words))
    }

    fn written_down(&self) -> Option<PausedMachine> {
        if self.is_home {
            return None;
        }
        let ([control, console, stderr], guest, cgroup) = self.vmm.written_down();
        let (begun, total) = self.reports.written_down();
        let (pid, reports) = (self.vmm.pid(), (Bytes(begun), total));
        let network = self.network.as_ref().map(Network::written_down);
        Some(PausedMachine::Kvm { pid, control, console, stderr, guest, cgroup, reports, network })
    }

    fn network_events(&mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.last_events);
        events.extend(self.network.as_mut().map(Network::events).unwrap_or_default());
        events
    }

    fn network_stream(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref()?.control().map(AsFd::as_fd)
    }

    fn cpu_meter(&self) -> Option<CpuMeter> {
        self.vmm.cpu_meter(self.network.as_ref().map(Network::pid)).ok()
    }

    fn end(&mut self) -> Usage {
        let mut usage = self.vmm.end().1;
        if let Some(network) = &mut self.network {
            self.last_events.extend(network.end());
            usage.network = network.bytes();
            usage.cpu += network.cpu();
        }
        // The cgroup has seen every process of the VM, passt as well. The other count has all there is without one.
        usage.cpu = usage.cpu.max(self.vmm.cpu_of_all().unwrap_or_default());
        usage
    }
}

enum Next {
    Report(Report),
    /// No report yet; try again.
    Interrupted,
    /// The VMM closed its socket or broke the rules of the messages.
    Gone,
    Late,
}

fn cannot<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> SandboxError {
    move |e| SandboxError::Unavailable { why: format!("cannot {what}: {e}") }
}

/// Each segment of a closure is one mapping in the VMM.
fn check_inputs(segments: usize) -> Result<(), SandboxError> {
    if segments <= memory::SEGMENTS_MAX {
        return Ok(());
    }
    Err(SandboxError::Setup {
        why: format!(
            "the closure of the build has {segments} parts, and a micro-VM is shown at most {}: a process may have \
             65,530 mappings (`vm.max_map_count`)",
            memory::SEGMENTS_MAX
        ),
    })
}

fn open(path: &Path, what: &str) -> Result<File, SandboxError> {
    File::open(path).map_err(|e| SandboxError::Unavailable {
        why: format!("cannot open {what} {}: {e}; hint: `netboot-image guest` makes it", path.display()),
    })
}

fn open_kvm(path: &Path) -> Result<File, SandboxError> {
    File::options().read(true).write(true).open(path).map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::NotFound => {
                "load kvm_intel or kvm_amd, and switch on virtualisation in the firmware"
            }
            std::io::ErrorKind::PermissionDenied => "add the agent's user to group `kvm`",
            _ => "look at the kernel log",
        };
        SandboxError::Unavailable {
            why: format!(
                "cannot open {}: {e}; hint: {hint}; or choose the weaker backend = \"namespace\"",
                path.display()
            ),
        }
    })
}

/// A VM without memory that lives as long as the backend, with a processor that never runs.
///
/// With its first VM the kernel switches virtualisation on, on every processor, and patches the scheduler's code
/// (`preempt_notifier_key`, Linux: virt/kvm/kvm_main.c, kernel/sched/core.c); after the last it takes both back. In the same way it
/// patches KVM's code with the first processor whose APIC is switched off, as each is when it is made, and when none is left
/// (`apic_sw_disabled`, Linux: arch/x86/kvm/lapic.c). With one of both that stays, builds do not pay for that. It also matters where
/// the box itself is emulated: QEMU's TCG with several threads can run a stale copy of code that is being patched, and the box's
/// kernel dies of an unexpected int3.
fn keep_kvm_on(device: &Path) -> Result<Keeper, Box<dyn std::error::Error>> {
    use std::os::unix::ffi::OsStrExt;
    let device = std::ffi::CString::new(device.as_os_str().as_bytes())?;
    let kvm = kvm_ioctls::Kvm::new_with_path(device)?;
    let vm = kvm.create_vm()?;
    Native::prepare_vm(&kvm, &vm, 1)?;
    Ok(Keeper { _vcpu: vm.create_vcpu(0)?, _vm: vm })
}

struct Keeper {
    _vcpu: kvm_ioctls::VcpuFd,
    _vm: kvm_ioctls::VmFd,
}

/// The VMM process' main, for `child_main_if_requested`.
pub(crate) fn vmm_main(stdin: OwnedFd) -> ! {
    vmm::main(stdin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Segment;

    #[test]
    fn a_vm_has_the_devices_that_its_machine_needs_and_a_size_within_limits() {
        use DeviceKind::{Closure, Net, Rng, Vsock};
        let segment = |len| Segment { file: File::open("/dev/null").unwrap().into(), offset: 0, len };
        let shape_with = |network, home, vcpus, memory_mib, segments| {
            let inputs = Inputs::Image(Image { segments });
            let Inputs::Image(image) = &inputs else { unreachable!() };
            let machine = Machine { id: "test", vcpus, memory_mib, inputs: &inputs, network, home };
            shape_of(machine, image, ClosureDevice::Blk)
        };
        let shape = |vcpus, memory_mib, segments| shape_with(false, false, vcpus, memory_mib, segments);
        let full =
            Shape { vcpus: 4, memory_mib: 512, devices: vec![Vsock, Closure(ClosureDevice::Blk), Rng] };
        assert_eq!(shape(4, 512, vec![segment(4096)]), full);
        for segments in [vec![], vec![segment(0)]] {
            assert_eq!(shape(4, 512, segments).devices, [Vsock, Rng]);
        }
        assert_eq!((shape(0, 1, vec![]).vcpus, shape(0, 1, vec![]).memory_mib), (1, MEMORY_MIN_MIB));
        assert_eq!(shape(u8::MAX, 1, vec![]).vcpus, Native::VCPUS_MAX);
        assert_eq!(shape_with(true, false, 1, 512, vec![]).devices, [Vsock, Rng, Net]);
        let home = shape_with(true, true, 1, 512, vec![segment(4096)]);
        assert_eq!(home.devices, [Vsock, Closure(ClosureDevice::Blk), DeviceKind::Disk, Rng, Net]);
    }

    /// A VMM that is a script: it reports when its agent says something.
    fn scripted(dir: &Path) -> Running {
        use std::os::unix::fs::PermissionsExt;
        let script = dir.join("vmm");
        std::fs::write(&script, "#!/bin/bash\nread -u 0 word; echo gone >&2; echo \"$word\" >&0; sleep 600")
            .unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let vmm = Vmm::launch(&script).unwrap();
        Running::new(vmm, jail::Report::default())
    }

    #[test]
    fn a_vm_that_another_program_has_started_is_watched_and_ended() {
        let dir = std::env::temp_dir().join(format!("vmm-takeover-test-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut running = scripted(&dir);
        running.vmm.set_guest_ranges(vec![(0, 4096)]);
        // The first bytes of a report were read before.
        running.reports = Reports::taken_over(b"{\"event\":\"stopped\",".to_vec(), 20);
        running.is_home = true;
        assert!(running.written_down().is_none(), "a home ends with its agent");
        running.is_home = false;
        let written = serde_json::to_string(&running.written_down().unwrap()).unwrap();
        let mut paused: PausedMachine = serde_json::from_str(&written).unwrap();
        let PausedMachine::Kvm { pid, control, console, stderr, .. } = &mut paused else { unreachable!() };
        // Copies, as execve(2) would leave them; and no destructor runs.
        let copy = |fd: &dyn std::os::fd::AsFd| fd.as_fd().try_clone_to_owned().unwrap();
        let console_of_vmm = copy(&running.vmm.console());
        let [mine, shown] = [copy(&running.vmm.control), console_of_vmm];
        let said = std::fs::File::open(format!("/proc/self/fd/{stderr}")).unwrap();
        let all = [mine, shown, said.into()];
        [*control, *console, *stderr] = [0, 1, 2].map(|i: usize| std::os::fd::AsRawFd::as_raw_fd(&all[i]));
        let pid = *pid;
        std::mem::forget(running);
        let mut received = all.into_iter().collect::<Received>();
        let mut running = taken_over(paused, &mut received).unwrap();

        std::io::Write::write_all(&mut &running.vmm.control, b"\"why\":\"PowerOff\"}\n").unwrap();
        let deadline = Instant::now() + START_PATIENCE;
        let nothing = Cancel::new().event().unwrap();
        let report = loop {
            match running.next_report(deadline, &nothing) {
                Next::Report(report) => break report,
                Next::Interrupted => {}
                Next::Gone | Next::Late => panic!("no report"),
            }
        };
        assert_eq!(report, Report::Stopped { why: "PowerOff".into() });
        let usage = running.end();
        assert!(usage.cpu > Duration::ZERO, "{usage:?}");
        assert!(running.console().contains("gone"), "{}", running.console());
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        // A process that is no child, as a damaged description could name it.
        let other = PausedMachine::Kvm {
            pid: 1,
            control: 0,
            console: 0,
            stderr: 0,
            guest: Vec::new(),
            cgroup: None,
            reports: (Bytes(Vec::new()), 0),
            network: None,
        };
        assert!(taken_over(other, &mut Received::default()).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_closure_of_too_many_parts_is_refused_naming_the_limit() {
        assert!(check_inputs(memory::SEGMENTS_MAX).is_ok());
        let text = check_inputs(memory::SEGMENTS_MAX + 1).unwrap_err().to_string();
        assert!(text.contains("60001 parts") && text.contains("at most 60000"), "{text}");
    }
}
