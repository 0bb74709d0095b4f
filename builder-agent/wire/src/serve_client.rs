//! The client side of the serve protocol, for tests, fuzzing and benchmarks. Behind the feature
//! `test-client`.
//!
//! It can send every request, and invalid bytes too: [`Client::send`] takes any bytes. It trusts the server
//! and has no time limits; do not use it outside of tests.

use nix::PathInfo;
use nix_derivation::{DerivedPath, StorePath};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::client::write_basic_derivation;
use crate::error::WireError;
use crate::input::Fields;
use crate::limits::MAX_PATHS;
use crate::nar::NarScanner;
use crate::output::Encode;
use crate::serve::{
    BuildOptions, CLIENT_MAGIC, EXPORT_MAGIC, ImportedInfo, Op, Request, SERVER_MAGIC, version,
};
use crate::worker::Version;
use crate::write::path_info as write_path_info;

/// A connection to a server, after the handshake.
pub struct Client<R, W> {
    pub reader: R,
    pub writer: W,
    pub version: Version,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Client<R, W> {
    /// Performs the handshake of a client of version 2.`minor`.
    pub async fn connect(reader: R, writer: W, minor: u8) -> Result<Self, WireError> {
        let mut client = Self { reader, writer, version: version(minor) };
        let mut hello = Vec::new();
        hello.u64(CLIENT_MAGIC);
        hello.u64(version(minor).to_wire());
        client.send(&hello).await?;
        let magic = client.u64().await?;
        if magic != SERVER_MAGIC {
            return Err(WireError::NotNix { got: magic, expected: SERVER_MAGIC });
        }
        let theirs = client.u64().await?;
        client.version = client.version.min(version(theirs as u8));
        Ok(client)
    }

    /// Sends any bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }

    /// Sends a request without its body.
    pub async fn request(&mut self, request: &Request) -> Result<(), WireError> {
        self.send(&encode_request(request, self.version)).await
    }

    fn fields(&mut self) -> Fields<'_, R> {
        Fields::new(&mut self.reader, "an answer")
    }

    pub async fn u64(&mut self) -> Result<u64, WireError> {
        self.fields().u64("a number").await
    }

    pub async fn string(&mut self) -> Result<String, WireError> {
        self.fields().string("a string", 1 << 20).await
    }

    pub async fn paths(&mut self) -> Result<Vec<StorePath>, WireError> {
        self.fields().paths("paths").await
    }

    /// Reads the answer to `QueryPathInfos`. (It has no registration time and no `ultimate`; before 2.4 it
    /// has no hash, content address and signatures either.)
    pub async fn infos(&mut self) -> Result<Vec<PathInfo>, WireError> {
        let with_hash = self.version >= version(4);
        let mut infos = Vec::new();
        let mut fields = self.fields();
        while let Some(path) = fields.maybe_path("path").await? {
            let deriver = fields.maybe_path("deriver").await?;
            let references = fields.path_set("references").await?;
            fields.u64("download size").await?;
            let mut info = PathInfo {
                path,
                deriver,
                nar_hash: [0; 32],
                nar_size: fields.u64("NAR size").await?,
                references,
                registration_time: 0,
                ultimate: false,
                signatures: Vec::new(),
                ca: None,
            };
            if with_hash {
                info.nar_hash = fields.sha256("NAR hash").await?;
                info.ca = fields.maybe_ca("ca").await?;
                info.signatures = fields.signatures("signatures").await?;
            }
            infos.push(info);
        }
        Ok(infos)
    }

    /// Reads the answer to `DumpStorePath`.
    pub async fn nar(&mut self) -> Result<Vec<u8>, WireError> {
        let (mut nar, mut scanner) = (Vec::new(), NarScanner::new());
        while scanner.need() > 0 {
            let mut part = vec![0; scanner.need().min(1 << 20) as usize];
            self.reader.read_exact(&mut part).await?;
            scanner.push(&part).map_err(|source| WireError::Nar { op: "an answer", source })?;
            nar.append(&mut part);
        }
        Ok(nar)
    }

    /// Reads the answer to `ExportPaths`.
    pub async fn export(&mut self) -> Result<Vec<(ImportedInfo, Vec<u8>)>, WireError> {
        let mut items = Vec::new();
        while self.u64().await? == 1 {
            let nar = self.nar().await?;
            let mut fields = self.fields();
            let magic = fields.u64("the mark after a NAR").await?;
            assert_eq!(magic, EXPORT_MAGIC, "the mark after a NAR");
            let path = fields.path("path").await?;
            let references = fields.path_set("references").await?;
            let deriver = fields.maybe_path("deriver").await?;
            assert_eq!(fields.u64("signature").await?, 0, "nobody signs these any more");
            items.push((ImportedInfo { path, references, deriver }, nar));
        }
        assert!(items.len() as u64 <= MAX_PATHS);
        Ok(items)
    }
}

/// A request without its body, as a client of this version writes it.
pub fn encode_request(request: &Request, client: Version) -> Vec<u8> {
    use Request as Q;
    let mut buffer = Vec::new();
    let out = &mut buffer;
    out.u64(op_of(request).number());
    match request {
        Q::QueryValidPaths { lock, substitute, paths } => {
            out.bool(*lock);
            out.bool(*substitute);
            out.paths(paths);
        }
        Q::QueryPathInfos { paths } => out.paths(paths),
        Q::DumpStorePath { path } => out.path(path),
        Q::ImportPaths => {}
        Q::ExportPaths { paths } => {
            out.u64(0);
            out.paths(paths);
        }
        Q::BuildPaths { paths, options } => {
            let targets: Vec<String> = paths.iter().map(target).collect();
            out.strings(&targets);
            build_options(out, options, client);
        }
        Q::QueryClosure { include_outputs, paths } => {
            out.bool(*include_outputs);
            out.paths(paths);
        }
        Q::BuildDerivation { drv_path, derivation, options } => {
            out.path(drv_path);
            write_basic_derivation(out, drv_path, derivation);
            build_options(out, options, client);
        }
        Q::AddToStoreNar { info } => {
            out.path(&info.path);
            write_path_info(out, info);
        }
    }
    buffer
}

/// An export stream.
pub fn encode_export(items: &[(ImportedInfo, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (info, nar) in items {
        out.u64(1);
        out.extend_from_slice(nar);
        out.u64(EXPORT_MAGIC);
        out.path(&info.path);
        out.paths(&info.references);
        out.maybe_path(info.deriver.as_ref());
        out.u64(0);
    }
    out.u64(0);
    out
}

/// The command of a request.
pub fn op_of(request: &Request) -> Op {
    match request {
        Request::QueryValidPaths { .. } => Op::QueryValidPaths,
        Request::QueryPathInfos { .. } => Op::QueryPathInfos,
        Request::DumpStorePath { .. } => Op::DumpStorePath,
        Request::ImportPaths => Op::ImportPaths,
        Request::ExportPaths { .. } => Op::ExportPaths,
        Request::BuildPaths { .. } => Op::BuildPaths,
        Request::QueryClosure { .. } => Op::QueryClosure,
        Request::BuildDerivation { .. } => Op::BuildDerivation,
        Request::AddToStoreNar { .. } => Op::AddToStoreNar,
    }
}

/// A target in Nix's form of a `StorePathWithOutputs`: a derivation without outputs means all its outputs.
fn target(target: &DerivedPath) -> String {
    match target {
        DerivedPath::Opaque(path) => path.to_absolute_path(),
        DerivedPath::Built { outputs, .. } if outputs.is_empty() => target.base().to_absolute_path(),
        DerivedPath::Built { outputs, .. } => {
            format!("{}!{}", target.base().to_absolute_path(), outputs.join(","))
        }
    }
}

fn build_options(out: &mut Vec<u8>, options: &BuildOptions, client: Version) {
    out.u64(options.max_silent_time);
    out.u64(options.build_timeout);
    if client >= version(2) {
        out.u64(options.max_log_size);
    }
    if client >= version(3) {
        out.u64(options.nr_repeats);
        out.bool(options.enforce_determinism);
    }
    if client >= version(7) {
        out.bool(options.keep_failed);
    }
}
