//! The kernel's own filter, in threads of the test: a thread whose calls are handed over lists directories, and the others
//! answer. The namespace sandbox's tests do the same with whole builds.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

/// A directory with these files, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(files: usize) -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("listing-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        (0..files).for_each(|file| drop(File::create(path.join(format!("file-{file}"))).unwrap()));
        Folder(path)
    }

    fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }

    fn names(&self) -> BTreeSet<String> {
        names(&self.0).into_iter().collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(path: &Path) -> Vec<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Does the work in a thread that has directories in the random order of a new build.
fn in_random_order<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let (to, listener) = mpsc::channel();
        let worker = scope.spawn(move || {
            sys::no_new_privileges().unwrap();
            to.send(seccomp::hand_over().unwrap()).unwrap();
            work()
        });
        spawn(listener.recv().unwrap()).unwrap();
        worker.join().unwrap()
    })
}

/// The records of one call, each with its position.
fn some(fd: impl AsFd, room: usize) -> Result<Vec<(String, u64)>, Errno> {
    let mut piece = vec![MaybeUninit::uninit(); room];
    let mut directory = RawDir::new(fd, &mut piece);
    let mut all = Vec::new();
    while let Some(entry) = directory.next() {
        let entry = entry?;
        all.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
        if directory.is_buffer_empty() {
            break;
        }
    }
    Ok(all)
}

/// The raw call, with whatever a hostile caller passes.
fn call(number: libc::c_long, fd: RawFd, buffer: *mut u8, room: usize) -> Result<usize, i32> {
    // SAFETY: the callers pass a buffer of that size, or an address where nothing is, which the kernel checks.
    let got = unsafe { libc::syscall(number, fd, buffer, room) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap())
}

#[test]
fn a_directory_keeps_its_order_in_a_build_and_has_another_in_the_next() {
    let folder = Folder::new(50);
    let of_build = || {
        in_random_order(|| {
            let first = names(&folder.0);
            assert_eq!(first, names(&folder.0));
            first
        })
    };
    let (one, other) = (of_build(), of_build());
    assert_ne!(one, other);
    let all = folder.names();
    assert_eq!((all.len(), one.len(), other.len()), (50, 50, 50));
    assert!(one.iter().chain(&other).all(|name| all.contains(name)));
}

#[test]
fn the_entries_of_a_large_directory_are_mixed_over_all_calls_and_each_is_there_once() {
    let folder = Folder::new(3000);
    in_random_order(|| {
        let directory = folder.open();
        let (mut all, mut first) = (Vec::new(), None);
        loop {
            let some = some(&directory, 2048).unwrap();
            if some.is_empty() {
                break;
            }
            first.get_or_insert(some.len());
            all.extend(some.into_iter().map(|(name, _)| name));
        }
        assert_eq!(all[..2], [".", ".."]);
        assert_eq!(all.len(), 3002);
        assert_eq!(all.iter().skip(2).cloned().collect::<BTreeSet<_>>(), folder.names());
        let number = |name: &String| name.trim_start_matches("file-").parse::<usize>().unwrap();
        let of_first: Vec<usize> = all[2..first.unwrap()].iter().map(number).collect();
        assert!(of_first.iter().any(|n| *n < 1000) && of_first.iter().any(|n| *n >= 2000), "{of_first:?}");
    });
}

#[test]
fn a_reader_can_go_on_at_every_position_and_remove_what_it_has_read() {
    let folder = Folder::new(100);
    in_random_order(|| {
        let directory = folder.open();
        let all = some(&directory, 32 << 10).unwrap();
        assert_eq!(all.len(), 102);
        for (index, (_, position)) in all.iter().enumerate() {
            seek(&directory, SeekFrom::Start(*position)).unwrap();
            assert_eq!(some(&directory, 32 << 10).unwrap(), all[index + 1..]);
        }
        seek(&directory, SeekFrom::Start(0)).unwrap();
        loop {
            let some = some(&directory, 512).unwrap();
            if some.is_empty() {
                break;
            }
            for (name, _) in some.iter().filter(|(name, _)| !name.starts_with('.')) {
                fs::remove_file(folder.0.join(name)).unwrap();
            }
        }
        assert_eq!(names(&folder.0), [""; 0]);
    });
}

#[test]
fn what_is_wrong_with_a_call_is_told_as_by_the_kernel() {
    let folder = Folder::new(9);
    let getdents = libc::SYS_getdents64;
    let wrong = |folder: &Folder| {
        let mut buffer = vec![0u8; 4096];
        let at = buffer.as_mut_ptr();
        let (directory, gone) = (folder.open(), Folder::new(0).open());
        let file = File::open(folder.0.join("file-1")).unwrap();
        let path = File::options().read(true).custom_flags(libc::O_PATH).open(&folder.0).unwrap();
        let results = [
            call(getdents, 9999, at, 4096),
            call(getdents, -1, at, 4096),
            call(getdents, file.as_raw_fd(), at, 4096),
            call(getdents, path.as_raw_fd(), at, 4096),
            call(getdents, gone.as_raw_fd(), at, 4096),
            call(getdents, directory.as_raw_fd(), at, 10),
            call(getdents, directory.as_raw_fd(), std::ptr::null_mut(), 4096),
            call(getdents, directory.as_raw_fd(), usize::MAX as *mut u8, 4096),
        ];
        // Nothing was lost by the calls that failed.
        let rest = some(&directory, 4096).unwrap();
        assert_eq!(rest.len(), 11);
        let end = call(getdents, directory.as_raw_fd(), at, 4096);
        (results, end)
    };
    let by_kernel = wrong(&folder);
    assert_eq!(by_kernel.0[0], Err(libc::EBADF));
    assert_eq!(by_kernel.1, Ok(0));
    assert_eq!(in_random_order(|| wrong(&folder)), by_kernel);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_older_call_of_64_bit_programs_gets_its_own_layout() {
    let folder = Folder::new(20);
    fs::create_dir(folder.0.join("folder")).unwrap();
    let old = || {
        let directory = folder.open();
        let mut buffer = vec![0u8; 4096];
        let length = call(libc::SYS_getdents, directory.as_raw_fd(), buffer.as_mut_ptr(), 4096).unwrap();
        let mut rest = &buffer[..length];
        let mut all = Vec::new();
        while !rest.is_empty() {
            let size = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let (record, after) = rest.split_at(size);
            let name = record[18..].split(|byte| *byte == 0).next().unwrap();
            all.push((
                String::from_utf8(name.to_vec()).unwrap(),
                size,
                record[size - 1],
                record[..8].to_vec(),
            ));
            rest = after;
        }
        all
    };
    let (by_kernel, random) = (old(), in_random_order(old));
    assert_ne!(by_kernel, random);
    let sorted = |all: Vec<_>| all.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(by_kernel), sorted(random));
}

/// A 64-bit process can make the calls of a 32-bit one.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_of_a_32_bit_program_is_answered() {
    let folder = Folder::new(20);
    let low = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    // SAFETY: a new mapping below 2 GiB, whose address nobody else has.
    let buffer =
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, low, -1, 0) };
    assert_ne!(buffer, libc::MAP_FAILED);
    let address = buffer as usize;
    let list = || {
        let directory = folder.open();
        let mut result: i64 = 220;
        // SAFETY: getdents64 of i386 writes at most the 4096 bytes of the mapping. rbx has the first argument and may
        // not be named, so it is exchanged.
        unsafe {
            std::arch::asm!(
                "xchg rbx, {fd}", "int 0x80", "xchg rbx, {fd}",
                fd = inout(reg) i64::from(directory.as_raw_fd()) => _,
                inout("rax") result, in("rcx") address, in("rdx") 4096,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        // SAFETY: the kernel has written so many bytes.
        unsafe { std::slice::from_raw_parts(address as *const u8, usize::try_from(result).unwrap()) }.to_vec()
    };
    let (by_kernel, random) = (list(), in_random_order(list));
    assert_ne!(by_kernel, random);
    let records = |bytes: &[u8]| {
        let (mut rest, mut all) = (bytes, BTreeSet::new());
        while !rest.is_empty() {
            let (record, after) = rest.split_at(usize::from(u16::from_ne_bytes([rest[16], rest[17]])));
            all.insert((record[..8].to_vec(), record[16..].to_vec()));
            rest = after;
        }
        all
    };
    assert_eq!(records(&by_kernel).len(), 22);
    // Only the padding behind a name, which means nothing, may differ.
    let names = |all: BTreeSet<(Vec<u8>, Vec<u8>)>| -> BTreeSet<(Vec<u8>, Vec<u8>)> {
        all.into_iter()
            .map(|(inode, rest)| {
                let end = 3 + rest[3..].iter().position(|byte| *byte == 0).unwrap();
                (inode, rest[..end].to_vec())
            })
            .collect()
    };
    assert_eq!(names(records(&by_kernel)), names(records(&random)));
}

#[test]
fn many_threads_at_once_get_their_answers() {
    let folder = Folder::new(200);
    let first = in_random_order(|| {
        let all: Vec<Vec<String>> = thread::scope(|scope| {
            let list = || {
                (0..20).for_each(|_| drop(names(&folder.0)));
                names(&folder.0)
            };
            let threads: Vec<_> = (0..50).map(|_| scope.spawn(list)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|one| *one == all[0]));
        all[0].clone()
    });
    assert_eq!(first.len(), 200);
}

#[test]
fn a_kernel_that_cannot_do_it_is_named_as_the_reason() {
    let refuse = || {
        sys::no_new_privileges().unwrap();
        let give = |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
        let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        let mut steps = [
            libc::sock_filter { code: load, jt: 0, jf: 0, k: 0 },
            libc::sock_filter { code: equal, jt: 0, jf: 1, k: libc::SYS_seccomp as u32 },
            give(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            give(libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        // SAFETY: the program lives until the call returns; the filter is for this thread alone.
        let made = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::c_ulong::from(libc::SECCOMP_MODE_FILTER),
                &raw const program,
            )
        };
        assert_eq!(made, 0);
        seccomp::hand_over().unwrap_err().to_string()
    };
    let said = thread::spawn(refuse).join().unwrap();
    assert!(said.contains("user notification, Linux 5.19"), "{said}");
    // One process can have one such listener above it.
    let said = in_random_order(|| seccomp::hand_over().unwrap_err().to_string());
    assert!(said.contains("does not let the guest answer") && said.contains("busy"), "{said}");
}

proptest! {
    #[test]
    fn whatever_is_in_a_directory_each_entry_is_given_once_and_in_the_order_of_positions(
        entries in prop::collection::vec((FIRST..FIRST + 1000, 1usize..20), 0..300),
        room in 1000usize..4000,
        old: bool,
    ) {
        let layout = if old { Layout::Old } else { Layout::Large };
        let entries: Vec<(u32, CString)> = entries
            .iter()
            .enumerate()
            .map(|(number, (place, length))| (*place, CString::new(format!("{number}-{}", "x".repeat(*length))).unwrap()))
            .collect();
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let mut chosen = Chosen::new(after, room, layout);
            for (place, name) in &entries {
                chosen.add(*place, || Entry { inode: 1, kind: 8, name: name.clone() });
            }
            let (bytes, last) = chosen.records().unwrap();
            prop_assert!(bytes.len() <= room && bytes.len() == chosen.bytes);
            if bytes.is_empty() {
                break;
            }
            prop_assert!(last > after);
            after = last;
            seen.extend(chosen.entries.into_iter().flat_map(|(place, some)| some.into_iter().map(move |e| (place, e.name))));
        }
        let mut sorted = entries.clone();
        sorted.sort_by_key(|(place, _)| *place);
        prop_assert_eq!(seen, sorted);
    }
}
