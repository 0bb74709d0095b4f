//! The list of packages, and small trees that stand for the base system of homes.

use super::*;

fn ours() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("home")
}

#[test]
fn every_package_is_in_the_list_once() {
    let mut names = PACKAGES.to_vec();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), PACKAGES.len());
    for (unwanted, _) in UNWANTED {
        assert!(!PACKAGES.contains(&unwanted), "{unwanted}");
    }
}

#[test]
fn a_package_that_a_home_must_not_have_is_refused_by_name() {
    let packages = |names: &[&str]| names.iter().map(|name| (name.to_string(), "1".to_owned())).collect();
    refuse_unwanted(&packages(&["bash", "gcc-14-base", "libsystemd0", "systemd-standalone-sysusers"]))
        .unwrap();
    for name in ["systemd", "udev", "sudo", "linux-image-6.12-cloud-amd64"] {
        let error = refuse_unwanted(&packages(&["bash", name])).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains("rdepends"), "{error}");
    }
}

#[test]
fn what_differs_from_home_to_home_or_needs_root_is_not_in_the_image() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = dir.path();
    for sub in ["etc/ssh", "etc/skel", "var/lib/dpkg/info", "var/log", "usr/bin", "usr/lib"] {
        std::fs::create_dir_all(tree.join(sub)).unwrap();
    }
    for (file, mode) in [
        ("etc/ssh/ssh_host_ed25519_key", 0o600),
        ("etc/ssh/ssh_host_ed25519_key.pub", 0o644),
        ("etc/ssh/moduli", 0o644),
        ("etc/skel/.bashrc", 0o644),
        ("etc/shadow-", 0o600),
        ("etc/hostname", 0o644),
        ("etc/rc0.d", 0o644),
        ("usr/lib/__pycache__", 0o644),
        ("usr/bin/su", 0o4755),
        ("usr/bin/ssh-agent", 0o2755),
    ] {
        put(&tree.join(file), b"12345", mode).unwrap();
    }
    chmod(&tree.join("var/log"), 0o2775).unwrap();
    std::fs::create_dir_all(tree.join("tmp")).unwrap();
    chmod(&tree.join("tmp"), 0o1777).unwrap();
    lay_out(tree, &[]).unwrap();
    assert_eq!(strip(tree).unwrap(), 3 * 5);
    let mode = |path: &str| std::fs::metadata(tree.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("usr/bin/su"), mode("usr/bin/ssh-agent")), (0o755, 0o755));
    assert_eq!((mode("var/log"), mode("tmp")), (0o755, 0o1777));
    let left: Vec<PathBuf> = root::sorted(&tree.join("etc/ssh")).unwrap();
    assert_eq!(left, [tree.join("etc/ssh/moduli")]);
    assert!(root::sorted(&tree.join("etc/skel")).unwrap().is_empty());
    for gone in ["etc/shadow-", "etc/hostname", "etc/rc0.d", "usr/lib/__pycache__"] {
        assert!(!tree.join(gone).exists(), "{gone}");
    }
}

#[test]
fn a_changed_file_or_base_makes_another_image_and_a_touched_file_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let folders = [dir.path().to_path_buf()];
    let file = dir.path().join("file");
    std::fs::write(&file, "one").unwrap();
    let first = key("base", &folders).unwrap();
    std::fs::write(&file, "one").unwrap();
    assert_eq!(key("base", &folders).unwrap(), first);
    assert_ne!(key("another", &folders).unwrap(), first);
    std::fs::write(&file, "two").unwrap();
    assert_ne!(key("base", &folders).unwrap(), first);
}

#[test]
fn an_image_is_made_once_for_its_inputs_and_the_same_each_time() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = dir.path().join("base");
    for sub in ["var/lib/dpkg", "etc", "usr/bin"] {
        std::fs::create_dir_all(tree.join(sub)).unwrap();
    }
    std::fs::write(tree.join("var/lib/dpkg/status"), "Package: bash\nVersion: 5\n").unwrap();
    std::fs::write(tree.join("usr/bin/bash"), vec![7; 100_000]).unwrap();
    let make = |name: &str| {
        let cache = dir.path().join(name);
        std::fs::create_dir(&cache).unwrap();
        let base = Base { tar: cache.join("base.tar"), key: "key".into() };
        let mut tar = std::process::Command::new("tar");
        crate::tool::output(tar.arg("-cf").arg(&base.tar).arg("-C").arg(&tree).arg("."), "pack").unwrap();
        std::fs::write(cache.join("0123.erofs"), "of other inputs").unwrap();
        let home = super::make(&base, &[ours()]).unwrap();
        assert!(home.made && home.packages["bash"] == "5");
        assert!(!cache.join("0123.erofs").exists());
        let again = super::make(&base, &[ours()]).unwrap();
        assert!(!again.made && again.packages == home.packages && again.unpacked == home.unpacked);
        let out = cache.join("out");
        let size = write(&again, &out).unwrap();
        let bytes = std::fs::read(out.join(FILE_NAME)).unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes
    };
    assert!(make("once") == make("twice"));
}
