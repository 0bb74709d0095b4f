//! A realisation of a floating output is Verified only if the output was built from inputs that were Verified
//! then.

mod common;

use std::collections::BTreeSet;

use builds::modulo::Hasher;
use builds::resolve::resolve;
use builds::study::Study;
use common::scripted::{Scripted, info_of};
use nix::BuildMode;
use nix_derivation::store_path::hash_placeholder;
use nix_derivation::{
    ContentAddressMethod, Derivation, DerivationBuilder, DerivedPath, HashAlgorithm, SingleDerivedPath,
    StorePath,
};
use store::signing::{SecretKey, Signer, fingerprint};
use store::{Member, Provenance, RealisationId, View};
use wire::client::encode_file_nar;
use wire::worker::Request;

/// An input-addressed derivation, a floating one that uses it and waits for the gate, and a key that the box trusts.
struct Case {
    scripted: Scripted,
    key: SecretKey,
    input: Derivation,
    floating: StorePath,
}

fn add(view: &View, drv: &Derivation) -> StorePath {
    let references: BTreeSet<StorePath> =
        drv.input_derivations().keys().chain(drv.input_sources()).cloned().collect();
    let (name, text) = (format!("{}.drv", drv.name()), drv.to_aterm_bytes());
    let (method, algorithm) = (ContentAddressMethod::Text, HashAlgorithm::Sha256);
    let info = view.add_ca(&name, method, algorithm, &references, &mut text.as_slice());
    info.expect("a valid upload").path.clone()
}

impl Case {
    fn new() -> Self {
        let key = SecretKey::generate("cache-1").expect("a key");
        let scripted = Scripted::open(&format!("trusted-public-keys = [\"{}\"]", key.public()));
        let view = scripted.agent.store.view(&Member::new("alice"));
        let input = DerivationBuilder::new("input", "x86_64-linux", "/bin/sh").argument("write:input");
        let input = input.input_addressed_output("out").build().expect("a derivation").into_derivation();
        let text = format!(
            r#"Derive([("out","","r:sha256","")],[("{}",["out"])],[],"x86_64-linux","/bin/sh",["gate write:made"],[("out","{}")])"#,
            add(&view, &input).to_absolute_path(),
            hash_placeholder("out"),
        );
        let floating = Derivation::from_aterm_bytes(text.as_bytes(), "floating").expect("a derivation");
        let floating = add(&view, &floating);
        Self { scripted, key, input, floating }
    }

    fn view(&self, member: &str) -> View {
        self.scripted.agent.store.view(&Member::new(member))
    }

    fn input_path(&self) -> StorePath {
        self.input.outputs()["out"].path("input", "out").expect("a path").expect("known")
    }

    /// Uploads the input's output as `member`.
    fn upload_input(&self, member: &str, contents: &[u8], signed: bool) -> Provenance {
        let nar = encode_file_nar(contents, false);
        let mut info = info_of(self.input_path(), &nar, &[]);
        if signed {
            info.signatures.push(self.key.sign(fingerprint(&info).as_bytes()));
        }
        let view = self.view(member);
        view.import(info, &mut nar.as_slice()).expect("a valid upload");
        view.info_with_provenance(&self.input_path()).expect("there").1
    }

    /// The realisations of the derivation and of its resolved form.
    fn realisations(&self) -> [RealisationId; 2] {
        let view = self.view("alice");
        let hash = Hasher::new(&view, &self.scripted.agent.realiser.drv_hashes, &Study::default())
            .of(&self.floating)
            .expect("a hash")
            .masked;
        let drv =
            builds::modulo::read(&view, &self.floating, &Study::default()).expect("a derivation").derivation;
        let input = drv.inputs.keys().next().expect("an input").clone();
        let paths = [((input, "out".to_owned()), self.input_path())].into();
        let resolved = resolve(&self.floating, &drv, &paths).expect("resolves").recipe.drv_hash;
        [hash, resolved.expect("floating")].map(|drv_hash| RealisationId { drv_hash, output: "out".into() })
    }

    /// Builds as alice; `meanwhile` runs while the builder runs.
    async fn build(&self, meanwhile: impl FnOnce()) {
        let mut alice = self.scripted.session("alice").await;
        let drv_path = SingleDerivedPath::Opaque(self.floating.clone());
        let target = DerivedPath::Built { drv_path, outputs: vec!["out".into()] };
        let request = Request::BuildPaths { paths: vec![target], mode: BuildMode::Normal };
        alice.request(&request).await.expect("sent");
        self.scripted.until_runs(1).await;
        meanwhile();
        self.scripted.script.gate.cancel();
        alice.done().await.expect("built");
    }

    fn known_to(&self, member: &str) -> [Option<Provenance>; 2] {
        let view = self.view(member);
        self.realisations().map(|id| view.realisation(&id).map(|(_, provenance, _)| provenance))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_built_from_verified_inputs_is_everybodys() {
    let case = Case::new();
    assert_eq!(case.upload_input("bob", b"true", true), Provenance::Verified);
    case.build(|| ()).await;
    for member in ["alice", "bob"] {
        assert_eq!(case.known_to(member), [Some(Provenance::Verified), Some(Provenance::Verified)]);
    }
}

/// Otherwise a member could have the box sign a result of arbitrary inputs: claim, build, prove the claimed
/// path with other contents, let the build end.
#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_verified_too_late_proves_nothing() {
    let case = Case::new();
    let claim = Provenance::Claimed(Member::new("alice"));
    assert_eq!(case.upload_input("alice", b"forged", false), claim);
    case.build(|| assert_eq!(case.upload_input("bob", b"true", true), Provenance::Verified)).await;
    assert_eq!(case.known_to("bob"), [None, None]);
    assert_eq!(case.known_to("alice"), [Some(claim.clone()), Some(claim)]);
}
