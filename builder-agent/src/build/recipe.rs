//! One derivation, ready to be judged and run: all paths known, all inputs named.
//!
//! A recipe comes from a `.drv` in the member's view, or from a `BasicDerivation` sent by a client. Both are the
//! member's own claims: they decide what is built for that member, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use nix_derivation::store_path::build_text_path;
use nix_derivation::{
    CAHash, ContentAddressMethod, Derivation, HashAlgorithm, Output, StorePath, StructuredAttrs,
};
use sha2::{Digest, Sha256};
use store::Closure;
use wire::types::BasicDerivation;

use super::{Failure, builtin, modulo};

/// Largest `.drv` we read. The largest in nixpkgs are a few megabytes, nearly all of it environment.
pub const MAX_DRV_BYTES: u64 = 32 << 20;

/// An output, and how its path comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// `None` until the output has been built (`floating`), or until the derivation has been resolved (neither
    /// `fixed` nor `floating`: Nix calls it deferred).
    pub path: Option<StorePath>,
    /// The content it must have.
    pub fixed: Option<CAHash>,
    /// Its contents decide about its path.
    pub floating: Option<(ContentAddressMethod, HashAlgorithm)>,
}

#[derive(Debug)]
pub struct Recipe {
    pub drv_path: StorePath,
    pub system: String,
    pub builder: String,
    pub args: Vec<String>,
    /// As in the derivation: nothing substituted, nothing added. Without `__json`.
    pub env: BTreeMap<String, Vec<u8>>,
    pub structured: Option<StructuredAttrs>,
    pub outputs: BTreeMap<String, OutputSpec>,
    /// The paths the builder may see, without what they refer to.
    pub inputs: BTreeSet<StorePath>,
    /// Input derivations and the outputs wanted of each. Empty for a `BasicDerivation`.
    pub input_derivations: BTreeMap<StorePath, BTreeSet<String>>,
    /// Whether we recomputed the output paths ourselves, from the derivation and all derivations below it, each
    /// read from a Verified path. Only then may an input-addressed output become Verified.
    pub verified_paths: bool,
    /// The derivation's hash modulo fixed outputs, which names realisations; known if an output has no path.
    pub drv_hash: Option<[u8; 32]>,
}

impl Recipe {
    /// Parses the contents of the `.drv` at `drv_path`. Outputs of input derivations still have to be added to
    /// `inputs`, by whoever can read those.
    pub fn from_drv(drv_path: &StorePath, bytes: &[u8]) -> Result<Self, Failure> {
        let full = drv_path.to_absolute_path();
        let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
        let name =
            drv_path.name().strip_suffix(".drv").ok_or_else(|| bad(&"its name does not end in .drv"))?;
        Self::from_derivation(drv_path, &Derivation::from_aterm_bytes(bytes, name).map_err(|e| bad(&e))?)
    }

    /// As [`Recipe::from_drv`], already parsed.
    pub fn from_derivation(drv_path: &StorePath, drv: &Derivation) -> Result<Self, Failure> {
        let full = drv_path.to_absolute_path();
        let bad = |why: &dyn std::fmt::Display| Failure::rejected(format!("cannot build '{full}': {why}"));
        let mut input_derivations = BTreeMap::new();
        for (path, input) in drv.input_derivations() {
            if input.is_dynamic() {
                return Err(bad(&"it depends on a dynamic derivation, which this box does not support"));
            }
            input_derivations.insert(path.clone(), input.outputs().clone());
        }
        Ok(Self {
            outputs: outputs(drv_path, drv.name(), drv.outputs())?,
            system: drv.system().to_owned(),
            builder: drv.builder().to_owned(),
            args: drv.arguments().to_vec(),
            env: drv.environment().clone(),
            structured: drv.structured_attrs().cloned(),
            inputs: drv.input_sources().clone(),
            input_derivations,
            verified_paths: false,
            drv_hash: None,
            drv_path: drv_path.clone(),
        })
    }

    /// Takes over what a client sent with `BuildDerivation`.
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
        let text = modulo::aterm(name, &basic, &BTreeMap::new(), false);
        let belongs = build_text_path(drv_path.name(), &text, &basic.input_sources).map_err(|e| bad(&e))?;
        let floating = outputs.values().any(|output| output.path.is_none());
        let mut env = basic.env;
        let structured = match env.remove("__json") {
            Some(json) => Some(StructuredAttrs::from_json_bytes(json).map_err(|e| bad(&e))?),
            None => None,
        };
        Ok(Self {
            outputs,
            system: basic.system,
            builder: basic.builder,
            args: basic.args,
            env,
            structured,
            inputs: basic.input_sources,
            input_derivations: BTreeMap::new(),
            // Also that `drv_path` is not just what a client calls it.
            verified_paths: hashes.verified && belongs == *drv_path,
            drv_hash: floating.then_some(hashes.masked),
            drv_path: drv_path.clone(),
        })
    }

    /// Whether what it makes of `inputs` is what everybody with the same derivation gets: its paths were computed here,
    /// and all that its builder sees is Verified.
    pub fn proven(&self, inputs: &Closure) -> bool {
        self.verified_paths && inputs.all_verified()
    }

    pub fn is_fixed(&self) -> bool {
        self.outputs.values().any(|output| output.fixed.is_some())
    }

    /// Where the builder writes each output: its path, or, while that is not known, a path of its own that becomes
    /// the right one afterwards.
    pub fn places(&self) -> BTreeMap<String, StorePath> {
        self.outputs
            .iter()
            .map(|(name, output)| {
                let place = output.path.clone().unwrap_or_else(|| scratch_path(&self.drv_path, name));
                (name.clone(), place)
            })
            .collect()
    }

    /// The paths of all outputs, if every one is known.
    pub fn known_paths(&self) -> Option<BTreeMap<String, StorePath>> {
        self.outputs.iter().map(|(name, output)| Some((name.clone(), output.path.clone()?))).collect()
    }

    /// An attribute that is a string with and without structured attributes.
    pub fn text(&self, name: &str) -> Option<String> {
        match &self.structured {
            Some(attrs) => attrs.get(name)?.as_str().map(str::to_owned),
            None => self.env.get(name).map(|value| String::from_utf8_lossy(value).into_owned()),
        }
    }

    /// An attribute that is a list: words without, an array of strings (or words) with structured attributes.
    pub fn words(&self, name: &str) -> Option<Vec<String>> {
        if let Some(list) = self.structured.as_ref().and_then(|attrs| attrs.get(name)?.as_array()) {
            return Some(list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect());
        }
        self.text(name).map(|text| text.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// A yes-or-no attribute, as Nix reads it: `"1"`, or `true` with structured attributes.
    pub fn flag(&self, name: &str) -> bool {
        match &self.structured {
            Some(attrs) => attrs.get(name).and_then(|value| value.as_bool()).unwrap_or(false),
            None => self.env.get(name).is_some_and(|value| value == b"1"),
        }
    }

    /// Refuses what this box cannot or will not run.
    pub fn check(&self, systems: &[String], features: &[String]) -> Result<(), Failure> {
        let path = self.drv_path.to_absolute_path();
        let mut wanted = self.words("requiredSystemFeatures").unwrap_or_default();
        wanted.sort();
        wanted.dedup();
        let runs = self.system == "builtin" || systems.contains(&self.system);
        if !runs || wanted.iter().any(|feature| !features.contains(feature)) {
            return Err(Failure::rejected(format!(
                "a '{}' with features {{{}}} is required to build '{path}', but I am a '{}' with features {{{}}}",
                self.system,
                wanted.join(", "),
                systems.join("', '"),
                features.join(", "),
            )));
        }
        let builtin = self.builder.strip_prefix("builtin:");
        if let Some(builtin) = builtin
            && !builtin::is_known(builtin)
        {
            return Err(Failure::rejected(format!(
                "cannot build '{path}': unsupported builtin builder '{builtin}'; \
                 realise it on the client, which then uploads the result"
            )));
        }
        if builtin.is_none() && !self.builder.starts_with('/') {
            return Err(Failure::rejected(format!(
                "cannot build '{path}': its builder '{}' is not an absolute path",
                self.builder
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
    let mut algorithms = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    for (output_name, output) in outputs {
        // Also refuses names that make no store path.
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
        if specs.values().any(|other| other.path.as_ref() == Some(&path)) {
            return Err(bad(&format!("two of its outputs are '{}'", path.to_absolute_path())));
        }
        // An output may not pretend to be another derivation's.
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

/// Where the builder writes an output whose path is not known yet. No other store path is made like it (Nix:
/// `makeFallbackPath`), and its name and length are those of the final path, so that one can replace the other.
fn scratch_path(drv_path: &StorePath, output: &str) -> StorePath {
    let name = drv_path.name().strip_suffix(".drv").unwrap_or(drv_path.name());
    // `outputs` refused names that make no store path.
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

/// Replaces each first text by its second, one pair after the other.
pub(super) fn replace(mut bytes: Vec<u8>, rewrites: &[(String, String)]) -> Vec<u8> {
    for (from, to) in rewrites {
        let from = from.as_bytes();
        let mut rest = bytes.as_slice();
        let mut out = Vec::new();
        while let Some(at) = find(rest, from) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(to.as_bytes());
            rest = &rest[at + from.len()..];
        }
        if !out.is_empty() || rest.len() < bytes.len() {
            out.extend_from_slice(rest);
            bytes = out;
        }
    }
    bytes
}

/// Where `what` is in `text`. All we look for begins with a slash, so only slashes are looked at closely.
fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    let first = *what.first()?;
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| *byte == first) {
        if text[from + at..].starts_with(what) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}
