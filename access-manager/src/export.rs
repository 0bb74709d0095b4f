//! The roster for machines that do not run the agent: an ordinary Nix daemon behind sshd.
//!
//! All members log in to one account, each with keys of their own. Such a machine cannot tell members apart: there are no
//! views, no limits and no roles on it. What sshd can enforce is kept: who gets in, from where, until when, by which
//! authority. Every key is `restrict`ed, as on the box: no terminal, no forwarding; commands do run.
//!
//! Not here: reading the roster, and telling about mistakes in it.

use ::roster::keys::{self, Authority};
use ::roster::words::quoted;
use ::roster::{Day, Key, Member};

use crate::nix_text;

/// Longest name of an account; Linux has no longer ones.
const MAX_ACCOUNT: usize = 32;
/// The id of the account on macOS, which nix-darwin needs to be told. Ordinary users begin at 501, and Nix's build users
/// at 301 or 351. `lib.mkDefault` lets another module choose another one.
const DARWIN_UID: u32 = 534;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    AuthorizedKeys,
    Nixos,
    NixDarwin,
}

/// The name of an account: lower-case letters, digits, `-` and `_`, so that it needs no quoting anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account(String);

impl std::str::FromStr for Account {
    type Err = String;

    fn from_str(name: &str) -> Result<Account, String> {
        let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let rest = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
        match first && rest && name.len() <= MAX_ACCOUNT {
            true => Ok(Account(name.to_owned())),
            false => Err(format!(
                "expected 1 to {MAX_ACCOUNT} lower-case letters, digits, `-` or `_`, a letter or `_` first"
            )),
        }
    }
}

/// The text, and who is not in it.
#[derive(Debug)]
pub struct Exported {
    pub text: String,
    pub warnings: Vec<String>,
}

/// Writes `members` as of `now` (seconds since 1970).
pub fn export(members: &[Member], format: Format, account: &Account, now: u64) -> Exported {
    let mut warnings = Vec::new();
    let mut lines = Vec::new();
    for member in members {
        if let Some(day) = member.expired(Day::at(now)) {
            warnings.push(format!("{} has expired on {day} and is left out", quoted(&member.name)));
            continue;
        }
        for key in member.keys.iter().filter_map(|line| keys::parse_line(line).ok()) {
            match key.expired(now) {
                Some(until) => warnings.push(format!(
                    "the key {} of {} has expired at {until} and is left out",
                    key.fingerprint(),
                    quoted(&member.name)
                )),
                None => lines.push(line(member, key)),
            }
        }
    }
    let text = match format {
        Format::AuthorizedKeys => authorized_keys(&lines),
        Format::Nixos => nixos(&lines, &account.0),
        Format::NixDarwin => nix_darwin(&lines, &account.0),
    };
    Exported { text, warnings }
}

/// A line of `authorized_keys` that means what the key means on the box.
fn line(member: &Member, mut key: Key) -> String {
    key.comment = member.name.clone();
    key.until = key.until.into_iter().chain(member.expires.map(Day::end)).min();
    if let Some(Authority { principals }) = &mut key.authority {
        // Without the option, sshd expects the name of the account as principal, and no certificate has that.
        principals.get_or_insert_with(|| vec![member.name.clone()]);
    }
    let line = key.line();
    match line.starts_with(&key.key) {
        true => format!("restrict {line}"),
        false => format!("restrict,{line}"),
    }
}

const ORIGIN: &str = "Made by `access-manager export` from the roster; changes belong there.";

fn authorized_keys(lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    format!("# {ORIGIN}\n{lines}")
}

fn nixos(lines: &[String], account: &str) -> String {
    format!(
        "# {ORIGIN}
#
# Every member can log in as `{account}` and use this machine's Nix daemon. Sending inputs that the daemon cannot check
# needs `nix.settings.trusted-users = [ \"{account}\" ];`, which makes every member as powerful as root: your decision.
{{ ... }}:
{{
  services.openssh.enable = true;
  users.groups.{account} = {{ }};
  users.users.{account} = {{
    isSystemUser = true;
    group = \"{account}\";
    # sshd runs `nix-daemon --stdio` and `nix-store --serve` with the account's shell.
    useDefaultShell = true;
    openssh.authorizedKeys.keys = [
{}    ];
  }};
}}
",
        items(lines)
    )
}

fn nix_darwin(lines: &[String], account: &str) -> String {
    format!(
        "# {ORIGIN}
#
# Switch on Remote Login for `{account}` in the system settings. Every member can log in as `{account}` and use this
# machine's Nix daemon. Sending inputs that the daemon cannot check needs
# `nix.settings.trusted-users = [ \"{account}\" ];`, which makes every member as powerful as root: your decision.
{{ lib, ... }}:
{{
  users.knownUsers = [ \"{account}\" ];
  users.users.{account} = {{
    # Any number that no other account of the machine has.
    uid = lib.mkDefault {DARWIN_UID};
    home = \"/Users/{account}\";
    createHome = true;
    isHidden = true;
    # /etc/zshenv puts Nix into the PATH of commands over ssh.
    shell = \"/bin/zsh\";
    openssh.authorizedKeys.keys = [
{}    ];
  }};
}}
",
        items(lines)
    )
}

fn items(lines: &[String]) -> String {
    lines.iter().map(|line| format!("      {}\n", nix_text::string(line))).collect()
}

#[cfg(test)]
#[path = "export_test.rs"]
mod export_test;
