use std::pin::pin;
use std::task::{Context, Waker};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn gate_with(startups: &str, per_source: usize, exempt: &str) -> Arc<Gate> {
    let penalties: Penalties =
        "crash:90 authfail:5 probe:1 noauth:1 grace-exceeded:10 min:30 max:600".parse().expect("penalties");
    let rules = Rules {
        startups: startups.parse().expect("startups"),
        per_source,
        blocks: "32:64".parse().expect("blocks"),
        penalties,
        exempt: exempt.split_whitespace().map(|network| network.parse().expect("a network")).collect(),
    };
    let state = State {
        strangers: BTreeMap::new(),
        by_source: HashMap::new(),
        guests: HashMap::new(),
        penalties: Table::new(penalties.min, penalties.max),
        next: 0,
        dice: 1,
    };
    Arc::new(Gate { rules, state: Mutex::new(state) })
}

fn gate() -> Arc<Gate> {
    gate_with("1000:100:1000", 1000, "")
}

fn peer(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn knock(gate: &Arc<Gate>, n: u8) -> Arc<Visit> {
    gate.knock(peer(n)).expect("let in")
}

fn left(visit: &Visit) -> bool {
    pin!(visit.must_leave()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Fails a login with this many offered keys.
fn fails(gate: &Arc<Gate>, n: u8, offers: u32) {
    let visit = knock(gate, n);
    for _ in 0..offers {
        visit.offered();
    }
}

#[test]
fn who_fills_the_gate_pushes_out_their_own_and_no_member() {
    let gate = gate_with("4:100:4", 3, "");
    let member = knock(&gate, 1);
    assert!(member.admit());
    let other = knock(&gate, 2);
    let mut crowd: Vec<_> = (0..200).map(|_| knock(&gate, 3)).collect();
    let newest = crowd.split_off(197);
    assert!(crowd.iter().all(|visit| left(visit)), "the oldest of the crowd are still here");
    assert!(!newest.iter().any(|visit| left(visit)));
    assert!(!left(&member) && !left(&other), "somebody else had to leave");
    assert_eq!(gate.lock().strangers.len(), 4);
    // Two large sources and a newcomer from a third: the larger of the two makes room, whichever came first.
    let late = knock(&gate, 4);
    assert!(!left(&other) && !left(&late));
    assert!(left(&newest[0]));
    assert!(other.admit() && late.admit());
}

#[test]
fn who_had_to_leave_cannot_be_admitted_any_more() {
    let gate = gate_with("1:100:1", 10, "");
    let first = knock(&gate, 1);
    let _second = knock(&gate, 2);
    assert!(left(&first) && !first.admit());
    assert!(gate.lock().guests.is_empty());
}

#[test]
fn early_drops_are_by_chance_and_rise_to_certainty() {
    let gate = gate_with("10:30:1000", 5000, "");
    let visits: Vec<_> = (0..2000).map(|_| knock(&gate, 1)).collect();
    let dropped = visits.iter().filter(|visit| left(visit)).count();
    let there = gate.lock().strangers.len();
    assert!(there <= 1000 && dropped + there == 2000, "{dropped} dropped, {there} there");
    let early = visits[..100].iter().filter(|visit| left(visit)).count();
    assert!(early == 0, "told twice");
    assert!(dropped > 1000, "nobody was dropped before it was full: {dropped}");
}

#[test]
fn failed_logins_close_the_door_for_their_source_alone() {
    let gate = gate();
    for _ in 0..4 {
        fails(&gate, 1, 1);
    }
    knock(&gate, 1);
    fails(&gate, 1, 1);
    let left = gate.knock(peer(1)).err().expect("held off");
    assert!(left > 29 * SECOND && left < 40 * SECOND, "{left:?}");
    knock(&gate, 2);
    let later = Instant::now() + 40 * SECOND;
    assert!(gate.knock_at(peer(1), later).is_ok(), "held off for ever");
}

#[test]
fn every_key_that_is_tried_counts() {
    let gate = gate();
    fails(&gate, 1, 60);
    let left = gate.knock(peer(1)).err().expect("held off");
    assert!(left > 60 * SECOND, "{left:?}");
}

#[test]
fn keys_tried_before_the_right_one_are_forgiven() {
    let gate = gate();
    for _ in 0..20 {
        let visit = knock(&gate, 1);
        for _ in 0..25 {
            visit.offered();
        }
        assert!(visit.admit());
    }
    knock(&gate, 1);
}

#[test]
fn a_member_who_is_logged_in_is_not_locked_out_by_neighbours_behind_one_address() {
    let gate = gate();
    let member = knock(&gate, 1);
    assert!(member.admit());
    fails(&gate, 1, 60);
    assert!(knock(&gate, 1).admit(), "another connection of the member");
    drop(member);
    assert!(gate.knock(peer(1)).is_err(), "the penalty is forgotten");
}

#[test]
fn what_is_no_ssh_is_held_off_at_once_and_who_hangs_up_after_many() {
    let gate = gate();
    knock(&gate, 1).ends(Ending::Malformed);
    assert!(gate.knock(peer(1)).is_err());
    // A client that only checks whether the port answers, like a monitor.
    for _ in 0..29 {
        drop(knock(&gate, 2));
    }
    knock(&gate, 2).ends(Ending::Known);
    for _ in 0..4 {
        knock(&gate, 3).ends(Ending::Late);
    }
    assert!(gate.knock(peer(3)).is_err());
}

#[test]
fn exempt_sources_gather_no_penalties_but_have_a_share_like_others() {
    let gate = gate_with("100:100:100", 2, "192.0.2.0/28");
    for _ in 0..10 {
        fails(&gate, 1, 60);
    }
    let visits = [knock(&gate, 1), knock(&gate, 1), knock(&gate, 1)];
    assert!(left(&visits[0]) && !left(&visits[2]));
}

#[test]
fn nothing_is_left_of_those_who_went() {
    let gate = gate();
    for n in 0..100 {
        let visit = knock(&gate, n);
        if n % 2 == 0 {
            assert!(visit.admit());
        }
    }
    let state = gate.lock();
    assert!(state.strangers.is_empty() && state.by_source.is_empty() && state.guests.is_empty());
}
