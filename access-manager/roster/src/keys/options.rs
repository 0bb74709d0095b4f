//! Options in front of a key (sshd(8), AUTHORIZED_KEYS FILE FORMAT): which are enforced, which change nothing here, and
//! why the others are refused.

use super::{Authority, Key, KeyError};
use crate::addresses::Addresses;
use crate::date::Moment;

/// Options that change nothing here: they forbid or allow something that the box gives to no key, or they waive a
/// check that the box does not make. They are left out of `roster.json`.
const HARMLESS: &[&str] = &[
    "agent-forwarding",
    "no-agent-forwarding",
    "no-port-forwarding",
    "no-pty",
    // The box never asks for a touch; a security key may ask its owner for one.
    "no-touch-required",
    "no-user-rc",
    "no-x11-forwarding",
    "permitlisten",
    "permitopen",
    "port-forwarding",
    "pty",
    "restrict",
    "user-rc",
    "x11-forwarding",
];

/// Most principals of one authority; with more, the line would be too long anyway.
const MAX_PRINCIPALS: usize = 100;

#[derive(Default)]
pub(super) struct Options {
    pub authority: Option<Authority>,
    pub from: Option<Addresses>,
    pub until: Option<Moment>,
}

pub(super) fn read(options: &[&str]) -> Result<Options, KeyError> {
    let mut read = Options::default();
    let mut principals = None;
    let mut authority = false;
    for option in options {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name.to_ascii_lowercase(), Some(value)),
            None => (option.to_ascii_lowercase(), None),
        };
        match name.as_str() {
            "cert-authority" if value.is_none() => authority = true,
            "principals" => once(&mut principals, "principals", value, principals_of)?,
            "from" => once(&mut read.from, "from", value, Addresses::from_option)?,
            "expiry-time" => once(&mut read.until, "expiry-time", value, |text| {
                Moment::parse(text).ok_or_else(|| format!("{} is no such time", crate::words::quoted(text)))
            })?,
            name if HARMLESS.contains(&name) => {}
            _ => return Err(KeyError::Option(name)),
        }
    }
    match (authority, principals) {
        (true, principals) => read.authority = Some(Authority { principals }),
        (false, None) => {}
        // sshd ignores such an option. But if `cert-authority` was forgotten, the authority's own key could log in.
        (false, Some(_)) => {
            let why = "it means something after `cert-authority` only".into();
            return Err(KeyError::OptionValue { option: "principals", why });
        }
    }
    Ok(read)
}

fn once<T>(
    place: &mut Option<T>,
    option: &'static str,
    value: Option<&str>,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<(), KeyError> {
    let wrong = |why: String| KeyError::OptionValue { option, why };
    if place.is_some() {
        return Err(wrong("it is there twice".into()));
    }
    let text = value.and_then(unquoted).ok_or_else(|| wrong("its value is not in quotes".into()))?;
    *place = Some(read(&text).map_err(wrong)?);
    Ok(())
}

/// The text between the quotes; `\"` stands for a quote.
fn unquoted(value: &str) -> Option<String> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    let text = inner.replace("\\\"", "\u{0}");
    (!text.contains('"') && !inner.contains('\u{0}')).then(|| text.replace('\u{0}', "\""))
}

fn principals_of(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    if names.len() > MAX_PRINCIPALS {
        return Err(format!("{} principals, at most {MAX_PRINCIPALS} are accepted", names.len()));
    }
    // Other programs that read the file may understand a quote or a backslash in another way.
    match names
        .iter()
        .find(|name| name.is_empty() || name.contains(|c: char| c.is_control() || "\"\\".contains(c)))
    {
        Some(name) => Err(format!("{} cannot be a principal", crate::words::quoted(name))),
        None => Ok(names),
    }
}

/// The options of a key for `roster.json`: only those that the box enforces.
pub(super) fn write(key: &Key) -> String {
    let mut options = Vec::new();
    if let Some(authority) = &key.authority {
        options.push("cert-authority".to_owned());
        if let Some(principals) = &authority.principals {
            options.push(format!("principals=\"{}\"", principals.join(",")));
        }
    }
    if let Some(from) = &key.from {
        options.push(format!("from=\"{}\"", from.text()));
    }
    if let Some(until) = key.until {
        options.push(format!("expiry-time=\"{until}\""));
    }
    options.join(",")
}

/// Describes the value of an option that the box enforces.
pub(super) fn expected(option: &str) -> String {
    match option {
        "from" => {
            "addresses and networks, `from=\"192.0.2.7,2001:db8::/32\"`; host names are not looked up here"
                .into()
        }
        "expiry-time" => "a time in UTC, `expiry-time=\"YYYYMMDD[HHMM[SS]]Z\"`".into(),
        _ => "`cert-authority,principals=\"name,name\"`".into(),
    }
}

/// The hint for an option that the box cannot enforce.
pub(super) fn way_out(name: &str) -> String {
    match name {
        "command" => {
            "a key for one command lets nobody build: leave `command=` away if this key may build, or use another key"
                .into()
        }
        "verify-required" => {
            "the box does not see whether a security key asked for its PIN: leave the option away, or use another key"
                .into()
        }
        _ => "leave the option away, or use another key".into(),
    }
}
