use std::collections::BTreeSet;

use nix::derivation::BasicDerivation;
use nix_derivation::{ContentAddressMethod, DerivationBuilder, HashAlgorithm, InputDerivation, Output};
use store::{Member, Store, StoreConfig};

use super::*;
use crate::{Plan, Recipe};

struct Fixture {
    _dir: tempfile::TempDir,
    view: View,
    known: Known,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let store = Store::open(dir.path(), StoreConfig::default()).expect("a store");
    Fixture { _dir: dir, view: store.view(&Member::new("alice")), known: Known::default() }
}

impl Fixture {
    /// Uploads a derivation's text as clients do: its path follows from its contents.
    fn add(&self, drv: &nix_derivation::Derivation) -> StorePath {
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

    fn hashes(&self, drv: &StorePath) -> Result<Arc<Hashes>, Failure> {
        Hasher::new(&self.view, &self.known, &Study::default()).of(drv)
    }

    /// Whether the outputs of this derivation may become Verified.
    fn passes(&self, drv: &StorePath) -> bool {
        let target = nix_derivation::DerivedPath::Built {
            drv_path: nix_derivation::SingleDerivedPath::Opaque(drv.clone()),
            outputs: Vec::new(),
        };
        let plan = Plan::make(&self.view, &self.known, &[target], &Study::default()).expect("a plan");
        plan.nodes[drv].recipe.verified_paths
    }
}

/// A derivation with the right paths, whose inputs are in the fixture. The `nix_derivation` library computes the paths.
fn honest(of: &Fixture, name: &str, arg: &str, inputs: &[&StorePath]) -> nix_derivation::Derivation {
    let mut drv = DerivationBuilder::new(name, "x86_64-linux", "/bin/sh").argument(arg);
    drv = drv.input_addressed_output("out").input_addressed_output("dev");
    for input in inputs {
        drv = drv.input_derivation((*input).clone(), InputDerivation::new(["out"]));
    }
    let hash = |path: &StorePath| of.hashes(path).expect("an honest input").input;
    drv.build_with_input_hashes(hash).expect("a derivation").into_derivation()
}

fn path_of(drv: &nix_derivation::Derivation, output: &str) -> StorePath {
    drv.outputs()[output].path(drv.name(), output).expect("a path").expect("known")
}

/// `drv` with one text replaced.
fn altered(drv: &nix_derivation::Derivation, from: &str, to: &str) -> nix_derivation::Derivation {
    let text = String::from_utf8(drv.to_aterm_bytes()).expect("text");
    assert!(text.contains(from), "{text}");
    nix_derivation::Derivation::from_aterm_bytes(text.replace(from, to).as_bytes(), drv.name())
        .expect("parses")
}

#[test]
fn honest_derivations_pass_however_deep() {
    let of = fixture();
    let mut below = of.add(&honest(&of, "base", "0", &[]));
    for level in 0..2_000 {
        below = of.add(&honest(&of, "level", &level.to_string(), &[&below]));
    }
    // Starts with no known hashes, as after a restart.
    let fresh = Fixture { known: Known::default(), ..of };
    assert!(fresh.passes(&below));
}

#[test]
fn a_derivation_that_states_anothers_output_path_does_not_pass() {
    let of = fixture();
    let (victim, evil) = (honest(&of, "tool", "good", &[]), honest(&of, "tool", "evil", &[]));
    let (theirs, own) = (path_of(&victim, "out"), path_of(&evil, "out"));
    let forged = altered(&evil, &own.to_absolute_path(), &theirs.to_absolute_path());
    assert!(of.passes(&of.add(&victim)));
    assert!(!of.passes(&of.add(&forged)));
}

/// The values of these variables are not part of what output paths are computed from.
#[test]
fn a_derivation_whose_variable_for_an_output_says_something_else_does_not_pass() {
    let of = fixture();
    let honest = honest(&of, "tool", "good", &[]);
    let variable = format!("(\"dev\",\"{}\")", path_of(&honest, "dev").to_absolute_path());
    assert!(!of.passes(&of.add(&altered(&honest, &variable, "(\"dev\",\"evil\")"))));
}

#[test]
fn a_forgery_anywhere_below_spoils_what_is_built_on_it() {
    let of = fixture();
    let good = honest(&of, "tool", "good", &[]);
    let good_path = of.add(&good);
    let user = honest(&of, "user", "use", &[&good_path]);
    let own = path_of(&good, "out").to_absolute_path();
    let evil_path = of.add(&altered(&good, &own, &own.replace("tool", "toot")));
    let spoilt = altered(&user, &good_path.to_absolute_path(), &evil_path.to_absolute_path());
    assert!(of.passes(&of.add(&user)));
    let spoilt = of.add(&spoilt);
    // Its own paths would be right if the hash of the input were computed from the paths that the input states.
    assert!(!of.hashes(&spoilt).expect("hashes").verified);
    assert!(!of.passes(&spoilt));
}

#[test]
fn a_recipe_that_differs_from_its_derivation_does_not_pass() {
    let of = fixture();
    let drv = honest(&of, "tool", "good", &[]);
    let path = of.add(&drv);
    let sent = |change: fn(&mut BasicDerivation)| {
        let mut sent = Derivation::parse(&drv.to_aterm_bytes(), drv.name()).expect("parses").basic;
        change(&mut sent);
        Recipe::from_basic(&path, sent).is_ok_and(|recipe| recipe.verified_paths)
    };
    assert!(sent(|_| ()));
    let changes: [fn(&mut BasicDerivation); 6] = [
        |d| d.builder = "/bin/evil".into(),
        |d| d.args.push("evil".into()),
        |d| d.system = "builtin".into(),
        |d| drop(d.env.insert("evil".into(), b"1".to_vec())),
        |d| d.input_sources.extend([StorePath::from_parts([1; 20], "evil").expect("a path")]),
        |d| drop(d.outputs.remove("dev")),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        assert!(!sent(change), "change {i}");
    }
}

#[test]
fn a_derivation_that_only_one_member_claims_does_not_pass() {
    let of = fixture();
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
    let info = nix::PathInfo {
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
    // The same bytes, uploaded in the way that checks them.
    of.add(&drv);
    assert!(of.passes(&path));
}

/// Two derivations that differ only in how a fixed output is fetched have the same output paths. A derivation that uses
/// both sees the same inputs as one that uses either, and Nix gives it the same paths.
#[test]
fn inputs_that_count_as_one_are_taken_together() {
    let of = fixture();
    let fetch = |url: &str| {
        let ca =
            "fixed:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s".parse().expect("an address");
        let drv = DerivationBuilder::new("source", "x86_64-linux", "/bin/sh").argument(url);
        of.add(&drv.output("out", Output::Fixed { ca }).build().expect("a derivation").into_derivation())
    };
    let (one, other) = (fetch("https://one"), fetch("https://other"));
    let (a, b) = (of.add(&honest(&of, "lib", "", &[&one])), of.add(&honest(&of, "lib", "", &[&other])));
    assert_ne!(a, b);
    let user = |inputs: &[(&StorePath, &str)]| {
        let inputs: BTreeSet<String> = inputs
            .iter()
            .map(|(path, names)| format!("(\"{}\",[{names}])", path.to_absolute_path()))
            .collect();
        let inputs = inputs.into_iter().collect::<Vec<_>>().join(",");
        let text = format!(r#"Derive([("out","","","")],[{inputs}],[],"x","/bin/sh",[],[("out","")])"#);
        let path = of.add(
            &nix_derivation::Derivation::from_aterm_bytes(text.as_bytes(), "user").expect("a derivation"),
        );
        of.hashes(&path).expect("hashes").masked
    };
    let (dev, out, all) = (r#""dev""#, r#""out""#, r#""dev","out""#);
    let both = user(&[(&a, all)]);
    assert_eq!(user(&[(&a, out), (&b, dev)]), both);
    assert_eq!(user(&[(&a, all), (&b, out)]), both);
    assert_ne!(user(&[(&a, out)]), both);
}
