//! Two connections at once: what happens on one of them is nothing to the other.

use super::super::GUEST_CID;
use super::super::connection::{BUFFER, MAX_PAYLOAD, op};
use super::*;
use crate::kvm::devices::testing::{Agent, OTHER_PORT, PORT, vsock_header};

fn to(port: u32, op: u16) -> Header {
    Header { dst_port: port, ..vsock_header(op) }
}

fn waiting() -> Connections<Agent> {
    let agent = || Agent { room: usize::MAX, ..Agent::default() };
    Connections::new([(PORT, agent()), (OTHER_PORT, agent())], GUEST_CID)
}

fn open() -> Connections<Agent> {
    let mut c = waiting();
    for port in [PORT, OTHER_PORT] {
        c.from_guest(to(port, op::REQUEST), &[]);
        assert_eq!(packets(&mut c), [(port, op::RESPONSE)]);
    }
    c
}

/// Port and operation of all packets for the guest.
fn packets(c: &mut Connections<Agent>) -> Vec<(u32, u16)> {
    std::iter::from_fn(|| c.for_guest(4096)).map(|(h, _)| (h.src_port, h.op)).collect()
}

fn agent(c: &mut Connections<Agent>, index: usize) -> &mut Agent {
    c.all[index].stream_mut()
}

#[test]
fn a_packet_belongs_to_the_connection_of_the_port_that_it_names() {
    let mut c = open();
    c.from_guest(to(OTHER_PORT, op::RW), b"ssh");
    c.from_guest(to(PORT, op::RW), b"frames");
    assert_eq!(agent(&mut c, 0).taken, b"frames");
    assert_eq!(agent(&mut c, 1).taken, b"ssh");
    for (index, text) in [(0, "to the guest program"), (1, "to sshd")] {
        agent(&mut c, index).input.extend(text.bytes());
        c.read_from_agent();
        let (header, payload) = c.for_guest(4096).unwrap();
        assert_eq!((header.src_port, header.op, payload), ([PORT, OTHER_PORT][index], op::RW, text.into()));
    }
}

#[test]
fn a_port_is_connected_once_whatever_becomes_of_the_other() {
    let mut c = open();
    c.from_guest(to(PORT, op::RST), &[]);
    assert_eq!((agent(&mut c, 0).hung_up, agent(&mut c, 1).hung_up), (1, 0));
    for port in [PORT, OTHER_PORT] {
        // From another port of the guest, on which it has no connection.
        c.from_guest(Header { src_port: 78, ..to(port, op::REQUEST) }, &[]);
        assert_eq!(packets(&mut c), [(port, op::RST)]);
    }
    c.from_guest(to(OTHER_PORT, op::RW), b"still here");
    assert_eq!(agent(&mut c, 1).taken, b"still here");
}

#[test]
fn a_port_without_a_listener_is_reset_and_touches_nobody() {
    let mut c = open();
    for port in [0, 22, PORT - 1, OTHER_PORT + 1, u32::MAX] {
        for operation in [op::REQUEST, op::RW, op::SHUTDOWN, 99] {
            c.from_guest(to(port, operation), b"");
            assert_eq!(packets(&mut c), [(port, op::RST)]);
        }
        c.from_guest(to(port, op::RST), b"");
        assert_eq!(packets(&mut c), []);
    }
    assert_eq!((agent(&mut c, 0).hung_up, agent(&mut c, 1).hung_up), (0, 0));
}

#[test]
fn a_stalled_agent_of_one_port_costs_the_credit_of_that_port_alone() {
    for (stalled, port, other_port) in [(0, PORT, OTHER_PORT), (1, OTHER_PORT, PORT)] {
        let mut c = open();
        agent(&mut c, stalled).room = 0;
        let payload = vec![1; MAX_PAYLOAD as usize];
        for _ in 0..BUFFER / MAX_PAYLOAD {
            c.from_guest(to(port, op::RW), &payload);
        }
        // Nothing but credit for what the other one took.
        for _ in 0..4 * BUFFER / MAX_PAYLOAD {
            c.from_guest(to(other_port, op::RW), &payload);
            assert!(packets(&mut c).iter().all(|packet| *packet == (other_port, op::CREDIT_UPDATE)));
        }
        assert_eq!(agent(&mut c, 1 - stalled).taken.len(), 4 * BUFFER as usize);
        c.from_guest(to(port, op::RW), &[1]);
        assert_eq!(packets(&mut c), [(port, op::RST)]);
        c.from_guest(to(other_port, op::RW), &[1]);
        assert_eq!(agent(&mut c, 1 - stalled).taken.len(), 4 * BUFFER as usize + 1);
    }
}

#[test]
fn a_program_that_does_not_read_one_stream_gets_the_other() {
    let mut c = open();
    for index in [0, 1] {
        agent(&mut c, index).input.extend([7; 20_000]);
    }
    c.from_guest(Header { buf_alloc: 0, ..to(PORT, op::CREDIT_UPDATE) }, &[]);
    c.read_from_agent();
    assert_eq!(packets(&mut c), [(OTHER_PORT, op::RW); 5]);
    assert!(!c.has_for_guest());
    c.from_guest(Header { buf_alloc: 100, ..to(PORT, op::CREDIT_UPDATE) }, &[]);
    c.read_from_agent();
    assert_eq!(packets(&mut c), [(PORT, op::RW)]);
}

#[test]
fn connections_that_have_much_to_say_take_turns() {
    let mut c = open();
    for index in [0, 1] {
        agent(&mut c, index).input.extend([7; MAX_PAYLOAD as usize]);
    }
    c.read_from_agent();
    let ports: Vec<_> = packets(&mut c).into_iter().map(|(port, _)| port).collect();
    assert_eq!(ports.len(), 2 * MAX_PAYLOAD as usize / 4096);
    assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
}

#[test]
fn answers_that_the_guest_does_not_take_stop_it_on_every_port() {
    let mut c = open();
    let mut taken = 0;
    while c.can_take() {
        c.from_guest(to([PORT, OTHER_PORT, 9][taken % 3], op::CREDIT_REQUEST), &[]);
        taken += 1;
        assert!(taken <= 128);
    }
    // The connection of the first port answers for those without a listener, too.
    assert_eq!(packets(&mut c).len(), taken);
    assert!(c.can_take());
}

#[test]
fn a_restarted_driver_speaks_into_neither_of_the_old_streams() {
    let mut c = open();
    c.reset();
    for port in [PORT, OTHER_PORT] {
        c.from_guest(to(port, op::REQUEST), &[]);
        c.from_guest(to(port, op::RW), b"second life");
    }
    for index in [0, 1] {
        assert_eq!((agent(&mut c, index).taken.len(), agent(&mut c, index).hung_up), (0, 1));
    }
}

#[test]
fn the_state_of_other_ports_or_of_too_much_changes_no_connection() {
    let mut from = open();
    from.from_guest(to(OTHER_PORT, op::SHUTDOWN), &[]);
    let saved = from.save();
    let text = serde_json::to_string(&saved).unwrap();
    let mut to = waiting();
    to.restore(&serde_json::from_str::<Vec<Saved>>(&text).unwrap()).unwrap();
    assert_eq!(to.save(), saved);

    let fresh = waiting().save();
    let swapped = vec![saved[1].clone(), saved[0].clone()];
    let mut too_much = serde_json::to_value(&saved).unwrap();
    too_much[1]["state"]["to_guest"] = serde_json::json!(vec![0; MAX_PAYLOAD as usize + 1]);
    let too_much = serde_json::from_value(too_much).unwrap();
    for wrong in [vec![], saved[..1].to_vec(), swapped, too_much] {
        let mut to = waiting();
        let error = to.restore(&wrong).unwrap_err().to_string();
        assert!(error.starts_with("cannot restore the vsock: it"), "{error}");
        assert_eq!(to.save(), fresh);
    }
}

#[test]
fn random_packets_to_two_ports_keep_every_bound() {
    use proptest::prelude::*;
    let port = prop_oneof![4 => Just(PORT), 4 => Just(OTHER_PORT), 1 => any::<u32>()];
    let packet = (0u16..9, port, any::<bool>(), any::<u32>(), any::<u32>(), 0usize..70_000, 0usize..3000);
    proptest!(ProptestConfig::with_cases(128), |(packets in proptest::collection::vec(packet, 0..60))| {
        let mut c = open();
        for index in [0, 1] {
            agent(&mut c, index).input.extend(std::iter::repeat_n(index as u8, 100_000));
        }
        let mut sent = [0; 2];
        for (op, port, ours, buf_alloc, fwd_cnt, len, room) in packets {
            let src_port = if ours { 77 } else { buf_alloc };
            let header = Header { src_port, buf_alloc, fwd_cnt, flags: buf_alloc % 4, ..to(port, op) };
            let len = len.min(MAX_PAYLOAD as usize);
            agent(&mut c, len % 2).room = room;
            if c.can_take() {
                if let Some(index) = [PORT, OTHER_PORT].iter().position(|known| *known == port) {
                    sent[index] += len;
                }
                c.from_guest(header, &vec![1; len]);
            }
            c.read_from_agent();
            c.flush();
            if let Some((header, payload)) = c.for_guest(room) {
                prop_assert!(payload.len() <= room);
                // What was sent on one stream does not come from the other.
                let expected = u8::from(header.src_port == OTHER_PORT);
                prop_assert!(payload.iter().all(|byte| *byte == expected));
            }
            for (connection, sent) in c.iter().zip(sent) {
                prop_assert!(connection.held() <= (BUFFER + MAX_PAYLOAD) as usize);
                prop_assert!(connection.state().check().is_ok());
                prop_assert!(connection.stream().taken.len() <= sent);
                prop_assert!(connection.stream().hung_up <= 1);
            }
        }
    });
}
