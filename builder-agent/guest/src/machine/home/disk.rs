//! The growing disk: the host puts images on it while the home runs, and each becomes a device of its own.
//!
//! A part of a disk that the kernel can mount is a partition. A disk has 255 of them, and an image stays mounted for as long
//! as the home lives; those that come later are behind loop devices.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest::protocol::{DISK_BYTES, Range};

use crate::sys::{self, block};

/// Partitions have the numbers from 1 to this (Linux: DISK_MAX_PARTS).
const PARTITIONS: u32 = 255;
/// The kernel counts the size of every disk in these.
const SECTOR: u64 = 512;
const LOOP_CONTROL: (u32, u32) = (10, 237);

pub struct Disk {
    /// Such as `vda`.
    name: String,
    /// Where the kernel describes block devices.
    sys: PathBuf,
    /// Where their nodes are made.
    dev: PathBuf,
    open: File,
    /// Numbers of partitions that nobody has; the last is the next.
    free: Vec<u32>,
}

/// A part of the disk as a device.
pub struct Part {
    /// Its node, which root alone can open.
    pub device: PathBuf,
    kind: Kind,
}

enum Kind {
    Partition(u32),
    /// Open until it is mounted: otherwise it would lose its configuration.
    Loop(#[expect(dead_code, reason = "it only has to stay open")] File),
}

/// The name of the disk of this size, which appears within `patience`.
pub fn find(sys: &Path, bytes: u64, patience: Duration) -> io::Result<String> {
    let began = Instant::now();
    loop {
        let names = fs::read_dir(sys)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let size =
            |name: &String| fs::read_to_string(sys.join(name).join("size")).ok()?.trim().parse::<u64>().ok();
        if let Some(name) = names.filter(|name| size(name) == Some(bytes / SECTOR)).min() {
            return Ok(name);
        }
        if began.elapsed() > patience {
            let why = format!("no disk of {bytes} bytes appeared within {} ms", patience.as_millis());
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Disk {
    pub fn open(name: &str, sys: &Path, dev: &Path) -> io::Result<Disk> {
        let node = dev.join(name);
        make_node(&node, libc::S_IFBLK, number(&sys.join(name))?)?;
        // Loop devices read past the page cache of the disk: what is beyond the images was not there when it was read.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&node)?;
        let free = (1..=PARTITIONS).rev().collect();
        Ok(Disk { name: name.to_owned(), sys: sys.to_owned(), dev: dev.to_owned(), open, free })
    }

    /// Makes a device of this part of the disk.
    pub fn part(&mut self, range: Range) -> io::Result<Part> {
        // The host counts in the same way, so this would be a mistake of ours and no attack.
        let end = range.offset.checked_add(range.len);
        if range.len == 0 || end.is_none_or(|end| end > DISK_BYTES) {
            let why = format!("{} bytes from {} on are no part of the disk", range.len, range.offset);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        match self.free.pop() {
            Some(number) => self.partition(number, range).inspect_err(|_| self.free.push(number)),
            None => self.loop_device(range).map_err(|e| {
                let why = format!(
                    "{PARTITIONS} images are attached, and for more there is no loop device: {e}; open a new home"
                );
                io::Error::new(e.kind(), why)
            }),
        }
    }

    /// Gives back a part that is not mounted any more. One that cannot be given back yet is never used again.
    pub fn give_back(&mut self, part: Part) {
        if let Kind::Partition(number) = part.kind
            && block::remove_partition(&self.open, number).is_ok()
        {
            self.free.push(number);
        }
        let _ = fs::remove_file(part.device);
    }

    fn partition(&self, number: u32, range: Range) -> io::Result<Part> {
        block::add_partition(&self.open, number, range.offset, range.len).map_err(|e| {
            let (Range { offset, len }, name) = (range, &self.name);
            let what =
                format!("cannot make {len} bytes from {offset} on the partition {number} of {name}: {e}");
            io::Error::new(e.kind(), what)
        })?;
        // The kernel writes a p between two numbers.
        let separator = if self.name.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
        let name = format!("{}{separator}{number}", self.name);
        let device = self.dev.join(&name);
        let made = self::number(&self.sys.join(&self.name).join(&name))
            .and_then(|number| make_node(&device, libc::S_IFBLK, number));
        if let Err(e) = made {
            let _ = block::remove_partition(&self.open, number);
            return Err(e);
        }
        Ok(Part { device, kind: Kind::Partition(number) })
    }

    fn loop_device(&self, range: Range) -> io::Result<Part> {
        let control = self.dev.join("loop-control");
        make_node(&control, libc::S_IFCHR, LOOP_CONTROL)?;
        let name = format!("loop{}", block::free_loop_device(&File::open(&control)?)?);
        let device = self.dev.join(&name);
        make_node(&device, libc::S_IFBLK, number(&self.sys.join(&name))?)?;
        let open = File::open(&device)?;
        block::configure_loop_device(&open, &self.open, range.offset, range.len)?;
        Ok(Part { device, kind: Kind::Loop(open) })
    }
}

#[cfg(test)]
impl Disk {
    pub fn free_partitions(&self) -> usize {
        self.free.len()
    }

    pub fn use_up_partitions(&mut self) {
        self.free.clear();
    }
}

/// Major and minor number, from what the kernel says about a device.
fn number(device: &Path) -> io::Result<(u32, u32)> {
    let file = device.join("dev");
    let text = fs::read_to_string(&file)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot read {}: {e}", file.display())))?;
    let numbers = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| io::Error::other(format!("{text:?} in {} are no two numbers", file.display())))
}

/// A node from before may stand for another device.
fn make_node(node: &Path, kind: libc::mode_t, (major, minor): (u32, u32)) -> io::Result<()> {
    let _ = fs::remove_file(node);
    sys::make_private_device(node, kind, major, minor)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot make {}: {e}", node.display())))
}
