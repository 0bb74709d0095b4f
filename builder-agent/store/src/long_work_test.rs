use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use nix::PathInfo;
use nix_derivation::{ContentAddressMethod, HashAlgorithm, StorePath};

use super::*;
use crate::{Member, Store, StoreConfig, View};

thread_local! {
    /// Calls of the function around long work on this thread.
    static LONG: Cell<usize> = const { Cell::new(0) };
}

fn counted(work: &mut dyn FnMut()) {
    LONG.set(LONG.get() + 1);
    work();
}

/// Whether `work` does anything long.
fn is_long(work: impl FnOnce()) -> bool {
    let before = LONG.get();
    work();
    LONG.get() > before
}

fn store() -> (tempfile::TempDir, Store, View) {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { long_work: LongWork::new(counted), ..StoreConfig::default() };
    let store = Store::open(dir.path(), config).unwrap();
    let alice = store.view(&Member::new("alice"));
    (dir, store, alice)
}

/// A content-addressed file with its name as contents.
fn add(view: &View, name: &str, references: &BTreeSet<StorePath>) -> PathInfo {
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    PathInfo::clone(&view.add_ca(name, method, algorithm, references, &mut name.as_bytes()).unwrap())
}

#[test]
fn a_small_path_alone_is_short_work() {
    let (_dir, _store, alice) = store();
    assert!(!is_long(|| drop(add(&alice, "a", &[].into()))));
    let a = add(&alice, "a", &[].into()).path;
    assert!(!is_long(|| drop(add(&alice, "b", &[a].into()))));
}

#[test]
fn a_commit_that_waits_for_another_change_is_long_work() {
    let (_dir, store, alice) = store();
    let changing = store.base.index.lock();
    let (tell, told) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let long = is_long(|| drop(add(&alice, "a", &[].into())));
        tell.send(long).unwrap();
    });
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
    drop(changing);
    assert!(told.recv().unwrap());
    other.join().unwrap();
}

#[test]
fn many_references_are_long_work() {
    let (_dir, _store, alice) = store();
    let many: BTreeSet<StorePath> =
        (0..=SHORT).map(|n| add(&alice, &format!("r{n}"), &[].into()).path).collect();
    assert!(is_long(|| drop(add(&alice, "many", &many))));
}

#[test]
fn a_reference_that_may_be_another_members_claim_is_long_work() {
    let (_dir, store, _) = store();
    let (dan, alice) = (Member::new("dan"), Member::new("alice"));
    let shared = store.view_sharing(&dan, &[alice]);
    assert!(is_long(|| drop(add(&shared, "a", &[].into()))));
    assert!(!is_long(|| drop(add(&store.view(&dan), "b", &[].into()))));
}
