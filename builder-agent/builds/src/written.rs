//! Recipes, inputs and limits of a run, written down for another program that goes on with it.
//!
//! The program that reads has compared versions with the one that wrote. It still checks what it reads: a mistake must end the
//! build, and not the box.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ledger::{Kind, Principal};
use members::SetBy;
use nix_derivation::{CAHash, StorePath, nixbase32};
use sandbox::Limits;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use store::{Closure, ClosureInfo, Member, Provenance, Store};

use crate::Recipe;
use crate::limits::{Origins, RunLimits};
use crate::recipe::OutputSpec;
use crate::structured::Attributes;

fn wrong(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("what was written down of a build is wrong: {error}"))
}

fn path(text: &str) -> io::Result<StorePath> {
    StorePath::from_basename(text.as_bytes()).map_err(wrong)
}

fn paths<T: FromIterator<StorePath>>(texts: &[String]) -> io::Result<T> {
    texts.iter().map(|text| path(text)).collect()
}

fn names<'a>(paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<String> {
    paths.into_iter().map(StorePath::to_basename).collect()
}

/// Bytes of a member. In base64: as JSON text a byte could take six, and the member says which bytes they are.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD_NO_PAD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        STANDARD_NO_PAD.decode(String::deserialize(from)?).map(Self).map_err(D::Error::custom)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WrittenRecipe {
    drv_path: String,
    system: Base64,
    builder: Base64,
    args: Vec<Base64>,
    /// Also if the builder gets structured attributes instead: the key of the build covers it.
    env: BTreeMap<Base64, Base64>,
    structured: Option<Base64>,
    outputs: BTreeMap<String, WrittenOutput>,
    inputs: Vec<String>,
    input_derivations: BTreeMap<String, BTreeSet<String>>,
    verified_paths: bool,
    drv_hash: Option<[u8; 32]>,
    weight: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct WrittenOutput {
    path: Option<String>,
    fixed: Option<String>,
    /// Method and algorithm.
    floating: Option<(String, String)>,
}

impl WrittenRecipe {
    pub fn of(recipe: &Recipe) -> Self {
        let Recipe { drv_path, system, builder, args, env, structured, .. } = recipe;
        let Recipe { outputs, inputs, input_derivations, verified_paths, drv_hash, weight, .. } = recipe;
        let bytes = |bytes: &Vec<u8>| Base64(bytes.clone());
        let output = |output: &OutputSpec| WrittenOutput {
            path: output.path.as_ref().map(StorePath::to_basename),
            fixed: output.fixed.as_ref().map(CAHash::to_nix_string),
            floating: output.floating.map(|(method, hash)| (method.to_string(), hash.to_string())),
        };
        Self {
            drv_path: drv_path.to_basename(),
            system: bytes(system),
            builder: bytes(builder),
            args: args.iter().map(bytes).collect(),
            env: env.iter().map(|(name, value)| (bytes(name), bytes(value))).collect(),
            structured: structured.as_ref().map(|attributes| Base64(attributes.raw().to_vec())),
            outputs: outputs.iter().map(|(name, spec)| (name.clone(), output(spec))).collect(),
            inputs: names(inputs),
            input_derivations: input_derivations
                .iter()
                .map(|(drv, wanted)| (drv.to_basename(), wanted.clone()))
                .collect(),
            verified_paths: *verified_paths,
            drv_hash: *drv_hash,
            weight: *weight,
        }
    }

    /// The name of the derivation.
    pub fn drv_path(&self) -> &str {
        &self.drv_path
    }

    pub fn read(self) -> io::Result<Recipe> {
        let output = |written: WrittenOutput| -> io::Result<OutputSpec> {
            let floating = |(method, hash): (String, String)| -> io::Result<_> {
                Ok((method.parse().map_err(wrong)?, hash.parse().map_err(wrong)?))
            };
            Ok(OutputSpec {
                path: written.path.map(|text| path(&text)).transpose()?,
                fixed: written.fixed.map(|text| CAHash::parse(&text).map_err(wrong)).transpose()?,
                floating: written.floating.map(floating).transpose()?,
            })
        };
        let attributes = |Base64(raw)| Attributes::parse(raw).map(Arc::new).map_err(wrong);
        let outputs = self.outputs.into_iter().map(|(name, written)| Ok((name, output(written)?)));
        let derivations = self.input_derivations.into_iter().map(|(drv, wanted)| Ok((path(&drv)?, wanted)));
        Ok(Recipe {
            drv_path: path(&self.drv_path)?,
            system: self.system.0,
            builder: self.builder.0,
            args: self.args.into_iter().map(|arg| arg.0).collect(),
            env: self.env.into_iter().map(|(name, value)| (name.0, value.0)).collect(),
            structured: self.structured.map(attributes).transpose()?,
            outputs: outputs.collect::<io::Result<_>>()?,
            inputs: paths(&self.inputs)?,
            input_derivations: derivations.collect::<io::Result<_>>()?,
            verified_paths: self.verified_paths,
            drv_hash: self.drv_hash,
            weight: self.weight,
        })
    }
}

/// The inputs of a run: each path, its NAR hash, and the member who claims it, if somebody does. Their contents are in the
/// store.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WrittenInputs(Vec<(String, String, Option<String>)>);

impl WrittenInputs {
    pub fn none() -> Self {
        Self(Vec::new())
    }

    pub fn of(inputs: &ClosureInfo) -> Self {
        let entry = |(info, provenance): &(Arc<nix::PathInfo>, Provenance)| {
            let owner = match provenance {
                Provenance::Verified => None,
                Provenance::Claimed(owner) => Some(owner.name().to_owned()),
            };
            (info.path.to_basename(), nixbase32::encode(&info.nar_hash), owner)
        };
        Self(inputs.paths.values().map(entry).collect())
    }

    /// The same snapshot, for this member. Fails if the store does not have all of it with the same contents.
    pub fn snapshot(self, store: &Store, member: &str) -> io::Result<Closure> {
        let entry = |(name, hash, owner): (String, String, Option<String>)| {
            let hash = nixbase32::decode(hash.as_bytes()).map_err(wrong)?;
            let hash = hash.try_into().map_err(|_| wrong("a hash of another length"))?;
            let owner = owner.map_or(Provenance::Verified, |owner| Provenance::Claimed(Member::new(&owner)));
            Ok((path(&name)?, hash, owner))
        };
        let entries = self.0.into_iter().map(entry).collect::<io::Result<Vec<_>>>()?;
        store.snapshot_again(&Member::new(member), entries).map_err(io::Error::other)
    }
}

/// Who acts: a member, with a key or with a ticket.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WrittenPrincipal {
    member: String,
    key: Option<String>,
    ticket: Option<String>,
}

impl From<&Principal> for WrittenPrincipal {
    fn from(Principal { member, with }: &Principal) -> Self {
        let of =
            |kind: Kind| with.as_ref().filter(|part| part.kind == kind).map(|part| part.name.to_string());
        Self { member: member.to_string(), key: of(Kind::Key), ticket: of(Kind::Ticket) }
    }
}

impl From<WrittenPrincipal> for Principal {
    fn from(written: WrittenPrincipal) -> Self {
        let member = Self::member(&written.member);
        match (written.key, written.ticket) {
            (Some(key), _) => member.with_key(&key),
            (None, Some(ticket)) => member.with_ticket(&ticket),
            (None, None) => member,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WrittenLimits {
    of_sandbox: Limits,
    memory: WrittenSetBy,
    wall: WrittenSetBy,
    silent: WrittenSetBy,
    log: WrittenSetBy,
    output: WrittenSetBy,
}

#[derive(Debug, Serialize, Deserialize)]
enum WrittenSetBy {
    Box(String),
    Member(String),
    Group(String, String),
    Client(String),
}

impl From<&SetBy> for WrittenSetBy {
    fn from(set_by: &SetBy) -> Self {
        match set_by {
            SetBy::Box(name) => Self::Box((*name).to_owned()),
            SetBy::Member(name) => Self::Member((*name).to_owned()),
            SetBy::Group { limit, group } => Self::Group((*limit).to_owned(), group.clone()),
            SetBy::Client(name) => Self::Client((*name).to_owned()),
        }
    }
}

impl From<WrittenSetBy> for SetBy {
    fn from(written: WrittenSetBy) -> Self {
        // Names of limits are constants everywhere else. The few of the runs that are taken over stay for as long as the process.
        let name = |name: String| &*Box::leak(name.into_boxed_str());
        match written {
            WrittenSetBy::Box(limit) => Self::Box(name(limit)),
            WrittenSetBy::Member(limit) => Self::Member(name(limit)),
            WrittenSetBy::Group(limit, group) => Self::Group { limit: name(limit), group },
            WrittenSetBy::Client(limit) => Self::Client(name(limit)),
        }
    }
}

impl From<&RunLimits> for WrittenLimits {
    fn from(RunLimits { of_sandbox, set_by }: &RunLimits) -> Self {
        let Origins { memory, wall, silent, log, output } = set_by;
        Self {
            of_sandbox: of_sandbox.clone(),
            memory: memory.into(),
            wall: wall.into(),
            silent: silent.into(),
            log: log.into(),
            output: output.into(),
        }
    }
}

impl From<WrittenLimits> for RunLimits {
    fn from(written: WrittenLimits) -> Self {
        let WrittenLimits { of_sandbox, memory, wall, silent, log, output } = written;
        let set_by = Origins {
            memory: memory.into(),
            wall: wall.into(),
            silent: silent.into(),
            log: log.into(),
            output: output.into(),
        };
        Self { of_sandbox, set_by }
    }
}

#[cfg(test)]
mod tests {
    use nix_derivation::{ContentAddressMethod, HashAlgorithm};

    use super::*;
    use crate::key::key_test::recipe;

    fn again<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
        serde_json::from_slice(&serde_json::to_vec(value).expect("JSON")).expect("the same type")
    }

    #[test]
    fn a_recipe_comes_back_with_every_byte() {
        let floating = (ContentAddressMethod::Nar, HashAlgorithm::Sha256);
        let ca = CAHash::parse("fixed:r:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s");
        let mut outputs = recipe().outputs;
        outputs.insert("a".into(), OutputSpec { path: None, fixed: None, floating: Some(floating) });
        outputs
            .insert("b".into(), OutputSpec { path: None, fixed: Some(ca.expect("a hash")), floating: None });
        let attributes = Attributes::parse(b"{\"a\":[1,\"\xc3\xa9\"]}".to_vec()).expect("an object");
        let whole = Recipe {
            args: vec![(0..=255).collect(), Vec::new()],
            env: [(b"\xff".to_vec(), b"\0\xfe".to_vec())].into(),
            structured: Some(Arc::new(attributes)),
            outputs,
            drv_hash: Some([9; 32]),
            verified_paths: true,
            ..recipe()
        };
        let back = again(&WrittenRecipe::of(&whole)).read().expect("a recipe");
        assert_eq!(format!("{back:?}"), format!("{whole:?}"));
        let mut broken = WrittenRecipe::of(&whole);
        broken.drv_path = "../x".into();
        broken.read().expect_err("no path");
    }

    #[test]
    fn no_byte_of_a_member_takes_much_more_than_itself() {
        let many = 1 << 20;
        for byte in [1, b'"', b'a', 0xff] {
            let (env, args) = ([(vec![byte; many], vec![byte; many])].into(), vec![vec![byte; many]]);
            let whole = Recipe { env, args, ..recipe() };
            let text = serde_json::to_vec(&WrittenRecipe::of(&whole)).expect("JSON");
            assert!(text.len() < 3 * many * 14 / 10, "{byte}: {}", text.len());
        }
    }

    #[test]
    fn limits_come_back_with_who_set_them() {
        let of_sandbox = Limits {
            vcpus: 1,
            memory_mib: 2,
            wall: Some(std::time::Duration::from_millis(1500)),
            silent: None,
            log_bytes: 3,
            output_bytes: 4,
            processes: 5,
        };
        let set_by = Origins {
            wall: SetBy::Member("a"),
            silent: SetBy::Group { limit: "b", group: "ci".into() },
            log: SetBy::Client("c"),
            ..Origins::default()
        };
        let limits = RunLimits { of_sandbox, set_by };
        let back = RunLimits::from(again(&WrittenLimits::from(&limits)));
        assert_eq!((back.of_sandbox, back.set_by), (limits.of_sandbox, limits.set_by));
    }
}
