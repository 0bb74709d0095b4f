//! The resources that are counted: one table of names, units and help.

use std::fmt;

/// A resource. Its number is its place in [`RESOURCES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    CpuSeconds,
    WallSeconds,
    MemoryMibSeconds,
    Builds,
    FailedBuilds,
    LogBytes,
    BytesUp,
    BytesDown,
    Connections,
    Sessions,
    Requests,
    ConnectionsPeak,
    SessionsPeak,
    RequestsPeak,
    DownloadBytes,
    StoreMibSeconds,
    StoreBytesPeak,
    StorePathsPeak,
    StoreReferencesPeak,
    NetworkBytes,
    HomeSeconds,
}

/// The unit of an amount. Amounts are whole numbers of its smallest part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// In milliseconds.
    Seconds,
    /// In MiB·milliseconds.
    MibSeconds,
    Bytes,
    Number,
}

impl Unit {
    /// The parts of one unit.
    #[must_use]
    pub const fn parts(self) -> u64 {
        match self {
            Self::Seconds | Self::MibSeconds => 1000,
            Self::Bytes | Self::Number => 1,
        }
    }
}

/// How two amounts become one: those of a day, of the days of a month, or of several members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    Sum,
    /// The larger one. Over several members it is not what they had together.
    Peak,
}

/// One resource, as people, programs and the file name it.
#[derive(Debug)]
pub struct Row {
    pub resource: Resource,
    pub name: &'static str,
    pub unit: Unit,
    pub fold: Fold,
    pub help: &'static str,
}

const fn row(resource: Resource, name: &'static str, unit: Unit, help: &'static str) -> Row {
    Row { resource, name, unit, fold: Fold::Sum, help }
}

const fn peak(resource: Resource, name: &'static str, unit: Unit, help: &'static str) -> Row {
    Row { resource, name, unit, fold: Fold::Peak, help }
}

/// All resources. A name is in files and in the programs of members: it is never changed.
#[rustfmt::skip]
pub const RESOURCES: &[Row; COUNT] = &[
    row(Resource::CpuSeconds, "cpu_seconds", Unit::Seconds, "processor time of builds and homes: all processes of the sandbox, and the kernel on their behalf"),
    row(Resource::WallSeconds, "wall_seconds", Unit::Seconds, "time that builds ran, without the wait for a slot"),
    row(Resource::MemoryMibSeconds, "memory_mib_seconds", Unit::MibSeconds, "memory of the sandboxes of builds and of homes, in MiB, times the time that it was reserved"),
    row(Resource::Builds, "builds", Unit::Number, "builds that were started for the member; not those that were joined or reused"),
    row(Resource::FailedBuilds, "failed_builds", Unit::Number, "those of them that ended without outputs: failed, over a limit, or cancelled"),
    row(Resource::LogBytes, "log_bytes", Unit::Bytes, "bytes that builders wrote to their logs"),
    row(Resource::BytesUp, "bytes_up", Unit::Bytes, "bytes that arrived on the member's connections, those of ssh itself included"),
    row(Resource::BytesDown, "bytes_down", Unit::Bytes, "bytes that were sent on the member's connections, those of ssh itself included"),
    row(Resource::Connections, "connections", Unit::Number, "logins"),
    row(Resource::Sessions, "sessions", Unit::Number, "commands over ssh; each store session is one"),
    row(Resource::Requests, "requests", Unit::Number, "requests in store sessions: each question, upload, copy and build"),
    peak(Resource::ConnectionsPeak, "connections_peak", Unit::Number, "most connections that were open at one moment"),
    peak(Resource::SessionsPeak, "sessions_peak", Unit::Number, "most commands that ran at one moment"),
    peak(Resource::RequestsPeak, "requests_peak", Unit::Number, "most requests that were being answered at one moment"),
    row(Resource::DownloadBytes, "download_bytes", Unit::Bytes, "bytes that the box fetched for the member: paths from caches, as the cache sends them, and files for `builtin:fetchurl`"),
    row(Resource::StoreMibSeconds, "store_mib_seconds", Unit::MibSeconds, "space of the store paths that the member is charged for, in MiB, times time; looked at once a minute"),
    peak(Resource::StoreBytesPeak, "store_bytes_peak", Unit::Bytes, "most space that the member was charged for in any of these minutes"),
    peak(Resource::StorePathsPeak, "store_paths_peak", Unit::Number, "most store paths that the member was charged for; each is one file (inode) and one row of the index"),
    peak(Resource::StoreReferencesPeak, "store_references_peak", Unit::Number, "most references that these paths had together"),
    row(Resource::NetworkBytes, "network_bytes", Unit::Bytes, "bytes that builders of fixed outputs and homes sent and received over their network, frames as a whole"),
    row(Resource::HomeSeconds, "home_seconds", Unit::Seconds, "time that the member's home was there"),
];

const COUNT: usize = 21;

impl Resource {
    #[must_use]
    pub fn row(self) -> &'static Row {
        &RESOURCES[self as usize]
    }

    /// The resource with this name; `None` for one that only another version counts.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        RESOURCES.iter().find(|row| row.name == name).map(|row| row.resource)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// An amount of each resource. A sum that is too large stays at the largest number; of peaks the largest stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([u64; COUNT]);

impl Amounts {
    #[must_use]
    pub fn get(&self, resource: Resource) -> u64 {
        self.0[resource as usize]
    }

    pub fn add(&mut self, resource: Resource, amount: u64) {
        let sum = &mut self.0[resource as usize];
        *sum = match resource.row().fold {
            Fold::Sum => sum.saturating_add(amount),
            Fold::Peak => (*sum).max(amount),
        };
    }

    pub fn add_all(&mut self, other: &Amounts) {
        for row in RESOURCES {
            self.add(row.resource, other.get(row.resource));
        }
    }

    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The resources of which there is any, with their amounts.
    pub fn iter(&self) -> impl Iterator<Item = (Resource, u64)> {
        let all = RESOURCES.iter().map(|row| (row.resource, self.get(row.resource)));
        all.filter(|(_, amount)| *amount > 0)
    }
}

impl FromIterator<(Resource, u64)> for Amounts {
    fn from_iter<I: IntoIterator<Item = (Resource, u64)>>(charges: I) -> Self {
        let mut amounts = Self::default();
        charges.into_iter().for_each(|(resource, amount)| amounts.add(resource, amount));
        amounts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_by_its_place_and_by_its_name() {
        for row in RESOURCES {
            assert_eq!(row.resource.row().name, row.name);
            assert_eq!(Resource::named(row.name), Some(row.resource));
        }
        assert_eq!(Resource::named("homes"), None);
    }

    #[test]
    fn a_sum_that_is_too_large_does_not_wrap() {
        let mut amounts = Amounts::from_iter([(Resource::BytesUp, u64::MAX - 1)]);
        amounts.add_all(&Amounts::from_iter([(Resource::BytesUp, 7), (Resource::Builds, 1)]));
        assert_eq!((amounts.get(Resource::BytesUp), amounts.get(Resource::Builds)), (u64::MAX, 1));
    }

    #[test]
    fn peaks_are_not_added_up() {
        let mut amounts = Amounts::from_iter([(Resource::RequestsPeak, 7)]);
        amounts.add_all(&Amounts::from_iter([(Resource::RequestsPeak, 5), (Resource::Requests, 5)]));
        assert_eq!((amounts.get(Resource::RequestsPeak), amounts.get(Resource::Requests)), (7, 5));
    }
}
