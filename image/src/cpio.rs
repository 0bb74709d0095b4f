//! A writer for "newc" cpio archives, the format of an initramfs.
//!
//! Entries come out sorted by path, owned by root, with time 0 and inode numbers by position, so that equal
//! contents give equal bytes. Format: kernel `Documentation/driver-api/early-userspace/buffer-format.rst`.
//! Not here: compression, hard links, reading.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// The kernel reads file sizes from eight hex digits.
const MAX_FILE: u64 = u32::MAX as u64;
const TRAILER: &str = "TRAILER!!!";

enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    CharDevice { major: u32, minor: u32 },
}

/// An archive that is assembled in memory. Parent directories are added as needed.
#[derive(Default)]
pub struct Archive {
    /// Path without leading slash -> permissions and contents. The map's order is the archive's order, and a
    /// parent sorts before its children, as the kernel needs it.
    entries: BTreeMap<String, (u32, Node)>,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, mode, Node::Directory);
    }

    pub fn file(&mut self, path: &str, mode: u32, contents: Vec<u8>) {
        self.insert(path, mode, Node::File(contents));
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, 0o777, Node::Symlink(target.into()));
    }

    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.insert(path, mode, Node::CharDevice { major, minor });
    }

    fn insert(&mut self, path: &str, mode: u32, node: Node) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].into()).or_insert((0o755, Node::Directory));
        }
        self.entries.insert(path.into(), (mode, node));
    }

    /// Writes the archive. Refuses a file that is too large for the format before any of its bytes are
    /// written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut written = 0;
        for (position, (path, (mode, node))) in self.entries.iter().enumerate() {
            let (kind, data, device): (u32, &[u8], (u32, u32)) = match node {
                Node::Directory => (0o040_000, &[], (0, 0)),
                Node::File(contents) => (0o100_000, contents, (0, 0)),
                Node::Symlink(target) => (0o120_000, target.as_bytes(), (0, 0)),
                Node::CharDevice { major, minor } => (0o020_000, &[], (*major, *minor)),
            };
            if data.len() as u64 > MAX_FILE {
                return Err(io::Error::other(format!("{path}: {} bytes do not fit into cpio", data.len())));
            }
            let inode = position as u32 + 1;
            written += entry(out, path, inode, kind | mode, data, device)?;
        }
        written += entry(out, TRAILER, 0, 0, &[], (0, 0))?;
        // Boot loaders place the archives of several `initrd` lines one after the other at such boundaries.
        out.write_all(&vec![0; written.next_multiple_of(512) - written])
    }

    pub fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes)?;
        Ok(bytes)
    }
}

fn entry(
    out: &mut dyn Write,
    path: &str,
    inode: u32,
    mode: u32,
    data: &[u8],
    device: (u32, u32),
) -> io::Result<usize> {
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let name_size = path.len() as u32 + 1;
    // Field order: inode, mode, uid, gid, links, mtime, size, device major/minor, node major/minor, name, sum.
    let fields = [inode, mode, 0, 0, links, 0, data.len() as u32, 0, 0, device.0, device.1, name_size, 0];
    let mut header = String::with_capacity(110 + path.len());
    header.push_str("070701");
    for field in fields {
        header.push_str(&format!("{field:08x}"));
    }
    header.push_str(path);
    header.push('\0');
    while !header.len().is_multiple_of(4) {
        header.push('\0');
    }
    out.write_all(header.as_bytes())?;
    out.write_all(data)?;
    let padding = data.len().next_multiple_of(4) - data.len();
    out.write_all(&[0; 4][..padding])?;
    Ok(header.len() + data.len() + padding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    use std::process::Command;

    fn sample() -> Archive {
        let mut archive = Archive::new();
        archive.file("/modules/b.ko", 0o644, b"bee".to_vec());
        archive.file("/modules/a.ko", 0o600, vec![1; 4097]);
        archive.file("init", 0o755, Vec::new());
        archive.symlink("bin/sh", "busybox");
        archive
    }

    #[test]
    fn gnu_cpio_unpacks_what_we_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = sample().to_bytes().unwrap();
        crate::tool::output_with_input(
            Command::new("cpio").args(["-idm", "--quiet"]).current_dir(dir.path()),
            &bytes,
            "unpack",
        )
        .unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert_eq!(read("modules/a.ko"), vec![1; 4097]);
        assert_eq!(read("modules/b.ko"), b"bee");
        let mode =
            |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("init"), mode("modules/a.ko"), mode("modules")), (0o755, 0o600, 0o755));
        assert_eq!(std::fs::read_link(dir.path().join("bin/sh")).unwrap().to_str(), Some("busybox"));
    }

    #[test]
    fn the_console_is_a_character_device_and_lists_as_one() {
        let mut archive = Archive::new();
        archive.char_device("dev/console", 0o600, 5, 1);
        let listing = crate::tool::output_with_input(
            Command::new("cpio").args(["-tv", "--quiet"]),
            &archive.to_bytes().unwrap(),
            "list",
        )
        .unwrap();
        let listing = String::from_utf8(listing).unwrap();
        let line = listing.lines().find(|line| line.ends_with("dev/console")).unwrap();
        assert!(line.starts_with("crw-------") && line.contains("5,   1"), "{line}");
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }

    #[test]
    fn order_of_insertion_does_not_show() {
        let mut other = Archive::new();
        other.symlink("bin/sh", "busybox");
        other.file("init", 0o755, Vec::new());
        other.file("modules/a.ko", 0o600, vec![1; 4097]);
        other.file("modules/b.ko", 0o644, b"bee".to_vec());
        assert_eq!(other.to_bytes().unwrap(), sample().to_bytes().unwrap());
        assert_eq!(other.to_bytes().unwrap().len() % 512, 0);
    }
}
