//! Writes answers in the form of the client's version. (Nix: src/libstore/worker-protocol.cc.)

use std::time::Duration;

use nix::{BuildResult, DrvKey, DrvOutputId, Realisation, SubstitutablePathInfo};
use tokio::io::AsyncWrite;

use super::op::{Answer, Op};
use super::response::Response;
use super::version::Protocol;
use crate::error::WireError;
use crate::output::{Encode, Output};
use crate::write::{built_outputs, built_outputs_json, derived_path, path_info};

/// Whether an answer of this form fits this operation.
pub(super) fn check(op: Op, response: &Response) -> Result<(), WireError> {
    let fits = match (op.info().answer, response) {
        (Answer::Nothing | Answer::One, Response::Done)
        | (Answer::Bool, Response::Bool(_))
        | (Answer::Paths, Response::Paths(_))
        | (Answer::MaybePath, Response::MaybePath(_))
        | (Answer::Names, Response::Names(_))
        | (Answer::PathInfo, Response::PathInfo(_))
        | (Answer::Added, Response::Added(_))
        | (Answer::OutputMap, Response::OutputMap(_))
        | (Answer::BuildResult, Response::BuildResult(_))
        | (Answer::BuildResults, Response::BuildResults(_))
        | (Answer::Missing, Response::Missing(_))
        | (Answer::SubstitutableMany, Response::Substitutable(_))
        | (Answer::Roots, Response::Roots(_))
        | (Answer::Garbage, Response::Garbage { .. })
        | (Answer::Realisation, Response::Realisation(_))
        | (Answer::GcRoot, Response::GcRoot(_)) => true,
        (Answer::SubstitutableOne, Response::Substitutable(infos)) => infos.len() <= 1,
        _ => false,
    };
    match fits {
        true => Ok(()),
        false => Err(WireError::Misuse { op: op.name(), what: "an answer of the wrong shape" }),
    }
}

/// Writes an answer that [`check`] accepted.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    output: &mut Output<W>,
    protocol: Protocol,
    op: Op,
    response: &Response,
) -> Result<(), WireError> {
    let out = &mut output.buffer;
    match response {
        Response::Done => {
            if op.info().answer == Answer::One {
                out.u64(1);
            }
        }
        Response::Bool(value) => out.bool(*value),
        Response::Paths(paths) => {
            // This list can be as large as the store, so it is sent in pieces.
            out.u64(paths.len() as u64);
            for path in paths {
                output.buffer.path(path);
                output.relieve().await?;
            }
        }
        Response::MaybePath(path) => out.maybe_path(path.as_ref()),
        Response::Names(names) => out.strings(names),
        Response::PathInfo(None) => out.bool(false),
        Response::PathInfo(Some(info)) => {
            out.bool(true);
            path_info(out, info);
        }
        Response::Added(info) => {
            out.path(&info.path);
            if op == Op::AddToStore && protocol.at_least(25) {
                path_info(out, info);
            }
        }
        Response::OutputMap(outputs) => {
            out.u64(outputs.len() as u64);
            for (name, path) in outputs {
                out.str(name);
                out.maybe_path(path.as_ref());
            }
        }
        Response::BuildResult(result) => build_result(out, protocol, result),
        Response::BuildResults(results) => {
            out.u64(results.len() as u64);
            for (path, result) in results {
                derived_path(&mut output.buffer, path);
                build_result(&mut output.buffer, protocol, result);
                output.relieve().await?;
            }
        }
        Response::Missing(missing) => {
            out.paths(&missing.will_build);
            out.paths(&missing.will_substitute);
            out.paths(&missing.unknown);
            out.u64(missing.download_size);
            out.u64(missing.nar_size);
        }
        Response::Substitutable(infos) => {
            // The number of infos; for the older operation that is the flag whether there is one.
            out.u64(infos.len() as u64);
            for info in infos {
                substitutable(&mut output.buffer, info, op.info().answer == Answer::SubstitutableMany);
                output.relieve().await?;
            }
        }
        Response::Roots(roots) => {
            out.u64(roots.len() as u64);
            for (link, target) in roots {
                out.str(link);
                out.path(target);
            }
        }
        Response::Garbage { paths, bytes_freed } => {
            out.strings(paths);
            out.u64(*bytes_freed);
            out.u64(0); // obsolete
        }
        Response::Realisation(found) => realisation(out, protocol, found.as_ref()),
        Response::GcRoot(root) => out.str(root),
    }
    Ok(output.relieve().await?)
}

fn substitutable(out: &mut Vec<u8>, info: &SubstitutablePathInfo, keyed: bool) {
    if keyed {
        out.path(&info.path);
    }
    out.maybe_path(info.deriver.as_ref());
    out.paths(&info.references);
    out.u64(info.download_size);
    out.u64(info.nar_size);
}

fn build_result(out: &mut Vec<u8>, protocol: Protocol, result: &BuildResult) {
    out.u64(result.status as u64);
    out.str(&result.error_msg);
    if protocol.at_least(29) {
        out.u64(result.times_built.into());
        out.bool(result.is_non_deterministic);
        out.u64(result.start_time as u64);
        out.u64(result.stop_time as u64);
    }
    if protocol.at_least(37) {
        microseconds(out, result.cpu_user);
        microseconds(out, result.cpu_system);
    }
    if protocol.features.realisation_with_path {
        built_outputs(out, result);
    } else if protocol.at_least(28) {
        built_outputs_json(out, result);
    }
}

fn microseconds(out: &mut Vec<u8>, time: Option<Duration>) {
    out.bool(time.is_some());
    if let Some(time) = time {
        out.u64(u64::try_from(time.as_micros()).unwrap_or(i64::MAX as u64));
    }
}

fn realisation(out: &mut Vec<u8>, protocol: Protocol, found: Option<&Realisation>) {
    out.bool(found.is_some()); // the size of a set, or whether there is one
    let Some(found) = found else { return };
    if protocol.features.realisation_with_path {
        out.path(&found.out_path);
        out.strings(&found.signatures);
    } else if protocol.at_least(31) {
        out.str(&realisation_json(found));
    } else {
        out.path(&found.out_path);
    }
}

pub(crate) fn realisation_json(realisation: &Realisation) -> String {
    let dependent = realisation.dependent_realisations.iter();
    let dependent: serde_json::Map<_, _> =
        dependent.map(|(id, path)| (id.clone(), path.to_basename().into())).collect();
    let json = serde_json::json!({
        "dependentRealisations": dependent,
        "id": drv_output_id(&realisation.id),
        "outPath": realisation.out_path.to_basename(),
        "signatures": realisation.signatures,
    });
    json.to_string()
}

pub(crate) fn drv_output_id(id: &DrvOutputId) -> String {
    match &id.drv {
        DrvKey::Hash(hash) => format!("{}!{}", hash.to_nix_base16_string(), id.output),
        // Clients of this version never use the hash; it only has to parse.
        DrvKey::Path(_) => format!("sha256:{}!{}", "0".repeat(64), id.output),
    }
}
