//! Build keys: builds with equal keys have equal results, for every member.
//!
//! A key covers what the builder is given (system, program, arguments, variables, scratch paths), what it can see (each
//! path of its input closure, by name and contents) and where it runs (the box's programs, and the envelope:
//! processors, memory, order of directories), so that knowing a key takes knowing all of that. A key does not cover the time, nor limits that
//! can only end a build: a build that gave a result reached no such limit. It does not cover the name of the `.drv`
//! either: derivations that differ only in how their inputs were made are one build.

use nix_derivation::CAHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::{ClosureInfo, TimeLimit};

use super::{Envelope, Recipe};

/// Must change whenever the data below is put together in another way.
const FORMAT: &[u8] = b"barnraiser build key 3";

/// A hash over all that can influence the result of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BuildKey([u8; 32]);

impl BuildKey {
    /// The key of `recipe` with these inputs in this envelope; `sandbox_identity` is the part that the box adds to
    /// every build (see [`SandboxIdentity`]).
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
        hash.count(usize::from(envelope.random_order));
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
        // The scratch paths are in the key because the builder sees the scratch path of a floating output.
        for ((name, output), path) in recipe.outputs.iter().zip(recipe.scratch_paths().values()) {
            hash.put(name.as_bytes());
            hash.put(path.to_basename().as_bytes());
            let fixed = output.fixed.as_ref().map(CAHash::to_nix_string);
            hash.put(fixed.unwrap_or_default().as_bytes());
            let floating = output.floating.map(|(method, algorithm)| format!("{method}:{algorithm}"));
            hash.put(floating.unwrap_or_default().as_bytes());
        }
        hash.count(inputs.paths.len());
        for (info, _) in inputs.paths.values() {
            hash.put(info.path.to_basename().as_bytes());
            hash.put(&info.nar_hash);
            // The references that an uploader states need not follow from the contents, and a builder can read them
            // (`exportReferencesGraph`).
            hash.count(info.references.len());
            info.references.iter().for_each(|path| hash.put(path.to_basename().as_bytes()));
            hash.put(info.ca.as_ref().map(CAHash::to_nix_string).unwrap_or_default().as_bytes());
        }
        Self(hash.0.finalize().into())
    }

    /// The key under which a success is recorded.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key under which a failure is recorded. The envelope is part of it: the same build may work with more memory,
    /// even if it did not notice that memory was too small.
    #[must_use]
    pub fn of_failure(&self) -> [u8; 32] {
        self.of_end(b"failure")
    }

    /// The key under which an end at this limit is recorded: one for each, because neither says anything about the other.
    #[must_use]
    pub fn of_timeout(&self, limit: TimeLimit) -> [u8; 32] {
        self.of_end(match limit {
            TimeLimit::Wall => b"timeout",
            TimeLimit::Silence => b"silence",
        })
    }

    fn of_end(&self, end: &[u8]) -> [u8; 32] {
        let mut hash = Parts(Sha256::new());
        hash.put(end);
        hash.put(&self.0);
        hash.0.finalize().into()
    }
}

/// All that every build here sees besides its inputs: the kind of sandbox and the programs in it, the kernel if it is
/// the host's own, and the agent, which makes the builder's environment. After an update of the box, earlier results no
/// longer apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SandboxIdentity([u8; 32]);

impl SandboxIdentity {
    /// Reads the files that this configuration puts into sandboxes. A file that cannot be read counts as empty; the
    /// sandbox reports it with more detail.
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

/// Puts the length in front of every part, so that different lists of parts never give the same bytes.
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
