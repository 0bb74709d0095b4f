#![no_main]
//! Any bytes as a query and as an answer of DNS: no panic, ends; what is understood is bounded; the library `simple-dns`
//! reads the same question and addresses, where it reads the message at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Packet};

#[allow(dead_code)]
#[path = "../../builder-agent/egress/src/dns.rs"]
mod dns;

/// The counts in the header reserve memory in the library: leave out those that no message of this length has.
fn read(bytes: &[u8]) -> Option<Packet<'_>> {
    let counts = bytes.get(4..12)?.chunks(2).map(|count| usize::from(count[0]) << 8 | usize::from(count[1]));
    if counts.sum::<usize>() * 5 > bytes.len() {
        return None;
    }
    Packet::parse(bytes).ok()
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(query) = dns::query(bytes) {
        assert!(query.question.name.len() <= 255);
        let refusal = dns::refusal(bytes).expect("a query can be refused");
        assert!(refusal.len() <= bytes.len());
        let answer = dns::answer(&refusal).expect("a refusal is an answer");
        assert_eq!((answer.id, &answer.question), (query.id, &query.question));
        assert!(answer.addresses.is_empty() && answer.aliases.is_empty());
        if let Some(packet) = read(bytes) {
            assert_eq!(packet.id(), query.id);
            let name = packet.questions[0].qname.to_string().to_ascii_lowercase();
            assert_eq!(name.trim_end_matches('.'), query.question.name);
        }
    }
    if let Some(answer) = dns::answer(bytes) {
        assert!(answer.addresses.len() <= 128 && answer.aliases.len() <= 128);
        let Some(packet) = read(bytes) else { return };
        let theirs: Vec<(IpAddr, u32)> = packet
            .answers
            .iter()
            .filter(|record| record.class == CLASS::IN)
            .filter_map(|record| match &record.rdata {
                RData::A(a) => Some((IpAddr::V4(Ipv4Addr::from(a.address)), record.ttl)),
                RData::AAAA(aaaa) => Some((IpAddr::V6(Ipv6Addr::from(aaaa.address)), record.ttl)),
                _ => None,
            })
            .collect();
        for address in &answer.addresses {
            assert!(theirs.contains(address), "{address:?} of {theirs:?}");
        }
    }
});
