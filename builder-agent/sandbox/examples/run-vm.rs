//! Runs one command in a micro-VM and prints its output: for debugging and measuring, without an agent.
//!
//! ```text
//! run-vm --guest DIR [--image FILE.erofs]… [--memory MIB] [--vcpus N] [--device pmem|blk] [--cmdline WORDS] [--processes N] [--probe] [--copies N]
//!        [-- BUILDER ARG…]
//! ```
//! With `--copies` the VM boots once more, as a template, and then the command runs in N copies, one after the other.
//! DIR is made by `netboot-image guest`. Several images are concatenated. `$out` is the NAR printed by size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbox::kvm::{ClosureDevice, KvmBackend, KvmConfig, jail};
use sandbox::{
    Cancel, Host, Image, Inputs, Job, JobRunner, Limits, OutputSink, Segment, child_main_if_requested, probe,
};

const OUT: &str = "/nix/store/00000000000000000000000000000000-out";

struct Stdout;

impl Host for Stdout {
    fn log(&mut self, bytes: &[u8]) {
        let _ = io::stdout().write_all(bytes);
        let _ = io::stdout().flush();
    }

    fn output(&mut self, name: &str) -> io::Result<Box<dyn OutputSink>> {
        Ok(Box::new(Output { name: name.to_owned(), bytes: 0, head: Vec::new() }))
    }
}

struct Output {
    name: String,
    bytes: u64,
    head: Vec<u8>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes += bytes.len() as u64;
        let room = 256usize.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..room]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OutputSink for Output {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let head = String::from_utf8_lossy(&self.head);
        println!("output {}: {} bytes of NAR, {:?}", self.name, self.bytes, head);
        Ok(())
    }
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    child_main_if_requested();
    let mut guest = None;
    let mut segments = Vec::new();
    let (mut memory_mib, mut vcpus, mut processes, mut probing, mut copies) = (1024, 1, 1000, false, 0);
    let mut device = ClosureDevice::Pmem;
    let mut cmdline = String::new();
    let mut command =
        vec!["/bin/sh".to_owned(), "-c".to_owned(), "uname -a; cat /proc/net/dev; echo hi > $out".into()];
    let mut args = std::env::args().skip(1);
    while let Some(argument) = args.next() {
        let mut value = || args.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--guest" => guest = Some(value()?),
            "--image" => {
                let file = File::open(value()?)?;
                let len = file.metadata()?.len().next_multiple_of(4096);
                segments.push(Segment { file: Arc::new(file), offset: 0, len });
            }
            "--memory" => memory_mib = value()?.parse()?,
            "--vcpus" => vcpus = value()?.parse()?,
            "--device" => device = if value()? == "blk" { ClosureDevice::Blk } else { ClosureDevice::Pmem },
            "--cmdline" => cmdline = value()?,
            "--processes" => processes = value()?.parse()?,
            "--probe" => probing = true,
            "--copies" => copies = value()?.parse()?,
            "--" => command = args.by_ref().collect(),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let guest = guest.ok_or("--guest DIR is needed")?;
    let mut config = KvmConfig::new(format!("{guest}/vmlinux"), format!("{guest}/initrd"));
    config.closure_device = device;
    config.extra_cmdline = cmdline;
    // The example runs on developers' machines, which may lack steps of the jail.
    config.allow_missing = jail::Step::ALL.to_vec();
    config.templates = 1;
    let backend = KvmBackend::new(config);
    if probing {
        let probed = probe::probe(&backend, probe::PATIENCE)?;
        println!(
            "{probed}\nphases {:?}\njail {:?}\nmissing {:?}",
            probed.phases, probed.jail_active, probed.jail_missing
        );
        return Ok(());
    }

    let (builder, args) = command.split_first().ok_or("no builder after --")?;
    let env =
        [("out", OUT), ("PATH", "/path-not-set"), ("HOME", "/homeless-shelter"), ("NIX_BUILD_TOP", "/build")];
    let job = Job {
        id: "run-vm".into(),
        system: "x86_64-linux".into(),
        builder: builder.clone().into(),
        args: args.iter().cloned().map(String::into_bytes).collect(),
        env: env.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
        files: Vec::new(),
        etc: Vec::new(),
        outputs: BTreeMap::from([("out".to_owned(), OUT.to_owned())]),
        inputs: Inputs::Image(Image { segments }),
        random_order: false,
        network: false,
        limits: Limits {
            vcpus,
            memory_mib,
            wall: Some(Duration::from_secs(600)),
            silent: None,
            log_bytes: 64 << 20,
            output_bytes: 4 << 30,
            processes,
        },
    };
    if copies == 0 {
        return run(&backend, job);
    }
    let began = Instant::now();
    backend.make_template(job.machine())?;
    println!("the template took {:?}", began.elapsed());
    (0..copies).try_for_each(|_| run(&backend, job.clone()))
}

fn run(backend: &KvmBackend, job: Job) -> Result<(), Failure> {
    let began = Instant::now();
    let run = backend.run(job, &mut Stdout, &Cancel::new());
    println!("took {:?}, used {:?}", began.elapsed(), run.usage);
    let finished = run.result?;
    println!("{:?} on {}", finished.status, finished.kernel);
    for (name, time) in run.phases.named() {
        println!("{name:>20} {:>8.1} ms", time.as_secs_f64() * 1e3);
    }
    Ok(())
}
