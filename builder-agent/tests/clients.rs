//! The programs with which sources are fetched, behind the network of a builder: that each gets its bytes, that the name it asked
//! for is told, and that it fails at once, and in words, when the name is denied.
//!
//! The programs are this machine's. `tests/scripts/clients` makes a tree of Debian's in which none is missing, and names it in
//! `BARNRAISER_CLIENTS`. A test says so where its program is missing.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::internet::{CERTIFICATES, Internet, run, zip};
use common::until;
use common::world::{PRIVATE, Plug};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What fails at once fails within this time. Some clients try again a few times, and wait between.
const AT_ONCE: Duration = Duration::from_secs(30);
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A builder with a folder of its own, in which its programs work.
struct Builder {
    guest: Plug,
    dir: PathBuf,
    /// The tree of its programs, in the guest's mounts.
    root: Option<PathBuf>,
}

impl Builder {
    fn new(internet: &Internet, policy: &Value) -> Self {
        let guest = internet.guest(policy);
        let number = guest.processes()[0];
        let dir = internet.world.dir().join(format!("build-{number}"));
        std::fs::create_dir_all(&dir).expect("a folder");
        let root = std::env::var_os("BARNRAISER_CLIENTS").map(|tree| {
            let root = internet.world.dir().join(format!("root-{number}"));
            let line = format!(
                "mkdir -p $2.upper $2.work $2; mount -t overlay overlay -o lowerdir=$1,upperdir=$2.upper,workdir=$2.work $2; \
                 for each in dev proc sys; do mkdir -p $2/$each; mount --rbind /$each $2/$each; done; \
                 mkdir -p $2/etc/ssl/certs; \
                 for each in resolv.conf nsswitch.conf hosts ssl/certs/{}; do rm -f $2/etc/$each; cp /etc/$each $2/etc/$each; done",
                Path::new(CERTIFICATES).file_name().expect("a name").to_string_lossy()
            );
            run(guest.command("sh").args(["-ec", &line, "sh"]).arg(tree).arg(&root));
            root
        });
        Self { guest, dir, root }
    }

    /// A program of this builder, in its folder; `None`, with a printed reason, if there is no such program.
    fn program(&self, name: &str) -> Option<Command> {
        let is_in = |root: &Path| PATH.split(':').any(|dir| root.join(&dir[1..]).join(name).exists());
        let mut command = match &self.root {
            // In the tree as it is here; the mount is the guest's.
            Some(root) if is_in(&PathBuf::from(std::env::var_os("BARNRAISER_CLIENTS")?)) => {
                let mut command = self.guest.command("chroot");
                command.arg(root);
                command
            }
            _ if is_in(Path::new("/")) => self.guest.command("env"),
            _ => {
                println!("skipped: there is no {name}; tests/scripts/clients has it");
                return None;
            }
        };
        command.args(["sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"]).arg(&self.dir).arg(name);
        command.env_clear().env("PATH", PATH).env("HOME", &self.dir).env("TMPDIR", &self.dir);
        Some(command)
    }

    fn sh(&self, script: &str) -> Command {
        let mut command = self.program("sh").expect("a shell");
        command.args(["-euc", script]);
        command
    }

    fn file(&self, name: &str) -> Vec<u8> {
        let path = self.dir.join(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Ends it: these hosts, and no others, were connected to by name, and sent so many bytes at least.
    fn told(self, hosts: &[(&str, u64)]) {
        let events = self.guest.end();
        let connections: Vec<_> = events
            .iter()
            .filter_map(|event| event.get("connection"))
            .filter(|told| told["protocol"] == "tcp")
            .collect();
        for (host, least) in hosts {
            let of_host = connections.iter().filter(|told| told["name"] == *host);
            let down: u64 = of_host.filter_map(|told| told["down"].as_u64()).sum();
            assert!(down >= *least, "{host} sent {down} bytes: {events:?}");
        }
        let strange = connections.iter().find(|told| !hosts.iter().any(|(host, _)| told["name"] == *host));
        assert!(strange.is_none(), "{strange:?}");
        let total = events.last().and_then(|event| event.get("total")).expect("a total");
        assert_eq!(total["refused"], 0, "{events:?}");
    }
}

/// The same program in a builder that may not ask for this host's name: nothing reaches the host, and one of these words says why.
fn denied(internet: &Internet, host: &str, words: &[&str], program: impl Fn(&Builder) -> Command) {
    let before = internet.asked(host).len();
    let builder = Builder::new(internet, &json!({ "deny_names": [host] }));
    let began = Instant::now();
    let output = program(&builder).stdin(Stdio::null()).output().expect("it starts");
    let (said, took) = (text(&output), began.elapsed());
    println!("{host} denied: {took:?}: {said}");
    assert!(!output.status.success(), "{said}");
    assert!(took < AT_ONCE, "{took:?}: {said}");
    assert!(words.iter().any(|word| said.contains(word)), "{said}");
    assert!(said.contains(host), "the name is not in: {said}");
    assert_eq!(internet.asked(host).len(), before);
    let events = builder.guest.end();
    let refused: Vec<_> = events.iter().filter_map(|event| event.get("refused")).collect();
    let is_named = |told: &&Value| told["name"] == host && told["reason"].to_string().contains("denied-name");
    assert!(refused.iter().any(is_named), "{events:?}");
}

/// A builder that finds everything, and what is checked of it.
fn open(internet: &Internet) -> Builder {
    Builder::new(internet, &json!({}))
}

const NO_NAME: [&str; 2] = ["Could not resolve host", "Name or service not known"];

/// As the fetchers of nixpkgs call it.
const CURL: &str = "curl --fail --silent --show-error --location --max-redirs 20 --retry 3 --retry-all-errors \
                    --disable-epsv --cookie-jar cookies --continue-at -";

#[test]
fn curl_follows_redirects_from_host_to_host_and_takes_the_next_mirror() {
    let Some(internet) = Internet::new() else { return };
    let contents: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (first, second) = (internet.host("first.fetch.test"), internet.host("second.fetch.test"));
    internet.put(&first, "archive.redirect", "https://second.fetch.test/pool/archive");
    internet.put(&second, "pool/archive", &contents);
    let builder = open(&internet);
    // The first mirror has no such file, so that curl does not try it again; and a part of the file is there already.
    let script = format!(
        "printf '\\0\\1\\2' > out; for url in https://second.fetch.test/gone https://first.fetch.test/archive; do \
         if {CURL} --retry 0 --output out $url; then exit 0; fi; done; exit 1"
    );
    let output = builder.sh(&script.replace("--continue-at -", "")).output().expect("a shell");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(builder.file("out"), contents);
    builder.told(&[("first.fetch.test", 500), ("second.fetch.test", 3_000_000)]);
    denied(&internet, "second.fetch.test", &NO_NAME, |builder| {
        builder.sh(&format!("{CURL} --output out https://first.fetch.test/archive"))
    });
}

#[test]
fn a_server_without_a_certificate_for_its_name_is_refused_by_the_client() {
    let Some(internet) = Internet::new() else { return };
    let host = internet.host("other.example");
    internet.put(&host, "file", "x");
    let builder = open(&internet);
    let output =
        builder.sh("curl --silent --show-error https://other.example/file").output().expect("a shell");
    assert_eq!(output.status.code(), Some(60), "{}", text(&output));
    assert!(text(&output).contains("certificate"), "{}", text(&output));
    // Without the box's certificates nobody is believed.
    let good = internet.host("good.fetch.test");
    internet.put(&good, "file", "good");
    let fetch = "curl --silent --show-error https://good.fetch.test/file";
    assert_eq!(run(&mut builder.sh(fetch)).stdout, b"good");
    let strange =
        builder.sh(&format!("{fetch} --cacert /dev/null --capath /dev/null")).output().expect("a shell");
    assert!(!strange.status.success(), "{}", text(&strange));
    builder.told(&[("other.example", 500), ("good.fetch.test", 1000)]);
}

#[test]
fn a_redirect_from_https_to_an_inward_address_ends_at_once() {
    let Some(internet) = Internet::new() else { return };
    let host = internet.host("sly.fetch.test");
    let inward = [
        format!("http://{}/", PRIVATE[0]),
        format!("https://{}/", PRIVATE[3]),
        "http://inward.test/".to_owned(),
    ];
    for (number, target) in inward.iter().enumerate() {
        internet.put(&host, &format!("{number}.redirect"), target);
    }
    let builder = open(&internet);
    for number in 0..inward.len() {
        let began = Instant::now();
        let script = format!("curl --silent --show-error --location https://sly.fetch.test/{number}");
        let output = builder.sh(&script).output().expect("a shell");
        assert_eq!(output.status.code(), Some(7), "{}", text(&output));
        assert!(text(&output).contains("onnect"), "{}", text(&output));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    assert_eq!(internet.world.reached(), []);
    assert_eq!(internet.asked("sly.fetch.test").len(), inward.len());
}

#[test]
fn a_host_with_one_dead_address_family_is_reached_by_the_other_at_once() {
    let Some(internet) = Internet::new() else { return };
    let host = internet.host("host.fetch.test");
    internet.put(&host, "file", "alive");
    let (v4, v6) = ("93.184.217.1", "2606:2800:21f:cb08::1");
    // Nobody answers there, with nothing.
    let dead = ["93.184.218.1", "2606:2800:21f:cb09::1"];
    for addresses in [&[v4, dead[1]][..], &[dead[0], v6], &[v4], &[v6]] {
        internet.world.set_addresses("host.fetch.test", addresses);
        let builder = open(&internet);
        let began = Instant::now();
        let script = "curl --silent --show-error --max-time 20 https://host.fetch.test/file";
        assert_eq!(run(&mut builder.sh(script)).stdout, b"alive", "{addresses:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "{addresses:?}: {:?}", began.elapsed());
        builder.told(&[("host.fetch.test", 1000)]);
    }
}

#[test]
fn git_clones_over_https_as_a_fetcher_of_one_commit_does_with_submodules() {
    let Some(internet) = Internet::new() else { return };
    let host = internet.host("git.fetch.test");
    // Nothing that git could make smaller.
    let noise: String = (0..4000u32).map(|i| format!("{:x}", Sha256::digest(i.to_le_bytes()))).collect();
    internet.repository(&host, "library", &[("part", "of it")]);
    let modules = "[submodule \"library\"]\n\tpath = library\n\turl = ../library.git\n";
    internet.repository(
        &host,
        "project",
        &[("file", "contents"), ("noise", &noise), (".gitmodules", modules)],
    );
    // A submodule is a commit among the files.
    let git = |args: &[&str]| {
        run(Command::new("git")
            .arg("-C")
            .arg(host.join("project.git"))
            .args(["-c", "user.name=x", "-c", "user.email=x@x"])
            .args(args))
    };
    let library =
        run(Command::new("git").arg("-C").arg(host.join("library.git")).args(["rev-parse", "HEAD"])).stdout;
    let library = String::from_utf8(library).expect("a commit");
    git(&["update-index", "--add", "--cacheinfo", &format!("160000,{},library", library.trim())]);
    git(&["commit", "-qm", "with a submodule"]);
    let commit = String::from_utf8(git(&["rev-parse", "HEAD"]).stdout).expect("a commit").trim().to_owned();
    let builder = open(&internet);
    let script = format!(
        "git init -q project; cd project; git remote add origin https://git.fetch.test/project.git; \
         git fetch -q --depth=1 origin {commit}; git checkout -q FETCH_HEAD; git submodule update -q --init --recursive --depth 1; \
         cd ..; git clone -q https://git.fetch.test/project.git whole"
    );
    let output = builder.sh(&script).output().expect("a shell");
    assert!(output.status.success(), "{}", text(&output));
    for name in ["project/file", "whole/file"] {
        assert_eq!(builder.file(name), b"contents");
    }
    assert_eq!(builder.file("project/library/part"), b"of it");
    assert_eq!(builder.file("whole/noise"), noise.as_bytes());
    builder.told(&[("git.fetch.test", 100_000)]);
    denied(&internet, "git.fetch.test", &NO_NAME, |builder| {
        builder.sh("git clone https://git.fetch.test/project.git")
    });
}

#[test]
fn git_clones_over_ssh() {
    let Some(internet) = Internet::new() else { return };
    if !Path::new("/usr/sbin/sshd").exists() {
        return println!("skipped: there is no /usr/sbin/sshd, of the package openssh-server");
    }
    let host = internet.host("ssh.fetch.test");
    internet.repository(&host, "project", &[("file", "contents")]);
    let dir = internet.world.dir();
    for key in ["host_key", "deploy_key"] {
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)));
    }
    let here = dir.display();
    let config = format!(
        "HostKey {here}/host_key\nAuthorizedKeysFile {here}/deploy_key.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
         PasswordAuthentication no\nPidFile none\nListenAddress 0.0.0.0\nListenAddress ::\n"
    );
    std::fs::write(dir.join("sshd_config"), config).expect("a file");
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f $1";
    let mut sshd = internet.world.in_the_world("sh");
    sshd.args(["-c", script, "sh"]).arg(dir.join("sshd_config"));
    let mut sshd = sshd.stderr(Stdio::piped()).spawn().expect("sshd");
    let key = std::fs::read_to_string(dir.join("host_key.pub")).expect("a key");
    std::fs::write(dir.join("known_hosts"), format!("ssh.fetch.test {key}")).expect("a file");
    let clone = |builder: &Builder| {
        builder.sh(&format!(
            "rm -rf clone; export GIT_SSH_COMMAND='ssh -F none -i {here}/deploy_key -o UserKnownHostsFile={here}/known_hosts \
             -o BatchMode=yes'; git clone -q ssh://root@ssh.fetch.test{}/project.git clone",
            host.display()
        ))
    };
    let builder = open(&internet);
    until("the clone", || {
        let output = clone(&builder).output().expect("a shell");
        // sshd may not listen yet.
        assert!(output.status.success() || text(&output).contains("refused"), "{}", text(&output));
        output.status.success()
    });
    assert_eq!(builder.file("clone/file"), b"contents");
    builder.told(&[("ssh.fetch.test", 1000)]);
    denied(&internet, "ssh.fetch.test", &["Could not resolve hostname"], clone);
    sshd.kill().and_then(|()| sshd.wait()).expect("its end");
}

#[test]
fn cargo_fetches_from_a_sparse_registry_and_from_git() {
    let Some(internet) = Internet::new() else { return };
    let (index, files) = (internet.host("index.fetch.test"), internet.host("crates.fetch.test"));
    let (mirror, git) = (internet.host("mirror.fetch.test"), internet.host("git.fetch.test"));
    internet.put(&index, "config.json", r#"{"dl":"https://crates.fetch.test/crates"}"#);
    // As many as a small project has, for as many connections, or streams, at a time as cargo likes.
    let names: Vec<String> = (0..40).map(|i| format!("dep-{i:02}")).collect();
    for name in &names {
        let manifest = format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2021\"\n");
        let root = format!("{name}-1.0.0");
        let (manifest_path, lib) = (format!("{root}/Cargo.toml"), format!("{root}/src/lib.rs"));
        let archive = internet.archive(name, &[(&manifest_path, &manifest), (&lib, "pub fn f() {}\n")]);
        let sum: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
        let line =
            json!({"name": name, "vers": "1.0.0", "deps": [], "cksum": sum, "features": {}, "yanked": false});
        internet.put(&index, &format!("de/p-/{name}"), line.to_string());
        // As the largest registry does: to a content delivery network.
        internet.put(
            &files,
            &format!("crates/{name}/1.0.0/download.redirect"),
            format!("https://mirror.fetch.test/{name}.crate"),
        );
        internet.put(&mirror, &format!("{name}.crate"), archive);
    }
    let manifest = "[package]\nname = \"from-git\"\nversion = \"1.0.0\"\nedition = \"2021\"\n";
    internet.repository(&git, "from-git", &[("Cargo.toml", manifest), ("src/lib.rs", "")]);
    let fetch = |builder: &Builder| {
        let registry = "[registries.fetch]\nindex = \"sparse+https://index.fetch.test/\"\n";
        internet.put(&builder.dir, "cargo/config.toml", registry);
        let mut manifest =
            "[package]\nname = \"project\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[dependencies]\n"
                .to_owned();
        for name in &names {
            manifest.push_str(&format!("{name} = {{ version = \"1\", registry = \"fetch\" }}\n"));
        }
        manifest.push_str("from-git = { git = \"https://git.fetch.test/from-git.git\" }\n");
        internet.put(&builder.dir, "project/Cargo.toml", manifest);
        internet.put(&builder.dir, "project/src/lib.rs", "");
        // This machine's own, which is not in Debian's tree, with the compiler beside it.
        let programs = Path::new(env!("CARGO")).parent().expect("a folder");
        let mut cargo = builder.guest.command(env!("CARGO"));
        cargo
            .env_clear()
            .env("PATH", format!("{}:{PATH}", programs.display()))
            .env("HOME", &builder.dir)
            .env("CARGO_HOME", builder.dir.join("cargo"));
        cargo.args(["fetch", "--manifest-path"]).arg(builder.dir.join("project/Cargo.toml"));
        cargo
    };
    let builder = open(&internet);
    let output = fetch(&builder).output().expect("cargo");
    assert!(output.status.success(), "{}", text(&output));
    let mut tree = fetch(&builder);
    tree.arg("--offline");
    run(&mut tree);
    assert_eq!(internet.asked("mirror.fetch.test").len(), names.len());
    builder.told(&[
        ("index.fetch.test", 1000),
        ("crates.fetch.test", 1000),
        ("mirror.fetch.test", 10_000),
        ("git.fetch.test", 1000),
    ]);
    denied(&internet, "index.fetch.test", &["Could not resolve host"], fetch);
    denied(&internet, "git.fetch.test", &["failed to resolve address"], fetch);
}

#[test]
fn npm_installs_from_a_registry_over_many_connections() {
    let Some(internet) = Internet::new() else { return };
    let registry = internet.host("npm.fetch.test");
    let names: Vec<String> =
        (0..60).map(|i| format!("dep-{i:02}")).chain(["@scope/whole".to_owned()]).collect();
    let of_all: serde_json::Map<String, Value> =
        names[..60].iter().map(|name| (name.clone(), json!("^1.0.0"))).collect();
    for name in &names {
        let mut package = json!({ "name": name, "version": "1.0.0", "main": "index.js" });
        if name.starts_with('@') {
            package["dependencies"] = of_all.clone().into();
        }
        let plain = name.replace(['@', '/'], "");
        let files = [("package/package.json", package.to_string()), ("package/index.js", "x".repeat(20_000))];
        let archive = internet.archive(&plain, &files.each_ref().map(|(path, text)| (*path, text.as_str())));
        let path = format!("files/{plain}-1.0.0.tgz");
        internet.put(&registry, &path, archive);
        package["dist"] = json!({ "tarball": format!("https://npm.fetch.test/{path}") });
        let described =
            json!({ "name": name, "dist-tags": { "latest": "1.0.0" }, "versions": { "1.0.0": package } });
        internet.put(&registry, &format!("{name}/index.html"), described.to_string());
    }
    let install = |builder: &Builder| {
        internet.put(
            &builder.dir,
            "package.json",
            r#"{"name":"project","version":"1.0.0","dependencies":{"@scope/whole":"1"}}"#,
        );
        let mut npm = builder.program("npm")?;
        npm.args(["install", "--no-audit", "--no-fund", "--registry", "https://npm.fetch.test/"]);
        npm.env("NODE_EXTRA_CA_CERTS", CERTIFICATES).env("npm_config_update_notifier", "false");
        Some(npm)
    };
    let builder = open(&internet);
    let Some(mut npm) = install(&builder) else { return };
    let output = npm.output().expect("npm");
    assert!(output.status.success(), "{}", text(&output));
    for name in &names {
        assert_eq!(builder.file(&format!("node_modules/{name}/index.js")).len(), 20_000);
    }
    builder.told(&[("npm.fetch.test", 30_000)]);
    denied(&internet, "npm.fetch.test", &["ENOTFOUND"], |builder| {
        // By default it tries again after 10 and after 60 seconds, whatever the network says.
        let mut npm = install(builder).expect("npm");
        npm.env("npm_config_fetch_retries", "0");
        npm
    });
}

#[test]
fn pip_installs_from_an_index_and_a_host_of_files() {
    let Some(internet) = Internet::new() else { return };
    let (index, files) = (internet.host("pypi.fetch.test"), internet.host("files.fetch.test"));
    let wheel = zip(&[
        ("hello_pip/__init__.py", "x = 1\n".repeat(10_000).as_bytes()),
        ("hello_pip-1.0.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: hello-pip\nVersion: 1.0.0\n"),
        (
            "hello_pip-1.0.0.dist-info/WHEEL",
            b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        ),
        ("hello_pip-1.0.0.dist-info/RECORD", b"hello_pip/__init__.py,,\n"),
    ]);
    let name = "hello_pip-1.0.0-py3-none-any.whl";
    let sum: String = Sha256::digest(&wheel).iter().map(|byte| format!("{byte:02x}")).collect();
    let page = format!(
        "<!DOCTYPE html><html><body><a href=\"https://files.fetch.test/{name}#sha256={sum}\">{name}</a></body></html>"
    );
    internet.put(&index, "simple/hello-pip/index.html", page);
    internet.put(&files, name, wheel);
    let install = |builder: &Builder| {
        let mut python = builder.program("python3")?;
        python.args([
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--no-cache-dir",
            "--target",
            "site",
        ]);
        python.args(["--index-url", "https://pypi.fetch.test/simple/", "hello-pip"]);
        // pip has authorities of its own.
        python.env("PIP_CERT", CERTIFICATES).env("PIP_NO_INPUT", "1");
        Some(python)
    };
    let builder = open(&internet);
    let Some(mut pip) = install(&builder) else { return };
    let output = pip.output().expect("python");
    if text(&output).contains("No module named pip") {
        return println!("skipped: python has no pip; tests/scripts/clients has it");
    }
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(builder.file("site/hello_pip/__init__.py").len(), 60_000);
    builder.told(&[("pypi.fetch.test", 1000), ("files.fetch.test", 60_000)]);
    denied(&internet, "files.fetch.test", &NO_NAME, |builder| install(builder).expect("python"));
}

#[test]
fn go_downloads_modules_from_a_proxy() {
    let Some(internet) = Internet::new() else { return };
    let proxy = internet.host("goproxy.fetch.test");
    let module = "module example.test/hello\n\ngo 1.19\n";
    let source = format!("package hello\n\n// {}\n", "x".repeat(50_000));
    let root = "example.test/hello@v1.0.0";
    let (module_path, source_path) = (format!("{root}/go.mod"), format!("{root}/hello.go"));
    let archive = zip(&[(&module_path, module.as_bytes()), (&source_path, source.as_bytes())]);
    for (name, contents) in [
        ("list", b"v1.0.0\n".to_vec()),
        ("v1.0.0.info", br#"{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z"}"#.to_vec()),
        ("v1.0.0.mod", module.as_bytes().to_vec()),
        ("v1.0.0.zip", archive),
    ] {
        internet.put(&proxy, &format!("example.test/hello/@v/{name}"), contents);
    }
    let download = |builder: &Builder| {
        let mut go = builder.program("go")?;
        go.args(["mod", "download", "-modcacherw", "example.test/hello@v1.0.0"]);
        go.env("GOPROXY", "https://goproxy.fetch.test")
            .env("GOSUMDB", "off")
            .env("GOPATH", builder.dir.join("go"));
        go.env("GOFLAGS", "-mod=mod").env("GOTOOLCHAIN", "local").env("GOCACHE", builder.dir.join("cache"));
        Some(go)
    };
    let builder = open(&internet);
    let Some(mut go) = download(&builder) else { return };
    let output = go.output().expect("go");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(builder.file("go/pkg/mod/example.test/hello@v1.0.0/hello.go"), source.as_bytes());
    builder.told(&[("goproxy.fetch.test", 50_000)]);
    denied(&internet, "goproxy.fetch.test", &["no such host"], |builder| download(builder).expect("go"));
}

/// Stock Nix as a client: what a home does, and what evaluation fetches.
#[test]
fn nix_fetches_tarballs_files_and_git() {
    let Some(internet) = Internet::new() else { return };
    let (host, git) = (internet.host("tar.fetch.test"), internet.host("git.fetch.test"));
    let archive = internet.archive("project", &[("project-1/file", "contents")]);
    let sum = Sha256::digest(&archive);
    let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    internet.put(&host, "project.tar.gz", archive);
    internet.put(&host, "latest.redirect", "https://tar.fetch.test/project.tar.gz");
    let commit = internet.repository(&git, "project", &[("file", "of git")]);
    let evaluate = |builder: &Builder, expression: &str| {
        let mut nix = builder.program("nix-instantiate")?;
        nix.args(["--eval", "--store", "dummy://", "--read-write-mode", "--expr", expression]);
        nix.args(["--extra-experimental-features", "fetch-tree flakes nix-command"]);
        nix.env("NIX_SSL_CERT_FILE", CERTIFICATES).env("USER", "root");
        let root = builder.dir.join("store");
        // A store of its own, which needs neither root nor a daemon.
        nix.args(["--option", "store", &format!("local?root={}", root.display())]);
        Some(nix)
    };
    let builder = open(&internet);
    for (expression, contents) in [
        (
            "builtins.readFile (builtins.fetchTarball \"https://tar.fetch.test/project.tar.gz\" + \"/file\")"
                .to_owned(),
            "contents",
        ),
        (
            format!(
                "builtins.hashFile \"sha256\" (builtins.fetchurl {{ url = \"https://tar.fetch.test/latest\"; sha256 = \"{sum}\"; }})"
            ),
            sum.as_str(),
        ),
        (
            format!(
                "builtins.readFile ((builtins.fetchGit {{ url = \"https://git.fetch.test/project.git\"; rev = \"{commit}\"; }}) + \"/file\")"
            ),
            "of git",
        ),
    ] {
        let Some(mut nix) = evaluate(&builder, &expression) else { return };
        let output = nix.output().expect("nix");
        assert!(output.status.success(), "{expression}: {}", text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("\"{contents}\""), "{expression}");
    }
    builder.told(&[("tar.fetch.test", 1000), ("git.fetch.test", 1000)]);
    denied(&internet, "tar.fetch.test", &NO_NAME, |builder| {
        evaluate(builder, "builtins.fetchTarball \"https://tar.fetch.test/project.tar.gz\"").expect("nix")
    });
}
