//! The client side of the worker protocol: for queries to other stores, and for tests, fuzzing and
//! benchmarks. Behind the feature `client`.
//!
//! It can send every request, and invalid bytes too: [`Client::send`] takes any bytes. Each list and each
//! string of an answer has a limit, so has each frame of its log as a whole, and at most
//! [`Client::max_frames`] frames are kept. The caller decides how long an answer may take.

use std::io;

use nix::derivation::prefixed;
use nix::{DrvKey, DrvOutputId, PathInfo, Realisation};
use nix_derivation::{ContentAddressMethod, HashAlgorithm, Output, StorePath};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::WireError;
use crate::input::Fields;
use crate::limits::{
    MAX_FEATURES, MAX_LOG_FIELDS, MAX_LOG_FRAME_BYTES, MAX_NAME_BYTES, MAX_PATHS, MAX_REQUEST_BYTES,
    MAX_TRACES,
};
use crate::output::Encode;
use crate::read::{path_info, path_info_of};
use crate::types::GcAction;
use crate::worker::internal::*;
use crate::worker::{CLIENT_MAGIC, Features, Op, Protocol, Request, SERVER_MAGIC, Version};
use crate::write::{derived_path as write_derived_path, path_info as write_path_info};

/// A connection to a server, after the handshake.
pub struct Client<R, W> {
    pub reader: R,
    pub writer: W,
    pub protocol: Protocol,
    /// 1.33 and newer.
    pub nix_version: Option<String>,
    /// 1.35 and newer: 0 unknown, 1 trusted, 2 not trusted.
    pub trusted: Option<u64>,
    /// Number of frames of one log that are kept; later ones are read and dropped. No limit unless set; of
    /// the handshake's log no frame is kept.
    pub max_frames: usize,
}

/// A message of the server while a request runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Message(Vec<u8>),
    /// Id, kind, text.
    Start(u64, u64, String),
    Stop(u64),
    /// Id, kind, the text fields.
    Result(u64, u64, Vec<Vec<u8>>),
}

/// The end of a request's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The answer follows.
    Last,
    /// The request failed with this message.
    Error(String),
    /// The server asks for this many bytes of the body.
    Read(u64),
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Performs the handshake of a client of version 1.`minor` with these features.
    pub async fn connect(reader: R, writer: W, minor: u8, features: &[&str]) -> Result<Self, WireError> {
        let ours = Version::new(minor);
        let protocol = Protocol { version: ours, features: Features::default() };
        let mut client = Self { reader, writer, protocol, nix_version: None, trusted: None, max_frames: 0 };
        let mut hello = Vec::new();
        hello.u64(CLIENT_MAGIC);
        hello.u64(u64::from(ours.major) << 8 | u64::from(ours.minor));
        client.send(&hello).await?;
        let magic = client.u64().await?;
        if magic != SERVER_MAGIC {
            return Err(WireError::NotNix { got: magic, expected: SERVER_MAGIC });
        }
        let theirs = client.u64().await?;
        client.protocol.version = ours.min(Version::new(theirs as u8));
        if client.protocol.at_least(38) {
            let mut out = Vec::new();
            out.strs(features.iter().copied());
            client.send(&out).await?;
            let mut fields = Fields::new(&mut client.reader, "the handshake");
            let theirs = fields.strings("features", MAX_FEATURES, MAX_NAME_BYTES).await?;
            let both = theirs.iter().map(String::as_str).filter(|name| features.contains(name));
            client.protocol.features = Features::known(both);
        }
        client.send(&[0; 16]).await?; // no CPU affinity, no reserved space
        if client.protocol.at_least(33) {
            let mut fields = Fields::new(&mut client.reader, "the handshake");
            client.nix_version = Some(fields.string("nix version", MAX_NAME_BYTES).await?);
        }
        if client.protocol.at_least(35) {
            client.trusted = Some(client.u64().await?);
        }
        match client.log().await?.1 {
            End::Last => {
                client.max_frames = usize::MAX;
                Ok(client)
            }
            other => Err(io::Error::other(format!("the handshake ended with {other:?}")).into()),
        }
    }

    /// Sends any bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }

    /// Sends a request without its body.
    pub async fn request(&mut self, request: &Request) -> Result<(), WireError> {
        self.send(&encode_request(request, self.protocol)).await
    }

    /// Sends a request that has no body, and reads its log to the end. A failed request is an error with its
    /// message.
    pub async fn call(&mut self, request: &Request) -> Result<Vec<Frame>, WireError> {
        self.request(request).await?;
        self.done().await
    }

    /// Sends a framed body.
    pub async fn framed(&mut self, body: &[u8]) -> Result<(), WireError> {
        self.send(&encode_frames(body, 32 << 10)).await
    }

    /// Reads the log to its end; an error if the request failed.
    pub async fn done(&mut self) -> Result<Vec<Frame>, WireError> {
        match self.log().await? {
            (frames, End::Last) => Ok(frames),
            (_, other) => Err(io::Error::other(format!("{other:?}")).into()),
        }
    }

    /// Reads the log to its end.
    pub async fn log(&mut self) -> Result<(Vec<Frame>, End), WireError> {
        let mut frames = Vec::new();
        loop {
            frames.truncate(self.max_frames);
            let minor_26 = self.protocol.at_least(26);
            // One limit for all the strings of a frame, however many it announces.
            let mut f = Fields::within(&mut self.reader, "the log of an answer", MAX_LOG_FRAME_BYTES);
            let end = match f.u64("frame").await? {
                STDERR_LAST => End::Last,
                STDERR_READ => End::Read(f.u64("bytes wanted").await?),
                STDERR_ERROR if minor_26 => End::Error(error(&mut f).await?),
                STDERR_ERROR => {
                    let message = f.string("error message", MAX_LOG_FRAME_BYTES).await?;
                    f.u64("exit status").await?;
                    End::Error(message)
                }
                STDERR_NEXT => {
                    frames.push(Frame::Message(f.bytes("message", MAX_LOG_FRAME_BYTES).await?));
                    continue;
                }
                STDERR_START_ACTIVITY => {
                    let (id, _level) = (f.u64("activity").await?, f.u64("level").await?);
                    let kind = f.u64("kind of activity").await?;
                    let text = f.string("text of activity", MAX_LOG_FRAME_BYTES).await?;
                    fields(&mut f).await?;
                    f.u64("parent of activity").await?;
                    frames.push(Frame::Start(id, kind, text));
                    continue;
                }
                STDERR_STOP_ACTIVITY => {
                    frames.push(Frame::Stop(f.u64("activity").await?));
                    continue;
                }
                STDERR_RESULT => {
                    let (id, kind) = (f.u64("activity").await?, f.u64("kind of result").await?);
                    frames.push(Frame::Result(id, kind, fields(&mut f).await?));
                    continue;
                }
                other => return Err(io::Error::other(format!("unknown log frame {other:#x}")).into()),
            };
            return Ok((frames, end));
        }
    }

    pub async fn u64(&mut self) -> Result<u64, WireError> {
        Ok(self.reader.read_u64_le().await?)
    }

    pub async fn bytes(&mut self) -> Result<Vec<u8>, WireError> {
        Fields::new(&mut self.reader, "an answer").bytes("a string", MAX_REQUEST_BYTES).await
    }

    pub async fn string(&mut self) -> Result<String, WireError> {
        Fields::new(&mut self.reader, "an answer").string("a string", MAX_REQUEST_BYTES).await
    }

    pub async fn strings(&mut self) -> Result<Vec<String>, WireError> {
        Fields::new(&mut self.reader, "an answer").strings("strings", MAX_PATHS, MAX_REQUEST_BYTES).await
    }

    pub async fn paths(&mut self) -> Result<Vec<StorePath>, WireError> {
        Fields::new(&mut self.reader, "an answer").paths("paths").await
    }

    /// Reads a path info as it follows `AddToStore`; for `QueryPathInfo` read the flag first and give the
    /// path.
    pub async fn path_info(&mut self, path: Option<StorePath>) -> Result<PathInfo, WireError> {
        let mut fields = Fields::new(&mut self.reader, "an answer");
        match path {
            Some(path) => path_info_of(&mut fields, path).await,
            None => path_info(&mut fields).await,
        }
    }

    /// Reads a bare NAR.
    pub async fn nar(&mut self) -> Result<Vec<u8>, WireError> {
        let mut scanner = crate::nar::NarScanner::new();
        let mut nar = Vec::new();
        while scanner.need() > 0 {
            let have = nar.len();
            nar.resize(have + scanner.need() as usize, 0);
            self.reader.read_exact(&mut nar[have..]).await?;
            scanner.push(&nar[have..]).map_err(io::Error::other)?;
        }
        Ok(nar)
    }
}

/// Reads an error of version 1.26 or newer, and returns its message.
async fn error<R: AsyncRead + Unpin>(f: &mut Fields<'_, R>) -> Result<String, WireError> {
    f.string("kind of error", MAX_LOG_FRAME_BYTES).await?;
    f.u64("level").await?;
    f.string("name of error", MAX_LOG_FRAME_BYTES).await?;
    let message = f.string("error message", MAX_LOG_FRAME_BYTES).await?;
    f.u64("position of error").await?;
    for _ in 0..f.count("traces of error", MAX_TRACES).await? {
        f.u64("position of trace").await?;
        f.string("trace", MAX_LOG_FRAME_BYTES).await?;
    }
    Ok(message)
}

/// The strings among the fields of an activity or a result.
async fn fields<R: AsyncRead + Unpin>(f: &mut Fields<'_, R>) -> Result<Vec<Vec<u8>>, WireError> {
    let mut texts = Vec::new();
    for _ in 0..f.count("fields", MAX_LOG_FIELDS).await? {
        match f.u64("kind of field").await? {
            0 => drop(f.u64("field").await?),
            _ => texts.push(f.bytes("field", MAX_LOG_FRAME_BYTES).await?),
        }
    }
    Ok(texts)
}

/// A body cut into frames of at most this many bytes, with the end mark.
pub fn encode_frames(body: &[u8], frame_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in body.chunks(frame_bytes) {
        out.u64(frame.len() as u64);
        out.extend_from_slice(frame);
    }
    out.u64(0);
    out
}

/// A path info in the form that precedes its NAR in an `AddMultipleToStore`.
pub fn encode_path_info(info: &PathInfo) -> Vec<u8> {
    let mut out = Vec::new();
    out.path(&info.path);
    write_path_info(&mut out, info);
    out
}

/// The body of an `AddMultipleToStore`, without frames.
pub fn encode_items(items: &[(PathInfo, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.u64(items.len() as u64);
    for (info, nar) in items {
        out.extend(encode_path_info(info));
        out.extend_from_slice(nar);
    }
    out
}

/// A NAR of one file.
pub fn encode_file_nar(contents: &[u8], executable: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for token in ["nix-archive-1", "(", "type", "regular"] {
        out.str(token);
    }
    if executable {
        out.str("executable");
        out.str("");
    }
    out.str("contents");
    out.bytes(contents);
    out.str(")");
    out
}

/// A request without its body, as a client of this version writes it.
pub fn encode_request(request: &Request, protocol: Protocol) -> Vec<u8> {
    use Request as Q;
    let mut buffer = Vec::new();
    let out = &mut buffer;
    out.u64(op_of(request).number());
    match request {
        Q::IsValidPath { path }
        | Q::QueryReferences { path }
        | Q::QueryReferrers { path }
        | Q::QueryDeriver { path }
        | Q::EnsurePath { path }
        | Q::AddTempRoot { path }
        | Q::QueryPathInfo { path }
        | Q::QueryDerivationOutputs { path }
        | Q::QueryDerivationOutputNames { path }
        | Q::QueryDerivationOutputMap { path }
        | Q::QuerySubstitutablePathInfo { path }
        | Q::QueryValidDerivers { path }
        | Q::NarFromPath { path } => out.path(path),
        Q::AddToStore { name, method, algorithm, references, repair } if protocol.at_least(25) => {
            out.str(name);
            let prefix = if *method == ContentAddressMethod::Text { "" } else { "fixed:" };
            out.str(&format!("{prefix}{}", prefixed(*method, *algorithm)));
            out.paths(references);
            out.bool(*repair);
        }
        Q::AddToStore { name, method, algorithm, .. } => {
            let recursive = *method == ContentAddressMethod::Nar;
            out.str(name);
            out.bool(!recursive || *algorithm != HashAlgorithm::Sha256);
            out.bool(recursive);
            out.str(algorithm.as_str());
        }
        Q::AddTextToStore { name, text, references } => {
            out.str(name);
            out.bytes(text);
            out.paths(references);
        }
        Q::AddToStoreNar { info, repair, dont_check_sigs } => {
            out.path(&info.path);
            write_path_info(out, info);
            out.bool(*repair);
            out.bool(*dont_check_sigs);
        }
        Q::AddMultipleToStore { repair, dont_check_sigs } => {
            out.bool(*repair);
            out.bool(*dont_check_sigs);
        }
        Q::BuildPaths { paths, mode } | Q::BuildPathsWithResults { paths, mode } => {
            out.u64(paths.len() as u64);
            paths.iter().for_each(|path| write_derived_path(out, path));
            out.u64(*mode as u64);
        }
        Q::BuildDerivation { drv_path, derivation, mode } => {
            out.path(drv_path);
            write_basic_derivation(out, drv_path, derivation);
            out.u64(*mode as u64);
        }
        Q::AddPermRoot { path, gc_root } => {
            out.path(path);
            out.str(gc_root);
        }
        Q::AddIndirectRoot { gc_root } => out.str(gc_root),
        Q::SyncWithGc | Q::FindRoots | Q::QueryAllValidPaths | Q::OptimiseStore => {}
        Q::SetOptions(settings) => {
            out.bool(settings.keep_failed);
            out.bool(settings.keep_going);
            out.bool(settings.try_fallback);
            out.u64(settings.verbosity);
            out.u64(settings.max_build_jobs);
            out.u64(settings.max_silent_time);
            out.bool(true);
            out.u64(if settings.verbose_build { 0 } else { 7 });
            out.u64(0);
            out.u64(0);
            out.u64(settings.build_cores);
            out.bool(settings.use_substitutes);
            out.u64(settings.overrides.len() as u64);
            for (name, value) in &settings.overrides {
                out.str(name);
                out.str(value);
            }
        }
        Q::CollectGarbage(options) => {
            out.u64(match options.action {
                GcAction::ReturnLive => 0,
                GcAction::ReturnDead => 1,
                GcAction::DeleteDead => 2,
                GcAction::DeleteSpecific => 3,
            });
            let paths = options.paths.clone().unwrap_or_default();
            if protocol.features.delete_dead_specific_referrers {
                out.bool(options.paths.is_none());
                if options.paths.is_some() {
                    out.paths(&paths);
                    out.bool(options.delete_referrers);
                }
            } else {
                out.paths(&paths);
            }
            out.bool(options.ignore_liveness);
            out.u64(options.max_freed);
            (0..3).for_each(|_| out.u64(0));
        }
        Q::QueryPathFromHashPart { hash_part } => {
            out.str(&hash_part.map(|digest| nix_derivation::nixbase32::encode(&digest)).unwrap_or_default());
        }
        Q::QuerySubstitutablePathInfos { paths } => {
            out.u64(paths.len() as u64);
            for (path, ca) in paths {
                out.path(path);
                if protocol.at_least(22) {
                    out.str(&ca.as_ref().map(|ca| ca.to_nix_string()).unwrap_or_default());
                }
            }
        }
        Q::QueryValidPaths { paths, substitute } => {
            out.paths(paths);
            if protocol.at_least(27) {
                out.bool(*substitute);
            }
        }
        Q::QuerySubstitutablePaths { paths } => out.paths(paths),
        Q::VerifyStore { check_contents, repair } => {
            out.bool(*check_contents);
            out.bool(*repair);
        }
        Q::AddSignatures { path, signatures } => {
            out.path(path);
            out.strings(signatures);
        }
        Q::QueryMissing { targets } => {
            out.u64(targets.len() as u64);
            targets.iter().for_each(|path| write_derived_path(out, path));
        }
        Q::RegisterDrvOutput { realisation } => write_realisation_request(out, protocol, realisation),
        Q::QueryRealisation { id } => write_drv_output_id(out, protocol, id),
        Q::AddBuildLog { drv_path } => out.str(&drv_path.to_basename()),
    }
    buffer
}

fn write_output(out: &mut Vec<u8>, output: &Output, drv_name: &str, name: &str) {
    let path = output.path(drv_name, name).ok().flatten();
    let (method, hash) = match output {
        Output::InputAddressed { .. } | Output::Deferred => (String::new(), String::new()),
        Output::Fixed { ca } => {
            let hash = ca.hash();
            (prefixed(ca.method(), hash.algorithm()), hex::encode(hash.digest_as_bytes()))
        }
        Output::Floating { method, hash_algorithm } => (prefixed(*method, *hash_algorithm), String::new()),
        Output::Impure { method, hash_algorithm } => (prefixed(*method, *hash_algorithm), "impure".into()),
    };
    out.maybe_path(path.as_ref());
    out.str(&method);
    out.str(&hash);
}

/// A derivation in the form of `BuildDerivation`, in both protocols.
pub(crate) fn write_basic_derivation(
    out: &mut Vec<u8>,
    drv_path: &StorePath,
    derivation: &nix::derivation::BasicDerivation,
) {
    out.u64(derivation.outputs.len() as u64);
    for (name, output) in &derivation.outputs {
        out.str(name);
        let drv_name = drv_path.name().strip_suffix(".drv").unwrap_or(drv_path.name());
        write_output(out, output, drv_name, name);
    }
    out.paths(&derivation.input_sources);
    out.bytes(&derivation.system);
    out.bytes(&derivation.builder);
    out.u64(derivation.args.len() as u64);
    derivation.args.iter().for_each(|arg| out.bytes(arg));
    out.u64(derivation.env.len() as u64);
    for (key, value) in &derivation.env {
        out.bytes(key);
        out.bytes(value);
    }
}

fn write_drv_output_id(out: &mut Vec<u8>, protocol: Protocol, id: &DrvOutputId) {
    match &id.drv {
        DrvKey::Path(path) if protocol.features.realisation_with_path => {
            out.path(path);
            out.str(&id.output);
        }
        _ => out.str(&drv_output_id(id)),
    }
}

fn write_realisation_request(out: &mut Vec<u8>, protocol: Protocol, realisation: &Realisation) {
    if protocol.features.realisation_with_path {
        write_drv_output_id(out, protocol, &realisation.id);
        out.path(&realisation.out_path);
        out.strings(&realisation.signatures);
    } else if protocol.at_least(31) {
        out.str(&realisation_json(realisation));
    } else {
        write_drv_output_id(out, protocol, &realisation.id);
        out.str(&realisation.out_path.to_basename());
    }
}

/// The operation of a request.
pub fn op_of(request: &Request) -> Op {
    use Request as Q;
    match request {
        Q::IsValidPath { .. } => Op::IsValidPath,
        Q::QueryReferences { .. } => Op::QueryReferences,
        Q::QueryReferrers { .. } => Op::QueryReferrers,
        Q::QueryDeriver { .. } => Op::QueryDeriver,
        Q::AddToStore { .. } => Op::AddToStore,
        Q::AddTextToStore { .. } => Op::AddTextToStore,
        Q::AddToStoreNar { .. } => Op::AddToStoreNar,
        Q::AddMultipleToStore { .. } => Op::AddMultipleToStore,
        Q::BuildPaths { .. } => Op::BuildPaths,
        Q::BuildPathsWithResults { .. } => Op::BuildPathsWithResults,
        Q::BuildDerivation { .. } => Op::BuildDerivation,
        Q::EnsurePath { .. } => Op::EnsurePath,
        Q::AddTempRoot { .. } => Op::AddTempRoot,
        Q::AddPermRoot { .. } => Op::AddPermRoot,
        Q::AddIndirectRoot { .. } => Op::AddIndirectRoot,
        Q::SyncWithGc => Op::SyncWithGc,
        Q::FindRoots => Op::FindRoots,
        Q::SetOptions(_) => Op::SetOptions,
        Q::CollectGarbage(_) => Op::CollectGarbage,
        Q::QueryAllValidPaths => Op::QueryAllValidPaths,
        Q::QueryPathInfo { .. } => Op::QueryPathInfo,
        Q::QueryDerivationOutputs { .. } => Op::QueryDerivationOutputs,
        Q::QueryDerivationOutputNames { .. } => Op::QueryDerivationOutputNames,
        Q::QueryDerivationOutputMap { .. } => Op::QueryDerivationOutputMap,
        Q::QueryPathFromHashPart { .. } => Op::QueryPathFromHashPart,
        Q::QuerySubstitutablePathInfo { .. } => Op::QuerySubstitutablePathInfo,
        Q::QuerySubstitutablePathInfos { .. } => Op::QuerySubstitutablePathInfos,
        Q::QueryValidPaths { .. } => Op::QueryValidPaths,
        Q::QuerySubstitutablePaths { .. } => Op::QuerySubstitutablePaths,
        Q::QueryValidDerivers { .. } => Op::QueryValidDerivers,
        Q::OptimiseStore => Op::OptimiseStore,
        Q::VerifyStore { .. } => Op::VerifyStore,
        Q::AddSignatures { .. } => Op::AddSignatures,
        Q::NarFromPath { .. } => Op::NarFromPath,
        Q::QueryMissing { .. } => Op::QueryMissing,
        Q::RegisterDrvOutput { .. } => Op::RegisterDrvOutput,
        Q::QueryRealisation { .. } => Op::QueryRealisation,
        Q::AddBuildLog { .. } => Op::AddBuildLog,
    }
}
