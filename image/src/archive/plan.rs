//! Parses apt's list of downloads: address, name, size and SHA-256 of each file, from the signed lists.

/// A file that a signed list names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub uri: String,
    /// The name of the kept file: other than in the address, a colon of the version is written `%3a`.
    pub name: String,
    pub size: u64,
    pub sha256: String,
}

impl Listed {
    /// The package's name (for a .deb).
    pub fn package(&self) -> &str {
        self.name.split('_').next().unwrap_or_default()
    }

    /// The package's version in apt's usual form (for a .deb).
    pub fn version(&self) -> String {
        self.name.split('_').nth(1).unwrap_or_default().replace("%3a", ":").replace("%5f", "_")
    }
}

/// Reads lines of `'URI' NAME SIZE SHA256:HEX`; apt prints nothing else to stdout with `-qq --print-uris`. A
/// file without a SHA-256 is ignored, since it could not be checked.
pub(super) fn parse(printed: &str) -> Vec<Listed> {
    printed
        .lines()
        .filter_map(|line| {
            let (uri, rest) = line.strip_prefix('\'')?.split_once("' ")?;
            let [name, size, hash] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
            Some(Listed {
                uri: uri.to_owned(),
                name: name.to_owned(),
                size: size.parse().ok()?,
                sha256: hash.strip_prefix("SHA256:")?.to_owned(),
            })
        })
        .collect()
}

/// A number of bytes, for messages.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_read_and_what_has_no_strong_hash_is_left_out() {
        let printed = "'http://m.example/pool/l/libx_1.0%2bb_amd64.deb' libx_1%3a1.0+b_amd64.deb 12 SHA256:ab\n\
            'http://m.example/pool/l/liby_1_amd64.deb' liby_1_amd64.deb 12 MD5Sum:ab\n\
            Reading package lists...\n";
        let files = parse(printed);
        assert_eq!(files.len(), 1);
        assert_eq!((files[0].package(), files[0].version().as_str(), files[0].size), ("libx", "1:1.0+b", 12));
    }
}
