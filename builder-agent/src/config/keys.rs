//! The table of keys: name, kind, default, meaning.

use std::fmt::Write as _;

/// What a value may be. Ranges are inclusive.
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
    Texts,
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
}

/// What stands in when the key is absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fallback {
    /// The key must be set.
    None,
    /// A TOML value.
    Toml(&'static str),
    /// Worked out at start, described in words.
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

/// A week. Longer than any build we have met; a wall clock that never rings is no limit.
const WEEK: i64 = 7 * 24 * 3600;
/// One tebibyte in MiB, far above any disk a box of ours has.
const TIB: i64 = 1024 * 1024;

use Fallback::{Derived, None as Required, Toml};
use Kind::{
    Addresses, Bool, Int, JailSteps, NetBlocks, Networks, Path, Penalties, PublicKeys, Startups,
    Substituters, Text, Texts, Word,
};

#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("name", Text, Derived("the host name"), "how the box calls itself in the banner and in logs"),
    key("listen", Addresses, Toml(r#"["0.0.0.0:22", "[::]:22"]"#), "where ssh is answered; port 0 picks a free port and logs it"),
    key("roster", Path, Required, "the `roster.json` that `access-manager sync` writes; read again within a second of a change"),
    key("state-dir", Path, Toml(r#""/var/lib/barnraiser""#), "holds `store/`, `logs/` and, by default, the two keys"),
    key("host-key", Path, Derived("`<state-dir>/ssh_host_ed25519_key`"), "the box's ssh identity; created once with mode 0600 when absent"),
    key("signing-key", Path, Derived("`<state-dir>/signing-key`"), "the key that signs Verified paths that are not content-addressed, as `nix key generate-secret` writes it; created once with mode 0600 when absent"),
    key("signing-key-name", Text, Derived("`<name>-1`"), "the name of a signing key that is created; a key that exists keeps its own"),
    key("trusted-public-keys", PublicKeys, Toml("[]"), "whose signatures make a path Verified, in uploads and from substituters; the box's own key always does"),
    key("substitute", Bool, Toml("true"), "whether the box fetches paths from `substituters` at all"),
    key("substituters", Substituters, Toml("[]"), "caches to fetch from: `http://`, `https://` or `ssh-ng://`; asked in the order of their priorities, then of this list"),
    key("always-substitute", Texts, Toml("[]"), "globs over names; what they match is fetched even if client or derivation asked for none of that"),
    key("never-substitute", Texts, Toml("[]"), "globs over names; what they match is never fetched, as `always-substitute` may say"),
    key("systems", Texts, Derived("the host's, e.g. `[\"x86_64-linux\"]`"), "the `system` values of derivations that may run here"),
    key("system-features", Texts, Toml(r#"["big-parallel", "benchmark"]"#), "accepted in a derivation's `requiredSystemFeatures`"),
    key("keep-builds-running", Bool, Toml("false"), "let a build go on when the last client waiting for it disconnects"),
    key("keep-going", Bool, Toml("true"), "after a failure build what does not need it, too, for clients that do not say; stock Nix says nothing over ssh, not even with `--keep-going`"),
    key("reuse-failures", Bool, Toml("true"), "tell the failure of an earlier equal build again instead of building; successes are always reused"),
    key("reuse-failures-seconds", Int { min: 1, max: WEEK }, Toml("3600"), "for how long"),
    key("store.durability", Word(&["flush", "none"]), Toml(r#""flush""#), "`flush`: the store survives a power loss, but for its last seconds; `none`: nothing is flushed, and a reboot forgets the store (in memory, or on a disk that is wiped at boot)"),
    key("sandbox.backend", Word(&["kvm", "namespace"]), Toml(r#""kvm""#), "`kvm`: a micro-VM per build; `namespace`: bubblewrap, weaker, named in the banner"),
    key("sandbox.kernel", Path, Toml(r#""/usr/lib/barnraiser/guest/vmlinux""#), "kvm: the guest kernel (ELF)"),
    key("sandbox.initrd", Path, Toml(r#""/usr/lib/barnraiser/guest/initrd""#), "kvm: the guest initrd"),
    key("sandbox.guest", Path, Toml(r#""/usr/lib/barnraiser/guest/guest""#), "namespace: the statically linked guest binary"),
    key("sandbox.shell", Path, Toml(r#""/usr/lib/barnraiser/guest/busybox""#), "namespace: the static shell that becomes `/bin/sh`"),
    key("sandbox.cgroup", Path, Derived("below the agent's own, which then may have no memory limit"), "kvm: the cgroup below which each VM gets one, such as that of `barnraiser-builds.service`"),
    key("sandbox.allow-missing", JailSteps, Toml("[]"), "kvm: steps of the jail without which VMs run all the same, where the host cannot give them; named in the banner. Of `cgroup`, `namespaces`, `pid-namespace`, `own-uid`, `landlock`"),
    key("sandbox.vcpus", Int { min: 1, max: 64 }, Toml("1"), "virtual CPUs of a build, up to the member's `max-cpus` and `limits.max-cpus`"),
    key("sandbox.memory-mib", Int { min: 64, max: TIB }, Toml("1024"), "memory of a build, up to the member's `max-memory-mib` and `limits.max-memory-mib`"),
    key("fetch.allow-private", Bool, Toml("false"), "let the box connect to addresses that are not public, for substituters and `builtin:fetchurl`"),
    key("fetch.certificates", Path, Toml(r#""/etc/ssl/certs/ca-certificates.crt""#), "certificate authorities for https, as one PEM file"),
    key("fetch.stall-seconds", Int { min: 1, max: 3600 }, Toml("30"), "longest time a server may send nothing"),
    key("fetch.max-seconds", Int { min: 1, max: WEEK }, Toml("3600"), "longest time for one download"),
    key("limits.max-jobs", Int { min: 1, max: 4096 }, Derived("the number of CPUs"), "builds running at once on the box"),
    key("limits.max-jobs-per-member", Int { min: 1, max: 4096 }, Derived("`limits.max-jobs`"), "builds running at once for one member; the roster may say less"),
    key("limits.max-build-seconds", Int { min: 1, max: WEEK }, Toml("14400"), "wall clock of one build; clients and the roster may ask for less"),
    key("limits.max-silent-seconds", Int { min: 1, max: WEEK }, Toml("3600"), "longest time a build may print nothing; clients may ask for less"),
    key("limits.max-log-mib", Int { min: 1, max: 4096 }, Toml("64"), "size of one build's log"),
    key("limits.max-kept-logs-mib", Int { min: 1, max: TIB }, Toml("1024"), "logs of ended builds that are kept for one member, and as much again for everybody; the oldest go first"),
    key("limits.max-output-mib", Int { min: 1, max: TIB }, Toml("8192"), "size of all outputs of one build, as NARs"),
    key("limits.max-nar-mib", Int { min: 1, max: TIB }, Toml("8192"), "size of one uploaded NAR"),
    key("limits.max-memory-mib", Int { min: 64, max: TIB }, Derived("`sandbox.memory-mib`"), "ceiling for the memory of one build"),
    key("limits.max-cpus", Int { min: 1, max: 64 }, Derived("`sandbox.vcpus`"), "ceiling for the virtual CPUs of one build"),
    key("limits.max-processes", Int { min: 16, max: 1_000_000 }, Toml("4096"), "processes and threads of one build"),
    key("limits.max-connections", Int { min: 1, max: 100_000 }, Toml("4096"), "ssh connections of all members at once, logged in"),
    key("limits.max-connections-per-member", Int { min: 1, max: 10_000 }, Toml("256"), "ssh connections of one member at once; stock Nix opens one for each build of `--builders`"),
    key("limits.max-sessions-per-connection", Int { min: 1, max: 4096 }, Toml("512"), "channels open at once in one connection (ControlMaster)"),
    key("limits.client-stall-seconds", Int { min: 1, max: WEEK }, Toml("300"), "longest time a client may take for the next 64 KiB of a request it has begun, or of an answer; then its session ends. Between requests it may do nothing for as long as it likes"),
    key("limits.max-session-memory-mib", Int { min: 64, max: TIB }, Derived("a quarter of the machine's memory, at least 512"), "what all requests together may make the agent hold in memory (builds are in sandboxes and not meant); who holds less than 16 MiB may go on in any case"),
    key("limits.max-session-memory-per-member-mib", Int { min: 16, max: TIB }, Derived("a quarter of `limits.max-session-memory-mib`, at least 512"), "the same, for the sessions of one member"),
    key("limits.login-seconds", Int { min: 1, max: 600 }, Toml("30"), "time from connecting to being logged in"),
    key("limits.max-auth-tries", Int { min: 6, max: 1000 }, Toml("60"), "keys that may be offered in one connection"),
    key("limits.max-startups", Startups, Toml(r#""128:30:256""#), "connections that are not logged in yet: from the first number on a newcomer costs another its place with this chance in percent, from the last on always"),
    key("limits.per-source-max-startups", Int { min: 1, max: 100_000 }, Toml("128"), "the same for one source; its oldest gives way"),
    key("limits.per-source-net-block-size", NetBlocks, Toml(r#""32:64""#), "how many bits of an IPv4 and of an IPv6 address are one source"),
    key("limits.per-source-penalties", Penalties, Toml(r#""crash:90 authfail:5 probe:1 noauth:1 grace-exceeded:10 min:30 max:600""#), "seconds that a source gathers for connections which end without a login; from `min` on it is not let in until they are over"),
    key("limits.per-source-penalty-exempt", Networks, Toml("[]"), "sources that gather none, such as a monitor's"),
];

/// The reference table of `docs/reference/agent.md`, made from [`KEYS`].
pub fn markdown() -> String {
    let mut out = String::from("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let kind = match key.kind {
            Text => "text".into(),
            Path => "absolute path".into(),
            Word(words) => words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(" or "),
            Int { min, max } => format!("{min} to {max}"),
            Bool => "`true` or `false`".into(),
            Addresses => "list of `address:port`".into(),
            Texts => "list of text".into(),
            JailSteps => "list of steps".into(),
            Substituters => "list of store URLs".into(),
            PublicKeys => "list of `name:base64`".into(),
            Startups => "`start:rate:full`".into(),
            NetBlocks => "`bits:bits`".into(),
            Penalties => "`no`, or `name:seconds` of each".into(),
            Networks => "list of addresses and networks".into(),
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
