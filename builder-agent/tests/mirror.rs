//! `builder-agent mirror` as a process: once, at intervals, and when it is asked.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .current_dir(dir)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Test").env(format!("GIT_{who}_EMAIL"), "test@example.org");
    }
    let out = command.output().expect("git runs");
    assert!(out.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// An upstream, a folder for mirrors, and a configuration with this pause.
fn scene(interval: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let upstream = dir.path().join("upstream");
    fs::create_dir(&upstream).expect("made");
    git(&upstream, &["init", "-q", "-b", "main"]);
    commit(&dir);
    let text = format!(
        "roster = \"/nonexistent\"\n[mirrors]\ndir = \"{}\"\ninterval-seconds = {interval}\nrepositories = [\"m=file://{}\"]\n",
        dir.path().join("mirrors").display(),
        upstream.display()
    );
    fs::write(dir.path().join("agent.toml"), text).expect("written");
    dir
}

fn commit(dir: &TempDir) -> String {
    let upstream = dir.path().join("upstream");
    git(&upstream, &["commit", "-q", "--allow-empty", "-m", "x"]);
    git(&upstream, &["rev-parse", "HEAD"])
}

fn program(dir: &TempDir, once: bool) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builder-agent"));
    command.arg("mirror").arg("--config").arg(dir.path().join("agent.toml"));
    command.args(once.then_some("--once")).stderr(Stdio::piped());
    command
}

fn commit_of(dir: &TempDir) -> Option<String> {
    mirrors::Status::read(&dir.path().join("mirrors"), "m").expect("readable")?.commit
}

fn wait_for(dir: &TempDir, commit: &str) {
    let started = Instant::now();
    while commit_of(dir).as_deref() != Some(commit) {
        assert!(started.elapsed() < Duration::from_secs(30), "{commit} does not arrive");
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Running(Child);

impl Running {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn once_it_brings_all_up_to_date_and_fails_if_it_cannot() {
    let dir = scene(900);
    let run = program(&dir, true).output().expect("it runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(commit_of(&dir), Some(git(&dir.path().join("upstream"), &["rev-parse", "HEAD"])));
    mirrors::snapshot(&dir.path().join("mirrors/m")).expect("a snapshot");

    fs::rename(dir.path().join("upstream"), dir.path().join("away")).expect("renamed");
    let run = program(&dir, true).output().expect("it runs");
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(
        said.contains("a mirror was not brought up to date") && said.contains("error: 1 of the mirrors"),
        "{said}"
    );
}

#[test]
fn it_looks_again_when_it_is_asked_and_ends_when_it_is_told() {
    let dir = scene(86_400);
    let first = git(&dir.path().join("upstream"), &["rev-parse", "HEAD"]);
    let mut running = Running(program(&dir, false).spawn().expect("it starts"));
    wait_for(&dir, &first);
    for _ in 0..2 {
        let commit = commit(&dir);
        running.signal("-USR1");
        wait_for(&dir, &commit);
    }
    running.signal("-TERM");
    assert!(running.0.wait().expect("it ends").success());
}

#[test]
fn without_mirrors_it_ends_at_once() {
    let dir = scene(900);
    fs::write(dir.path().join("agent.toml"), "roster = \"/nonexistent\"\n").expect("written");
    let run = program(&dir, false).output().expect("it runs");
    assert!(run.status.success());
    assert!(!dir.path().join("mirrors").exists());
}
