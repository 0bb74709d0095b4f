//! Reads the arguments of requests. (Nix: `opServe` in nix-store.cc, and serve-protocol.cc.)

use tokio::io::AsyncRead;

use super::op::Op;
use super::request::{BuildOptions, ImportedInfo, Request};
use super::{EXPORT_MAGIC, version};
use crate::error::{Problem, WireError};
use crate::input::{Fields, Input};
use crate::limits::MAX_SIGNATURE_BYTES;
use crate::read::{basic_derivation, path_info, targets};
use crate::terms::{Meter, Terms};
use crate::worker::Version;

pub(super) async fn arguments<R: AsyncRead + Unpin>(
    input: &mut Input<R>,
    terms: &Terms,
    client: Version,
    op: Op,
) -> Result<Request, WireError> {
    let max_nar = terms.max_body_bytes;
    let f = &mut Fields::new(input, op.name()).metered(terms.meter.as_deref());
    Ok(match op {
        Op::QueryValidPaths => Request::QueryValidPaths {
            lock: f.bool("lock").await?,
            substitute: f.bool("substitute").await?,
            paths: f.paths("paths").await?,
        },
        Op::QueryPathInfos => Request::QueryPathInfos { paths: f.paths("paths").await? },
        Op::DumpStorePath => Request::DumpStorePath { path: f.path("path").await? },
        Op::ImportPaths => Request::ImportPaths,
        Op::ExportPaths => {
            f.u64("obsolete field").await?;
            Request::ExportPaths { paths: f.paths("paths").await? }
        }
        Op::BuildPaths => {
            let paths = targets(f, true).await?;
            Request::BuildPaths { paths, options: build_options(f, client).await? }
        }
        Op::QueryClosure => Request::QueryClosure {
            include_outputs: f.bool("includeOutputs").await?,
            paths: f.paths("paths").await?,
        },
        Op::BuildDerivation => Request::BuildDerivation {
            drv_path: f.path("drvPath").await?,
            derivation: basic_derivation(f).await?,
            options: build_options(f, client).await?,
        },
        Op::AddToStoreNar => {
            let info = path_info(f).await?;
            match info.nar_size {
                0 => return Err(f.bad("the size of the NAR", Problem::EmptyNar)),
                size if size > max_nar => {
                    return Err(f.bad("the size of the NAR", Problem::BodyTooLarge { limit: max_nar }));
                }
                _ => Request::AddToStoreNar { info },
            }
        }
    })
}

async fn build_options<S: AsyncRead + Unpin>(
    f: &mut Fields<'_, S>,
    client: Version,
) -> Result<BuildOptions, WireError> {
    let mut options = BuildOptions {
        max_silent_time: f.u64("maxSilentTime").await?,
        build_timeout: f.u64("buildTimeout").await?,
        ..BuildOptions::default()
    };
    if client >= version(2) {
        options.max_log_size = f.u64("maxLogSize").await?;
    }
    if client >= version(3) {
        options.nr_repeats = f.u64("nrRepeats").await?;
        options.enforce_determinism = f.bool("enforceDeterminism").await?;
    }
    if client >= version(7) {
        options.keep_failed = f.bool("keepFailed").await?;
    }
    Ok(options)
}

/// Whether another NAR follows in an export stream.
pub(super) async fn more<R: AsyncRead + Unpin>(
    input: &mut Input<R>,
    op: &'static str,
) -> Result<bool, WireError> {
    Ok(Fields::new(input, op).at_most("the mark before a NAR", 1).await? == 1)
}

/// Reads the path info that follows a NAR in an export stream. (Nix: `importPaths` in export-import.cc.)
pub(super) async fn trailer<R: AsyncRead + Unpin>(
    input: &mut Input<R>,
    meter: Option<&dyn Meter>,
    op: &'static str,
) -> Result<ImportedInfo, WireError> {
    let f = &mut Fields::new(input, op).metered(meter);
    let magic = f.u64("the mark after a NAR").await?;
    if magic != EXPORT_MAGIC {
        return Err(f.unexpected(
            "the mark after a NAR",
            format!("{magic:#x}").as_bytes(),
            "that of an export stream",
        ));
    }
    let info = ImportedInfo {
        path: f.path("path").await?,
        references: f.path_set("references").await?,
        deriver: f.maybe_path("deriver").await?,
    };
    // An obsolete kind of signature, which no current Nix checks.
    if f.at_most("whether there is a signature", 1).await? == 1 {
        f.bytes("signature", MAX_SIGNATURE_BYTES).await?;
    }
    Ok(info)
}
