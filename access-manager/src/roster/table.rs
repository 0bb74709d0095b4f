//! The roster for people: `access-manager eval users.nix`.

use super::{Role, Roster};

/// One line per member. Key types are named, keys themselves are not: nobody compares base64 by eye.
pub fn table(roster: &Roster) -> String {
    let mut rows = vec![["NAME", "ROLE", "KEYS", "LIMITS", "SHARES WITH", "EXPIRES"].map(String::from)];
    for member in &roster.members {
        let role = match member.role {
            Role::Member => "member",
            Role::Maintainer => "maintainer",
        };
        rows.push([
            member.name.clone(),
            role.into(),
            key_kinds(&member.keys),
            limits(&member.limits),
            if member.share_with.is_empty() { "-".into() } else { member.share_with.join(", ") },
            member.expires.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    let count = roster.members.len();
    out.push_str(&format!("{count} member{}\n", if count == 1 { "" } else { "s" }));
    out
}

fn key_kinds(keys: &[String]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for key in keys {
        let kind = key.split(' ').next().unwrap_or("").trim_end_matches("@openssh.com");
        let kind = kind.strip_prefix("ssh-").unwrap_or(kind);
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let words: Vec<String> =
        kinds.iter().map(|(k, n)| if *n == 1 { (*k).to_owned() } else { format!("{n} {k}") }).collect();
    words.join(", ")
}

fn limits(limits: &super::MemberLimits) -> String {
    let json = serde_json::to_value(limits).unwrap_or_default();
    let words: Vec<String> =
        json.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {value}")).collect();
    if words.is_empty() { "-".into() } else { words.join(", ") }
}
