//! The first build must work even if a mirror is incomplete: real apt and our real downloads, against a small
//! archive whose newest version is missing, cut short, or damaged.

mod local_archive;

use local_archive::{Deb, LocalArchive, Mishap, SUITE, run, sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The roster does not matter here.
const ROSTER: &str = r#"{"schema":1,"members":[]}"#;

/// An archive with two versions of everything: a library and its headers, which depend on each other in the
/// same version, a program, a kernel behind its meta package, and two source packages.
fn archive() -> LocalArchive {
    let archive = LocalArchive::new();
    for version in ["1.0-1", "1.0-1+u1"] {
        let same = format!("libx (= {version})");
        for (name, source, depends) in
            [("libx", "x", ""), ("libx-dev", "x", same.as_str()), ("tool", "tool", "libx")]
        {
            let mark = format!("{name} {version}");
            let path = format!("usr/share/{name}");
            archive.add(&Deb { name, version, source, depends, more: "", files: &[(&path, &mark)] });
        }
    }
    for (kernel, version) in [("6.1", "6.1-1"), ("6.2", "6.2-1")] {
        let name = format!("linux-image-{kernel}-cloud-amd64");
        let files = [
            (format!("boot/vmlinuz-{kernel}"), kernel),
            (format!("usr/lib/modules/{kernel}/modules.builtin"), ""),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        archive.add(&Deb { name: &name, version, source: "linux", depends: "", more: "", files: &files });
        let name_and_version = format!("{name} (= {version})");
        archive.add(&Deb {
            name: "linux-image-cloud-amd64",
            version,
            source: "linux",
            depends: &name_and_version,
            more: "",
            files: &[],
        });
    }
    for source in ["zlib", "lua5.4"] {
        archive.add_source(source, "1.0", "1");
        archive.add_source(source, "1.1", "1");
    }
    archive.publish();
    archive
}

/// apt's configuration for this archive only: without this machine's proxies and hooks.
fn with_apt<'a>(archive: &LocalArchive, command: &'a mut Command) -> &'a mut Command {
    let conf = archive.folder("conf").join("apt.conf");
    let text = "Dir::Etc::main \"/dev/null\"; Dir::Etc::parts \"/dev/null\"; Acquire::http::Proxy \"DIRECT\"; \
        Acquire::Retries::Delay \"false\";\n";
    std::fs::write(&conf, text).unwrap();
    command.env("APT_CONFIG", conf)
}

fn tool(archive: &LocalArchive, verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netboot-image"));
    command.arg(verb).args(["--mirror", archive.url()]).arg("--keyring").arg(archive.keyring());
    command.arg("--cache").arg(archive.folder("cache"));
    with_apt(archive, &mut command);
    command
}

/// Fetches these packages and sources into `out`.
fn fetch(archive: &LocalArchive, debs: &[&str], sources: &[&str]) -> Output {
    let mut command = tool(archive, "fetch");
    command.arg("--out").arg(out(archive));
    command.args(debs.iter().flat_map(|name| ["--deb", name]));
    command.args(sources.iter().flat_map(|name| ["--source", name]));
    let output = command.output().unwrap();
    println!("{}", said(&output));
    output
}

fn out(archive: &LocalArchive) -> PathBuf {
    archive.folder("out")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The version in a fetched package.
fn version(archive: &LocalArchive, package: &str) -> String {
    let deb = out(archive).join("debs").join(format!("{package}.deb"));
    let shown = run(Command::new("dpkg-deb").args(["-f"]).arg(deb).arg("Version"));
    String::from_utf8(shown.stdout).unwrap().trim().to_owned()
}

fn upstream(archive: &LocalArchive, source: &str) -> String {
    std::fs::read_to_string(out(archive).join("sources").join(format!("{source}.tar"))).unwrap()
}

#[test]
fn of_a_source_package_only_the_upstream_archive_is_asked_for() {
    let archive = archive();
    // This made `make up` fail on the day of a point release.
    archive.befall(Mishap::Missing, "zlib_1.1", ".dsc");
    archive.befall(Mishap::Missing, "zlib_1.1", ".debian.tar.xz");
    let output = fetch(&archive, &[], &["zlib"]);
    assert!(output.status.success());
    assert_eq!(upstream(&archive, "zlib"), "upstream of zlib 1.1");
    assert!(!archive.was_asked_for("zlib", ".dsc") && !archive.was_asked_for("zlib", ".debian.tar.xz"));
}

#[test]
fn an_upstream_archive_that_is_not_there_is_taken_in_the_next_version() {
    for mishap in Mishap::ALL {
        let archive = archive();
        archive.befall(mishap, "zlib_1.1", ".orig.tar.gz");
        let output = fetch(&archive, &[], &["zlib", "lua5.4"]);
        assert!(output.status.success(), "{mishap:?}");
        assert_eq!(upstream(&archive, "zlib"), "upstream of zlib 1.0", "{mishap:?}");
        assert_eq!(upstream(&archive, "lua5.4"), "upstream of lua5.4 1.1", "{mishap:?}");
        assert!(said(&output).contains("zlib_1.1.orig.tar.gz is not to be had"), "{mishap:?}");
    }
}

#[test]
fn a_package_that_is_not_there_is_taken_in_the_next_version_with_all_of_its_source() {
    for mishap in Mishap::ALL {
        let archive = archive();
        archive.befall(mishap, "libx-dev_1.0-1+u1", ".deb");
        let output = fetch(&archive, &["libx", "libx-dev", "tool"], &[]);
        assert!(output.status.success(), "{mishap:?}");
        // Headers of one version and a library of another would be noticed much later, in a build.
        let versions = ["libx", "libx-dev", "tool"].map(|package| version(&archive, package));
        assert_eq!(versions, ["1.0-1", "1.0-1", "1.0-1+u1"], "{mishap:?}");
    }
}

#[test]
fn on_a_whole_mirror_the_newest_is_taken_and_progress_is_told() {
    let archive = archive();
    let output = fetch(&archive, &["libx", "libx-dev"], &["zlib"]);
    assert!(output.status.success());
    assert_eq!(["libx", "libx-dev"].map(|package| version(&archive, package)), ["1.0-1+u1"; 2]);
    let said = said(&output);
    assert!(said.contains("packages: downloading 2 files, 0.0 MB") && said.contains(" of 0.0 MB"), "{said}");
}

#[test]
fn when_no_version_is_there_file_mirror_and_what_to_do_are_told() {
    let archive = archive();
    archive.befall(Mishap::Missing, "libx_", ".deb");
    archive.befall(Mishap::HalfThere, "zlib_", ".orig.tar.gz");
    for (output, file) in [
        (fetch(&archive, &["libx"], &[]), "pool/libx_1.0-1_amd64.deb"),
        (fetch(&archive, &[], &["zlib"]), "pool/zlib_1.0.orig.tar.gz"),
    ] {
        let said = said(&output);
        assert!(!output.status.success());
        for words in [file, archive.url(), "hint:  mirrors mend themselves"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert!(!said.contains("panicked"));
    }
}

#[test]
fn a_mirror_that_does_not_answer_is_not_taken_for_one_that_lacks_a_file() {
    let archive = archive();
    assert!(fetch(&archive, &["libx"], &[]).status.success());
    archive.remove_everything();
    let said = said(&fetch(&archive, &["tool"], &[]));
    assert!(said.contains("does not answer") && !said.contains("trying the next version"), "{said}");
}

#[test]
fn what_was_downloaded_once_is_not_asked_for_again() {
    let archive = archive();
    assert!(fetch(&archive, &["libx"], &["zlib"]).status.success());
    let before = sha256(&out(&archive).join("debs/libx.deb"));
    archive.remove_everything();
    assert!(fetch(&archive, &["libx"], &["zlib"]).status.success());
    assert_eq!(sha256(&out(&archive).join("debs/libx.deb")), before);
}

#[test]
fn lists_from_before_the_archive_moved_are_fetched_anew() {
    let archive = archive();
    assert!(fetch(&archive, &["tool"], &[]).status.success());
    // While the lists are still considered fresh, the archive replaces a version by another.
    archive.befall(Mishap::Missing, "libx", ".deb");
    let (name, source, version) = ("libx", "x", "2.0-1");
    archive.add(&Deb { name, version, source, depends: "", more: "", files: &[] });
    archive.publish();
    let output = fetch(&archive, &["libx"], &[]);
    assert!(output.status.success());
    assert_eq!(self::version(&archive, "libx"), "2.0-1");
    assert!(said(&output).contains("fetching the package lists anew"));
    // Nor is a name that the existing lists do not contain a reason to fail.
    archive.add(&Deb { name: "novel", version: "1", source: "novel", depends: "", more: "", files: &[] });
    archive.add_source("novel", "1.0", "1");
    archive.publish();
    assert!(fetch(&archive, &["novel"], &["novel"]).status.success());
}

#[test]
fn a_list_that_its_index_does_not_describe_leaves_the_one_from_before_in_force() {
    let archive = archive();
    assert!(fetch(&archive, &["tool"], &[]).status.success());
    archive.add(&Deb { name: "libx", version: "2.0-1", source: "x", depends: "", more: "", files: &[] });
    archive.publish();
    archive.spoil_list();
    let mut again = tool(&archive, "fetch");
    let output = again.arg("--out").arg(out(&archive)).args(["--update", "--deb", "libx"]).output().unwrap();
    println!("{}", said(&output));
    assert!(output.status.success());
    assert_eq!(version(&archive, "libx"), "1.0-1+u1");
    assert!(said(&output).contains("going on with the ones at hand"));
}

#[test]
fn an_index_signed_by_somebody_else_is_not_believed() {
    let archive = archive();
    archive.new_key();
    archive.publish();
    let output = fetch(&archive, &["libx"], &[]);
    assert!(!output.status.success());
    assert!(said(&output).contains("cannot read the package lists"), "{}", said(&output));
    assert!(!out(&archive).join("debs").exists());
}

#[test]
fn a_kernel_that_is_not_there_is_taken_in_the_next_version_or_as_an_earlier_run_left_it() {
    use netboot_image::archive::{self, Archive, Kind};
    use netboot_image::kernel_package::{Flavour, KernelPackage};
    let local = archive();
    let cache = local.folder("cache");
    let kernel = || {
        let keyring = local.keyring();
        let (mirror, kind) = (Some(local.url()), Kind::Packages);
        let options =
            archive::Options { cache: &cache, suite: SUITE, kind, mirror, keyring: &keyring, update: true };
        KernelPackage::fetch(&mut Archive::open(&options).unwrap(), &cache, Flavour::Cloud)
    };
    local.befall(Mishap::Damaged, "linux-image-6.2-cloud-amd64", ".deb");
    assert_eq!(kernel().unwrap().version, "6.1");
    // Neither is available: the unpacked one is used, although its download is gone, too.
    local.befall(Mishap::Missing, "linux-image-6.1-cloud-amd64", ".deb");
    std::fs::remove_dir_all(cache.join("apt/archives")).unwrap();
    assert_eq!(kernel().unwrap().version, "6.1");
    std::fs::remove_dir_all(cache.join("kernels")).unwrap();
    assert!(kernel().is_err());
}

#[test]
fn a_tree_has_all_that_its_packages_depend_on_in_versions_that_are_there() {
    let archive = archive();
    archive.befall(Mishap::HalfThere, "libx_1.0-1+u1", ".deb");
    let tree = archive.folder("tree");
    let output = tool(&archive, "tree").args(["--package", "tool", "--out"]).arg(&tree).output().unwrap();
    println!("{}", said(&output));
    assert!(output.status.success());
    let read = |name: &str| std::fs::read_to_string(tree.join("usr/share").join(name)).unwrap();
    assert_eq!((read("tool"), read("libx")), ("tool 1.0-1+u1".into(), "libx 1.0-1".into()));
    assert_eq!(std::fs::read_link(tree.join("lib64")).unwrap(), Path::new("usr/lib64"));
    let again = tool(&archive, "tree").args(["--package", "tool", "--out"]).arg(&tree).output().unwrap();
    assert!(said(&again).contains("not empty"), "{}", said(&again));
}

/// The real mmdebstrap needs packages that can be installed; here a script replaces it and prints the files
/// that it got.
#[test]
fn the_base_system_is_made_of_what_is_there_and_one_from_before_serves_when_nothing_is() {
    let archive = archive();
    archive.add(&Deb {
        name: "base-files",
        version: "1",
        source: "base-files",
        depends: "",
        more: "Essential: yes\n",
        files: &[],
    });
    for name in netboot_image::base::PACKAGES {
        for version in ["1", "2"] {
            archive.add(&Deb { name, version, source: name, depends: "", more: "", files: &[] });
        }
    }
    archive.publish();
    archive.befall(Mishap::HalfThere, "systemd_2", ".deb");

    let tools = archive.folder("tools");
    let handed = archive.folder("conf").join("handed");
    let script = format!(
        "#!/bin/sh\nls \"$HANDED/archives\" > {0}\ncat \"$HANDED/preferences\" >> {0}\n\
         while [ $# -gt 2 ]; do shift; done\ntar -cf \"$1\" -T /dev/null\n",
        handed.display()
    );
    std::fs::write(tools.join("mmdebstrap"), script).unwrap();
    run(Command::new("chmod").arg("755").arg(tools.join("mmdebstrap")));
    let roster = archive.folder("conf").join("roster.json");
    std::fs::write(&roster, ROSTER).unwrap();
    // Run as root, because a base has files of many owners; `env`, because sudo drops variables.
    let build = |more: &[&str]| {
        let path = format!("PATH={}:{}", tools.display(), std::env::var("PATH").unwrap());
        let build = tool(&archive, "build");
        let mut command = Command::new(if rustix::process::geteuid().is_root() { "env" } else { "sudo" });
        if !rustix::process::geteuid().is_root() {
            command.args(["-n", "env"]);
        }
        command.arg(path).arg(format!("APT_CONFIG={}", archive.folder("conf").join("apt.conf").display()));
        command.arg(build.get_program()).args(build.get_args()).args(more);
        // The packages of homes are obtained in the same way, and are many.
        command.arg("--no-home").arg("--out").arg(out(&archive)).arg("--baked-roster").arg(&roster);
        for binary in ["--agent", "--access-manager", "--guest", "--busybox"] {
            command.args([binary, "/bin/true"]);
        }
        let output = command.output().unwrap();
        println!("{}", said(&output));
        said(&output)
    };
    let bases = || std::fs::read_dir(archive.folder("cache/base")).unwrap().count();

    // An empty base is no system, so the release itself fails later.
    build(&[]);
    let words = std::fs::read_to_string(&handed).unwrap();
    assert!(words.contains("systemd_1_amd64.deb") && words.contains("udev_2_amd64.deb"), "{words}");
    assert!(words.contains("Package: src:systemd\nPin: version 2\n"), "{words}");
    let before = bases();

    archive.befall(Mishap::Missing, "udev", ".deb");
    archive.add(&Deb { name: "novel", version: "1", source: "novel", depends: "", more: "", files: &[] });
    archive.publish();
    archive.befall(Mishap::Missing, "kmod", ".deb");
    run(Command::new("sh")
        .arg("-c")
        .arg(format!("rm -rf {}/apt/archives/*", archive.folder("cache").display())));
    assert!(build(&["--update"]).contains("taking the base that an earlier run made"));
    assert_eq!(bases(), before);
}

/// Runs the script of the examples, with all packages that they need.
#[test]
fn the_examples_are_fetched_from_a_mirror_that_lacks_what_is_newest_and_go_on_with_what_was_left() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let archive = archive();
    let list = std::fs::read_to_string(project.join("examples/packages.list")).unwrap();
    for name in
        list.lines().map(|line| line.split('#').next().unwrap().trim()).filter(|name| !name.is_empty())
    {
        for version in ["1", "2"] {
            let mark = format!("{name} {version}");
            let files: &[(&str, &str)] =
                if name == "busybox-static" { &[("bin/busybox", &mark)] } else { &[] };
            archive.add(&Deb { name, version, source: name, depends: "", more: "", files });
        }
    }
    archive.publish();
    archive.befall(Mishap::Missing, "busybox-static_2", ".deb");
    archive.befall(Mishap::Missing, "zlib_1.1", ".dsc");
    archive.befall(Mishap::Damaged, "lua5.4_1.1", ".orig.tar.gz");
    let script = |more: &[&str]| {
        let mut command = Command::new(project.join("examples/fetch"));
        command.arg(out(&archive)).args(["--mirror", archive.url(), "--keyring"]).arg(archive.keyring());
        command.arg("--cache").arg(archive.folder("cache")).args(more);
        let output = with_apt(&archive, &mut command).output().unwrap();
        println!("{}", said(&output));
        output
    };
    assert!(script(&[]).status.success());
    let busybox = || std::fs::read_to_string(out(&archive).join("busybox/bin/busybox")).unwrap();
    assert_eq!(busybox(), "busybox-static 1");
    assert_eq!(upstream(&archive, "zlib"), "upstream of zlib 1.1");
    assert_eq!(upstream(&archive, "lua5.4"), "upstream of lua5.4 1.0");
    assert!(out(&archive).join("complete").exists());

    archive.remove_everything();
    std::fs::remove_dir_all(archive.folder("cache")).unwrap();
    let output = script(&["--update"]);
    assert!(output.status.success() && said(&output).contains("going on with what an earlier run left"));
    assert_eq!(busybox(), "busybox-static 1");
    assert!(!out(&archive).join("complete").exists(), "the next run must ask again");

    std::fs::remove_file(out(&archive).join("debs/make.deb")).unwrap();
    assert!(!script(&["--update"]).status.success(), "half of what is needed does not serve");
}

/// The step before a compiler is installed: this machine's own apt, here with an empty system of its own.
#[test]
fn a_dependency_of_a_tool_to_install_is_taken_in_the_next_version() {
    for mishap in Mishap::ALL {
        let archive = archive();
        archive.befall(mishap, "libx_1.0-1+u1", ".deb");
        let system = archive.folder("system");
        for dir in ["state/lists/partial", "cache/archives/partial", "etc/parts"] {
            std::fs::create_dir_all(system.join(dir)).unwrap();
        }
        let sources =
            format!("deb [signed-by={}] {} {SUITE} main\n", archive.keyring().display(), archive.url());
        std::fs::write(system.join("etc/sources.list"), sources).unwrap();
        // Replaces dpkg: prints the packages that it should install.
        let dpkg = system.join("dpkg");
        let installed = system.join("installed");
        std::fs::write(&dpkg, format!("#!/bin/sh\necho \"$@\" >> {}\n", installed.display())).unwrap();
        run(Command::new("chmod").arg("755").arg(&dpkg));
        let conf = system.join("apt.conf");
        let system_dir = system.display();
        std::fs::write(
            &conf,
            format!(
                "Dir::State \"{system_dir}/state\"; Dir::State::status \"/dev/null\"; Dir::Cache \"{system_dir}/cache\";\n\
                 Dir::Etc \"{system_dir}/etc\"; Dir::Etc::parts \"{system_dir}/etc/parts\"; Dir::Bin::dpkg \"{}\";\n\
                 Dir::Log \"{system_dir}\"; APT::Sandbox::User \"\"; APT::Architecture \"amd64\";\n\
                 APT::Architectures {{ \"amd64\"; }}; Acquire::http::Proxy \"DIRECT\"; Acquire::Retries::Delay \"false\"; Debug::NoLocking \"true\";\n",
                dpkg.display()
            ),
        )
        .unwrap();
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut install = Command::new(project.join("tests/scripts/apt-install"));
        let output = install.arg("tool").env("APT_CONFIG", &conf).output().unwrap();
        println!("{}", said(&output));
        assert!(output.status.success(), "{mishap:?}");
        let installed = std::fs::read_to_string(&installed).unwrap();
        assert!(installed.contains("libx_1.0-1_amd64.deb"), "{mishap:?}: {installed}");
        assert!(installed.contains("tool_1.0-1+u1_amd64.deb"), "{mishap:?}: {installed}");
    }
}
