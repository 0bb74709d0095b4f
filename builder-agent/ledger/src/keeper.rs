//! The keeper: the thread that writes the ledger's changes to its file, and what happens when it cannot.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::file::{Failure, File, move_aside};
use crate::{Settings, State};

/// Time between two writes: what `kill -9` can lose. As long as the store waits between two flushes.
pub const WRITE_EVERY: Duration = Duration::from_secs(5);

/// The file of a ledger, and the thread. Dropping it writes the last changes.
pub(crate) struct Keeper {
    writer: Arc<Mutex<Writer>>,
    /// The thread ends when the sender is dropped.
    thread: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
}

struct Writer {
    state: Arc<State>,
    settings: Settings,
    /// `None` if the file cannot be opened at the moment.
    file: Option<File>,
    /// The rows of the file are in memory, and must not be added again.
    loaded: bool,
    /// The error of the last try, if it failed. An error is logged once, and not every few seconds.
    last_error: Option<String>,
}

impl Keeper {
    /// Opens and reads the file. If no thread can be started, the changes are written at the end.
    pub fn start(state: Arc<State>, settings: Settings) -> Self {
        let mut writer = Writer { state, settings, file: None, loaded: false, last_error: None };
        writer.pass();
        let writer = Arc::new(Mutex::new(writer));
        let (stop, stopped) = mpsc::channel::<()>();
        let work = {
            let writer = writer.clone();
            move || {
                while stopped.recv_timeout(WRITE_EVERY) == Err(RecvTimeoutError::Timeout) {
                    pass(&writer);
                }
            }
        };
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(work);
        let thread =
            thread.inspect_err(|error| tracing::error!(name = "ledger", %error, "cannot start a thread"));
        Self { writer, thread: Mutex::new(thread.ok().map(|thread| (stop, thread))) }
    }

    pub fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = thread {
            drop(stop);
            let _ = thread.join();
        }
        pass(&self.writer);
    }
}

impl Keeper {
    /// A write now, as the thread makes it every few seconds.
    pub fn write(&self) {
        pass(&self.writer);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

fn pass(writer: &Mutex<Writer>) {
    writer.lock().unwrap_or_else(PoisonError::into_inner).pass();
}

impl Writer {
    /// Writes all changes since the last pass; opens the file before that if it is not open.
    fn pass(&mut self) {
        self.state.settle();
        if self.file.is_none() {
            self.open();
        }
        let today = self.state.today();
        let Some(file) = &mut self.file else {
            self.state.with_book(|book| {
                book.roll(today);
                book.file_is_unknown();
            });
            return;
        };
        // The book is not locked while the disk is waited for.
        let changes = self.state.with_book(|book| {
            book.roll(today);
            book.take_changes()
        });
        if changes.is_empty() {
            return;
        }
        match file.write(&changes) {
            Ok(()) => self.works(),
            Err(failure) => {
                self.state.with_book(|book| book.put_back(changes));
                self.failed(&failure);
            }
        }
    }

    fn open(&mut self) {
        let opened = self.read().or_else(|failure| {
            self.failed(&failure);
            // A file that was moved aside leaves room for a new one.
            match failure {
                Failure::Contents(_) => self.read(),
                Failure::Other(_) => Err(failure),
            }
        });
        match opened {
            Ok(file) => {
                self.file = Some(file);
                self.works();
            }
            Err(failure) => self.failed(&failure),
        }
    }

    fn read(&mut self) -> Result<File, Failure> {
        let Settings { path, flush, bounds, .. } = &self.settings;
        let file = File::open(path, *flush)?;
        if self.loaded {
            return Ok(file);
        }
        let (rows, parts, unreadable) = file.load(bounds.rows, bounds.part_rows)?;
        if unreadable > 0 {
            tracing::warn!(path = %path.display(), unreadable, "amounts in the ledger that this version cannot read are left out");
        }
        self.state.with_book(|book| {
            book.load(rows);
            book.load(parts);
        });
        self.loaded = true;
        Ok(file)
    }

    fn works(&mut self) {
        if self.last_error.take().is_some() {
            tracing::info!(path = %self.settings.path.display(), "the ledger is written to its file again");
        }
    }

    /// Logs a failure that is not the last one. A file with contents that cannot be used is replaced by a new one, which
    /// gets all that is in memory.
    fn failed(&mut self, failure: &Failure) {
        let (path, error) = (&self.settings.path, failure.to_string());
        let new = self.last_error.as_ref() != Some(&error);
        if let Failure::Contents(_) = failure {
            self.file = None;
            match move_aside(path) {
                Ok(aside) => tracing::error!(
                    path = %path.display(),
                    aside = %aside.display(),
                    error,
                    "the ledger's file cannot be read; it is moved aside, and a new one is begun"
                ),
                Err(cause) if new => tracing::error!(
                    path = %path.display(),
                    %cause,
                    error,
                    "the ledger's file cannot be read, and cannot be moved aside"
                ),
                Err(_) => {}
            }
            self.state.with_book(|book| book.file_is_empty());
        } else if new {
            tracing::error!(
                path = %path.display(),
                error,
                "the ledger cannot be written; it goes on in memory, and writing is tried again every few seconds"
            );
        }
        self.last_error = Some(error);
    }
}
