use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use nix::PathInfo;
use nix_derivation::{CAHash, ContentAddressMethod, HashAlgorithm, StorePath};
use store::{Member, Provenance, Store, StoreConfig, View};

use super::*;
use crate::recipe::OutputSpec;
use crate::structured::Attributes;

pub(crate) fn path(name: &str) -> StorePath {
    let mut digest = [3; 20];
    name.bytes().enumerate().for_each(|(i, byte)| digest[i % 20] ^= byte);
    StorePath::from_parts(digest, name).expect("a path")
}

pub(crate) fn recipe() -> Recipe {
    Recipe {
        drv_path: path("tool.drv"),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: vec!["-c".into(), "true".into()],
        env: BTreeMap::from([(b"a".to_vec(), b"b".to_vec())]),
        structured: None,
        outputs: BTreeMap::from([(
            "out".to_owned(),
            OutputSpec { path: Some(path("tool")), fixed: None, floating: None },
        )]),
        inputs: BTreeSet::from([path("input")]),
        input_derivations: BTreeMap::new(),
        verified_paths: false,
        drv_hash: None,
        weight: 0,
    }
}

/// Alice claims `input` with these contents and references.
pub(crate) fn claim(view: &View, contents: &str, references: &[&StorePath]) {
    let mut nar = Vec::new();
    for word in ["nix-archive-1", "(", "type", "regular", "contents", contents, ")"] {
        nar.extend((word.len() as u64).to_le_bytes());
        nar.extend(word.as_bytes());
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    let mut ingest = view.ingest(&[]).expect("room");
    ingest.write_all(&nar).expect("a NAR");
    let ingested = ingest.finish().expect("a NAR");
    let info = PathInfo {
        path: path("input"),
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: references.iter().map(|path| (*path).clone()).collect(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    };
    view.register(ingested, info, Provenance::Claimed(view.member().clone())).expect("a claim");
}

pub(crate) const ENVELOPE: Envelope =
    Envelope { vcpus: 2, memory_mib: 512, processes: 99, random_order: false, of_box: true };

type Change = fn(&mut Recipe);

fn out(recipe: &mut Recipe) -> &mut OutputSpec {
    recipe.outputs.get_mut("out").expect("out")
}

fn key_for(member: &str, store: &Store, recipe: &Recipe) -> BuildKey {
    let view = store.view(&Member::new(member));
    let inputs = view.snapshot(&recipe.inputs).expect("inputs");
    BuildKey::of(recipe, inputs.info(), SandboxIdentity::default(), &ENVELOPE)
}

#[test]
fn all_that_a_builder_is_told_or_sees_is_in_the_key() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let store = Store::open(dir.path(), StoreConfig::default()).expect("a store");
    claim(&store.view(&Member::new("alice")), "wood", &[]);
    claim(&store.view(&Member::new("bob")), "wood", &[]);
    claim(&store.view(&Member::new("mallory")), "worm", &[]);
    claim(&store.view(&Member::new("oscar")), "wood", &[&path("input")]);
    let key = key_for("alice", &store, &recipe());
    assert_eq!(key, key_for("bob", &store, &recipe()), "equal contents, whoever has them");
    let elsewhere = Recipe { drv_path: path("other.drv"), verified_paths: true, ..recipe() };
    assert_eq!(key, key_for("alice", &store, &elsewhere));

    let mut seen = BTreeSet::from([key]);
    let mut differs = |what: &str, key: BuildKey| assert!(seen.insert(key), "{what} is not in the key");
    differs("contents of inputs", key_for("mallory", &store, &recipe()));
    differs("references of inputs", key_for("oscar", &store, &recipe()));
    let changes: [(&str, Change); 12] = [
        ("system", |r| r.system.push(b'x')),
        ("builder", |r| r.builder.push(b'x')),
        ("an argument", |r| r.args.push("x".into())),
        ("where arguments end", |r| r.args = vec!["-ctrue".into()]),
        ("a variable", |r| drop(r.env.insert("a".into(), b"c".to_vec()))),
        ("a variable's name", |r| r.env = BTreeMap::from([(b"ab".to_vec(), Vec::new())])),
        ("inputs", |r| r.inputs.clear()),
        ("structured attributes", |r| {
            r.structured = Some(std::sync::Arc::new(Attributes::parse(b"{}".to_vec()).expect("JSON")));
        }),
        ("output path", |r| out(r).path = Some(path("tool2"))),
        ("output name", |r| {
            let spec = r.outputs.remove("out").expect("out");
            r.outputs.insert("dev".into(), spec);
        }),
        ("fixed hash", |r| {
            let ca = CAHash::from_parts(ContentAddressMethod::Flat, HashAlgorithm::Sha256, &[1; 32]);
            out(r).fixed = Some(ca.expect("an address"));
        }),
        ("floating", |r| {
            out(r).path = None;
            out(r).floating = Some((ContentAddressMethod::Nar, HashAlgorithm::Sha256));
        }),
    ];
    for (what, change) in changes {
        let mut changed = recipe();
        change(&mut changed);
        differs(what, key_for("alice", &store, &changed));
    }
    let view = store.view(&Member::new("alice"));
    let inputs = view.snapshot(&recipe().inputs).expect("inputs");
    differs("the box", BuildKey::of(&recipe(), inputs.info(), SandboxIdentity([1; 32]), &ENVELOPE));
    for (what, envelope) in [
        ("processors", Envelope { vcpus: 1, ..ENVELOPE }),
        ("memory", Envelope { memory_mib: 511, ..ENVELOPE }),
        ("processes", Envelope { processes: 98, ..ENVELOPE }),
        ("the order of directories", Envelope { random_order: true, ..ENVELOPE }),
    ] {
        differs(what, BuildKey::of(&recipe(), inputs.info(), SandboxIdentity::default(), &envelope));
    }
    let timeouts = [TimeLimit::Wall, TimeLimit::Silence].map(|limit| key.of_timeout(limit));
    assert_eq!(BTreeSet::from([*key.bytes(), key.of_failure(), timeouts[0], timeouts[1]]).len(), 4);
}
