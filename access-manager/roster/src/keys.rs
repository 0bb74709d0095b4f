//! Public keys as people paste them: `authorized_keys` lines, `.pub` files, whole files of them. `roster.json` has the
//! same lines, written anew ([`Key::line`]), so that both sides read options with one parser.
//!
//! A key opens the box, so nothing is guessed: a line that is not surely one acceptable key is refused, with what it
//! looks like instead. Each option has one of three fates ([`options`]): the box enforces it, or it takes away what the box
//! does not give through a key anyway, or the line is refused, since whoever wrote it counts on a check nobody makes.
//! Not here: which file a key came from (`access-manager`), and whether a login fits the key (the agent).

mod options;

use std::net::IpAddr;

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, PublicKey};

use crate::addresses::Addresses;
use crate::date::Moment;
use crate::words::{did_you_mean, quoted};

/// Factoring below this is within reach of the well funded; NIST SP 800-131A has disallowed it since 2014.
const MIN_RSA_BITS: usize = 2048;
/// OpenSSH's own ceiling (SSHBUF_MAX_BIGNUM); a larger key makes each login cost us seconds.
const MAX_RSA_BITS: usize = 16_384;
/// Longest line: an RSA key of 16384 bits is under 3 KiB of base64; options and comment fit in the rest.
const MAX_LINE: usize = 8 << 10;
/// Digits of base64 that a comment may not hold in a row behind `AAAA`. The shortest key has 68.
const SHORTEST_KEY: usize = 34;
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

/// One acceptable key, or a certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub data: KeyData,
    /// `type base64`, canonical: equal keys have equal text.
    pub key: String,
    /// May be empty. No control characters.
    pub comment: String,
    /// Not a key that logs in, but one whose signature under a certificate lets the certificate's owner in.
    pub authority: Option<Authority>,
    /// Where it may be used from; anywhere if there is nothing.
    pub from: Option<Addresses>,
    /// `expiry-time`: it logs nobody in after this.
    pub until: Option<Moment>,
}

/// `cert-authority`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// One of these must be among a certificate's principals; the member's own name if there is nothing.
    pub principals: Option<Vec<String>>,
}

impl Key {
    /// As in `roster.json`: `options type base64 comment`.
    pub fn line(&self) -> String {
        let options = options::write(self);
        let mut line = if options.is_empty() { String::new() } else { format!("{options} ") };
        line.push_str(&self.key);
        if !self.comment.is_empty() {
            line.push(' ');
            line.push_str(&self.comment);
        }
        line
    }

    /// As `ssh-keygen -l` prints it: `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.data.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The type as `ssh-keygen -l` prints it: `ED25519`.
    pub fn kind(&self) -> &'static str {
        match &self.data {
            KeyData::Ed25519(_) => "ED25519",
            KeyData::SkEd25519(_) => "ED25519-SK",
            KeyData::Ecdsa(_) => "ECDSA",
            KeyData::SkEcdsaSha2NistP256(_) => "ECDSA-SK",
            KeyData::Rsa(_) => "RSA",
            // `acceptable` refuses all others.
            _ => "UNKNOWN",
        }
    }

    /// The moment at which the key expired, if it has.
    pub fn expired(&self, unix_seconds: u64) -> Option<Moment> {
        self.until.filter(|until| until.0 < unix_seconds)
    }

    /// Whether the line's own conditions let a login from `peer` at this moment pass. `Err` says which does not.
    pub fn conditions(&self, peer: IpAddr, unix_seconds: u64) -> Result<(), String> {
        if let Some(until) = self.expired(unix_seconds) {
            return Err(format!("the key's expiry-time {until} has passed"));
        }
        match &self.from {
            Some(from) if !from.allow(peer) => Err(format!("the key may be used from {} only", from.text())),
            _ => Ok(()),
        }
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
    /// An option that we enforce, with a value we do not understand.
    OptionValue {
        option: &'static str,
        why: String,
    },
    /// Files without a last line end put behind one another: the second key would vanish as a comment of the first, and
    /// its owner would be locked out without a word.
    TwoKeys,
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
                let hint = match did_you_mean(found, KEY_TYPES.iter().copied()) {
                    Some(near) => format!("did you mean {}?", quoted(near)),
                    None => "a key is one line: type, key, comment; `ssh-keygen -t ed25519` makes one".into(),
                };
                (format!("unknown key type {}", quoted(found)), types, hint)
            }
            KeyError::Dsa => (
                "DSA keys are too weak to be accepted".into(),
                types,
                "make a new key with `ssh-keygen -t ed25519`".into(),
            ),
            KeyError::Certificate(found) => (
                format!("{} is a certificate, not a key", quoted(found)),
                types,
                "use the .pub file itself, not the -cert.pub file beside it".into(),
            ),
            KeyError::TypeMissing => (
                "the key's type is missing in front of it".into(),
                types,
                "copy the whole line of the .pub file, from its first word on".into(),
            ),
            KeyError::KeyMissing(kind) => (
                format!("there is no key after {}", quoted(kind)),
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
            KeyError::Option(name) => (
                format!("the option {} before this key cannot be enforced here", quoted(name)),
                "a key without options, or with `from=`, `expiry-time=`, `cert-authority`, `principals=`, no-pty and \
                 the like"
                    .into(),
                options::way_out(name),
            ),
            KeyError::OptionValue { option, why } => (
                format!("the option {} before this key is not understood: {why}", quoted(option)),
                options::expected(option),
                "nobody gets in by a condition that is not clear; correct it, or leave it away if it is not needed"
                    .into(),
            ),
            KeyError::TwoKeys => (
                "there is a second key on this line".into(),
                "one key per line".into(),
                "put a line end between the two; a file without a last line end was probably put before another one"
                    .into(),
            ),
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

/// One line, without its line end: not blank, not a comment.
pub fn parse_line(line: &str) -> Result<Key, KeyError> {
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
    let options = options::read(&options)?;
    let mut key = parse_key(kind, rest)?;
    key.authority = options.authority;
    key.from = options.from;
    key.until = options.until;
    Ok(key)
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
    // A key without a comment, with another line glued to it: `-` is no digit of base64.
    if base64.split_once('-').is_some_and(|(_, rest)| rest.starts_with("ed25519") || rest.starts_with("rsa"))
        || holds_key(comment)
    {
        return Err(KeyError::TwoKeys);
    }
    let parsed =
        PublicKey::from_openssh(&format!("{kind} {base64}")).map_err(|e| KeyError::Damaged(e.to_string()))?;
    // The text said one type, the bytes must agree; `from_openssh` compares them, and this is the list that counts.
    if type_of(parsed.key_data()).as_deref() != Some(kind) {
        return Err(KeyError::Damaged("its bytes are of another type than its first word".into()));
    }
    acceptable(parsed.key_data())?;
    let key = PublicKey::from(parsed.key_data().clone())
        .to_openssh()
        .map_err(|e| KeyError::Damaged(e.to_string()))?
        .trim_end()
        .to_owned();
    let comment = comment.chars().map(printable::character).take(MAX_COMMENT).collect();
    let data = parsed.key_data().clone();
    Ok(Key { data, key, comment, authority: None, from: None, until: None })
}

/// Whether a comment holds what every key's base64 begins with: the length of a type's name, three zero bytes and one of
/// at most 63. Thirty digits of base64 after it are not somebody's name.
fn holds_key(comment: &str) -> bool {
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    comment
        .match_indices("AAAA")
        .any(|(at, _)| comment.as_bytes()[at..].iter().take_while(|b| is_digit(b)).count() >= SHORTEST_KEY)
}

/// Whether it is a kind of key that logs anybody in, and strong enough; also asked of the key in a certificate.
pub fn acceptable(key: &KeyData) -> Result<(), KeyError> {
    match (key, type_of(key)) {
        (KeyData::Dsa(_), _) => Err(KeyError::Dsa),
        (KeyData::Rsa(rsa), _) => match rsa_bits(rsa.n().as_positive_bytes().unwrap_or(&[])) {
            bits if bits < MIN_RSA_BITS => Err(KeyError::WeakRsa(bits)),
            bits if bits > MAX_RSA_BITS => Err(KeyError::HugeRsa(bits)),
            _ => Ok(()),
        },
        (_, Some(_)) => Ok(()),
        (_, None) => Err(KeyError::UnknownType(key.algorithm().as_str().to_owned())),
    }
}

/// The word that starts a line with this key.
fn type_of(key: &KeyData) -> Option<String> {
    match key {
        KeyData::Ed25519(_) => Some("ssh-ed25519".into()),
        KeyData::Rsa(_) => Some("ssh-rsa".into()),
        KeyData::SkEd25519(_) => Some("sk-ssh-ed25519@openssh.com".into()),
        KeyData::SkEcdsaSha2NistP256(_) => Some("sk-ecdsa-sha2-nistp256@openssh.com".into()),
        KeyData::Ecdsa(key) => Some(ecdsa_name(key.curve())),
        _ => None,
    }
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

#[cfg(test)]
#[path = "keys_test.rs"]
mod keys_test;
