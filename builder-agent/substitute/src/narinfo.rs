//! `<hash>.narinfo`: a binary cache's description of one store path (Nix: `src/libstore/nar-info.cc`).
//!
//! The cache is a stranger; every field is only a claim. The parser is stricter than Nix where that costs nothing: a
//! field comes once, and a value that cannot be understood is refused and not skipped. Unknown fields are skipped,
//! since Nix sometimes adds one. The crate `nix-narinfo` reads the same text with wider limits;
//! `docs/design/architecture.md` says why it is not used.
//! Not here: signatures, which are compared with the trusted keys later, over a fingerprint that the box computes.

use std::collections::{BTreeMap, BTreeSet};

use nix::PathInfo;
use nix_derivation::{CAHash, HashAlgorithm, NixHash, StorePath};

/// Largest narinfo. A path with 10,000 references has one of about 600 KiB.
pub const MAX_BYTES: usize = 1 << 20;
/// Most signatures that are kept; usual narinfos have one or two. The store has the same limit for each path.
const MAX_SIGNATURES: usize = 64;
/// Longest `URL` and longest signature.
const MAX_VALUE: usize = 4096;

/// The compression of a file in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Xz,
    Zstd,
    Bzip2,
    Gzip,
    Brotli,
}

impl Compression {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "none" => Self::None,
            "xz" => Self::Xz,
            "zstd" => Self::Zstd,
            "bzip2" => Self::Bzip2,
            "gzip" => Self::Gzip,
            "br" => Self::Brotli,
            _ => return None,
        })
    }
}

/// A narinfo as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    pub path: StorePath,
    /// The URL of the file, relative to the cache or absolute.
    pub url: String,
    pub compression: Compression,
    /// Hash of the file behind `url`.
    pub file_hash: Option<NixHash>,
    /// Bytes of the file behind `url`.
    pub file_size: Option<u64>,
    pub nar_hash: [u8; 32],
    pub nar_size: u64,
    pub references: BTreeSet<StorePath>,
    pub deriver: Option<StorePath>,
    /// `name:base64`, not verified.
    pub signatures: Vec<String>,
    pub ca: Option<CAHash>,
}

/// The reason why a narinfo is refused. Completes the sentence "its narinfo …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NarInfoError {
    #[error("is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("is not UTF-8 text")]
    NotText,
    #[error("has no colon in line {line}")]
    NoColon { line: usize },
    #[error("has the field {field} twice")]
    Twice { field: String },
    #[error("has no field {field}")]
    Missing { field: &'static str },
    #[error("has a bad {field} ({value}): {why}")]
    Bad { field: &'static str, value: String, why: String },
    #[error("has more than {MAX_SIGNATURES} signatures")]
    Signatures,
}

impl NarInfo {
    /// Reads a whole narinfo.
    pub fn parse(bytes: &[u8]) -> Result<Self, NarInfoError> {
        if bytes.len() > MAX_BYTES {
            return Err(NarInfoError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| NarInfoError::NotText)?;
        let (fields, signatures) = fields(text)?;
        let get = |field: &'static str| fields.get(field).copied().filter(|value| !value.is_empty());
        let need = |field: &'static str| get(field).ok_or(NarInfoError::Missing { field });

        let path = need("StorePath")?;
        let url = need("URL")?;
        if url.len() > MAX_VALUE {
            return Err(bad("URL", url, "it is too long"));
        }
        let nar_hash = hash("NarHash", need("NarHash")?)?;
        let nar_hash: [u8; 32] = match nar_hash.algorithm() {
            HashAlgorithm::Sha256 => nar_hash.digest_as_bytes().try_into().ok(),
            _ => None,
        }
        .ok_or_else(|| bad("NarHash", need("NarHash").unwrap_or(""), "it must be a SHA-256"))?;
        let nar_size = size("NarSize", need("NarSize")?)?;
        if nar_size == 0 {
            return Err(bad("NarSize", "0", "no NAR is empty"));
        }
        // Nix's default, from the time when there was only this one.
        let compression = get("Compression").unwrap_or("bzip2");
        let references = get("References").unwrap_or("").split_ascii_whitespace();
        let deriver = get("Deriver").filter(|deriver| *deriver != "unknown-deriver");
        Ok(Self {
            path: StorePath::from_absolute_path(path.as_bytes())
                .map_err(|e| bad("StorePath", path, &e.to_string()))?,
            url: url.to_owned(),
            compression: Compression::parse(compression).ok_or_else(|| {
                bad("Compression", compression, "this box unpacks none, xz, zstd, bzip2, gzip and br")
            })?,
            file_hash: get("FileHash").map(|text| hash("FileHash", text)).transpose()?,
            file_size: get("FileSize").map(|text| size("FileSize", text)).transpose()?,
            nar_hash,
            nar_size,
            references: references.map(|name| base("References", name)).collect::<Result<_, _>>()?,
            deriver: deriver.map(|name| base("Deriver", name)).transpose()?,
            signatures,
            ca: get("CA")
                .map(|text| CAHash::parse(text).map_err(|e| bad("CA", text, &e.to_string())))
                .transpose()?,
        })
    }

    /// The path info that the cache claims.
    pub fn into_path_info(self) -> PathInfo {
        let Self { path, nar_hash, nar_size, references, deriver, signatures, ca, .. } = self;
        PathInfo {
            path,
            deriver,
            nar_hash,
            nar_size,
            references,
            registration_time: 0,
            ultimate: false,
            signatures,
            ca,
        }
    }
}

/// The fields by name, and the signatures, since `Sig` may come more than once.
fn fields(text: &str) -> Result<(BTreeMap<&str, &str>, Vec<String>), NarInfoError> {
    let mut fields = BTreeMap::new();
    let mut signatures = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or(NarInfoError::NoColon { line: index + 1 })?;
        let value = value.trim();
        if name == "Sig" {
            if signatures.len() >= MAX_SIGNATURES {
                return Err(NarInfoError::Signatures);
            }
            if value.len() > MAX_VALUE {
                return Err(bad("Sig", value, "it is too long"));
            }
            signatures.push(value.to_owned());
        } else if fields.insert(name, value).is_some() {
            return Err(NarInfoError::Twice { field: shown(name) });
        }
    }
    Ok((fields, signatures))
}

fn hash(field: &'static str, text: &str) -> Result<NixHash, NarInfoError> {
    NixHash::parse(text).map_err(|e| bad(field, text, &e.to_string()))
}

fn size(field: &'static str, text: &str) -> Result<u64, NarInfoError> {
    text.parse().map_err(|_| bad(field, text, "it must be a number of bytes"))
}

fn base(field: &'static str, name: &str) -> Result<StorePath, NarInfoError> {
    StorePath::from_basename(name.as_bytes()).map_err(|e| bad(field, name, &e.to_string()))
}

fn bad(field: &'static str, value: &str, why: &str) -> NarInfoError {
    NarInfoError::Bad { field, value: shown(value), why: shown(why) }
}

/// The start of a stranger's text, printable in one line.
fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    printable::start(text, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "StorePath: /nix/store/ilxl9vlg76kcd7gj3j85pis8cpbjpvr9-hello-2.12\n\
        URL: nar/0b0r0.nar.xz\n\
        Compression: xz\n\
        FileHash: sha256:1mgm4hn51i8l1nzj9f9a6fqhkrkmb4c2b3l9zbq7bi2hhjm1g9gd\n\
        FileSize: 50160\n\
        NarHash: sha256:0zaq1x7p5wm6dkfnpnxs8w1rnpjzxgm9kygpqd20jmhnzh93r7yl\n\
        NarSize: 226488\n\
        References: 3n58xw4373jp0ljirf06d8077j15pc4j-glibc-2.37-8 ilxl9vlg76kcd7gj3j85pis8cpbjpvr9-hello-2.12\n\
        Deriver: 5gjw8rw61k4xbw2l8aq3yzb24ac7w9kr-hello-2.12.drv\n\
        Sig: cache.example.org-1:AAAA\n\
        Sig: other-1:BBBB\n";

    fn refusal(text: &str) -> String {
        NarInfo::parse(text.as_bytes()).expect_err("this must be refused").to_string()
    }

    #[test]
    fn a_narinfo_as_nix_writes_it_is_read() {
        let info = NarInfo::parse(HELLO.as_bytes()).expect("good");
        assert_eq!(info.path.name(), "hello-2.12");
        assert_eq!(
            (info.compression, info.nar_size, info.file_size),
            (Compression::Xz, 226_488, Some(50_160))
        );
        assert_eq!(info.references.len(), 2);
        assert_eq!(info.deriver.expect("there").name(), "hello-2.12.drv");
        assert_eq!(info.signatures, ["cache.example.org-1:AAAA", "other-1:BBBB"]);
    }

    #[test]
    fn what_nix_leaves_out_has_nixs_defaults() {
        let text: String = HELLO
            .lines()
            .filter(|line| ["StorePath", "URL", "NarHash", "NarSize"].iter().any(|f| line.starts_with(f)))
            .map(|line| format!("{line}\n"))
            .chain(["Deriver: unknown-deriver\n".into(), "References: \n".into(), "Future: thing\n".into()])
            .collect();
        let info = NarInfo::parse(text.as_bytes()).expect("good");
        assert_eq!((info.compression, info.file_size, info.deriver), (Compression::Bzip2, None, None));
        assert!(info.references.is_empty() && info.signatures.is_empty());
    }

    #[test]
    fn each_damage_is_named() {
        let with = |from: &str, to: &str| refusal(&HELLO.replace(from, to));
        assert_eq!(with("URL: nar/0b0r0.nar.xz\n", ""), "has no field URL");
        assert_eq!(with("NarSize: 226488", "NarSize: 226488\nNarSize: 1"), "has the field NarSize twice");
        assert_eq!(
            with("NarSize: 226488", "NarSize: -1"),
            "has a bad NarSize (-1): it must be a number of bytes"
        );
        assert_eq!(with("NarSize: 226488", "NarSize: 0"), "has a bad NarSize (0): no NAR is empty");
        assert_eq!(with("Compression: xz", "Compression xz"), "has no colon in line 3");
        assert!(with("Compression: xz", "Compression: lzip").contains("unpacks none, xz"));
        assert!(with("/nix/store/ilxl", "/gnu/store/ilxl").starts_with("has a bad StorePath (/gnu/store/"));
        assert!(with("References: 3n58", "References: ../3n58").starts_with("has a bad References"));
        assert!(with("NarHash: sha256:0zaq", "NarHash: md5:0zaq").starts_with("has a bad NarHash"));
        assert_eq!(refusal(&"Sig: a:b\n".repeat(65)), "has more than 64 signatures");
        assert_eq!(NarInfo::parse(&[0xff]), Err(NarInfoError::NotText));
        assert_eq!(NarInfo::parse(&vec![b'\n'; MAX_BYTES + 1]), Err(NarInfoError::TooLarge));
    }

    /// `nix-narinfo` 0.4 accepts each of these, or repeats a megabyte of a stranger's text in its error.
    #[test]
    fn the_limits_are_narrower_than_those_of_the_library() {
        let with = |from: &str, to: &str| refusal(&HELLO.replace(from, to));
        let long = "x".repeat(100_000);
        assert_eq!(
            refusal(&format!("{HELLO}{}", "Sig: a:b\n".repeat(100_000))),
            "has more than 64 signatures"
        );
        assert!(with("URL: nar/", &format!("URL: {long}")).starts_with("has a bad URL"));
        assert!(
            with(
                "NarHash: sha256:0zaq1x7p5wm6dkfnpnxs8w1rnpjzxgm9kygpqd20jmhnzh93r7yl",
                &format!("NarHash: sha1:{}", "0".repeat(40))
            )
            .ends_with("it must be a SHA-256")
        );
        assert!(with("Compression: xz", "Compression: lzip").contains("unpacks none, xz"));
        assert_eq!(
            with("NarSize: 226488", "Future: 1\nFuture: 2\nNarSize: 226488"),
            "has the field Future twice"
        );
        assert!(with("NarHash: sha256:", &format!("NarHash: {long}:")).len() < 500);
        assert!(with("-glibc-2.37", &format!("-{long}")).len() < 500);
    }

    #[test]
    fn refusals_are_one_short_line() {
        let evil = format!("StorePath: {}\nURL: x\nNarHash: \u{1b}[2J\nNarSize: 1\n", "x".repeat(100_000));
        let line = refusal(&evil);
        assert!(line.len() < 500 && !line.contains(['\u{1b}', '\n']), "{line}");
    }
}
