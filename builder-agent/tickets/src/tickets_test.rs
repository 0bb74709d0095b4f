use std::time::Duration;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn terms() -> Terms {
    Terms {
        expires: date::now() + 3600,
        uses: Some(2),
        max_build_seconds: None,
        max_upload_bytes: None,
        max_jobs: None,
        scope: Scope::Build,
        bind_key: None,
    }
}

fn new(name: &str, terms: Terms) -> New {
    New { name: name.to_owned(), maker: "alice".into(), terms, revealable: false, most: 3 }
}

fn made(tickets: &Tickets, terms: Terms) -> (Arc<Ticket>, String) {
    tickets.make(new("friend", terms)).expect("made")
}

/// Moves the end of a ticket into the past, as time does. The copy takes the place of the ticket.
fn age(tickets: &Tickets, ticket: &Ticket, seconds: u64) {
    let mut old = record(ticket, ticket.used());
    old.terms.expires = date::now() - seconds;
    let old = of_record(old, &Arc::downgrade(&tickets.book)).expect("a ticket");
    let mut all = tickets.book.lock();
    all.remove(&ticket.id);
    all.add(old);
}

#[test]
fn a_use_is_spent_when_a_build_starts_and_comes_back_only_if_the_box_was_at_fault() {
    let tickets = Tickets::in_memory();
    let (ticket, _) = made(&tickets, terms());
    let mut first = ticket.spend(HOUR).expect("a use");
    drop(ticket.spend(HOUR).expect("another"));
    let over = ticket.spend(HOUR).expect_err("there are two");
    assert!(over.to_string().contains("was for 2 builds (`--uses`)"), "{over}");
    first.give_back();
    drop(first);
    assert_eq!((ticket.used().uses, ticket.over()), (1, None));
    drop(ticket.spend(HOUR).expect("the use that came back"));
    assert!(ticket.over().is_some());
}

#[test]
fn a_build_that_goes_on_under_another_process_keeps_its_use_and_its_time() {
    let tickets = Tickets::in_memory();
    let (ticket, _) = made(&tickets, Terms { uses: Some(1), max_build_seconds: Some(60), ..terms() });
    let running = ticket.spend(HOUR).expect("time");
    let (before, used) = (running.before(), ticket.used());
    // The next process has the account from the file, where the use is spent.
    std::mem::forget(running);
    let after = Tickets::in_memory();
    let again = of_record(record(&ticket, used), &Arc::downgrade(&after.book)).expect("a ticket");
    after.book.lock().add(again.clone());
    let mut running = again.spent_before(before);
    assert_eq!(running.limit_below(Some(HOUR)), Some(Duration::from_secs(60)));
    assert!(again.over().is_some());
    running.give_back();
    drop(running);
    assert_eq!((again.used().uses, again.over()), (0, None));
}

#[test]
fn builds_that_run_at_once_cannot_take_more_time_than_the_ticket_has() {
    let tickets = Tickets::in_memory();
    let (one, _) = made(&tickets, Terms { uses: None, max_build_seconds: Some(60), ..terms() });
    assert_eq!(one.terms.jobs(), Some(1));
    let running = one.spend(HOUR).expect("time");
    assert_eq!(running.limit_below(Some(HOUR)), Some(Duration::from_secs(60)));
    assert!(matches!(one.spend(HOUR), Err(NotSpent::Over(Over::Time { seconds: 60, .. }))));
    drop(running);
    assert!(one.over().is_none(), "the time that was not taken is free again");

    let wide = Terms { uses: None, max_build_seconds: Some(60), max_jobs: Some(3), ..terms() };
    let (three, _) = tickets.make(new("wide", wide)).expect("made");
    let limit = |spent: &Spent| spent.limit_below(None).expect("a limit").as_secs();
    let runs: Vec<Spent> = (0..3).map(|_| three.spend(HOUR).expect("a part")).collect();
    assert_eq!(runs.iter().map(limit).collect::<Vec<_>>(), [20, 20, 20]);
    // A build with a smaller limit of its own reserves no more than that.
    drop(runs);
    let short = three.spend(Duration::from_secs(6)).expect("a part");
    assert_eq!(short.limit_below(Some(Duration::from_secs(6))), None);
    assert!(limit(&three.spend(HOUR).expect("a part")) >= 26);
}

#[test]
fn bytes_are_counted_up_to_the_limit_and_what_is_for_reading_builds_nothing() {
    let tickets = Tickets::in_memory();
    let (ticket, _) = made(&tickets, Terms { max_upload_bytes: Some(100), scope: Scope::Read, ..terms() });
    assert!(ticket.uploads(60).is_ok() && ticket.uploads(40).is_ok());
    assert!(ticket.uploads(1).is_err_and(|over| over.to_string().contains("100 bytes from its holder")));
    assert!(matches!(ticket.over(), Some(Over::Scope { .. })));
}

#[test]
fn only_the_token_finds_a_ticket_and_only_a_revealable_one_keeps_it() {
    let tickets = Tickets::in_memory();
    let (ticket, token) = made(&tickets, terms());
    assert_eq!(tickets.by_token(&token), Some(ticket.clone()));
    assert_eq!(tickets.by_token(&token.replace("ticket", "tickets")), None);
    assert_eq!(ticket.token(), None);
    let text = serde_json::to_string(&record(&ticket, ticket.used())).expect("JSON");
    assert!(!text.contains(&token[PREFIX.len() + 20..]) && !format!("{ticket:?}").contains("hash"), "{text}");
    let (kept, token) = tickets.make(New { revealable: true, ..new("kept", terms()) }).expect("made");
    assert_eq!(kept.token(), Some(&*token));
}

#[test]
fn the_number_of_tickets_of_a_member_is_bounded_also_by_what_ended_ones_still_own() {
    let tickets = Tickets::in_memory();
    let (first, _) = made(&tickets, terms());
    assert!(matches!(tickets.make(new("friend", terms())), Err(NotMade::Name(_))));
    tickets.make(new("second", terms())).expect("made");
    tickets.make(new("third", terms())).expect("made");
    assert!(matches!(tickets.make(new("fourth", terms())), Err(NotMade::TooMany { most: 3 })));
    tickets.make(New { maker: "bob".into(), ..new("friend", terms()) }).expect("another member's");
    // A revoked one counts until its holder's data is deleted. Then its name is free, too.
    tickets.revoke(&first).expect("revoked");
    assert!(matches!(tickets.make(new("friend", terms())), Err(NotMade::TooMany { .. })));
    assert_eq!(tickets.gone(), std::slice::from_ref(&first.id));
    tickets.dropped(&first.id).expect("dropped");
    for _ in 0..20 {
        let (again, _) = made(&tickets, terms());
        tickets.revoke(&again).expect("revoked");
        tickets.dropped(&again.id).expect("dropped");
    }
    let of_alice = tickets.list(|ticket| &*ticket.maker == "alice").len();
    assert!(of_alice <= 6, "{of_alice} are remembered");
}

#[test]
fn ended_tickets_are_listed_for_a_week() {
    let tickets = Tickets::in_memory();
    let (ticket, token) = made(&tickets, terms());
    age(&tickets, &ticket, 1);
    tickets.flush().expect("flushed");
    let ended = tickets.by_token(&token).expect("still known");
    assert_eq!((ended.state(), tickets.live().len()), (State::Expired, 0));
    tickets.dropped(&ended.id).expect("dropped");
    age(&tickets, &ended, KEPT + 1);
    tickets.flush().expect("flushed");
    assert_eq!(tickets.by_token(&token), None);
}

#[test]
fn a_key_is_bound_as_long_as_a_live_ticket_names_it() {
    let tickets = Tickets::in_memory();
    let (ticket, _) = made(&tickets, Terms { bind_key: Some("ssh-ed25519 AAAA".into()), ..terms() });
    assert!(tickets.is_bound("ssh-ed25519 AAAA") && !tickets.is_bound("ssh-ed25519 AAAB"));
    tickets.revoke(&ticket).expect("revoked");
    assert!(!tickets.is_bound("ssh-ed25519 AAAA"));
}

#[test]
fn a_file_that_another_agent_has_open_is_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tickets.sqlite");
    let first = Tickets::open(&path, false);
    let (_, token) = made(&first, terms());
    let second = Tickets::open(&path, false);
    assert!(second.by_token(&token).is_none() && !path.with_extension("damaged").exists());
    drop((first, second));
    assert!(Tickets::open(&path, false).by_token(&token).is_some());
}

/// The tickets in this file, as after `kill -9`: another process opens a copy, since the file belongs to the one that runs.
fn after_a_crash(path: &Path, copy: &Path) -> Tickets {
    for ending in ["", "-wal"] {
        let named = |path: &Path| format!("{}{ending}", path.display());
        std::fs::copy(named(path), named(copy)).expect("copied");
    }
    Tickets::open(copy, false)
}

#[test]
fn a_use_that_was_spent_and_a_revocation_are_there_after_kill_9() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tickets.sqlite");
    let tickets = Tickets::open(&path, false);
    let (ticket, token) = made(&tickets, terms());
    let (gone, second) = tickets.make(new("gone", terms())).expect("made");
    let _running = ticket.spend(HOUR).expect("a use");
    tickets.revoke(&gone).expect("revoked");
    let again = after_a_crash(&path, &dir.path().join("first.sqlite"));
    let found = again.by_token(&token).expect("kept");
    assert_eq!((found.used().uses, found.state(), &found.terms), (1, State::Live, &ticket.terms));
    assert_eq!(again.by_token(&second).expect("kept").state(), State::Revoked);

    ticket.uploads(5).expect("no limit");
    tickets.flush().expect("flushed");
    let again = after_a_crash(&path, &dir.path().join("second.sqlite"));
    assert_eq!(again.by_token(&token).expect("kept").used().upload_bytes, 5);
}

#[test]
fn only_the_agent_reads_the_file_and_a_damaged_one_gives_nobody_a_ticket() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tickets.sqlite");
    let (ticket, token) = made(&Tickets::open(&path, false), terms());
    for entry in std::fs::read_dir(dir.path()).expect("listed") {
        let mode = entry.expect("an entry").metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{mode:o}");
    }
    // A row that means nothing, and one with a field that this version does not know.
    let connection = rusqlite::Connection::open(&path).expect("opened");
    let text = serde_json::to_string(&record(&ticket, ticket.used())).expect("JSON");
    let more = text.replacen('{', "{\"extra\":1,", 1).replace(&*ticket.id, "ticket:1");
    for (id, text) in [("ticket:0", "{}"), ("ticket:1", more.as_str())] {
        connection.execute("INSERT INTO ticket VALUES (?1, ?2)", [id, text]).expect("inserted");
    }
    drop(connection);
    let again = Tickets::open(&path, false);
    assert_eq!(again.list(|_| true).len(), 1);
    drop(again);
    std::fs::write(&path, "no database ".repeat(1000)).expect("written");
    let empty = Tickets::open(&path, false);
    assert!(empty.by_token(&token).is_none() && path.with_extension("damaged").exists());
    made(&empty, terms());
}
