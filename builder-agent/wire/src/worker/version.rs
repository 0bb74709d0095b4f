//! Version numbers and named features of the worker protocol.

use std::fmt;

/// The first word that a client sends ("nixc").
pub const CLIENT_MAGIC: u64 = 0x6e69_7863;

/// The server's answer to it ("dxio").
pub const SERVER_MAGIC: u64 = 0x6478_696f;

/// A version of the worker protocol. On the wire: major in the second byte, minor in the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u8,
    pub minor: u8,
}

impl Version {
    /// The oldest supported version: Nix 2.0.
    pub const OLDEST: Self = Self::new(18);
    /// The newest supported version: later additions are named features. (Nix:
    /// src/libstore/worker-protocol.cc, `latest`.)
    pub const NEWEST: Self = Self::new(38);

    /// Version 1.`minor`.
    pub const fn new(minor: u8) -> Self {
        Self { major: 1, minor }
    }

    pub(crate) fn from_wire(value: u64) -> Option<Self> {
        let [minor, major, 0, 0, 0, 0, 0, 0] = value.to_le_bytes() else { return None };
        Some(Self { major, minor })
    }

    pub(crate) fn to_wire(self) -> u64 {
        u64::from(self.major) << 8 | u64::from(self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Additions that both sides named in the handshake (1.38 and newer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Realisations are keyed by derivation path and are no longer JSON (Nix 2.35).
    pub realisation_with_path: bool,
    /// `CollectGarbage` can delete some paths together with their referrers (Nix 2.35).
    pub delete_dead_specific_referrers: bool,
}

impl Features {
    pub(crate) const REALISATION_WITH_PATH: &str = "realisation-with-path-not-hash";
    pub(crate) const DELETE_DEAD_SPECIFIC_REFERRERS: &str = "delete-dead-specific-referrers";

    /// All features of this crate.
    pub const ALL: Self = Self { realisation_with_path: true, delete_dead_specific_referrers: true };

    /// The names in the order of the wire: sorted.
    pub fn names(self) -> Vec<&'static str> {
        let mut names = Vec::new();
        if self.delete_dead_specific_referrers {
            names.push(Self::DELETE_DEAD_SPECIFIC_REFERRERS);
        }
        if self.realisation_with_path {
            names.push(Self::REALISATION_WITH_PATH);
        }
        names
    }

    /// The known features among those that the other side named.
    pub(crate) fn known<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut features = Self::default();
        for name in names {
            match name {
                Self::REALISATION_WITH_PATH => features.realisation_with_path = true,
                Self::DELETE_DEAD_SPECIFIC_REFERRERS => features.delete_dead_specific_referrers = true,
                _ => {}
            }
        }
        features
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            realisation_with_path: self.realisation_with_path && other.realisation_with_path,
            delete_dead_specific_referrers: self.delete_dead_specific_referrers
                && other.delete_dead_specific_referrers,
        }
    }
}

/// The version and features that both sides agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    pub version: Version,
    pub features: Features,
}

impl Protocol {
    /// A version without features.
    pub const fn plain(minor: u8) -> Self {
        Self {
            version: Version::new(minor),
            features: Features { realisation_with_path: false, delete_dead_specific_referrers: false },
        }
    }

    /// Whether the agreed version is at least 1.`minor`.
    pub fn at_least(self, minor: u8) -> bool {
        self.version >= Version::new(minor)
    }
}
