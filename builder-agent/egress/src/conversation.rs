//! DNS over TCP: what has passed of one connection with the resolver, in both directions, so that each message is judged as a
//! datagram would be. RFC 1035, 4.2.2; RFC 7766.
//!
//! Bytes are judged once, in their order, before the last one of a message passes: half a question is none, and half an answer
//! names nothing. What the guest sends again must be what it sent before, or the two ends could read something else than the guard.
//! Not here: which questions and answers pass (`names`).

use crate::frames::Tcp;

/// Bytes that a guest may ask over one connection. A question has some dozens, and clients ask one or two.
const MAX_ASKED: usize = 4096;
/// Most connections with the resolver at a time. Each may hold an answer of 64 KiB that is not whole yet.
pub const MAX_CONVERSATIONS: usize = 64;
/// Length before each message.
const PREFIX: usize = 2;

/// Why a segment does not pass.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<E> {
    /// Comes before bytes that are not here yet. Whoever sent it sends all of it again.
    Gap,
    /// The guest says something else than before, or too much.
    Strange,
    /// A message does not pass.
    Refused(E),
}

#[derive(Debug)]
pub struct Conversation {
    /// The sequence number of the first of `asked`.
    first: u32,
    /// All that the guest has sent.
    asked: Vec<u8>,
    /// How much of it was judged.
    judged: usize,
    /// The sequence number of the next byte of the resolver; none before its first segment.
    next: Option<u32>,
    /// The first bytes of an answer.
    begun: Vec<u8>,
}

impl Conversation {
    /// `opening`: the first segment, which has no payload.
    pub fn new(opening: &Tcp<'_>) -> Self {
        Self { first: opening.next(), asked: Vec::new(), judged: 0, next: None, begun: Vec::new() }
    }

    /// A segment of the guest; `judge` is asked for each message that it completes.
    pub fn guest_sent<E>(
        &mut self,
        tcp: &Tcp<'_>,
        mut judge: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), Heard<E>> {
        if tcp.payload.is_empty() {
            return Ok(());
        }
        // Numbers wrap, and few bytes are between the two: a number before the first is far behind.
        let at = tcp.sequence.wrapping_sub(self.first) as usize;
        if at > MAX_ASKED {
            return Err(Heard::Strange);
        }
        if at > self.asked.len() {
            return Err(Heard::Gap);
        }
        let known = (self.asked.len() - at).min(tcp.payload.len());
        let (again, more) = tcp.payload.split_at(known);
        if self.asked[at..at + known] != *again || self.asked.len() + more.len() > MAX_ASKED {
            return Err(Heard::Strange);
        }
        self.asked.extend_from_slice(more);
        while let Some(message) = message(&self.asked[self.judged..]) {
            judge(message).map_err(Heard::Refused)?;
            self.judged += PREFIX + message.len();
        }
        Ok(())
    }

    /// A segment of the resolver, likewise.
    pub fn resolver_sent<E>(
        &mut self,
        tcp: &Tcp<'_>,
        mut judge: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), Heard<E>> {
        let next = *self.next.get_or_insert(tcp.next().wrapping_sub(tcp.payload.len() as u32));
        let sequence = tcp.sequence.wrapping_add(u32::from(tcp.syn));
        // Half of all numbers are before another one.
        let behind = next.wrapping_sub(sequence) as usize;
        if behind >= 1 << 31 {
            return if tcp.payload.is_empty() { Ok(()) } else { Err(Heard::Gap) };
        }
        let more = tcp.payload.get(behind..).unwrap_or_default();
        self.next = Some(next.wrapping_add(more.len() as u32));
        self.begun.extend_from_slice(more);
        // A message has 65,535 bytes at most, so what is begun is not much more.
        let mut judged = 0;
        while let Some(message) = message(&self.begun[judged..]) {
            judge(message).map_err(Heard::Refused)?;
            judged += PREFIX + message.len();
        }
        self.begun.drain(..judged);
        Ok(())
    }
}

/// The first message, if all of it is there.
fn message(bytes: &[u8]) -> Option<&[u8]> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
    rest.get(..usize::from(u16::from_be_bytes(*prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(sequence: u32, payload: &[u8]) -> Tcp<'_> {
        Tcp {
            source: 1,
            target: 53,
            sequence,
            acknowledged: None,
            syn: false,
            fin: false,
            rst: false,
            payload,
        }
    }

    /// A conversation that begins right before the numbers wrap, and its first number.
    fn begun() -> (Conversation, u32) {
        let opening = Tcp { syn: true, ..tcp(u32::MAX - 5, &[]) };
        (Conversation::new(&opening), u32::MAX - 4)
    }

    #[test]
    fn questions_are_judged_once_and_in_their_order_however_they_are_cut() {
        let stream = b"\0\x03one\0\x04four\0\0\0\x01x";
        for size in 1..=stream.len() {
            let ((mut all, first), mut heard) = (begun(), Vec::new());
            let mut at = first;
            for piece in stream.chunks(size) {
                // Twice, as when its acknowledgment was lost.
                for _ in 0..2 {
                    let judged = all.guest_sent(&tcp(at, piece), |message| {
                        heard.push(message.to_vec());
                        Ok::<(), ()>(())
                    });
                    assert_eq!(judged, Ok(()));
                }
                at = at.wrapping_add(piece.len() as u32);
            }
            assert_eq!(heard, [&b"one"[..], b"four", b"", b"x"], "{size}");
        }
    }

    #[test]
    fn a_guest_that_says_something_else_the_second_time_is_not_heard() {
        let accept = |_: &[u8]| Ok::<(), ()>(());
        let (mut all, first) = begun();
        assert_eq!(all.guest_sent(&tcp(first, b"\0\x05ab"), accept), Ok(()));
        assert_eq!(all.guest_sent(&tcp(first.wrapping_add(5), b"x"), accept), Err(Heard::Gap));
        assert_eq!(all.guest_sent(&tcp(first.wrapping_add(2), b"aXcde"), accept), Err(Heard::Strange));
        assert_eq!(all.guest_sent(&tcp(first.wrapping_sub(1), b"\0\0"), accept), Err(Heard::Strange));
        assert_eq!(all.guest_sent(&tcp(first.wrapping_add(2), b"abcde"), accept), Ok(()));
        assert_eq!(all.asked, b"\0\x05abcde");
        assert_eq!(all.guest_sent(&tcp(first.wrapping_add(7), &[0; MAX_ASKED]), accept), Err(Heard::Strange));
        let refused = all.guest_sent(&tcp(first.wrapping_add(7), b"\0\x01x"), |_| Err("no"));
        assert_eq!(refused, Err(Heard::Refused("no")));
    }

    #[test]
    fn answers_are_judged_before_their_last_byte_passes_and_what_comes_again_is_not_judged_again() {
        let (mut all, _) = begun();
        let first = 77;
        let hello = Tcp { syn: true, acknowledged: Some(1), ..tcp(first - 1, &[]) };
        let mut heard = Vec::new();
        let mut hear = |all: &mut Conversation, tcp: &Tcp<'_>| {
            all.resolver_sent(tcp, |message| {
                heard.push(message.len());
                if message == b"bad" { Err("bad") } else { Ok(()) }
            })
        };
        assert_eq!(hear(&mut all, &hello), Ok(()));
        let long = [&[0xff, 0xff][..], &[7; 65_535]].concat();
        let mut at = first;
        for piece in long.chunks(1400) {
            assert_eq!(hear(&mut all, &tcp(at.wrapping_add(1400), piece)), Err(Heard::Gap));
            assert_eq!(hear(&mut all, &tcp(at, piece)), Ok(()));
            assert_eq!(hear(&mut all, &tcp(at, piece)), Ok(()));
            at = at.wrapping_add(piece.len() as u32);
        }
        assert_eq!(hear(&mut all, &tcp(at, &[])), Ok(()));
        assert!(all.begun.is_empty());
        assert_eq!(hear(&mut all, &tcp(at, b"\0\x03ba")), Ok(()));
        // A part of it comes again.
        assert_eq!(hear(&mut all, &tcp(at.wrapping_add(2), b"bad")), Err(Heard::Refused("bad")));
        assert_eq!(heard, [65_535, 3]);
    }
}
