//! Single packets of a guest, with a pair of buffers as the agent's stream.

use super::*;
use crate::kvm::devices::testing::Agent;

const GUEST: u64 = 3;
const PORT: u32 = 1024;
const GUEST_PORT: u32 = 5000;

fn from_guest(op: u16) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: GUEST_PORT,
        dst_port: PORT,
        type_: TYPE_STREAM,
        op,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

fn waiting() -> Connection<Agent> {
    Connection::new(Agent { room: usize::MAX, ..Agent::default() }, GUEST, PORT)
}

fn open() -> Connection<Agent> {
    let mut c = waiting();
    c.from_guest(from_guest(op::REQUEST), &[]);
    assert_eq!(ops(&mut c), [op::RESPONSE]);
    c
}

fn ops(c: &mut Connection<Agent>) -> Vec<u16> {
    std::iter::from_fn(|| c.for_guest(4096)).map(|(h, _)| h.op).collect()
}

#[test]
fn a_header_reads_back_as_it_was_written() {
    let header = Header { flags: 7, fwd_cnt: 9, ..from_guest(op::RW) };
    assert_eq!(Header::from_bytes(&header.to_bytes(77)), (header, 77));
}

#[test]
fn the_answer_to_a_connection_names_our_credit_and_goes_back_to_its_port() {
    let mut c = waiting();
    c.from_guest(from_guest(op::REQUEST), &[]);
    let (answer, payload) = c.for_guest(0).unwrap();
    assert!(payload.is_empty());
    assert_eq!((answer.op, answer.buf_alloc), (op::RESPONSE, BUFFER));
    assert_eq!((answer.src_cid, answer.src_port), (HOST_CID, PORT));
    assert_eq!((answer.dst_cid, answer.dst_port), (GUEST, GUEST_PORT));
}

#[test]
fn anything_but_our_port_of_our_host_by_stream_is_reset() {
    for change in [
        |h: &mut Header| h.dst_port = 22,
        |h: &mut Header| h.dst_cid = 4,
        |h: &mut Header| h.dst_cid = u64::MAX,
        |h: &mut Header| h.type_ = 2,
    ] {
        let mut c = waiting();
        let mut header = from_guest(op::REQUEST);
        change(&mut header);
        c.from_guest(header, &[]);
        assert_eq!(ops(&mut c), [op::RST]);
    }
}

#[test]
fn somebody_elses_packet_gets_no_answer() {
    let mut c = waiting();
    c.from_guest(Header { src_cid: 9, ..from_guest(op::REQUEST) }, &[]);
    assert!(!c.has_for_guest());
}

#[test]
fn a_second_connection_is_reset_and_does_not_touch_the_first() {
    let mut c = open();
    c.from_guest(Header { src_port: 6000, ..from_guest(op::REQUEST) }, &[]);
    c.from_guest(Header { src_port: 6000, ..from_guest(op::RW) }, b"intruder");
    assert_eq!(ops(&mut c), [op::RST, op::RST]);
    c.from_guest(from_guest(op::RW), b"hello");
    assert_eq!(c.stream().taken, b"hello");
}

#[test]
fn a_guest_cannot_connect_again_after_its_end() {
    let mut c = open();
    c.from_guest(from_guest(op::RST), &[]);
    assert_eq!(c.stream().hung_up, 1);
    c.from_guest(from_guest(op::REQUEST), &[]);
    assert_eq!(ops(&mut c), [op::RST]);
    assert!(!c.wants_input());
}

#[test]
fn resets_are_never_answered() {
    let mut c = waiting();
    c.from_guest(from_guest(op::RST), &[]);
    c.from_guest(Header { dst_port: 1, ..from_guest(op::RST) }, &[]);
    assert!(!c.has_for_guest());
}

#[test]
fn unknown_operations_end_the_connection() {
    for operation in [0, op::REQUEST, op::RESPONSE, 8, u16::MAX] {
        let mut c = open();
        c.from_guest(from_guest(operation), &[]);
        assert_eq!(ops(&mut c), [op::RST], "{operation}");
        assert_eq!(c.stream().hung_up, 1);
    }
}

#[test]
fn bytes_arrive_in_order_whatever_the_agent_takes_at_a_time() {
    let mut c = open();
    c.stream.room = 3;
    c.from_guest(from_guest(op::RW), b"abcdef");
    assert!(c.has_for_agent());
    c.from_guest(from_guest(op::RW), b"ghi");
    c.stream.room = usize::MAX;
    c.flush();
    assert_eq!(c.stream().taken, b"abcdefghi");
}

#[test]
fn sending_without_credit_ends_the_connection_and_holds_no_more_than_the_buffer() {
    let mut c = open();
    c.stream.room = 0;
    let payload = vec![1; MAX_PAYLOAD as usize];
    for _ in 0..BUFFER / MAX_PAYLOAD {
        c.from_guest(from_guest(op::RW), &payload);
    }
    assert_eq!(c.at.to_agent.len(), BUFFER as usize);
    c.from_guest(from_guest(op::RW), &[1]);
    assert_eq!(ops(&mut c), [op::RST]);
    assert_eq!(c.at.to_agent.len(), BUFFER as usize);
    assert_eq!(c.stream().hung_up, 0, "what came with credit is still delivered");
    c.stream.room = usize::MAX;
    c.flush();
    assert_eq!((c.stream().taken.len(), c.stream().hung_up), (BUFFER as usize, 1));
}

#[test]
fn credit_comes_back_when_half_of_it_was_taken() {
    let mut c = open();
    let payload = vec![1; (BUFFER / 2) as usize - 1];
    c.from_guest(from_guest(op::RW), &payload);
    assert!(!c.has_for_guest());
    c.from_guest(from_guest(op::RW), &[1]);
    let (update, _) = c.for_guest(0).unwrap();
    assert_eq!((update.op, update.fwd_cnt, update.buf_alloc), (op::CREDIT_UPDATE, BUFFER / 2, BUFFER));
    assert!(!c.has_for_guest());
}

#[test]
fn credit_is_told_when_asked() {
    let mut c = open();
    c.from_guest(from_guest(op::RW), b"12345");
    c.from_guest(from_guest(op::CREDIT_REQUEST), &[]);
    let (update, _) = c.for_guest(0).unwrap();
    assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, 5));
}

#[test]
fn we_send_no_more_than_the_guest_has_room_for() {
    let mut c = open();
    c.from_guest(Header { buf_alloc: 10, ..from_guest(op::CREDIT_UPDATE) }, &[]);
    c.stream.input.extend(b"0123456789abcdef");
    c.read_from_agent();
    let (header, payload) = c.for_guest(4096).unwrap();
    assert_eq!((header.op, payload.len()), (op::RW, 10));
    assert!(c.for_guest(4096).is_none());
    assert!(!c.wants_input());
    c.from_guest(Header { buf_alloc: 10, fwd_cnt: 10, ..from_guest(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(c.for_guest(4096).unwrap().1, b"abcdef");
}

#[test]
fn credit_numbers_without_sense_give_no_room() {
    let mut c = open();
    for (buf_alloc, fwd_cnt) in [(0, 0), (100, 200), (1 << 20, 1), (5, u32::MAX - (1 << 30))] {
        c.from_guest(Header { buf_alloc, fwd_cnt, ..from_guest(op::CREDIT_UPDATE) }, &[]);
        let bound = (buf_alloc as usize).saturating_sub(fwd_cnt.wrapping_neg() as usize);
        assert_eq!(c.guest_room(), bound, "{buf_alloc} {fwd_cnt}");
    }
}

#[test]
fn a_guest_that_asks_without_listening_is_not_heard_beyond_a_limit() {
    let mut c = open();
    let mut taken = 0;
    while c.can_take() {
        c.from_guest(from_guest(op::CREDIT_REQUEST), &[]);
        taken += 1;
        assert!(taken <= MAX_ANSWERS);
    }
    assert_eq!(c.at.answers.len(), MAX_ANSWERS);
    c.for_guest(0).unwrap();
    assert!(c.can_take());
}

#[test]
fn the_agents_end_is_told_once_after_the_last_byte() {
    let mut c = open();
    c.stream.input.extend(b"last");
    c.stream.ended = true;
    c.read_from_agent();
    c.read_from_agent();
    let sent: Vec<_> = std::iter::from_fn(|| c.for_guest(4096)).collect();
    assert_eq!(sent.iter().map(|(h, _)| h.op).collect::<Vec<_>>(), [op::RW, op::SHUTDOWN]);
    assert_eq!((sent[0].1.as_slice(), sent[1].0.flags), (&b"last"[..], SHUTDOWN_SEND));
}

#[test]
fn the_guests_end_reaches_the_agent_after_its_last_byte() {
    let mut c = open();
    c.stream.room = 2;
    c.from_guest(from_guest(op::RW), b"abcd");
    c.from_guest(Header { flags: SHUTDOWN_SEND, ..from_guest(op::SHUTDOWN) }, &[]);
    assert_eq!(c.stream().hung_up, 0);
    c.stream.room = 2;
    c.flush();
    assert_eq!((c.stream().taken.as_slice(), c.stream().hung_up), (&b"abcd"[..], 1));
    c.from_guest(from_guest(op::RW), b"after its end");
    assert_eq!(ops(&mut c), [op::RST]);
    assert_eq!(c.stream().taken, b"abcd");
}

#[test]
fn a_full_shutdown_is_acknowledged_with_a_reset() {
    let mut c = open();
    let flags = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
    c.from_guest(Header { flags, ..from_guest(op::SHUTDOWN) }, &[]);
    assert_eq!(ops(&mut c), [op::RST]);
    assert_eq!(c.stream().hung_up, 1);
}

#[test]
fn a_restarted_driver_does_not_speak_into_the_old_stream() {
    let mut c = open();
    c.reset();
    c.from_guest(from_guest(op::REQUEST), &[]);
    c.from_guest(from_guest(op::RW), b"second life");
    assert!(c.stream().taken.is_empty());
    assert_eq!(c.stream().hung_up, 1);
}

#[test]
fn random_packets_keep_every_bound() {
    use proptest::prelude::*;
    let small = prop_oneof![Just(0u32), Just(1024), Just(5000), any::<u32>()];
    let packet =
        (0u16..9, small.clone(), small.clone(), any::<u32>(), any::<u32>(), 0usize..70_000, 0usize..3000);
    proptest!(ProptestConfig::with_cases(128), |(packets in proptest::collection::vec(packet, 0..60))| {
        let mut c = open();
        c.stream.input.extend(std::iter::repeat_n(7, 100_000));
        for (op, src_port, dst_port, buf_alloc, fwd_cnt, len, room) in packets {
            let ours = len % 3 != 0;
            let header = Header {
                src_port: if ours { GUEST_PORT } else { src_port },
                dst_port: if ours { PORT } else { dst_port },
                buf_alloc,
                fwd_cnt,
                flags: buf_alloc % 4,
                ..from_guest(op)
            };
            c.stream.room = room;
            if c.can_take() {
                c.from_guest(header, &vec![1; len.min(MAX_PAYLOAD as usize)]);
            }
            c.read_from_agent();
            c.flush();
            if let Some((_, payload)) = c.for_guest(room) {
                prop_assert!(payload.len() <= room);
            }
            prop_assert!(c.at.to_agent.len() <= BUFFER as usize);
            prop_assert!(c.at.to_guest.len() <= MAX_PAYLOAD as usize);
            prop_assert!(c.at.answers.len() <= MAX_ANSWERS);
            prop_assert!(c.stream().hung_up <= 1);
        }
    });
}
