//! `roster-sync`, which the units of the roster run: what it asks `access-manager` for, in a folder of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs the script with this configuration, kernel command line and credentials. Returns the arguments of
/// `access-manager`, one for each line.
fn asked(arguments: &[&str], conf: &str, cmdline: &str, credentials: &[(&str, &str)]) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let image = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut script =
        fs::read_to_string(image.join("rootfs/usr/lib/barnraiser/roster-sync")).expect("the script");
    for (there, here) in [
        ("/usr/lib/barnraiser", "home"),
        ("/etc/barnraiser", "etc"),
        ("/run/barnraiser", "run"),
        ("/proc/cmdline", "cmdline"),
    ] {
        assert!(script.contains(there), "{there}");
        script = script.replace(there, &at(here).display().to_string());
    }
    for folder in ["home", "etc", "run", "credentials"] {
        fs::create_dir(at(folder)).expect("a folder");
    }
    let program = at("home/access-manager");
    fs::write(&program, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").expect("written");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let shipped = fs::read_to_string(image.join("rootfs/etc/barnraiser/roster.conf")).expect("the file");
    fs::write(at("etc/roster.conf"), format!("{shipped}{conf}")).expect("written");
    fs::write(at("cmdline"), cmdline).expect("written");
    for (name, value) in credentials {
        fs::write(at("credentials").join(name), value).expect("written");
    }
    let output = Command::new("sh")
        .args(["-c", &script, "roster-sync"])
        .args(arguments)
        .env("CREDENTIALS_DIRECTORY", at("credentials"))
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// The value after an option.
fn value<'a>(asked: &'a [String], option: &str) -> Option<&'a str> {
    let at = asked.iter().position(|word| word == option)?;
    Some(&asked[at + 1])
}

#[test]
fn a_credential_wins_over_the_command_line_and_that_over_the_image() {
    let conf = "ROSTER_REPO=conf\nROSTER_BRANCH=conf\nROSTER_HOST=conf\n";
    let cmdline =
        "quiet barnraiser.roster=line barnraiser.roster-branch=line barnraiser.roster-host=line x=y\n";
    let credentials = [
        ("barnraiser.roster", "credential"),
        ("barnraiser.roster-branch", "credential"),
        ("barnraiser.roster-host", "credential"),
    ];
    for (cmdline, credentials, winner) in [
        ("", &[][..], "conf"),
        (cmdline, &[][..], "line"),
        (cmdline, &credentials[..], "credential"),
        ("", &credentials[..], "credential"),
    ] {
        let asked = asked(&[], conf, cmdline, credentials);
        assert_eq!(asked[0], "sync");
        for option in ["--repo", "--branch", "--host"] {
            assert_eq!(value(&asked, option), Some(winner), "{option} {asked:?}");
        }
    }
}

#[test]
fn without_a_name_the_roster_is_for_one_box() {
    let asked = asked(&[], "ROSTER_REPO=https://example.org/roster.git\n", "", &[]);
    assert_eq!(value(&asked, "--host"), None, "{asked:?}");
    assert_eq!(value(&asked, "--branch"), Some("main"));
}

#[test]
fn webhooks_are_answered_by_a_watcher_of_the_same_roster() {
    let secret = [("barnraiser.webhook-secret", "a long secret of a test")];
    let asked = asked(&["webhook"], "ROSTER_REPO=r\nROSTER_HOST=box\n", "", &secret);
    assert_eq!(asked[0], "watch");
    assert_eq!((value(&asked, "--repo"), value(&asked, "--host")), (Some("r"), Some("box")));
    assert_eq!(value(&asked, "--listen"), Some("0.0.0.0:8080"));
    assert!(value(&asked, "--secret-file").is_some_and(|file| file.ends_with("barnraiser.webhook-secret")));
}
