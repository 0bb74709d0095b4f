//! The client's own floor: a server behind our ssh front end that does the least Nix's two protocols allow.
//!
//! It believes everybody and every byte, hashes nothing, writes nothing to a disk, and "builds" by saying so. What a
//! stock client needs for the same copy against this server is the client's own time, and the front end's.
//! `make bench-protocol` runs it beside the real ones:
//!
//!     floor [KEEP_MIB]      prints the port of 127.0.0.1 where it answers, serves until killed
//!
//! NARs above KEEP_MIB (default 1) are dropped as they arrive, so that their paths cannot be copied back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use nix::{BuildResult, BuildStatus, BuiltOutput, Missing, PathInfo};
use nix_derivation::{Output, StorePath};
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{self, Auth, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use wire::WireError;
use wire::client::encode_file_nar;
use wire::serve;
use wire::worker::{Connection, Failure, Request, Response, ServerInfo};

/// What was sent, by path.
type Paths = BTreeMap<StorePath, (PathInfo, Arc<Vec<u8>>)>;

struct Floor {
    keep_bytes: u64,
    paths: Mutex<Paths>,
}

impl Floor {
    fn info(&self, path: &StorePath) -> Option<PathInfo> {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.get(path).map(|(info, _)| info.clone())
    }

    fn nar(&self, path: &StorePath) -> Option<Arc<Vec<u8>>> {
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.get(path).map(|(_, nar)| nar.clone())
    }

    fn insert(&self, info: PathInfo, nar: Vec<u8>) {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.insert(info.path.clone(), (info, Arc::new(nar)));
    }

    /// References first is not asked for: the client sorts.
    fn closure(&self, mut open: Vec<StorePath>) -> Vec<StorePath> {
        let mut all = std::collections::BTreeSet::new();
        while let Some(path) = open.pop() {
            if let Some(info) = self.info(&path)
                && all.insert(path)
            {
                open.extend(info.references);
            }
        }
        all.into_iter().collect()
    }

    /// A path that "was built": a file with its own name in it.
    fn built(&self, path: &StorePath) {
        let nar = encode_file_nar(path.name().as_bytes(), false);
        let info = PathInfo {
            path: path.clone(),
            deriver: None,
            nar_hash: Sha256::digest(&nar).into(),
            nar_size: nar.len() as u64,
            references: Default::default(),
            registration_time: 1,
            ultimate: true,
            signatures: Vec::new(),
            ca: None,
        };
        self.insert(info, nar);
    }
}

struct Client {
    floor: Arc<Floor>,
    channels: BTreeMap<ChannelId, Channel<Msg>>,
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, _: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(id)?;
        let Some(mut channel) = self.channels.remove(&id) else { return Ok(()) };
        let asks_for = |program: &[u8]| data.windows(program.len()).any(|part| part == program);
        let (worker, serve) = (asks_for(b"nix-daemon"), asks_for(b"nix-store"));
        let floor = self.floor.clone();
        tokio::spawn(async move {
            let writer = channel.make_writer();
            let served = match (worker, serve) {
                (true, _) => worker_session(channel.make_reader(), writer, &floor).await,
                (_, true) => serve_session(channel.make_reader(), writer, &floor).await,
                _ => Ok(()),
            };
            if let Err(error) = served
                && !error.is_disconnect()
            {
                eprintln!("{error}");
            }
            let _ = channel.exit_status(0).await;
            let _ = channel.eof().await;
            let _ = channel.close().await;
        });
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let keep_mib: u64 = args.next().map_or(Ok(1), |mib| mib.parse())?;
    let floor = Arc::new(Floor { keep_bytes: keep_mib << 20, paths: Mutex::default() });
    let host_key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)?;
    let config = Arc::new(ssh::settings(host_key));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (tcp, _) = listener.accept().await?;
        let client = Client { floor: floor.clone(), channels: BTreeMap::new() };
        let config = config.clone();
        tokio::spawn(async move {
            if let Ok(session) = server::run_stream(config, ssh::Socket::new(tcp), client).await {
                let _ = session.await;
            }
        });
    }
}

async fn worker_session<R, W>(reader: R, writer: W, floor: &Floor) -> Result<(), WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut conn = Connection::accept(reader, writer, ServerInfo::new("2.34.0 (floor)")).await?;
    while let Some(request) = conn.next_request().await? {
        if let Some(response) = answer(&mut conn, floor, request).await? {
            conn.reply(&response).await?;
        }
    }
    Ok(())
}

/// `None`: already answered.
async fn answer<R, W>(
    conn: &mut Connection<R, W>,
    floor: &Floor,
    request: Request,
) -> Result<Option<Response>, WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    Ok(Some(match request {
        Request::SetOptions(_) | Request::AddTempRoot { .. } | Request::EnsurePath { .. } => Response::Done,
        Request::IsValidPath { path } => Response::Bool(floor.info(&path).is_some()),
        Request::QueryValidPaths { paths, .. } => {
            Response::Paths(paths.into_iter().filter(|path| floor.info(path).is_some()).collect())
        }
        Request::QueryPathInfo { path } => Response::PathInfo(floor.info(&path)),
        Request::QueryMissing { .. } => Response::Missing(Missing::default()),
        Request::QuerySubstitutablePaths { .. } => Response::Paths(Vec::new()),
        Request::AddToStoreNar { info, .. } => {
            receive(conn.body(), floor, info).await?;
            Response::Done
        }
        Request::AddMultipleToStore { .. } => {
            while let Some(info) = conn.next_item().await? {
                receive(conn.body(), floor, info).await?;
            }
            Response::Done
        }
        Request::NarFromPath { path } => match floor.nar(&path) {
            Some(nar) => {
                let mut reply = conn.reply_nar().await?;
                for chunk in nar.chunks(256 << 10) {
                    reply.write(chunk).await?;
                }
                reply.finish().await?;
                return Ok(None);
            }
            None => {
                conn.fail(&Failure::new("not here")).await?;
                return Ok(None);
            }
        },
        Request::BuildDerivation { drv_path, derivation, .. } => {
            let outputs =
                derivation.outputs.iter().filter_map(|(name, output)| path_of(&drv_path, name, output));
            Response::BuildResult(finished(floor, outputs.collect()))
        }
        Request::BuildPathsWithResults { paths, .. } => Response::BuildResults(
            paths.into_iter().map(|target| (target, finished(floor, BTreeMap::new()))).collect(),
        ),
        other => {
            conn.fail(&Failure::new(format!("the floor cannot answer {other:?}"))).await?;
            return Ok(None);
        }
    }))
}

fn path_of(drv: &StorePath, name: &str, output: &Output) -> Option<(String, StorePath)> {
    let drv_name = drv.name().strip_suffix(".drv")?;
    Some((name.to_owned(), output.path(drv_name, name).ok()??))
}

fn finished(floor: &Floor, outputs: BTreeMap<String, StorePath>) -> BuildResult {
    outputs.values().for_each(|path| floor.built(path));
    let built_outputs = outputs
        .into_iter()
        .map(|(name, path)| (name, BuiltOutput { path, drv_hash: None, signatures: Vec::new() }))
        .collect();
    BuildResult { built_outputs, ..BuildResult::new(BuildStatus::Built, "") }
}

async fn receive<B: AsyncRead + Unpin>(mut body: B, floor: &Floor, info: PathInfo) -> Result<(), WireError> {
    let mut nar = Vec::new();
    if info.nar_size <= floor.keep_bytes {
        nar.reserve_exact(info.nar_size as usize);
        body.read_to_end(&mut nar).await?;
    } else {
        let mut dropped = vec![0; 256 << 10];
        while body.read(&mut dropped).await? > 0 {}
    }
    floor.insert(info, nar);
    Ok(())
}

async fn serve_session<R, W>(reader: R, writer: W, floor: &Floor) -> Result<(), WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let terms = wire::Terms { max_body_bytes: u64::MAX, ..wire::Terms::default() };
    let mut conn = serve::Connection::accept(reader, writer, terms).await?;
    while let Some(request) = conn.next_request().await? {
        let response = match request {
            serve::Request::QueryValidPaths { paths, .. } => {
                let there = paths.into_iter().filter(|path| floor.info(path).is_some());
                serve::Response::Paths(there.collect())
            }
            serve::Request::QueryPathInfos { paths } => {
                let mut reply = conn.reply_infos().await?;
                for info in paths.iter().filter_map(|path| floor.info(path)) {
                    reply.add(&info).await?;
                }
                reply.finish().await?;
                continue;
            }
            serve::Request::DumpStorePath { path } => {
                let Some(nar) = floor.nar(&path) else { return Ok(()) };
                let mut reply = conn.reply_nar().await?;
                for chunk in nar.chunks(256 << 10) {
                    reply.write(chunk).await?;
                }
                reply.finish().await?;
                continue;
            }
            serve::Request::QueryClosure { paths, .. } => serve::Response::Paths(floor.closure(paths)),
            serve::Request::AddToStoreNar { info } => {
                receive(conn.body(), floor, info).await?;
                serve::Response::Done
            }
            serve::Request::BuildDerivation { drv_path, derivation, .. } => {
                let outputs =
                    derivation.outputs.iter().filter_map(|(name, output)| path_of(&drv_path, name, output));
                serve::Response::BuildResult(finished(floor, outputs.collect()))
            }
            other => {
                eprintln!("the floor cannot answer {other:?}");
                return Ok(());
            }
        };
        conn.reply(&response).await?;
    }
    Ok(())
}
