//! The boot server: serves one release over HTTP, to everybody.
//!
//! Anyone on the network may send requests, so a request can only name a file of the manifest, exactly; there
//! are no other paths. Files are held open from the start: if a release is replaced on disk, a running
//! download still gets the old one. Not here: access control (a release contains no secrets), TLS, several
//! releases.

use crate::files;
use crate::manifest::{self, Release};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Path, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

/// Size of one read; large enough to need few reads from disk.
const CHUNK: u64 = 256 * 1024;

/// The contents of a download.
enum Source {
    File(Arc<File>),
    Memory(Bytes),
}

struct Item {
    source: Source,
    size: u64,
    /// Hash of the contents, in quotes.
    etag: String,
}

struct Site {
    items: BTreeMap<String, Item>,
}

/// The server for one release; run it with connect info of type [`SocketAddr`].
pub fn router(release: Release) -> Router {
    let (sha256, size) = files::digest(&mut release.manifest_bytes.as_slice()).expect("memory can be read");
    let mut items: BTreeMap<String, Item> = BTreeMap::new();
    items.insert(
        manifest::FILE_NAME.into(),
        Item { source: Source::Memory(release.manifest_bytes.into()), size, etag: format!("\"{sha256}\"") },
    );
    for (name, file) in release.files {
        let entry = &release.manifest.files[&name];
        let etag = format!("\"{}\"", entry.sha256);
        items.insert(name, Item { source: Source::File(Arc::new(file)), size: entry.size, etag });
    }
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        // GET also answers HEAD.
        .route("/{name}", get(download))
        .fallback(unknown)
        .with_state(Arc::new(Site { items }))
}

/// Serves until the process ends.
pub async fn run(listener: tokio::net::TcpListener, release: Release) -> std::io::Result<()> {
    let service = router(release).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

async fn unknown(ConnectInfo(client): ConnectInfo<SocketAddr>, uri: axum::http::Uri) -> Response {
    // Debug form: the path is the client's text and must not add lines to the server's log.
    tracing::warn!(%client, path = ?uri.path(), status = 404, "refused");
    (StatusCode::NOT_FOUND, "no such file; a release has kernel, initrd, boot.ipxe and manifest.json\n")
        .into_response()
}

async fn download(
    State(site): State<Arc<Site>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    method: Method,
    Path(name): Path<String>,
    headers: HeaderMap,
    uri: axum::http::Uri,
) -> Response {
    let Some((name, item)) = site.items.get_key_value(&name) else {
        return unknown(ConnectInfo(client), uri).await;
    };
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let mut log = Log {
        client,
        method: method.clone(),
        file: name.clone(),
        status: 200,
        bytes: 0,
        started: Instant::now(),
    };
    let common = [
        (header::ETAG, item.etag.clone()),
        (header::ACCEPT_RANGES, "bytes".into()),
        (header::CONTENT_TYPE, content_type(name).into()),
    ];
    if text(header::IF_NONE_MATCH).is_some_and(|tags| tags.split(',').any(|tag| tag.trim() == item.etag)) {
        log.status = 304;
        return (StatusCode::NOT_MODIFIED, common).into_response();
    }
    // A range of a file that has changed meanwhile would not fit its beginning (RFC 9110, If-Range).
    let range = text(header::RANGE).filter(|_| text(header::IF_RANGE).is_none_or(|tag| tag == item.etag));
    let (status, start, length) = match range.map(|range| parse_range(range, item.size)) {
        None | Some(Range::Whole) => (StatusCode::OK, 0, item.size),
        Some(Range::Part { start, length }) => (StatusCode::PARTIAL_CONTENT, start, length),
        Some(Range::Outside) => {
            log.status = 416;
            let range = [(header::CONTENT_RANGE, format!("bytes */{}", item.size))];
            return (StatusCode::RANGE_NOT_SATISFIABLE, range).into_response();
        }
    };
    log.status = status.as_u16();
    let body = if method == Method::HEAD { Body::empty() } else { stream(&item.source, start, length, log) };
    let mut response = (status, common, [(header::CONTENT_LENGTH, length.to_string())], body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{}", start + length - 1, item.size);
        response
            .headers_mut()
            .insert(header::CONTENT_RANGE, range.parse().expect("digits are a valid header"));
    }
    response
}

/// A part of a file as a body, read at the client's speed.
fn stream(source: &Source, start: u64, length: u64, mut log: Log) -> Body {
    let file = match source {
        Source::Memory(bytes) => {
            log.bytes = length;
            return Body::from(bytes.slice(start as usize..(start + length) as usize));
        }
        Source::File(file) => file.clone(),
    };
    let chunks = futures_util::stream::unfold((start, length, log), move |(at, left, mut log)| {
        let file = file.clone();
        async move {
            if left == 0 {
                return None;
            }
            let want = left.min(CHUNK);
            let read = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; want as usize];
                file.read_exact_at(&mut chunk, at).map(|()| Bytes::from(chunk))
            });
            let chunk = read.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
            log.bytes += if chunk.is_ok() { want } else { 0 };
            // After an error the connection is closed, since the announced length cannot be sent.
            let left = if chunk.is_ok() { left - want } else { 0 };
            Some((chunk, (at + want, left, log)))
        }
    });
    Body::from_stream(chunks)
}

/// One line per request, written when the answer has been sent or the client is gone.
struct Log {
    client: SocketAddr,
    method: Method,
    file: String,
    status: u16,
    bytes: u64,
    started: Instant,
}

impl Drop for Log {
    fn drop(&mut self) {
        let Log { client, method, file, status, bytes, started } = self;
        let ms = started.elapsed().as_millis() as u64;
        tracing::info!(%client, %method, file, status, bytes, ms, "request");
    }
}

#[derive(Debug, PartialEq)]
enum Range {
    /// No range, or one that may be ignored: several at once, other units (RFC 9110, 14.2).
    Whole,
    Part {
        start: u64,
        length: u64,
    },
    Outside,
}

fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Range::Whole;
    };
    let number = |text: &str| match text {
        "" => Ok(None),
        // Rust's parser would accept a sign; HTTP has none.
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u64>().map(Some).map_err(drop)
        }
        _ => Err(()),
    };
    match (number(first), number(last)) {
        (Ok(Some(first)), Ok(last)) => {
            let last = last.unwrap_or(u64::MAX).min(size.saturating_sub(1));
            if first >= size {
                Range::Outside
            } else if last < first {
                Range::Whole
            } else {
                Range::Part { start: first, length: last - first + 1 }
            }
        }
        // `-count`: the last `count` bytes.
        (Ok(None), Ok(Some(0))) => Range::Outside,
        (Ok(None), Ok(Some(_))) if size == 0 => Range::Outside,
        (Ok(None), Ok(Some(count))) => {
            let length = count.min(size);
            Range::Part { start: size - length, length }
        }
        _ => Range::Whole,
    }
}

fn content_type(name: &str) -> &'static str {
    match name {
        "boot.ipxe" => "text/plain; charset=utf-8",
        "manifest.json" => "application/json",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
#[path = "serve_test.rs"]
mod serve_test;
