//! Charges members for the space that they take in the store: once a minute, for the time since the last look.
//!
//! What a member has is a level and not an event, so nobody can charge it where it is spent. A path that comes and goes
//! between two looks costs nothing; its bytes were charged as they arrived. Not here: who is charged for which path (`store`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::{Ledger, Principal, Resource};
use store::{Charged, Store};
use tickets::Tickets;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// Longest time that one look charges for: a machine that slept did not serve.
const LONGEST: Duration = Duration::from_secs(300);

/// Runs until the process ends.
pub async fn charge_for_space(store: Store, ledger: Ledger, tickets: Tickets) {
    // The first look is for the levels alone: a box that is up for less than a minute has them too.
    let mut last = Instant::now();
    loop {
        let time = last.elapsed().min(LONGEST);
        last = Instant::now();
        let (store, ledger, tickets) = (store.clone(), ledger.clone(), tickets.clone());
        let look = move || charge(&ledger, by_payer(store.charged(), &tickets), time);
        if let Err(error) = tokio::task::spawn_blocking(look).await {
            tracing::error!(%error, "charging for the store was lost; this is a bug");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What each member is charged for, with what the holders of their tickets have.
fn by_payer(
    charged: impl IntoIterator<Item = (store::Member, Charged)>,
    tickets: &Tickets,
) -> BTreeMap<Arc<str>, Charged> {
    let mut levels = BTreeMap::<Arc<str>, Charged>::new();
    let mut makers = None;
    for (owner, its) in charged {
        let id: Arc<str> = owner.name().into();
        let payer = if id.starts_with(tickets::PREFIX) {
            let of = |ticket: Arc<tickets::Ticket>| (ticket.id.clone(), ticket.maker.clone());
            let makers: &mut BTreeMap<_, _> =
                makers.get_or_insert_with(|| tickets.list(|_| true).into_iter().map(of).collect());
            makers.get(&id).cloned()
        } else {
            Some(id)
        };
        if let Some(payer) = payer {
            *levels.entry(payer).or_default() += its;
        }
    }
    levels
}

/// Charges each member for this long.
fn charge(ledger: &Ledger, levels: impl IntoIterator<Item = (Arc<str>, Charged)>, time: Duration) {
    for (member, Charged { bytes, paths, references }) in levels {
        let millis = time.as_millis();
        let space = (u128::from(bytes) * millis) >> 20;
        let charges = [
            (Resource::StoreMibSeconds, u64::try_from(space).unwrap_or(u64::MAX)),
            (Resource::StoreBytesPeak, bytes),
            (Resource::StorePathsPeak, paths),
            (Resource::StoreReferencesPeak, references),
        ];
        ledger.charge(&Principal::of(&member), charges);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_charged_by_time_and_the_most_of_a_day_is_known() {
        let ledger = Ledger::in_memory();
        let level = |mib: u64, paths| Charged { bytes: mib << 20, paths, references: 2 * paths };
        for (mib, paths, seconds) in [(100, 7, 60), (300, 9, 60), (10, 1, 30)] {
            charge(&ledger, [("alice".into(), level(mib, paths))], Duration::from_secs(seconds));
        }
        let used = ledger.used_this_month(&Principal::member("alice"));
        assert_eq!(used.get(Resource::StoreMibSeconds), (100 * 60 + 300 * 60 + 10 * 30) * 1000);
        assert_eq!(used.get(Resource::StoreBytesPeak), 300 << 20);
        assert_eq!((used.get(Resource::StorePathsPeak), used.get(Resource::StoreReferencesPeak)), (9, 18));
    }

    #[test]
    fn what_the_holder_of_a_ticket_has_is_its_makers() {
        let tickets = Tickets::in_memory();
        let terms = tickets::Terms {
            expires: u64::MAX,
            uses: None,
            max_build_seconds: None,
            max_upload_bytes: None,
            max_jobs: None,
            scope: tickets::Scope::Build,
            bind_key: None,
        };
        let new =
            tickets::New { name: "friend".into(), maker: "alice".into(), terms, revealable: false, most: 1 };
        let (ticket, _) = tickets.make(new).expect("a ticket");
        let level = |bytes| Charged { bytes, paths: 1, references: 0 };
        let charged =
            [("alice", level(5)), ("bob", level(7)), (&*ticket.id, level(11)), ("ticket:gone", level(3))];
        let levels = by_payer(charged.map(|(id, level)| (store::Member::new(id), level)), &tickets);
        let levels: Vec<(&str, u64)> = levels.iter().map(|(id, level)| (&**id, level.bytes)).collect();
        assert_eq!(levels, [("alice", 16), ("bob", 7)]);
    }
}
