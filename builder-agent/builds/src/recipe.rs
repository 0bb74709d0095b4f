//! One derivation, ready to be checked and run: all paths known, all inputs named.
//!
//! A recipe comes from a `.drv` in the member's view, or from a `BasicDerivation` sent by a client. Both are the
//! member's own statements: they decide what is built for that member, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nix::derivation::{BasicDerivation, Derivation, aterm};
use nix::modulo;
use nix_derivation::store_path::build_text_path;
use nix_derivation::{CAHash, ContentAddressMethod, HashAlgorithm, Output, StorePath};
use sha2::{Digest, Sha256};
use store::ClosureInfo;

use super::structured::Attributes;
use super::{Failure, builtin, weight};

/// Largest `.drv` we read. The largest in nixpkgs are a few megabytes, nearly all of it environment.
pub const MAX_DRV_BYTES: u64 = 32 << 20;

/// Attributes that are lists of words.
const LISTS: [&str; 8] = [
    "allowedReferences",
    "allowedRequisites",
    "disallowedReferences",
    "disallowedRequisites",
    "exportReferencesGraph",
    "impureEnvVars",
    "passAsFile",
    "requiredSystemFeatures",
];
/// Longest value of such an attribute, in bytes. Its words take about twenty times that in memory; the names of all
/// paths of a NixOS system are a tenth.
const MAX_LIST_BYTES: usize = 2 << 20;

/// An output, and how its path is determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// `None` until the output has been built (`floating`), or until the derivation has been resolved (neither
    /// `fixed` nor `floating`: Nix calls it deferred).
    pub path: Option<StorePath>,
    /// The content address that the output must have.
    pub fixed: Option<CAHash>,
    /// How the path follows from the contents.
    pub floating: Option<(ContentAddressMethod, HashAlgorithm)>,
}

#[derive(Debug)]
pub struct Recipe {
    pub drv_path: StorePath,
    /// This field and the following ones are strings of Nix, which may hold any bytes.
    pub system: Vec<u8>,
    pub builder: Vec<u8>,
    pub args: Vec<Vec<u8>>,
    /// The variables as in the derivation, without `__json`: placeholders are not replaced, nothing is added.
    pub env: BTreeMap<Vec<u8>, Vec<u8>>,
    pub structured: Option<Arc<Attributes>>,
    pub outputs: BTreeMap<String, OutputSpec>,
    /// The paths the builder may see, without what they refer to.
    pub inputs: BTreeSet<StorePath>,
    /// Input derivations and the outputs wanted of each. Empty for a `BasicDerivation`.
    pub input_derivations: BTreeMap<StorePath, BTreeSet<String>>,
    /// Whether the agent computed the output paths itself, from the derivation and all derivations below it, each read
    /// from a Verified path. Only then may an input-addressed output become Verified.
    pub verified_paths: bool,
    /// The derivation's hash modulo fixed outputs, which names realisations; known if some output has no path.
    pub drv_hash: Option<[u8; 32]>,
    /// Approximate memory of this recipe.
    pub weight: u64,
}

impl Recipe {
    /// Parses the contents of the `.drv` at `drv_path`. The caller still has to add the outputs of input derivations to
    /// `inputs`.
    pub fn from_drv(drv_path: &StorePath, bytes: &[u8]) -> Result<Self, Failure> {
        let full = drv_path.to_absolute_path();
        let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
        let name =
            drv_path.name().strip_suffix(".drv").ok_or_else(|| bad(&"its name does not end in .drv"))?;
        let derivation = Derivation::parse(bytes, name).map_err(|e| bad(&e))?;
        Self::from_derivation(drv_path, &derivation, weight::of_text(bytes))
    }

    /// As [`Recipe::from_drv`], from a parsed derivation; `weight` is the estimated memory of its text.
    pub fn from_derivation(drv_path: &StorePath, drv: &Derivation, weight: u64) -> Result<Self, Failure> {
        let full = drv_path.to_absolute_path();
        let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
        let mut env = drv.basic.env.clone();
        let structured = attributes(&mut env).map_err(|e| bad(&e))?;
        Ok(Self {
            outputs: outputs(drv_path, &drv.name, &drv.basic.outputs)?,
            system: drv.basic.system.clone(),
            builder: drv.basic.builder.clone(),
            args: drv.basic.args.clone(),
            env,
            weight: weight + structured.as_ref().map_or(0, |attributes| attributes.memory()),
            structured,
            inputs: drv.basic.input_sources.clone(),
            input_derivations: drv.inputs.clone(),
            verified_paths: false,
            drv_hash: None,
            drv_path: drv_path.clone(),
        })
    }

    /// Takes the derivation that a client sent with `BuildDerivation`.
    pub fn from_basic(drv_path: &StorePath, basic: BasicDerivation) -> Result<Self, Failure> {
        let full = drv_path.to_absolute_path();
        let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
        let name =
            drv_path.name().strip_suffix(".drv").ok_or_else(|| bad(&"its name does not end in .drv"))?;
        let outputs = outputs(drv_path, name, &basic.outputs)?;
        if outputs.values().any(|output| output.path.is_none() && output.floating.is_none()) {
            return Err(bad(&"its output paths are left open; the client has to resolve it first"));
        }
        let hashes = modulo::of_basic(name, &basic).map_err(|e| bad(&e))?;
        let text = aterm(name, &basic, &BTreeMap::new(), false);
        let belongs = build_text_path(drv_path.name(), &text, &basic.input_sources).map_err(|e| bad(&e))?;
        let floating = outputs.values().any(|output| output.path.is_none());
        let mut env = basic.env;
        let structured = attributes(&mut env).map_err(|e| bad(&e))?;
        Ok(Self {
            outputs,
            system: basic.system,
            builder: basic.builder,
            args: basic.args,
            env,
            weight: weight::of_text(&text) + structured.as_ref().map_or(0, |attributes| attributes.memory()),
            structured,
            inputs: basic.input_sources,
            input_derivations: BTreeMap::new(),
            // The second condition: `drv_path` is the path of this derivation, not a name that the client chose.
            verified_paths: hashes.verified && belongs == *drv_path,
            drv_hash: floating.then_some(hashes.masked),
            drv_path: drv_path.clone(),
        })
    }

    /// Whether building this recipe from `inputs` gives the outputs that everybody with the same derivation gets: its
    /// paths were computed here, and all that its builder sees is Verified.
    pub fn proven(&self, inputs: &ClosureInfo) -> bool {
        self.verified_paths && inputs.all_verified()
    }

    pub fn is_fixed(&self) -> bool {
        self.outputs.values().any(|output| output.fixed.is_some())
    }

    /// The path to which the builder writes each output (Nix: `scratchOutputs`): the output's path, or, while that is not
    /// known, one that is replaced afterwards.
    pub fn scratch_paths(&self) -> BTreeMap<String, StorePath> {
        self.outputs
            .iter()
            .map(|(name, output)| {
                let path = output.path.clone().unwrap_or_else(|| scratch_path(&self.drv_path, name));
                (name.clone(), path)
            })
            .collect()
    }

    /// The paths of all outputs, if every one is known.
    pub fn known_paths(&self) -> Option<BTreeMap<String, StorePath>> {
        self.outputs.iter().map(|(name, output)| Some((name.clone(), output.path.clone()?))).collect()
    }

    /// An attribute that is a string both with and without structured attributes; for attributes that must be text.
    pub fn text(&self, name: &str) -> Option<String> {
        self.bytes(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        match &self.structured {
            Some(attrs) => attrs.get(name)?.as_str().map(str::as_bytes),
            None => self.env.get(name.as_bytes()).map(Vec::as_slice),
        }
    }

    /// An attribute that is a list: words without structured attributes, an array of strings (or words) with them.
    pub fn byte_words(&self, name: &str) -> Option<Vec<Vec<u8>>> {
        if let Some(list) = self.structured.as_ref().and_then(|attrs| attrs.get(name)?.as_array()) {
            return Some(list.iter().filter_map(|item| Some(item.as_str()?.as_bytes().to_vec())).collect());
        }
        // Nix: `tokenizeString`.
        let words = self.bytes(name)?.split(|byte| b" \t\n\r".contains(byte));
        Some(words.filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// As [`Recipe::byte_words`], for attributes that must be text.
    pub fn words(&self, name: &str) -> Option<Vec<String>> {
        let words = self.byte_words(name)?.into_iter();
        Some(words.map(|word| String::from_utf8_lossy(&word).into_owned()).collect())
    }

    /// A yes-or-no attribute, as Nix reads it: `"1"`, or `true` with structured attributes.
    pub fn flag(&self, name: &str) -> bool {
        match &self.structured {
            Some(attrs) => attrs.get(name).and_then(|value| value.as_bool()).unwrap_or(false),
            None => self.env.get(name.as_bytes()).is_some_and(|value| value == b"1"),
        }
    }

    /// Refuses a derivation that this box cannot or will not run.
    pub fn check(&self, systems: &[String], features: &[String]) -> Result<(), Failure> {
        let path = self.drv_path.to_absolute_path();
        if let Some(name) =
            LISTS.iter().find(|name| self.bytes(name).is_some_and(|value| value.len() > MAX_LIST_BYTES))
        {
            return Err(Failure::rejected(format!(
                "cannot build '{path}': its '{name}' is longer than {} MiB, the limit of this box for lists of words",
                MAX_LIST_BYTES >> 20
            )));
        }
        let mut wanted = self.words("requiredSystemFeatures").unwrap_or_default();
        wanted.sort();
        wanted.dedup();
        let system = String::from_utf8_lossy(&self.system);
        let runs = system == "builtin" || systems.iter().any(|own| *own == system);
        if !runs || wanted.iter().any(|feature| !features.contains(feature)) {
            return Err(Failure::rejected(format!(
                "a '{system}' with features {{{}}} is required to build '{path}', but I am a '{}' with features {{{}}}",
                wanted.join(", "),
                systems.join("', '"),
                features.join(", "),
            )));
        }
        let builder = String::from_utf8_lossy(&self.builder);
        let builtin = builder.strip_prefix("builtin:");
        if let Some(builtin) = builtin
            && !builtin::is_known(builtin)
        {
            return Err(Failure::rejected(format!(
                "cannot build '{path}': unsupported builtin builder '{builtin}'; \
                 realise it on the client, which then uploads the result"
            )));
        }
        if builtin.is_none() && !builder.starts_with('/') {
            return Err(Failure::rejected(format!(
                "cannot build '{path}': its builder '{builder}' is not an absolute path"
            )));
        }
        if self.flag("__noChroot") {
            return Err(Failure::rejected(format!(
                "derivation '{path}' has '__noChroot' set, but this box builds nothing outside its sandbox"
            )));
        }
        Ok(())
    }
}

/// Removes `__json` from the variables and parses it.
fn attributes(env: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Option<Arc<Attributes>>, String> {
    env.remove(&b"__json"[..]).map(|json| Attributes::parse(json).map(Arc::new)).transpose()
}

fn outputs(
    drv_path: &StorePath,
    name: &str,
    outputs: &BTreeMap<String, Output>,
) -> Result<BTreeMap<String, OutputSpec>, Failure> {
    let full = drv_path.to_absolute_path();
    let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
    if outputs.is_empty() {
        return Err(bad(&"it has no outputs"));
    }
    let mut specs: BTreeMap<String, OutputSpec> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut algorithms = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for (output_name, output) in outputs {
        // This also refuses names that no store path can have.
        let wanted = nix_derivation::store_path::output_path_name(name, output_name).map_err(|e| bad(&e))?;
        let (kind, fixed, floating) = match output {
            Output::InputAddressed { .. } => (0, None, None),
            Output::Fixed { ca } if outputs.len() == 1 && output_name == "out" => (1, Some(ca.clone()), None),
            Output::Fixed { .. } => {
                return Err(bad(&"a fixed output must be the only one and be called 'out'"));
            }
            Output::Floating { method, hash_algorithm } => {
                let allowed = match method {
                    ContentAddressMethod::Flat | ContentAddressMethod::Nar => true,
                    ContentAddressMethod::Text => *hash_algorithm == HashAlgorithm::Sha256,
                    ContentAddressMethod::Git => {
                        matches!(hash_algorithm, HashAlgorithm::Sha1 | HashAlgorithm::Sha256)
                    }
                };
                if !allowed {
                    return Err(bad(&format!(
                        "its output '{output_name}' is to be hashed as {method} with {hash_algorithm}, which Nix does not do"
                    )));
                }
                algorithms.insert(hash_algorithm.to_string());
                (2, None, Some((*method, *hash_algorithm)))
            }
            Output::Deferred => (3, None, None),
            Output::Impure { .. } => {
                return Err(bad(
                    &"it is an impure derivation (__impure), and this box builds pure ones only; realise it on the client",
                ));
            }
        };
        kinds.insert(kind);
        if kinds.len() > 1 {
            return Err(bad(&"it mixes kinds of outputs"));
        }
        if algorithms.len() > 1 {
            return Err(bad(&"all its floating outputs must use the same hash algorithm"));
        }
        let Some(path) = output.path(name, output_name).map_err(|e| bad(&e))? else {
            specs.insert(output_name.clone(), OutputSpec { path: None, fixed, floating });
            continue;
        };
        if !taken.insert(path.clone()) {
            return Err(bad(&format!("two of its outputs are '{}'", path.to_absolute_path())));
        }
        // An output may not have the name of another derivation's output.
        if path.name() != wanted {
            return Err(bad(&format!(
                "its output '{output_name}' is '{}', whose name should be '{wanted}'",
                path.to_absolute_path()
            )));
        }
        specs.insert(output_name.clone(), OutputSpec { path: Some(path), fixed, floating });
    }
    Ok(specs)
}

/// The scratch path of an output whose path is not known yet. No other store path is computed this way (Nix:
/// `makeFallbackPath`). Its name and length are those of the final path, so that one can replace the other.
fn scratch_path(drv_path: &StorePath, output: &str) -> StorePath {
    let name = drv_path.name().strip_suffix(".drv").unwrap_or(drv_path.name());
    // `outputs` refused names that no store path can have.
    let name =
        nix_derivation::store_path::output_path_name(name, output).unwrap_or_else(|_| output.to_owned());
    let zeros = "0".repeat(64);
    let text = format!("rewrite:{}:name:{output}:sha256:{zeros}:/nix/store:{name}", drv_path.to_basename());
    let mut digest = [0; 20];
    // Nix: compressHash.
    for (i, byte) in Sha256::digest(text.as_bytes()).into_iter().enumerate() {
        digest[i % 20] ^= byte;
    }
    StorePath::from_parts(digest, &name).unwrap_or_else(|_| drv_path.clone())
}
