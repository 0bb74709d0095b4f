//! Makes connections: resolves the name, refuses private addresses, connects, and uses TLS if the URL says so.
//!
//! The box connects to the address that it has checked and does not resolve the name again, so a name server cannot
//! give another answer the second time.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::Scheme;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tower_service::Service;
use url::Host;

use addresses::{is_own, is_public};
use shares::threads::Crew;

/// Longest time for the name, the connection and TLS together.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// How long an attempt with one address lasts before one with the next address begins beside it (RFC 8305, 5: the
/// connection attempt delay).
const HEAD_START: Duration = Duration::from_millis(250);
/// Most addresses of one name that are tried. Large services have a dozen.
const MAX_ADDRESSES: usize = 16;

/// Most lookups of names at once. Their threads only wait. A member has at most as many lookups as builds, and some
/// whose caller has stopped waiting.
const NAME_THREADS: usize = 64;

/// The reasons why there is no connection, each in one line.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot find the address of '{host}': {cause}")]
    Unresolved { host: String, cause: String },
    /// The address itself is written only to the box's log: not everybody who can name a host may know its private
    /// address.
    #[error("'{host}' has no public address; set `fetch.allow-private = true` on the box if it may be used")]
    Private { host: String },
    #[error("cannot connect to '{host}' port {port}: {cause}")]
    Refused { host: String, port: u16, cause: String },
    #[error("'{host}' port {port} did not answer within {} seconds", CONNECT_TIME.as_secs())]
    TimedOut { host: String, port: u16 },
    #[error("cannot agree on a TLS connection with '{host}': {cause}")]
    Tls { host: String, cause: String },
    #[error(
        "there are no certificate authorities in {}: {cause}; install ca-certificates, or set `fetch.certificates`",
        path.display()
    )]
    NoCertificates { path: PathBuf, cause: String },
}

/// Makes connections. Only public addresses are allowed, unless the configuration allows private ones.
pub struct Dialer {
    allow_private: bool,
    certificates: PathBuf,
    /// Read at the first use, so that a box without certificates can still make connections without TLS.
    tls: Mutex<Option<Arc<ClientConfig>>>,
    /// The threads that look up names.
    names: Crew,
}

impl Dialer {
    pub fn new(allow_private: bool, certificates: PathBuf) -> Self {
        Self { allow_private, certificates, tls: Mutex::new(None), names: Crew::new("names", NAME_THREADS) }
    }

    /// A dialer under the same rule, with threads for names of its own.
    pub fn apart(&self) -> Self {
        Self::new(self.allow_private, self.certificates.clone())
    }

    /// A TCP connection to the first address that answers.
    pub async fn tcp(&self, host: &Host<String>, port: u16) -> Result<TcpStream, ConnectError> {
        let late = |_| ConnectError::TimedOut { host: host.to_string(), port };
        tokio::time::timeout(CONNECT_TIME, self.dial(host, port)).await.map_err(late)?
    }

    async fn dial(&self, host: &Host<String>, port: u16) -> Result<TcpStream, ConnectError> {
        let addresses = self.addresses(host, port).await?;
        let mut addresses = addresses.into_iter().peekable();
        let mut tries = JoinSet::new();
        let mut cause = String::new();
        loop {
            match addresses.next() {
                Some(address) => drop(tries.spawn(TcpStream::connect(address))),
                None if tries.is_empty() => {
                    return Err(ConnectError::Refused { host: host.to_string(), port, cause });
                }
                None => {}
            }
            tokio::select! {
                Some(Ok(tried)) = tries.join_next() => match tried {
                    Ok(tcp) => {
                        let _ = tcp.set_nodelay(true);
                        return Ok(tcp);
                    }
                    Err(error) => cause = error.to_string(),
                },
                () = tokio::time::sleep(HEAD_START), if addresses.peek().is_some() => {}
            }
        }
    }

    /// The allowed addresses, alternating between IPv4 and IPv6, so that a broken family costs only one
    /// [`HEAD_START`].
    async fn addresses(&self, host: &Host<String>, port: u16) -> Result<Vec<SocketAddr>, ConnectError> {
        let found: Vec<SocketAddr> = match host {
            Host::Ipv4(address) => vec![(*address, port).into()],
            Host::Ipv6(address) => vec![(*address, port).into()],
            Host::Domain(name) => {
                let failed =
                    |e: io::Error| ConnectError::Unresolved { host: name.clone(), cause: e.to_string() };
                self.look_up(name, port).await.map_err(failed)?
            }
        };
        let allowed =
            |address: &&SocketAddr| self.allow_private || (is_public(address.ip()) && !is_own(address.ip()));
        let (six, four): (Vec<SocketAddr>, Vec<SocketAddr>) =
            found.iter().filter(allowed).partition(|address| address.is_ipv6());
        let longest = six.len().max(four.len());
        let mixed: Vec<SocketAddr> = (0..longest)
            .flat_map(|i| [six.get(i), four.get(i)].into_iter().flatten().copied())
            .take(MAX_ADDRESSES)
            .collect();
        match (mixed.is_empty(), found.first()) {
            (false, _) => Ok(mixed),
            (true, Some(address)) => {
                tracing::warn!(%host, address = %address.ip(), "refused to connect to a private address");
                Err(ConnectError::Private { host: host.to_string() })
            }
            (true, None) => Err(ConnectError::Unresolved {
                host: host.to_string(),
                cause: "the name has no addresses".into(),
            }),
        }
    }

    /// Resolves a name with the system's resolver. This blocks for as long as the name's servers choose: so it has
    /// threads of its own, and no domain has more than half of them. A caller stops waiting after [`CONNECT_TIME`].
    async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let asked = (name.to_owned(), port);
        let domain: Arc<str> = name.rsplit('.').take(2).collect::<Vec<_>>().join(".").into();
        let found = self.names.start(&domain, move || asked.to_socket_addrs().map(Iterator::collect));
        found.await.map_err(io::Error::other)?
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, ConnectError> {
        let mut tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = &*tls {
            return Ok(config.clone());
        }
        let config = Arc::new(client_config(&self.certificates)?);
        *tls = Some(config.clone());
        Ok(config)
    }
}

/// Connections for the HTTP client: plain, or with TLS where the URL says so.
#[derive(Clone)]
pub struct Connector(pub Arc<Dialer>);

/// The TCP connections below TLS.
#[derive(Clone)]
struct Tcp(Arc<Dialer>);

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, ConnectError>> + Send>>;

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = ConnectError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut tcp = Tcp(self.0.clone());
        Box::pin(async move {
            let (host, port) = place(&uri)?;
            let late = |_| ConnectError::TimedOut { host: host.to_string(), port };
            tokio::time::timeout(CONNECT_TIME, async {
                if uri.scheme() == Some(&Scheme::HTTP) {
                    return tcp.call(uri).await.map(MaybeHttpsStream::Http);
                }
                let tls = tcp.0.tls()?;
                HttpsConnector::from((tcp, tls)).call(uri).await.map_err(|error| {
                    let cause = |cause: Box<dyn std::error::Error + Send + Sync>| cause.to_string();
                    error.downcast::<ConnectError>().map_or_else(
                        |error| ConnectError::Tls { host: host.to_string(), cause: cause(error) },
                        |error| *error,
                    )
                })
            })
            .await
            .map_err(late)?
        })
    }
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move {
            let (host, port) = place(&uri)?;
            dialer.dial(&host, port).await.map(TokioIo::new)
        })
    }
}

/// Host and port of a URI. `url::Url` has turned hosts in numeric forms into addresses, so the resolver never reads
/// such a form.
fn place(uri: &Uri) -> Result<(Host<String>, u16), ConnectError> {
    let name = uri.host().unwrap_or_default();
    let host = Host::parse(name)
        .map_err(|e| ConnectError::Unresolved { host: name.to_owned(), cause: e.to_string() })?;
    let default = if uri.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
    Ok((host, uri.port_u16().unwrap_or(default)))
}

fn client_config(path: &Path) -> Result<ClientConfig, ConnectError> {
    let failed = |cause: String| ConnectError::NoCertificates { path: path.to_owned(), cause };
    let mut roots = RootCertStore::empty();
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))? {
        certificates.push(certificate.map_err(|e| failed(e.to_string()))?);
    }
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(failed("none can be read".into()));
    }
    // The same cryptography as for ssh. It is named here, because a default for the process could be set elsewhere.
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(e.to_string()))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
