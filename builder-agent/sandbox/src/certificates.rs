//! The box's certificates, for machines with a network.

use std::path::Path;

use crate::CERTIFICATES;

/// This file for `/etc` of `whose` machine: nothing, and a line in the log, if it cannot be read. It is read each time, because
/// an operator may replace it.
#[must_use]
pub fn certificates(file: Option<&Path>, whose: &str) -> Vec<(String, Vec<u8>)> {
    let read = |file: &Path| match std::fs::read(file) {
        Ok(bundle) => Some((CERTIFICATES.to_owned(), bundle)),
        Err(error) => {
            tracing::warn!(%error, path = %file.display(), whose, "a machine has no certificates of the box");
            None
        }
    };
    file.and_then(read).into_iter().collect()
}
