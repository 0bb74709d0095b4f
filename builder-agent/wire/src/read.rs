//! Groups of fields that both protocols share. (Nix: common-protocol.cc, and the parts that
//! worker-protocol.cc and serve-protocol.cc write alike.)

use std::collections::BTreeMap;

use nix::PathInfo;
use nix::derivation::BasicDerivation;
use nix_derivation::{ContentAddressMethod, DerivedPath, HashAlgorithm, NixHash, Output, SingleDerivedPath};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{Problem, WireError, quote};
use crate::input::{Fields, Input};
use crate::limits::*;

/// The number of the next request; `None` if the client hung up instead. Sends the buffered answers before it
/// waits.
pub(crate) async fn next_number<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    input: &mut Input<R>,
    output: &mut crate::output::Output<W>,
) -> Result<Option<u64>, WireError> {
    if input.is_empty() {
        output.flush().await?;
    }
    if !input.wait().await? {
        return Ok(None);
    }
    input.begin();
    Fields::new(input, "the next request").u64("operation").await.map(Some)
}

/// Targets to build or to query; `bare_builds` as in [`derived_path`].
pub(crate) async fn targets<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    bare_builds: bool,
) -> Result<Vec<DerivedPath>, WireError> {
    let mut targets = Vec::new();
    for _ in 0..f.count("paths", MAX_TARGETS).await? {
        let text = f.string("paths", MAX_DERIVED_PATH_BYTES).await?;
        let target = derived_path(f, "paths", &text, bare_builds)?;
        if let DerivedPath::Built { outputs, .. } = &target {
            for _ in outputs {
                f.one_more("paths")?;
            }
        }
        targets.push(target);
    }
    Ok(targets)
}

/// A path info as in an `AddMultipleToStore`: always in the form of version 1.16.
pub(crate) async fn path_info<S: AsyncRead + Unpin>(f: &mut Fields<'_, S>) -> Result<PathInfo, WireError> {
    let path = f.path("path").await?;
    path_info_of(f, path).await
}

pub(crate) async fn path_info_of<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    path: nix_derivation::StorePath,
) -> Result<PathInfo, WireError> {
    Ok(PathInfo {
        path,
        deriver: f.maybe_path("deriver").await?,
        nar_hash: f.sha256("narHash").await?,
        references: f.path_set("references").await?,
        registration_time: f.u64("registrationTime").await? as i64,
        nar_size: f.u64("narSize").await?,
        ultimate: f.bool("ultimate").await?,
        signatures: f.signatures("signatures").await?,
        ca: f.maybe_ca("ca").await?,
    })
}

/// Parses a method with its algorithm: `r:sha256`, `text:sha256`, `git:sha1`, `sha256`.
pub(crate) fn method_and_algorithm<S: AsyncRead + Unpin>(
    f: &Fields<'_, S>,
    field: &'static str,
    text: &str,
) -> Result<(ContentAddressMethod, HashAlgorithm), WireError> {
    let (method, algorithm) = match text.split_once(':') {
        Some(("r", rest)) => (ContentAddressMethod::Nar, rest),
        Some(("text", rest)) => (ContentAddressMethod::Text, rest),
        Some(("git", rest)) => (ContentAddressMethod::Git, rest),
        Some(_) => return Err(f.unexpected(field, text.as_bytes(), "a method of content addressing")),
        None => (ContentAddressMethod::Flat, text),
    };
    Ok((method, hash_algorithm(f, field, algorithm)?))
}

pub(crate) fn hash_algorithm<S: AsyncRead + Unpin>(
    f: &Fields<'_, S>,
    field: &'static str,
    name: &str,
) -> Result<HashAlgorithm, WireError> {
    name.parse().map_err(|source| f.bad(field, Problem::Hash { value: quote(name.as_bytes()), source }))
}

/// Parses one target. `bare_builds`: a derivation without outputs means all its outputs, and not the derivation.
///
/// `/nix/store/…`, or `/nix/store/….drv!out,dev`, or `/nix/store/….drv!*`.
fn derived_path<S: AsyncRead + Unpin>(
    f: &Fields<'_, S>,
    field: &'static str,
    text: &str,
    bare_builds: bool,
) -> Result<DerivedPath, WireError> {
    let mut steps: Vec<&str> = text.split('!').collect();
    if steps.len() > MAX_DERIVED_PATH_STEPS {
        let (count, limit) = (steps.len() as u64, MAX_DERIVED_PATH_STEPS as u64);
        return Err(f.bad(field, Problem::TooMany { count, limit }));
    }
    let base = f.parse_path(field, steps.remove(0).as_bytes())?;
    let Some(outputs) = steps.pop() else {
        return Ok(match base.is_derivation() && bare_builds {
            true => DerivedPath::Built { drv_path: SingleDerivedPath::Opaque(base), outputs: Vec::new() },
            false => DerivedPath::Opaque(base),
        });
    };
    let mut drv_path = SingleDerivedPath::Opaque(base);
    for output in steps {
        let output = output_name(f, field, output)?;
        drv_path = SingleDerivedPath::Built { drv_path: Box::new(drv_path), output };
    }
    let mut names = Vec::new();
    if outputs != "*" {
        for name in outputs.split(',') {
            if names.len() as u64 == MAX_OUTPUTS {
                return Err(f.bad(field, Problem::TooMany { count: MAX_OUTPUTS + 1, limit: MAX_OUTPUTS }));
            }
            names.push(output_name(f, field, name)?);
        }
    }
    Ok(DerivedPath::Built { drv_path, outputs: names })
}

/// Output names become part of store paths and of variables.
pub(crate) fn output_name<S: AsyncRead + Unpin>(
    f: &Fields<'_, S>,
    field: &'static str,
    name: &str,
) -> Result<String, WireError> {
    match nix_derivation::StorePath::from_parts([0; 20], name) {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err(f.unexpected(field, name.as_bytes(), "the name of an output")),
    }
}

pub(crate) async fn basic_derivation<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
) -> Result<BasicDerivation, WireError> {
    let mut outputs = BTreeMap::new();
    for _ in 0..f.count("outputs", MAX_OUTPUTS).await? {
        let name = f.string("output name", MAX_NAME_BYTES).await?;
        let name = output_name(f, "output name", &name)?;
        outputs.insert(name, output(f).await?);
    }
    Ok(BasicDerivation {
        outputs,
        input_sources: f.path_set("inputSrcs").await?,
        system: f.bytes("platform", MAX_NAME_BYTES).await?,
        builder: f.bytes("builder", MAX_NAME_BYTES).await?,
        args: f.byte_strings("args", MAX_BUILDER_ARGS, MAX_VALUE_BYTES).await?,
        env: f.byte_map("env", MAX_ENV_VARS, MAX_VALUE_BYTES, MAX_VALUE_BYTES).await?,
    })
}

pub(crate) async fn output<S: AsyncRead + Unpin>(f: &mut Fields<'_, S>) -> Result<Output, WireError> {
    const FIELD: &str = "output";
    let path = f.maybe_path("output path").await?;
    let method = f.string("output hashAlgo", MAX_NAME_BYTES).await?;
    let hash = f.string("output hash", MAX_HASH_BYTES).await?;
    if method.is_empty() {
        return match (path, hash.is_empty()) {
            (Some(path), true) => Ok(Output::InputAddressed { path }),
            (None, true) => Ok(Output::Deferred),
            (_, false) => Err(f.unexpected(FIELD, hash.as_bytes(), "empty, as there is no hash algorithm")),
        };
    }
    let (method, algorithm) = method_and_algorithm(f, "output hashAlgo", &method)?;
    match (&hash[..], path) {
        ("impure", None) => Ok(Output::Impure { method, hash_algorithm: algorithm }),
        ("", None) => Ok(Output::Floating { method, hash_algorithm: algorithm }),
        ("impure" | "", Some(path)) => {
            Err(f.unexpected(FIELD, path.to_string().as_bytes(), "empty, as the content decides the path"))
        }
        (_, _) => {
            let bad = |source| f.bad("output hash", Problem::Hash { value: quote(hash.as_bytes()), source });
            let hash = NixHash::parse(&format!("{algorithm}:{hash}")).map_err(bad)?;
            let ca =
                nix_derivation::CAHash::from_parts(method, algorithm, hash.digest_as_bytes()).map_err(bad)?;
            Ok(Output::Fixed { ca })
        }
    }
}
