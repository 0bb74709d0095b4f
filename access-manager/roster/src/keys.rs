//! Public keys as people paste them: `authorized_keys` lines, `.pub` files, whole files of them. `roster.json` has the
//! same lines, written anew ([`Key::line`]), so that both sides read options with one parser.
//!
//! A key lets its owner log in, so nothing is guessed: a line that is not certainly one acceptable key is refused, and
//! the error says what it seems to be. There are three kinds of options ([`options`]). The box enforces some. Others
//! forbid what the box gives to no key; they are left out. With any other option the line is refused, since its author
//! relies on a check that the box does not make.
//! Not here: which file a key came from (`access-manager`), and whether a login fits the key (the agent).

mod options;

use std::net::IpAddr;

use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, PublicKey};

use crate::addresses::Addresses;
use crate::date::Moment;
use crate::words::{did_you_mean, quoted};

/// Smallest RSA key. Smaller ones can be factored at a high cost; NIST SP 800-131A has disallowed them since 2014.
const MIN_RSA_BITS: usize = 2048;
/// Largest RSA key: OpenSSH's own limit (SSHBUF_MAX_BIGNUM). A login with a larger key would cost the box seconds.
const MAX_RSA_BITS: usize = 16_384;
/// Longest line in bytes: an RSA key of 16384 bits is under 3 KiB of base64; options and comment fit in the rest.
const MAX_LINE: usize = 8 << 10;
/// A comment with so many digits of base64 in a row, from `AAAA` on, holds a key. The shortest key has 68.
const SHORTEST_KEY: usize = 34;
/// Longest comment that is kept, in characters. Comments are written to the log.
const MAX_COMMENT: usize = 200;

/// The key types that the box accepts, by the name that starts the line.
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
    /// Set for a certificate authority: the key itself lets nobody in, but certificates that it has signed do.
    pub authority: Option<Authority>,
    /// The addresses from which the key may be used; `None` means all.
    pub from: Option<Addresses>,
    /// `expiry-time`: the key lets nobody in after this moment.
    pub until: Option<Moment>,
}

/// `cert-authority`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// A certificate must have one of these principals; `None` means the member's own name.
    pub principals: Option<Vec<String>>,
}

impl Key {
    /// The line in `roster.json`: `options type base64 comment`.
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

    /// The fingerprint as `ssh-keygen -l` prints it: `SHA256:…`.
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

    /// Checks the line's own conditions for a login from `peer` at this moment. `Err` says which one is not met.
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

/// The reason why a line is not an acceptable key. Messages quote the start of a text from the line, never the whole
/// line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Whoever reads a private key can log in as its owner, so this message must not be overlooked.
    PrivateKey,
    /// A public key in the format of OpenSSL or RFC 4716.
    OtherFormat,
    UnknownType(String),
    /// DSA: 1024 bits, removed from OpenSSH.
    Dsa,
    Certificate(String),
    /// A key without its type in front.
    TypeMissing,
    /// A type without a key.
    KeyMissing(String),
    /// The base64 text is cut, wrapped over lines, or altered.
    Damaged(String),
    WeakRsa(usize),
    HugeRsa(usize),
    /// An option that the box would have to enforce, and cannot.
    Option(String),
    /// An option that the box enforces, with a value that it does not understand.
    OptionValue {
        option: &'static str,
        why: String,
    },
    /// Two files joined where the first has no last line end. The second key would become a comment of the first, and
    /// its owner could not log in and would not see why.
    TwoKeys,
    LineTooLong(usize),
}

impl KeyError {
    /// The parts of the message: title, expected, hint.
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

/// Reads each line of `text` that is neither blank nor a comment, up to the first error. Each result has the byte
/// offset of the line's start.
pub fn parse(text: &str) -> Vec<(usize, Result<Key, KeyError>)> {
    let mut keys = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        // Some Windows editors put a byte order mark before the first line.
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
            // Otherwise each further line of a private key would be another error.
            break;
        }
    }
    keys
}

/// Reads one line without its line end. The line is neither blank nor a comment.
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
    // The first word is no type, so the line begins with options.
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

/// Refuses a first word that is known and cannot begin an acceptable line.
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

/// Splits off the options: separated by commas, `"…"` around values with commas or spaces, `\"` inside those
/// (sshd(8)).
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
    // A key without a comment, directly followed by another line: `-` is no digit of base64.
    if base64.split_once('-').is_some_and(|(_, rest)| rest.starts_with("ed25519") || rest.starts_with("rsa"))
        || holds_key(comment)
    {
        return Err(KeyError::TwoKeys);
    }
    let parsed =
        PublicKey::from_openssh(&format!("{kind} {base64}")).map_err(|e| KeyError::Damaged(e.to_string()))?;
    // The bytes must have the type that the text names. `from_openssh` compares them too, but with its own list of
    // types.
    if type_of(parsed.key_data()).as_deref() != Some(kind) {
        return Err(KeyError::Damaged("its bytes are of another type than its first word".into()));
    }
    acceptable(parsed.key_data())?;
    let key = text(parsed.key_data()).map_err(|e| KeyError::Damaged(e.to_string()))?;
    let comment = comment.chars().map(printable::character).take(MAX_COMMENT).collect();
    let data = parsed.key_data().clone();
    Ok(Key { data, key, comment, authority: None, from: None, until: None })
}

/// The key as `type base64`, without a comment.
pub fn text(key: &KeyData) -> Result<String, ssh_key::Error> {
    let line = PublicKey::from(key.clone()).to_openssh()?;
    Ok(line.trim_end().to_owned())
}

/// Whether a comment holds a key. A key begins with the length of its type's name in four bytes, three of which are
/// zero: `AAAA` in base64. Thirty more digits of base64 in a row are unlikely in any other comment.
fn holds_key(comment: &str) -> bool {
    let is_digit = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    comment
        .match_indices("AAAA")
        .any(|(at, _)| comment.as_bytes()[at..].iter().take_while(|b| is_digit(b)).count() >= SHORTEST_KEY)
}

/// Checks that a key is strong enough and has an accepted type. The key in a certificate is checked with this too.
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

/// The type that a line with this key begins with; `None` if the type is not accepted.
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
