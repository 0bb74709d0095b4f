//! Counts the bytes of a download while they arrive, and charges them in portions.
//!
//! With whose slot a download begins, is charged for all of it, also for the bytes of one that fails.

use std::io::{self, Read};
use std::sync::Arc;

/// Charges somebody for so many bytes.
pub type ChargeBytes = Arc<dyn Fn(u64) + Send + Sync>;

/// For whom downloads start.
#[derive(Clone)]
pub struct Account {
    /// The identity of the member who pays, also for what the holders of their tickets fetch. They share a part of the
    /// downloads that the box makes at once.
    pub payer: Arc<str>,
    /// Charges that member for bytes that arrive.
    pub charge: ChargeBytes,
}

/// The ledger is one lock for everybody, so a download asks for it seldom.
const PORTION: u64 = 1 << 20;

/// A reader whose bytes are charged. Dropping it charges the last ones.
pub struct Tally<R> {
    inner: R,
    charge: ChargeBytes,
    pending: u64,
}

impl<R> Tally<R> {
    pub fn new(inner: R, charge: ChargeBytes) -> Self {
        Self { inner, charge, pending: 0 }
    }
}

impl<R: Read> Read for Tally<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.pending += n as u64;
        if self.pending >= PORTION {
            (self.charge)(std::mem::take(&mut self.pending));
        }
        Ok(n)
    }
}

impl<R> Drop for Tally<R> {
    fn drop(&mut self) {
        if self.pending > 0 {
            (self.charge)(self.pending);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_byte_is_charged_once_also_if_the_reader_is_dropped_early() {
        let (charged, calls) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (sum, count) = (charged.clone(), calls.clone());
        let charge: ChargeBytes = Arc::new(move |bytes| {
            sum.fetch_add(bytes, Ordering::Relaxed);
            count.fetch_add(1, Ordering::Relaxed);
        });
        let mut tally = Tally::new(io::repeat(7).take(5 << 20), charge);
        io::copy(&mut tally.by_ref().take((2 << 20) + 3), &mut io::sink()).expect("read");
        drop(tally);
        assert_eq!(charged.load(Ordering::Relaxed), (2 << 20) + 3);
        assert_eq!(calls.load(Ordering::Relaxed), 3, "two portions, and the rest");
    }
}
