//! Open descriptors that a program leaves to the one that takes its place: by their numbers, which execve(2) keeps.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Descriptors that this program got, until their owners take them. The rest are closed when this is dropped.
#[derive(Default)]
pub struct Received {
    waiting: BTreeMap<RawFd, OwnedFd>,
    shared: BTreeMap<RawFd, Arc<dyn Any + Send + Sync>>,
}

impl Received {
    /// Takes the descriptors with these numbers, which become close-on-exec. Fails, and closes those that it took, if one of
    /// them is none that the program before has left: what this program opens itself is close-on-exec.
    pub fn claim(numbers: &[RawFd]) -> io::Result<Received> {
        let mut received = Received::default();
        for &number in numbers {
            let wrong = |why| io::Error::other(format!("descriptor {number} {why}"));
            if number <= 2 || received.waiting.contains_key(&number) {
                return Err(wrong("is no descriptor that can be passed on"));
            }
            // SAFETY: only its flags are read and set here; a number that is not open gives an error.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            if fcntl_getfd(fd)?.contains(FdFlags::CLOEXEC) {
                return Err(wrong("was opened by this program itself"));
            }
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
            // SAFETY: the number is open, and nobody owns it: it was not close-on-exec, as all that the standard library and
            // this crate open is, so the program before has left it. From now on it is, so nobody can claim it again.
            received.waiting.insert(number, unsafe { OwnedFd::from_raw_fd(number) });
        }
        Ok(received)
    }

    /// The descriptor with this number.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        let found = self.waiting.remove(&number);
        found.ok_or_else(|| io::Error::other(format!("descriptor {number} was not passed on")))
    }

    /// A value that several owners made of the descriptor with this number; `make` makes it for the first one.
    pub fn share<T: Send + Sync + 'static>(
        &mut self,
        number: RawFd,
        make: impl FnOnce(OwnedFd) -> T,
    ) -> io::Result<Arc<T>> {
        if let Some(shared) = self.shared.get(&number) {
            let other = |_| io::Error::other(format!("descriptor {number} is passed on as two things"));
            return shared.clone().downcast().map_err(other);
        }
        let made = Arc::new(make(self.take(number)?));
        self.shared.insert(number, made.clone());
        Ok(made)
    }
}

/// For tests, in which one process is both programs.
impl FromIterator<OwnedFd> for Received {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(all: I) -> Self {
        let waiting = all.into_iter().map(|fd| (fd.as_raw_fd(), fd)).collect();
        Received { waiting, shared: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_what_another_program_left_can_be_claimed_and_once() {
        let ours = File::open("/dev/null").unwrap();
        assert!(Received::claim(&[ours.as_raw_fd()]).is_err(), "this program opened it");
        assert!(Received::claim(&[1]).is_err() && Received::claim(&[-1]).is_err());
        let left = OwnedFd::from(ours.try_clone().unwrap());
        fcntl_setfd(&left, FdFlags::empty()).unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(left);
        assert!(Received::claim(&[number, number]).is_err(), "twice in a list");
        // The failed claim has closed it.
        assert!(Received::claim(&[number]).is_err());
    }

    #[test]
    fn what_several_owners_share_is_made_once() {
        let file = OwnedFd::from(File::open("/dev/null").unwrap());
        let number = file.as_raw_fd();
        let mut received = Received::from_iter([file]);
        let one = received.share(number, |fd| (fd, 7)).unwrap();
        let two = received.share(number, |fd| (fd, 8)).unwrap();
        assert!(Arc::ptr_eq(&one, &two) && one.1 == 7);
        assert!(received.share::<String>(number, |_| String::new()).is_err());
        assert!(received.take(number).is_err());
    }
}
