//! The messages for an operator whose command line or configuration is wrong.

use std::fs;
use std::process::Command;

fn run(args: &[&str], dir: &str) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_builder-agent")).args(args).output().expect("builder-agent");
    let code = output.status.code().expect("no signal");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    format!("{}[exit {code}]\n", text.replace(dir, "[DIR]"))
}

#[test]
fn serve_without_a_file_says_which_and_shows_an_example() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
    let dir = dir.path().to_str().expect("utf-8");
    assert_eq!(
        run(&["serve", "--config", &format!("{dir}/agent.toml")], dir),
        "error: there is no configuration file at [DIR]/agent.toml\n\
         hint: write one; the smallest valid file is:\n\n\
         roster = \"/run/barnraiser/roster.json\"\n\
         state-dir = \"/var/lib/barnraiser\"\n\
         [sandbox]\n\
         backend = \"kvm\"\n\n\
         [exit 2]\n"
    );
}

#[test]
fn a_wrong_file_is_answered_with_line_key_value_and_what_is_accepted() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
    let path = dir.path().join("agent.toml");
    let dir = dir.path().to_str().expect("utf-8");
    for (text, answer) in [
        (
            "roster = \"/r\"\n[limits]\nmax-job = 3\n",
            "error: [DIR]/agent.toml:3: unknown key `limits.max-job` (its value is 3)\n\
             hint: accepted in [limits]: max-jobs, max-jobs-per-member, max-cpu-hours-per-month, max-tickets-per-member, max-ticket-seconds, max-build-seconds, max-silent-seconds, \
             max-log-mib, max-kept-logs-mib, max-output-mib, max-nar-mib, max-store-mib-per-member, max-memory-mib, max-cpus, max-processes, max-connections, \
             max-connections-per-member, max-sessions-per-member, max-sessions-per-connection, client-stall-seconds, max-session-memory-mib, max-session-memory-per-member-mib, login-seconds, max-auth-tries, max-startups, \
             per-source-max-startups, per-source-net-block-size, per-source-penalties, per-source-penalty-exempt\n",
        ),
        (
            "listen = \"0.0.0.0:22\"\n",
            "error: [DIR]/agent.toml:1: `listen` is \"0.0.0.0:22\", but it must be a list of \"address:port\", such as \
             [\"0.0.0.0:22\", \"[::]:22\"]\n",
        ),
        (
            "[sandbox]\nbackend = \"kvm\"\n",
            "error: [DIR]/agent.toml: `roster` is not set, and it has no default\n\
             hint: the `roster.json` that `access-manager sync` writes; read again within a second of a change\n",
        ),
    ] {
        fs::write(&path, text).expect("written");
        let shown = run(&["config", "check", "--config", path.to_str().expect("utf-8")], dir);
        assert_eq!(shown, format!("{answer}[exit 2]\n"));
    }
    fs::write(&path, "roster = \"/r\"\n").expect("written");
    assert_eq!(
        run(&["config", "check", "--config", path.to_str().expect("utf-8")], dir),
        "[DIR]/agent.toml is good\n[exit 0]\n"
    );
}

#[test]
fn a_missing_guest_is_found_at_the_start_and_not_by_the_first_build() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
    let path = dir.path().join("agent.toml");
    let dir = dir.path().to_str().expect("utf-8");
    let text = format!(
        "roster = \"{dir}/r\"\nstate-dir = \"{dir}/state\"\nlisten = [\"127.0.0.1:0\"]\n[sandbox]\nkernel = \"{dir}/vmlinux\"\n"
    );
    fs::write(&path, text).expect("written");
    let shown = run(&["serve", "--config", path.to_str().expect("utf-8")], dir);
    let last: Vec<&str> = shown.lines().rev().take(3).collect();
    assert_eq!(
        last,
        [
            "[exit 1]",
            "hint: `netboot-image guest` makes it; `sandbox.kernel` says where it is",
            "error: the guest kernel [DIR]/vmlinux cannot be read: No such file or directory (os error 2)",
        ]
    );
}

#[test]
fn another_boxs_key_of_our_own_name_is_refused_at_the_start() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("tmp");
    let path = dir.path().join("agent.toml");
    let dir = dir.path().to_str().expect("utf-8");
    let other = store::signing::SecretKey::generate("barn-1").expect("a key").public();
    let text = format!(
        "name = \"barn\"\nroster = \"{dir}/r\"\nstate-dir = \"{dir}/state\"\nlisten = [\"127.0.0.1:0\"]\n\
         trusted-public-keys = [\"{other}\"]\n[sandbox]\nkernel = \"{dir}/vmlinux\"\n"
    );
    fs::write(&path, text).expect("written");
    let shown = run(&["serve", "--config", path.to_str().expect("utf-8")], dir);
    let last: Vec<&str> = shown.lines().rev().take(3).collect();
    assert_eq!(
        last,
        [
            "[exit 1]",
            "hint: give this box a name of its own with `signing-key-name`, and move [DIR]/state/signing-key away to have a \
             key of that name made",
            "error: `trusted-public-keys` has another key called barn-1, which is the name of this box's own",
        ]
    );
}
