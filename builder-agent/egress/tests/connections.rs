//! Connections: who opens them, how they end, and their limits.

mod common;

use common::*;
use egress::{End, Event, Limits, Policy, Protocol, Reason, Side, Verdict};

fn with(limits: Limits) -> Bench {
    Bench::new(Policy { limits, ..Policy::default() })
}

/// How the connections in these events ended.
fn ends(events: &[Event]) -> Vec<End> {
    let end = |event: &Event| match event {
        Event::Connection { end, .. } => Some(end.clone()),
        _ => None,
    };
    events.iter().filter_map(end).collect()
}

#[test]
fn a_connection_is_one_event_with_its_bytes_and_name() {
    for (peer, name) in [(PEER, "one.example.org"), (PEER6, "two.example.org")] {
        let mut bench = Bench::new(Policy::default());
        bench.resolve(name, peer);
        bench.connect(peer, 443);
        let request = segment(out(peer), (PORT, 443), "A", (101, 501), b"GET /");
        assert_eq!(bench.guest(&request), Verdict::Pass);
        let reply = segment(inward(peer), (443, PORT), "AF", (501, 106), &[7; 1000]);
        assert_eq!(bench.network(&reply), Verdict::Pass);
        bench.pass(2);
        let last = segment(out(peer), (PORT, 443), "AF", (106, 1502), &[]);
        assert_eq!(bench.guest(&last), Verdict::Pass);
        let Some(Event::Connection { protocol, name: told, address, port, up, down, millis, end }) =
            bench.events().pop()
        else {
            panic!("no event");
        };
        assert_eq!((protocol, told.as_deref(), address, port), (Protocol::Tcp, Some(name), ip(peer), 443));
        let header = if ip(peer).is_ipv4() { 54 } else { 74 };
        assert_eq!((up, down, millis, end), (4 * header + 5, 2 * header + 1000, 2000, End::Closed));
        // The acknowledgment of the last segment still passes, also when it is sent again; later it does not.
        let acknowledgment = segment(inward(peer), (443, PORT), "A", (1502, 107), &[]);
        assert_eq!(bench.network(&acknowledgment), Verdict::Pass);
        assert_eq!(bench.guest(&last), Verdict::Drop, "not two at once");
        bench.pass(1);
        assert_eq!(bench.guest(&last), Verdict::Pass);
        bench.pass(11);
        assert_eq!(bench.network(&acknowledgment), Verdict::Drop);
        assert_eq!(bench.events(), []);
    }
}

#[test]
fn a_reset_of_either_side_ends_a_connection_at_once() {
    for (by_guest, end) in [(true, End::ResetByGuest), (false, End::ResetByNetwork)] {
        let mut bench = Bench::new(Policy::default());
        bench.connect(PEER, 443);
        let verdict = match by_guest {
            true => bench.guest(&segment(out(PEER), (PORT, 443), "R", (101, 0), &[])),
            false => bench.network(&segment(inward(PEER), (443, PORT), "R", (501, 0), &[])),
        };
        assert_eq!(verdict, Verdict::Pass, "the other side must know");
        assert_eq!(ends(&bench.events()), [end]);
        let late = segment(inward(PEER), (443, PORT), "A", (501, 101), b"late");
        assert_eq!(bench.network(&late), Verdict::Drop);
    }
}

#[test]
fn a_refusal_by_the_peer_has_the_acknowledgment_that_the_guests_kernel_wants() {
    let mut bench = Bench::new(Policy::default());
    bench.guest(&syn(PEER, 81));
    // As passt sends it.
    assert_eq!(bench.network(&segment(inward(PEER), (81, PORT), "R", (777, 0), &[])), Verdict::Drop);
    assert_eq!(ends(&bench.events()), [End::ResetByNetwork]);
    let told: Vec<_> = bench.said(Side::Guest).iter().map(|frame| flags(frame)).collect();
    assert_eq!(told, [("AR".to_owned(), 0, 101)]);
    // As it should be.
    bench.guest(&syn(PEER, 81));
    assert_eq!(bench.network(&segment(inward(PEER), (81, PORT), "RA", (0, 101), &[])), Verdict::Pass);
    assert_eq!(bench.said(Side::Guest).len(), 0);
}

#[test]
fn a_segment_of_no_connection_is_answered_with_a_reset() {
    let mut bench = Bench::new(Policy::default());
    let stray = segment(out(PEER), (PORT, 443), "A", (5, 77), b"hello");
    assert_eq!(bench.guest(&stray), Verdict::Drop);
    let answers: Vec<_> = bench.said(Side::Guest).iter().map(|frame| flags(frame)).collect();
    assert_eq!(answers, [("R".to_owned(), 77, 0)]);
    // But never a reset.
    assert_eq!(bench.guest(&segment(out(PEER), (PORT, 443), "R", (5, 0), &[])), Verdict::Drop);
    assert_eq!(bench.said(Side::Guest).len(), 0);
}

#[test]
fn a_new_connection_from_the_same_port_replaces_the_old_one() {
    let mut bench = Bench::new(Policy::default());
    bench.connect(PEER, 443);
    assert_eq!(bench.guest(&syn(PEER, 443)), Verdict::Drop, "the same one, late");
    assert_eq!(bench.events(), []);
    let second = segment(out(PEER), (PORT, 443), "S", (9000, 0), &[]);
    assert_eq!(bench.guest(&second), Verdict::Drop);
    assert_eq!(ends(&bench.events()), [End::Replaced]);
    let told: Vec<_> = bench.said(Side::Network).iter().map(|frame| flags(frame)).collect();
    assert_eq!(
        told,
        [("AR".to_owned(), 101, 501)],
        "the network forgets the old one before it sees the new one"
    );
    assert_eq!(bench.guest(&second), Verdict::Pass, "sent again");
    assert_eq!(bench.guard.open_connections(), 1);
}

#[test]
fn until_the_network_answers_only_the_first_segment_passes() {
    let mut bench = Bench::new(Policy::default());
    let first = |sequence| segment(out(PEER), (PORT, 443), "S", (sequence, 0), &[]);
    assert_eq!(bench.guest(&first(100)), Verdict::Pass);
    assert_eq!(bench.guest(&first(100)), Verdict::Drop, "the host's kernel repeats its own");
    assert_eq!(bench.guest(&first(200)), Verdict::Drop);
    assert_eq!(bench.guest(&segment(out(PEER), (PORT, 443), "A", (101, 1), b"early")), Verdict::Drop);
    // The guest gives up, and tries the same ports again.
    assert_eq!(bench.guest(&segment(out(PEER), (PORT, 443), "R", (101, 0), &[])), Verdict::Drop);
    assert_eq!(ends(&bench.events()), [End::ResetByGuest]);
    assert_eq!(bench.guest(&first(300)), Verdict::Drop);
    assert_eq!(bench.said(Side::Network).len(), 0, "nothing followed the first segment");
    // Now the network answers the connection that was given up, and learns that it was.
    assert_eq!(bench.network(&segment(inward(PEER), (443, PORT), "SA", (500, 101), &[])), Verdict::Drop);
    let told: Vec<_> = bench.said(Side::Network).iter().map(|frame| flags(frame)).collect();
    assert_eq!(told, [("AR".to_owned(), 101, 501)]);
    assert_eq!(bench.guest(&first(300)), Verdict::Pass);
    // A limit is no reason to hurry either.
    bench.pass(131);
    assert_eq!(ends(&bench.events()), [End::Unanswered]);
    assert_eq!(bench.said(Side::Network).len(), 0);
    assert_eq!(bench.said(Side::Guest).len(), 1);
}

#[test]
fn silence_ends_a_connection_on_both_sides() {
    let mut bench = Bench::new(Policy::default());
    bench.connect(PEER, 443);
    bench.pass(590);
    assert_eq!(bench.guard.open_connections(), 1);
    bench.pass(20);
    assert_eq!(ends(&bench.events()), [End::Idle]);
    // The guest's kernel takes a reset only with the very number that it expects.
    let told: Vec<_> = bench.said(Side::Guest).iter().map(|frame| flags(frame)).collect();
    assert_eq!(told, [("AR".to_owned(), 501, 101)]);
    let told: Vec<_> = bench.said(Side::Network).iter().map(|frame| flags(frame)).collect();
    assert_eq!(told, [("AR".to_owned(), 101, 501)]);
    // No answer at all.
    assert_eq!(bench.guest(&syn("1.1.1.2", 443)), Verdict::Pass);
    bench.pass(131);
    assert_eq!(ends(&bench.events()), [End::Unanswered]);
    // UDP.
    assert_eq!(bench.guest(&datagram(out(PEER), (PORT, 443), b"quic")), Verdict::Pass);
    assert_eq!(bench.network(&datagram(inward(PEER), (443, PORT), b"quic")), Verdict::Pass);
    bench.pass(61);
    assert_eq!(ends(&bench.events()), [End::Idle]);
    assert_eq!(bench.network(&datagram(inward(PEER), (443, PORT), b"late")), Verdict::Drop);
    bench.pass(70);
    assert_eq!(bench.guard.next_tick(), None, "nothing is left that a clock ends");
}

#[test]
fn one_more_connection_than_the_limit_is_refused_with_its_value() {
    let mut bench = with(Limits { max_connections: 3, ..Limits::default() });
    for port in 0..3 {
        let frame = segment(out(PEER), (PORT + port, 443), "S", (1, 0), &[]);
        assert_eq!(bench.guest(&frame), Verdict::Pass);
    }
    let fourth = segment(out(PEER), (PORT + 3, 443), "S", (1, 0), &[]);
    assert_eq!(bench.guest(&fourth), Verdict::Drop);
    assert_eq!(bench.said(Side::Guest).iter().map(|frame| flags(frame).0).collect::<Vec<_>>(), ["AR"]);
    assert_eq!(bench.refusals(), ["3 connections are open (`network.max-connections`)"]);
    // One ends, and there is room.
    bench.network(&segment(inward(PEER), (443, PORT), "RA", (0, 2), &[]));
    assert_eq!(bench.guest(&fourth), Verdict::Pass);
}

#[test]
fn new_connections_beyond_the_pace_wait_instead_of_failing() {
    let mut bench = with(Limits { max_new_connections_per_second: 2, ..Limits::default() });
    let first = |port| segment(out(PEER), (port, 443), "S", (1, 0), &[]);
    let passed = (0..100).filter(|port| bench.guest(&first(PORT + port)) == Verdict::Pass).count();
    assert_eq!(passed, 10, "five seconds' worth at once");
    assert_eq!(bench.said(Side::Guest).len(), 0, "no reset: the guest's kernel sends the segment again");
    bench.pass(1);
    let passed = (0..100).filter(|port| bench.guest(&first(PORT + 200 + port)) == Verdict::Pass).count();
    assert_eq!(passed, 2);
    let text = "more than 2 new connections per second (`network.max-new-connections-per-second`)".to_owned();
    assert!(bench.refusals().contains(&text));
}

#[test]
fn all_connections_end_when_the_bytes_are_used_up() {
    let mut bench = with(Limits { max_bytes: 5000, ..Limits::default() });
    bench.connect(PEER, 443);
    bench.connect("1.1.1.2", 443);
    let data = segment(inward(PEER), (443, PORT), "A", (501, 101), &[1; 1400]);
    let passed = (0..10).filter(|_| bench.network(&data) == Verdict::Pass).count();
    assert_eq!(passed, 3);
    let reason = Reason::Bytes { limit: 5000 };
    assert_eq!(ends(&bench.events()), [End::Limit(reason.clone()), End::Limit(reason)]);
    assert_eq!(bench.said(Side::Guest).len(), 2);
    let told = bench.said(Side::Network);
    assert!(
        told.len() > 2 && told.iter().all(|frame| flags(frame).0 == "AR"),
        "both, and each late frame again"
    );
    // Nothing begins any more, and the guest is told so at once.
    assert_eq!(bench.guest(&segment(out(PEER), (1, 443), "S", (1, 0), &[])), Verdict::Drop);
    assert_eq!(bench.guest(&datagram(out(PEER), (PORT, 443), b"quic")), Verdict::Drop);
    assert_eq!(bench.guest(&datagram(out(DNS), (PORT, 53), &query(1, "example.org", 1))), Verdict::Drop);
    let answers = bench.said(Side::Guest);
    assert_eq!(flags(&answers[0]).0, "AR");
    assert_eq!(icmp(&answers[1]), (3, 13));
    assert_eq!(payload(&answers[2])[3] & 15, 3, "no such name");
    let text = "the guest has used its 5000 bytes of network (`network.max-mib`)".to_owned();
    assert_eq!(bench.refusals(), [text.clone(), text.clone(), text]);
}

#[test]
fn a_connection_lasts_no_longer_than_its_limit_however_busy_it_is() {
    let mut bench = with(Limits { max_seconds: 100, ..Limits::default() });
    bench.connect(PEER, 443);
    let data = segment(inward(PEER), (443, PORT), "A", (501, 101), b"drip");
    for _ in 0..99 {
        bench.pass(1);
        assert_eq!(bench.network(&data), Verdict::Pass);
    }
    bench.pass(1);
    assert_eq!(bench.network(&data), Verdict::Drop);
    assert_eq!(ends(&bench.events()), [End::Limit(Reason::Seconds { limit: 100 })]);
    assert_eq!(bench.said(Side::Guest).len(), 1);
}

#[test]
fn bytes_beyond_the_pace_make_both_sides_wait() {
    let mut bench = with(Limits { max_bytes_per_second: 100_000, ..Limits::default() });
    bench.connect(PEER, 443);
    let data = segment(inward(PEER), (443, PORT), "A", (501, 101), &[1; 1400]);
    let mut sent = 0;
    let began = bench.now;
    while bench.now < began + std::time::Duration::from_secs(10) {
        bench.now += bench.guard.wait(bench.now);
        assert_eq!(bench.network(&data), Verdict::Pass, "nothing is dropped for the pace");
        sent += data.len();
    }
    assert!((1_000_000..1_050_000).contains(&sent), "{sent}");
}

#[test]
fn the_total_is_the_last_event_and_counts_what_passed() {
    let mut bench = Bench::new(Policy::default());
    bench.connect(PEER, 443);
    bench.guest(&syn("10.0.0.1", 80));
    let events = bench.finish();
    assert_eq!(ends(&events), [End::Over]);
    let Some(Event::Total { up, down, connections, refused, dropped, lost }) = events.last() else {
        panic!("{events:?}");
    };
    assert_eq!((*up, *down, *connections, *refused, *lost), (108, 54, 1, 1, 0));
    assert_eq!(dropped.values().sum::<u64>(), 1);
}
