//! The server for webhooks: a few connections at a time, one request each, and no work for strangers but a hash over a
//! bounded body.
//!
//! It speaks HTTP without TLS. Signatures need no TLS. GitLab's token does: the operator puts a proxy with TLS in front.
//! A flood of requests can keep webhooks away. Then the timer synchronises, as without webhooks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use roster::date;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::signature::Proofs;
use super::{Requester, secrets};

/// Open connections. A forge needs one.
const MAX_CONNECTIONS: usize = 16;
/// The largest payload that GitHub sends.
const MAX_BODY: u64 = 25 << 20;
/// Bytes and number of a request's headers; forges send about 1 KiB in 15.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// For the headers, and for everything. GitHub itself waits ten seconds.
const HEAD_TIME: Duration = Duration::from_secs(5);
const WHOLE_TIME: Duration = Duration::from_secs(15);
/// Requests that are looked at: this many at once, then so many a second.
const BURST: f64 = 20.0;
const PER_SECOND: f64 = 2.0;
/// Interval between log lines about refused requests.
const QUIET: Duration = Duration::from_secs(10);

struct Server {
    secrets: PathBuf,
    requester: Requester,
    budget: Mutex<Budget>,
    quiet: Mutex<Quiet>,
}

/// Serves until the process ends.
pub fn serve(
    listener: std::net::TcpListener,
    secrets: PathBuf,
    requester: Requester,
) -> std::io::Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let budget = Mutex::new(Budget { left: BURST, at: Instant::now() });
    let server = Arc::new(Server { secrets, requester, budget, quiet: Mutex::default() });
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    // Without a place the connection is closed.
                    let Ok(place) = places.clone().try_acquire_owned() else { continue };
                    let server = server.clone();
                    tokio::spawn(async move {
                        // Errors are the client's: it hung up, or did not speak HTTP.
                        let _ = timeout(WHOLE_TIME, converse(server, stream, peer)).await;
                        drop(place);
                    });
                }
                // Most likely no descriptor is free.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    })
}

async fn converse(server: Arc<Server>, stream: TcpStream, peer: SocketAddr) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request, peer).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

impl Server {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<String> {
        match self.examine(request).await {
            Ok(()) => {
                eprintln!("webhook from {}: synchronising", peer.ip());
                self.requester.request();
                respond(StatusCode::ACCEPTED, "synchronising\n")
            }
            Err((status, why)) => {
                if let Some(left_out) = lock(&self.quiet).line(Instant::now()) {
                    let more =
                        if left_out == 0 { String::new() } else { format!(" ({left_out} more before)") };
                    eprintln!("warning: webhook from {} refused: {why}{more}", peer.ip());
                }
                let mut response = respond(status, &format!("{why}\n"));
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                }
                response
            }
        }
    }

    /// Whether the sender knows the secret. The contents are hashed and forgotten.
    async fn examine(&self, request: Request<Incoming>) -> Result<(), (StatusCode, String)> {
        let no = |status, why: &str| Err((status, why.to_owned()));
        if !lock(&self.budget).take(Instant::now()) {
            return no(
                StatusCode::TOO_MANY_REQUESTS,
                "too many requests; the box synchronises by itself, too",
            );
        }
        if request.method() != Method::POST {
            return no(StatusCode::METHOD_NOT_ALLOWED, "webhooks are sent with POST");
        }
        let too_large = || no(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large for a webhook");
        if request.body().size_hint().lower() > MAX_BODY {
            return too_large();
        }
        let (head, mut body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
        let Some(proofs) = Proofs::of(header, date::now()) else {
            let why = "no header of a forge that proves the secret, such as X-Hub-Signature-256";
            return no(StatusCode::UNAUTHORIZED, why);
        };
        let secrets = secrets::read(&self.secrets).map_err(|error| {
            eprintln!(
                "error: the secrets of the webhook in {} cannot be used: {error}",
                self.secrets.display()
            );
            (StatusCode::SERVICE_UNAVAILABLE, "this box cannot check webhooks at the moment".to_owned())
        })?;
        let mut check = proofs.check(&secrets);
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return no(StatusCode::BAD_REQUEST, "the body is not complete") };
            let Some(piece) = frame.data_ref() else { continue };
            length += piece.len() as u64;
            if length > MAX_BODY {
                return too_large();
            }
            check.update(piece);
        }
        match check.is_valid() {
            true => Ok(()),
            false => no(StatusCode::FORBIDDEN, "the signature or token is not that of this box's secret"),
        }
    }
}

fn respond(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(text.to_owned());
    *response.status_mut() = status;
    response
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests that may still be looked at.
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * PER_SECOND;
        (self.left, self.at) = ((self.left + earned).min(BURST), now);
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }
}

/// Decides which refusals are logged.
#[derive(Default)]
struct Quiet {
    last: Option<Instant>,
    left_out: u64,
}

impl Quiet {
    /// Whether to write a line now, and the number of lines left out before it.
    fn line(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_not_looked_at_and_leaves_one_line_of_log() {
        let start = Instant::now();
        let (mut budget, mut quiet) = (Budget { left: BURST, at: start }, Quiet::default());
        let looked_at = (0..1000).filter(|_| budget.take(start)).count();
        assert_eq!(looked_at, BURST as usize);
        assert!(budget.take(start + Duration::from_secs(1)));
        let lines: Vec<u64> = (0..1000).filter_map(|_| quiet.line(start)).collect();
        assert_eq!(lines, [0]);
        assert_eq!(quiet.line(start + QUIET), Some(999));
    }
}
