//! DNS: which queries and answers pass, and what the names are good for.

mod common;

use common::*;
use egress::{Dropped, Event, Limits, Policy, Side, Verdict};

const ASKER: u16 = 53535;

fn ask(message: &[u8]) -> Vec<u8> {
    datagram(out(DNS), (ASKER, 53), message)
}

fn reply(message: &[u8]) -> Vec<u8> {
    datagram(inward(DNS), (53, ASKER), message)
}

fn with_names(allow: &[&str], deny: &[&str]) -> Bench {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Bench::new(Policy { allow_names: list(allow), deny_names: list(deny), ..Policy::default() })
}

fn dropped(bench: &mut Bench, why: Dropped) -> u64 {
    match bench.finish().pop() {
        Some(Event::Total { dropped, .. }) => dropped.get(&why).copied().unwrap_or(0),
        other => panic!("{other:?}"),
    }
}

/// The name in the event of a connection to this address.
fn name_of(bench: &mut Bench, peer: &str) -> Option<String> {
    bench.connect(peer, 443);
    bench.guest(&segment(out(peer), (PORT, 443), "R", (101, 0), &[]));
    match bench.events().pop() {
        Some(Event::Connection { name, .. }) => name,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_passes_once_and_only_if_it_is_what_was_asked_for() {
    let mut bench = Bench::new(Policy::default());
    let asked = query(7, "Example.ORG", 1);
    let good = answer(&asked, &[("example.org", Data::Address(PEER), 60)]);
    assert_eq!(bench.network(&reply(&good)), Verdict::Drop, "nobody has asked yet");
    assert_eq!(bench.guest(&ask(&asked)), Verdict::Pass);
    let other = |id, name, kind| answer(&query(id, name, kind), &[(name, Data::Address("1.1.1.2"), 60)]);
    for wrong in [other(8, "example.org", 1), other(7, "example.net", 1), other(7, "example.org", 28)] {
        assert_eq!(bench.network(&reply(&wrong)), Verdict::Drop);
    }
    assert_eq!(bench.network(&datagram(inward(DNS), (53, ASKER + 1), &good)), Verdict::Drop, "another port");
    assert_eq!(
        bench.network(&datagram(inward("192.0.2.1"), (53, ASKER), &good)),
        Verdict::Drop,
        "another host"
    );
    assert_eq!(bench.network(&datagram(inward(DNS), (54, ASKER), &good)), Verdict::Drop);
    assert_eq!(bench.network(&reply(&good)), Verdict::Pass);
    assert_eq!(bench.network(&reply(&good)), Verdict::Drop, "a second answer");
    assert_eq!(name_of(&mut bench, PEER).as_deref(), Some("example.org"));
    assert_eq!(name_of(&mut bench, "1.1.1.2"), None, "of an answer that did not pass nothing is remembered");
    assert_eq!(dropped(&mut bench, Dropped::UnexpectedAnswer), 6);
}

#[test]
fn an_answer_that_comes_too_late_is_dropped() {
    let mut bench = Bench::new(Policy::default());
    let asked = query(7, "example.org", 1);
    bench.guest(&ask(&asked));
    bench.pass(16);
    let late = answer(&asked, &[("example.org", Data::Address(PEER), 60)]);
    assert_eq!(bench.network(&reply(&late)), Verdict::Drop);
}

#[test]
fn an_address_behind_aliases_has_the_name_that_was_asked_for() {
    let mut bench = Bench::new(Policy::default());
    let asked = query(7, "www.example.org", 1);
    bench.guest(&ask(&asked));
    let good = answer(
        &asked,
        &[
            ("b.example.net", Data::Address(PEER), 60),
            ("a.example.net", Data::Alias("b.example.net"), 60),
            ("www.example.org", Data::Alias("a.example.net"), 60),
            // Of a name that has nothing to do with the question.
            ("other.example.com", Data::Address("1.1.1.2"), 60),
            // A circle.
            ("b.example.net", Data::Alias("www.example.org"), 60),
        ],
    );
    assert_eq!(bench.network(&reply(&good)), Verdict::Pass);
    assert_eq!(name_of(&mut bench, PEER).as_deref(), Some("www.example.org"));
    assert_eq!(name_of(&mut bench, "1.1.1.2"), None);
}

#[test]
fn a_name_is_remembered_for_five_minutes_at_least_and_an_hour_at_most() {
    for (seconds, known, unknown) in [(0, 299, 301), (1000, 999, 1001), (u32::MAX, 3599, 3601)] {
        let mut bench = Bench::new(Policy::default());
        let asked = query(7, "example.org", 1);
        bench.guest(&ask(&asked));
        bench.network(&reply(&answer(&asked, &[("example.org", Data::Address(PEER), seconds)])));
        bench.pass(known);
        assert!(name_of(&mut bench, PEER).is_some(), "{seconds}");
        bench.pass(unknown - known);
        assert!(name_of(&mut bench, PEER).is_none(), "{seconds}");
    }
}

#[test]
fn a_rebound_name_leads_to_no_private_address() {
    let mut bench = with_names(&["*.example.org"], &[]);
    // First a public address, then private ones for the same name: the answers pass, connections do not.
    bench.resolve("evil.example.org", PEER);
    assert_eq!(bench.guest(&syn(PEER, 80)), Verdict::Pass);
    for private in
        ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1", "192.0.2.53"]
    {
        bench.resolve("evil.example.org", private);
        assert_eq!(bench.guest(&syn(private, 80)), Verdict::Drop, "{private}");
        assert_eq!(bench.said(Side::Guest).len(), 1, "{private}");
    }
}

#[test]
fn with_allowed_names_other_names_and_their_addresses_are_refused_at_once() {
    let mut bench = with_names(&["*.example.org", "example.org"], &["evil.example.org"]);
    let text = |bench: &mut Bench, name: &str| {
        assert_eq!(bench.guest(&ask(&query(9, name, 1))), Verdict::Drop, "{name}");
        let answers = bench.said(Side::Guest);
        let message = payload(&answers[0]);
        assert_eq!(message[..4], [0, 9, 0x81, 0x83], "no such name, with the number of the query");
        assert_eq!(message[12..], query(9, name, 1)[12..], "and its question");
        bench.refusals().pop()
    };
    let none = "the name matches none of the 2 entries of `network.allow-names`";
    assert_eq!(text(&mut bench, "example.com").as_deref(), Some(none));
    assert_eq!(text(&mut bench, "example.org.example.com").as_deref(), Some(none));
    let denied = "the name matches `evil.example.org` of `network.deny-names`";
    assert_eq!(text(&mut bench, "evil.EXAMPLE.org").as_deref(), Some(denied));
    assert_eq!(bench.guest(&syn(PEER, 443)), Verdict::Drop, "an address that no name gave");
    bench.resolve("cache.example.org", PEER);
    assert_eq!(bench.guest(&syn(PEER, 443)), Verdict::Pass);
    assert_eq!(bench.guest(&syn("1.1.1.2", 443)), Verdict::Drop);
}

#[test]
fn a_denied_name_is_not_reachable_as_an_alias_of_another() {
    let mut bench = with_names(&[], &["*.tracker.example.net"]);
    let asked = query(7, "innocent.example.org", 1);
    bench.guest(&ask(&asked));
    let disguised = answer(
        &asked,
        &[
            ("innocent.example.org", Data::Alias("a.tracker.example.net"), 60),
            ("a.tracker.example.net", Data::Address(PEER), 60),
        ],
    );
    assert_eq!(bench.network(&reply(&disguised)), Verdict::Drop);
    let answers = bench.said(Side::Guest);
    assert_eq!(payload(&answers[0])[..4], [0, 7, 0x81, 0x83], "the guest gets a refusal instead");
    assert_eq!(bench.refusals(), ["the name matches `*.tracker.example.net` of `network.deny-names`"]);
}

#[test]
fn a_dot_inside_a_label_is_not_taken_for_one_between_labels() {
    let mut bench = with_names(&["*.example.org"], &[]);
    let mut sly = query(7, "", 1);
    sly.truncate(12);
    // One label "x.example", then "org": DNS asks `org` for it, a reader of text sees `x.example.org`.
    sly.extend(b"\x09x.example\x03org\0\0\x01\0\x01");
    assert_eq!(bench.guest(&ask(&sly)), Verdict::Drop);
    assert_eq!(dropped(&mut bench, Dropped::Dns), 1);
}

#[test]
fn only_plain_queries_pass() {
    let good = query(7, "example.org", 1);
    let changed = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        message
    };
    let trailing = [&good[..], b"data for somebody else"].concat();
    let mut long = good.clone();
    long[11] = 1;
    long.resize(513, 0);
    let pointer_to_itself = [&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat();
    let deep = "a.".repeat(127);
    let mut bench = Bench::new(Policy::default());
    for wrong in [
        changed(2, 0x81), // an answer
        changed(2, 0x29), // an update
        changed(5, 2),    // two questions
        changed(7, 1),    // an answer in it
        changed(9, 1),    // an authority
        changed(11, 2),   // two additional records
        changed(28, 3),   // class CHAOS
        changed(12, 0x41),
        changed(12, 63),
        trailing,
        long,
        pointer_to_itself,
        query(7, &format!("{deep}a.a.a"), 1),
        Vec::new(),
        good[..11].to_vec(),
        good[..good.len() - 1].to_vec(),
    ] {
        assert_eq!(bench.guest(&ask(&wrong)), Verdict::Drop, "{wrong:02x?}");
    }
    // As a client that takes long answers sends it, and of kinds that nobody here knows.
    let mut extended = good.clone();
    extended[11] = 1;
    extended.extend([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
    for right in
        [good, extended, query(8, "_443._tcp.example.org", 52), query(9, "example.org", 65), query(1, "", 2)]
    {
        assert_eq!(bench.guest(&ask(&right)), Verdict::Pass, "{right:02x?}");
    }
}

#[test]
fn other_resolvers_are_not_reachable() {
    let mut bench = Bench::new(Policy::default());
    for peer in ["8.8.8.8", PEER6] {
        assert_eq!(
            bench.guest(&datagram(out(peer), (ASKER, 53), &query(7, "example.org", 1))),
            Verdict::Drop
        );
    }
    assert_eq!(bench.guest(&syn(PEER, 53)), Verdict::Pass, "whatever is there, its names are not known");
    assert_eq!(bench.guest(&syn(DNS, 80)), Verdict::Drop);
}

#[test]
fn dns_carries_neither_many_queries_nor_many_bytes() {
    let limits = Limits { max_queries_per_second: 10, max_dns_bytes: 10_000, ..Limits::default() };
    let mut bench = Bench::new(Policy { limits, ..Policy::default() });
    let long = format!("{}.tunnel.example.org", "x".repeat(63));
    let mut bytes = 0;
    for second in 0..60_u16 {
        let mut passed = 0;
        for id in 0..200 {
            let message = query(second << 8 | id, &long, 16);
            if bench.guest(&ask(&message)) == Verdict::Pass {
                passed += 1;
                bytes += message.len();
            }
        }
        assert!(passed <= if second == 0 { 50 } else { 10 }, "{passed}");
        bench.pass(1);
    }
    assert!((9_000..=10_000).contains(&bytes), "{bytes}");
    let texts: Vec<String> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Refused { reason, .. } => Some(reason.to_string()),
            _ => None,
        })
        .collect();
    for text in ["more than 10 DNS queries per second", "the guest has used its 10000 bytes of DNS"] {
        assert!(texts.iter().any(|told| told == text), "{texts:?}");
    }
}

/// A message with its length before it, as it is over TCP.
fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).expect("short").to_be_bytes(), message].concat()
}

fn asks(sequence: u32, bytes: &[u8]) -> Vec<u8> {
    segment(out(DNS), (PORT, 53), "A", (sequence, 501), bytes)
}

fn replies(sequence: u32, bytes: &[u8]) -> Vec<u8> {
    segment(inward(DNS), (53, PORT), "A", (sequence, 101), bytes)
}

#[test]
fn names_that_are_asked_over_tcp_are_known_however_long_the_answer_is() {
    let mut bench = with_names(&["*.example.org"], &[]);
    bench.connect(DNS, 53);
    let asked = query(7, "many.example.org", 1);
    let question = framed(&asked);
    let (first, second) = question.split_at(9);
    assert_eq!(bench.guest(&asks(101, first)), Verdict::Pass);
    assert_eq!(bench.guest(&asks(110, second)), Verdict::Pass);
    let mut records: Vec<(&str, Data, u32)> =
        (0..100).map(|_| ("many.example.org", Data::Address("1.1.1.7"), 60)).collect();
    records.push(("many.example.org", Data::Address(PEER), 60));
    let long = framed(&answer(&asked, &records));
    assert!(long.len() > 3000);
    let mut at = 501;
    for piece in long.chunks(1400) {
        assert_eq!(bench.guest(&syn(PEER, 443)), Verdict::Drop, "not before all of it was there");
        assert_eq!(bench.network(&replies(at, piece)), Verdict::Pass);
        at += piece.len() as u32;
    }
    bench.said(Side::Guest);
    assert_eq!(name_of(&mut bench, PEER).as_deref(), Some("many.example.org"));
    // Another one over the same connection, which is told when it ends.
    let asked = query(8, "more.example.org", 28);
    assert_eq!(bench.guest(&asks(101 + question.len() as u32, &framed(&asked))), Verdict::Pass);
    assert_eq!(
        bench.network(&replies(
            at,
            &framed(&answer(&asked, &[("more.example.org", Data::Address(PEER6), 60)]))
        )),
        Verdict::Pass
    );
    assert_eq!(name_of(&mut bench, PEER6).as_deref(), Some("more.example.org"));
    let events = bench.finish();
    let told =
        |event: &Event| matches!(event, Event::Connection { address, port: 53, .. } if *address == ip(DNS));
    assert!(events.iter().any(told), "{events:?}");
}

#[test]
fn over_tcp_nothing_passes_to_or_from_the_resolver_but_questions_and_answers() {
    let good = query(7, "a.example.org", 1);
    let denied = query(7, "evil.example.org", 1);
    let alias = |name| answer(&good, &[("a.example.org", Data::Alias(name), 60)]);
    // What the guest says, and what is answered; and the reason for the end.
    let plain =
        "to and from the name server, only questions of DNS for one name each pass, and their answers";
    let evil = "the name matches `evil.example.org` of `network.deny-names`";
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"GET / HTTP/1.1\r\n\r\n", b"", ""),
        (&framed(b"tunnel"), b"", plain),
        (&framed(&answer(&good, &[])), b"", plain),
        (&framed(&denied), b"", evil),
        (&framed(&good), &framed(b"tunnel"), plain),
        (&framed(&good), &framed(&answer(&query(8, "a.example.org", 1), &[])), plain),
        (&framed(&good), &framed(&alias("evil.example.org")), evil),
    ];
    for (said, answered, reason) in cases {
        let mut bench = with_names(&[], &["evil.example.org"]);
        bench.connect(DNS, 53);
        let passes = !answered.is_empty() || reason.is_empty();
        assert_eq!(bench.guest(&asks(101, said)) == Verdict::Pass, passes, "{said:02x?}");
        if reason.is_empty() {
            // The first bytes are a length, and so many never come.
            assert_eq!(bench.guest(&asks(101 + said.len() as u32, &[0; 1400])), Verdict::Pass);
            assert_eq!(bench.guest(&asks(1501 + said.len() as u32, &[0; 1400])), Verdict::Pass);
            assert_eq!(
                bench.guest(&asks(2901 + said.len() as u32, &[0; 1400])),
                Verdict::Drop,
                "no more than 4 KiB"
            );
        }
        if !answered.is_empty() {
            assert_eq!(bench.network(&replies(501, answered)), Verdict::Drop, "{answered:02x?}");
        }
        // Both ends learn at once.
        for side in [Side::Guest, Side::Network] {
            assert_eq!(flags(&bench.said(side)[0]).0, "AR", "{said:02x?}");
        }
        let told = bench.refusals();
        assert_eq!(told, [if reason.is_empty() { plain } else { reason }], "{said:02x?}");
    }
    // Nor before anybody could judge it.
    let mut bench = Bench::new(Policy::default());
    let early = segment(out(DNS), (PORT, 53), "S", (100, 0), &framed(&good));
    assert_eq!(bench.guest(&early), Verdict::Drop);
    assert_eq!(bench.guest(&syn(DNS, 53)), Verdict::Pass);
}

#[test]
fn no_more_than_some_connections_with_the_resolver_are_open_and_more_wait() {
    let mut bench = Bench::new(Policy::default());
    let opens = |port| segment(out(DNS), (port, 53), "S", (1, 0), &[]);
    let passed = (0..100).filter(|port| bench.guest(&opens(PORT + port)) == Verdict::Pass).count();
    assert_eq!(passed, 64);
    assert_eq!(bench.said(Side::Guest).len(), 0, "the guest's kernel asks again");
    assert_eq!(bench.guest(&syn(PEER, 443)), Verdict::Pass, "others are not concerned");
    bench.network(&segment(inward(DNS), (53, PORT), "RA", (0, 2), &[]));
    assert_eq!(bench.guest(&opens(PORT + 80)), Verdict::Pass);
}

#[test]
fn dns_over_tcp_counts_as_over_udp() {
    let limits = Limits { max_queries_per_second: 2, max_dns_bytes: 200, ..Limits::default() };
    let mut bench = Bench::new(Policy { limits, ..Policy::default() });
    bench.connect(DNS, 53);
    let mut at = 101;
    let mut passed = 0;
    for id in 0..20 {
        let question = framed(&query(id, "example.org", 1));
        passed += usize::from(bench.guest(&asks(at, &question)) == Verdict::Pass);
        at += question.len() as u32;
    }
    assert_eq!(passed, 6, "six questions of 29 bytes are fewer than 200");
    assert_eq!(bench.refusals().first().map(String::as_str), Some("the guest has used its 200 bytes of DNS"));
}

#[test]
fn a_resolver_with_an_ipv6_address_is_one_as_any_other() {
    let mut policy = Policy::default();
    // Private, as resolvers are, and not on the link to the guest.
    policy.link.dns = ip("fd00:1::53");
    let mut bench = Bench::new(policy);
    let asked = query(7, "example.org", 28);
    let question = datagram(out("fd00:1::53"), (ASKER, 53), &asked);
    assert_eq!(bench.guest(&question), Verdict::Pass);
    let good = answer(&asked, &[("example.org", Data::Address(PEER6), 60)]);
    assert_eq!(bench.network(&datagram(inward("fd00:1::53"), (53, ASKER), &good)), Verdict::Pass);
    assert_eq!(name_of(&mut bench, PEER6).as_deref(), Some("example.org"));
    assert_eq!(bench.guest(&syn("fd00:1::53", 80)), Verdict::Drop);
    assert_eq!(bench.guest(&ask(&asked)), Verdict::Drop, "the address of others");
}
