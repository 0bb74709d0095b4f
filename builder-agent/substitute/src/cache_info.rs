//! `nix-cache-info`: a binary cache's description of itself (Nix: `src/libstore/binary-cache-store.cc`).

/// Largest file that is read. Usual ones have three short lines.
pub const MAX_BYTES: usize = 64 << 10;

/// The store directory of this box.
const STORE_DIR: &str = "/nix/store";

/// The fields that the box uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheInfo {
    /// Caches with a lower number are asked earlier.
    pub priority: Option<u32>,
    /// Whether the cache may be asked about every path of a plan.
    pub want_mass_query: bool,
}

/// The reason why a cache cannot be used. Completes the sentence "its nix-cache-info …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheInfoError {
    #[error("is not text of at most {MAX_BYTES} bytes")]
    NotText,
    #[error("says that its paths are below '{got}'; only caches for {STORE_DIR} are of use here")]
    OtherStore { got: String },
    #[error("has a bad {field} ({value})")]
    Bad { field: &'static str, value: String },
}

impl CacheInfo {
    /// Reads a whole file. As in Nix, the default for `StoreDir` is the reader's own.
    pub fn parse(bytes: &[u8]) -> Result<Self, CacheInfoError> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_BYTES);
        let mut info = Self::default();
        for line in text.ok_or(CacheInfoError::NotText)?.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            let shown = || printable::start(value, 120);
            match name {
                "StoreDir" if value != STORE_DIR => return Err(CacheInfoError::OtherStore { got: shown() }),
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => match value.parse() {
                    Ok(priority) => info.priority = Some(priority),
                    Err(_) => return Err(CacheInfoError::Bad { field: "Priority", value: shown() }),
                },
                _ => {}
            }
        }
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_writes_is_read() {
        let info = CacheInfo::parse(b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n");
        assert_eq!(info, Ok(CacheInfo { priority: Some(40), want_mass_query: true }));
        assert_eq!(CacheInfo::parse(b""), Ok(CacheInfo::default()));
    }

    #[test]
    fn a_cache_for_another_store_is_refused() {
        let error = CacheInfo::parse(b"StoreDir: /gnu/store\n").expect_err("refused").to_string();
        assert!(error.contains("'/gnu/store'"), "{error}");
        assert!(CacheInfo::parse(b"Priority: high\n").is_err());
        assert!(CacheInfo::parse(&vec![b' '; MAX_BYTES + 1]).is_err());
    }
}
