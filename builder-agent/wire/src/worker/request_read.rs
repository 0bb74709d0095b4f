//! Reads the arguments of requests. (Nix: `performOp` in src/libstore/daemon.cc, and worker-protocol.cc.)

use std::collections::BTreeMap;

use nix::{BuildMode, DrvKey, DrvOutputId, Realisation};
use nix_derivation::{ContentAddressMethod, DerivedPath, HashAlgorithm, NixHash, nixbase32};
use tokio::io::AsyncRead;

use super::op::Op;
use super::request::Request;
use super::version::Protocol;
use crate::error::{Problem, WireError, quote};
use crate::input::{Fields, Input};
use crate::limits::*;
use crate::read::{basic_derivation, hash_algorithm, method_and_algorithm, output_name, path_info};
use crate::terms::Meter;
use crate::types::{ClientSettings, GcAction, GcOptions};

pub(super) async fn arguments<R: AsyncRead + Unpin>(
    input: &mut Input<R>,
    meter: Option<&dyn Meter>,
    protocol: Protocol,
    op: Op,
) -> Result<Request, WireError> {
    let f = &mut Fields::new(input, op.name()).metered(meter);
    Ok(match op {
        Op::IsValidPath => Request::IsValidPath { path: f.path("path").await? },
        Op::QueryReferences => Request::QueryReferences { path: f.path("path").await? },
        Op::QueryReferrers => Request::QueryReferrers { path: f.path("path").await? },
        Op::QueryDeriver => Request::QueryDeriver { path: f.path("path").await? },
        Op::AddToStore => add_to_store(f, protocol).await?,
        Op::AddTextToStore => Request::AddTextToStore {
            name: f.string("name", MAX_NAME_BYTES).await?,
            text: f.bytes("text", MAX_REQUEST_BYTES).await?,
            references: f.path_set("references").await?,
        },
        Op::AddToStoreNar => {
            let info = path_info(f).await?;
            let (repair, dont_check_sigs) = (f.bool("repair").await?, f.bool("dontCheckSigs").await?);
            Request::AddToStoreNar { info, repair, dont_check_sigs }
        }
        Op::AddMultipleToStore => Request::AddMultipleToStore {
            repair: f.bool("repair").await?,
            dont_check_sigs: f.bool("dontCheckSigs").await?,
        },
        Op::BuildPaths => {
            Request::BuildPaths { paths: targets(f, protocol).await?, mode: build_mode(f).await? }
        }
        Op::BuildPathsWithResults => {
            Request::BuildPathsWithResults { paths: targets(f, protocol).await?, mode: build_mode(f).await? }
        }
        Op::BuildDerivation => Request::BuildDerivation {
            drv_path: f.path("drvPath").await?,
            derivation: basic_derivation(f).await?,
            mode: build_mode(f).await?,
        },
        Op::EnsurePath => Request::EnsurePath { path: f.path("path").await? },
        Op::AddTempRoot => Request::AddTempRoot { path: f.path("path").await? },
        Op::AddPermRoot => Request::AddPermRoot {
            path: f.path("path").await?,
            gc_root: f.string("gcRoot", MAX_NAME_BYTES).await?,
        },
        Op::AddIndirectRoot => {
            Request::AddIndirectRoot { gc_root: f.string("gcRoot", MAX_NAME_BYTES).await? }
        }
        Op::SyncWithGc => Request::SyncWithGc,
        Op::FindRoots => Request::FindRoots,
        Op::SetOptions => Request::SetOptions(client_settings(f).await?),
        Op::CollectGarbage => Request::CollectGarbage(gc_options(f, protocol).await?),
        Op::QueryAllValidPaths => Request::QueryAllValidPaths,
        Op::QueryPathInfo => Request::QueryPathInfo { path: f.path("path").await? },
        Op::QueryDerivationOutputs => Request::QueryDerivationOutputs { path: f.path("path").await? },
        Op::QueryDerivationOutputNames => Request::QueryDerivationOutputNames { path: f.path("path").await? },
        Op::QueryDerivationOutputMap => Request::QueryDerivationOutputMap { path: f.path("path").await? },
        Op::QueryPathFromHashPart => {
            let bytes = f.bytes("hashPart", MAX_HASH_BYTES).await?;
            // Nix compares the strings; a string that decodes differently could not be equal.
            let hash_part = nixbase32::decode(&bytes).ok().and_then(|digest| digest.try_into().ok());
            Request::QueryPathFromHashPart { hash_part }
        }
        Op::QuerySubstitutablePathInfo => Request::QuerySubstitutablePathInfo { path: f.path("path").await? },
        Op::QuerySubstitutablePathInfos => {
            let mut paths = BTreeMap::new();
            for _ in 0..f.count("paths", MAX_PATHS).await? {
                let path = f.path("paths").await?;
                let ca = if protocol.at_least(22) { f.maybe_ca("ca").await? } else { None };
                paths.insert(path, ca);
            }
            Request::QuerySubstitutablePathInfos { paths }
        }
        Op::QueryValidPaths => Request::QueryValidPaths {
            paths: f.paths("paths").await?,
            substitute: protocol.at_least(27) && f.bool("substitute").await?,
        },
        Op::QuerySubstitutablePaths => Request::QuerySubstitutablePaths { paths: f.paths("paths").await? },
        Op::QueryValidDerivers => Request::QueryValidDerivers { path: f.path("path").await? },
        Op::OptimiseStore => Request::OptimiseStore,
        Op::VerifyStore => Request::VerifyStore {
            check_contents: f.bool("checkContents").await?,
            repair: f.bool("repair").await?,
        },
        Op::AddSignatures => Request::AddSignatures {
            path: f.path("path").await?,
            signatures: f.signatures("signatures").await?,
        },
        Op::NarFromPath => Request::NarFromPath { path: f.path("path").await? },
        Op::QueryMissing => Request::QueryMissing { targets: targets(f, protocol).await? },
        Op::RegisterDrvOutput => Request::RegisterDrvOutput { realisation: realisation(f, protocol).await? },
        Op::QueryRealisation => Request::QueryRealisation { id: drv_output_id(f, protocol).await? },
        Op::AddBuildLog => {
            let name = f.bytes("drvPath", MAX_STORE_PATH_BYTES).await?;
            Request::AddBuildLog { drv_path: f.parse_base_name("drvPath", &name)? }
        }
    })
}

async fn add_to_store<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    protocol: Protocol,
) -> Result<Request, WireError> {
    let name = f.string("name", MAX_NAME_BYTES).await?;
    if protocol.at_least(25) {
        let text = f.string("method", MAX_NAME_BYTES).await?;
        let (method, algorithm) = match text.strip_prefix("fixed:") {
            Some(rest) => method_and_algorithm(f, "method", rest)?,
            None if text.starts_with("text:") => method_and_algorithm(f, "method", &text)?,
            None => {
                return Err(f.unexpected("method", text.as_bytes(), "\"text:\" or \"fixed:\" and a hash"));
            }
        };
        let references = f.path_set("references").await?;
        let repair = f.bool("repair").await?;
        return Ok(Request::AddToStore { name, method, algorithm, references, repair });
    }
    let fixed = f.bool("fixed").await?;
    let recursive = f.at_most("recursive", 1).await? == 1;
    let algorithm = f.string("hashAlgo", MAX_NAME_BYTES).await?;
    // A path that is not fixed-output is a source, whatever the other two fields say.
    let (method, algorithm) = match fixed {
        false => (ContentAddressMethod::Nar, HashAlgorithm::Sha256),
        true => {
            let method = if recursive { ContentAddressMethod::Nar } else { ContentAddressMethod::Flat };
            (method, hash_algorithm(f, "hashAlgo", &algorithm)?)
        }
    };
    Ok(Request::AddToStore { name, method, algorithm, references: Default::default(), repair: false })
}

async fn build_mode<S: AsyncRead + Unpin>(f: &mut Fields<'_, S>) -> Result<BuildMode, WireError> {
    Ok(match f.at_most("buildMode", 2).await? {
        0 => BuildMode::Normal,
        1 => BuildMode::Repair,
        _ => BuildMode::Check,
    })
}

async fn targets<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    protocol: Protocol,
) -> Result<Vec<DerivedPath>, WireError> {
    // Before 1.30 a derivation without outputs meant all its outputs.
    crate::read::targets(f, !protocol.at_least(30)).await
}

async fn client_settings<S: AsyncRead + Unpin>(f: &mut Fields<'_, S>) -> Result<ClientSettings, WireError> {
    let mut settings = ClientSettings {
        keep_failed: f.bool("keepFailed").await?,
        keep_going: f.bool("keepGoing").await?,
        try_fallback: f.bool("tryFallback").await?,
        verbosity: f.u64("verbosity").await?,
        max_build_jobs: f.u64("maxBuildJobs").await?,
        max_silent_time: f.u64("maxSilentTime").await?,
        ..ClientSettings::default()
    };
    f.u64("useBuildHook").await?;
    settings.verbose_build = f.u64("verboseBuild").await? == 0; // a verbosity: errors only is yes
    f.u64("logType").await?;
    f.u64("printBuildTrace").await?;
    settings.build_cores = f.u64("buildCores").await?;
    settings.use_substitutes = f.bool("useSubstitutes").await?;
    for _ in 0..f.count("overrides", MAX_SETTINGS).await? {
        let name = f.string("name of a setting", MAX_NAME_BYTES).await?;
        settings.overrides.insert(name, f.string("value of a setting", MAX_VALUE_BYTES).await?);
    }
    Ok(settings)
}

async fn gc_options<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    protocol: Protocol,
) -> Result<GcOptions, WireError> {
    let action = match f.at_most("action", 3).await? {
        0 => GcAction::ReturnLive,
        1 => GcAction::ReturnDead,
        2 => GcAction::DeleteDead,
        _ => GcAction::DeleteSpecific,
    };
    let (mut paths, mut delete_referrers) = (None, false);
    if protocol.features.delete_dead_specific_referrers {
        if f.at_most("wholeStore", 1).await? == 0 {
            paths = Some(f.path_set("pathsToDelete").await?);
            delete_referrers = f.bool("deleteReferrers").await?;
        }
    } else {
        let given = f.path_set("pathsToDelete").await?;
        if action == GcAction::DeleteSpecific || !given.is_empty() {
            paths = Some(given);
        }
    }
    let options = GcOptions {
        action,
        paths,
        delete_referrers,
        ignore_liveness: f.bool("ignoreLiveness").await?,
        max_freed: f.u64("maxFreed").await?,
    };
    for _ in 0..3 {
        f.u64("obsolete field").await?;
    }
    Ok(options)
}

async fn drv_output_id<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    protocol: Protocol,
) -> Result<DrvOutputId, WireError> {
    if protocol.features.realisation_with_path {
        let drv = DrvKey::Path(f.path("drvPath").await?);
        let output = f.string("outputName", MAX_NAME_BYTES).await?;
        return Ok(DrvOutputId { drv, output: output_name(f, "outputName", &output)? });
    }
    let text = f.string("outputId", MAX_NAME_BYTES).await?;
    hashed_id(f, &text)
}

/// `sha256:<hex>!out`.
fn hashed_id<S: AsyncRead + Unpin>(f: &Fields<'_, S>, text: &str) -> Result<DrvOutputId, WireError> {
    let Some((hash, output)) = text.split_once('!') else {
        return Err(f.unexpected("outputId", text.as_bytes(), "a hash, \"!\" and an output"));
    };
    let hash = NixHash::parse(hash)
        .map_err(|source| f.bad("outputId", Problem::Hash { value: quote(hash.as_bytes()), source }))?;
    Ok(DrvOutputId { drv: DrvKey::Hash(hash), output: output_name(f, "outputId", output)? })
}

async fn realisation<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    protocol: Protocol,
) -> Result<Realisation, WireError> {
    if protocol.features.realisation_with_path {
        return Ok(Realisation {
            id: drv_output_id(f, protocol).await?,
            out_path: f.path("outPath").await?,
            signatures: f.signatures("signatures").await?,
            dependent_realisations: BTreeMap::new(),
        });
    }
    if !protocol.at_least(31) {
        let id = drv_output_id(f, protocol).await?;
        let name = f.bytes("outPath", MAX_STORE_PATH_BYTES).await?;
        return Ok(Realisation {
            id,
            out_path: f.parse_base_name("outPath", &name)?,
            signatures: Vec::new(),
            dependent_realisations: BTreeMap::new(),
        });
    }
    let text = f.string("realisation", MAX_REALISATION_BYTES).await?;
    realisation_from_json(f, &text)
}

fn realisation_from_json<S: AsyncRead + Unpin>(
    f: &Fields<'_, S>,
    text: &str,
) -> Result<Realisation, WireError> {
    let wrong = || f.unexpected("realisation", text.as_bytes(), "a realisation as JSON");
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_| wrong())?;
    let field = |name: &str| json.get(name).and_then(|value| value.as_str()).ok_or_else(wrong);
    let mut signatures = Vec::new();
    for signature in json.get("signatures").and_then(|value| value.as_array()).into_iter().flatten() {
        signatures.push(signature.as_str().ok_or_else(wrong)?.to_owned());
    }
    let mut dependent_realisations = BTreeMap::new();
    for (id, path) in
        json.get("dependentRealisations").and_then(|value| value.as_object()).into_iter().flatten()
    {
        let path = f.parse_base_name("dependentRealisations", path.as_str().ok_or_else(wrong)?.as_bytes())?;
        dependent_realisations.insert(id.clone(), path);
    }
    Ok(Realisation {
        id: hashed_id(f, field("id")?)?,
        out_path: f.parse_base_name("outPath", field("outPath")?.as_bytes())?,
        signatures,
        dependent_realisations,
    })
}
