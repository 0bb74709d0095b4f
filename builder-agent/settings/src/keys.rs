//! The table of keys: name, kind, default, meaning.

use std::fmt::Write as _;

/// The kind of a value. Ranges are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Text,
    /// An absolute path.
    Path,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Steps of the jail around a micro-VM.
    JailSteps,
    Int {
        min: i64,
        max: i64,
    },
    Bool,
    /// `address:port`, IPv6 addresses in brackets.
    Addresses,
    /// `host` or `host:port`.
    Address,
    Texts,
    /// Globs over names of store paths, as `roster::settings` checks them.
    Globs,
    /// `name:base64` each.
    PublicKeys,
    /// URLs of substituters.
    Substituters,
    /// `start:rate:full`.
    Startups,
    /// `bits:bits`, for IPv4 and IPv6.
    NetBlocks,
    /// `authfail:5 min:30 max:600`, or `no`.
    Penalties,
    /// Addresses and networks.
    Networks,
    /// An IPv4 address.
    Ip,
    /// TCP or UDP ports, and ranges of them.
    Ports,
    /// `NAME=URL` each.
    Mirrors,
    /// The same, of seeds.
    Seeds,
}

/// The value of an absent key.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fallback {
    /// The key must be set.
    None,
    /// A TOML value.
    Toml(&'static str),
    /// Computed at start; the text describes how.
    Derived(&'static str),
}

/// One key. `name` is dotted: `limits.max-jobs` is `max-jobs` in `[limits]`.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Fallback,
    pub help: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: Fallback, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

/// A week. Longer than any build we have met; a longer time limit would never take effect.
const WEEK: i64 = 7 * 24 * 3600;
/// Longer than anybody wants to wait for a removal to count.
const YEAR: i64 = 366 * 24 * 3600;
/// One tebibyte in MiB, far more than the disk of any of our boxes.
const TIB: i64 = 1024 * 1024;

use Fallback::{Derived, None as Required, Toml};
use Kind::{
    Address, Addresses, Bool, Globs, Int, Ip, JailSteps, Mirrors, NetBlocks, Networks, Path, Penalties,
    Ports, PublicKeys, Seeds, Startups, Substituters, Text, Texts, Word,
};

#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("name", Text, Derived("the host name"), "the name of the box in the login banner and in logs"),
    key("listen", Addresses, Toml(r#"["0.0.0.0:22", "[::]:22"]"#), "the addresses on which the agent answers ssh; port 0 takes a free port, which is logged"),
    key("roster", Path, Required, "the `roster.json` that `access-manager sync` writes; read again within a second of a change"),
    key("address", Address, Derived("`name`, and the first port of `listen`"), "the `host` or `host:port` under which members reach the box; `ssh box client-config` prints it"),
    key("roster-max-age-seconds", Int { min: 0, max: YEAR }, Toml("0"), "when `access-manager` has not succeeded for this long, the box lets in only members with the role `maintainer`, and says why; sessions and builds that run go on; 0: the roster never gets too old"),
    key("state-dir", Path, Toml(r#""/var/lib/barnraiser""#), "the folder of `store/`, `logs/`, `identities.json`, `ledger.sqlite`, `tickets.sqlite` and, by default, of the two keys"),
    key("host-key", Path, Derived("`<state-dir>/ssh_host_ed25519_key`"), "the ssh host key; the agent creates it with mode 0600 if the file does not exist"),
    key("signing-key", Path, Derived("`<state-dir>/signing-key`"), "the secret key that signs Verified paths, except content-addressed ones; the format is that of `nix key generate-secret`; the agent creates it with mode 0600 if the file does not exist"),
    key("signing-key-name", Text, Derived("`<name>-1`"), "the name that a new signing key gets; an existing key keeps its name"),
    key("trusted-public-keys", PublicKeys, Toml("[]"), "a signature by one of these keys makes an uploaded or substituted path Verified; the box's own key is always one of them"),
    key("substitute", Bool, Toml("true"), "whether the box fetches paths from `substituters`"),
    key("substituters", Substituters, Toml("[]"), "binary caches and stores to fetch from: `http://`, `https://` or `ssh-ng://`; the order is that of their priorities, then that of this list"),
    key("member-substituters", Word(&["no", "https", "any"]), Toml(r#""https""#), "which caches members may name for themselves with the [setting](#settings-on-levels) `substituters`; `https`: only `https://` URLs, `any`: `http://` URLs, too. `fetch.allow-private` counts for them as well"),
    key("always-substitute", Globs, Toml("[]"), "globs over names; matching paths are fetched even if the client or the derivation disables substitution"),
    key("never-substitute", Globs, Toml("[]"), "globs over names; matching paths are never fetched; it takes precedence over `always-substitute`"),
    key("systems", Texts, Derived("the host's, e.g. `[\"x86_64-linux\"]`"), "the `system` values that this box builds"),
    key("system-features", Texts, Toml(r#"["big-parallel", "benchmark"]"#), "the values that a derivation's `requiredSystemFeatures` may contain"),
    key("keep-builds-running", Bool, Toml("false"), "whether a build continues when the last client that waits for it has disconnected; [levels](#settings-on-levels) can override it"),
    key("keep-going", Bool, Toml("true"), "whether the other derivations of a request are still built after one has failed, for clients that do not send this setting; stock Nix does not send it over ssh, not even with `--keep-going`; [levels](#settings-on-levels) can override it"),
    key("reuse-failures", Bool, Toml("true"), "whether the failure of an earlier equal build is the answer instead of a new build; successful results are always reused; [levels](#settings-on-levels) can override it"),
    key("reuse-failures-seconds", Int { min: 1, max: WEEK }, Toml("3600"), "how long a failure is reused, and for whom [levels](#settings-on-levels) say so (`reuse-build-timeouts`) a time-out"),
    key("settings.allow-builds", Bool, Toml("true"), "the box's value of the [setting](#settings-on-levels) `allow-builds`"),
    key("settings.allow-home", Bool, Toml("true"), "the same for `allow-home`"),
    key("settings.allow-override", Bool, Toml("true"), "the same for `allow-override`: with `false` the roster and clients change no setting"),
    key("settings.allow-shell", Bool, Toml("true"), "the same for `allow-shell`"),
    key("settings.inject-fs-randomness", Bool, Toml("false"), "the same for `inject-fs-randomness`"),
    key("settings.max-build-restarts", Int { min: 0, max: 10 }, Toml("2"), "the same for `max-build-restarts`"),
    key("settings.reuse-build-timeouts", Bool, Toml("false"), "the same for `reuse-build-timeouts`"),
    key("settings.settings-from-drv-env", Bool, Toml("false"), "the same for `settings-from-drv-env`"),
    key("settings.settings-from-ssh-env", Bool, Toml("true"), "the same for `settings-from-ssh-env`"),
    key("store.durability", Word(&["flush", "none"]), Toml(r#""flush""#), "`flush`: the store survives a power loss, except for its last seconds; `none`: the agent never flushes, and the store is empty after a reboot (for a store in memory, or on a disk that is erased at boot)"),
    key("store.min-free-mib", Int { min: 0, max: TIB }, Derived("a tenth of the store's file system, at most 10240"), "with less than this free on the store's file system, the box evicts what was not used for the longest time and slows uploads down; below the half of it uploads are refused if nothing can be evicted, below a quarter the outputs of builds; 0: nothing is evicted"),
    key("store.min-free-inodes-percent", Int { min: 0, max: 50 }, Toml("5"), "the same for the inodes of the file system, in percent of them; 0: any number may be used"),
    key("sandbox.backend", Word(&["kvm", "namespace"]), Toml(r#""kvm""#), "`kvm`: one micro-VM per build; `namespace`: bubblewrap, which isolates less and is named in the banner"),
    key("sandbox.kernel", Path, Toml(r#""/usr/lib/barnraiser/guest/vmlinux""#), "kvm: the guest kernel (ELF)"),
    key("sandbox.initrd", Path, Toml(r#""/usr/lib/barnraiser/guest/initrd""#), "kvm: the guest initrd"),
    key("sandbox.guest", Path, Toml(r#""/usr/lib/barnraiser/guest/guest""#), "namespace: the statically linked guest binary"),
    key("sandbox.shell", Path, Toml(r#""/usr/lib/barnraiser/guest/busybox""#), "namespace: the static shell that becomes `/bin/sh`"),
    key("sandbox.cgroup", Path, Derived("the agent's own cgroup, which then may have no memory limit"), "kvm: the cgroup below which each VM gets its own cgroup, such as that of `barnraiser-builds.service`"),
    key("sandbox.allow-missing", JailSteps, Toml("[]"), "kvm: steps of the jail that may be missing where the host does not support them; they are named in the banner. Possible: `cgroup`, `namespaces`, `pid-namespace`, `own-uid`, `landlock`"),
    key("sandbox.templates", Int { min: 0, max: 64 }, Toml("3"), "kvm: most templates at a time. A VM starts as a copy of the template of its shape (virtual CPUs, memory, devices) and does not boot a kernel; each template takes about 75 MiB, and 1.6 % of the memory of its VMs. With 0 every VM boots"),
    key("sandbox.vcpus", Int { min: 1, max: 64 }, Toml("1"), "virtual CPUs of a build; [levels](#settings-on-levels) can choose others up to `limits.max-cpus`, and the member's `max-cpus` can reduce it"),
    key("sandbox.memory-mib", Int { min: 64, max: TIB }, Toml("1024"), "memory of a build; [levels](#settings-on-levels) can choose other memory up to `limits.max-memory-mib`, and the member's `max-memory-mib` can reduce it"),
    key("fetch.allow-private", Bool, Toml("false"), "whether the box may connect to addresses that are not public, for substituters and `builtin:fetchurl`"),
    key("fetch.certificates", Path, Toml(r#""/etc/ssl/certs/ca-certificates.crt""#), "the certificate authorities for https, in one PEM file"),
    key("fetch.stall-seconds", Int { min: 1, max: 3600 }, Toml("30"), "longest time without data from a server"),
    key("fetch.max-seconds", Int { min: 1, max: WEEK }, Toml("3600"), "longest duration of one download"),
    key("network.builds", Bool, Toml("true"), "kvm: whether builders of fixed outputs have a network, as in stock Nix; the keys below say what they reach ([network.md](../design/network.md)). In the namespace sandbox they have none"),
    key("network.passt", Path, Toml(r#""/usr/bin/passt""#), "the program that makes sockets of their packets"),
    key("network.resolver", Ip, Derived("the first name server of the host that is not on its loopback, one with an IPv4 address before all others"), "the address of their name server; it needs not be public"),
    key("network.allow-networks", Networks, Toml("[]"), "networks that they reach although these are not public, such as that of a private mirror; never the box's own addresses, and nothing link-local"),
    key("network.deny-networks", Networks, Toml("[]"), "networks that they do not reach although these are public; they take precedence over `network.allow-networks`"),
    key("network.allow-names", Globs, Toml("[]"), "globs over host names; if there are any, they reach only what such a name stands for, and `network.allow-networks`"),
    key("network.deny-names", Globs, Toml("[]"), "globs over host names that they do not reach; they take precedence over `network.allow-names`"),
    key("network.tcp-ports", Ports, Toml(r#"["1-24", "26-65535"]"#), "the ports of TCP that they reach"),
    key("network.udp-ports", Ports, Toml(r#"["443"]"#), "the ports of UDP that they reach, besides that of the name server"),
    key("network.max-connections", Int { min: 1, max: 65_536 }, Toml("512"), "connections that one builder may have at a time"),
    key("network.max-new-connections-per-second", Int { min: 1, max: 65_536 }, Toml("30"), "connections that one builder may open in a second, in the long run; five times as many at once"),
    key("network.max-mib", Int { min: 1, max: TIB }, Toml("32768"), "size of everything that one builder sends and receives"),
    key("network.max-kib-per-second", Int { min: 1, max: TIB }, Toml("122070"), "the same in a second; by default a gigabit"),
    key("network.max-connection-seconds", Int { min: 1, max: WEEK }, Toml("21600"), "longest duration of one connection"),
    key("homes.image", Path, Toml(r#""/usr/lib/barnraiser/home.erofs""#), "kvm: the root file system of homes, as `netboot-image home` makes it; without this file the box has no homes ([home.md](../design/home.md))"),
    key("homes.max", Int { min: 0, max: 10_000 }, Derived("as many as a quarter of the machine's memory holds, at least one"), "homes that the box has at a time; 0: none"),
    key("homes.vcpus", Int { min: 1, max: 64 }, Toml("2"), "virtual CPUs of a home; the member's `max-cpus` can reduce it"),
    key("homes.memory-mib", Int { min: 512, max: TIB }, Toml("2048"), "memory of a home with all its files; the member's `max-memory-mib` can reduce it"),
    key("homes.processes", Int { min: 64, max: 1_000_000 }, Toml("4096"), "number of processes and threads of a home"),
    key("homes.ttl-seconds", Int { min: 1, max: WEEK }, Toml("1800"), "how long a home stays after its last session has ended; [levels](#settings-on-levels) can shorten it (`home-ttl`)"),
    key("homes.sessions", Int { min: 1, max: 32 }, Toml("16"), "ssh connections that lead into one home at a time"),
    key("mirrors.repositories", Mirrors, Toml("[]"), "git repositories of which the box has a mirror, such as `nixpkgs=https://git.example.org/NixOS/nixpkgs`; each home shows them read-only as `/NAME.git` ([mirrors.md](../design/mirrors.md)). `https://`, `ssh://`, `git://` and `file://`; redirects are not followed"),
    key("mirrors.seed", Seeds, Toml("[]"), "where the first objects of a mirror come from, such as the boot server: another repository, or a git bundle if the URL ends with `.bundle`; also `http://`"),
    key("mirrors.interval-seconds", Int { min: 10, max: WEEK }, Toml("900"), "pause between two looks at all upstreams; a mirror that cannot be fetched is tried again after up to sixteen times as long"),
    key("mirrors.max-mib", Int { min: 1, max: TIB }, Toml("16384"), "size of one mirror; while it is packed anew it takes twice as much"),
    key("mirrors.dir", Path, Toml(r#""/var/lib/barnraiser-mirrors""#), "the folder of the mirrors, which belongs to the user of `barnraiser-mirrors.service`"),
    key("limits.max-jobs", Int { min: 1, max: 4096 }, Derived("the number of CPUs"), "number of builds that run at the same time on the box"),
    key("limits.max-jobs-per-member", Int { min: 1, max: 4096 }, Derived("`limits.max-jobs`"), "number of builds that run at the same time for one member; the roster can reduce it. They also have no more together than so many times `sandbox.vcpus` and `sandbox.memory-mib`, and one build has no more than that"),
    key("limits.max-cpu-hours-per-month", Int { min: 1, max: 10_000_000 }, Derived("no limit"), "processor time of all builds of one member in a calendar month (UTC); a member who has used it starts no new builds in that month, and running ones go on; a member's own limit in the roster replaces this one"),
    key("limits.max-tickets-per-member", Int { min: 0, max: 10_000 }, Toml("100"), "number of live tickets that one member may have; 0: members make no tickets"),
    key("limits.max-ticket-seconds", Int { min: 60, max: YEAR }, Toml("2592000"), "longest time from the making of a ticket to its expiry"),
    key("limits.max-build-seconds", Int { min: 1, max: WEEK }, Toml("14400"), "wall-clock time of one build; clients and the roster can reduce it"),
    key("limits.max-silent-seconds", Int { min: 1, max: WEEK }, Toml("3600"), "longest time without output from a build; clients and the roster can reduce it"),
    key("limits.max-log-mib", Int { min: 1, max: 4096 }, Toml("64"), "size of one build's log"),
    key("limits.max-kept-logs-mib", Int { min: 1, max: TIB }, Toml("1024"), "size of the kept logs of finished builds: this much for each member, and twice this much for all, where who has the most makes room; the oldest logs are removed first; the logs that one member uploads at the same time have no more than this together"),
    key("limits.max-output-mib", Int { min: 1, max: TIB }, Toml("8192"), "size of all outputs of one build together, as NARs; the roster can reduce it"),
    key("limits.max-nar-mib", Int { min: 1, max: TIB }, Toml("8192"), "size of one uploaded NAR; the roster can reduce it"),
    key("limits.max-store-mib-per-member", Int { min: 1, max: 1 << 30 }, Derived("half of the store's file system"), "size of the store paths that one member has claimed or brought first, without those that the member does not need; the roster can reduce it"),
    key("limits.max-memory-mib", Int { min: 64, max: TIB }, Derived("`sandbox.memory-mib`"), "upper limit for the memory of one build, also of one that is started again with more; it is no more than `limits.max-jobs-per-member` times `sandbox.memory-mib`, and all builds together have no more than `limits.max-jobs` times `sandbox.memory-mib`, or one build that is larger alone"),
    key("limits.max-cpus", Int { min: 1, max: 64 }, Derived("`sandbox.vcpus`"), "upper limit for the virtual CPUs of one build; it is no more than `limits.max-jobs-per-member` times `sandbox.vcpus`, and all builds together have no more than `limits.max-jobs` times `sandbox.vcpus`, or one build that is larger alone"),
    key("limits.max-processes", Int { min: 16, max: 1_000_000 }, Toml("4096"), "number of processes and threads of one build"),
    key("limits.max-connections", Int { min: 1, max: 100_000 }, Toml("4096"), "number of open ssh connections of all members, after login"),
    key("limits.max-connections-per-member", Int { min: 1, max: 10_000 }, Toml("256"), "number of open ssh connections of one member; stock Nix opens one for each build of `--builders`; the roster can reduce it"),
    key("limits.max-sessions-per-member", Int { min: 1, max: 100_000 }, Toml("1024"), "number of commands of one member that run over ssh at the same time, in all connections; the roster can reduce it"),
    key("limits.max-sessions-per-connection", Int { min: 1, max: 4096 }, Toml("512"), "number of open channels in one connection (ControlMaster)"),
    key("limits.client-stall-seconds", Int { min: 1, max: WEEK }, Toml("300"), "longest time in which a client sends the next 64 KiB of a request, or reads the next 64 KiB of an answer; after that its session ends. The time between requests is not limited"),
    key("limits.max-session-memory-mib", Int { min: 64, max: TIB }, Derived("a quarter of the machine's memory, at least 512"), "memory of the agent for the requests of all members together, without the builds, which run in sandboxes; a member that uses less than 16 MiB is never refused"),
    key("limits.max-session-memory-per-member-mib", Int { min: 16, max: TIB }, Derived("a quarter of `limits.max-session-memory-mib`, at least 512"), "memory of the agent for the requests of one member"),
    key("limits.login-seconds", Int { min: 1, max: 600 }, Toml("30"), "longest time from the start of a connection to its login"),
    key("limits.max-auth-tries", Int { min: 6, max: 1000 }, Toml("60"), "number of keys that a client may offer in one connection"),
    key("limits.max-startups", Startups, Toml(r#""128:30:256""#), "limits of connections before login: from `start` connections on, a new one closes another one with a probability that rises from `rate` percent to 100 percent at `full`"),
    key("limits.per-source-max-startups", Int { min: 1, max: 100_000 }, Toml("128"), "number of connections before login from one source; a new one closes the oldest of that source"),
    key("limits.per-source-net-block-size", NetBlocks, Toml(r#""32:64""#), "the prefix lengths of IPv4 and of IPv6 addresses that count as one source"),
    key("limits.per-source-penalties", Penalties, Toml(r#""crash:90 authfail:5 probe:1 noauth:1 grace-exceeded:10 min:30 max:600""#), "penalties in seconds that a source gets for connections without a login; from a sum of `min` on, the box refuses connections from that source until the time is over"),
    key("limits.per-source-penalty-exempt", Networks, Toml("[]"), "sources that get no penalties, such as a monitoring host"),
];

/// The reference table of `docs/reference/settings.md`, made from [`KEYS`].
pub fn markdown() -> String {
    let mut out = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let kind = match key.kind {
            Text => "text".into(),
            Path => "absolute path".into(),
            Word(words) => words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(" or "),
            Int { min, max } => format!("{min} to {max}"),
            Bool => "`true` or `false`".into(),
            Address => "text".into(),
            Addresses => "list of `address:port`".into(),
            Texts => "list of text".into(),
            Globs => "list of globs".into(),
            JailSteps => "list of steps".into(),
            Substituters => "list of store URLs".into(),
            PublicKeys => "list of `name:base64`".into(),
            Startups => "`start:rate:full`".into(),
            NetBlocks => "`bits:bits`".into(),
            Penalties => "`no`, or `name:seconds` of each".into(),
            Networks => "list of addresses and networks".into(),
            Ip => "an IP address".into(),
            Ports => "list of ports and ranges".into(),
            Mirrors | Seeds => "list of `NAME=URL`".into(),
        };
        let default = match key.default {
            Required => "must be set".into(),
            Toml(value) => format!("`{value}`"),
            Derived(words) => words.to_owned(),
        };
        let _ = writeln!(out, "| `{}` | {kind} | {default} | {} |", key.name, key.help);
    }
    out
}
