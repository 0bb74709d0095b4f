//! Deletes the data of identities that no name has any more, and of holders of tickets that have ended: claims, roots,
//! logs. No member sees this data; it only takes space.
//!
//! A session of such an identity that is still ending may hold some of it, so the rest is tried again later.

use std::sync::Arc;
use std::time::Duration;

use store::{Collect, CollectAction, Member, Store};
use tokio::sync::watch;

use builds::kept::KeptLogs;
use members::{Identities, Roster};
use tickets::Tickets;

/// Time between two tries. Only disk space depends on it.
const AGAIN: Duration = Duration::from_secs(60);

/// The identities that have left.
pub struct Gone {
    pub identities: Arc<Identities>,
    pub tickets: Tickets,
}

impl Gone {
    fn list(&self) -> Vec<String> {
        let tickets = self.tickets.gone().into_iter().map(|id| id.to_string());
        self.identities.gone().into_iter().chain(tickets).collect()
    }

    fn dropped(&self, id: &str) -> Result<(), String> {
        match id.starts_with(tickets::PREFIX) {
            true => self.tickets.dropped(id),
            false => self.identities.dropped(id).map_err(|error| error.to_string()),
        }
    }
}

/// Runs for as long as the roster is followed.
pub async fn drop_their_things(
    gone: Gone,
    store: Store,
    kept: Arc<KeptLogs>,
    mut roster: watch::Receiver<Arc<Roster>>,
) {
    loop {
        for id in gone.list() {
            let (store, kept, who) = (store.clone(), kept.clone(), id.clone());
            match tokio::task::spawn_blocking(move || drop_things(&store, &kept, &who)).await {
                Ok(Ok(true)) => match gone.dropped(&id) {
                    Ok(()) => tracing::info!(id, "claims of a former member are removed"),
                    Err(error) => {
                        tracing::error!(
                            id,
                            error,
                            "cannot record that the claims of a former member are removed"
                        )
                    }
                },
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::error!(id, error, "cannot remove the claims of a former member"),
                Err(error) => {
                    tracing::error!(id, %error, "removing the claims of a former member failed; this is a bug")
                }
            }
        }
        tokio::select! {
            changed = roster.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !gone.list().is_empty() => {}
        }
    }
}

/// Whether all data of this identity is deleted.
fn drop_things(store: &Store, kept: &KeptLogs, id: &str) -> Result<bool, String> {
    let view = store.view(&Member::new(id));
    for name in view.roots().into_keys() {
        view.remove_root(&name).map_err(|error| error.to_string())?;
    }
    let all = |action| Collect { action, paths: Default::default(), max_freed: u64::MAX };
    view.collect(&all(CollectAction::DeleteDead)).map_err(|error| error.to_string())?;
    kept.forget(id).map_err(|error| format!("their logs: {error}"))?;
    let rest = view.collect(&all(CollectAction::ReturnLive)).map_err(|error| error.to_string())?;
    let is_all = rest.paths.is_empty();
    if is_all {
        store.forgets(&Member::new(id));
    }
    Ok(is_all)
}
