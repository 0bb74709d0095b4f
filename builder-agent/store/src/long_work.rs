//! Work that may take long, on a thread that also serves other clients.
//!
//! A small path in a store in memory takes about 100 microseconds: as long as waking another thread and being woken by
//! it. So the caller may do it on a thread of its async runtime. The store knows where it would wait for another commit,
//! or do more than a fixed amount of work. There it calls the function of the caller first, which moves the other tasks
//! of that thread to another one. The amount depends on the request and on what its member has, never on other members.

/// Most references and signatures of the paths of one registration that count as short work. A reference is looked up
/// in a fraction of a microsecond, and a signature is checked in about 30.
pub(crate) const SHORT: usize = 64;

/// The function around long work. The default calls the work, and does nothing else.
#[derive(Clone, Copy, Default)]
pub struct LongWork(Option<fn(&mut dyn FnMut())>);

impl LongWork {
    /// `around` calls the work that it gets exactly once, and returns after that. It may be called for work inside of
    /// other long work.
    #[must_use]
    pub fn new(around: fn(&mut dyn FnMut())) -> Self {
        Self(Some(around))
    }

    /// Does `work`.
    pub(crate) fn run<T>(self, work: impl FnOnce() -> T) -> T {
        let Some(around) = self.0 else { return work() };
        let (mut work, mut result) = (Some(work), None);
        around(&mut || result = work.take().map(|work| work()));
        result.expect("the function around long work has called it")
    }
}

#[cfg(test)]
#[path = "long_work_test.rs"]
mod long_work_test;
