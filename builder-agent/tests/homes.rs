//! Homes through the front door: stock OpenSSH clients, a real sshd in each home, and no machines (`common::homes`).

mod common;

use std::process::{Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::client::{add_with, build, is_valid};
use common::homes::{Beside, impossible};
use common::scripted::{Scripted, derivation, path};
use common::served::Served;
use common::{becomes_true, ssh};
use nix::BuildStatus;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wire::client::Client;

/// A box with homes, or `None` with the reason on stderr.
fn open(config: &str) -> Option<(Served, Beside)> {
    if let Some(why) = impossible() {
        eprintln!("skipped: {why}");
        return None;
    }
    let beside = Beside::default();
    let scripted = Scripted::open_with_homes(config, std::sync::Arc::new(beside.clone()));
    Some((Served::serve(scripted), beside))
}

/// The stock client, with these options before the host.
fn client(served: &Served, member: &str, options: &[&str]) -> Command {
    let mut ssh = Command::from(ssh(served.dir(), member, served.port));
    ssh.args(options).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    ssh
}

async fn run(served: &Served, member: &str, words: &[&str], input: &[u8]) -> Output {
    let mut child = client(served, member, words).stdin(Stdio::piped()).spawn().expect("ssh");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writing = tokio::spawn(async move {
        // A command may end before it has read everything.
        let _ = stdin.write_all(&input).await;
    });
    let output = child.wait_with_output().await.expect("ssh");
    writing.await.expect("no panic");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_none_of_the_boxs_runs_in_the_home_as_with_any_ssh_server() {
    let Some((served, beside)) = open("") else { return };
    let script = "echo out; echo err >&2; cat; id -un; pwd; exit 7";
    let output = run(&served, "alice", &[script], b"typed\n").await;
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "out\ntyped\nalice\n/home/alice\n");
    assert!(text(&output.stderr).ends_with("err\n"), "{}", text(&output.stderr));
    // A signal is no status; OpenSSH says 255 for one.
    let output = run(&served, "alice", &["kill -TERM $$"], b"").await;
    assert_eq!(output.status.code(), Some(255));
    // The box's own commands still are its own, wrong ones too.
    assert!(served.output("alice", &["whoami"]).await.contains("alice"));
    let output = run(&served, "alice", &["builds nonsense"], b"").await;
    assert!(text(&output.stderr).contains("cannot run `builds nonsense`"), "{}", text(&output.stderr));
    assert_eq!(beside.started.load(Ordering::SeqCst), 1, "all of them share one home");
    // The box's clone of nixpkgs is there from the beginning.
    assert_eq!(beside.attached.lock().expect("attached").in_root, ["nixpkgs.git"]);
    assert!(beside.attached.lock().expect("attached").paths.is_empty());
    // git in the home reads it, although it is root's, and no other that is root's.
    let etc = beside.etc.lock().expect("what is in /etc");
    let file = etc.iter().find(|(name, _)| name == "gitconfig-repositories").expect("what git may read");
    assert_eq!(text(&file.1), "[safe]\n\tdirectory = /nixpkgs.git\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_on_a_terminal_is_greeted_and_has_its_size_kind_and_variables() {
    let Some((served, _beside)) = open("") else { return };
    let options = ["-tt", "-o", "SetEnv=COLORTERM=truecolor TERM=xterm-256color"];
    let output = run(&served, "alice", &options, b"stty size; echo $TERM:$COLORTERM; exit 3\n").await;
    let told = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("Your home on testbox: 2 processors, 2048 MiB"), "{told}");
    assert!(told.contains("thrown away 30 minutes after your last session"), "{told}");
    assert!(told.contains("Your home will be thrown away at 20"), "{told}");
    assert!(told.contains("xterm-256color:truecolor"), "{told}");
    // `shell` is the box's own, on a terminal, too.
    let output = run(&served, "alice", &["-tt", "shell"], b"whoami\nexit\n").await;
    assert!(text(&output.stdout).contains("`help` lists the commands"), "{}", text(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_streams_in_both_directions_at_once_arrive_whole() {
    let Some((served, _beside)) = open("") else { return };
    let input: Vec<u8> = (0..48u32 << 18).flat_map(|n| n.to_le_bytes()).collect();
    let output = run(&served, "alice", &["cat"], &input).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stdout == input, "{} of {} bytes", output.stdout.len(), input.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_reads_nothing_makes_its_client_wait_and_costs_the_box_little_memory() {
    let Some((served, _beside)) = open("") else { return };
    let mut child =
        client(&served, "alice", &["sleep 3; cat | wc -c"]).stdin(Stdio::piped()).spawn().expect("ssh");
    let mut stdin = child.stdin.take().expect("piped");
    let began = Instant::now();
    let writing = tokio::spawn(async move {
        let piece = vec![0u8; 1 << 20];
        for _ in 0..64 {
            stdin.write_all(&piece).await.expect("taken");
        }
        began.elapsed()
    });
    let output = child.wait_with_output().await.expect("ssh");
    assert_eq!(text(&output.stdout).trim(), (64 << 20).to_string());
    // Without a limit all of it would have been taken within the first second.
    assert!(writing.await.expect("no panic") > Duration::from_millis(2500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_holds_no_other_session_of_its_home() {
    let Some((served, _beside)) = open("") else { return };
    let mut stalled = client(&served, "alice", &["yes"]).stdin(Stdio::null()).spawn().expect("ssh");
    // Its pipe is full, and then its window.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    let output = run(&served, "alice", &["echo here"], b"").await;
    assert_eq!(text(&output.stdout), "here\n", "{}", text(&output.stderr));
    assert!(began.elapsed() < Duration::from_secs(20));
    stalled.kill().await.expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_copied_with_sftp_and_scp() {
    let Some((served, _beside)) = open("") else { return };
    let contents = vec![7u8; 3 << 20];
    let (from, to) = (served.dir().join("from"), served.dir().join("to"));
    std::fs::write(&from, &contents).expect("written");
    let scp = async |from: String, to: String| {
        let mut scp = Command::new("scp");
        scp.args(["-q", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-i"])
            .arg(served.dir().join("alice"))
            .args(["-o", &format!("UserKnownHostsFile={}", served.dir().join("known_hosts").display())])
            .args(["-P", &served.port.to_string(), &from, &to])
            .env_remove("SSH_AUTH_SOCK");
        let output = scp.output().await.expect("scp");
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    // Over sftp. The home stays between the two.
    scp(from.display().to_string(), "x@127.0.0.1:there".into()).await;
    scp("x@127.0.0.1:there".into(), to.display().to_string()).await;
    assert!(std::fs::read(&to).expect("copied back") == contents);
}

/// A client that forwards the socket of Nix in the home, and a session of the worker protocol over it.
async fn nix_in(
    served: &Served,
    member: &str,
) -> (tokio::process::Child, Client<impl AsyncReadExt + Unpin, impl AsyncWriteExt + Unpin>) {
    let socket = served.dir().join(format!("nix-of-{member}"));
    let forward = format!("{}:/nix/var/nix/daemon-socket/socket", socket.display());
    let child = client(served, member, &["-N", "-L", &forward]).stdin(Stdio::null()).spawn().expect("ssh");
    assert!(becomes_true(|| socket.exists()), "no socket");
    let stream = tokio::net::UnixStream::connect(&socket).await.expect("a connection");
    let (reader, writer) = tokio::io::split(stream);
    (child, Client::connect(reader, writer, 35, &[]).await.expect("a handshake"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nix_in_the_home_learns_to_be_valid_is_shown_there_once_with_all_that_it_refers_to() {
    let Some((served, beside)) = open("") else { return };
    // From outside, for the member's own view.
    let mut outside = served.session("alice").await;
    let (dependency, result) = (path("dependency"), path("result"));
    assert_eq!(add_with(&mut outside.client, "dependency", b"d", &[]).await, None);
    let refers = dependency.to_absolute_path();
    assert_eq!(
        add_with(&mut outside.client, "result", refers.as_bytes(), std::slice::from_ref(&dependency)).await,
        None
    );
    assert!(beside.attached.lock().expect("attached").paths.is_empty(), "a client outside shows nothing");

    let (_ssh, mut inside) = nix_in(&served, "alice").await;
    assert!(is_valid(&mut inside, &result).await);
    let names: Vec<String> = [&dependency, &result].map(|path| path.to_basename()).into();
    {
        let attached = beside.attached.lock().expect("attached");
        let mut shown = attached.paths.clone();
        shown.sort();
        let mut expected = names.clone();
        expected.sort();
        assert_eq!(shown, expected);
        assert_eq!(attached.images.len(), 1, "both are in one image");
    }
    // Nothing is shown twice.
    assert!(is_valid(&mut inside, &result).await && is_valid(&mut inside, &dependency).await);
    assert_eq!(beside.attached.lock().expect("attached").paths.len(), 2);
    // Another member's Nix learns nothing of it, and shows nothing.
    let (_ssh, mut bobs) = nix_in(&served, "bob").await;
    assert_eq!(beside.started.load(Ordering::SeqCst), 2, "bob has a home of his own");
    let claim = path("claim-of-alice");
    assert_eq!(outside.add("claim-of-alice", b"c").await, None);
    assert!(!is_valid(&mut bobs, &claim).await && is_valid(&mut inside, &claim).await);
    let attached = beside.attached.lock().expect("attached");
    assert_eq!(attached.paths.iter().filter(|name| **name == claim.to_basename()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nix_in_the_home_builds_in_sandboxes_of_its_own_and_finds_the_result() {
    let Some((served, beside)) = open("") else { return };
    let (_ssh, mut inside) = nix_in(&served, "alice").await;
    let drv = derivation("made-inside", "write:x", &[]);
    build(&mut inside, drv).await.is(BuildStatus::Built);
    assert_eq!(beside.attached.lock().expect("attached").paths, [path("made-inside").to_basename()]);
    assert_eq!(served.scripted.runs(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_goes_its_time_after_the_last_session_and_the_next_one_is_new() {
    let Some((served, beside)) = open("homes.ttl-seconds = 2") else { return };
    let output = run(&served, "alice", &["touch there; ls"], b"").await;
    assert_eq!(text(&output.stdout), "there\n");
    // Within its time it is the same one.
    let output = run(&served, "alice", &["ls"], b"").await;
    assert_eq!(text(&output.stdout), "there\n");
    assert!(becomes_true(|| beside.running.load(Ordering::SeqCst) == 0), "it stays");
    let output = run(&served, "alice", &["ls"], b"").await;
    assert_eq!(text(&output.stdout), "", "{}", text(&output.stderr));
    assert_eq!(beside.started.load(Ordering::SeqCst), 2);
    // A session keeps it, however long.
    let output = run(&served, "alice", &["sleep 5; echo still"], b"").await;
    assert_eq!(text(&output.stdout), "still\n");
    // Its time and its processor time are in the ledger.
    assert!(becomes_true(|| beside.running.load(Ordering::SeqCst) == 0), "it stays");
    let used = served.used("alice").await;
    assert!(used["home_seconds"].as_f64().expect("a number") >= 5.0, "{used}");
    assert!(used["cpu_seconds"].as_f64().expect("a number") >= 4.0, "{used}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_is_thrown_away_makes_room_for_the_next_one() {
    let Some((served, beside)) = open("homes.max = 1") else { return };
    for round in 1..=3 {
        let output = run(&served, "alice", &["ls; touch there"], b"").await;
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(0), ""),
            "{}",
            text(&output.stderr)
        );
        assert!(served.output("alice", &["home", "show"]).await.contains("your home is there since 20"));
        assert_eq!(served.output("alice", &["home", "end"]).await, "your home is thrown away\n");
        assert_eq!(beside.running.load(Ordering::SeqCst), 0, "round {round}");
    }
    assert!(served.output("alice", &["home", "show"]).await.contains("you have no home now"));
    assert_eq!(served.output("alice", &["home", "end"]).await, "you had no home\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_is_charged_while_a_home_runs_and_the_home_ends_when_the_month_is_used_up() {
    let Some((served, beside)) = open("limits.max-cpu-hours-per-month = 1") else { return };
    let mut child =
        client(&served, "alice", &["echo in; sleep 600"]).stdin(Stdio::null()).spawn().expect("ssh");
    let mut first = [0; 3];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).await.expect("a line");
    beside.cpu.store(1_800_500, Ordering::SeqCst);
    let mut used = served.used("alice").await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while used["cpu_seconds"].as_f64() != Some(1800.5) {
        assert!(Instant::now() < deadline, "{used}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        used = served.used("alice").await;
    }
    // The same time is charged once.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(served.used("alice").await["cpu_seconds"].as_f64(), Some(1800.5));
    assert_eq!(beside.running.load(Ordering::SeqCst), 1);
    // A session is in it until then. (Its sshd, which runs on this machine, is none of the machine that ends.)
    beside.cpu.store(3_600_000, Ordering::SeqCst);
    assert!(becomes_true(|| beside.running.load(Ordering::SeqCst) == 0), "it stays");
    child.kill().await.expect("it runs");
    // With the two seconds of its end.
    assert_eq!(served.used("alice").await["cpu_seconds"].as_f64(), Some(3602.0));
    let output = run(&served, "alice", &["true"], b"").await;
    assert!(text(&output.stderr).contains("no home is started"), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_roster_loses_the_home_and_its_sessions() {
    let Some((served, beside)) = open("") else { return };
    let mut child =
        client(&served, "alice", &["echo in; sleep 600"]).stdin(Stdio::null()).spawn().expect("ssh");
    let mut first = [0; 3];
    child.stdout.as_mut().expect("piped").read_exact(&mut first).await.expect("a line");
    served.scripted.set_roster(&["bob"]);
    let output = child.wait_with_output().await.expect("ssh");
    assert_eq!(output.status.code(), Some(255));
    assert!(becomes_true(|| beside.running.load(Ordering::SeqCst) == 0), "it stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_and_sockets_lead_into_the_home_only() {
    let Some((served, _beside)) = open("") else { return };
    // An address that is not in the home is refused by the front door.
    for elsewhere in ["192.0.2.1:22", "127.0.0.2:22", "box:22"] {
        let output = run(&served, "alice", &["-W", elsewhere], b"").await;
        assert!(text(&output.stderr).contains("administratively prohibited"), "{}", text(&output.stderr));
    }
    // A port of the home (whose network is this machine's here) answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"hello from inside").await.expect("sent");
    });
    let output = run(&served, "alice", &["-W", &format!("localhost:{port}")], b"").await;
    assert_eq!(text(&output.stdout), "hello from inside", "{}", text(&output.stderr));

    // The client's own port, for programs in the home.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"hello from outside").await.expect("sent");
    });
    let forward = format!("/tmp/forwarded-{}:127.0.0.1:{port}", std::process::id());
    let command = format!("curl -s --http0.9 --unix-socket /tmp/forwarded-{} http://x/", std::process::id());
    let output = run(&served, "alice", &["-R", &forward, &command], b"").await;
    assert_eq!(text(&output.stdout), "hello from outside", "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_ssh_agent_is_reached_only_by_sessions_that_bring_it() {
    let Some((served, _beside)) = open("") else { return };
    let socket = served.dir().join("agent.sock");
    let mut agent = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("ssh-agent");
    assert!(becomes_true(|| socket.exists()), "no agent");
    let added = Command::new("ssh-add").arg(served.dir().join("bob")).env("SSH_AUTH_SOCK", &socket).output();
    assert!(added.await.expect("ssh-add").status.success());
    for (option, status) in [("-A", 0), ("-a", 2)] {
        let mut ssh = client(&served, "alice", &[option, "ssh-add -l"]);
        let output = ssh.env("SSH_AUTH_SOCK", &socket).output().await.expect("ssh");
        assert_eq!(output.status.code(), Some(status), "{option}: {}", text(&output.stderr));
    }
    agent.kill().await.expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_have_no_home_is_told_so_and_has_the_boxs_shell_on_a_terminal() {
    let Some((served, beside)) = open("homes.max = 1") else { return };
    served.scripted.edit_roster(|roster| roster["members"][1]["settings"] = json!({ "allow-home": false }));
    let output = run(&served, "bob", &["ls"], b"").await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(127), "{told}");
    assert!(told.contains("cannot run `ls`") && told.contains("`allow-home` is `false`"), "{told}");
    let output = run(&served, "bob", &["-tt"], b"whoami\nexit\n").await;
    assert!(text(&output.stdout).contains("`help` lists the commands"), "{}", text(&output.stdout));
    served.scripted.edit_roster(|roster| roster["members"][1]["settings"] = json!({}));
    // The holder of a ticket has none.
    assert_eq!(beside.started.load(Ordering::SeqCst), 0);
    // No more than the box has.
    assert_eq!(run(&served, "alice", &["true"], b"").await.status.code(), Some(0));
    let output = run(&served, "bob", &["true"], b"").await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(255), "{told}");
    assert!(told.contains("the box has 1 homes open, which is the limit (the box's `homes.max`)"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_used_up_the_month_is_told_so_and_starts_no_home() {
    let Some((served, beside)) = open("") else { return };
    served.scripted.limit("alice", json!({ "max-cpu-hours-per-month": 1 }));
    let alice = ledger::Principal::of(&common::scripted::member("alice").id);
    served.scripted.agent.ledger.charge(&alice, [(ledger::Resource::CpuSeconds, 5_400_000)]);
    let output = run(&served, "alice", &["true"], b"").await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(255), "{told}");
    assert!(told.contains("no home is started: you have used 1.5 of 1 CPU hours in 20"), "{told}");
    assert_eq!(beside.started.load(Ordering::SeqCst), 0);
}

/// A git repository with these files, of which those with `#!` are programs, at an address of this machine's.
async fn repository(dir: &std::path::Path, files: &[(&str, &str)]) -> String {
    let folder = dir.join("repositories/dotfiles");
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(&path, text).expect("written");
        let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("a mode");
    }
    let git = "git init -q && git add -A && git -c user.name=x -c user.email=x@localhost commit -qm x";
    let made = Command::new("sh").args(["-c", git]).current_dir(&folder).status().await;
    assert!(made.expect("git").success());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let base = format!("--base-path={}", dir.join("repositories").display());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = stream.into_std().expect("a socket");
            stream.set_nonblocking(false).expect("a socket");
            let stream = std::os::fd::OwnedFd::from(stream);
            let mut daemon = Command::new("git");
            daemon.args(["daemon", "--inetd", "--export-all", &base]);
            daemon.stdin(stream.try_clone().expect("a copy")).stdout(stream).stderr(Stdio::null());
            daemon.spawn().expect("git daemon").wait().await.expect("its end");
        }
    });
    format!("git://127.0.0.1:{port}/dotfiles")
}

fn set_dotfiles(served: &Served, address: &str) {
    served.scripted.edit_roster(|roster| {
        roster["members"][0]["settings"] = json!({ "dotfiles": address });
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn dotfiles_of_a_git_repository_are_there_in_the_first_session_and_fetched_once() {
    let Some((served, beside)) = open("") else { return };
    let files = [
        (".bash_profile", "echo from dotfiles"),
        (".config/x", "x"),
        (".ssh/authorized_keys", "ssh-ed25519 AAAA"),
        ("README", "x"),
    ];
    let address = repository(served.dir(), &files).await;
    set_dotfiles(&served, &address);
    let output = run(&served, "alice", &["-tt"], b"ls -A; exit\n").await;
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(told.contains(&format!("fetching your dotfiles from {address} ...")), "{told}");
    assert!(told.contains("from dotfiles") && !told.contains("warning: your"), "{told}");
    // Who comes later changes nothing, and is told nothing.
    let command = "echo changed > .config/x; ls -A | grep -v history; cat .dotfiles/.config/x";
    let output = run(&served, "alice", &[command], b"").await;
    assert_eq!(
        text(&output.stdout),
        ".bash_profile\n.config\n.dotfiles\nchanged\n",
        "{}",
        text(&output.stderr)
    );
    assert!(!text(&output.stderr).contains("dotfiles"), "{}", text(&output.stderr));
    // Another member's home has none.
    let output = run(&served, "bob", &["ls -A"], b"").await;
    assert_eq!(text(&output.stdout), "", "{}", text(&output.stderr));
    assert_eq!(beside.started.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_of_the_dotfiles_is_run_instead_as_the_member() {
    let Some((served, _beside)) = open("") else { return };
    let script = "#!/bin/sh\nid -un > ~/who; pwd >> ~/who; echo noise\n";
    let address = repository(served.dir(), &[("install.sh", script), (".bashrc", "x")]).await;
    set_dotfiles(&served, &address);
    let output = run(&served, "alice", &["cat who; ls -A"], b"").await;
    let expected = "alice\n/home/alice/.dotfiles\n.dotfiles\nwho\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn dotfiles_that_do_not_come_keep_nobody_out_and_the_reason_is_told() {
    let Some((served, _beside)) = open("") else { return };
    // There is no such repository.
    let address = repository(served.dir(), &[("x", "x")]).await + "/none";
    set_dotfiles(&served, &address);
    let output = run(&served, "alice", &["echo in"], b"").await;
    assert_eq!(text(&output.stdout), "in\n");
    let told = text(&output.stderr);
    assert!(
        told.contains(&format!("warning: your dotfiles from {address}: ")) && told.contains("fatal"),
        "{told}"
    );
    assert_eq!(served.output("alice", &["home", "end"]).await, "your home is thrown away\n");
    // A server that says nothing; sessions wait for 4 seconds together (`common::scripted`).
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    set_dotfiles(&served, &format!("git://127.0.0.1:{port}/x"));
    let began = Instant::now();
    for expected in ["they are not there yet, and still being fetched", ""] {
        let output = run(&served, "alice", &["echo in"], b"").await;
        assert_eq!(text(&output.stdout), "in\n");
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
    assert!((3..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_does_not_start_says_why_and_the_next_attempt_is_a_new_one() {
    let Some((served, beside)) = open("") else { return };
    *beside.broken.lock().expect("a reason") = Some("the kernel of homes is a teapot".into());
    let output = run(&served, "alice", &["true"], b"").await;
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(255), "{told}");
    assert!(told.contains("your home could not be started") && told.contains("teapot"), "{told}");
    *beside.broken.lock().expect("a reason") = None;
    assert_eq!(run(&served, "alice", &["true"], b"").await.status.code(), Some(0));
}
