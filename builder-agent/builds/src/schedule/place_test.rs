use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use members::SetBy;
use nix::PathInfo;
use nix_derivation::{CAHash, ContentAddressMethod, HashAlgorithm, StorePath};
use sandbox::Limits;
use store::{Member as Owner, Provenance, Store, StoreConfig};

use super::*;
use crate::key::key_test::{ENVELOPE, claim, path, recipe};
use crate::limits::Origins;
use crate::recipe::OutputSpec;
use crate::structured::Attributes;
use crate::{BuildKey, SandboxIdentity};

/// Values without handles, which can be sent to another machine. Each struct names all its fields here, so one with a
/// field that is not plain does not compile.
trait Plain {
    fn parts(&self) -> Vec<&dyn Plain> {
        Vec::new()
    }
}

macro_rules! leaves {
    ($($leaf:ty),* $(,)?) => { $(impl Plain for $leaf {})* };
}

leaves!(bool, u8, u32, u64, i64, str, String, Duration, [u8; 32]);
leaves!(SetBy, StorePath, CAHash, ContentAddressMethod, HashAlgorithm, Owner, Attributes);

macro_rules! structs {
    ($($name:ident { $($field:ident),* $(,)? })*) => { $(
        impl Plain for $name {
            fn parts(&self) -> Vec<&dyn Plain> {
                let Self { $($field),* } = self;
                vec![$($field),*]
            }
        }
    )* };
}

structs! {
    Task { run, member, recipe, inputs, envelope, limits }
    Recipe {
        drv_path, system, builder, args, env, structured, outputs, inputs, input_derivations, verified_paths, drv_hash,
        weight,
    }
    OutputSpec { path, fixed, floating }
    ClosureInfo { paths }
    PathInfo {
        path, nar_hash, nar_size, references, deriver, registration_time, ultimate, signatures, ca,
    }
    Envelope { vcpus, memory_mib, processes, random_order, of_box }
    RunLimits { of_sandbox, set_by }
    Limits { vcpus, memory_mib, wall, silent, log_bytes, output_bytes, processes }
    Origins { memory, wall, silent, log, output }
}

impl Plain for Provenance {
    fn parts(&self) -> Vec<&dyn Plain> {
        match self {
            Self::Verified => Vec::new(),
            Self::Claimed(owner) => vec![owner],
        }
    }
}

impl<T: Plain> Plain for Arc<T> {
    fn parts(&self) -> Vec<&dyn Plain> {
        vec![&**self]
    }
}

impl Plain for Arc<str> {}

impl<T: Plain> Plain for Option<T> {
    fn parts(&self) -> Vec<&dyn Plain> {
        self.iter().map(|part| part as &dyn Plain).collect()
    }
}

impl<T: Plain> Plain for Vec<T> {
    fn parts(&self) -> Vec<&dyn Plain> {
        self.iter().map(|part| part as &dyn Plain).collect()
    }
}

impl<T: Plain> Plain for BTreeSet<T> {
    fn parts(&self) -> Vec<&dyn Plain> {
        self.iter().map(|part| part as &dyn Plain).collect()
    }
}

impl<K: Plain, V: Plain> Plain for BTreeMap<K, V> {
    fn parts(&self) -> Vec<&dyn Plain> {
        self.iter().flat_map(|(key, value)| [key as &dyn Plain, value as &dyn Plain]).collect()
    }
}

impl<A: Plain, B: Plain> Plain for (A, B) {
    fn parts(&self) -> Vec<&dyn Plain> {
        vec![&self.0, &self.1]
    }
}

fn leaves_of(part: &dyn Plain) -> usize {
    let parts = part.parts();
    parts.iter().map(|part| leaves_of(*part)).sum::<usize>().max(1)
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let store = Store::open(dir.path(), StoreConfig::default()).expect("a store");
    (dir, store)
}

/// A run for alice, with one input of these contents.
fn task(store: &Store, contents: &str) -> (Task, Arc<Closure>) {
    let (view, recipe) = (store.view(&Owner::new(contents)), recipe());
    claim(&view, contents, &[&path("input")]);
    let inputs = view.snapshot(&recipe.inputs).expect("inputs");
    let of_sandbox = Limits {
        vcpus: ENVELOPE.vcpus,
        memory_mib: ENVELOPE.memory_mib,
        wall: Some(Duration::from_secs(60)),
        silent: None,
        log_bytes: 1 << 20,
        output_bytes: 1 << 20,
        processes: ENVELOPE.processes,
    };
    let task = Task {
        run: 7,
        member: "alice".into(),
        recipe: Arc::new(recipe),
        inputs: inputs.info().clone(),
        envelope: ENVELOPE,
        limits: RunLimits { of_sandbox, set_by: Origins::default() },
    };
    (task, Arc::new(inputs))
}

#[test]
fn a_task_is_plain_data_and_another_machine_can_compute_its_build_key() {
    let (dir, store) = store();
    let (task, inputs) = task(&store, "wood");
    let sandbox = SandboxIdentity::default();
    let key = BuildKey::of(&task.recipe, inputs.info(), sandbox, &ENVELOPE);
    assert!(leaves_of(&task) > 20);
    drop((inputs, store, dir));
    let elsewhere =
        std::thread::spawn(move || BuildKey::of(&task.recipe, &task.inputs, sandbox, &task.envelope));
    assert_eq!(elsewhere.join().expect("a key"), key);
}

#[test]
fn a_task_finds_the_contents_that_it_lists_until_its_run_has_ended_and_no_others() {
    let (_dir, store) = store();
    let ((task, inputs), (forged, _)) = (task(&store, "wood"), self::task(&store, "straw"));
    let snapshots = Snapshots::default();
    assert!(snapshots.of(&task).is_none());
    let kept = snapshots.keep(task.run, inputs);
    assert!(snapshots.of(&task).is_some() && snapshots.of(&forged).is_none());
    assert!(snapshots.of(&Task { run: 8, ..task.clone() }).is_none());
    drop(kept);
    assert!(snapshots.of(&task).is_none());
}
