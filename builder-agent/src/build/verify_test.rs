use std::collections::BTreeSet;

use nix_derivation::{ContentAddressMethod, DerivationBuilder, HashAlgorithm, InputDerivation};
use store::{Member, Store, StoreConfig};

use super::*;
use crate::build::Plan;

struct Box_ {
    _dir: tempfile::TempDir,
    view: View,
    verifier: Verifier,
}

fn new_box() -> Box_ {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let store = Store::open(dir.path(), StoreConfig::default()).expect("a store");
    Box_ { _dir: dir, view: store.view(&Member::new("alice")), verifier: Verifier::default() }
}

impl Box_ {
    /// Uploads a derivation's text the way clients do: its path follows from its contents.
    fn add(&self, drv: &Derivation) -> StorePath {
        let references: BTreeSet<StorePath> =
            drv.input_derivations().keys().chain(drv.input_sources()).cloned().collect();
        let info = self.view.add_ca(
            &format!("{}.drv", drv.name()),
            ContentAddressMethod::Text,
            HashAlgorithm::Sha256,
            &references,
            &mut drv.to_aterm_bytes().as_slice(),
        );
        info.expect("a valid upload").path.clone()
    }

    /// What the scheduler would be asked to build.
    fn recipe(&self, drv: &StorePath) -> Arc<Recipe> {
        let target = nix_derivation::DerivedPath::Built {
            drv_path: nix_derivation::SingleDerivedPath::Opaque(drv.clone()),
            outputs: Vec::new(),
        };
        let plan = Plan::make(&self.view, &Default::default(), &[target]).expect("a plan");
        plan.nodes[drv].recipe.clone()
    }

    fn passes(&self, drv: &StorePath) -> bool {
        self.verifier.recomputed(&self.view, &self.recipe(drv))
    }
}

/// A derivation with the right paths, whose inputs are in the box.
fn honest(of: &Box_, name: &str, arg: &str, inputs: &[&StorePath]) -> Derivation {
    let mut drv = DerivationBuilder::new(name, "x86_64-linux", "/bin/sh").argument(arg);
    drv = drv.input_addressed_output("out").input_addressed_output("dev");
    for input in inputs {
        drv = drv.input_derivation((*input).clone(), InputDerivation::new(["out"]));
    }
    let hash = |path: &StorePath| of.verifier.known(&of.view, path).expect("an honest input").hash;
    drv.build_with_input_hashes(hash).expect("a derivation").into_derivation()
}

#[test]
fn honest_derivations_pass_however_deep() {
    let of = new_box();
    let mut below = of.add(&honest(&of, "base", "0", &[]));
    for level in 0..2_000 {
        below = of.add(&honest(&of, "level", &level.to_string(), &[&below]));
    }
    // From nothing, as after a restart.
    let fresh = Box_ { verifier: Verifier::default(), ..of };
    assert!(fresh.passes(&below));
}

#[test]
fn a_derivation_that_states_anothers_output_path_does_not_pass() {
    let of = new_box();
    let victim = honest(&of, "tool", "good", &[]);
    let path = victim.outputs()["out"].path("tool", "out").expect("a path").expect("known");
    let evil = honest(&of, "tool", "evil", &[]);
    let own = evil.outputs()["out"].path("tool", "out").expect("a path").expect("known");
    let text = String::from_utf8(evil.to_aterm_bytes()).expect("text");
    let forged = text.replace(&own.to_absolute_path(), &path.to_absolute_path());
    let forged = Derivation::from_aterm_bytes(forged.as_bytes(), "tool").expect("a derivation");
    assert!(of.passes(&of.add(&victim)));
    assert!(!of.passes(&of.add(&forged)));
}

/// The values of these variables are not part of what output paths are computed from.
#[test]
fn a_derivation_whose_variable_for_an_output_says_something_else_does_not_pass() {
    let of = new_box();
    let honest = honest(&of, "tool", "good", &[]);
    let path = honest.outputs()["dev"].path("tool", "dev").expect("a path").expect("known");
    let text = String::from_utf8(honest.to_aterm_bytes()).expect("text");
    let (from, to) = (format!("(\"dev\",\"{}\")", path.to_absolute_path()), "(\"dev\",\"evil\")".to_owned());
    assert_eq!(text.matches(&from).count(), 1, "{text}");
    let forged = Derivation::from_aterm_bytes(text.replace(&from, &to).as_bytes(), "tool").expect("parses");
    assert!(!of.passes(&of.add(&forged)));
}

#[test]
fn a_forgery_anywhere_below_spoils_what_is_built_on_it() {
    let of = new_box();
    let good = honest(&of, "tool", "good", &[]);
    let good_path = of.add(&good);
    let user = honest(&of, "user", "use", &[&good_path]);
    let text = String::from_utf8(good.to_aterm_bytes()).expect("text");
    let own = good.outputs()["out"].path("tool", "out").expect("a path").expect("known").to_absolute_path();
    let elsewhere = own.replace("tool", "toot");
    let evil =
        Derivation::from_aterm_bytes(text.replace(&own, &elsewhere).as_bytes(), "tool").expect("parses");
    let evil_path = of.add(&evil);
    let text = String::from_utf8(user.to_aterm_bytes()).expect("text");
    let text = text.replace(&good_path.to_absolute_path(), &evil_path.to_absolute_path());
    let spoilt = Derivation::from_aterm_bytes(text.as_bytes(), "user").expect("parses");
    assert!(of.passes(&of.add(&user)));
    // Its own paths would be right if the input's hash were computed from what the input says of itself.
    assert!(of.verifier.known(&of.view, &of.add(&spoilt)).is_none());
}

#[test]
fn a_recipe_that_differs_from_its_derivation_does_not_pass() {
    let of = new_box();
    let below = of.add(&honest(&of, "below", "0", &[]));
    let drv = honest(&of, "tool", "good", &[&below]);
    let path = of.add(&drv);
    let recipe = || Arc::into_inner(of.recipe(&path)).expect("only ours");
    assert!(of.verifier.recomputed(&of.view, &recipe()));
    let changes: [fn(&mut Recipe); 6] = [
        |r| r.builder = "/bin/evil".into(),
        |r| r.args.push("evil".into()),
        |r| r.system = "builtin".into(),
        |r| drop(r.env.insert("evil".into(), b"1".to_vec())),
        |r| r.inputs.clear(),
        |r| drop(r.outputs.remove("dev")),
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut changed = recipe();
        change(&mut changed);
        assert!(!of.verifier.recomputed(&of.view, &changed), "change {i}");
    }
}

#[test]
fn a_derivation_that_only_one_member_claims_does_not_pass() {
    let of = new_box();
    let drv = honest(&of, "tool", "good", &[]);
    let bytes = drv.to_aterm_bytes();
    let path = drv.drv_path().expect("a path");
    let mut ingest = of.view.ingest(&[]).expect("room");
    let mut nar = Vec::new();
    for word in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents", &bytes, b")"] {
        nar.extend((word.len() as u64).to_le_bytes());
        nar.extend(word);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    std::io::Write::write_all(&mut ingest, &nar).expect("a NAR");
    let ingested = ingest.finish().expect("a NAR");
    let info = store::PathInfo {
        path: path.clone(),
        nar_hash: ingested.nar_hash,
        nar_size: ingested.nar_size,
        references: BTreeSet::new(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: Vec::new(),
        ca: None,
    };
    let claim = Provenance::Claimed(of.view.member().clone());
    of.view.register(ingested, info, claim).expect("a claim");
    assert!(!of.passes(&path));
    // The same bytes, checked.
    of.add(&drv);
    assert!(of.passes(&path));
}

/// Nix gives both users of such a pair the same output paths.
#[test]
fn inputs_that_count_as_one_must_be_used_alike() {
    let of = new_box();
    let fetch = |url: &str| {
        let ca =
            "fixed:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s".parse().expect("an address");
        let drv = DerivationBuilder::new("source", "x86_64-linux", "/bin/sh").argument(url);
        let drv = drv.output("out", nix_derivation::Output::Fixed { ca });
        of.add(&drv.build().expect("a derivation").into_derivation())
    };
    let (one, other) = (fetch("https://one"), fetch("https://other"));
    let (a, b) = (of.add(&honest(&of, "lib", "", &[&one])), of.add(&honest(&of, "lib", "", &[&other])));
    assert_ne!(a, b);
    let user = |a_outputs: &str, b_outputs: &str| {
        let drv = DerivationBuilder::new("user", "x86_64-linux", "/bin/sh").input_addressed_output("out");
        let drv = drv.input_derivation(a.clone(), InputDerivation::new([a_outputs]));
        let drv = drv.input_derivation(b.clone(), InputDerivation::new([b_outputs]));
        let hash = |path: &StorePath| of.verifier.known(&of.view, path).expect("an honest input").hash;
        of.add(&drv.build_with_input_hashes(hash).expect("a derivation").into_derivation())
    };
    assert!(of.passes(&user("out", "out")));
    assert!(!of.passes(&user("out", "dev")));
}
