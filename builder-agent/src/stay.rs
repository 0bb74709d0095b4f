//! Whether a home may stay: its member pays for its processor time while it runs, and a month's can be used up meanwhile.
//!
//! A build goes on then, because it ends by itself and others may wait for it; a home would not end as long as it is used.

use std::sync::Arc;

use builds::monthly::Monthly;
use homes::MayStay;
use ledger::Ledger;
use members::Roster;
use settings::Config;
use tokio::sync::watch;

pub fn until_the_month_is_used_up(
    config: &Arc<Config>,
    ledger: &Ledger,
    roster: &watch::Receiver<Arc<Roster>>,
) -> MayStay {
    let (config, ledger, roster) = (config.clone(), ledger.clone(), roster.clone());
    Arc::new(move |member| {
        let roster = roster.borrow().clone();
        // With the limits of now. Who has left the roster loses the home for that reason.
        let Some(member) = roster.current(member) else { return Ok(()) };
        let is_over = |limit: &Monthly| limit.is_used_up(&limit.used(&ledger, &roster, member));
        match Monthly::of(&config, member).into_iter().find(is_over) {
            None => Ok(()),
            Some(limit) => Err(format!(
                "the {} CPU hours of {} are used up, which is the limit ({})",
                limit.hours,
                ledger.this_month(),
                limit.set_by
            )),
        }
    })
}
