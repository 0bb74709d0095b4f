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

/// One resource, as people, programs and the file name it.
#[derive(Debug)]
pub struct Row {
    pub resource: Resource,
    pub name: &'static str,
    pub unit: Unit,
    pub help: &'static str,
}

const fn row(resource: Resource, name: &'static str, unit: Unit, help: &'static str) -> Row {
    Row { resource, name, unit, help }
}

/// All resources. A name is in files and in the programs of members: it is never changed.
#[rustfmt::skip]
pub const RESOURCES: &[Row; COUNT] = &[
    row(Resource::CpuSeconds, "cpu_seconds", Unit::Seconds, "processor time of builds: all processes of the sandbox, and the kernel on their behalf"),
    row(Resource::WallSeconds, "wall_seconds", Unit::Seconds, "time that builds ran, without the wait for a slot"),
    row(Resource::MemoryMibSeconds, "memory_mib_seconds", Unit::MibSeconds, "memory of the sandboxes of builds, in MiB, times the time that it was reserved"),
    row(Resource::Builds, "builds", Unit::Number, "builds that were started for the member; not those that were joined or reused"),
    row(Resource::FailedBuilds, "failed_builds", Unit::Number, "those of them that ended without outputs: failed, over a limit, or cancelled"),
    row(Resource::LogBytes, "log_bytes", Unit::Bytes, "bytes that builders wrote to their logs"),
    row(Resource::BytesUp, "bytes_up", Unit::Bytes, "bytes that arrived on the member's connections, those of ssh itself included"),
    row(Resource::BytesDown, "bytes_down", Unit::Bytes, "bytes that were sent on the member's connections, those of ssh itself included"),
    row(Resource::Connections, "connections", Unit::Number, "logins"),
    row(Resource::Sessions, "sessions", Unit::Number, "commands over ssh; each store session is one"),
];

const COUNT: usize = 10;

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

/// An amount of each resource. A sum that is too large stays at the largest number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([u64; COUNT]);

impl Amounts {
    #[must_use]
    pub fn get(&self, resource: Resource) -> u64 {
        self.0[resource as usize]
    }

    pub fn add(&mut self, resource: Resource, amount: u64) {
        let sum = &mut self.0[resource as usize];
        *sum = sum.saturating_add(amount);
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
}
