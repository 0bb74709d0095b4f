//! The requests by which a member keeps, signs and deletes paths: roots, signatures, garbage collection.
//!
//! All of them concern only the member's own claims; the store enforces that. Not here: temporary roots, which the
//! session's view holds.

use nix_derivation::StorePath;
use store::{Collect, CollectAction, Collected, RegisterError, View};
use wire::types::{GcAction, GcOptions};

use super::desk::Desk;
use super::request_error::{RequestError, bug};

pub(super) fn failed(error: RegisterError) -> RequestError {
    if !error.is_callers_fault() {
        tracing::error!(%error, "the store cannot take a change");
    }
    RequestError::Refused(error.to_string())
}

pub(super) async fn add_root(
    desk: &Desk,
    view: &View,
    path: StorePath,
    name: String,
) -> Result<(), RequestError> {
    let view = view.clone();
    desk.workers.commit(move || view.add_root(&name, &path)).await.map_err(bug)?.map_err(failed)
}

pub(super) async fn add_signatures(
    desk: &Desk,
    view: &View,
    path: StorePath,
    signatures: Vec<String>,
) -> Result<(), RequestError> {
    let view = view.clone();
    desk.workers.commit(move || view.add_signatures(&path, &signatures)).await.map_err(bug)?.map_err(failed)
}

pub(super) async fn collect(desk: &Desk, view: &View, options: GcOptions) -> Result<Collected, RequestError> {
    if options.ignore_liveness {
        return Err(RequestError::Refused(
            "cannot delete paths that are still alive: this box does not ignore liveness; remove their roots first"
                .into(),
        ));
    }
    let view = view.clone();
    desk.workers.commit(move || view.collect(&wish(&view, options))).await.map_err(bug)?.map_err(|error| {
        if let store::CollectError::Write(error) = &error {
            tracing::error!(%error, "the store cannot collect garbage");
        }
        RequestError::Refused(error.to_string())
    })
}

/// Translates Nix's options to the store's. Paths without an order to delete exactly them only limit what may be
/// deleted.
fn wish(view: &View, options: GcOptions) -> Collect {
    let action = match options.action {
        GcAction::ReturnLive => CollectAction::ReturnLive,
        GcAction::ReturnDead => CollectAction::ReturnDead,
        GcAction::DeleteDead => CollectAction::DeleteDead,
        GcAction::DeleteSpecific => CollectAction::DeleteSpecific,
    };
    let mut wish = Collect { action, paths: options.paths.unwrap_or_default(), max_freed: options.max_freed };
    if options.delete_referrers {
        let mut todo: Vec<StorePath> = wish.paths.iter().cloned().collect();
        while let Some(path) = todo.pop() {
            todo.extend(view.referrers(&path).into_iter().filter(|path| wish.paths.insert(path.clone())));
        }
    }
    wish
}
