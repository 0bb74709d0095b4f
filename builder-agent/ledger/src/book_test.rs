use super::*;
use crate::Resource;

const BOUNDS: Bounds = Bounds { principals: 3, rows: 6, part_rows: 6, names: 2, months: 13 };

fn who(name: &str) -> Account {
    Account { member: name.into(), part: None }
}

fn tag(member: &str, name: &str) -> Account {
    Account { member: member.into(), part: Some(Part::new(Kind::Tag, name)) }
}

fn day(text: &str) -> Day {
    text.parse().expect("a day")
}

fn builds(count: u64) -> Amounts {
    Amounts::from_iter([(Resource::Builds, count)])
}

fn charge(book: &mut Book, name: &str, on: &str, count: u64) {
    book.charge(&who(name), day(on), &builds(count));
}

fn names(book: &Book) -> Vec<String> {
    let mut names: Vec<String> = book.of.keys().map(ToString::to_string).collect();
    names.sort();
    names
}

#[test]
fn sums_end_at_the_borders_of_days_and_months() {
    let mut book = Book::new(Bounds::default());
    for on in ["2026-10-31", "2026-11-01", "2026-11-30", "2026-11-30", "2026-12-01"] {
        charge(&mut book, "alice", on, 1);
    }
    charge(&mut book, "bob", "2026-11-02", 5);
    let sums = |who: Option<&str>, by, within: Option<&str>| -> Vec<(String, String, u64)> {
        let within = within.map(|text| Month::parse(text).expect("a month"));
        let whose = who.map_or_else(|| book.members(), |who| vec![who.into()]);
        let sums: BTreeMap<_, _> = whose.iter().flat_map(|who| book.sums(who, None, by, within)).collect();
        let sums = sums.into_iter();
        sums.map(|((who, day), sum)| (who.member.to_string(), day.to_string(), sum.get(Resource::Builds)))
            .collect()
    };
    let row = |name: &str, day: &str, count| (name.to_owned(), day.to_owned(), count);
    let months = [("2026-10-01", 1), ("2026-11-01", 3), ("2026-12-01", 1)];
    assert_eq!(sums(Some("alice"), By::Month, None), months.map(|(day, count)| row("alice", day, count)));
    let days = [("2026-11-01", 1), ("2026-11-30", 2)];
    assert_eq!(
        sums(Some("alice"), By::Day, Some("2026-11")),
        days.map(|(day, count)| row("alice", day, count))
    );
    let all = [row("alice", "2026-11-01", 3), row("bob", "2026-11-01", 5)];
    assert_eq!(sums(None, By::Month, Some("2026-11")), all);
    assert_eq!(sums(Some("carol"), By::Day, None), []);
    assert_eq!(book.in_month("alice", Month::parse("2026-11").expect("a month")), builds(3));
}

#[test]
fn thirteen_months_are_kept() {
    let mut book = Book::new(Bounds::default());
    for on in ["2025-10-31", "2025-11-01", "2026-11-28"] {
        charge(&mut book, "alice", on, 1);
    }
    charge(&mut book, "bob", "2025-10-31", 1);
    book.roll(day("2026-11-30"));
    assert_eq!((names(&book), book.rows), (vec!["alice".to_owned()], 2));
    let changes = book.take_changes();
    assert_eq!((changes.before, changes.rows.len()), (Some(day("2025-11-01")), 2));
    // In the next month, November of the year before is too old.
    book.roll(day("2026-12-01"));
    assert_eq!(book.rows, 1);
}

#[test]
fn one_principal_too_many_takes_the_place_of_who_used_nothing_for_longest() {
    let mut book = Book::new(BOUNDS);
    for (name, on) in
        [("alice", "2026-11-01"), ("bob", "2026-11-02"), ("carol", "2026-11-03"), ("alice", "2026-11-04")]
    {
        charge(&mut book, name, on, 1);
    }
    charge(&mut book, "dave", "2026-11-04", 1);
    assert_eq!((names(&book), book.rows), (vec!["alice".into(), "carol".into(), "dave".into()], 4));
    assert_eq!(book.take_changes().gone, ["bob".into()]);
}

#[test]
fn one_day_too_many_takes_the_place_of_the_oldest_day_of_all() {
    let mut book = Book::new(BOUNDS);
    for on in ["2026-11-01", "2026-11-02", "2026-11-03"] {
        charge(&mut book, "alice", on, 1);
        charge(&mut book, "bob", on, 1);
    }
    charge(&mut book, "alice", "2026-11-04", 1);
    assert_eq!(book.rows, 5, "both lost the first day");
    assert_eq!(book.take_changes().before, Some(day("2026-11-02")));
}

#[test]
fn changes_that_could_not_be_written_are_written_the_next_time() {
    let mut book = Book::new(BOUNDS);
    charge(&mut book, "alice", "2026-11-01", 1);
    let failed = book.take_changes();
    charge(&mut book, "alice", "2026-11-01", 2);
    book.put_back(failed);
    let changes = book.take_changes();
    assert_eq!(changes.rows, [(who("alice"), day("2026-11-01"), builds(3))], "as it is now");
    assert!(book.take_changes().is_empty());
}

#[test]
fn what_changes_no_row_is_not_written_again() {
    let mut book = Book::default();
    let open = |most| Amounts::from_iter([(Resource::ConnectionsPeak, most)]);
    let (alice, laptop) =
        (who("alice"), Account { member: "alice".into(), part: Some(Part::new(Kind::Key, "k")) });
    let mut written = |on: &str, most| {
        book.charge(&alice, day(on), &open(most));
        book.charge(&laptop, day(on), &open(most));
        book.take_changes().rows.len()
    };
    assert_eq!(written("2026-11-01", 2), 2);
    assert_eq!((written("2026-11-01", 2), written("2026-11-01", 1)), (0, 0));
    assert_eq!((written("2026-11-01", 3), written("2026-11-02", 2)), (2, 2));
}

#[test]
fn rows_that_are_loaded_late_add_to_what_was_charged_meanwhile() {
    let mut book = Book::new(BOUNDS);
    charge(&mut book, "alice", "2026-11-02", 1);
    let row = |name: &str, on: &str, count| (who(name), day(on), builds(count));
    book.load(vec![row("alice", "2026-11-02", 10), row("bob", "2026-11-01", 4)]);
    let changes = book.take_changes();
    assert_eq!(changes.rows, [row("alice", "2026-11-02", 11)], "what the file has is not written again");
    assert_eq!(book.rows, 2);
}

#[test]
fn of_too_many_loaded_principals_the_idlest_are_left_out() {
    let mut book = Book::new(BOUNDS);
    let rows = [
        ("a", "2026-11-05"),
        ("b", "2026-11-04"),
        ("c", "2026-11-03"),
        ("d", "2026-11-02"),
        ("e", "2026-11-01"),
    ];
    book.load(rows.map(|(name, on)| (who(name), day(on), builds(1))).into());
    assert_eq!(names(&book), ["a", "b", "c"]);
}

fn charge_tag(book: &mut Book, member: &str, name: &str, on: &str) {
    charge(book, member, on, 1);
    book.charge(&tag(member, name), day(on), &builds(1));
}

/// The tags of this member, with what each counts in all months.
fn tags(book: &Book, member: &str) -> Vec<(String, u64)> {
    let mut sums = BTreeMap::<String, u64>::new();
    for ((account, _), sum) in book.sums(member, Some(Kind::Tag), By::Month, None) {
        *sums.entry(account.part.expect("a part").name.to_string()).or_default() += sum.get(Resource::Builds);
    }
    sums.into_iter().collect()
}

fn pairs(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
    pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn a_part_is_counted_beside_its_member_and_not_again_in_the_sum() {
    let mut book = Book::new(Bounds::default());
    charge_tag(&mut book, "alice", "ci", "2026-11-01");
    charge_tag(&mut book, "alice", "ci", "2026-11-02");
    charge_tag(&mut book, "bob", "ci", "2026-11-02");
    assert_eq!(tags(&book, "alice"), pairs(&[("ci", 2)]));
    assert_eq!(book.in_month("alice", Month::parse("2026-11").expect("a month")), builds(2));
    assert_eq!(book.sums("alice", Some(Kind::Key), By::Day, None).len(), 0);
    assert_eq!((book.rows, book.part_rows), (3, 3));
}

#[test]
fn of_too_many_tags_in_a_month_the_rest_counts_together() {
    let mut book = Book::new(Bounds { names: 2, ..Bounds::default() });
    for name in ["a", "b", "c", "d", "a", "c"] {
        charge_tag(&mut book, "alice", name, "2026-11-01");
    }
    assert_eq!(tags(&book, "alice"), pairs(&[(OTHER, 3), ("a", 2), ("b", 1)]));
    // Another kind, another member and another month have their own.
    book.charge(
        &Account { part: Some(Part::new(Kind::Key, "c")), ..who("alice") },
        day("2026-11-01"),
        &builds(1),
    );
    charge_tag(&mut book, "bob", "c", "2026-11-01");
    charge_tag(&mut book, "alice", "c", "2026-12-01");
    assert_eq!(tags(&book, "bob"), pairs(&[("c", 1)]));
    assert_eq!(book.sums("alice", Some(Kind::Key), By::Day, None).len(), 1);
    assert_eq!(tags(&book, "alice"), pairs(&[(OTHER, 3), ("a", 2), ("b", 1), ("c", 1)]));
    // What the file has counts too.
    let mut again = Book::new(Bounds { names: 2, ..Bounds::default() });
    let (rows, parts): (Vec<Row>, Vec<Row>) =
        book.take_changes().rows.into_iter().partition(|(account, _, _)| account.part.is_none());
    again.load(rows);
    again.load(parts);
    charge_tag(&mut again, "alice", "e", "2026-12-01");
    charge_tag(&mut again, "alice", "f", "2026-12-01");
    assert_eq!(tags(&again, "alice"), pairs(&[(OTHER, 4), ("a", 2), ("b", 1), ("c", 1), ("e", 1)]));
}

#[test]
fn one_part_too_many_costs_the_member_with_the_most_of_them_and_nobody_else() {
    let mut book = Book::new(Bounds { part_rows: 4, ..Bounds::default() });
    charge_tag(&mut book, "alice", "old", "2026-11-01");
    for on in ["2026-11-02", "2026-11-03", "2026-11-04"] {
        charge_tag(&mut book, "bob", "ci", on);
    }
    let written = book.take_changes();
    assert_eq!(written.rows.len(), 8);
    charge_tag(&mut book, "bob", "more", "2026-11-04");
    assert_eq!((book.part_rows, book.rows), (4, 4), "members lose nothing");
    assert_eq!(tags(&book, "alice"), pairs(&[("old", 1)]));
    assert_eq!(tags(&book, "bob"), pairs(&[("ci", 2), ("more", 1)]));
    let changes = book.take_changes();
    assert_eq!(changes.parts_before, HashMap::from([("bob".into(), day("2026-11-03"))]));
    book.put_back(changes);
    assert_eq!(book.take_changes().parts_before.len(), 1);
}

#[test]
fn parts_are_forgotten_with_their_member_and_with_their_day() {
    let mut book = Book::new(BOUNDS);
    charge_tag(&mut book, "alice", "ci", "2026-10-31");
    charge_tag(&mut book, "alice", "ci", "2026-11-01");
    book.roll(day("2027-11-30"));
    assert_eq!((book.rows, book.part_rows), (1, 1));
    for name in ["bob", "carol", "dave"] {
        charge_tag(&mut book, name, "ci", "2026-11-02");
    }
    assert_eq!((names(&book), book.part_rows), (vec!["bob".into(), "carol".into(), "dave".into()], 3));
}

#[test]
fn a_part_in_the_file_without_its_member_is_left_out() {
    let mut book = Book::new(BOUNDS);
    book.load(vec![(who("alice"), day("2026-11-01"), builds(1))]);
    book.load(vec![
        (tag("bob", "ci"), day("2026-11-02"), builds(1)),
        (tag("alice", "ci"), day("2026-11-02"), builds(1)),
        (tag("alice", "ci"), day("2026-11-01"), builds(1)),
    ]);
    assert_eq!((names(&book), book.part_rows), (vec!["alice".into()], 1));
}
