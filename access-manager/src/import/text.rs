//! The recommended `users.nix`: the steps to join, then members in alphabetical order.

use std::fmt::Write;

use ::roster::settings::{Layer, Value};
use ::roster::{Member, MemberLimits, Role};

use crate::nix_text::{attribute, string};
use crate::roster::{About, Evaluated, GroupEntry};

/// As in the `users.nix` of this project.
pub const HEADER: &str = "\
# Who may build on this box. To join:
#
#   1. Take the PUBLIC half of an ssh key: the one line in ~/.ssh/id_ed25519.pub. No such file? Make one with
#      `ssh-keygen -t ed25519`. Never put a file here whose name does not end in .pub.
#
#   2. Add yourself below, in alphabetical order. These lines are all it takes:
#
#        yourname = {
#          keys = \"ssh-ed25519 AAAA… yourname@laptop\";
#        };
#
#      With more than one key, write `keys = [ \"…\" \"…\" ];`, or put them into a file, one per line, and name it:
#      `keys = ./path/to/yourname.pub;`.
#
#   3. Check it: `access-manager check users.nix`. A mistake is shown with its line.
#
#   4. Open a pull request. Once it is merged you can build within a minute; no restart, no further login.
#
# Everything else (roles, limits, groups, dates, other shapes) is in docs/reference/roster.md of Barnraiser.
";

/// `path` gives the Nix text for a key file of a member.
pub fn roster(roster: &Evaluated, path: &dyn Fn(&str, &str) -> String) -> String {
    let nobody = About::default();
    let members: Vec<String> = roster
        .members
        .iter()
        .map(|member| {
            let about = roster.about.get(&member.name).unwrap_or(&nobody);
            entry(&member.name, &attributes(member, about, path))
        })
        .collect();
    let members = separated(&members);
    if roster.groups.is_empty() && roster.hosts.is_empty() {
        return format!("{HEADER}{}\n", set(&members));
    }
    let mut parts = Vec::new();
    if !roster.hosts.is_empty() {
        parts.push(format!("# The boxes of this roster.\nhosts = {};\n", names(&roster.hosts)));
    }
    if !roster.groups.is_empty() {
        let groups: Vec<String> =
            roster.groups.iter().map(|group| entry(&group.group.name, &group_attributes(group))).collect();
        parts.push(format!(
            "# The members of a group name it in `groups`. They share its `limits`.\ngroups = {};\n",
            set(&separated(&groups))
        ));
    }
    parts.push(format!("users = {};\n", set(&members)));
    format!("{HEADER}{}\n", set(&separated(&parts)))
}

fn attributes(member: &Member, about: &About, path: &dyn Fn(&str, &str) -> String) -> String {
    let mut out = format!("keys = {};\n", list(&keys(member, about, path)));
    if member.role != Role::Member {
        let _ = writeln!(out, "role = {};", string(member.role.name()));
    }
    out.push_str(&limits("limits", &about.own_limits));
    out.push_str(&settings("settings", &member.settings));
    for (key, layer) in member.key_settings.iter().filter(|(_, layer)| !layer.is_empty()) {
        out.push_str(&settings(&format!("keySettings.{}", attribute(key)), layer));
    }
    for (attribute, listed) in
        [("groups", &member.groups), ("hosts", &about.hosts), ("shareWith", &member.share_with)]
    {
        if !listed.is_empty() {
            let _ = writeln!(out, "{attribute} = {};", names(listed));
        }
    }
    match &about.vouched_by[..] {
        [] => {}
        [one] => {
            let _ = writeln!(out, "vouchedBy = {};", string(one));
        }
        several => {
            let _ = writeln!(out, "vouchedBy = {};", names(several));
        }
    }
    if let Some(day) = member.expires {
        let _ = writeln!(out, "expires = {};", string(&day.to_string()));
    }
    out
}

/// Key files as paths, all other keys as strings, in their order.
fn keys(member: &Member, about: &About, path: &dyn Fn(&str, &str) -> String) -> Vec<String> {
    let mut lines = member.keys.iter();
    let mut out = Vec::new();
    for source in about.key_sources.iter().filter(|source| source.keys > 0) {
        let these = lines.by_ref().take(source.keys);
        match &source.file {
            Some(file) => {
                these.for_each(drop);
                out.push(path(&member.name, file));
            }
            None => out.extend(these.map(|line| string(line))),
        }
    }
    out
}

fn group_attributes(group: &GroupEntry) -> String {
    let mut out = limits("limits", &group.group.limits);
    out.push_str(&limits("memberLimits", &group.member_limits));
    out.push_str(&settings("settings", &group.group.settings));
    if !group.hosts.is_empty() {
        let _ = writeln!(out, "hosts = {};", names(&group.hosts));
    }
    out
}

fn limits(attribute: &str, limits: &MemberLimits) -> String {
    let values: Vec<String> =
        limits.values().map(|(limit, value)| format!("{} = {value};\n", limit.name)).collect();
    match &values[..] {
        [] => String::new(),
        [one] => format!("{attribute}.{one}"),
        several => format!("{attribute} = {};\n", set(&several.concat())),
    }
}

fn settings(attribute: &str, layer: &Layer) -> String {
    let value = |value: &Value| match value {
        Value::Text(text) => string(text),
        Value::Words(words) if words.is_empty() => "[ ]".to_owned(),
        Value::Words(words) => names(words),
        value => value.to_string(),
    };
    let values: Vec<String> =
        layer.iter().map(|(setting, set)| format!("{} = {};\n", setting.name, value(set))).collect();
    match &values[..] {
        [] => String::new(),
        [one] => format!("{attribute}.{one}"),
        several => format!("{attribute} = {};\n", set(&several.concat())),
    }
}

/// `name = { … };`
fn entry(name: &str, attributes: &str) -> String {
    format!("{} = {};\n", attribute(name), set(attributes))
}

fn set(lines: &str) -> String {
    match lines.is_empty() {
        true => "{ }".into(),
        false => format!("{{\n{}}}", indented(lines)),
    }
}

/// One value, or a list with a line for each.
fn list(values: &[String]) -> String {
    match values {
        [one] => one.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(one).to_owned(),
        several => {
            format!("[\n{}]", indented(&several.iter().map(|value| format!("{value}\n")).collect::<String>()))
        }
    }
}

/// A list of names in one line.
fn names(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| string(name)).collect();
    format!("[ {} ]", names.join(" "))
}

/// No value has a line end, so no value can begin a new line.
fn indented(lines: &str) -> String {
    lines.lines().map(|line| if line.is_empty() { "\n".into() } else { format!("  {line}\n") }).collect()
}

fn separated(entries: &[String]) -> String {
    entries.join("\n")
}
