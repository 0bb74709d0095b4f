//! An HTTP client for `GET` only: with limits, with redirects, and with connections that are kept.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::Fetch;

use super::connect::{ConnectError, Connector, Dialer};

/// Longest chain of redirects. One or two are usual.
const MAX_REDIRECTS: usize = 10;
/// Longest URL, of a request or of a redirect.
const MAX_URL_BYTES: usize = 8192;
/// Most kept connections of one server, and how long they are kept.
const MAX_IDLE: usize = 32;
const IDLE: Duration = Duration::from_secs(60);
/// Most servers with kept connections.
const MAX_SERVERS: usize = 64;
/// The `User-Agent` of all requests.
const USER_AGENT: &str = concat!("barnraiser/", env!("CARGO_PKG_VERSION"));

/// The reasons why a body was not received completely, each in one line that names the URL.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot fetch '{url}': this box fetches http:// and https:// only")]
    Scheme { url: String },
    #[error("cannot fetch a URL of {length} bytes; at most {MAX_URL_BYTES} are accepted")]
    LongUrl { length: usize },
    #[error("cannot fetch '{url}': {cause}")]
    Connect { url: String, cause: ConnectError },
    #[error("cannot fetch '{url}': the server answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("cannot fetch '{url}': more than {MAX_REDIRECTS} redirects, the last to '{last}'")]
    Redirects { url: String, last: String },
    #[error("cannot fetch '{url}': the server redirected to '{location}', which is not a URL to fetch from")]
    BadRedirect { url: String, location: String },
    #[error("cannot fetch '{url}': nothing came for {} seconds (`fetch.stall-seconds`), after {got} bytes", stall.as_secs())]
    Stalled { url: String, stall: Duration, got: u64 },
    #[error("cannot fetch '{url}': not finished within {} seconds (`fetch.max-seconds`), {got} bytes came", whole.as_secs())]
    TooSlow { url: String, whole: Duration, got: u64 },
    #[error("cannot fetch '{url}': it is larger than {limit} bytes, the most that is accepted here")]
    TooLarge { url: String, limit: u64 },
    #[error("cannot fetch '{url}': the server encoded it as '{encoding}' although it was not asked to")]
    Encoded { url: String, encoding: String },
    #[error("cannot fetch '{url}': {cause}")]
    Broken { url: String, cause: String },
    #[error("fetching '{url}' was cancelled")]
    Cancelled { url: String },
}

impl HttpError {
    /// Whether the server says that it has no such file. Caches on object storage answer 403 if the requester may not
    /// list their files.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Status { status, .. }
            if matches!(*status, StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN))
    }

    /// Whether another attempt may succeed: the error is one of the network or the server, not of the request.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
            }
            Self::Connect { cause, .. } => {
                !matches!(cause, ConnectError::Private { .. } | ConnectError::NoCertificates { .. })
            }
            Self::Stalled { .. } | Self::TooSlow { .. } | Self::Broken { .. } => true,
            _ => false,
        }
    }
}

/// Limits of one request.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// Largest body in bytes.
    pub max_bytes: u64,
}

/// A client for the whole box. Cheap to share; keeps connections.
pub struct HttpClient {
    dialer: Arc<Dialer>,
    stall: Duration,
    whole: Duration,
    pool: Mutex<Pool>,
}

impl HttpClient {
    /// A client with the settings of `[fetch]`.
    #[must_use]
    pub fn new(settings: &Fetch) -> Self {
        let dialer = Arc::new(Dialer::new(settings.allow_private, settings.certificates.clone()));
        let pool = Mutex::new(Pool::new(&dialer));
        Self { dialer, stall: settings.stall, whole: settings.whole, pool }
    }

    /// Another client with the same settings. It shares neither connections nor threads for names with this one.
    #[must_use]
    pub fn apart(&self) -> Self {
        let dialer = Arc::new(self.dialer.apart());
        let pool = Mutex::new(Pool::new(&dialer));
        Self { dialer, pool, ..*self }
    }

    /// The dialer, for protocols other than HTTP under the same rule about addresses.
    #[must_use]
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// The body behind `url`, after redirects, if the server answers 200. Dropping it closes the connection.
    pub async fn get(&self, url: &Url, want: Want) -> Result<Body, HttpError> {
        let deadline = Instant::now() + self.whole;
        let late = |url: &Url| HttpError::TooSlow { url: url.to_string(), whole: self.whole, got: 0 };
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = timeout_at(deadline, self.ask(&at)).await.map_err(|_| late(url))??;
            let status = response.status();
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                at = redirected(&at, &response)?;
                reuse_after(response);
                continue;
            }
            if status != StatusCode::OK {
                reuse_after(response);
                return Err(HttpError::Status { url: at.to_string(), status });
            }
            if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING)
                && encoding != "identity"
            {
                let encoding = printable::start(encoding.to_str().unwrap_or("?"), 40);
                return Err(HttpError::Encoded { url: at.to_string(), encoding });
            }
            let length = response.headers().get(header::CONTENT_LENGTH);
            let length = length.and_then(|text| text.to_str().ok()?.parse().ok());
            if length.is_some_and(|length: u64| length > want.max_bytes) {
                return Err(HttpError::TooLarge { url: at.to_string(), limit: want.max_bytes });
            }
            return Ok(Body {
                incoming: response.into_body(),
                length,
                got: 0,
                url: at,
                limit: want.max_bytes,
                stall: self.stall,
                whole: self.whole,
                deadline,
            });
        }
        Err(HttpError::Redirects { url: url.to_string(), last: at.to_string() })
    }

    /// The whole of a small body.
    pub async fn get_all(&self, url: &Url, want: Want) -> Result<Vec<u8>, HttpError> {
        let mut body = self.get(url, want).await?;
        let mut all = Vec::new();
        while let Some(piece) = body.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// Makes one request, without following redirects.
    async fn ask(&self, url: &Url) -> Result<Response<Incoming>, HttpError> {
        let uri = uri(url)?;
        // The server may close a kept connection just when the request goes out on it. Asking again is harmless.
        match self.try_ask(url, &uri).await {
            Err(HttpError::Broken { .. }) => self.try_ask(url, &uri).await,
            answer => answer,
        }
    }

    async fn try_ask(&self, url: &Url, uri: &Uri) -> Result<Response<Incoming>, HttpError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));

        let mut connection = capture_connection(&mut request);
        let client = self.pool.lock().unwrap_or_else(PoisonError::into_inner).client(&self.dialer, uri);
        let mut answer = client.request(request);
        // The time for a connection has its own limit (`connect::CONNECT_TIME`); the time of a stall begins after it.
        let answered = tokio::select! {
            biased;
            answered = &mut answer => Some(answered),
            () = async { drop(connection.wait_for_connection_metadata().await) } => None,
        };
        let answered = match answered {
            Some(answered) => answered,
            None => timeout(self.stall, answer).await.map_err(|_| HttpError::Stalled {
                url: url.to_string(),
                stall: self.stall,
                got: 0,
            })?,
        };
        answered.map_err(|error| {
            match error.source().and_then(|cause| cause.downcast_ref::<ConnectError>()) {
                Some(cause) => HttpError::Connect { url: url.to_string(), cause: cause.clone() },
                None => HttpError::Broken {
                    url: url.to_string(),
                    cause: in_full(error.source().unwrap_or(&error)),
                },
            }
        })
    }
}

/// hyper's client, which keeps connections, and the servers to which it may have kept some.
struct Pool {
    client: Client<Connector, Empty<Bytes>>,
    servers: HashSet<(bool, Authority)>,
}

impl Pool {
    fn new(dialer: &Arc<Dialer>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .build(Connector(dialer.clone()));
        Self { client, servers: HashSet::new() }
    }

    /// hyper limits the connections to each server, but not the number of servers, which members choose. So after
    /// [`MAX_SERVERS`] a new pool replaces this one. Connections that are in use close when their answers end.
    fn client(&mut self, dialer: &Arc<Dialer>, uri: &Uri) -> Client<Connector, Empty<Bytes>> {
        let tls = uri.scheme_str() == Some("https");
        if let Some(authority) = uri.authority()
            && !self.servers.contains(&(tls, authority.clone()))
        {
            if self.servers.len() >= MAX_SERVERS {
                *self = Self::new(dialer);
            }
            self.servers.insert((tls, authority.clone()));
        }
        self.client.clone()
    }
}

/// Reads the rest of an answer that is not needed, if it is short, so that the connection can be kept.
fn reuse_after(response: Response<Incoming>) {
    const SHORT: u64 = 64 << 10;
    tokio::spawn(timeout(Duration::from_secs(2), async move {
        let mut body = response.into_body();
        let mut got = 0;
        while let Some(Ok(frame)) = body.frame().await {
            got += frame.data_ref().map_or(0, |data| data.len() as u64);
            if got > SHORT {
                return;
            }
        }
    }));
}

/// The error with its causes; hyper's text has only the outermost.
fn in_full(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The part of a URL that goes to the server: no user name, no password, no fragment.
fn uri(url: &Url) -> Result<Uri, HttpError> {
    if url.as_str().len() > MAX_URL_BYTES {
        return Err(HttpError::LongUrl { length: url.as_str().len() });
    }
    let scheme = || HttpError::Scheme { url: url.to_string() };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(scheme());
    }
    let host = url.host().ok_or_else(scheme)?;
    let authority = url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}"));
    let target = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
    Uri::builder()
        .scheme(url.scheme())
        .authority(authority)
        .path_and_query(target)
        .build()
        .map_err(|_| scheme())
}

fn redirected(from: &Url, response: &Response<Incoming>) -> Result<Url, HttpError> {
    let location = response.headers().get(header::LOCATION).map_or(&b""[..], HeaderValue::as_bytes);
    let location = String::from_utf8_lossy(location);
    let bad = || HttpError::BadRedirect { url: from.to_string(), location: printable::start(&location, 200) };
    if location.is_empty() {
        return Err(bad());
    }
    let to = from.join(&location).map_err(|_| bad())?;
    match to.scheme() {
        "http" | "https" => Ok(to),
        _ => Err(bad()),
    }
}

/// A body that is being received.
pub struct Body {
    incoming: Incoming,
    length: Option<u64>,
    got: u64,
    url: Url,
    limit: u64,
    stall: Duration,
    whole: Duration,
    deadline: Instant,
}

impl Body {
    /// The length in bytes, if the server announced it.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; `None` after the last. A body that is cut short is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            let now = Instant::now();
            let wait = self.stall.min(self.deadline.saturating_duration_since(now));
            let url = || self.url.to_string();
            let frame = match timeout(wait, self.incoming.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(HttpError::Broken { url: url(), cause: in_full(&error) });
                }
                Err(_) if Instant::now() >= self.deadline => {
                    return Err(HttpError::TooSlow { url: url(), whole: self.whole, got: self.got });
                }
                Err(_) => return Err(HttpError::Stalled { url: url(), stall: self.stall, got: self.got }),
            };
            // A server that sends a little all the time never stalls; the deadline ends its answer.
            if Instant::now() >= self.deadline {
                return Err(HttpError::TooSlow { url: url(), whole: self.whole, got: self.got });
            }
            let Ok(data) = frame.into_data() else { continue };
            self.got += data.len() as u64;
            if self.got > self.limit {
                return Err(HttpError::TooLarge { url: url(), limit: self.limit });
            }
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// The body for blocking threads, such as the store's. Reading ends with an error when `cancel` is cancelled.
    #[must_use]
    pub fn blocking(self, runtime: Handle, cancel: CancellationToken) -> Blocking {
        Blocking { body: self, runtime, cancel, current: Bytes::new(), failed: Arc::default() }
    }
}

/// A body as a blocking reader. Not for use on a thread that runs tasks.
pub struct Blocking {
    body: Body,
    runtime: Handle,
    cancel: CancellationToken,
    current: Bytes,
    failed: Arc<Mutex<Option<HttpError>>>,
}

impl Blocking {
    /// The complete error, if there is one. A library that reads from this passes on at most its text.
    #[must_use]
    pub fn failure(&self) -> Arc<Mutex<Option<HttpError>>> {
        self.failed.clone()
    }
}

impl io::Read for Blocking {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            let Self { body, cancel, .. } = self;
            let next = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {
                        Err(HttpError::Cancelled { url: body.url.to_string() })
                    }
                    next = body.next() => next,
                }
            });
            match next {
                Ok(Some(bytes)) => self.current = bytes,
                Ok(None) => return Ok(0),
                Err(error) => {
                    let text = error.to_string();
                    *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let n = buf.len().min(self.current.len());
        buf[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}
