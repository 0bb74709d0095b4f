//! Public keys as people paste them: `authorized_keys` lines, `.pub` files, whole files of them.
//!
//! A key opens the box, so nothing is guessed: a line that is not surely one acceptable key is refused, with what it
//! looks like instead. Not here: which file a key came from ([`crate::roster`]).

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, PublicKey};

/// Factoring below this is within reach of the well funded; NIST SP 800-131A has disallowed it since 2014.
const MIN_RSA_BITS: usize = 2048;
/// OpenSSH's own ceiling (SSHBUF_MAX_BIGNUM); a larger key makes each login cost us seconds.
const MAX_RSA_BITS: usize = 16_384;
/// Longest line: an RSA key of 16384 bits is under 3 KiB of base64; options and comment fit in the rest.
const MAX_LINE: usize = 8 << 10;
/// Longest comment that is kept; comments label log lines.
const MAX_COMMENT: usize = 200;

/// The key types the box accepts, by the name that starts the line.
pub const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Options that only take away what the box does not give through a key, or that give back such a thing: dropped.
const HARMLESS_OPTIONS: &[&str] = &[
    "agent-forwarding",
    "no-agent-forwarding",
    "no-port-forwarding",
    "no-pty",
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

/// One acceptable key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `type base64`, canonical: equal keys have equal text.
    pub key: String,
    /// May be empty. No control characters.
    pub comment: String,
}

impl Key {
    /// As in `roster.json`: `type base64 comment`.
    pub fn line(&self) -> String {
        if self.comment.is_empty() { self.key.clone() } else { format!("{} {}", self.key, self.comment) }
    }
}

/// Why a line is not a key. Texts from the line are quoted by the caller's diagnostics, not repeated whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Publishing it would let anybody log in as its owner: the one mistake that must be said loudly.
    PrivateKey,
    /// OpenSSL's or RFC 4716's way of writing a public key.
    OtherFormat,
    UnknownType(String),
    /// DSA: 1024 bits, removed from OpenSSH.
    Dsa,
    Certificate(String),
    /// The key itself without its type in front.
    TypeMissing,
    /// The type is there, the key is not.
    KeyMissing(String),
    /// The base64 text is cut, wrapped over lines, or altered.
    Damaged(String),
    WeakRsa(usize),
    HugeRsa(usize),
    /// An option whose owner expects us to enforce it, and we do not.
    Option(String),
    LineTooLong(usize),
}

impl KeyError {
    /// (title, expected, hint)
    pub fn explain(&self) -> (String, String, String) {
        let types = format!("one of {}", KEY_TYPES.join(", "));
        match self {
            KeyError::PrivateKey => (
                "this is a PRIVATE key; it must never be shared or committed".into(),
                "the public key, one line from the file whose name ends in .pub".into(),
                "treat this key as stolen: make a new one with `ssh-keygen -t ed25519`, replace the old one \
                 everywhere it is used, and use the new .pub file here. Deleting the commit does not undo it."
                    .into(),
            ),
            KeyError::OtherFormat => (
                "this public key is in another format than OpenSSH's".into(),
                "one line such as `ssh-ed25519 AAAA… name`".into(),
                "convert it with `ssh-keygen -i -f FILE` (RFC 4716) or `ssh-keygen -i -m PKCS8 -f FILE`"
                    .into(),
            ),
            KeyError::UnknownType(found) => {
                let hint = match crate::diag::did_you_mean(found, KEY_TYPES.iter().copied()) {
                    Some(near) => format!("did you mean {}?", crate::diag::quoted(near)),
                    None => "a key is one line: type, key, comment; `ssh-keygen -t ed25519` makes one".into(),
                };
                (format!("unknown key type {}", crate::diag::quoted(found)), types, hint)
            }
            KeyError::Dsa => (
                "DSA keys are too weak to be accepted".into(),
                types,
                "make a new key with `ssh-keygen -t ed25519`".into(),
            ),
            KeyError::Certificate(found) => (
                format!("{} is a certificate, not a key", crate::diag::quoted(found)),
                types,
                "use the .pub file itself, not the -cert.pub file beside it".into(),
            ),
            KeyError::TypeMissing => (
                "the key's type is missing in front of it".into(),
                types,
                "copy the whole line of the .pub file, from its first word on".into(),
            ),
            KeyError::KeyMissing(kind) => (
                format!("there is no key after {}", crate::diag::quoted(kind)),
                format!("{kind} AAAA… comment"),
                "copy the whole line of the .pub file".into(),
            ),
            KeyError::Damaged(why) => (
                "this key is damaged".into(),
                "the complete line of the .pub file, unbroken".into(),
                format!("it may have been cut or wrapped when it was pasted ({why})"),
            ),
            KeyError::WeakRsa(bits) => (
                format!("this RSA key is too weak: {bits} bits"),
                format!("at least {MIN_RSA_BITS} bits"),
                "make a new key with `ssh-keygen -t ed25519`".into(),
            ),
            KeyError::HugeRsa(bits) => (
                format!("this RSA key is too large: {bits} bits"),
                format!("at most {MAX_RSA_BITS} bits"),
                "make a new key with `ssh-keygen -t ed25519`".into(),
            ),
            KeyError::Option(name) => {
                let hint = match name.as_str() {
                    "expiry-time" => "give the member `expires = \"YYYY-MM-DD\";` instead".into(),
                    "command" | "from" => format!(
                        "leave `{name}=` away if this key may build without it; otherwise use another key"
                    ),
                    _ => "leave the option away, or use another key".into(),
                };
                (
                    format!(
                        "the option {} before this key cannot be enforced here",
                        crate::diag::quoted(name)
                    ),
                    "a key without options that restrict its use; no-pty and the like are fine".into(),
                    hint,
                )
            }
            KeyError::LineTooLong(length) => (
                format!("this line is too long for a key: {length} bytes"),
                format!("at most {MAX_LINE} bytes"),
                "each key needs a line of its own".into(),
            ),
        }
    }
}

/// What may follow: each line of `text` that is not blank or a comment, with the byte offset where it starts.
pub fn parse(text: &str) -> Vec<(usize, Result<Key, KeyError>)> {
    let mut keys = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        // A byte order mark is what some Windows editors put before the first line.
        let trimmed = line.trim_start_matches('\u{feff}').trim();
        let offset = start + line.find(trimmed).unwrap_or(0);
        start += line.len();
        if trimmed.is_empty() || (trimmed.starts_with('#') && !trimmed.contains("PRIVATE KEY-----")) {
            continue;
        }
        let key = parse_line(trimmed);
        let stop = key.is_err();
        keys.push((offset, key));
        if stop {
            // The first error is what the person fixes first; a private key's further lines would be noise.
            break;
        }
    }
    keys
}

fn parse_line(line: &str) -> Result<Key, KeyError> {
    if looks_private(line) {
        return Err(KeyError::PrivateKey);
    }
    if line.len() > MAX_LINE {
        return Err(KeyError::LineTooLong(line.len()));
    }
    if line.starts_with("---- BEGIN SSH2") || line.starts_with("-----BEGIN") {
        return Err(KeyError::OtherFormat);
    }
    let (first, rest) = split_word(line);
    if KEY_TYPES.contains(&first) {
        return parse_key(first, rest);
    }
    check_type(first)?;
    // Not a type: options, then.
    let (options, rest) = split_options(line);
    let (kind, rest) = split_word(rest);
    if rest.is_empty() && !KEY_TYPES.contains(&kind) {
        return Err(KeyError::UnknownType(first.to_owned()));
    }
    if !KEY_TYPES.contains(&kind) {
        check_type(kind)?;
        return Err(KeyError::UnknownType(first.to_owned()));
    }
    for option in options {
        let name = option.split('=').next().unwrap_or(option).to_ascii_lowercase();
        if !HARMLESS_OPTIONS.contains(&name.as_str()) {
            return Err(KeyError::Option(name));
        }
    }
    parse_key(kind, rest)
}

fn looks_private(line: &str) -> bool {
    line.contains("PRIVATE KEY")
        || line.starts_with("PuTTY-User-Key-File")
        || line.contains("b3BlbnNzaC1rZXktdjE")
}

/// The type words we know and refuse.
fn check_type(word: &str) -> Result<(), KeyError> {
    match word {
        "ssh-dss" => Err(KeyError::Dsa),
        w if w.contains("-cert-v0") => Err(KeyError::Certificate(w.to_owned())),
        w if w.starts_with("AAAA") => Err(KeyError::TypeMissing),
        _ => Ok(()),
    }
}

fn split_word(text: &str) -> (&str, &str) {
    match text.find([' ', '\t']) {
        Some(i) => (&text[..i], text[i..].trim_start()),
        None => (text, ""),
    }
}

/// Comma separated, with `"…"` around values that hold commas or spaces, `\"` inside them (sshd(8)).
fn split_options(line: &str) -> (Vec<&str>, &str) {
    let mut options = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (i, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                options.push(&line[start..i]);
                start = i + 1;
            }
            ' ' | '\t' if !quoted => {
                options.push(&line[start..i]);
                return (options, line[i..].trim_start());
            }
            _ => {}
        }
    }
    (options, "")
}

fn parse_key(kind: &str, rest: &str) -> Result<Key, KeyError> {
    let (base64, comment) = split_word(rest);
    if base64.is_empty() {
        return Err(KeyError::KeyMissing(kind.to_owned()));
    }
    let parsed =
        PublicKey::from_openssh(&format!("{kind} {base64}")).map_err(|e| KeyError::Damaged(e.to_string()))?;
    // The text said one type, the bytes must agree; `from_openssh` compares them, and this is the list that counts.
    match (kind, parsed.key_data()) {
        ("ssh-ed25519", KeyData::Ed25519(_)) => {}
        ("ssh-rsa", KeyData::Rsa(rsa)) => match rsa_bits(rsa.n().as_positive_bytes().unwrap_or(&[])) {
            bits if bits < MIN_RSA_BITS => return Err(KeyError::WeakRsa(bits)),
            bits if bits > MAX_RSA_BITS => return Err(KeyError::HugeRsa(bits)),
            _ => {}
        },
        ("sk-ssh-ed25519@openssh.com", KeyData::SkEd25519(_)) => {}
        ("sk-ecdsa-sha2-nistp256@openssh.com", KeyData::SkEcdsaSha2NistP256(_)) => {}
        (kind, KeyData::Ecdsa(key)) if kind == ecdsa_name(key.curve()) => {}
        _ => return Err(KeyError::Damaged("its bytes are of another type than its first word".into())),
    }
    let key = PublicKey::from(parsed.key_data().clone())
        .to_openssh()
        .map_err(|e| KeyError::Damaged(e.to_string()))?
        .trim_end()
        .to_owned();
    let comment = comment.chars().filter(|c| !c.is_control()).take(MAX_COMMENT).collect();
    Ok(Key { key, comment })
}

fn ecdsa_name(curve: EcdsaCurve) -> String {
    Algorithm::Ecdsa { curve }.as_str().to_owned()
}

fn rsa_bits(modulus: &[u8]) -> usize {
    match modulus.iter().position(|b| *b != 0) {
        Some(i) => (modulus.len() - i) * 8 - modulus[i].leading_zeros() as usize,
        None => 0,
    }
}
