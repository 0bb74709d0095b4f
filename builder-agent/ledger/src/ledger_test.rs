//! A ledger with its file: starts, kills, damage.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::*;

/// 2026-11-30T23:59:00Z.
const LATE: u64 = 1_796_083_140;

/// Names the file of the child process of the test about kills.
const CHILD: &str = "LEDGER_TEST_CHILD";

/// A ledger whose clock the test sets.
struct Set {
    dir: tempfile::TempDir,
    time: Arc<AtomicU64>,
}

impl Set {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
        Self { dir, time: Arc::new(AtomicU64::new(LATE)) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ledger.sqlite")
    }

    fn settings(&self) -> Settings {
        let time = self.time.clone();
        let clock: Clock = Arc::new(move || time.load(Ordering::SeqCst));
        Settings { clock, ..Settings::new(self.path(), true) }
    }

    fn open(&self) -> Ledger {
        Ledger::open(self.settings())
    }
}

impl Ledger {
    fn write_now(&self) {
        self.keeper.as_ref().expect("a file").write();
    }

    fn builds(&self, name: &str, month: &str) -> u64 {
        let month = Month::parse(month).expect("a month");
        self.state.with_book(|book| book.in_month(name, month)).get(Resource::Builds)
    }
}

fn alice() -> Principal {
    Principal::member("alice")
}

fn count(path: &Path, sql: &str) -> i64 {
    let file = rusqlite::Connection::open(path).expect("the file");
    file.query_row(sql, [], |row| row.get(0)).expect("a number")
}

#[test]
fn a_restart_keeps_all_and_midnight_begins_a_day_and_a_month() {
    let set = Set::new();
    let ledger = set.open();
    ledger.charge(&alice(), [(Resource::Builds, 1), (Resource::CpuSeconds, 1500)]);
    set.time.fetch_add(60, Ordering::SeqCst);
    ledger.charge(&alice(), [(Resource::Builds, 2)]);
    assert_eq!(ledger.used_this_month(&alice()).get(Resource::Builds), 2, "the limit of a month begins anew");
    let before = ledger.usage(None, None, By::Day, None);
    assert_eq!(before.len(), 2);
    ledger.close();
    drop(ledger);
    let again = set.open();
    assert_eq!(again.usage(None, None, By::Day, None), before);
    assert_eq!((again.builds("alice", "2026-11"), again.builds("alice", "2026-12")), (1, 2));
}

#[test]
fn the_bytes_of_an_open_connection_are_seen_and_each_is_charged_once() {
    let set = Set::new();
    let ledger = set.open();
    let traffic = Arc::new(Traffic::default());
    traffic.came(5);
    let meter = ledger.meter(alice(), traffic.clone());
    let bytes = |ledger: &Ledger| {
        let sums = ledger.usage(Some("alice"), None, By::Month, None);
        sums.values().next().map(|sum| (sum.get(Resource::BytesUp), sum.get(Resource::BytesDown)))
    };
    traffic.went(7);
    assert_eq!(bytes(&ledger), Some((5, 7)), "while the connection is open");
    assert_eq!(bytes(&ledger), Some((5, 7)));
    traffic.came(1);
    drop(meter);
    assert_eq!(bytes(&ledger), Some((6, 7)));
    ledger.close();
    drop(ledger);
    assert_eq!(bytes(&set.open()), Some((6, 7)));
}

#[test]
fn kill_9_between_and_during_writes_loses_nothing_that_was_written() {
    if let Some(path) = std::env::var_os(CHILD) {
        charge_until_killed(Ledger::open(Settings::new(path.into(), true)));
    }
    let set = Set::new();
    let mut total = 0;
    for round in 0..8u64 {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "ledger_test::kill_9_between_and_during_writes_loses_nothing_that_was_written"])
            .args(["--nocapture"])
            .env(CHILD, set.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut written = None;
        // Another instant in each round.
        for line in lines.by_ref().map_while(Result::ok) {
            written = line.strip_prefix("written ").and_then(|n| n.parse::<u64>().ok()).or(written);
            if written.is_some_and(|written| written >= total + 3 + 5 * round) {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(137 * round));
        child.kill().expect("killed");
        child.wait().expect("waited");
        let last =
            lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("written ")?.parse().ok()).last();
        let written = last.or(written).expect("the child has written something");
        let ledger = set.open();
        let used = ledger.usage(None, None, By::Month, None);
        let sum = |resource| used.values().map(|sum| sum.get(resource)).sum::<u64>();
        total = sum(Resource::Builds);
        assert!(total >= written, "{total} of {written}");
        assert!(total <= written + 1, "{total} of {written}: only one charge was made between two writes");
        assert_eq!(sum(Resource::LogBytes), 7 * total, "a write is whole");
        assert!(!set.dir.path().join("ledger.damaged").exists());
    }
}

fn charge_until_killed(ledger: Ledger) -> ! {
    loop {
        ledger.charge(&alice(), [(Resource::Builds, 1), (Resource::LogBytes, 7)]);
        ledger.write_now();
        let sums = ledger.usage(None, None, By::Month, None);
        println!("written {}", sums.values().map(|sum| sum.get(Resource::Builds)).sum::<u64>());
    }
}

#[test]
fn a_damaged_file_is_moved_aside_and_the_ledger_begins_anew() {
    for damage in [b"not a database, but long enough to be one".repeat(300), Vec::from(*b"SQLite format 3\0")]
    {
        let set = Set::new();
        std::fs::write(set.path(), &damage).expect("written");
        let ledger = set.open();
        assert_eq!(std::fs::read(set.dir.path().join("ledger.damaged")).expect("moved aside"), damage);
        ledger.charge(&alice(), [(Resource::Builds, 1)]);
        ledger.close();
        drop(ledger);
        assert_eq!(set.open().builds("alice", "2026-11"), 1);
    }
}

#[test]
fn a_file_with_damaged_pages_is_moved_aside() {
    let set = Set::new();
    let ledger = set.open();
    for member in 0..500 {
        ledger.charge(&Principal::member(&format!("member-{member}")), [(Resource::Builds, 1)]);
    }
    ledger.close();
    drop(ledger);
    let mut bytes = std::fs::read(set.path()).expect("the file");
    assert!(bytes.len() > 4 * 4096, "{}", bytes.len());
    bytes[8192..12288].fill(0xa5);
    std::fs::write(set.path(), bytes).expect("written");
    assert_eq!(set.open().usage(None, None, By::Month, None).len(), 0);
    assert!(set.dir.path().join("ledger.damaged").exists());
}

#[test]
fn the_file_of_a_newer_version_is_kept_aside() {
    let set = Set::new();
    set.open().close();
    let newer = rusqlite::Connection::open(set.path()).expect("the file");
    newer.pragma_update(None, "user_version", 3).expect("set");
    drop(newer);
    drop(set.open());
    assert_eq!(count(&set.dir.path().join("ledger.damaged"), "PRAGMA user_version"), 3);
    assert_eq!(count(&set.path(), "PRAGMA user_version"), 2);
}

#[test]
fn a_file_that_cannot_be_opened_at_first_gets_everything_later() {
    let set = Set::new();
    let folder = set.dir.path().join("later");
    let settings = Settings { path: folder.join("ledger.sqlite"), ..set.settings() };
    let ledger = Ledger::open(settings.clone());
    ledger.charge(&alice(), [(Resource::Builds, 1)]);
    ledger.write_now();
    assert_eq!(ledger.builds("alice", "2026-11"), 1, "in memory");
    std::fs::create_dir(folder).expect("a folder");
    ledger.write_now();
    drop(ledger);
    assert_eq!(Ledger::open(settings).builds("alice", "2026-11"), 1);
}

#[test]
fn the_file_forgets_what_the_memory_forgets() {
    let set = Set::new();
    let bounds = Bounds { principals: 4, rows: 8, part_rows: 6, months: 2, ..Bounds::default() };
    let ledger = Ledger::open(Settings { bounds, ..set.settings() });
    for day in 0..100 {
        let who = Principal::member(&format!("member-{}", day % 9));
        ledger.charge_tagged(&who, &[format!("{}", day % 3).into()], [(Resource::Builds, 1)]);
        ledger.write_now();
        set.time.fetch_add(24 * 3600, Ordering::SeqCst);
    }
    ledger.close();
    drop(ledger);
    assert_eq!(count(&set.path(), "SELECT count(DISTINCT member) FROM usage"), 4);
    assert_eq!(
        count(&set.path(), "SELECT count(*) FROM parts"),
        set.open().state.with_book(|book| book.part_count()) as i64
    );
    assert_eq!(count(&set.path(), "SELECT count(*) FROM parts WHERE day < '2027-02-01'"), 0);
    assert_eq!(count(&set.path(), "SELECT count(*) FROM usage WHERE day < '2027-02-01'"), 0);
}

#[test]
fn what_means_nothing_in_the_file_is_left_out_and_the_rest_is_read() {
    let set = Set::new();
    set.open().close();
    let file = rusqlite::Connection::open(set.path()).expect("the file");
    let row = |member: &str, day: &str, resource: &str, amount: i64| {
        let sql = "INSERT INTO usage VALUES (?1, ?2, ?3, ?4)";
        file.execute(sql, rusqlite::params![member, day, resource, amount]).expect("written");
    };
    row("alice", "2026-11-30", "builds", 3);
    row("alice", "2026-11-30", "homes", 1);
    row("alice", "2026-11-31", "builds", 1);
    row("alice", "2026-11-29", "builds", -1);
    row(&"x".repeat(1000), "2026-11-30", "builds", 1);
    drop(file);
    let ledger = set.open();
    let sums = ledger.usage(None, None, By::Day, None);
    assert_eq!((sums.len(), ledger.builds("alice", "2026-11")), (1, 3));
}

#[test]
fn a_restart_keeps_what_was_used_with_each_key_and_ticket_and_for_each_tag() {
    let set = Set::new();
    let ledger = set.open();
    let (key, ticket) = (alice().with_key("SHA256:abc"), alice().with_ticket("ticket:0123"));
    ledger.charge_tagged(&key, &["ci".into(), "ci".into(), "x/y".into()], [(Resource::Builds, 1)]);
    ledger.charge(&ticket, [(Resource::Builds, 10)]);
    ledger.charge(&alice(), [(Resource::Builds, 100)]);
    let of = |ledger: &Ledger, per| {
        let sums = ledger.usage(Some("alice"), per, By::Month, None);
        let name = |account: Account| account.part.map_or(String::new(), |part| part.name.to_string());
        let sums = sums.into_iter().map(|((account, _), sum)| (name(account), sum.get(Resource::Builds)));
        sums.collect::<Vec<_>>()
    };
    let check = |ledger: &Ledger| {
        assert_eq!(of(ledger, None), [(String::new(), 111)]);
        assert_eq!(of(ledger, Some(Kind::Key)), [("SHA256:abc".to_owned(), 1)]);
        assert_eq!(of(ledger, Some(Kind::Ticket)), [("ticket:0123".to_owned(), 10)]);
        assert_eq!(of(ledger, Some(Kind::Tag)), [("ci".to_owned(), 1), ("x/y".to_owned(), 1)]);
    };
    check(&ledger);
    ledger.close();
    drop(ledger);
    check(&set.open());
}

#[test]
fn what_is_open_is_counted_with_the_most_at_one_moment_for_the_member_and_for_the_key() {
    let set = Set::new();
    let ledger = set.open();
    let (laptop, phone) = (alice().with_key("laptop"), alice().with_key("phone"));
    let (one, two) = (ledger.counter(&laptop), ledger.counter(&phone));
    let requests = [one.open(Open::Request), one.open(Open::Request), two.open(Open::Request)];
    let of = |ledger: &Ledger, per| {
        let sums = ledger.usage(Some("alice"), per, By::Day, None).into_values();
        let sums = sums.map(|sum| (sum.get(Resource::Requests), sum.get(Resource::RequestsPeak)));
        sums.collect::<Vec<_>>()
    };
    assert_eq!(of(&ledger, None), [(3, 3)]);
    drop(requests);
    drop(two.open(Open::Request));
    // What nobody has looked at is not lost when the last counter ends.
    drop((one, two));
    assert_eq!(of(&ledger, None), [(4, 3)]);
    assert_eq!(of(&ledger, Some(Kind::Key)), [(2, 2), (2, 1)]);
    // What is open at midnight is open on the next day, too, and was opened on the one before.
    let _open = ledger.counter(&laptop).open(Open::Connection);
    ledger.write_now();
    set.time.fetch_add(60, Ordering::SeqCst);
    let _again = ledger.counter(&laptop).open(Open::Connection);
    let sums = ledger.usage(Some("alice"), None, By::Day, None).into_values();
    let sums = sums.map(|sum| (sum.get(Resource::Connections), sum.get(Resource::ConnectionsPeak)));
    assert_eq!(sums.collect::<Vec<_>>(), [(1, 1), (1, 2)]);
    ledger.close();
    drop(ledger);
    assert_eq!(of(&set.open(), None), [(4, 3), (0, 0)]);
}

/// The builds, and the bytes of log, in `fixtures/version-1.sqlite`. The last version without parts wrote it, and was killed;
/// the last two writes are in its log.
const VERSION_1: (u64, u64) = (2002, 14_014);

#[test]
fn the_file_of_the_version_without_parts_keeps_its_amounts_and_gets_parts() {
    let set = Set::new();
    for (ending, bytes) in [
        ("", &include_bytes!("../fixtures/version-1.sqlite")[..]),
        ("-wal", include_bytes!("../fixtures/version-1.sqlite-wal")),
    ] {
        std::fs::write(format!("{}{ending}", set.path().display()), bytes).expect("written");
    }
    let ledger = set.open();
    let used = ledger.usage(Some("alice"), None, By::Month, None);
    let used: Vec<(u64, u64)> =
        used.values().map(|sum| (sum.get(Resource::Builds), sum.get(Resource::LogBytes))).collect();
    assert_eq!(used, [VERSION_1]);
    ledger.charge(&alice().with_key("laptop"), [(Resource::Builds, 1)]);
    ledger.close();
    drop(ledger);
    assert_eq!(count(&set.path(), "PRAGMA user_version"), 2);
    assert!(!set.dir.path().join("ledger.damaged").exists());
    let ledger = set.open();
    assert_eq!(ledger.usage(Some("alice"), Some(Kind::Key), By::Month, None).len(), 1);
    let builds = ledger.usage(Some("alice"), None, By::Month, None);
    assert_eq!(builds.values().map(|sum| sum.get(Resource::Builds)).sum::<u64>(), VERSION_1.0 + 1);
}
