//! Releases from a small fake base system: which files are copied over it, and that two runs give equal bytes.

use super::*;
use crate::root::sorted;
use std::os::unix::fs::PermissionsExt;

/// Inputs whose binaries are text files, next to a base tree in `dir/base`.
fn inputs(dir: &Path) -> Inputs {
    let binary = dir.join("binary");
    std::fs::write(&binary, "a program").unwrap();
    Inputs {
        kernel: crate::testing::fake_kernel(dir),
        guest_kernel: crate::testing::fake_kernel(dir),
        agent: binary.clone(),
        access_manager: binary.clone(),
        guest: binary.clone(),
        busybox: binary,
        home: None,
        rootfs: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs")],
        roster: br#"{"schema":1,"members":[]}"#.to_vec(),
        roster_repo: Some("https://example.org/roster.git".into()),
        roster_branch: "main".into(),
        roster_host: Some("box".into()),
        commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
        modified: false,
    }
}

fn tree(dir: &Path, name: &str) -> PathBuf {
    let tree = dir.join(name);
    for sub in ["usr/lib/udev/hwdb.d", "usr/bin", "etc/apt", "var/lib/dpkg"] {
        std::fs::create_dir_all(tree.join(sub)).unwrap();
    }
    std::os::unix::fs::symlink("usr/lib", tree.join("lib")).unwrap();
    std::fs::write(tree.join("etc/hostname"), "from-the-base\n").unwrap();
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nx:x:899:1::/:/bin/sh\n").unwrap();
    std::fs::write(tree.join("etc/group"), "root:x:0:\ny:x:898:\n").unwrap();
    std::fs::write(tree.join("usr/bin/tool"), vec![7; 100_000]).unwrap();
    tree
}

#[test]
fn the_same_inputs_give_bit_identical_files() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let inputs = inputs(dir.path());
    let make = |name: &str| {
        let tree = tree(dir.path(), name);
        lay_out(&inputs, &tree).unwrap();
        let image = dir.path().join(format!("{name}.erofs"));
        root::pack(&tree, &image, &[], "pack").unwrap();
        let root = std::fs::read(image).unwrap();
        let out = dir.path().join(format!("{name}-out"));
        write_release(&inputs, "hash", BTreeMap::new(), root, &out).unwrap();
        out
    };
    let (once, twice) = (make("once"), make("twice"));
    for name in manifest::FILES.into_iter().chain([manifest::FILE_NAME]) {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert!(read(&once) == read(&twice), "{name} differs");
    }
    manifest::open(&once).unwrap();
}

#[test]
fn any_changed_input_changes_the_hash_and_a_touched_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut inputs = inputs(dir.path());
    let first = inputs_hash("base", &inputs).unwrap();
    std::fs::write(&inputs.agent, "a program").unwrap();
    assert_eq!(inputs_hash("base", &inputs).unwrap(), first);
    assert_ne!(inputs_hash("another base", &inputs).unwrap(), first);
    std::fs::write(&inputs.agent, "b program").unwrap();
    let second = inputs_hash("base", &inputs).unwrap();
    assert_ne!(second, first);
    inputs.roster_repo = None;
    assert_ne!(inputs_hash("base", &inputs).unwrap(), second);
}

#[test]
fn our_files_win_over_the_bases_and_the_package_database_goes() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = tree(dir.path(), "tree");
    lay_out(&inputs(dir.path()), &tree).unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("etc/hostname")).unwrap(), "barnraiser\n");
    assert!(!tree.join("etc/apt").exists() && !tree.join("usr/lib/udev/hwdb.d").exists());
    let mode = |path: &str| std::fs::metadata(tree.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("usr/lib/barnraiser/builder-agent"), 0o755);
    assert_eq!(mode("usr/lib/barnraiser/roster-sync"), 0o755);
    assert_eq!(mode("etc/systemd/system/builder-agent.service"), 0o644);
    assert!(tree.join("persist").is_dir() && !tree.join("persist/.keep").exists());
    let conf = std::fs::read_to_string(tree.join("etc/barnraiser/roster.conf")).unwrap();
    assert!(conf.contains("ROSTER_REPO='https://example.org/roster.git'\n"), "{conf}");
}

#[test]
fn the_users_of_roster_and_mirrors_exist_and_are_nobody_else() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = tree(dir.path(), "tree");
    lay_out(&inputs(dir.path()), &tree).unwrap();
    for (user, id) in [(ROSTER_USER, 897), (MIRRORS_USER, 896)] {
        let line = |file: &str| {
            let text = std::fs::read_to_string(tree.join(file)).unwrap();
            assert!(text.starts_with("root:x:0:"), "{text}");
            let start = format!("{user}:");
            text.lines().find(|line| line.starts_with(&start)).unwrap_or_default().to_owned()
        };
        let passwd = line("etc/passwd");
        assert!(
            passwd.starts_with(&format!("{user}:x:{id}:{id}:")) && passwd.ends_with(":/usr/sbin/nologin"),
            "{passwd}"
        );
        assert_eq!(line("etc/group"), format!("{user}:x:{id}:"));
    }
    for (name, user) in [("barnraiser-roster", ROSTER_USER), ("barnraiser-mirrors", MIRRORS_USER)] {
        let unit = tree.join(format!("etc/systemd/system/{name}.service"));
        let unit = std::fs::read_to_string(unit).unwrap();
        assert!(unit.contains(&format!("\nUser={user}\nGroup={user}\n")), "{unit}");
    }
}

#[test]
fn a_roster_address_that_a_shell_would_run_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for evil in ["'; reboot '", "$(reboot)", "a b", "x\ny"] {
        let mut inputs = inputs(dir.path());
        inputs.roster_repo = Some(evil.into());
        let error = lay_out(&inputs, &tree(tempfile::tempdir().unwrap().path(), "t")).unwrap_err();
        assert!(matches!(error, BuildError::RosterSetting(_)), "{error}");
    }
}

/// `ssh box sync` replaces this file in the state directory of the agent (`ssh::commands::sync`).
#[test]
fn the_unit_that_waits_for_a_maintainer_waits_for_the_file_of_the_agent() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    let unit = read("rootfs/etc/systemd/system/barnraiser-sync.path");
    let command = read("../builder-agent/ssh/src/commands/sync.rs");
    assert!(
        unit.contains("PathChanged=/var/lib/barnraiser/sync-requested\nUnit=barnraiser-roster.service"),
        "{unit}"
    );
    assert!(command.contains("const REQUEST: &str = \"sync-requested\";"));
    assert!(root.join("rootfs/etc/systemd/system/multi-user.target.wants/barnraiser-sync.path").exists());
}

#[test]
fn every_enabled_unit_of_ours_exists() {
    let system = Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs/etc/systemd/system");
    let mut checked = 0;
    for wants in sorted(&system).unwrap().iter().filter(|path| path.to_string_lossy().ends_with(".wants")) {
        for link in sorted(wants).unwrap() {
            let target = std::fs::read_link(&link).unwrap();
            if target.is_relative() {
                assert!(link.exists(), "{} leads nowhere", link.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 5, "only {checked} units are enabled");
}

#[test]
fn the_boot_script_names_its_files_relatively_and_tries_again() {
    let script = boot_script(Some("0123456789abcdef0123456789abcdef01234567"));
    assert!(script.starts_with("#!ipxe\n"), "iPXE knows a script by its first line");
    assert!(script.contains("\nkernel kernel initrd=initrd ") && script.contains("\ninitrd initrd "));
    assert!(script.contains("console=ttyS0") && script.contains("0123456789ab\n"));
    assert!(!script.contains("http"), "{script}");
    for step in ["kernel kernel", "initrd initrd", "boot "] {
        let line = script.lines().find(|line| line.starts_with(step)).unwrap();
        assert!(line.ends_with("|| goto retry"), "{line}");
    }
}

#[test]
fn the_boxes_initrd_loads_every_module_before_the_mounts_that_need_it() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = initrd(&inputs(dir.path()), b"erofs image".to_vec()).unwrap();
    let mut cpio = Command::new("cpio");
    cpio.args(["-id", "--quiet"]).current_dir(dir.path());
    tool::output_with_input(&mut cpio, &bytes, "unpack").unwrap();
    assert_eq!(
        std::fs::read_to_string(dir.path().join("modules/order")).unwrap(),
        "loop.ko\nerofs.ko\noverlay.ko\nvirtio_net.ko\n"
    );
    assert_eq!(std::fs::read(dir.path().join("root.erofs")).unwrap(), b"erofs image");
    assert!(!dir.path().join(home::FILE_NAME).exists(), "a release without homes");
    let insmod = INIT.find("insmod").unwrap();
    assert!(INIT.find("mount -t erofs").unwrap() > insmod && INIT.find("mount -t overlay").unwrap() > insmod);
}

#[test]
fn homes_have_their_root_beside_the_boxes_and_a_mount_keeps_it_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut inputs = inputs(dir.path());
    let image = dir.path().join("cached.erofs");
    std::fs::write(&image, "image of homes").unwrap();
    let without = inputs_hash("base", &inputs).unwrap();
    inputs.home = Some(Home {
        image,
        key: "key".into(),
        packages: BTreeMap::from([("bash".to_owned(), "5".to_owned())]),
        unpacked: 0,
        made: false,
    });
    assert_ne!(inputs_hash("base", &inputs).unwrap(), without);
    let out = dir.path().join("out");
    write_release(&inputs, "hash", BTreeMap::new(), b"erofs image".to_vec(), &out).unwrap();
    let release = manifest::open(&out).unwrap();
    assert_eq!(release.manifest.home_packages["bash"], "5");
    let text = String::from_utf8(release.manifest_bytes).unwrap();
    assert!(text.contains("\"home-packages\""), "{text}");
    let unpacked = dir.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let mut cpio = Command::new("cpio");
    cpio.args(["-id", "--quiet"]).current_dir(&unpacked);
    tool::output_with_input(&mut cpio, &std::fs::read(out.join("initrd")).unwrap(), "unpack").unwrap();
    let file = unpacked.join(home::FILE_NAME);
    assert_eq!(std::fs::read(&file).unwrap(), b"image of homes");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o444);
    // Shown before switch_root deletes its name, and beside the programs, where only root may write.
    let shown = INIT.find(&format!("home=/root/{PROGRAMS}/{}\n", home::FILE_NAME)).unwrap();
    assert!(INIT.find("mount -t overlay").unwrap() < shown);
    assert!(shown < INIT.find("switch_root /root").unwrap());
}
