//! The units of the box separate builds from the agent: the agent survives when builds use up a resource.

use std::path::{Path, PathBuf};

fn image() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = image().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The values of a key of a unit.
fn unit(name: &str, key: &str) -> Vec<String> {
    let lines = text(format!("rootfs/etc/systemd/system/{name}"));
    let values = lines.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.flat_map(|value| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn percent(values: &[String]) -> u32 {
    let [value] = values else { panic!("{values:?} is not one value") };
    value.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn the_agent_has_a_memory_limit_with_room_for_a_store_in_memory() {
    let (high, max) = (
        percent(&unit("builder-agent.service", "MemoryHigh")),
        percent(&unit("builder-agent.service", "MemoryMax")),
    );
    let options = text("rootfs/etc/systemd/system/var-lib-barnraiser.mount");
    let store = options.split("size=").nth(1).and_then(|rest| rest.split('%').next()).expect("a size");
    let store: u32 = store.parse().expect("percent");
    assert!(store + 10 <= high && high < max && max < 100, "store {store}, high {high}, max {max}");
}

#[test]
fn when_memory_is_short_the_agent_is_the_last_to_go() {
    let score: i32 = unit("builder-agent.service", "OOMScoreAdjust")[0].parse().expect("a number");
    assert!((-999..=-500).contains(&score), "{score}");
    assert_eq!(unit("builder-agent.service", "OOMPolicy"), ["continue"]);
}

#[test]
fn the_installed_agent_takes_over_on_reload_with_the_same_configuration() {
    let start = unit("builder-agent.service", "ExecStart");
    let reload = unit("builder-agent.service", "ExecReload");
    let [program, serve, options @ ..] = &start[..] else { panic!("{start:?}") };
    let [same, verb, others @ ..] = &reload[..] else { panic!("{reload:?}") };
    assert_eq!((serve.as_str(), verb.as_str()), ("serve", "reload"));
    assert_eq!((program, options), (same, others));
    let timeout: u64 = unit("builder-agent.service", "TimeoutStartSec")[0].parse().expect("seconds");
    // The patience for builds, and then the start of the new agent.
    assert!(timeout >= 60 + 60, "{timeout}");
    assert!(text("nixos-module.nix").contains("reloadIfChanged = true;"));
}

#[test]
fn builds_have_a_place_beside_the_agents_unit() {
    let builds = "barnraiser-builds.service";
    assert_eq!(unit(builds, "Delegate"), ["yes"]);
    assert!(percent(&unit(builds, "MemoryMax")) < 100);
    for key in ["Requires", "After"] {
        assert!(unit("builder-agent.service", key).contains(&builds.to_owned()), "{key}");
    }
    assert_eq!(unit("builder-agent.service", "Slice"), [""; 0], "the agent is in the system's slice");
    let slice = unit(builds, "Slice").remove(0);
    let place = format!("cgroup = \"/sys/fs/cgroup/{slice}/{builds}\"");
    assert!(text("rootfs/etc/builder-agent.toml").contains(&place), "{place}");
}

#[test]
fn the_jail_of_the_image_is_complete() {
    assert!(!text("rootfs/etc/builder-agent.toml").contains("allow-missing"));
}

/// The commands of the unit, with programs that say what they were given.
#[test]
fn the_firewall_is_loaded_before_the_agent_and_where_nobody_has_a_network_it_needs_no_nftables() {
    for key in ["Requires", "After"] {
        assert!(
            unit("builder-agent.service", key).contains(&"barnraiser-firewall.service".to_owned()),
            "{key}"
        );
    }
    let dir = std::env::temp_dir().join(format!("firewall-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let program = |name: &str, script: &str| {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    };
    let loaded = dir.join("loaded");
    let run = |line: &str| {
        let script = line.trim_start_matches("/bin/sh -ec ").trim_matches('\'').replace("$$", "$");
        let script =
            script.replace("/usr/lib/barnraiser/builder-agent", &dir.join("agent").to_string_lossy());
        let _ = std::fs::remove_file(&loaded);
        let path = format!("{}:/usr/bin:/bin", dir.display());
        let mut sh = std::process::Command::new("/bin/sh");
        let status = sh.args(["-ec", &script]).env("PATH", path).status().expect("sh");
        (status.success(), std::fs::read_to_string(&loaded).unwrap_or_default())
    };
    let text = text("rootfs/etc/systemd/system/barnraiser-firewall.service");
    for key in ["ExecStart=", "ExecReload="] {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        program("nft", &format!("case $1 in -f) cat > {};; *) exit 1;; esac", loaded.display()));
        program("agent", "echo one; echo two");
        assert_eq!(run(line), (true, "one\ntwo\n".to_owned()), "{key}");
        program("agent", "exit 2");
        assert_eq!(
            run(line),
            (false, String::new()),
            "{key}: without rules that should be there nothing starts"
        );
        program("agent", "exit 0");
        assert_eq!(run(line), (true, String::new()), "{key}");
        program("nft", "exit 1");
        assert!(run(line).0, "{key}: there is no such table");
        program("agent", "echo one");
        assert!(!run(line).0, "{key}: rules that the kernel refuses");
    }
    std::fs::remove_dir_all(&dir).expect("ours");
}

#[test]
fn what_fetches_the_roster_sees_neither_the_keys_nor_the_store() {
    for name in ["barnraiser-roster.service", "barnraiser-webhook.service"] {
        for key in ["User", "Group"] {
            assert_eq!(unit(name, key), ["barnraiser-roster"], "{name}");
        }
        assert_eq!(unit(name, "InaccessiblePaths"), ["-/persist", "-/var/lib/barnraiser"], "{name}");
        assert_eq!(unit(name, "ProtectSystem"), ["strict"], "{name}");
        assert_eq!(unit(name, "NoNewPrivileges"), ["yes"], "{name}");
        assert_eq!(unit(name, "CapabilityBoundingSet"), [""; 0], "{name}");
        // Its folder of the disk is mounted by then.
        assert!(unit(name, "After").contains(&"barnraiser-persist.service".to_owned()), "{name}");
    }
    let persist = text("rootfs/usr/lib/barnraiser/persist");
    assert!(persist.contains("mount --bind /persist/roster \"$kept\""), "{persist}");
}

/// git reads what strangers send. Of the box it sees its own folder, and files that are no secret.
#[test]
fn what_fetches_mirrors_sees_neither_the_keys_nor_the_store() {
    let name = "barnraiser-mirrors.service";
    for key in ["User", "Group"] {
        assert_eq!(unit(name, key), ["barnraiser-mirrors"]);
    }
    assert_eq!(unit(name, "RootDirectory"), ["/run/barnraiser-git"]);
    assert_eq!(unit("run-barnraiser\\x2dgit.mount", "Where"), ["/run/barnraiser-git"]);
    let shown = unit(name, "BindReadOnlyPaths");
    for path in &shown {
        let from = path.split(':').next().unwrap_or_default();
        assert!(!["/persist", "/var", "/etc", "/etc/barnraiser", "/"].contains(&from), "{path}");
        // By then its root is another one, and systemd does not find what is below its old place.
        assert!(!from.starts_with("/run/barnraiser-git"), "{path}");
        assert!(!from.starts_with("/persist") && !from.starts_with("/var/lib/barnraiser"), "{path}");
    }
    assert!(shown.contains(&"/usr/lib/barnraiser/builder-agent:/usr/local/bin/builder-agent".to_owned()));
    assert_eq!(unit(name, "BindPaths"), [""; 0]);
    assert_eq!(unit(name, "StateDirectory"), ["barnraiser-mirrors"]);
    assert_eq!(unit(name, "NoNewPrivileges"), ["yes"]);
    assert_eq!(unit(name, "CapabilityBoundingSet"), [""; 0]);
    // It goes before a build, and takes nothing that the agent needs.
    let score: i32 = unit(name, "OOMScoreAdjust")[0].parse().expect("a number");
    assert!(score > 0, "{score}");
    assert_eq!(unit(name, "OOMPolicy"), ["continue"]);
    let options = text("rootfs/etc/systemd/system/var-lib-barnraiser\\x2dmirrors.mount");
    let size = options.split("size=").nth(1).and_then(|rest| rest.split('%').next()).expect("a size");
    let size: u32 = size.parse().expect("percent");
    assert!(size < percent(&unit(name, "MemoryMax")), "what it writes counts as its memory");
}

/// The box's name of the file that the webhook replaces is in the script, the file of a maintainer in `ssh::commands::sync`.
#[test]
fn webhook_and_maintainer_ask_for_mirrors_too() {
    let waits = unit("barnraiser-mirrors.path", "PathChanged");
    assert_eq!(waits, ["/var/lib/barnraiser/sync-requested", "/run/barnraiser/pushed"]);
    assert_eq!(unit("barnraiser-sync.path", "PathChanged"), waits[..1]);
    assert!(text("rootfs/usr/lib/barnraiser/roster-sync").contains("--touch /run/barnraiser/pushed"));
    let now = unit("barnraiser-mirrors-now.service", "ExecStart").join(" ");
    assert!(now.ends_with("--signal=USR1 barnraiser-mirrors.service"), "{now}");
    for name in ["barnraiser-mirrors.path", "barnraiser-mirrors.service"] {
        let link = image().join("rootfs/etc/systemd/system/multi-user.target.wants").join(name);
        assert!(link.exists(), "{name}");
    }
}

#[test]
fn nixos_has_the_same_units_and_changes_none_of_their_limits() {
    let module = text("nixos-module.nix");
    for part in [
        "builder-agent.service",
        "barnraiser-builds.service",
        "/sys/fs/cgroup/builds.slice/barnraiser-builds.service",
    ] {
        assert!(module.contains(part), "{part}");
    }
    for limit in ["MemoryMax", "MemoryHigh", "OOMScoreAdjust", "OOMPolicy", "allow-missing", "Slice"] {
        assert!(!module.contains(limit), "{limit} is the unit's to say");
    }
}
