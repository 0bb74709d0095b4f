//! Images on a loop device of this host, which has partitions as the disk of a home has.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use guest::protocol::{DISK_BYTES, MAX_DATA, Tag, header};

use super::*;
use crate::machine::home::tests::{can_run, inside, run_again};

const PAGE: u64 = 4096;

fn ok(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A store without paths, and its disk with these trees as images; says where they lie.
fn store(folder: &Path, trees: &[&Path]) -> (Store, Vec<Range>) {
    let (file, mut ranges) = (folder.join("disk"), Vec::new());
    // Nothing begins at the beginning of the disk.
    let mut bytes = vec![0xee; PAGE as usize];
    for tree in trees {
        let image = folder.join("one.erofs");
        ok(Command::new("mkfs.erofs").args(["-E", "force-inode-extended", "-T", "1"]).arg(&image).arg(tree));
        let mut image = fs::read(&image).unwrap();
        image.resize(image.len().next_multiple_of(PAGE as usize), 0);
        ranges.push(Range { offset: bytes.len() as u64, len: image.len() as u64 });
        bytes.extend(image);
    }
    fs::write(&file, bytes).unwrap();
    // As large as that of a home.
    File::options().write(true).open(&file).unwrap().set_len(DISK_BYTES).unwrap();
    let device =
        ok(Command::new("losetup").args(["--find", "--show", "--partscan", "--read-only"]).arg(&file));
    let (dev, dir, staging) = (folder.join("dev"), folder.join("store"), folder.join("staging"));
    fs::create_dir(&dev).unwrap();
    sys::mount("tmpfs", &dev, "tmpfs", 0, "").unwrap();
    fs::create_dir(&dir).unwrap();
    fs::create_dir(folder.join("root")).unwrap();
    fs::create_dir(&staging).unwrap();
    let name = device.trim().trim_start_matches("/dev/");
    let disk = Disk::open(name, Path::new("/sys/block"), &dev).unwrap();
    // It is freed when nobody has it open any more.
    ok(Command::new("losetup").args(["--detach", device.trim()]));
    (Store::new([dir, folder.join("root")], staging, disk), ranges)
}

/// A tree with a path of each kind; `word` is in its files.
fn tree(folder: &Path, word: &str) -> PathBuf {
    let tree = folder.join(format!("tree-{word}"));
    fs::create_dir_all(tree.join("aaa-folder/bin")).unwrap();
    fs::write(tree.join("aaa-folder/bin/tool"), format!("#!/bin/sh\necho {word}\n")).unwrap();
    fs::set_permissions(tree.join("aaa-folder/bin/tool"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::write(tree.join("bbb-file"), word).unwrap();
    symlink("aaa-folder/bin", tree.join("ccc-link")).unwrap();
    tree
}

/// Sends the contents of the request's files; then an empty frame follows, which the store must not take.
fn attach(store: &mut Store, request: &Attach, contents: &[&[u8]]) -> io::Result<()> {
    let (mut host, guest) = UnixStream::pair().unwrap();
    let frames: Vec<u8> = contents
        .iter()
        .flat_map(|contents| contents.chunks(MAX_DATA))
        .flat_map(|piece| [&header(Tag::FileData, piece.len()), piece].concat())
        .collect();
    let sender = std::thread::spawn(move || {
        host.write_all(&frames).unwrap();
        host.write_all(&header(Tag::Done, 0)).unwrap();
    });
    let mut guest_copy = guest.try_clone().unwrap();
    let shown = store.attach(request, &mut Stream::new(guest.into())).unwrap();
    sender.join().unwrap();
    let mut rest = Vec::new();
    guest_copy.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, header(Tag::Done, 0), "the contents of every file are read, and nothing else");
    shown
}

fn request(range: Option<Range>, paths: &[&str], files: &[(&str, u64, bool)]) -> Attach {
    let file = |(name, size, executable): &(&str, u64, bool)| StoreFile {
        name: (*name).to_owned(),
        size: *size,
        executable: *executable,
    };
    Attach {
        number: 1,
        image: range,
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        files: files.iter().map(file).collect(),
        in_root: false,
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Mounts below the folder of the test, but for the one of its devices.
fn mounts(folder: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let below = format!(" {}/", folder.display());
    mounts
        .lines()
        .filter(|line| line.contains(&below) && !line.contains("/dev tmpfs"))
        .map(str::to_owned)
        .collect()
}

const EVERY_KIND: [&str; 3] = ["aaa-folder", "bbb-file", "ccc-link"];

macro_rules! in_namespaces {
    ($test:literal) => {
        match inside() {
            Some(folder) => folder,
            None => {
                if can_run(&["/usr/bin/mkfs.erofs", "/dev/loop-control"]) {
                    run_again(concat!("machine::home::attach::tests::", $test));
                }
                return;
            }
        }
    };
}

#[test]
fn paths_of_an_image_and_small_files_are_shown_as_nix_has_them() {
    let folder = in_namespaces!("paths_of_an_image_and_small_files_are_shown_as_nix_has_them");
    let (mut store, ranges) = store(&folder, &[&tree(&folder, "one"), &tree(&folder, "two")]);
    let long = vec![b'x'; MAX_DATA + 5];
    let files = [("ddd.drv", 6, false), ("eee-script", long.len() as u64, true), ("fff-empty", 0, false)];
    attach(&mut store, &request(Some(ranges[0]), &EVERY_KIND, &files), &[b"Derive", &long, b""]).unwrap();

    let dir = store.dir.clone();
    let all = ["aaa-folder", "bbb-file", "ccc-link", "ddd.drv", "eee-script", "fff-empty"];
    assert_eq!(names(&dir), all);
    assert_eq!(ok(&mut Command::new(dir.join("ccc-link/tool"))), "one\n");
    assert_eq!(fs::read_to_string(dir.join("bbb-file")).unwrap(), "one");
    assert_eq!(fs::read(dir.join("ddd.drv")).unwrap(), b"Derive");
    assert_eq!(fs::read(dir.join("eee-script")).unwrap(), long);
    for (name, mode) in [("ddd.drv", 0o444), ("eee-script", 0o555), ("fff-empty", 0o444), ("ccc-link", 0o777)]
    {
        let metadata = fs::symlink_metadata(dir.join(name)).unwrap();
        let seen = (metadata.mode() & 0o7777, metadata.mtime(), metadata.uid(), metadata.gid());
        assert_eq!(seen, (mode, 1, 0, 0), "{name}");
    }
    // Not even root changes what is in an image, and no mount gives rights.
    let refused = fs::write(dir.join("aaa-folder/bin/tool"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let mounts = mounts(&folder);
    assert_eq!(mounts.len(), 2, "{mounts:?}");
    assert!(mounts.iter().all(|line| line.contains(" erofs ro,nosuid,nodev,")), "{mounts:?}");
    assert!(names(&store.staging).is_empty());

    // What is shown already stays as it is, whatever the next image has.
    let (more, before) = ([("ddd.drv", 5, false)], store.disk.free_partitions());
    attach(&mut store, &request(Some(ranges[1]), &EVERY_KIND, &more), &[b"other"]).unwrap();
    assert_eq!(fs::read_to_string(dir.join("bbb-file")).unwrap(), "one");
    assert_eq!(fs::read(dir.join("ddd.drv")).unwrap(), b"Derive");
    assert_eq!((names(&dir), store.disk.free_partitions()), (all.map(str::to_owned).to_vec(), before));
}

#[test]
fn what_is_no_store_path_is_shown_in_the_root_directory() {
    let folder = in_namespaces!("what_is_no_store_path_is_shown_in_the_root_directory");
    let (mut store, ranges) = store(&folder, &[&tree(&folder, "one")]);
    let request = Attach { in_root: true, ..request(Some(ranges[0]), &["nixpkgs.git"], &[]) };
    attach(&mut store, &request, &[]).unwrap();
    let shown = folder.join("root/nixpkgs.git");
    assert_eq!(names(&shown), EVERY_KIND);
    assert_eq!(fs::read_to_string(shown.join("bbb-file")).unwrap(), "one");
    assert!(names(&store.dir).is_empty() && names(&store.staging).is_empty());
    let wrong = Attach { paths: vec!["..".into()], ..request };
    let error = attach(&mut store, &wrong, &[]).unwrap_err().to_string();
    assert!(error.starts_with("cannot show /..: "), "{error}");
}

#[test]
fn nothing_is_left_of_a_request_that_fails_in_the_middle() {
    let folder = in_namespaces!("nothing_is_left_of_a_request_that_fails_in_the_middle");
    let (mut store, ranges) = store(&folder, &[&tree(&folder, "one")]);
    let dir = store.dir.clone();
    let before = store.disk.free_partitions();
    let file = [("ddd.drv", 3, false)];
    let long = vec![0; 3 * MAX_DATA];
    let mut paths = EVERY_KIND.to_vec();
    paths.push("zzz-not-there");
    let beyond = Range { offset: 1 << 39, len: PAGE };
    let outside = Range { offset: 1 << 40, len: PAGE };
    for (request, sent, why) in [
        (
            request(Some(ranges[0]), &paths, &file),
            vec![&b"one"[..]],
            "/nix/store/zzz-not-there: the image does not have it",
        ),
        (request(Some(beyond), &EVERY_KIND, &file), vec![b"one"], "cannot mount erofs"),
        (request(Some(outside), &EVERY_KIND, &file), vec![b"one"], "are no part of the disk"),
        (request(None, &EVERY_KIND, &file), vec![b"one"], "there are paths and no image"),
        (request(Some(ranges[0]), &["aaa-folder", "../out"], &[]), vec![], "no name of a store path"),
        // The contents of the files after the first that fails are read, too.
        (
            request(None, &[], &[("ok", 3, false), ("..", 3, false), ("long", long.len() as u64, false)]),
            vec![b"one", b"two", &long],
            "no name of a store path",
        ),
    ] {
        let error = attach(&mut store, &request, &sent).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!((names(&dir), mounts(&folder)), (vec![], vec![]), "{error}");
        assert!(names(&store.staging).is_empty());
        assert_eq!(store.disk.free_partitions(), before, "{error}");
    }
    attach(&mut store, &request(Some(ranges[0]), &EVERY_KIND, &[]), &[]).unwrap();
    assert_eq!(names(&dir), EVERY_KIND);
}

#[test]
fn a_full_disk_is_an_error_that_says_so_and_the_conversation_goes_on() {
    let folder = in_namespaces!("a_full_disk_is_an_error_that_says_so_and_the_conversation_goes_on");
    let (mut store, _) = store(&folder, &[]);
    sys::mount("tmpfs", &store.dir, "tmpfs", 0, "size=64k").unwrap();
    let (dir, long) = (store.dir.clone(), vec![1; 1 << 20]);
    let request =
        request(None, &[], &[("small", 3, false), ("large", long.len() as u64, false), ("next", 3, false)]);
    let error = attach(&mut store, &request, &[b"one", &long, b"two"]).unwrap_err().to_string();
    assert!(error.starts_with("cannot show /nix/store/large: "), "{error}");
    assert!(error.ends_with("the disk of this home is full: delete something"), "{error}");
    assert!(names(&dir).is_empty());
    assert_eq!(sys::used_bytes(&dir).unwrap(), 0);
}

#[test]
fn images_beyond_the_last_partition_are_behind_loop_devices() {
    let folder = in_namespaces!("images_beyond_the_last_partition_are_behind_loop_devices");
    let (mut store, ranges) = store(&folder, &[&tree(&folder, "one")]);
    store.disk.use_up_partitions();
    attach(&mut store, &request(Some(ranges[0]), &EVERY_KIND, &[]), &[]).unwrap();
    assert_eq!(ok(&mut Command::new(store.dir.join("aaa-folder/bin/tool"))), "one\n");
    let mounts = mounts(&folder);
    assert!(mounts[0].contains("/dev/loop") && mounts[0].contains(" erofs ro,nosuid,nodev,"), "{mounts:?}");
    for path in EVERY_KIND {
        // Of the two mounts the last one frees the device.
        let _ = sys::unmount(&store.dir.join(path));
    }
}

#[test]
fn paths_that_are_shown_later_appear_in_a_mount_namespace_that_was_made_before() {
    let folder =
        in_namespaces!("paths_that_are_shown_later_appear_in_a_mount_namespace_that_was_made_before");
    let (mut store, ranges) = store(&folder, &[&tree(&folder, "one")]);
    // As in a home.
    sys::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_SHARED, "").unwrap();
    let mut inner = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "sh", "-c", "echo ready; read go; cat $0/bbb-file"])
        .arg(&store.dir)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    inner.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    attach(&mut store, &request(Some(ranges[0]), &EVERY_KIND, &[]), &[]).unwrap();
    inner.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = inner.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one");
}
