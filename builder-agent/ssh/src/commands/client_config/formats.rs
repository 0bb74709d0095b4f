//! The formats of `client-config`.
//!
//! Nix knows the box by its alias in every format, and ssh finds address, port and host key under that name. So all
//! versions of Nix can use a port other than 22, and the store has the same name in every configuration.
//! `src/libstore/machines.cc` of Nix documents the fields of a line of machines.
//!
//! A shared connection (`ControlMaster`) has an alias of its own, for people. Nix must not share one that ssh manages: it
//! starts ssh with a command that prints `started`, and reads that line only if no other connection is open when it looks
//! a moment later (`SSHMaster::startCommand` in `src/libstore/ssh.cc`). With `ControlMaster` its own connection may be
//! open by then, and the line stands in front of the protocol.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use roster::nix_text::string as nix_string;

use super::Values;

/// The key of the Nix daemon, which the member guide tells members to make.
const DAEMON_KEY: &str = "/root/.ssh/barnraiser";
const DARWIN_DAEMON_KEY: &str = "/var/root/.ssh/barnraiser";
/// Seconds for which a shared connection stays open after its last session: long enough for a person's next command.
const PERSIST: u32 = 60;

/// The part of an ssh configuration that says how to reach the box. `more` are further lines for both aliases.
fn hosts(values: &Values, more: &str) -> String {
    let Values { alias, host, port, user, .. } = values;
    format!(
        "Host {alias} {alias}-shared
  HostName {host}
  Port {port}
  User {user}
  HostKeyAlias {alias}
{more}
# For your own commands: `ssh {alias}-shared …` opens one connection for all of them. Not for Nix.
Host {alias}-shared
  ControlMaster auto
  ControlPath ~/.ssh/control-%C
  ControlPersist {PERSIST}
"
    )
}

pub(super) fn ssh(values: &Values) -> String {
    let Values { alias, host_key, .. } = values;
    let key = values.key.as_deref().unwrap_or("~/.ssh/id_ed25519");
    format!(
        "# ~/.ssh/config; for the Nix daemon also /root/.ssh/config (macOS: /var/root/.ssh/config),
# with a key that has no passphrase.
{}
# ~/.ssh/known_hosts (without the `# `):
# {alias} {host_key}
",
        hosts(values, &format!("  IdentityFile {key}\n  IdentitiesOnly yes\n"))
    )
}

/// A list of `/etc/nix/machines`; `-` stands for none.
fn list(items: &[String]) -> String {
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

/// Store, systems, key, jobs, speed factor, features, mandatory features, host key.
fn machine(values: &Values) -> String {
    let Values { alias, user, systems, features, max_jobs, host_key, .. } = values;
    let key = values.key.as_deref().unwrap_or(DAEMON_KEY);
    let (systems, features, host_key) = (list(systems), list(features), STANDARD.encode(host_key));
    format!("ssh-ng://{user}@{alias} {systems} {key} {max_jobs} 1 {features} - {host_key}")
}

/// Says where ssh learns what the alias means.
fn needs_ssh(values: &Values) -> String {
    format!("`{}` is the host that `client-config --format ssh` describes.", values.alias)
}

pub(super) fn machines(values: &Values) -> String {
    format!("# /etc/nix/machines. {}\n{}\n", needs_ssh(values), machine(values))
}

pub(super) fn nix_conf(values: &Values) -> String {
    format!(
        "# /etc/nix/nix.conf. {}
builders = {}
builders-use-substitutes = true
extra-trusted-public-keys = {}
",
        needs_ssh(values),
        machine(values),
        values.signing_key
    )
}

/// A list of strings in Nix, on one line.
fn nix_list(items: &[String]) -> String {
    let items: String = items.iter().map(|item| format!("{} ", nix_string(item))).collect();
    format!("[ {items}]")
}

/// The part of a module that NixOS and nix-darwin have in common.
fn nix_options(values: &Values, key: &str) -> String {
    format!(
        "  nix.distributedBuilds = true;
  nix.settings.builders-use-substitutes = true;
  nix.settings.trusted-public-keys = [ {} ];
  nix.buildMachines = [
    {{
      hostName = {};
      protocol = \"ssh-ng\";
      sshUser = {};
      sshKey = {};
      publicHostKey = {};
      systems = {};
      supportedFeatures = {};
      maxJobs = {};
    }}
  ];
",
        nix_string(&values.signing_key),
        nix_string(&values.alias),
        nix_string(&values.user),
        nix_string(key),
        nix_string(&STANDARD.encode(&values.host_key)),
        nix_list(&values.systems),
        nix_list(&values.features),
        values.max_jobs
    )
}

/// The ssh configuration of the whole machine, as a string in Nix. It names no key: Nix uses `sshKey`, and people have
/// their own. Connections are shared by user, below each home.
fn ssh_of_machine(values: &Values) -> String {
    nix_string(&hosts(values, ""))
}

fn known_host(values: &Values) -> String {
    format!(
        "  programs.ssh.knownHosts.{} = {{ publicKey = {}; }};\n",
        nix_string(&values.alias),
        nix_string(&values.host_key)
    )
}

pub(super) fn nixos(values: &Values) -> String {
    let key = values.key.as_deref().unwrap_or(DAEMON_KEY);
    format!(
        "{{ ... }}:
{{
{}{}  programs.ssh.extraConfig = {};
}}
",
        nix_options(values, key),
        known_host(values),
        ssh_of_machine(values)
    )
}

pub(super) fn nix_darwin(values: &Values) -> String {
    let key = values.key.as_deref().unwrap_or(DARWIN_DAEMON_KEY);
    let file = format!("ssh/ssh_config.d/100-{}.conf", values.alias);
    format!(
        "{{ ... }}:
{{
{}{}  environment.etc.{}.text = {};
}}
",
        nix_options(values, key),
        known_host(values),
        nix_string(&file),
        ssh_of_machine(values)
    )
}
