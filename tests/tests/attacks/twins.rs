//! Pairs of paths that differ in their digest only: one that a single member has, and one that nobody has.

use e2e::hostile::{info, nar};
use e2e::shared_box::recipe;
use nix::derivation::BasicDerivation;
use nix::{DrvKey, DrvOutputId, PathInfo};
use nix_derivation::store_path::{build_ca_path, build_text_path};
use nix_derivation::{CAHash, HashAlgorithm, NixHash, StorePath, hash_bytes, nixbase32};

/// The paths of one member, of which others must not learn.
#[derive(Clone)]
pub struct Secret {
    /// An upload that cannot be proven.
    pub plain: StorePath,
    /// Another, which refers to `plain`.
    pub user: StorePath,
    /// A derivation that was uploaded under a name of its owner's choice.
    pub drv: StorePath,
    /// Its output, which was built on the box.
    pub output: StorePath,
    /// The output of a derivation that was registered as `plain`.
    pub realised: DrvOutputId,
    /// A path for the other member's own contents.
    pub spare: StorePath,
    pub spare_drv: StorePath,
    /// A Verified path. Its owner's annotations of it are the secret.
    pub proven: StorePath,
}

fn digest(salt: &str, what: &str) -> [u8; 32] {
    let NixHash::Sha256(digest) = hash_bytes(HashAlgorithm::Sha256, format!("{salt} {what}").as_bytes())
    else {
        unreachable!()
    };
    digest
}

fn path(salt: &str, name: &str) -> StorePath {
    StorePath::from_parts(digest(salt, name)[..20].try_into().expect("20 bytes"), name).expect("a path")
}

/// A Verified path with the same contents for every salt, so that only its name differs from others.
fn proven(salt: &str) -> StorePath {
    let tag = nixbase32::encode(&digest(salt, "proven")[..10]);
    build_text_path(&format!("{PROVEN_NAME}{tag}"), Secret::PROVEN, []).expect("a path")
}

const PROVEN_NAME: &str = "proven-";

impl Secret {
    pub fn new(salt: &str) -> Self {
        let hash = NixHash::Sha256(digest(salt, "realised"));
        Self {
            plain: path(salt, "secret"),
            user: path(salt, "user-of-secret"),
            drv: path(salt, "built.drv"),
            output: path(salt, "built"),
            realised: DrvOutputId { drv: DrvKey::Hash(hash), output: "out".into() },
            spare: path(salt, "spare"),
            spare_drv: path(salt, "spare.drv"),
            proven: proven(salt),
        }
    }

    /// The NAR of `plain`: the same for every owner.
    pub fn contents() -> Vec<u8> {
        nar(&e2e::hostile::file(b"what nobody else should see\n"))
    }

    /// The text at `proven`.
    pub const PROVEN: &[u8] = b"everybody's";

    /// The other member's own contents.
    pub const MINE: &[u8] = b"bob's own";

    pub fn mine() -> Vec<u8> {
        nar(&e2e::hostile::file(Self::MINE))
    }

    /// The recipe of `output`.
    pub fn build(&self) -> (StorePath, BasicDerivation) {
        recipe(&self.drv, &[("out", &self.output)], &[], "echo built for alice > $out")
    }

    /// `bytes` with this secret's names replaced by those of `other`.
    pub fn rename(&self, other: &Secret, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (ours, theirs) in self.names().iter().zip(other.names()) {
            let at: Vec<usize> = bytes
                .windows(ours.len())
                .enumerate()
                .filter(|(_, window)| window == ours)
                .map(|(at, _)| at)
                .collect();
            at.into_iter().for_each(|at| bytes[at..at + ours.len()].copy_from_slice(&theirs));
        }
        bytes
    }

    fn names(&self) -> Vec<Vec<u8>> {
        let paths =
            [&self.plain, &self.user, &self.drv, &self.output, &self.spare, &self.spare_drv, &self.proven];
        let digests = paths.iter().map(|path| nixbase32::encode(path.digest()).into_bytes());
        // Paths of the other member's own contents that refer to the secret.
        let mine = [&self.plain, &self.drv, &self.output].into_iter().flat_map(|reference| {
            let ca = CAHash::Nar(hash_bytes(HashAlgorithm::Sha256, &Self::mine()));
            [
                build_ca_path("mine", &ca, [reference], false).expect("a path"),
                build_text_path("mine", Self::MINE, [reference]).expect("a path"),
            ]
        });
        let digests = digests.chain(mine.map(|path| nixbase32::encode(path.digest()).into_bytes()));
        let DrvKey::Hash(hash) = &self.realised.drv else { unreachable!() };
        let tag = self.proven.name().as_bytes()[PROVEN_NAME.len()..].to_vec();
        digests.chain([hash.to_nix_base16_string().into_bytes(), tag]).collect()
    }
}

/// An announcement of `nar` at `path`.
pub fn at(path: &StorePath, nar: &[u8]) -> PathInfo {
    PathInfo { path: path.clone(), ..info("x", nar) }
}

/// A derivation file for a builder that is the sandbox's shell.
pub fn aterm(output: &StorePath, drvs: &[&StorePath], sources: &[&StorePath], script: &str) -> Vec<u8> {
    let mut drvs: Vec<String> = drvs.iter().map(|drv| drv.to_absolute_path()).collect();
    let mut sources: Vec<String> = sources.iter().map(|path| path.to_absolute_path()).collect();
    drvs.sort();
    sources.sort();
    let drvs: Vec<String> = drvs.iter().map(|drv| format!("(\"{drv}\",[\"out\"])")).collect();
    let sources: Vec<String> = sources.iter().map(|path| format!("\"{path}\"")).collect();
    let out = output.to_absolute_path();
    format!(
        "Derive([(\"out\",\"{out}\",\"\",\"\")],[{}],[{}],\"x86_64-linux\",\"/bin/sh\",[\"-ec\",\"{script}\"],[(\"out\",\"{out}\")])",
        drvs.join(","),
        sources.join(","),
    )
    .into_bytes()
}
