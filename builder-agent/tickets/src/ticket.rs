//! One ticket: its terms, and the account of what was used of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ::roster::date;
use serde::{Deserialize, Serialize};

use super::Book;
use super::token::Hash;
use crate::{Scope, Terms};

/// A build is not started for less than this.
const SHORTEST: Duration = Duration::from_secs(1);

/// A ticket that exists, or has ended a short time ago.
pub struct Ticket {
    /// The identity of the holder: the owner of claims and logs. It begins with [`PREFIX`](super::PREFIX).
    pub id: Arc<str>,
    /// Distinguishes the live tickets of one maker.
    pub name: Arc<str>,
    /// The identity of the member who made it, and who pays for it.
    pub maker: Arc<str>,
    /// Unix seconds.
    pub created: u64,
    pub terms: Terms,
    pub(crate) hash: Hash,
    /// See [`Ticket::token`].
    pub(crate) token: Option<String>,
    account: Mutex<Account>,
    book: Weak<Book>,
}

/// The part of an account that is on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Builds that were started, less those that failed because of the box.
    pub uses: u64,
    pub build_millis: u64,
    /// Processor time of builds.
    #[serde(default)]
    pub cpu_millis: u64,
    pub upload_bytes: u64,
    /// When the ticket was revoked.
    pub revoked: Option<u64>,
    /// The claims and logs of the holder have been deleted.
    pub dropped: bool,
}

#[derive(Debug, Default)]
struct Account {
    used: Used,
    /// Builds that run now, and the time that they may take.
    running: u32,
    reserved: Duration,
    /// `used` differs from the file.
    unsaved: bool,
}

/// Whether a ticket can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Live,
    Expired,
    Revoked,
}

impl State {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// A limit of the ticket that was reached. The text is for the holder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Over {
    #[error(
        "the ticket `{name}` is for reading only (`--scope read`); ask its maker for one with `--scope build`"
    )]
    Scope { name: Arc<str> },
    #[error(
        "the ticket `{name}` was for {uses} builds (`--uses`), which have been started; ask its maker for another one"
    )]
    Uses { name: Arc<str>, uses: u64 },
    #[error(
        "the ticket `{name}` was for {seconds} seconds of builds (`--max-build-time`), which are used up or given to builds \
         that run; ask its maker for another one"
    )]
    Time { name: Arc<str>, seconds: u64 },
    #[error(
        "the ticket `{name}` was for {bytes} bytes from its holder (`--max-upload`), which have been sent; ask its maker for \
         another one"
    )]
    Upload { name: Arc<str>, bytes: u64 },
}

/// The reason why no use was spent.
#[derive(Debug, thiserror::Error)]
pub enum NotSpent {
    #[error(transparent)]
    Over(#[from] Over),
    /// Going on could give more uses than the ticket has, after a crash.
    #[error("the box cannot write down that the ticket was used: {0}")]
    File(String),
}

/// A use of a ticket, for a build that runs. It is accounted when this is dropped.
#[derive(Debug)]
pub struct Spent {
    ticket: Arc<Ticket>,
    since: Instant,
    /// The longest time of the build, by the ticket's limit.
    limit: Option<Duration>,
    reserved: Duration,
    back: bool,
    /// All that was reserved counts, also what the build did not take.
    all: bool,
}

/// A use for a build that still runs, for [`Ticket::spent_before`].
#[derive(Debug, Clone, Copy)]
pub struct SpentBefore {
    pub since: Instant,
    /// The longest time of the build, by the ticket's limit.
    pub limit: Option<Duration>,
    pub reserved: Duration,
}

impl Ticket {
    #[allow(clippy::too_many_arguments)] // the columns of a record
    pub(crate) fn new(
        id: Arc<str>,
        name: Arc<str>,
        maker: Arc<str>,
        created: u64,
        terms: Terms,
        (hash, token): (Hash, Option<String>),
        used: Used,
        book: Weak<Book>,
    ) -> Arc<Self> {
        let account = Mutex::new(Account { used, ..Account::default() });
        Arc::new(Self { id, name, maker, created, terms, hash, token, account, book })
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub fn used(&self) -> Used {
        self.account().used
    }

    #[must_use]
    pub fn state(&self) -> State {
        match self.used().revoked {
            Some(_) => State::Revoked,
            None if date::now() >= self.terms.expires => State::Expired,
            None => State::Live,
        }
    }

    #[must_use]
    pub fn is_live(&self) -> bool {
        self.state() == State::Live
    }

    /// The token, if its maker wanted to be able to see it again.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// When it ended, or will.
    pub(crate) fn end(&self) -> u64 {
        self.used().revoked.unwrap_or(u64::MAX).min(self.terms.expires)
    }

    /// The limit that keeps a build from starting now.
    #[must_use]
    pub fn over(&self) -> Option<Over> {
        self.room(&self.account()).err()
    }

    /// As [`Ticket::over`], for a build that is started again and spends no further use.
    #[must_use]
    pub fn over_again(&self) -> Option<Over> {
        self.time(&self.account()).err()
    }

    /// The time that a build may take if it starts now; `None`: any.
    fn room(&self, account: &Account) -> Result<Option<Duration>, Over> {
        let name = || self.name.clone();
        if self.terms.scope == Scope::Read {
            return Err(Over::Scope { name: name() });
        }
        if let Some(uses) = self.terms.uses.filter(|uses| account.used.uses >= *uses) {
            return Err(Over::Uses { name: name(), uses });
        }
        self.time(account)
    }

    /// The same without a look at the uses.
    fn time(&self, account: &Account) -> Result<Option<Duration>, Over> {
        let name = || self.name.clone();
        let Some(seconds) = self.terms.max_build_seconds else { return Ok(None) };
        let taken = Duration::from_millis(account.used.build_millis) + account.reserved;
        let left = Duration::from_secs(seconds).saturating_sub(taken);
        let parts = self.terms.jobs().unwrap_or(1).saturating_sub(account.running).max(1);
        match left / parts {
            part if part < SHORTEST => Err(Over::Time { name: name(), seconds }),
            part => Ok(Some(part)),
        }
    }

    /// Spends a use for a build that starts now and takes at most `longest`. Waits for the disk: a use that was spent is
    /// still spent after `kill -9`, also if the build was lost.
    pub fn spend(self: &Arc<Self>, longest: Duration) -> Result<Spent, NotSpent> {
        self.spend_some(false, longest)
    }

    /// The same for a build that is started again: its use is spent already, its time is not. The use is this build's from
    /// now on, and comes back if the box is at fault.
    pub fn spend_time(self: &Arc<Self>, longest: Duration) -> Result<Spent, NotSpent> {
        self.spend_some(true, longest)
    }

    fn spend_some(self: &Arc<Self>, again: bool, longest: Duration) -> Result<Spent, NotSpent> {
        let (limit, reserved) = {
            let mut account = self.account();
            let limit = if again { self.time(&account) } else { self.room(&account) }?;
            let reserved = limit.map_or(Duration::ZERO, |limit| limit.min(longest));
            account.used.uses += u64::from(!again);
            account.running += 1;
            account.reserved += reserved;
            (limit, reserved)
        };
        let since = Instant::now();
        let mut spent = Spent { ticket: self.clone(), since, limit, reserved, back: false, all: false };
        if let Err(error) = self.save() {
            spent.give_back();
            return Err(NotSpent::File(error));
        }
        Ok(spent)
    }

    /// A use that an earlier process spent, and wrote down, for a build that still runs.
    #[must_use]
    pub fn spent_before(self: &Arc<Self>, before: SpentBefore) -> Spent {
        let SpentBefore { since, limit, reserved } = before;
        let mut account = self.account();
        account.running += 1;
        account.reserved += reserved;
        drop(account);
        Spent { ticket: self.clone(), since, limit, reserved, back: false, all: false }
    }

    /// Counts bytes that the holder has sent.
    pub fn uploads(&self, bytes: u64) -> Result<(), Over> {
        let mut account = self.account();
        account.used.upload_bytes = account.used.upload_bytes.saturating_add(bytes);
        account.unsaved = true;
        match self.terms.max_upload_bytes {
            Some(most) if account.used.upload_bytes > most => {
                Err(Over::Upload { name: self.name.clone(), bytes: most })
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn set_revoked(&self, at: u64) {
        self.change(|used| used.revoked = used.revoked.or(Some(at)));
    }

    pub(crate) fn set_dropped(&self) {
        self.change(|used| used.dropped = true);
    }

    fn change(&self, change: impl FnOnce(&mut Used)) {
        let mut account = self.account();
        change(&mut account.used);
        account.unsaved = true;
    }

    /// Writes the account down. On error it is written later.
    pub(crate) fn save(&self) -> Result<(), String> {
        // Without a book the process is ending.
        self.book.upgrade().map_or(Ok(()), |book| book.save(self))
    }

    /// The account for the file, which counts as written from now on.
    pub(crate) fn take_unsaved(&self) -> Used {
        let mut account = self.account();
        account.unsaved = false;
        account.used
    }

    pub(crate) fn put_back_unsaved(&self) {
        self.account().unsaved = true;
    }

    pub(crate) fn is_unsaved(&self) -> bool {
        self.account().unsaved
    }
}

impl Spent {
    /// The identity of the ticket's holder.
    #[must_use]
    pub fn holder(&self) -> &Arc<str> {
        &self.ticket.id
    }

    /// This use as the next process will know it.
    #[must_use]
    pub fn before(&self) -> SpentBefore {
        SpentBefore { since: self.since, limit: self.limit, reserved: self.reserved }
    }

    /// The longest time that the ticket allows for this build, if that is less than `wall`.
    #[must_use]
    pub fn limit_below(&self, wall: Option<Duration>) -> Option<Duration> {
        self.limit.filter(|limit| wall.is_none_or(|wall| *limit < wall))
    }

    /// The failure that is to be reported if the build ended at [`Spent::limit_below`].
    #[must_use]
    pub fn over(&self) -> Over {
        let seconds = self.ticket.terms.max_build_seconds.unwrap_or_default();
        Over::Time { name: self.ticket.name.clone(), seconds }
    }

    /// The build ended at its time limit. The clock of the sandbox started a moment after this one, or before: without this,
    /// what is left could be enough for another build, and another.
    pub fn take_all(&mut self) {
        self.all = true;
    }

    /// The processor time of the build, which counts for the account and has no limit.
    pub fn took(&self, cpu: Duration) {
        let cpu = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
        self.ticket.change(|used| used.cpu_millis = used.cpu_millis.saturating_add(cpu));
    }

    /// The build failed because of the box: neither the use nor the time counts.
    pub fn give_back(&mut self) {
        self.back = true;
    }
}

impl Drop for Spent {
    fn drop(&mut self) {
        let mut account = self.ticket.account();
        account.running -= 1;
        account.reserved -= self.reserved;
        if self.back {
            account.used.uses = account.used.uses.saturating_sub(1);
        } else {
            let least = if self.all { self.reserved } else { Duration::ZERO };
            let took = u64::try_from(self.since.elapsed().max(least).as_millis()).unwrap_or(u64::MAX);
            account.used.build_millis = account.used.build_millis.saturating_add(took);
        }
        account.unsaved = true;
    }
}

/// Without the secret.
impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Ticket {}
