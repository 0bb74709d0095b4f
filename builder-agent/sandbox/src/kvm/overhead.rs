//! The memory of a VMM process: with the guest's, and without it.
//!
//! Without it: resident pages of every mapping that is neither guest RAM nor closure: code (which all VMs
//! share with the agent, and which is counted here nevertheless), heap, stacks, device buffers. Measured
//! once, when the job ends: the VMM gives no memory back, so that is its peak. The kernel's own memory for
//! KVM is not included.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};

/// A VMM has some hundred mappings. A hostile one may have 65,530 (vm.max_map_count); no more than this is
/// read.
const SMAPS_MAX: u64 = 4 << 20;

pub fn of_process(pid: u32, guest: &[(u64, u64)]) -> Option<u64> {
    let smaps = File::open(format!("/proc/{pid}/smaps")).ok()?;
    sum(BufReader::new(smaps.take(SMAPS_MAX)), guest)
}

/// The most memory that was resident at one time: guest memory, the touched parts of the closure, and the VMM's own.
pub fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = kib.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

fn sum(smaps: impl BufRead, guest: &[(u64, u64)]) -> Option<u64> {
    let mut own = false;
    let mut bytes = 0u64;
    let mut any = false;
    for line in smaps.lines() {
        let line = line.ok()?;
        if let Some(start) = mapping_start(&line) {
            own = !guest.iter().any(|(at, len)| start >= *at && start < at.saturating_add(*len));
        } else if own && let Some(kib) = line.strip_prefix("Rss:") {
            any = true;
            let kib: u64 = kib.trim().trim_end_matches(" kB").trim().parse().ok()?;
            bytes = bytes.saturating_add(kib.saturating_mul(1024));
        }
    }
    any.then_some(bytes)
}

/// `55d0c0e00000-55d0c0e21000 rw-p …`
fn mapping_start(line: &str) -> Option<u64> {
    let (range, _) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    u64::from_str_radix(end, 16).ok()?;
    u64::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 r-xp 00000000 fe:01 1 /usr/bin/builder-agent
Size:                  8 kB
Rss:                   8 kB
Pss:                   4 kB
100000-900000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                4096 kB
900000-901000 rw-p 00000000 00:00 0 [stack]
Rss:                   4 kB
";

    #[test]
    fn guest_memory_is_not_overhead() {
        assert_eq!(sum(SMAPS.as_bytes(), &[(0x100000, 0x800000)]), Some(12 * 1024));
        assert_eq!(sum(SMAPS.as_bytes(), &[]), Some((12 + 4096) * 1024));
    }

    #[test]
    fn an_unreadable_process_has_no_number_rather_than_zero() {
        assert_eq!(sum(&b""[..], &[]), None);
        assert_eq!((of_process(u32::MAX, &[]), peak(u32::MAX)), (None, None));
    }

    #[test]
    fn a_real_process_has_a_number() {
        let now = of_process(std::process::id(), &[]).unwrap();
        assert!(now > 100_000);
        let block = std::hint::black_box(vec![1u8; 64 << 20]);
        drop(block);
        assert!(peak(std::process::id()).unwrap() >= 64 << 20);
    }
}
