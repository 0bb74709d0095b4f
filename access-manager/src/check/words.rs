//! Keys, limits and dates inside the sentences of a report.

use ::roster::words::{all_of, quoted};
use ::roster::{Key, Limit, MemberLimits};

/// `SHA256:… (ED25519) `comment``, and its conditions.
pub fn key(key: &Key) -> String {
    let mut words = format!("{} ({})", key.fingerprint(), key.kind());
    if !key.comment.is_empty() {
        words.push(' ');
        words.push_str(&quoted(&key.comment));
    }
    let conditions = conditions(key);
    if !conditions.is_empty() {
        words.push_str(&format!(", {conditions}"));
    }
    words
}

/// Where and how long the key may be used; empty if anywhere and for ever.
pub fn conditions(key: &Key) -> String {
    let from = key.from.as_ref().map(|from| format!("only from {}", quoted(from.text())));
    let until = key.until.map(|until| format!("until {until}"));
    from.into_iter().chain(until).collect::<Vec<_>>().join(", ")
}

/// The principals of an authority of `member`, one of which a certificate must have.
pub fn principals(key: &Key, member: &str) -> Vec<String> {
    let principals = key.authority.as_ref().and_then(|authority| authority.principals.clone());
    principals.unwrap_or_else(|| vec![member.to_owned()])
}

/// the principal `a`; one of the principals `a` and `b`.
pub fn of_principals(names: &[String]) -> String {
    match names {
        [_] => format!("the principal {}", all_of(names)),
        _ => format!("one of the principals {}", all_of(names)),
    }
}

/// All limits that are set: `4 builds at a time, 8 CPUs and 20 GiB per build`. Empty if none is.
pub fn limits(limits: &MemberLimits) -> String {
    let words: Vec<String> = limits
        .values()
        .map(|(limit, value)| match limit.name {
            "maxJobs" | "maxSessions" | "maxConnections" => format!("{} at a time", amount(limit, value)),
            "maxCpuHoursPerMonth" => format!("{} a month", amount(limit, value)),
            "maxOutputMib" => format!("{} of outputs per build", amount(limit, value)),
            "maxUploadMib" => format!("{} per upload", amount(limit, value)),
            "maxSilentSeconds" => format!("{} without output per build", amount(limit, value)),
            "maxStoreMib" => format!("{} of store", amount(limit, value)),
            _ => format!("{} per build", amount(limit, value)),
        })
        .collect();
    list(&words)
}

/// Limits that several members have together: `16 builds at a time and 64 GiB of memory`.
pub fn shared_limits(limits: &MemberLimits) -> String {
    let words: Vec<String> = limits
        .values()
        .map(|(limit, value)| {
            let what = match limit.name {
                "maxJobs" | "maxSessions" | "maxConnections" => " at a time",
                "maxCpuHoursPerMonth" => " a month",
                "maxMemoryMib" => " of memory",
                "maxStoreMib" => " of store",
                _ => "",
            };
            format!("{}{what}", amount(limit, value))
        })
        .collect();
    list(&words)
}

/// A value with its unit, as people say it.
pub fn amount(limit: &Limit, value: u64) -> String {
    match limit.unit {
        "MiB" if value.is_multiple_of(1024) => format!("{} GiB", value / 1024),
        "builds" | "sessions" | "connections" | "CPU hours" if value == 1 => {
            format!("1 {}", limit.unit.trim_end_matches('s'))
        }
        "processors" if value == 1 => "1 CPU".into(),
        "processors" => format!("{value} CPUs"),
        "seconds" if value.is_multiple_of(3600) => format!("{} h", value / 3600),
        "seconds" if value.is_multiple_of(60) => format!("{} min", value / 60),
        "seconds" => format!("{value} s"),
        unit => format!("{value} {unit}"),
    }
}

/// a, b and c.
pub fn list(words: &[String]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// 1 key; 2 keys.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
