//! What decides how a build ends: equal keys, equal results, whoever asks.
//!
//! A key covers what the builder is told (system, program, arguments, variables, output places), what it can see (each
//! path of its input closure, by name and contents) and where it runs (the box's programs, and the envelope: processors,
//! memory), so that knowing a key takes knowing all of that. Not covered are limits that can only end a build, which no
//! result has met, and the time. The name of the `.drv` is not covered either: derivations that differ only in how their
//! inputs came about are one build.

use nix_derivation::CAHash;
use sha2::{Digest, Sha256};
use store::ClosureInfo;

use super::{Envelope, Recipe};

/// Changes when what follows is put together in another way.
const FORMAT: &[u8] = b"barnraiser build key 2";

/// Stands for everything that can influence the result of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BuildKey([u8; 32]);

impl BuildKey {
    /// The key of `recipe` with these inputs in this envelope; `sandbox_identity` is what the box itself adds to every build (see
    /// [`SandboxIdentity`]).
    #[must_use]
    pub fn of(
        recipe: &Recipe,
        inputs: &ClosureInfo,
        sandbox_identity: SandboxIdentity,
        envelope: &Envelope,
    ) -> Self {
        let mut hash = Parts(Sha256::new());
        hash.put(FORMAT);
        hash.put(&sandbox_identity.0);
        hash.count(envelope.vcpus.into());
        hash.count(envelope.memory_mib as usize);
        hash.count(envelope.processes as usize);
        hash.put(&recipe.system);
        hash.put(&recipe.builder);
        hash.count(recipe.args.len());
        recipe.args.iter().for_each(|arg| hash.put(arg));
        hash.count(recipe.env.len());
        for (name, value) in &recipe.env {
            hash.put(name);
            hash.put(value);
        }
        hash.count(usize::from(recipe.structured.is_some()));
        hash.put(recipe.structured.as_ref().map_or(b"", |attrs| attrs.raw()));
        hash.count(recipe.outputs.len());
        // The places: where a floating output is written before it has its path is seen by the builder.
        for ((name, output), place) in recipe.outputs.iter().zip(recipe.places().values()) {
            hash.put(name.as_bytes());
            hash.put(place.to_basename().as_bytes());
            let fixed = output.fixed.as_ref().map(CAHash::to_nix_string);
            hash.put(fixed.unwrap_or_default().as_bytes());
            let floating = output.floating.map(|(method, algorithm)| format!("{method}:{algorithm}"));
            hash.put(floating.unwrap_or_default().as_bytes());
        }
        hash.count(inputs.paths.len());
        for (info, _) in inputs.paths.values() {
            hash.put(info.path.to_basename().as_bytes());
            hash.put(&info.nar_hash);
            // What an uploader says a path refers to need not follow from its contents, and a builder can be shown it
            // (`exportReferencesGraph`).
            hash.count(info.references.len());
            info.references.iter().for_each(|path| hash.put(path.to_basename().as_bytes()));
            hash.put(info.ca.as_ref().map(CAHash::to_nix_string).unwrap_or_default().as_bytes());
        }
        Self(hash.0.finalize().into())
    }

    /// Under which a success is recorded.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Under which a failure is recorded. The envelope is in the key: with more memory the same build may work, even one
    /// that did not notice that memory was what it lacked.
    #[must_use]
    pub fn of_failure(&self) -> [u8; 32] {
        let mut hash = Parts(Sha256::new());
        hash.put(b"failure");
        hash.put(&self.0);
        hash.0.finalize().into()
    }
}

/// What every build here sees besides its inputs: the kind of sandbox and the programs in it, the kernel if it is the
/// host's own, and the agent that says what a builder finds around it. After an update of the box, results of before are
/// not known any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxIdentity([u8; 32]);

impl SandboxIdentity {
    /// Reads the files that this configuration puts into sandboxes. One that cannot be read counts as empty; the
    /// sandbox says more about it than could be said here.
    #[must_use]
    pub fn of(sandbox: &settings::Sandbox) -> Self {
        use settings::BackendKind::{Kvm, Namespace};
        let (name, files) = match sandbox.backend {
            Kvm => ("kvm", [&sandbox.kernel, &sandbox.initrd]),
            Namespace => ("namespace", [&sandbox.guest, &sandbox.shell]),
        };
        let mut hash = Parts(Sha256::new());
        hash.put(env!("CARGO_PKG_VERSION").as_bytes());
        hash.put(name.as_bytes());
        if sandbox.backend == Namespace {
            hash.put(rustix::system::uname().release().to_bytes());
        }
        for file in files {
            let mut contents = Sha256::new();
            if let Ok(mut file) = std::fs::File::open(file) {
                let _ = std::io::copy(&mut file, &mut contents);
            }
            hash.put(&contents.finalize());
        }
        Self(hash.0.finalize().into())
    }
}

/// Every part with its length in front, so that no two lists of parts look alike.
struct Parts(Sha256);

impl Parts {
    fn put(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn count(&mut self, n: usize) {
        self.0.update((n as u64).to_le_bytes());
    }
}

#[cfg(test)]
#[path = "key_test.rs"]
pub(crate) mod key_test;
