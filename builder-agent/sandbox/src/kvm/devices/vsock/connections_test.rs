//! Several connections at once: what happens on one of them is nothing to the others. Streams come and go.

use super::super::GUEST_CID;
use super::super::connection::{BUFFER, MAX_PAYLOAD, op};
use super::*;
use crate::kvm::devices::testing::{Agent, OTHER_PORT, PORT, vsock_header};

fn to(port: u32, op: u16) -> Header {
    Header { dst_port: port, ..vsock_header(op) }
}

fn waiting() -> Connections<Agent> {
    let agent = || Agent { room: usize::MAX, ..Agent::default() };
    let mut c = Connections::new(PORT, agent(), GUEST_CID);
    c.plug(OTHER_PORT, agent()).unwrap();
    c
}

/// As if all streams were ready.
fn read(c: &mut Connections<Agent>) {
    let ids: Vec<_> = c.iter().map(|(id, _)| id).collect();
    ids.into_iter().for_each(|id| c.ready(id, false));
}

/// The plugged stream at this port has ended in both directions.
fn stream_ended(c: &mut Connections<Agent>, port: u32) {
    let index = c.at(port).unwrap();
    agent(c, index).ended = true;
    c.ready(c.all[index].id, true);
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
    c.all[index].connection.stream_mut()
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
        read(&mut c);
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
    read(&mut c);
    assert_eq!(packets(&mut c), [(OTHER_PORT, op::RW); 5]);
    assert!(!c.has_for_guest());
    c.from_guest(Header { buf_alloc: 100, ..to(PORT, op::CREDIT_UPDATE) }, &[]);
    read(&mut c);
    assert_eq!(packets(&mut c), [(PORT, op::RW)]);
}

#[test]
fn connections_that_have_much_to_say_take_turns() {
    let mut c = open();
    for index in [0, 1] {
        agent(&mut c, index).input.extend([7; MAX_PAYLOAD as usize]);
    }
    read(&mut c);
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
    assert_eq!(c.all.len(), 1);
    let ends = [
        (agent(&mut c, 0).taken.len(), agent(&mut c, 0).hung_up),
        (c.ended[0].taken.len(), c.ended[0].hung_up),
    ];
    assert_eq!(ends, [(0, 1); 2]);
}

#[test]
fn the_first_connection_continues_elsewhere_and_a_state_of_too_much_changes_nothing() {
    let mut from = open();
    from.from_guest(to(PORT, op::SHUTDOWN), &[]);
    let saved = from.save();
    let text = serde_json::to_string(&saved).unwrap();
    let mut there = waiting();
    there.restore(&serde_json::from_str::<State>(&text).unwrap()).unwrap();
    assert_eq!(there.save(), saved);

    let mut too_much = serde_json::to_value(&saved).unwrap();
    too_much["to_guest"] = serde_json::json!(vec![0; MAX_PAYLOAD as usize + 1]);
    let mut there = waiting();
    let fresh = there.save();
    let error = there.restore(&serde_json::from_value(too_much).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("cannot restore the vsock: it"), "{error}");
    assert_eq!(there.save(), fresh);
}

#[test]
fn a_plugged_port_is_free_when_its_connection_is_over_and_not_before() {
    let shutdown = |flags| Header { flags, ..to(OTHER_PORT, op::SHUTDOWN) };
    let (receive, send) =
        (super::super::connection::SHUTDOWN_RECEIVE, super::super::connection::SHUTDOWN_SEND);
    // What happens, in steps after which the port is in use, but for the last one; and what the guest is told at its end.
    type Step<'a> = &'a dyn Fn(&mut Connections<Agent>);
    let steps: [(&str, &[Step], &[u16]); 8] = [
        ("reset", &[&|c| c.from_guest(to(OTHER_PORT, op::RST), &[])], &[]),
        ("all at once", &[&|c| c.from_guest(shutdown(send | receive), &[])], &[op::RST]),
        ("twice", &[&|c| c.from_guest(to(OTHER_PORT, op::REQUEST), &[])], &[op::RST]),
        (
            "one by one",
            &[&|c| c.from_guest(shutdown(send), &[]), &|c| c.from_guest(shutdown(receive), &[])],
            &[op::RST],
        ),
        (
            "each its own, the guest first",
            &[&|c| c.from_guest(shutdown(send), &[]), &|c| {
                agent(c, 1).ended = true;
                read(c);
                assert_eq!(packets(c), [(OTHER_PORT, op::SHUTDOWN)]);
            }],
            &[op::RST],
        ),
        (
            "each its own, the agent first",
            &[
                &|c| {
                    agent(c, 1).ended = true;
                    read(c);
                    assert_eq!(packets(c), [(OTHER_PORT, op::SHUTDOWN)]);
                },
                &|c| c.from_guest(shutdown(send), &[]),
            ],
            &[op::RST],
        ),
        (
            "with bytes that the agent has not taken",
            &[
                &|c| {
                    agent(c, 1).room = 3;
                    c.from_guest(to(OTHER_PORT, op::RW), b"last words");
                },
                &|c| {
                    c.from_guest(to(OTHER_PORT, op::RST), &[]);
                },
                &|c| {
                    agent(c, 1).room = 100;
                    c.flush();
                    assert_eq!(agent(c, 1).taken, b"last words");
                },
            ],
            &[],
        ),
        (
            "given up by the agent, with its last words",
            &[
                &|c| {
                    agent(c, 1).input.extend(b"last words");
                    stream_ended(c, OTHER_PORT);
                },
                &|c| {
                    let (_, words) = c.for_guest(4096).unwrap();
                    assert_eq!(words, b"last words");
                    read(c);
                    assert_eq!(packets(c), [(OTHER_PORT, op::SHUTDOWN)]);
                },
            ],
            &[op::RST],
        ),
    ];
    for (name, steps, told) in steps {
        let mut c = open();
        for (number, step) in steps.iter().enumerate() {
            assert!(c.at(OTHER_PORT).is_some(), "{name}: before step {number}");
            step(&mut c);
            c.settle();
        }
        assert_eq!((c.all.len(), c.ended.len(), c.ended[0].hung_up), (1, 1, 1), "{name}");
        let told: Vec<_> = told.iter().map(|op| (OTHER_PORT, *op)).collect();
        assert_eq!(packets(&mut c), told, "{name}");
        c.release();
        // Without a stream it is as any other port; with one it takes a connection again.
        c.from_guest(to(OTHER_PORT, op::REQUEST), &[]);
        assert_eq!(packets(&mut c), [(OTHER_PORT, op::RST)], "{name}");
        c.plug(OTHER_PORT, Agent { room: 100, ..Agent::default() }).unwrap();
        c.from_guest(to(OTHER_PORT, op::REQUEST), &[]);
        assert_eq!(packets(&mut c), [(OTHER_PORT, op::RESPONSE)], "{name}");
        c.from_guest(to(OTHER_PORT, op::RW), b"new");
        assert_eq!(agent(&mut c, 1).taken, b"new");
        c.from_guest(to(PORT, op::RW), b"untouched");
        assert_eq!(
            (agent(&mut c, 0).taken.clone(), agent(&mut c, 0).hung_up),
            (b"untouched".to_vec(), 0),
            "{name}"
        );
    }
}

#[test]
fn a_port_whose_agent_is_gone_before_the_guest_comes_is_free() {
    let mut c = waiting();
    stream_ended(&mut c, OTHER_PORT);
    c.settle();
    assert_eq!((c.all.len(), c.ended.len()), (1, 1));
    assert_eq!(packets(&mut c), []);
    c.from_guest(to(OTHER_PORT, op::REQUEST), &[]);
    assert_eq!(packets(&mut c), [(OTHER_PORT, op::RST)]);
}

#[test]
fn a_stream_for_a_port_in_use_or_outside_of_the_range_changes_nothing() {
    let mut c = open();
    for port in [PORT, 0, *SSH_PORTS.end() + 1, u32::MAX] {
        assert_eq!(c.plug(port, Agent::default()), Err(PlugError::NoSuchPort { port }));
    }
    assert_eq!(c.plug(OTHER_PORT, Agent::default()), Err(PlugError::InUse { port: OTHER_PORT }));
    // Half of it is not all of it.
    c.from_guest(Header { flags: 2, ..to(OTHER_PORT, op::SHUTDOWN) }, &[]);
    c.settle();
    assert_eq!(c.plug(OTHER_PORT, Agent::default()), Err(PlugError::InUse { port: OTHER_PORT }));
    assert_eq!((c.all.len(), c.ended.len(), packets(&mut c)), (2, 0, vec![]));
    for port in SSH_PORTS.skip(1) {
        c.plug(port, Agent::default()).unwrap();
    }
    assert_eq!(c.all.len(), 65);
}

/// Whatever the guest leaves undone, it does not keep a port for which the agent has no use.
#[test]
fn a_guest_that_neither_ends_nor_takes_anything_loses_the_port_when_the_agent_wants_it() {
    for half_closed in [false, true] {
        let mut c = open();
        let flags = if half_closed { 2 } else { 0 };
        c.from_guest(Header { flags, buf_alloc: 0, ..to(OTHER_PORT, op::SHUTDOWN) }, &[]);
        agent(&mut c, 1).input.extend(b"of the old stream");
        stream_ended(&mut c, OTHER_PORT);
        c.settle();
        assert_eq!((c.all.len(), packets(&mut c)), (2, vec![]));
        let old = c.all[1].id;
        c.plug(OTHER_PORT, Agent { room: 100, ..Agent::default() }).unwrap();
        assert_eq!((c.all.len(), packets(&mut c)), (2, vec![(OTHER_PORT, op::RST)]));
        // Late events, and packets, of the old one.
        c.ready(old, true);
        c.from_guest(to(OTHER_PORT, op::RW), b"old");
        assert_eq!(packets(&mut c), [(OTHER_PORT, op::RST)]);
        c.settle();
        c.from_guest(Header { src_port: 78, ..to(OTHER_PORT, op::REQUEST) }, &[]);
        c.from_guest(Header { src_port: 78, ..to(OTHER_PORT, op::RW) }, b"new");
        assert_eq!(packets(&mut c), [(OTHER_PORT, op::RESPONSE)]);
        assert_eq!(agent(&mut c, 1).taken, b"new");
    }
}

#[test]
fn what_a_guest_does_at_a_plugged_port_out_of_order_is_reset_and_touches_nobody_else() {
    let mut c = waiting();
    c.from_guest(to(PORT, op::REQUEST), &[]);
    packets(&mut c);
    // Without a request.
    for operation in [op::RW, op::SHUTDOWN, op::CREDIT_REQUEST, op::RESPONSE, 99] {
        c.from_guest(to(OTHER_PORT, operation), b"data");
        assert_eq!(packets(&mut c), [(OTHER_PORT, op::RST)]);
    }
    c.settle();
    c.from_guest(to(OTHER_PORT, op::REQUEST), &[]);
    assert_eq!(packets(&mut c), [(OTHER_PORT, op::RESPONSE)]);
    // From another of its ports, and again to the first port of the agent.
    c.from_guest(Header { src_port: 78, ..to(OTHER_PORT, op::REQUEST) }, &[]);
    c.from_guest(Header { src_port: 78, ..to(PORT, op::REQUEST) }, &[]);
    assert_eq!(packets(&mut c).iter().filter(|packet| packet.1 == op::RST).count(), 2);
    for index in [0, 1] {
        assert_eq!((agent(&mut c, index).taken.len(), agent(&mut c, index).hung_up), (0, 0));
    }
    c.settle();
    for port in [PORT, OTHER_PORT] {
        c.from_guest(to(port, op::RW), b"goes on");
    }
    assert_eq!([0, 1].map(|index| agent(&mut c, index).taken.clone()), [b"goes on"; 2]);
}

/// All ports connected; the agent takes everything.
fn full() -> Connections<Agent> {
    let mut c = open();
    for port in SSH_PORTS.skip(1) {
        c.plug(port, Agent { room: usize::MAX, ..Agent::default() }).unwrap();
        c.from_guest(to(port, op::REQUEST), &[]);
        assert_eq!(packets(&mut c), [(port, op::RESPONSE)]);
    }
    c
}

#[test]
fn of_65_connections_each_has_its_turn_also_when_some_end() {
    let mut c = full();
    for index in 0..65 {
        agent(&mut c, index).input.extend([7; 8192]);
    }
    read(&mut c);
    let first: Vec<_> = (0..30).map(|_| c.for_guest(4096).unwrap().0.src_port).collect();
    for port in [1030, 1031, 1080] {
        c.from_guest(to(port, op::RST), &[]);
    }
    c.settle();
    let rest = packets(&mut c).into_iter().map(|(port, _)| port);
    let all: Vec<_> = first.into_iter().chain(rest).collect();
    // Nobody is asked a second time before all others were asked once.
    for (round, len) in [(&all[..64], 64), (&all[64..126], 62)] {
        let ports: std::collections::BTreeSet<_> = round.iter().collect();
        assert_eq!(ports.len(), len, "{all:?}");
    }
    assert_eq!(all.len(), 126);
}

#[test]
fn connections_that_are_stalled_on_either_side_do_not_hold_the_last_one() {
    let mut c = full();
    let payload = vec![1; MAX_PAYLOAD as usize];
    for index in 0..64 {
        let port = c.all[index].connection.port();
        agent(&mut c, index).input.extend([7; 8192]);
        match index % 2 {
            // The agent does not read; the guest does not read.
            0 => {
                agent(&mut c, index).room = 0;
                (0..4).for_each(|_| c.from_guest(to(port, op::RW), &payload));
            }
            _ => c.from_guest(Header { buf_alloc: 0, ..to(port, op::CREDIT_UPDATE) }, &[]),
        }
    }
    read(&mut c);
    packets(&mut c);
    let last = *SSH_PORTS.end();
    for _ in 0..20 {
        assert!(c.can_take());
        c.from_guest(to(last, op::RW), &payload);
        agent(&mut c, 64).input.extend([7; 4096]);
        read(&mut c);
        c.flush();
        c.settle();
        assert_eq!(packets(&mut c).iter().filter(|packet| **packet == (last, op::RW)).count(), 1);
    }
    assert_eq!(agent(&mut c, 64).taken.len(), 20 * payload.len());
    assert_eq!(c.all.len(), 65);
}

#[test]
fn what_connections_that_are_over_had_to_say_is_said_and_is_bounded() {
    let mut c = full();
    for port in SSH_PORTS {
        for _ in 0..3 {
            c.from_guest(to(port, op::CREDIT_REQUEST), &[]);
        }
        stream_ended(&mut c, port);
    }
    // The guest takes nothing, and the agent needs the ports.
    for port in SSH_PORTS {
        c.plug(port, Agent::default()).unwrap();
        stream_ended(&mut c, port);
    }
    c.settle();
    assert_eq!((c.all.len(), c.answers.len()), (1, MAX_ANSWERS));
    assert!(!c.can_take());
    assert_eq!(packets(&mut c).len(), MAX_ANSWERS);
    assert!(c.can_take());
    assert_eq!(c.ended.len(), 128);
    c.release();
    assert!(c.ended.is_empty());
}

#[test]
fn random_packets_to_ports_that_come_and_go_keep_every_bound() {
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
            let index = (len % 2).min(c.all.len() - 1);
            agent(&mut c, index).room = room;
            if c.can_take() {
                if let Some(index) = [PORT, OTHER_PORT].iter().position(|known| *known == port) {
                    sent[index] += len;
                }
                c.from_guest(header, &vec![1; len]);
            }
            if len % 7 == 0 && c.at(OTHER_PORT).is_some() {
                stream_ended(&mut c, OTHER_PORT);
            }
            read(&mut c);
            c.flush();
            c.settle();
            if let Some((header, payload)) = c.for_guest(room) {
                prop_assert!(payload.len() <= room);
                // What was sent on one stream does not come from the other.
                let expected = u8::from(header.src_port == OTHER_PORT);
                prop_assert!(payload.iter().all(|byte| *byte == expected));
            }
            for ((_, connection), sent) in c.iter().zip(sent) {
                prop_assert!(connection.held() <= (BUFFER + MAX_PAYLOAD) as usize);
                prop_assert!(connection.state().check().is_ok());
                prop_assert!(connection.stream().taken.len() <= sent);
                prop_assert!(connection.stream().hung_up <= 1);
            }
            prop_assert!(c.answers.len() <= MAX_ANSWERS);
            prop_assert!(c.ended.iter().all(|agent| agent.hung_up == 1));
            c.release();
            // Refused if there is one, whose agent has not given it up.
            let input = std::iter::repeat_n(1, 100_000).collect();
            if c.plug(OTHER_PORT, Agent { input, ..Agent::default() }).is_ok() {
                sent[1] = 0;
            }
        }
    });
}
