//! The roster for people: `access-manager eval users.nix`.

use ::roster::{MemberLimits, keys};

use super::Roster;

/// The column of groups, which rosters without any do not have.
const GROUPS: usize = 4;

/// One line per member. Key types are named, keys themselves are not: nobody compares base64 by eye.
pub fn table(roster: &Roster) -> String {
    let with_groups = !roster.groups.is_empty();
    let mut rows = vec![
        ["NAME", "ROLE", "KEYS", "LIMITS", "GROUPS", "SHARES WITH", "EXPIRES"].map(String::from).to_vec(),
    ];
    for member in &roster.members {
        rows.push(vec![
            member.name.clone(),
            member.role.name().into(),
            key_kinds(&member.keys),
            limits(&member.limits),
            names(&member.groups),
            names(&member.share_with),
            member.expires.map_or_else(|| "-".into(), |day| day.to_string()),
        ]);
    }
    if !with_groups {
        rows.iter_mut().for_each(|row| drop(row.remove(GROUPS)));
    }
    let mut widths = vec![0; rows[0].len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    let count = roster.members.len();
    out.push_str(&format!("{count} member{}\n", if count == 1 { "" } else { "s" }));
    out
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "-".into() } else { names.join(", ") }
}

fn key_kinds(keys: &[String]) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for key in keys.iter().filter_map(|line| keys::parse_line(line).ok()) {
        let kind = key.key.split(' ').next().unwrap_or("").trim_end_matches("@openssh.com");
        let kind = kind.strip_prefix("ssh-").unwrap_or(kind);
        let kind = if key.authority.is_some() { format!("authority {kind}") } else { kind.to_owned() };
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let words: Vec<String> =
        kinds.iter().map(|(k, n)| if *n == 1 { k.clone() } else { format!("{n} {k}") }).collect();
    words.join(", ")
}

fn limits(limits: &MemberLimits) -> String {
    let words: Vec<String> =
        limits.values().map(|(limit, value)| format!("{} {value}", limit.json)).collect();
    if words.is_empty() { "-".into() } else { words.join(", ") }
}
