//! A store that keeps NARs in memory and checks nothing, on a Unix socket. Shows how the crate is used, and
//! lets a stock client be tried by hand against the protocol alone:
//!
//!     cargo run --release -p wire --example memory_store -- /tmp/memory.sock
//!     nix store ping --store unix:///tmp/memory.sock
//!     nix copy --no-check-sigs --to unix:///tmp/memory.sock /nix/store/…

use std::collections::BTreeMap;

use nix::{BuildResult, BuildStatus, Missing, PathInfo};
use nix_derivation::{DerivedPath, StorePath};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::UnixListener;
use wire::WireError;
use wire::worker::{Connection, Failure, LogEvent, Request, Response, ServerInfo};

type Paths = BTreeMap<StorePath, (PathInfo, Vec<u8>)>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "memory.sock".to_owned());
    let listener = UnixListener::bind(path)?;
    let mut paths = Paths::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let (reader, writer) = stream.into_split();
        match serve(reader, writer, &mut paths).await {
            Ok(()) => println!("the client left; {} paths", paths.len()),
            Err(error) => println!("the client was dropped: {error}"),
        }
    }
}

async fn serve<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: R,
    writer: W,
    paths: &mut Paths,
) -> Result<(), WireError> {
    let mut conn = Connection::accept(reader, writer, ServerInfo::new("2.34.0 (in memory)")).await?;
    println!("protocol {}", conn.protocol().version);
    loop {
        let request = match conn.next_request().await {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) => {
                conn.refuse(&error, error.to_string()).await?;
                return Err(error);
            }
        };
        println!("{}", conn.pending().map_or("", |op| op.name()));
        let response = match answer(&mut conn, paths, request).await {
            Ok(Some(response)) => response,
            Ok(None) => continue,
            Err(error) if error.is_disconnect() => return Err(error),
            Err(error) => {
                conn.fail(&Failure::new(error.to_string())).await?;
                continue;
            }
        };
        conn.reply(&response).await?;
    }
}

/// `None`: the request is answered already.
async fn answer<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    conn: &mut Connection<R, W>,
    paths: &mut Paths,
    request: Request,
) -> Result<Option<Response>, WireError> {
    Ok(Some(match request {
        Request::SetOptions(_) | Request::AddTempRoot { .. } | Request::EnsurePath { .. } => Response::Done,
        Request::IsValidPath { path } => Response::Bool(paths.contains_key(&path)),
        Request::QueryValidPaths { paths: asked, .. } => {
            Response::Paths(asked.into_iter().filter(|path| paths.contains_key(path)).collect())
        }
        Request::QueryAllValidPaths => Response::Paths(paths.keys().cloned().collect()),
        Request::QueryPathInfo { path } => Response::PathInfo(paths.get(&path).map(|(info, _)| info.clone())),
        Request::BuildPathsWithResults { paths: asked, .. } => {
            let result = |path: DerivedPath| {
                let known = matches!(&path, DerivedPath::Opaque(path) if paths.contains_key(path));
                let result = match known {
                    true => BuildResult::new(BuildStatus::AlreadyValid, ""),
                    false => BuildResult::new(BuildStatus::MiscFailure, "a store in memory builds nothing"),
                };
                (path, result)
            };
            Response::BuildResults(asked.into_iter().map(result).collect())
        }
        Request::QueryMissing { .. } => Response::Missing(Missing::default()),
        Request::QuerySubstitutablePaths { .. } => Response::Paths(Vec::new()),
        Request::AddToStoreNar { info, .. } => {
            let mut nar = Vec::new();
            conn.body().read_to_end(&mut nar).await?;
            paths.insert(info.path.clone(), (info, nar));
            Response::Done
        }
        Request::AddMultipleToStore { .. } => {
            while let Some(info) = conn.next_item().await? {
                let mut nar = Vec::new();
                conn.body().read_to_end(&mut nar).await?;
                conn.log(&LogEvent::message(format!("got {}", info.path))).await?;
                paths.insert(info.path.clone(), (info, nar));
            }
            Response::Done
        }
        Request::NarFromPath { path } if paths.contains_key(&path) => {
            let mut reply = conn.reply_nar().await?;
            reply.write(&paths[&path].1).await?;
            reply.finish().await?;
            return Ok(None);
        }
        other => {
            conn.fail(&Failure::new(format!("a store in memory cannot answer {other:?}"))).await?;
            return Ok(None);
        }
    }))
}
