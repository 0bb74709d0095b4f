//! Chooses how QEMU runs a box: with the hardware's KVM if that really works, otherwise in software.
//!
//! A `/dev/kvm` that opens proves little: some cannot run a Linux kernel at all. So this module boots the release's
//! kernel and waits for its first line. Not here: whether KVM works *inside* the box (`builder-agent sandbox probe`).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A kernel on working KVM prints its first line within a second; on broken KVM it never does.
const PROBE: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    Auto,
    Kvm,
    Tcg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            // QEMU's software EPYC has AMD's virtualisation, so the box's own /dev/kvm works.
            // Without cx16: QEMU 7.2 computes wrong flags after cmpxchg16b, which mislead the kernel's allocator
            // ("double fault" in __kmalloc, in the box and in its micro-VMs).
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt,-cx16"],
        }
    }
}

/// Chooses, and returns the reason.
pub fn choose(choice: Choice, kernel: &Path, scratch: &Path) -> (Accel, String) {
    match choice {
        Choice::Kvm => (Accel::Kvm, "as asked".into()),
        Choice::Tcg => (Accel::Tcg, "as asked".into()),
        Choice::Auto => match why_not_kvm(kernel, scratch) {
            None => (Accel::Kvm, "hardware KVM ran a kernel".into()),
            Some(why) => (Accel::Tcg, why),
        },
    }
}

fn why_not_kvm(kernel: &Path, scratch: &Path) -> Option<String> {
    if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("no usable /dev/kvm".into());
    }
    let nested = |vendor| std::fs::read_to_string(format!("/sys/module/kvm_{vendor}/parameters/nested"));
    // Without nested virtualisation the box would boot fast but could not build.
    if let Ok(nested) = nested("intel").or_else(|_| nested("amd"))
        && !matches!(nested.trim(), "Y" | "1")
    {
        return Some("hardware KVM is not nested, the box could not run micro-VMs".into());
    }
    // The result is valid until the machine restarts.
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let memory = scratch.join("kvm-probe");
    if let Ok(answer) = std::fs::read_to_string(&memory)
        && let Some(why) = answer.strip_prefix(&boot)
    {
        return (!why.is_empty()).then(|| why.to_owned());
    }
    let why = boots_with_kvm(kernel, &scratch.join("kvm-probe.log")).err();
    // An error only costs another probe.
    drop(std::fs::write(&memory, boot + why.as_deref().unwrap_or_default()));
    why
}

fn boots_with_kvm(kernel: &Path, log: &Path) -> Result<(), String> {
    drop(std::fs::remove_file(log));
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-machine", "q35", "-m", "512", "-smp", "1", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(Accel::Kvm.arguments())
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 earlyprintk=serial panic=-1"])
        .args(["-serial", &format!("file:{}", log.display())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start QEMU: {error}"))?;
    let deadline = Instant::now() + PROBE;
    let answer = loop {
        if std::fs::read(log).is_ok_and(|text| text.windows(13).any(|window| window == b"Linux version")) {
            break Ok(());
        }
        if let Ok(Some(status)) = child.try_wait() {
            break Err(format!("hardware KVM cannot run a kernel (QEMU ended with {status})"));
        }
        if Instant::now() > deadline {
            break Err(format!("hardware KVM cannot run a kernel (nothing in {} s)", PROBE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    // Fails only if the child has ended.
    drop(child.kill());
    drop(child.wait());
    answer
}
