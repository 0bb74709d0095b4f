//! Messages of DNS, as far as the guard needs them: which name a query asks for, and which addresses and aliases an
//! answer gives for it. RFC 1035, 4.1.
//!
//! Only the header, the question and the answers are read; records of other kinds are skipped by their length. Memory
//! depends on the bytes that are there, never on the counts that the header claims. A name whose labels have anything
//! but letters, digits, `-` and `_` is no host name: such a question is refused, such a record skipped, so that a dot
//! inside a label is never taken for one between labels.
//! Not here: what is remembered (`names`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
/// Longest name in a message. RFC 1035, 2.3.4.
const MAX_NAME: usize = 255;
/// Largest query: RFC 1035 allows 512 bytes, and no resolver library needs as many for one name.
const MAX_QUERY: usize = 512;
/// Most records of one answer; others are none. Nothing that is fetched from has a hundred addresses.
const MAX_RECORDS: u16 = 128;

const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
/// "No such name". Not "refused", of which programs make a temporary failure of the server that one could try again.
const NAME_ERROR: u16 = 3;

const INTERNET: u16 = 1;
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// What is asked: a name in small letters without a dot at its end, and the number of a kind of record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub name: String,
    pub kind: u16,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Query {
    pub id: u16,
    pub question: Question,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: u16,
    pub question: Question,
    /// Names that the name in question is an alias of.
    pub aliases: Vec<String>,
    /// Addresses of the name in question, or of one of the aliases, with the seconds for which they are valid.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// A standard query for one name, or nothing.
pub fn query(bytes: &[u8]) -> Option<Query> {
    let mut reader = Reader { bytes, at: 0 };
    let (id, flags) = (reader.u16()?, reader.u16()?);
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    // An additional record is how a client says that it takes longer answers.
    if bytes.len() > MAX_QUERY || flags & (RESPONSE | OPCODE) != 0 || !matches!(counts, [1, 0, 0, 0 | 1]) {
        return None;
    }
    let question = reader.question()?;
    if counts[3] == 0 && reader.at != bytes.len() {
        return None;
    }
    Some(Query { id, question })
}

/// The answer to a query for one name, or nothing.
pub fn answer(bytes: &[u8]) -> Option<Answer> {
    let mut reader = Reader { bytes, at: 0 };
    let (id, flags) = (reader.u16()?, reader.u16()?);
    let (questions, records) = (reader.u16()?, reader.u16()?);
    reader.skip(4)?;
    if flags & RESPONSE == 0 || flags & OPCODE != 0 || questions != 1 || records > MAX_RECORDS {
        return None;
    }
    let question = reader.question()?;
    let mut aliases: Vec<(String, String)> = Vec::new();
    let mut found: Vec<(String, IpAddr, u32)> = Vec::new();
    for _ in 0..records {
        let owner = reader.name()?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        let seconds = u32::from(reader.u16()?) << 16 | u32::from(reader.u16()?);
        let length = usize::from(reader.u16()?);
        let end = reader.at.checked_add(length).filter(|end| *end <= bytes.len())?;
        let data = &bytes[reader.at..end];
        let address = match (kind, data.len()) {
            (A, 4) => <[u8; 4]>::try_from(data).ok().map(|data| IpAddr::V4(Ipv4Addr::from(data))),
            (AAAA, 16) => <[u8; 16]>::try_from(data).ok().map(|data| IpAddr::V6(Ipv6Addr::from(data))),
            (A | AAAA, _) => return None,
            _ => None,
        };
        let target = if kind == CNAME { reader.name()? } else { None };
        if class == INTERNET
            && let Some(owner) = owner
        {
            aliases.extend(target.map(|target| (owner.clone(), target)));
            found.extend(address.map(|address| (owner, address, seconds)));
        }
        reader.at = end;
    }
    let aliases = chain(&question.name, &aliases);
    let of_chain = |name: &String| *name == question.name || aliases.contains(name);
    let addresses = found.into_iter().filter(|(owner, ..)| of_chain(owner)).map(|(_, a, s)| (a, s)).collect();
    Some(Answer { id, question, aliases, addresses })
}

/// The names that `name` is an alias of, through any number of steps.
fn chain(name: &str, aliases: &[(String, String)]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    // Each round finds one more at least, and there are no more than records.
    loop {
        let known = |name_: &String| name_ == name || chain.contains(name_);
        let next = aliases.iter().find(|(owner, target)| known(owner) && !known(target));
        match next {
            Some((_, target)) => chain.push(target.clone()),
            None => return chain,
        }
    }
}

/// The answer to a query that is refused, or to the query of an answer: its header and question.
pub fn refusal(message: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader { bytes: message, at: HEADER };
    reader.question()?;
    let mut out = message[..reader.at].to_vec();
    let asked = u16::from_be_bytes([message[2], message[3]]);
    let flags = RESPONSE | asked & RECURSION_DESIRED | RECURSION_AVAILABLE | NAME_ERROR;
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    Some(out)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.bytes.get(self.at..)?.first_chunk::<2>()?;
        self.at += 2;
        Some(u16::from_be_bytes(*bytes))
    }

    fn question(&mut self) -> Option<Question> {
        let name = self.name()??;
        let (kind, class) = (self.u16()?, self.u16()?);
        (class == INTERNET).then_some(Question { name, kind })
    }

    /// Reads a name. The outer `None` is a message that cannot be read on, the inner one a name that is no host name.
    fn name(&mut self) -> Option<Option<String>> {
        let mut name = String::new();
        let (mut at, mut end, mut is_host) = (self.at, None, true);
        loop {
            let length = *self.bytes.get(at)?;
            match length {
                0 => break,
                1..=63 => {
                    let label = self.bytes.get(at + 1..at + 1 + usize::from(length))?;
                    is_host &= label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
                    if !name.is_empty() {
                        name.push('.');
                    }
                    name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                    if name.len() > MAX_NAME {
                        return None;
                    }
                    at += 1 + usize::from(length);
                }
                // A pointer to an earlier name. It must lead backwards, so there is no circle.
                0xc0.. => {
                    let low = *self.bytes.get(at + 1)?;
                    let to = usize::from(length & 0x3f) << 8 | usize::from(low);
                    end.get_or_insert(at + 2);
                    if to >= at {
                        return None;
                    }
                    at = to;
                }
                _ => return None,
            }
        }
        self.at = end.unwrap_or(at + 1);
        Some(is_host.then_some(name))
    }
}
